"""Decodes one image (a path, a `Member`, a PIL image, a uint8 array) to RGB, and computes the digest of its content.

The rule, recorded in every recipe as `DECODER`, is that Pillow reads the file, with these choices:

- A file's content determines its format, not its name: JPEG (and the first picture of a phone's MPO), PNG, WebP, BMP,
  TIFF, GIF, PPM and PGM. Anything else is "not-an-image".
- The first frame or page is used; of a PNG, the default image.
- The orientation is applied, from EXIF, TIFF's tag or XMP; unreadable orientation data are ignored.
- Grey and black and white become three equal channels. A palette is replaced by its colours.
- Alpha is dropped, not blended: transparent pixels show their stored colour.
- CMYK and other colour spaces become RGB by Pillow's formula (`Image.convert`); ICC profiles and gamma are ignored.
- 16 bits become 8 by their high byte (in a colour PPM by rounding, as Pillow does). 32-bit integers and floats have no
  defined range: "pixel-type".
- Refused as "too-large" (see `limits`): before it is read, a file of over 1.1 GB; before any pixel is decoded, over 180
  million pixels, a side over 100 times the other, or a JPEG with so many scans that decoding would take minutes; and a
  picture that does not fit into memory. Pillow's own limit (`Image.MAX_IMAGE_PIXELS`) has no effect.
- A file that Pillow finds damaged or truncated is "damaged"; damage that Pillow repairs is accepted.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings

import numpy as np
from PIL import (  # a format's plugin must be imported before the format can be opened
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from featx.errors import ImageError
from featx.images import jpeg, limits
from featx.images.members import Member, Stamp, changed
from featx.images.statistics import image_statistics

DECODER = "pillow: first frame, EXIF rotation, 16-bit to 8, RGB"
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns of metadata that it ignores, as the rule does; appended, so that the user's filters come first
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.", append=True)

AnyImage = str | os.PathLike | np.ndarray | Image.Image | ImageError  # an ImageError says why the image cannot be read


def stamp(image: AnyImage) -> Stamp | None:
    """(size in bytes, modification time in ns) of a file, for `decode` to compare; None for other images."""
    if isinstance(image, Member):
        return image.stamp()
    if not isinstance(image, str | os.PathLike):
        return None
    try:
        status = os.stat(image)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def decode(image: AnyImage, expected: Stamp | None = None) -> tuple[Image.Image, bytes]:
    """Decode one image.

    Parameters
    ----------
    image : path, PIL image, or uint8 array of shape (h, w) or (h, w, 3)
    expected : the file's stamp when the run began; a file that has changed since is refused

    Returns
    -------
    picture : PIL image in mode RGB
    digest : 16 bytes, see `content_digest`

    Raises
    ------
    ImageError
        The image cannot be decoded; its `code` gives the reason.
    """
    with limits.bounded():
        return _decode(image, expected)[:2]


def decode_and_describe(image: AnyImage, expected: Stamp | None = None) -> tuple[Image.Image, bytes, bytes]:
    """Decode one image as `decode` does.

    Returns
    -------
    picture, digest : as from `decode`
    statistics : bytes of one record of IMAGE_STATISTICS
    """
    with limits.bounded():
        picture, digest, opened, file_bytes = _decode(image, expected)
        is_file = isinstance(image, str | os.PathLike)
        return picture, digest, image_statistics(picture, opened if is_file else None, file_bytes if is_file else 0)


def _decode(image: AnyImage, expected: Stamp | None) -> tuple[Image.Image, bytes, Image.Image, int]:
    """The decoded picture, the digest, the picture as Pillow opened it, and the number of bytes that identify it."""
    content, opened = _open(image, expected)
    digest = hashlib.blake2b(content, digest_size=16).digest()
    limits.refuse_picture(opened, content)
    return opened if isinstance(image, Image.Image) else _to_rgb(opened, content), digest, opened, len(content)


def content_digest(image: AnyImage) -> bytes:
    """BLAKE2b (16 bytes) of a file's bytes, or of an array's or PIL image's type, shape and pixels."""
    with limits.bounded():
        content = _read(image) if isinstance(image, str | os.PathLike) else _open(image)[0]
        return hashlib.blake2b(content, digest_size=16).digest()


def _read(path: str | os.PathLike, expected: Stamp | None = None) -> bytes:
    if isinstance(path, Member):
        return path.read()  # checks that it has not changed since it was listed
    try:
        _check_file(os.stat(path))  # checked before opening, to which devices may react
        with open(path, "rb", opener=_open_at_once) as file:
            _check_file(status := os.fstat(file.fileno()))  # the opened file may be another one
            content = file.read(status.st_size + 1)
            status = os.fstat(file.fileno())
    except ImageError:  # a ValueError too
        raise
    except (FileNotFoundError, ValueError) as error:  # ValueError: a null character in the name
        vanished = "the file vanished while the run was on"
        raise ImageError("missing", vanished if expected else "there is no such file") from error
    except OSError as error:
        raise ImageError("unreadable", f"the file cannot be read: {error.strerror}") from error
    if expected is not None and (status.st_size, status.st_mtime_ns) != expected or status.st_size != len(content):
        raise changed()
    return content


def _check_file(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("unreadable", "it cannot be read: it is not a file")
    limits.refuse_file(status.st_size)


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would block


def _open(image: AnyImage, expected: Stamp | None = None) -> tuple[bytes, Image.Image]:
    """The bytes that identify an image, and the picture before decoding."""
    if isinstance(image, ImageError):
        raise ImageError(image.code, image.reason)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or not (image.ndim == 2 or image.ndim == 3 and image.shape[2] == 3):
            kind = f"{image.dtype} {image.shape}"
            raise ImageError("pixel-type", f"an array must be uint8 of shape (h, w) or (h, w, 3); got {kind}")
        if not image.size:
            raise ImageError("pixel-type", f"an array must hold pixels; got shape {image.shape}")
        return f"array {image.shape}".encode() + image.tobytes(), Image.fromarray(image)
    if isinstance(image, Image.Image):
        limits.refuse_picture(image)
        picture = _to_rgb(image)  # the visible pixels identify it, whatever its mode, palette and rotation were
        return f"PIL {picture.size}".encode() + picture.tobytes(), picture
    content = _read(image, expected)
    try:
        return content, Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError("not-an-image", f"not a picture; featx reads {', '.join(FORMATS)}") from error
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        raise ImageError("damaged", "the picture's header is damaged") from error


def _to_rgb(picture: Image.Image, content: bytes | None = None) -> Image.Image:
    """A new picture by the rule. If `content` is given, `picture` was opened from it here and is not copied."""
    try:
        wide = picture.mode.startswith("I;16") or picture.mode == "I" and picture.format in ("PNG", "PPM")
        if content is not None:
            jpeg.fill(picture, content)
        upright = _upright(picture)
        if wide:
            return Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8)).convert("RGB")
        if upright.mode in ("I", "F"):
            raise ImageError("pixel-type", "32-bit pixels have no stated range; save the picture with 8 or 16 bits")
        if upright.mode == "P":  # converting directly to RGB warns if the palette has transparency
            upright = upright.convert("RGBA")
        return upright if upright.mode == "RGB" and (content or upright is not picture) else upright.convert("RGB")
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise many types on damaged data
        raise ImageError("damaged", "the picture's data is damaged or cut short") from error


def _upright(picture: Image.Image) -> Image.Image:
    """ImageOps.exif_transpose, except that bad metadata is no error and an upright picture is not copied."""
    picture.load()
    try:
        turn = _TURNS.get(picture.getexif().get(0x0112, 1))
    except Exception:
        return picture
    if turn is None:
        return picture
    turned = picture.transpose(turn)
    turned.info.clear()  # it still has the orientation
    return turned
