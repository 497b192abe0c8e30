"""From a picture to the pixels of a network's input: resized and cropped, pixel for pixel as torchvision does it.

The recipe says how. It needs NumPy and Pillow alone, so an exported model predicts images without torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from featx.errors import ImageError
from featx.grammar import INTERPOLATIONS

# torchvision's names; its two nearest are Pillow's one
_FILTERS = {name: Image.Resampling[name.removesuffix("-exact").upper()] for name in INTERPOLATIONS}
_MOST_PIXELS = 2**28


def resized_and_cropped(
    picture: Image.Image,
    resize: int | tuple[int, int],
    crop: tuple[int, int],
    interpolation: str,
    views: Sequence[str] = ("center",),
) -> np.ndarray:
    """RGB picture -> (v, *crop, 3) uint8; see `featx.Preprocessing`, whose fields and views the parameters are."""
    wide, tall = resized_size(*picture.size, resize)
    if wide * tall > _MOST_PIXELS:  # a strip of 1 x 20,000 pixels
        raise ImageError("too-large", f"resized it would have {wide:,} x {tall:,} pixels; the limit is 268 million")
    height, width = crop
    # Pillow directly: torchvision's functions take 10 % longer. Rows and columns outside of the crop are resized
    # too, since the whole size determines which of the two Pillow resizes first, and so how it rounds
    resized = picture.resize((wide, tall), _FILTERS[interpolation])
    pixels = []
    for view in views:
        left, top = _offset(view, "left", "right", wide, width), _offset(view, "top", "bottom", tall, height)
        # pictures that are too small get a black border
        cropped = np.asarray(resized.crop((left, top, left + width, top + height)))
        pixels.append(cropped[:, ::-1] if view.endswith("flip") else cropped)
    return np.stack(pixels)


def resized_size(width: int, height: int, resize: int | tuple[int, int]) -> tuple[int, int]:
    """(width, height) before the crop; the longer edge is rounded down, as in torchvision and timm."""
    if not isinstance(resize, int):
        return resize[1], resize[0]
    if width <= height:
        return resize, int(resize * height / width)
    return int(resize * width / height), resize


def _offset(view: str, first: str, last: str, side: int, crop: int) -> int:
    """Where a view begins: at one of two ends if its name has it, or else in the centre; negative if the picture is
    smaller than the crop."""
    if first in view or last in view:
        return 0 if first in view else side - crop
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)
