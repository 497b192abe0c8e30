"""Images and a recipe in, blocks of rows out: the only loop of the left side, for extracting and for predicting.

`plan` makes a recipe from what a user asked for; `stream` follows one.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from featx.backbones import (
    Backbone,
    Preprocessing,
    Tap,
    TappedNetwork,
    decide_precision,
    recall,
    resolve_taps,
)
from featx.errors import FeatxError, ImageError
from featx.images import DECODER, batches
from featx.store import Recipe

_BATCH_SIZE = {"cpu": 32, "cuda": 256}
ENGINE = "eager, batch norms folded"
_PROBE_BATCHES = 16  # shorter runs don't earn back the trial of a faster number type
_NUMBER_TYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Block:
    """What became of some consecutive images.

    start, stop : their positions
    indices : (m,) increasing positions of those that have rows
    rows : {layer: (m, ...) float32}
    digests : {position: content digest} of the same
    failures : {position: ImageError} of the others
    """

    start: int
    stop: int
    indices: np.ndarray
    rows: dict[str, np.ndarray]
    digests: dict[int, bytes]
    failures: dict[int, ImageError]


def plan(
    images: Sequence[Any],
    *,
    backbone: str | nn.Module | Backbone,
    weights: str | os.PathLike | None = "DEFAULT",
    layers: str | Sequence[str] = "penultimate",
    pool: str = "avg",
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | str = "auto",
    dtype: str = "float32",
    origin: Path | None = None,
) -> Recipe:
    """Decide everything that will determine the numbers.

    Parameters
    ----------
    images : n paths, uint8 arrays or PIL images
        The run's; precision "auto" looks at the first batch, if there are enough to earn the trial back.

    backbone, weights, layers, pool, device, precision, batch_size, dtype
        As `featx.extract` has them.
    origin : path, optional
        The folder that ids are relative to; only recorded.

    Returns
    -------
    Recipe

    Raises
    ------
    FeatxError
        A choice is not one of those there are; the leaf says which.
    """
    _one_of("precision", precision, ("auto", *_NUMBER_TYPES))
    _one_of("dtype", dtype, ("float32", "float16"))
    place = _device(device)
    if batch_size == "auto":
        batch_size = _BATCH_SIZE[place.type]
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise FeatxError(f"batch_size is 'auto' or a whole number of images, 1 or more; got {batch_size!r}")
    if not isinstance(backbone, Backbone):
        backbone = Backbone(backbone, weights)
    taps, aliases = resolve_taps(backbone, layers, pool)
    libraries = ["featx", "torch", "torchvision", "pillow", "numpy"]
    if backbone.name.startswith(("timm:", "bundled:efficientnet")):
        libraries.append("timm")
    error = None
    if precision == "auto":
        precision = "float32"
        if len(images) >= _PROBE_BATCHES * batch_size:
            sample = _sample(images, backbone.preprocessing, batch_size)
            if len(sample):
                pixels = backbone.preprocessing.normalise(torch.from_numpy(sample).to(place))
                precision, error = decide_precision(backbone, taps, place, pixels)
    recall(backbone.name, backbone.weights, backbone.weights_sha256, backbone.preprocessing, backbone)
    return Recipe(
        backbone=backbone.name,
        weights=backbone.weights,
        weights_sha256=backbone.weights_sha256,
        preprocessing=backbone.preprocessing.to_dict(),
        decoder=DECODER,
        taps={
            tap.name: {"node": tap.node, "pool": tap.pool, "layout": tap.layout, "shape": list(tap.shape)}
            for tap in taps
        },
        aliases=aliases,
        engine=ENGINE,
        precision=precision,
        precision_error=error,
        batch_size=int(batch_size),
        dtype=dtype,
        device=place.type,
        threads=torch.get_num_threads(),
        versions={name: version(name) for name in libraries},
        origin=None if origin is None else str(origin.absolute()),
    )


def stream(
    images: Sequence[Any],
    recipe: Recipe,
    *,
    device: str = "auto",
    workers: int | str = "auto",
    todo: np.ndarray | None = None,
) -> Iterator[Block]:
    """Run images through a recipe, in order.

    Parameters
    ----------
    images : n paths, uint8 arrays or PIL images
    recipe : Recipe
        Its layers are computed, and nothing deeper.
    device : "auto", "cpu" or "cuda"
    workers : threads that decode, or "auto": one a core
    todo : (n,) bool, optional
        For a run that is kept: batches without an image to do are passed over, and every batch has the recipe's size,
        so that rows do not depend on how many images there are or what was done before.

    Yields
    ------
    Block
        Together they cover every image (every batch to do) once, with rows or with a failure.

    Raises
    ------
    BackboneError
        The recorded network cannot be had again.
    """
    if workers == "auto":
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not isinstance(workers, int) or workers < 1:
        raise FeatxError(f"workers is 'auto' or a whole number of threads, 1 or more; got {workers!r}")
    place = _device(device)
    preprocessing = Preprocessing.from_dict(recipe.preprocessing)
    network = _network(recipe.to_json(), place.type)
    # fewer images than a batch are not padded: predicting one image costs one image
    rows = recipe.batch_size if todo is not None else min(recipe.batch_size, len(images))
    starts = [start for start in range(0, len(images), rows) if todo is None or todo[start : start + rows].any()]
    for batch in batches(images, preprocessing, preprocessing.size, rows, workers, starts):
        slots = np.array(sorted(batch.digests), dtype=np.int64)
        found: dict[str, np.ndarray] = {}
        if len(slots):
            pixels = preprocessing.normalise(torch.from_numpy(batch.pixels).to(place))
            found = {name: values.cpu().numpy()[slots] for name, values in network(pixels).items()}
        yield Block(
            start=batch.start,
            stop=min(batch.start + rows, len(images)),
            indices=batch.start + slots,
            rows=found,
            digests={batch.start + slot: digest for slot, digest in batch.digests.items()},
            failures={batch.start + slot: error for slot, error in sorted(batch.failures.items())},
        )


@lru_cache(maxsize=2)
def _network(recipe_json: str, device: str) -> TappedNetwork:
    """Built once for the calls that follow each other in a session of predictions."""
    recipe = Recipe.from_json(recipe_json)
    preprocessing = Preprocessing.from_dict(recipe.preprocessing)
    backbone = recall(recipe.backbone, recipe.weights, recipe.weights_sha256, preprocessing)
    taps = [Tap(tap["node"], tap["pool"], tap["layout"], tuple(tap["shape"])) for tap in recipe.taps.values()]
    return TappedNetwork(backbone, taps, torch.device(device), recipe.precision)


def _device(name: str) -> torch.device:
    _one_of("device", name, ("auto", "cpu", "cuda"))
    if name == "cuda" and not torch.cuda.is_available():
        raise FeatxError("device 'cuda' needs a GPU that torch can see; there is none. Use 'auto' or 'cpu'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _sample(images: Sequence[Any], preprocessing: Preprocessing, batch_size: int) -> np.ndarray:
    """The pixels of the first readable images, at most a batch of them: (b, h, w, 3)."""
    chosen = images[: 2 * batch_size]
    found = batches(chosen, preprocessing, preprocessing.size, batch_size, 1)
    pixels = [batch.pixels[sorted(batch.digests)] for batch in itertools.islice(found, 2)]
    return np.concatenate(pixels)[:batch_size]


def _one_of(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise FeatxError(f"{name} is one of {', '.join(choices)}; got {value!r}")
