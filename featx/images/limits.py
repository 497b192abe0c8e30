"""How large a file and a picture may be: one rule, which decides in Pillow's plugins as well while featx decodes.

Pillow warns of pictures over `Image.MAX_IMAGE_PIXELS` and refuses those over twice that, by a function that its
plugins call before they allocate: for frames, tiles and canvases too. Within `bounded`, and only in its thread, that
function asks this rule. Its name is private: if a later Pillow renames it, Pillow's own limit decides there again.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from PIL import Image

from featx.errors import ImageError, readable

MAX_PIXELS = 180_000_000
MAX_FILE_BYTES = 1_100_000_000  # so many pixels of 16-bit RGB, uncompressed
MAX_ASPECT = 100  # the shorter edge is scaled to a few hundred pixels: the longer one grows with it
MAX_SCANNED_PIXELS = 50 * MAX_PIXELS  # a scan of a few bytes may pass over all pixels: a nanosecond each, many times
NO_MEMORY = "decoding it takes more memory than there is"

_thread = threading.local()


def refuse_file(nbytes: int) -> None:
    """Raise ImageError if a file is too large to be read."""
    if nbytes > MAX_FILE_BYTES:
        raise ImageError("too-large", f"a file of {readable(nbytes)}; at most {readable(MAX_FILE_BYTES)} are read")


def refuse_pixels(width: int, height: int) -> None:
    """Raise ImageError if a picture, or a frame or tile of one, has too many pixels."""
    if width * height > MAX_PIXELS:
        raise ImageError("too-large", f"{width} x {height} pixels; at most {MAX_PIXELS:,} are decoded")


def refuse_picture(picture: Image.Image, content: bytes = b"") -> None:
    """Raise ImageError if a picture that is not decoded yet has too many pixels, scans, or too long a side.

    Parameters
    ----------
    content : bytes of the file that it was opened from
    """
    width, height = picture.size
    refuse_pixels(width, height)
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError("too-large", f"{width} x {height} pixels; one side is over {MAX_ASPECT} times the other")
    scans = content.count(b"\xff\xda\0") if picture.format in ("JPEG", "MPO") else 1  # by how each scan begins
    if scans * width * height > MAX_SCANNED_PIXELS:
        raise ImageError("too-large", f"{scans:,} scans of {width} x {height} pixels; at most 50 of {MAX_PIXELS:,}")


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """While one image is decoded: this rule instead of Pillow's, and too little memory is a failure of that image."""
    outer = getattr(_thread, "is_bounded", False)
    _thread.is_bounded = True
    try:
        yield
    except MemoryError as error:
        raise ImageError("too-large", NO_MEMORY) from error
    finally:
        _thread.is_bounded = outer


_pillows_check: Any = getattr(Image, "_decompression_bomb_check", None)


def _check(size: tuple[int, int], *args: Any, **kwargs: Any) -> None:
    if getattr(_thread, "is_bounded", False):
        refuse_pixels(*size)
    else:
        _pillows_check(size, *args, **kwargs)


if _pillows_check is not None:
    Image._decompression_bomb_check = _check
