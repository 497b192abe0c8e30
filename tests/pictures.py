"""Files of pictures, field by field where no library writes them, and what becomes of them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from helpers import noise
from PIL import Image

from featx.errors import ImageError
from featx.images import decode

A = noise(0)  # 24 x 32
GREY = A[..., 0]


def coded(picture: np.ndarray | Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(file, format, **options)
    return file.getvalue()


def outcome(folder: Path, content: bytes, name: str = "a.jpg") -> np.ndarray | str:
    """The pixels, or the code of the error, whose words are the same each time."""
    (folder / name).write_bytes(content)
    texts = set()
    for _ in range(2):
        try:
            picture, digest = decode(folder / name)
            assert picture.mode == "RGB" and len(digest) == 16
            return np.asarray(picture)
        except ImageError as error:
            texts.add(str(error))
            code = error.code
    assert len(texts) == 1 and "0x" not in texts.pop()
    return code


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(rows)) + after + chunk(b"IEND", b"")


def plain_png(before: bytes = b"", after: bytes = b"") -> bytes:
    return png(32, 24, 8, 2, b"".join(b"\0" + row.tobytes() for row in A), before, after)


def tiff(tags: dict[int, int], data: bytes, order: str = "<") -> bytes:
    """One page; all tags as longs, 273 or 324 (where the data are) filled in."""
    at = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack(order + "HHII", tag, 4, 1, at if tag in (273, 324) else tags[tag]) for tag in sorted(tags)
    )
    start = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8) + struct.pack(order + "H", len(tags))
    return start + entries + struct.pack(order + "I", 0) + data


def grey_tiff(width: int, height: int, data: bytes, compression: int = 1, **more: int) -> bytes:
    rows = more.get("rows", height)
    tags = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 273: 0, 277: 1, 278: rows, 279: len(data)}
    return tiff(tags, data)


def tiled_tiff(side: int, data: bytes, compression: int = 1, width: int = 32, height: int = 24) -> bytes:
    tags = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 277: 1, 322: side, 323: side, 324: 0}
    return tiff(tags | {325: len(data)}, data)


def patched(content: bytes, at: int, fields: str, *values: int) -> bytes:
    return content[:at] + struct.pack(fields, *values) + content[at + struct.calcsize(fields) :]
