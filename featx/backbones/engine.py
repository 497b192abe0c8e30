"""Chooses how a network runs, its number type and eager or compiled, by trials on the first batches of a run.

A faster candidate is chosen only if it is faster on this machine and accurate enough on real images. Its rows of the
first batches are returned, so that the run need not compute them again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from featx.backbones.network import COMPILED, TappedNetwork
from featx.errors import BackboneError

TOLERANCE = 0.02  # relative L2 of a row, fast number types
EXACT_TOLERANCE = 1e-4  # the same, for compiled against eager float32
COMPILING_SECONDS = 20.0  # typical for compiling a network
_COMPILED_SPEEDUP = 1.3  # typical on a CPU
_MIN_SPEEDUP = 1.2  # less is within the noise of the clock
_WORTH_SECONDS = 2.0  # of a run: shorter ones end before a trial pays
_SHORT_BATCHES = 16  # shorter runs try a number type only if the CPU reports support for it
_GLANCE_ROWS = 4  # enough to see that a number type is inaccurate, or slow on this machine
_HOPELESS = 3.0  # times as slow as float32

_log = logging.getLogger("featx")

RowsOf = dict[str, torch.Tensor]  # {tap name: (b, ...) float32}, on the CPU
FirstBatches = Callable[[int], tuple[torch.Tensor, Sequence[int]]]


@dataclass(frozen=True)
class Choice:
    """How a network will run.

    Attributes
    ----------
    network : TappedNetwork
    error : float or None
        Largest relative L2 distance of a row from float32, if a fast type was chosen.
    batch_seconds : float
        Measured time of a forward pass.
    rows : list
        This network's rows of the first batch, and of the second if that was computed too.
    """

    network: TappedNetwork
    error: float | None
    batch_seconds: float
    rows: list[RowsOf]

    @property
    def precision(self) -> str:
        return self.network.precision

    @property
    def engine(self) -> str:
        return self.network.engine


def choose(
    network: TappedNetwork,
    batch: FirstBatches,
    n_batches: int,
    *,
    precision: str,
    engine: str,
    on_phase: Callable[[str], None] = lambda phase: None,
) -> Choice:
    """Choose how a network runs by trials on the first batches of a run.

    The number type is chosen first, with the eager network, then whether the network is compiled in that type. No
    candidate computes a batch twice: if a first pass also prepares kernels or compiles, the second batch is timed.

    Parameters
    ----------
    network : eager, in float32 or in the requested precision
    batch : called with 0 or 1: (pixels uint8 on the device, as the network takes them, slots that contain an image)
    n_batches : of the run
    precision : "float32", "bfloat16", "float16", or "auto": bfloat16, or on a GPU also float16, if every row of every
        tap is within `TOLERANCE` of float32, a pass is faster, and so is the run including the trial
    engine : EAGER, COMPILED or "auto"
    on_phase : called with the name of each step

    Raises
    ------
    BackboneError
        `engine` is COMPILED, and the network cannot be compiled on this machine.
    """
    pixels, slots = batch(0)
    n_views = _n_views(pixels)
    exact = best = _try(network, batch, warming=pixels.is_cuda)
    error = None
    if precision == "auto" and n_batches * exact.seconds > _WORTH_SECONDS:
        for fast_type in ("bfloat16", "float16") if pixels.is_cuda else ("bfloat16",):
            on_phase(f"trying {fast_type}")
            if n_batches < _SHORT_BATCHES and not (pixels.is_cuda or _has_bfloat16()):
                continue
            fast = _fast(fast_type, exact, batch)
            if fast is None:
                continue
            fast_error = _row_error(fast.rows[0], exact.rows[0], slots, n_views)
            pays = exact.seconds >= _MIN_SPEEDUP * fast.seconds
            if fast_error <= TOLERANCE and pays and n_batches * fast.seconds <= (n_batches - 1) * exact.seconds:
                best, error = fast, fast_error
                break
    saved = n_batches * best.seconds * (1 - 1 / _COMPILED_SPEEDUP)
    if engine == COMPILED or engine == "auto" and saved > COMPILING_SECONDS:
        on_phase("compiling")
        compiled = _compiled(best, batch, engine)
        if compiled is not None:
            compiled_error = _row_error(compiled.rows[0], exact.rows[0], slots, n_views)
            close = compiled_error <= (EXACT_TOLERANCE if compiled.network.precision == "float32" else TOLERANCE)
            if close and compiled.seconds <= best.seconds or engine == COMPILED and (close or best is exact):
                best, error = compiled, None if best is exact else compiled_error
            elif engine == COMPILED:
                best, error = _compiled(exact, batch, engine) or exact, None
    return Choice(best.network, None if error is None else round(error, 6), best.wall_seconds, best.rows)


@dataclass(frozen=True)
class _Candidate:
    """A candidate: a network and its results on the first batches.

    seconds : time of the last pass; on a CPU the CPU time of the calling thread, which has a share in every operation
        and hardly depends on other work on the machine
    wall_seconds : wall time of the last pass
    """

    network: TappedNetwork
    rows: list[RowsOf]
    seconds: float
    wall_seconds: float


def _try(network: TappedNetwork, batch: FirstBatches, *, warming: bool) -> _Candidate:
    rows = []
    for number in (0, 1) if warming else (0,):
        pixels, _ = batch(number)
        batch_rows, seconds, wall_seconds = _timed(network, pixels)
        rows.append(batch_rows)
    return _Candidate(network, rows, seconds, wall_seconds)


def _timed(network: TappedNetwork, pixels: torch.Tensor) -> tuple[RowsOf, float, float]:
    wall, clock = time.perf_counter, time.perf_counter if pixels.is_cuda else time.thread_time
    start, wall_start = clock(), wall()
    rows = {name: values.cpu() for name, values in network(pixels).items()}  # `cpu` waits for the device
    return rows, clock() - start, wall() - wall_start


def _fast(precision: str, exact: _Candidate, batch: FirstBatches) -> _Candidate | None:
    """The network in a fast type; None if a few rows show that it is inaccurate, or slow on this machine."""
    pixels, slots = batch(0)
    few = slots[:_GLANCE_ROWS]
    fast = exact.network.in_type(precision)
    try:
        for _ in range(2 if pixels.is_cuda else 1):  # the first pass prepares kernels
            glance, seconds, _ = _timed(fast, pixels[few])
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, BackboneError) as refusal:  # from a network that creates float32 tensors itself
        _log.info("not in %s: %s", precision, refusal)
        return None
    exact_rows = {name: rows[few] for name, rows in exact.rows[0].items()}
    if _row_error(glance, exact_rows, list(range(len(few))), _n_views(pixels)) > TOLERANCE:
        return None
    if seconds * len(pixels) / len(few) > _HOPELESS * exact.seconds:
        return None
    return _try(fast, batch, warming=pixels.is_cuda)


def _compiled(eager: _Candidate, batch: FirstBatches, engine: str) -> _Candidate | None:
    """The compiled network; None if it cannot be compiled and `engine` does not require it."""
    try:
        return _try(eager.network.compiled(), batch, warming=True)
    except BackboneError as error:
        if engine == COMPILED:
            raise
        _log.info("running eager: %s", error)
        return None


def _has_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16 products; False if torch does not know."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(has for name, has in capabilities.items() if name.endswith("bf16"))


def _n_views(pixels: torch.Tensor) -> int:
    return pixels.shape[1] if pixels.ndim == 5 else 1


def _row_error(got: RowsOf, true: RowsOf, slots: Sequence[int], n_views: int = 1) -> float:
    """max over taps, slots and views of |got - true| / |true|, the relative L2 distance; infinite if that is NaN."""
    largest = 0.0
    for name, values in true.items():
        n_rows = len(slots) * n_views
        norms = values[slots].reshape(n_rows, -1).norm(dim=1)
        distances = (got[name] - values)[slots].reshape(n_rows, -1).norm(dim=1)
        largest = max(largest, float((distances / norms.clamp_min(1e-30)).nan_to_num(nan=torch.inf).max()))
    return largest
