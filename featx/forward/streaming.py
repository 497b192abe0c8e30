"""The forward pass, for extracting and for predicting: `resolve_recipe` makes a recipe of the user's choices, and
`stream` runs images through it, in batches.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from featx.backbones import (
    COMPILED,
    EAGER,
    Backbone,
    Preprocessing,
    Tap,
    TappedNetwork,
    expand_views,
    resolve_taps,
    trace_of,
)
from featx.errors import FeatxError, Parameter, RecipeError
from featx.forward.cache import network_of
from featx.forward.passes import Block, Passes, Rows, block_of, pinned
from featx.forward.trial import TRIAL_BATCHES, Trial, try_out
from featx.images import DECODER, Batch, batches
from featx.recipe import with_views
from featx.solvers import threads_for
from featx.store import Recipe

_BATCH_SIZE = {"cpu": 32, "cuda": 256}
_PASS_PIXELS = 2**24  # of images that are predicted: 334 of 224 x 224
_MOST_BATCH_BYTES = 2**28  # of the rows of a batch
_PROBE_BATCHES = 16  # in shorter runs compiling takes longer than it saves
# For so few images one thread is enough: on a free machine two threads save 70 ms on 8 images, and beside other work,
# where each convolution waits for cores, one thread is 5 to 10 times as fast (EfficientNet-Lite0).
_FEW = 8
_NUMBER_TYPES = ("float32", "bfloat16", "float16")
_ENGINES = {"eager": EAGER, "compiled": COMPILED}


def resolve_recipe(
    images: Sequence[Any],
    *,
    backbone: str | nn.Module | Backbone,
    weights: str | os.PathLike | None = "DEFAULT",
    layers: str | Sequence[str] = "penultimate",
    pool: str = "avg",
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    batch_size: int | str = "auto",
    dtype: str = "float32",
    views: Sequence[str] | None = None,
    origin: Path | str | None = None,
    workers: int | str = "auto",
    on_phase: Callable[[str], None] = lambda phase: None,
    on_trial: Callable[[Trial], None] | None = lambda trial: None,
) -> Recipe:
    """Decide everything that will determine the numbers.

    Parameters
    ----------
    images : n paths, uint8 arrays or PIL images
        Images of the run. The first batch decides precision and engine "auto", if the run is long enough for that.
    backbone, weights, layers, pool, device, precision, engine, batch_size, dtype, views
        As in `featx.extract`.
    origin : path or URL, optional
        The folder or archive that ids are relative to; only recorded.
    workers : int or "auto"
        Threads that decode the first batch.
    on_phase : callable
        Called with a few words at each new step.
    on_trial : callable, or None
        Called with the rows that were computed to decide, if any; they are rows of the run. With None nothing is
        computed: precision and engine stay "auto" where the first batch would decide, and the batch size on a GPU is
        the largest one, whether it fits or not.

    Returns
    -------
    Recipe

    Raises
    ------
    FeatxError
        A choice does not exist.
    """
    place = check_choices(device=device, precision=precision, engine=engine, batch_size=batch_size, dtype=dtype)
    backbone = as_backbone(backbone, weights)
    with threads_for(0):  # small work: beside other processes several threads would wait for each other
        trace = trace_of(backbone)
        taps, aliases = resolve_taps(backbone, layers, pool, trace)
    views = expand_views(views)
    _refuse_equal_crops(backbone, views)
    if batch_size == "auto":
        n_views = 1 if views is None else len(views)
        batch_size = _batch_size(backbone, taps, place, n_views, measures=on_trial is not None)
    libraries = ["featx", "torch", "torchvision", "pillow", "numpy"]
    if backbone.name.startswith(("timm:", "bundled:efficientnet")):
        libraries.append("timm")
    recipe = Recipe(
        backbone=backbone.name,
        weights=backbone.weights,
        weights_sha256=backbone.weights_sha256,
        preprocessing=backbone.preprocessing.to_dict(),
        decoder=DECODER,
        taps=with_views({tap.name: tap.to_dict() for tap in taps}, views),
        aliases=aliases,
        engine=_ENGINES.get(engine, EAGER),
        precision="float32" if precision == "auto" else precision,
        precision_error=None,
        batch_size=int(batch_size),
        dtype=dtype,
        device=place.type,
        threads=torch.get_num_threads(),
        versions={name: version(name) for name in libraries},
        origin=str(origin.absolute()) if isinstance(origin, Path) else origin,
        weights_file_sha256=backbone.weights_file_sha256,
        views=views,
    )
    recipe.check()
    n_batches = -(-len(images) // recipe.batch_size)
    if n_batches < (TRIAL_BATCHES if precision == "auto" else _PROBE_BATCHES) or "auto" not in (precision, engine):
        return recipe
    if on_trial is None:
        return replace(recipe, precision=precision, engine=_ENGINES.get(engine, engine))
    on_phase(f"computing the first batch in {recipe.precision}")
    with threads_for(0):
        network = TappedNetwork(backbone, taps, place, recipe.precision, trace=trace)
    recipe, trial = try_out(
        images,
        recipe,
        network,
        backbone,
        precision=precision,
        engine=_ENGINES.get(engine, engine),
        workers=decoders(workers),
        on_phase=on_phase,
    )
    if trial is not None:
        on_trial(trial)
    return recipe


def as_backbone(backbone: str | nn.Module | Backbone, weights: str | os.PathLike | None) -> Backbone:
    return backbone if isinstance(backbone, Backbone) else Backbone(backbone, weights)


def check_choices(*, device: str, precision: str, engine: str, batch_size: int | str, dtype: str) -> torch.device:
    """The device; raises FeatxError if a choice does not exist."""
    _one_of("precision", precision, ("auto", *_NUMBER_TYPES))
    _one_of("engine", engine, ("auto", *_ENGINES))
    _one_of("dtype", dtype, ("float32", "float16"))
    if batch_size != "auto" and (not isinstance(batch_size, int | np.integer) or batch_size < 1):
        raise FeatxError(
            Parameter("batch_size"), f" is 'auto' or a whole number of images, 1 or more; got {batch_size!r}"
        )
    return device_of(device)


def _refuse_equal_crops(backbone: Backbone, views: Sequence[str] | None) -> None:
    preprocessing = backbone.preprocessing
    if preprocessing.resize == preprocessing.crop and {*(views or ())} - {"center", "flip"}:
        raise FeatxError(
            Parameter("views"),
            f" are center and flip for {backbone.name}: it resizes pictures to {preprocessing.crop[0]} x "
            f"{preprocessing.crop[1]} pixels, so all crops are equal",
        )


def _batch_size(backbone: Backbone, taps: Sequence[Tap], place: torch.device, n_views: int, measures: bool) -> int:
    """Images per forward pass, a power of two: limited by the device's memory and by the bytes of a batch."""
    row_bytes = 4 * n_views * sum(math.prod(tap.shape) for tap in taps)
    most = max(1, min(_BATCH_SIZE[place.type], _MOST_BATCH_BYTES // row_bytes))
    if n_views > 1:  # the pixels of all views are there at once
        most = max(1, min(most, _MOST_BATCH_BYTES // (3 * n_views * math.prod(backbone.preprocessing.size))))
    if place.type == "cuda" and measures:
        most = max(1, min(most, _fitting(backbone, taps, place)))
    return 2 ** (most.bit_length() - 1)


def _fitting(backbone: Backbone, taps: Sequence[Tap], place: torch.device, trial_rows: int = 8) -> int:
    """Images per pass that fit a GPU's free memory, estimated from a pass of a few in float32."""
    network = TappedNetwork(backbone, taps, place, "float32")
    before = torch.cuda.memory_allocated(place)
    while True:
        torch.cuda.reset_peak_memory_stats(place)
        try:
            network(torch.zeros(trial_rows, *backbone.preprocessing.size, 3, dtype=torch.uint8))
            break
        except torch.OutOfMemoryError:
            if trial_rows == 1:  # the run will say so
                return 1
            trial_rows //= 2
            torch.cuda.empty_cache()
    taken = (torch.cuda.max_memory_allocated(place) - before) / trial_rows
    torch.cuda.empty_cache()
    return int(0.7 * torch.cuda.mem_get_info(place)[0] / max(taken, 1))


def stream(
    images: Sequence[Any],
    recipe: Recipe,
    backbone: Backbone | None = None,
    *,
    device: str = "auto",
    workers: int | str = "auto",
    todo: np.ndarray | None = None,
    computed: Iterable[Block] = (),
) -> Generator[Block, None, None]:
    """Run images through a recipe, in order.

    Parameters
    ----------
    images : n paths, uint8 arrays or PIL images
    recipe : Recipe
        Its layers are computed, and nothing deeper.
    backbone : Backbone, optional
        The recipe's, where it is at hand; see `cache.network_of`.
    device : "auto", "cpu" or "cuda"
    workers : threads that decode, or "auto": one per core
        On a CPU they take turns with the forward pass.
    todo : (n,) bool, optional
        For a run whose rows are kept: batches without an image to do are skipped, and every batch has the recipe's
        size, so that rows do not depend on the number of images or on what was done before.
    computed : blocks of this recipe that have been computed already, of a run whose rows are kept

    Yields
    ------
    Block
        Together they cover every image (of the batches to do) once, with a row or a failure.

    Raises
    ------
    BackboneError
        The recorded network is not available.
    """
    workers = decoders(workers)
    place = device_of(device)
    recipe.check()
    if recipe.decoder != DECODER:
        raise RecipeError(
            f"the recipe's images were decoded with {recipe.decoder!r}; this featx decodes with {DECODER!r}"
        )
    prepare, size = Preprocessing.from_dict(recipe.preprocessing).for_views(recipe.views)
    # images that are predicted are not padded to a batch, and no network is compiled for them
    rows = recipe.batch_size
    if todo is None:
        rows = min(rows, len(images), max(1, _PASS_PIXELS // math.prod(size)))
    if todo is not None:
        todo = todo.copy()
        for block in computed:
            todo[block.start : block.stop] = False
            yield block
    network = network_of(recipe if todo is not None else replace(recipe, engine=EAGER), place, backbone)
    starts = [start for start in range(0, len(images), rows) if todo is None or todo[start : start + rows].any()]
    on_gpu = place.type == "cuda"
    decoded = batches(
        images,
        prepare,
        size,
        rows,
        workers,
        starts,
        taking_turns=not on_gpu,
        statistics=todo is not None,
        **({"allocate": pinned} if on_gpu else {}),
    )
    passes = Passes(network, rows, on_gpu, few=todo is None and len(images) <= _FEW and not on_gpu)
    in_flight: deque[tuple[Batch, Rows]] = deque()
    with contextlib.closing(decoded):  # ends the decoding threads, whatever happens
        for batch in decoded:  # a GPU computes one batch while the rows of the previous one are copied back
            in_flight.append((batch, passes.start(batch)))
            if len(in_flight) > on_gpu:
                yield block_of(*in_flight.popleft(), len(images))
    while in_flight:
        yield block_of(*in_flight.popleft(), len(images))


def decoders(workers: int | str) -> int:
    """Number of threads that decode; "auto" is one per core."""
    if workers == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not isinstance(workers, int) or workers < 1:
        raise FeatxError(f"workers is 'auto' or a whole number of threads, 1 or more; got {workers!r}")
    return workers


def measure(
    images: Sequence[Any],
    recipe: Recipe,
    backbone: Backbone | None = None,
    *,
    device: str = "auto",
    workers: int | str = "auto",
    repeats: int = 1,
) -> float:
    """Seconds per image on this machine: one batch is computed and timed, after one that warms up.

    repeats : times that the batch is computed. With several the fastest counts, by the clock or, on a CPU, by the CPU
        seconds of all threads if these are fewer: other work on the machine delays the clock alone

    Raises
    ------
    BackboneError
        The recorded network is not available.
    """
    first = images[: recipe.batch_size]
    on_cpu = device_of(device).type == "cpu"
    clocks = [time.perf_counter, time.process_time] if repeats > 1 and on_cpu else [time.perf_counter]
    seconds = []
    for _ in range(1 + repeats):
        starts = [clock() for clock in clocks]
        for _ in stream(first, recipe, backbone, device=device, workers=workers, todo=np.ones(len(first), bool)):
            pass
        seconds.append(min(clock() - start for clock, start in zip(clocks, starts, strict=True)))
    return min(seconds[1:]) / len(first)


def device_of(name: str) -> torch.device:
    """The device of "auto", "cpu" or "cuda"; raises FeatxError if there is none."""
    _one_of("device", name, ("auto", "cpu", "cuda"))
    if name == "cuda" and not torch.cuda.is_available():
        raise FeatxError("device 'cuda' needs a GPU that torch can use, and there is none; use 'auto' or 'cpu'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _one_of(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise FeatxError(f"{name} is one of {', '.join(choices)}; got {value!r}")
