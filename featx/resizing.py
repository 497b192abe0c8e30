"""From a picture to the pixels of a network's input: resized and cropped, pixel for pixel as torchvision does it.

The recipe says how. It needs NumPy and Pillow alone, so an exported model predicts images without torch.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from featx.errors import ImageError
from featx.grammar import INTERPOLATIONS

# torchvision's names; its two nearest are Pillow's one
_FILTERS = {name: Image.Resampling[name.removesuffix("-exact").upper()] for name in INTERPOLATIONS}
_MOST_PIXELS = 2**28


def resized_and_cropped(
    picture: Image.Image, resize: int | tuple[int, int], crop: tuple[int, int], interpolation: str
) -> np.ndarray:
    """RGB picture -> (*crop, 3) uint8; see `featx.Preprocessing`, whose fields the parameters are."""
    wide, tall = resized_size(*picture.size, resize)
    if wide * tall > _MOST_PIXELS:  # a strip of 1 x 20,000 pixels
        raise ImageError("too-large", f"resized it would have {wide:,} x {tall:,} pixels; the limit is 268 million")
    height, width = crop
    left, top = _offset(wide, width), _offset(tall, height)
    # Pillow directly: torchvision's functions take 10 % longer. Rows and columns outside of the crop are resized
    # too, since the whole size determines which of the two Pillow resizes first, and so how it rounds
    resized = picture.resize((wide, tall), _FILTERS[interpolation])
    return np.asarray(
        resized.crop((left, top, left + width, top + height))
    )  # pictures that are too small get a black border


def resized_size(width: int, height: int, resize: int | tuple[int, int]) -> tuple[int, int]:
    """(width, height) before the crop; the longer edge is rounded down, as in torchvision and timm."""
    if not isinstance(resize, int):
        return resize[1], resize[0]
    if width <= height:
        return resize, int(resize * height / width)
    return int(resize * width / height), resize


def _offset(side: int, crop: int) -> int:
    """Where the crop begins; negative if it is larger than the picture."""
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)
