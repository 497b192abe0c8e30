"""The first batches and the length of a run in; how the network is best run out: its number type, eager or compiled.

A faster way is taken only where it is both faster here and close enough, on real images. What is computed to find out
is given back: the rows of the way that is chosen are the run's.
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
EXACT_TOLERANCE = 1e-4  # the same, float32 compiled against float32 eager
COMPILING_SECONDS = 20.0  # what compiling a network of usual size takes
_COMPILED_SPEEDUP = 1.3  # what is usual on a CPU
_MIN_SPEEDUP = 1.2  # less is within the noise of the clock
_WORTH_SECONDS = 2.0  # of a run: a shorter one is over before anything faster is ready
_SHORT_BATCHES = 16  # shorter runs try a number type only where the CPU says that it has it
_GLANCE_ROWS = 4  # enough to see that a number type is far off, or not made for this machine
_HOPELESS = 3.0  # times as slow as float32

_log = logging.getLogger("featx")

RowsOf = dict[str, torch.Tensor]  # {tap name: (b, ...) float32}, on the CPU
FirstBatches = Callable[[int], tuple[torch.Tensor, Sequence[int]]]


@dataclass(frozen=True)
class Choice:
    """How a network will run.

    error : the largest relative L2 distance of a row from float32, where a fast type was chosen
    batch_seconds : of a forward pass, measured
    rows : [rows of the first batch, and of the second if that was computed too] by this network
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
    """Try the ways to run a network on the first batches of a run.

    The number type is decided first, eager, then whether the network is compiled in that type. No way computes a batch
    twice: where a first pass also prepares kernels, or compiles, the pass that is timed is that over the second batch.

    Parameters
    ----------
    network : eager, in float32 or in the precision that was asked for
    batch : called with 0 or 1: (pixels (b, h, w, 3) uint8 on the device, slots that hold an image)
    n_batches : of the run: whether anything faster pays
    precision : "float32", "bfloat16", "float16", or "auto": bfloat16, on a GPU also float16, where every row of every
        tap is within `TOLERANCE` of float32, a pass is faster, and the run is with this trial in it
    engine : EAGER, COMPILED or "auto"
    on_phase : called with what is being done

    Raises
    ------
    BackboneError
        `engine` is COMPILED, and the network cannot be compiled here.
    """
    pixels, slots = batch(0)
    exact = best = _tried(network, batch, warming=pixels.is_cuda)
    error = None
    if precision == "auto" and n_batches * exact.seconds > _WORTH_SECONDS:
        for fast_type in ("bfloat16", "float16") if pixels.is_cuda else ("bfloat16",):
            on_phase(f"trying {fast_type}")
            if n_batches < _SHORT_BATCHES and not (pixels.is_cuda or _has_bfloat16()):
                continue
            fast = _fast(fast_type, exact, batch)
            if fast is None:
                continue
            found = _row_error(fast.rows[0], exact.rows[0], slots)
            pays = exact.seconds >= _MIN_SPEEDUP * fast.seconds
            if found <= TOLERANCE and pays and n_batches * fast.seconds <= (n_batches - 1) * exact.seconds:
                best, error = fast, found
                break
    saved = n_batches * best.seconds * (1 - 1 / _COMPILED_SPEEDUP)
    if engine == COMPILED or engine == "auto" and saved > COMPILING_SECONDS:
        on_phase("compiling")
        compiled = _compiled(best, batch, engine)
        if compiled is not None:
            found = _row_error(compiled.rows[0], exact.rows[0], slots)
            close = found <= (EXACT_TOLERANCE if compiled.network.precision == "float32" else TOLERANCE)
            if close and compiled.seconds <= best.seconds or engine == COMPILED and (close or best is exact):
                best, error = compiled, None if best is exact else found
            elif engine == COMPILED:
                best, error = _compiled(exact, batch, engine) or exact, None
    return Choice(best.network, None if error is None else round(error, 6), best.wall_seconds, best.rows)


@dataclass(frozen=True)
class _Tried:
    """A way to run the network, and what it did with the first batches.

    seconds : of the last pass; on a CPU those that the calling thread worked, which other work on the machine hardly
        changes: it has a share in every operation
    wall_seconds : the same by the clock
    """

    network: TappedNetwork
    rows: list[RowsOf]
    seconds: float
    wall_seconds: float


def _tried(network: TappedNetwork, batch: FirstBatches, *, warming: bool) -> _Tried:
    rows = []
    for number in (0, 1) if warming else (0,):
        pixels, _ = batch(number)
        found, seconds, wall_seconds = _timed(network, pixels)
        rows.append(found)
    return _Tried(network, rows, seconds, wall_seconds)


def _timed(network: TappedNetwork, pixels: torch.Tensor) -> tuple[RowsOf, float, float]:
    wall, clock = time.perf_counter, time.perf_counter if pixels.is_cuda else time.thread_time
    start, wall_start = clock(), wall()
    rows = {name: values.cpu() for name, values in network(pixels).items()}  # `cpu` waits for the device
    return rows, clock() - start, wall() - wall_start


def _fast(precision: str, exact: _Tried, batch: FirstBatches) -> _Tried | None:
    """The network in a fast type, unless a few rows show that this is far off, or slow here."""
    pixels, slots = batch(0)
    few = slots[:_GLANCE_ROWS]
    fast = exact.network.in_type(precision)
    try:
        for _ in range(2 if pixels.is_cuda else 1):  # the first pass prepares kernels
            glance, seconds, _ = _timed(fast, pixels[few])
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, BackboneError) as refusal:  # of a network that makes float32 tensors of its own
        _log.info("not in %s: %s", precision, refusal)
        return None
    if _row_error(glance, {name: rows[few] for name, rows in exact.rows[0].items()}, list(range(len(few)))) > TOLERANCE:
        return None
    if seconds * len(pixels) / len(few) > _HOPELESS * exact.seconds:
        return None
    return _tried(fast, batch, warming=pixels.is_cuda)


def _compiled(eager: _Tried, batch: FirstBatches, engine: str) -> _Tried | None:
    """The network compiled; None where it can't be, and need not be."""
    try:
        return _tried(eager.network.compiled(), batch, warming=True)
    except BackboneError as error:
        if engine == COMPILED:
            raise
        _log.info("running eager: %s", error)
        return None


def _has_bfloat16() -> bool:
    """Whether the CPU has instructions for products in bfloat16; False where torch can't tell."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(has for name, has in capabilities.items() if name.endswith("bf16"))


def _row_error(got: RowsOf, true: RowsOf, slots: Sequence[int]) -> float:
    """The largest relative L2 distance of a row in some slots, of all taps; infinite where a number is none."""
    largest = 0.0
    for name, values in true.items():
        norms = values[slots].flatten(1).norm(dim=1)  # (b,)
        distances = (got[name] - values)[slots].flatten(1).norm(dim=1)
        largest = max(largest, float((distances / norms.clamp_min(1e-30)).nan_to_num(nan=torch.inf).max()))
    return largest
