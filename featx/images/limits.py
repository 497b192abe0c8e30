"""The maximum sizes of files and pictures, which Pillow's plugins apply too while featx decodes.

Pillow warns of pictures over `Image.MAX_IMAGE_PIXELS` and refuses those over twice that, in a function that its plugins
call before they allocate frames, tiles and canvases. Within `bounded`, and only in its thread, that function applies
featx's limits. Its name is private: if a later Pillow renames it, Pillow's own limit applies in the plugins again.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from PIL import Image

from featx.errors import ImageError, readable

MAX_PIXELS = 180_000_000
MAX_FILE_BYTES = 1_100_000_000  # MAX_PIXELS pixels of uncompressed 16-bit RGB
MAX_ASPECT = 100  # resizing scales the longer edge by as much as the shorter one, which may become a few hundred pixels
MAX_SCANNED_PIXELS = 50 * MAX_PIXELS  # a scan of a few bytes may visit all pixels, at a nanosecond each
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
    """Raise ImageError if a picture, before decoding, has too many pixels or scans, or too long a side.

    Parameters
    ----------
    content : bytes of the file from which it was opened
    """
    width, height = picture.size
    refuse_pixels(width, height)
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError("too-large", f"{width} x {height} pixels; one side is over {MAX_ASPECT} times the other")
    scans = (
        content.count(b"\xff\xda\0") if picture.format in ("JPEG", "MPO") else 1
    )  # counted by the first bytes of each scan
    if scans * width * height > MAX_SCANNED_PIXELS:
        raise ImageError("too-large", f"{scans:,} scans of {width} x {height} pixels; at most 50 of {MAX_PIXELS:,}")


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Context in which one image is decoded: with these limits instead of Pillow's, and MemoryError as ImageError."""
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
