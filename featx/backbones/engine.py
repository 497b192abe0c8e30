"""A first batch and the length of the run in; how the network is best run out: its number type, eager or compiled.

A faster way is taken only where it is both faster here and close enough, on real images.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from featx.backbones.network import COMPILED, EAGER, TappedNetwork
from featx.errors import BackboneError

TOLERANCE = 0.02  # relative L2 of a row, fast number types
EXACT_TOLERANCE = 1e-4  # the same, float32 compiled against float32 eager
COMPILING_SECONDS = 20.0  # what compiling a network of usual size takes
_COMPILED_SPEEDUP = 1.3  # what is usual on a CPU
_MIN_SPEEDUP = 1.2  # less is within the noise of the clock
_GLANCE_ROWS = 8  # enough to see that a number type is far off, or not made for this machine
_HOPELESS = 3.0  # times as slow as float32

_log = logging.getLogger("featx")


@dataclass(frozen=True)
class Choice:
    """How a network will run.

    error : the largest relative L2 distance of a row from float32, where a fast type was chosen
    batch_seconds : of a forward pass, measured
    """

    network: TappedNetwork
    error: float | None
    batch_seconds: float

    @property
    def precision(self) -> str:
        return self.network.precision

    @property
    def engine(self) -> str:
        return self.network.engine


def choose(
    build: Callable[[str, str], TappedNetwork],
    pixels: torch.Tensor,
    n_rows: int,
    n_batches: int,
    *,
    precision: str,
    engine: str,
) -> Choice:
    """Try the ways to run a network on a batch.

    Parameters
    ----------
    build : (precision, engine) -> TappedNetwork
    pixels : (b, h, w, 3) uint8 on the device, a whole batch
    n_rows : how many of them are images; the others are padding
    n_batches : of the run: whether compiling pays
    precision : "float32", "bfloat16", "float16", or "auto": bfloat16, on a GPU also float16, where every row of every
        tap is within `TOLERANCE` of float32 and a pass is faster
    engine : EAGER, COMPILED or "auto"

    Raises
    ------
    BackboneError
        `engine` is COMPILED, and the network cannot be compiled here.
    """
    plain = build("float32" if precision == "auto" else precision, EAGER)
    rows, seconds = _timed(plain, pixels, n_rows)

    def pays(batch_seconds: float) -> bool:
        saved = n_batches * batch_seconds * (1 - 1 / _COMPILED_SPEEDUP)
        return engine == COMPILED or engine == "auto" and saved > COMPILING_SECONDS

    if precision == "auto":
        for fast_type in ("bfloat16", "float16") if pixels.is_cuda else ("bfloat16",):
            fast = build(fast_type, EAGER)
            few, few_pixels = min(n_rows, _GLANCE_ROWS), pixels[:_GLANCE_ROWS]
            try:
                glance, glance_seconds = _timed(fast, few_pixels, few)
            except RuntimeError as refusal:  # of a network that makes float32 tensors of its own
                _log.info("not in %s: %s", fast_type, refusal)
                continue
            if _row_error(glance, {name: values[:few] for name, values in rows.items()}) > TOLERANCE:
                continue
            expected_seconds = glance_seconds * len(pixels) / len(few_pixels)
            if expected_seconds > _HOPELESS * seconds:
                continue
            fast, (fast_rows, fast_seconds) = _compiled_or(build, fast, pixels, n_rows, engine, pays(expected_seconds))
            error = _row_error(fast_rows, rows)
            needed = _MIN_SPEEDUP * (_COMPILED_SPEEDUP if fast.engine == COMPILED else 1)
            if error <= TOLERANCE and seconds >= needed * fast_seconds:
                return Choice(fast, round(error, 6), fast_seconds)
    if not pays(seconds):
        return Choice(plain, None, seconds)
    found, (found_rows, found_seconds) = _compiled_or(build, plain, pixels, n_rows, engine, True)
    tolerance = EXACT_TOLERANCE if plain.precision == "float32" else TOLERANCE
    if engine != COMPILED and (_row_error(found_rows, rows) > tolerance or found_seconds > seconds):
        return Choice(plain, None, seconds)
    return Choice(found, None, found_seconds)


def _compiled_or(
    build: Callable[[str, str], TappedNetwork],
    plain: TappedNetwork,
    pixels: torch.Tensor,
    n_rows: int,
    engine: str,
    compiling: bool,
) -> tuple[TappedNetwork, tuple[dict[str, torch.Tensor], float]]:
    """The network compiled, if that was wanted and works, and its rows and seconds."""
    if compiling:
        try:
            network = build(plain.precision, COMPILED)
            return network, _timed(network, pixels, n_rows)
        except BackboneError as error:
            if engine == COMPILED:
                raise
            _log.info("running eager: %s", error)
    return plain, _timed(plain, pixels, n_rows)


def _timed(network: TappedNetwork, pixels: torch.Tensor, n_rows: int) -> tuple[dict[str, torch.Tensor], float]:
    _rows(network, pixels, n_rows)  # the first pass also prepares kernels and memory
    start = time.perf_counter()
    rows = _rows(network, pixels, n_rows)
    return rows, time.perf_counter() - start


def _rows(network: TappedNetwork, pixels: torch.Tensor, n_rows: int) -> dict[str, torch.Tensor]:
    return {name: values[:n_rows].cpu() for name, values in network(pixels).items()}  # `cpu` waits for the device


def _row_error(got: dict[str, torch.Tensor], true: dict[str, torch.Tensor]) -> float:
    """The largest relative L2 distance of a row, of all taps; infinite where a number is none."""
    largest = 0.0
    for name, values in true.items():
        distance = (got[name] - values).flatten(1).norm(dim=1)  # (b,)
        norm = values.flatten(1).norm(dim=1)
        largest = max(largest, float((distance / norm.clamp_min(1e-30)).nan_to_num(nan=torch.inf).max()))
    return largest
