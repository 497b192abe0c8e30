"""Photos for audits: smooth random pictures in files that differ as a test says, and their store."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from runs import extract

import featx

MAKE, MODEL, DATE = 0x010F, 0x0110, 0x0132  # EXIF tags


def scene(seed: int, side: int = 64) -> Image.Image:
    """A smooth random picture."""
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (7, 7, 3), np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC)


def exif(camera: str = "", date: str = "") -> Image.Exif:
    tags = Image.Exif()
    for tag, text in ((MODEL, camera), (DATE, date)):
        if text:
            tags[tag] = text
    return tags


def photo_store(
    root: Path,
    labels: Sequence[str] | None = None,
    n: int = 60,
    save: Callable[[int], Mapping[str, Any]] = lambda i: {},
    columns: Mapping[str, Sequence[str]] | None = None,
    picture: Callable[[int], Image.Image] = lambda i: scene(i, 48),
    name: str = "photos.h5",
) -> featx.FeatureStore:
    """n pictures in files "images/000.jpg" ..., listed in a manifest, and their pixels as features.

    save : options of saving picture i; "suffix" is its file's, ".jpg" by default
    """
    columns = ({} if labels is None else {"label": labels}) | dict(columns or {})
    (root / "images").mkdir(parents=True)
    with (root / "m.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", *columns])
        for i in range(n):
            options = dict(save(i))
            path = f"images/{i:03}{options.pop('suffix', '.jpg')}"
            picture(i).save(root / path, **options)
            writer.writerow([path, *(values[i] for values in columns.values())])
    return extract(root / "m.csv", root / name)
