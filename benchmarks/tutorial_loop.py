"""How much faster than the loop every tutorial shows? DataLoader + torchvision transforms + eager float32 + np.save.

    python benchmarks/tutorial_loop.py --images DIR [--images-at-most N] [--repeats R]

DIR is a folder of class folders. The loop runs with each of 0, 1 and 2 worker processes, and its best counts. Both
sides run the same network (bundled:efficientnet_lite0, penultimate layer, 224 px), and their features are compared.
Prints a table and writes benchmarks/results/tutorial_loop.jsonl.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
from torchvision import transforms
from torchvision.datasets import ImageFolder

import featx
from featx.backbones import Backbone

BACKBONE = "bundled:efficientnet_lite0"


def tutorial_loop(folder: Path, network: torch.nn.Module, workers: int, output: Path) -> np.ndarray:
    transform = transforms.Compose(
        [
            transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.5,) * 3),
        ]
    )
    loader = torch.utils.data.DataLoader(ImageFolder(str(folder), transform), batch_size=32, num_workers=workers)
    rows = []
    with torch.no_grad():
        for pixels, _ in loader:
            rows.append(network(pixels).numpy())
    features = np.concatenate(rows)
    np.save(output, features)
    return features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--images-at-most", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    network = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    network.load_state_dict({k: v for k, v in Backbone(BACKBONE).module.state_dict().items() if "classifier" not in k})
    network.eval()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "images")
        files = sorted(path for path in options.images.rglob("*") if path.is_file())
        chosen = files[:: max(1, len(files) // options.images_at_most)][: options.images_at_most]
        for path in chosen:
            link = folder / path.relative_to(options.images)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.absolute())
        seconds: dict[str, list[float]] = {}
        for repeat in range(options.repeats):
            for workers in (0, 1, 2):
                start = time.perf_counter()
                theirs = tutorial_loop(folder, network, workers, Path(scratch, "loop.npy"))
                seconds.setdefault(f"tutorial loop, {workers} workers", []).append(time.perf_counter() - start)
            for precision in ("float32", "auto"):
                start = time.perf_counter()
                store = featx.extract(
                    folder, Path(scratch, f"{precision}{repeat}.h5"), BACKBONE, precision=precision, progress=False
                )
                seconds.setdefault(f"featx, {precision}", []).append(time.perf_counter() - start)
                ours = store["penultimate"]
                error = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
                assert error.max() < (1e-4 if store.recipe.precision == "float32" else 2e-2), error.max()
    n = len(chosen)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    best = min(value for name, value in medians.items() if name.startswith("tutorial"))
    results = Path(__file__).parent / "results" / "tutorial_loop.jsonl"
    results.parent.mkdir(exist_ok=True)
    print(
        f"{n:,} images, median of {options.repeats}, {platform.processor() or platform.machine()}, {torch.__version__}"
    )
    with results.open("a") as file:
        for name, value in medians.items():
            print(f"{name:28} {value:7.1f} s {n / value:7.1f} images/s {best / value:6.2f} x the loop at its best")
            file.write(json.dumps({"case": name, "images": n, "seconds": seconds[name], "median": value}) + "\n")


if __name__ == "__main__":
    main()
