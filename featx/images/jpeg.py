"""A faster decoder for plain JPEGs, with the same pixels as Pillow's.

`fill` takes a file's bytes and the picture that Pillow opened from them, before it is loaded. It gives the picture its
pixels or leaves it unchanged; then Pillow decodes it and reports errors. Orientation and mode are handled elsewhere.

The decoder is simplejpeg. In its strict mode it refuses every file of which libjpeg warns, so no damaged file is
decoded here; it writes Pillow's memory layout, so no copy is needed; and it releases the GIL. torchvision's decoder
accepts damage and prints libjpeg's warnings, returns planes, and is deprecated. Time saved: less than 10 % for small
photos, up to half for 12 megapixels, for which Pillow allocates memory slowly.
"""

from __future__ import annotations

import io
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image

try:
    simplejpeg: Any = import_module("simplejpeg")
except ImportError:
    simplejpeg = None

_LAYOUTS = {"L": "GRAY", "RGB": "RGBX"}  # Pillow stores RGB in 4 bytes per pixel


def fill(picture: Image.Image, content: bytes) -> None:
    """Give `picture` its pixels if simplejpeg can decode it exactly as Pillow does."""
    if picture.format in ("JPEG", "MPO") and picture.mode in _LAYOUTS and has_fast_jpeg():
        _fill(picture, content)


def _fill(picture: Image.Image, content: bytes) -> bool:
    try:
        pixels = simplejpeg.decode_jpeg(content, _LAYOUTS[picture.mode])  # (h, w, 1 or 4)
        if pixels.shape[1::-1] != picture.size:
            return False
        # Image.frombuffer does this for RGBX, but not for RGB
        mapped = Image.core.map_buffer(pixels, picture.size, "raw", 0, (picture.mode, pixels.strides[0], 1))
    except (ValueError, MemoryError, AttributeError):  # AttributeError: a Pillow without map_buffer
        return False
    picture.im, picture.tile = mapped, []  # type: ignore[attr-defined]  # as after Image.load
    return True


@cache
def has_fast_jpeg() -> bool:
    """Whether simplejpeg is installed and rounds like Pillow's libjpeg; builds may differ."""
    if simplejpeg is None:
        return False
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 41, 3), np.uint8))
    for options in ({"subsampling": "4:2:0"}, {"subsampling": "4:2:2", "progressive": True}, {"subsampling": "4:4:4"}):
        file = io.BytesIO()
        noise.save(file, "JPEG", **options)
        filled, reference = Image.open(file), Image.open(io.BytesIO(file.getvalue()))
        if not _fill(filled, file.getvalue()) or not np.array_equal(np.asarray(filled), np.asarray(reference)):
            return False
    return True
