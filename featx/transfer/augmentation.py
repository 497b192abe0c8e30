"""Random changes of the rows of a minibatch while a network is fine-tuned from stored features.

Rows are maps, (b, c, h, w) or (b, h, w, c), tokens (b, t, c), or vectors (b, d); `places` are the dimensions over which
a channel extends.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Places = tuple[int, ...]
_BRIGHTNESS, _CONTRAST = 0.5, 0.6  # largest shift of a channel in [0, 1]; smallest factor of its contrast


def mixed(rows: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Rows mixed with one another: share * rows + (1 - share) * rows[other], share ~ Beta(alpha, alpha).

    Returns
    -------
    rows (b, ...), other (b,), share

    References
    ----------
    H. Zhang et al., mixup: beyond empirical risk minimization, ICLR 2018.
    """
    seed = int(torch.randint(2**31, (1,), generator=generator))
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    other = torch.randperm(len(rows), generator=generator)
    return share * rows + (1 - share) * rows[other.to(rows.device)], other, share


def brightness(rows: Tensor, *, places: Places, generator: torch.Generator) -> Tensor:
    """Shift each channel of each row, in the channel's range over the row, by a number uniform in [-0.5, 0.5].

    References
    ----------
    A. Bär et al., Frozen feature augmentation for few-shot image classification, CVPR 2024 ("brightness c2FroFA").
    """
    low, high = rows.amin(places, keepdim=True), rows.amax(places, keepdim=True)
    return rows + (high - low) * _uniform(low, -_BRIGHTNESS, _BRIGHTNESS, generator)


def contrast(rows: Tensor, *, places: Places, generator: torch.Generator) -> Tensor:
    """Multiply each channel's deviation from its mean over the row by a factor uniform in [0.6, 1.4].

    References
    ----------
    As in `brightness` ("contrast c2FroFA").
    """
    mean = rows.mean(places, keepdim=True)
    return mean + (rows - mean) * _uniform(mean, _CONTRAST, 2 - _CONTRAST, generator)


def posterize(rows: Tensor, *, places: Places, generator: torch.Generator) -> Tensor:
    """Map each channel's range over the row to 0..255, round down to a number of bits, uniform in 1 to 8, and map back.

    References
    ----------
    As of `brightness` ("posterize"); the range of the number of bits is ours.
    """
    low, high = rows.amin(places, keepdim=True), rows.amax(places, keepdim=True)
    step = 2.0 ** torch.randint(8, low.shape, generator=generator).to(rows)
    numbers = (255 * ((rows - low) / (high - low).clamp_min(torch.finfo(rows.dtype).tiny))).floor()
    return low + (high - low) / 255 * step * (numbers / step).floor()


CHANGES: dict[str, Callable[..., Tensor]] = {
    "brightness": brightness,
    "contrast": contrast,
    "posterize": posterize,
}


def places_of(layout: str) -> Places:
    """The dimensions of a row's places, given the layout of a tap: the plane, the tokens, or a whole vector."""
    return {"bchw": (2, 3), "bhwc": (1, 2), "btc": (1,), "bd": (1,)}[layout]


def _uniform(like: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    numbers = torch.rand(like.shape, generator=generator, dtype=torch.float32)
    return (low + (high - low) * numbers).to(like.device, like.dtype)
