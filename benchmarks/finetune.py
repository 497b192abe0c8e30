"""Fine-tuning from a store against the usual training loop: equal losses, time of an epoch, held-out accuracy.

    python benchmarks/finetune.py FOLDER [FOLDER ...] [--images 512] [--epochs 8] [--boundaries blocks.5 blocks.4]

FOLDER has class folders; "textile" is the demo's pictures, nominal against defect. The network is EfficientNet-Lite0.

loss : both sides train for two epochs from the same weights in the same order of images, the loop on pixels in memory
    with the front frozen (evaluated in each step, no gradients), AdamW, batches of 32, float32 stored and computed; the
    largest difference of an epoch's mean loss is printed
epoch : seconds of an epoch from each boundary, of the loop that trains everything, on decoded pixels in memory, and of
    featx's boundary "input", which decodes in each epoch, as the loop then does too; in turns, medians of three
accuracy : on a fifth of the images, of the probe, the tuned networks and everything trained, with the time to each
    from the images on: extraction, probe and epochs
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from solve import header
from torch import nn

import featx
from featx.backbones import Tail
from featx.images import collect, decode
from featx.learn import HoldOut
from featx.transfer import FineTuner, finetune

NAME = "bundled:efficientnet_lite0"
BATCH, LR = 32, 1e-4


class Loop:
    """The usual loop: a network and a head, AdamW, cosine, clipping, batch norms in eval."""

    def __init__(self, tuner: FineTuner, frozen_before: str | None, n: int, epochs: int) -> None:
        whole = Tail(featx.Backbone(NAME), "input")
        trained = {name for name, _ in whole.network.named_parameters()}
        if frozen_before is not None:
            trained = {name for name, _ in Tail(featx.Backbone(NAME), frozen_before).network.named_parameters()}
        for name, value in whole.network.named_parameters():
            value.requires_grad_(name in trained)
        self.whole = whole.to(memory_format=torch.channels_last)
        self.head = nn.Linear(whole.d, len(tuner.classes_))
        weights = tuner._network.weights()
        with torch.no_grad():
            self.head.weight.copy_(weights["head.weight"])
            self.head.bias.copy_(weights["head.bias"])
        self.trained = [v for v in [*whole.parameters(), *self.head.parameters()] if v.requires_grad]
        groups = [{"params": [v for v in self.trained if v.ndim > 1], "weight_decay": 0.05},
                  {"params": [v for v in self.trained if v.ndim < 2], "weight_decay": 0.0}]  # fmt: skip
        self.optimizer = torch.optim.AdamW(groups, lr=LR)
        steps = epochs * -(-n // BATCH)
        self.rate = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: 0.5 * (1 + np.cos(np.pi * step / steps))
        )
        self.generator = torch.Generator().manual_seed(0)

    def epoch(self, pixels: Any, codes: torch.Tensor) -> list[float]:
        losses = []
        for batch in torch.randperm(len(codes), generator=self.generator).split(BATCH):
            images = pixels(batch.numpy()).contiguous(memory_format=torch.channels_last)
            loss = nn.functional.cross_entropy(self.head(self.whole(images)), codes[batch])
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.trained, 1.0)
            self.optimizer.step()
            self.rate.step()
            losses.append(loss.item())
        return losses


def in_memory(paths: list[Path]) -> Any:
    preprocessing = featx.Backbone(NAME).preprocessing
    pixels = torch.from_numpy(np.stack([preprocessing(decode(path)[0]) for path in paths]))
    return lambda rows: preprocessing.normalise(pixels[rows])


def decoded(paths: list[Path]) -> Any:
    preprocessing = featx.Backbone(NAME).preprocessing
    return lambda rows: preprocessing.normalise(
        torch.from_numpy(np.stack([preprocessing(decode(paths[row])[0]) for row in rows]))
    )


def pictures(folder: str, n: int, output: Path) -> Path:
    """A folder of class folders with n of the images, drawn at random."""
    if folder == "textile":
        import conformal_clip_data

        root = Path(conformal_clip_data.textile_simulated_root())
        images = collect(root)
        labels = ["nominal" if str(name) == "nominal" else "defect" for name in images.y]
    else:
        images = collect(Path(folder))
        labels = [str(name) for name in images.y]
    for i in np.random.default_rng(0).permutation(len(labels))[:n]:
        image = Path(images.images[i]).resolve()
        (output / labels[i]).mkdir(parents=True, exist_ok=True)
        (output / labels[i] / f"{i}{image.suffix}").symlink_to(image)
    return output


def epoch_seconds(tuner: FineTuner, X: Any, y: Any) -> float:
    """Seconds of one epoch of a fit of two: the second."""
    return float(np.diff(tuner.set_params(epochs=2).fit(X, y).history_["seconds"])[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--boundaries", nargs="+", default=["blocks.5", "blocks.4"])
    arguments = parser.parse_args()
    print(header())
    for folder in arguments.folders:
        with tempfile.TemporaryDirectory() as temporary:
            run(folder, arguments, Path(temporary))


def run(folder: str, arguments: argparse.Namespace, temporary: Path) -> None:
    images = pictures(folder, arguments.images, temporary / "images")
    layers = [f"{boundary}:none" for boundary in arguments.boundaries]
    start = time.monotonic()
    store = featx.extract(
        images,
        temporary / "maps.h5",
        NAME,
        layers,
        precision="float32",
        dtype="float32",
        engine="eager",
        progress=False,
    )
    extraction = time.monotonic() - start
    paths = [images / name for name in store.ids]
    codes = torch.from_numpy(np.unique(store.y, return_inverse=True)[1])
    options: dict[str, Any] = {"warmup": 0.0, "lr": LR, "batch_size": BATCH, "head": "probe"}
    fast, slow = in_memory(paths), decoded(paths)
    print(f"\n{folder}: {len(paths):,} images, {len(store.classes)} classes; extraction {extraction:.1f} s")

    boundary = arguments.boundaries[0]
    start_tuner = FineTuner(store, boundary, epochs=0, **options).fit(store.X, store.y)
    tuned = FineTuner(store, boundary, epochs=2, **options).fit(store.X, store.y)
    loop = Loop(start_tuner, boundary, len(paths), 2)
    means = [float(np.mean(loop.epoch(fast, codes))) for _ in range(2)]
    print(f"loss: featx {tuned.history_['loss'][1:]}, loop {means}, largest difference of an epoch's mean "
          f"{np.abs(tuned.history_['loss'][1:] - means).max():.1e}")  # fmt: skip

    seconds: dict[str, list[float]] = {}
    for _ in range(3):
        for boundary in [*arguments.boundaries, "input"]:
            tuner = FineTuner(store, boundary, **(options | {"head": "zeros"}))
            seconds.setdefault(boundary, []).append(epoch_seconds(tuner, store.X, store.y))
        for name, pixels in (("loop, pixels in memory", fast), ("loop, decoding", slow)):
            loop = Loop(start_tuner, None, len(paths), 1)
            began = time.monotonic()
            loop.epoch(pixels, codes)
            seconds.setdefault(name, []).append(time.monotonic() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print("\n| an epoch | seconds | loop, pixels in memory / this | loop, decoding / this |\n|---|---|---|---|")
    for name, value in medians.items():
        ratios = " | ".join(f"{medians[peer] / value:.2f}" for peer in ("loop, pixels in memory", "loop, decoding"))
        print(f"| {name} | {value:.2f} | {ratios} |")

    print("\n| held-out accuracy | score | behind the probe [95 %] | seconds from the images on |\n|---|---|---|---|")
    for boundary in [*arguments.boundaries, "input"]:
        result = finetune(store, boundary, holdout=HoldOut(0.2), progress=False, epochs=arguments.epochs, lr=LR)
        if boundary == arguments.boundaries[0]:
            print(f"| probe | {result.probe_score:.3f} {_bracket(result.probe_interval)} | | "
                  f"{extraction + result.probe_seconds:.0f} |")  # fmt: skip
        spent = result.seconds + (extraction if boundary != "input" else 0)
        print(f"| {boundary} | {result.score:.3f} {_bracket(result.interval)} | {result.difference:+.3f} "
              f"{_bracket(result.difference_interval)} | {spent:.0f} |")  # fmt: skip


def _bracket(interval: Any) -> str:
    return f"[{interval.low:.3f}, {interval.high:.3f}]"


if __name__ == "__main__":
    main()
