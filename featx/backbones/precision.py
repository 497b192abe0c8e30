"""A first batch in, the number type of the run out: the fast one where it is both faster here and close enough."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from featx.backbones.backbone import Backbone
from featx.backbones.taps import Tap, TappedNetwork

FAST = "bfloat16"
TOLERANCE = 0.02  # relative L2 of a row
_MIN_SPEEDUP = 1.2  # less is within the noise of the clock


def decide_precision(
    backbone: Backbone, taps: Sequence[Tap], device: torch.device, pixels: torch.Tensor
) -> tuple[str, float | None]:
    """Run a batch in float32 and in bfloat16.

    Parameters
    ----------
    pixels : (b, 3, h, w) float32, normalised; rows of real images

    Returns
    -------
    precision : "bfloat16" if every row of every tap is within `TOLERANCE` and the forward pass is faster
    error : the largest relative L2 distance of a row, where bfloat16 was chosen
    """
    networks = [TappedNetwork(backbone, taps, device, precision) for precision in ("float32", FAST)]
    (exact, _), (fast, _) = (_timed(network, pixels, device) for network in networks)
    error = max(_row_error(fast[name], exact[name]) for name in exact)
    if error > TOLERANCE:
        return "float32", None
    # the first runs also prepared kernels and memory: only now does the clock count
    (_, exact_seconds), (_, fast_seconds) = (_timed(network, pixels, device) for network in networks)
    if exact_seconds < _MIN_SPEEDUP * fast_seconds:
        return "float32", None
    return FAST, round(error, 6)


def _timed(network: TappedNetwork, pixels: torch.Tensor, device: torch.device) -> tuple[dict[str, torch.Tensor], float]:
    start = time.perf_counter()
    rows = network(pixels)
    _wait(device)
    return rows, time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _row_error(got: torch.Tensor, true: torch.Tensor) -> float:
    distance = (got - true).flatten(1).norm(dim=1)  # (b,)
    norm = true.flatten(1).norm(dim=1)
    return float((distance / norm.clamp_min(1e-30)).nan_to_num(nan=torch.inf).max())
