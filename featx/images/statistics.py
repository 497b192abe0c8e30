"""A perceptual hash of a decoded picture and of its mirror image, and statistics of its pixels and its file.

The arithmetic is in integers up to the last step, so that a picture has the same record on every machine.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

import numpy as np
from PIL import Image

from featx.image_statistics import CAMERA_BYTES, IMAGE_STATISTICS

_HASH_SIDE = 32  # pixels of the picture that is hashed
_HASH_BITS = 64
_MOST_SIDE = 256  # pixels; brightness, contrast and sharpness are those of a picture reduced to it
_DARK, _BRIGHT = 13, 242  # of 255: 5 % and 95 %
_JPEG_TABLE_SUM = 3669  # of the luminance table in the JPEG standard (T.81, table K.1), which is quality 50
_MAKE, _MODEL, _DATE, _EXIF, _DATE_ORIGINAL = 0x010F, 0x0110, 0x0132, 0x8769, 0x9003  # EXIF tags
NO_DATE = np.iinfo(np.int64).min  # NumPy's NaT


def image_statistics(picture: Image.Image, file: Image.Image | None = None, file_bytes: int = 0) -> bytes:
    """One record of IMAGE_STATISTICS.

    Parameters
    ----------
    picture : decoded, upright, RGB
    file : the picture that Pillow opened, with its metadata, if it is from a file
    file_bytes : size of that file
    """
    record = np.zeros((), IMAGE_STATISTICS)
    factor = max(1, -(-max(picture.size) // _MOST_SIDE))
    grey = picture.convert("L").reduce(factor) if factor < 4 else picture.reduce(factor).convert("L")  # the faster way
    record["hash"], record["mirror_hash"] = perceptual_hashes(grey)
    record["width"], record["height"] = picture.size
    record["file_bytes"] = file_bytes
    record["jpeg_quality"] = np.nan if file is None else _jpeg_quality(file)
    _describe_pixels(record, grey)
    record["taken"], record["camera"] = (NO_DATE, b"") if file is None else _date_and_camera(file)
    return record.tobytes()


def perceptual_hashes(grey: Image.Image) -> tuple[int, int]:
    """64 bits of a picture, and of its mirror image: signs of the lowest frequencies of its cosine transform.

    The mean (frequency 0, 0) is left out, so that brightness does not count. Mirroring changes the sign of every odd
    horizontal frequency. (Zauner 2010, section 3.2.1, compares with the median instead, of 8 x 8 frequencies.)
    """
    pixels = np.asarray(grey.resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.BOX), np.int64)
    cosines, rows, columns = _frequencies()
    transformed = cosines @ pixels @ cosines.T  # int64, exact
    signs = transformed[rows, columns]
    return _bits(signs > 0), _bits(np.where(columns % 2, -signs, signs) > 0)


@cache
def _frequencies() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The cosines, (frequencies, 32) int64 in units of 2^-12, and the 64 lowest frequencies: vertical, horizontal."""
    span = range(_HASH_SIDE)
    lowest = sorted(((i, j) for i in span for j in span if i + j), key=lambda ij: (sum(ij), max(ij), ij))[:_HASH_BITS]
    rows, columns = np.array(lowest).T
    frequencies = np.arange(1 + max(rows.max(), columns.max()))[:, None]
    cosines = np.cos(np.pi * frequencies * (2 * np.arange(_HASH_SIDE) + 1) / (2 * _HASH_SIDE))
    return np.rint(cosines * 2**12).astype(np.int64), rows, columns


def _bits(signs: np.ndarray) -> int:
    return int(np.packbits(signs).view(">u8")[0])


def _describe_pixels(record: np.ndarray, grey: Image.Image) -> None:
    """Set the fields that are of pixels. Sums of integers below 2^53 are exact in float64, in any order."""
    counts, levels = np.array(grey.histogram(), float), np.arange(256.0)
    n = counts.sum()
    record["brightness"], record["contrast"] = _mean_and_std(counts @ levels / 255, counts @ levels**2 / 255**2, n)
    record["dark"], record["bright"] = counts[: _DARK + 1].sum() / n, counts[_BRIGHT:].sum() / n
    if min(grey.size) > 2:
        at = np.asarray(grey, np.int16)
        laplacian = 4 * at[1:-1, 1:-1] - at[:-2, 1:-1] - at[2:, 1:-1] - at[1:-1, :-2] - at[1:-1, 2:]
        changes = laplacian.reshape(-1).astype(float)
        record["sharpness"] = _mean_and_std(changes.sum() / 255, changes @ changes / 255**2, changes.size)[1]


def _mean_and_std(total: float, squares: float, n: float) -> tuple[float, float]:
    """Mean and standard deviation of n numbers, of their sum and the sum of their squares."""
    mean = total / n
    return mean, max(0.0, squares / n - mean**2) ** 0.5


def _jpeg_quality(file: Image.Image) -> float:
    """The quality, 1 to 100, by libjpeg's formula from the sum of the luminance table; NaN for other formats."""
    tables = getattr(file, "quantization", None) or {}
    if 0 not in tables:
        return np.nan
    percent = 100 * sum(tables[0]) / _JPEG_TABLE_SUM
    return max(1.0, 5000 / percent if percent > 100 else (200 - percent) / 2)


def _date_and_camera(file: Image.Image) -> tuple[int, bytes]:
    """Seconds since 1970 of the date in EXIF, in the camera's time, and the camera's maker and model."""
    try:
        exif = file.getexif()
        if not exif:
            return NO_DATE, b""
        date = exif.get_ifd(_EXIF).get(_DATE_ORIGINAL) or exif.get(_DATE)
        maker, model = (_line(exif.get(tag)) for tag in (_MAKE, _MODEL))
    except MemoryError:
        raise
    except Exception:  # Pillow raises many types on damaged metadata, which the decoder ignores too
        return NO_DATE, b""
    camera = model if model.startswith(maker) else f"{maker} {model}".strip()
    return _seconds(date), camera.encode()[:CAMERA_BYTES].decode(errors="ignore").encode()


def _line(text: object) -> str:
    """Text of a metadata field as one line that can be printed; "" for other values."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split()) if isinstance(text, str) else ""


def _seconds(date: object) -> int:
    try:
        return int(datetime.strptime(str(date).strip("\0 "), "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC).timestamp())
    except ValueError:
        return NO_DATE
