"""Pillow's resizing and featx's crop of one uint8 image of any size, as a torch module that is exact to the bit.

Pillow resizes one axis, rounds to uint8, and resizes the other. A pass is a product with weights of 22 bits,

    y_i = clip((sum_j k_ij x_j + 2^21) div 2^22),    k_ij = round(2^22 w_ij / sum_j w_ij),    w_ij = f((j - c_i) / s)

with the centres c_i = (i + 1/2) in/out - 1/2 and s = max(1, in/out). All of it is exact in float64.

The order of the axes changes the rounding. Pillow 12 resizes horizontally first; Pillow 13 vertically first if the
height shrinks much more than the width. The module does as the installed Pillow does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import PIL
import torch
from torch import Tensor, nn

from featx.backbones import Preprocessing
from featx.errors import ModelError, Parameter

_BITS = 2.0**22
_ROWS_MAY_BE_FIRST = int(PIL.__version__.partition(".")[0]) >= 13


def _double(number: float) -> Tensor:
    """A constant that torch.onnx keeps in float64; it rounds Python's numbers to float32."""
    return torch.tensor(number, dtype=torch.float64)


def _box(x: Tensor) -> Tensor:
    return ((x > -0.5) & (x <= 0.5)).double()


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp_min(0)


def _bicubic(x: Tensor) -> Tensor:
    x, a = x.abs(), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    return torch.where(x < 1, near, torch.where(x < 2, (((x - 5) * x + 8) * x - 4) * a, 0.0))


def _hamming(x: Tensor) -> Tensor:
    x = x.abs()
    angle = torch.where(x == 0, 1.0, x) * _double(math.pi)
    inside = angle.sin() / angle * (_double(0.54) + _double(0.46) * angle.cos())
    return torch.where(x == 0, 1.0, torch.where(x >= 1, 0.0, inside))


def _sinc(x: Tensor) -> Tensor:
    angle = torch.where(x == 0, 1.0, x) * _double(math.pi)
    return torch.where(x == 0, 1.0, angle.sin() / angle)


def _lanczos(x: Tensor) -> Tensor:
    return torch.where((x >= -3) & (x < 3), _sinc(x) * _sinc(x / 3), 0.0)


# Half the width of each filter, and the filter.
_FILTERS: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    "box": (0.5, _box),
    "bilinear": (1.0, _bilinear),
    "hamming": (1.0, _hamming),
    "bicubic": (2.0, _bicubic),
    "lanczos": (3.0, _lanczos),
}


class ResizedAndCropped(nn.Module):
    """uint8 image (h, w, 3) -> pixels (1, *crop, 3) uint8, or (1, v, *crop, 3) of views; see `featx.resizing`."""

    def __init__(self, preprocessing: Preprocessing, views: Sequence[str] | None = None) -> None:
        super().__init__()
        if preprocessing.interpolation not in _FILTERS:
            raise ModelError(
                f"input 'image' resizes by one of {', '.join(_FILTERS)}; this model's images are resized by "
                f"{preprocessing.interpolation!r}: export it with ",
                Parameter("input", "pixels"),
            )
        self.resize, self.crop, self.views = preprocessing.resize, preprocessing.crop, views
        self.support, self.filter = _FILTERS[preprocessing.interpolation]

    def forward(self, image: Tensor) -> Tensor:
        columns, rows = torch.arange(image.shape[1]), torch.arange(image.shape[0])
        width, height = columns[-1] + 1, rows[-1] + 1
        wide, tall = self._resized(width, height)
        channels = image.permute(2, 0, 1).double()  # (3, h, w)
        rows_first = (height > tall) & (height - tall > 2 * (width - wide)) & _ROWS_MAY_BE_FIRST
        pixels = []
        for view in self.views or ["center"]:
            left = _offset(view, "left", "right", wide, self.crop[1])
            top = _offset(view, "top", "bottom", tall, self.crop[0])
            across = self._weights(columns, width, wide, left, self.crop[1])  # (crop width, w)
            down = self._weights(rows, height, tall, top, self.crop[0])  # (crop height, h)
            crop = torch.cond(rows_first, _down_first, _across_first, (channels, across, down)).permute(1, 2, 0)
            pixels.append(crop.flip(1) if view.endswith("flip") else crop)
        return (pixels[0] if self.views is None else torch.stack(pixels))[None].to(torch.uint8)

    def _resized(self, width: Tensor, height: Tensor) -> tuple[Tensor, Tensor]:
        """(width, height) before the crop; see `featx.resizing.resized_size`."""
        if not isinstance(self.resize, int):
            return torch.tensor(self.resize[1]), torch.tensor(self.resize[0])
        shorter = torch.minimum(width, height)
        return self.resize * width // shorter, self.resize * height // shorter

    def _weights(self, positions: Tensor, length: Tensor, resized: Tensor, offset: Tensor, crop: int) -> Tensor:
        """(crop, length) float64 whole numbers k_ij of the rows from `offset` on; 0 outside of the picture."""
        i = torch.arange(crop)[:, None] + offset
        step = length.double() / resized.double()
        stretch = step.clamp_min(1.0)
        centres = (i.double() + 0.5) * step
        first = (centres - self.support * stretch + 0.5).trunc().clamp_min(0)
        last = (centres + self.support * stretch + 0.5).trunc()
        j = positions.double()
        w = self.filter((j - centres + 0.5) * (1 / stretch))
        w = torch.where((j >= first) & (j < last) & (i >= 0) & (i < resized), w, 0.0)
        total = w.sum(1, keepdim=True)
        k = w / torch.where(total == 0, 1.0, total) * _BITS
        return (k + torch.where(k < 0, -0.5, 0.5)).trunc()


def _offset(view: str, first: str, last: str, side: Tensor, crop: int) -> Tensor:
    """Where a view begins; see `featx.resizing`."""
    if first in view:
        return torch.zeros_like(side)
    excess = side - crop
    return excess if last in view else torch.where(excess >= 0, (excess.double() / 2).round().long(), -(-excess // 2))


def _across_first(channels: Tensor, across: Tensor, down: Tensor) -> Tensor:
    return _rounded(down @ _rounded(channels @ across.T))


def _down_first(channels: Tensor, across: Tensor, down: Tensor) -> Tensor:
    return _rounded(_rounded(down @ channels) @ across.T)


def _rounded(sums: Tensor) -> Tensor:
    return ((sums + _BITS / 2) / _BITS).floor().clamp(0, 255)
