"""`python make_version1.py` made `data/version1.h5`, the store of version 1 that every later featx must open.

The file is never made anew: `test_version1.py` knows its digest, and that this writes the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from featx.errors import ImageError
from featx.store import Recipe, StoreWriter

FILE = Path(__file__).with_name("data") / "version1.h5"
N = 70  # images, one of them a failure: a block of 64 rows and one of 5
FAILED = 33

RECIPE = Recipe(
    backbone="torchvision:resnet18",
    weights="IMAGENET1K_V1",
    weights_sha256="5c106cde" * 8,
    preprocessing={"resize": 256, "crop": [224, 224], "interpolation": "bilinear", "mean": [0.485, 0.456, 0.406]},
    decoder="pillow:exif,rgb",
    taps={
        "layer3.1:none": {"node": "layer3.1", "pool": "none", "layout": "bchw", "shape": [2, 3, 1]},
        "flatten/größe:avg": {"node": "flatten/größe", "pool": "avg", "layout": "bd", "shape": [5]},
    },
    aliases={"penultimate": "flatten/größe:avg"},
    engine="eager",
    precision="bfloat16",
    precision_error=0.0078125,
    batch_size=32,
    dtype="float32",
    device="cpu",
    threads=2,
    versions={"featx": "0.3.0", "torch": "2.11.0"},
    origin="photos",
)
IDS = [f"{('ant', 'bee', 'žába')[i % 3]}/{i}.png" for i in range(N)]
LABELS = np.array([name.split("/")[0] for name in IDS])
COLUMNS = {"site": np.array([f"s{i % 4}" for i in range(N)]), "a/b": np.array(["", "ü"] * (N // 2))}


def rows(images: np.ndarray) -> dict[str, np.ndarray]:
    """Whole numbers and quarters of them, exact in every type; one NaN and one infinity."""
    maps = (images[:, None, None, None] * 8 + np.arange(6).reshape(2, 3, 1)).astype(np.float32)
    vectors = (images[:, None] - np.arange(5) / 4).astype(np.float32)
    maps[images == 64, 1, 2, 0] = np.nan
    vectors[images == 7, 4] = -np.inf
    return {"layer3.1:none": maps, "flatten/größe:avg": vectors}


def digests(images: np.ndarray) -> np.ndarray:
    """Images 10 and 11 have the same content."""
    content = np.where(images == 11, 10, images)
    return (content[:, None] * 3 + np.arange(16)).astype(np.uint8)


def write(path: Path) -> None:
    good = np.delete(np.arange(N), FAILED)
    with StoreWriter(path, RECIPE, IDS, LABELS, COLUMNS) as writer:
        writer.fail({FAILED: ImageError("damaged", "the picture's end is missing")})
        for part in (good[:20], good[20:]):
            writer.write(part, rows(part), digests(part))
        writer.finish()


if __name__ == "__main__":
    write(FILE)
