"""Compresses and decompresses blocks of rows, by the HDF5 filters that an archive may use.

Every method first shuffles the bytes: first the first bytes of all numbers, then the second bytes, and so on.
"""

from __future__ import annotations

import zlib
from types import ModuleType

import numpy as np

from featx.errors import StoreError

_SHUFFLE, _DEFLATE, _ZSTD = 2, 1, 32015
_GZIP_LEVEL, _ZSTD_LEVEL = 6, 3

Filters = tuple[tuple[int, str, tuple[int, ...]], ...]


def filters_of(dtype: str) -> dict[str, Filters]:
    """{method: HDF5's filters}, as recorded in the file."""
    shuffle = (_SHUFFLE, "", (np.dtype(dtype).itemsize,))
    return {
        "gzip": (shuffle, (_DEFLATE, "", (_GZIP_LEVEL,))),
        "zstd": (shuffle, (_ZSTD, "zstd", (_ZSTD_LEVEL,))),
    }


def check_method(method: object) -> None:
    """Raise StoreError unless the method is known and installed."""
    if not isinstance(method, str) or method not in filters_of("<f4"):
        raise StoreError(f"compression is one of {', '.join(filters_of('<f4'))}, none; got {method!r}")
    if method == "zstd":
        _zstandard()


def could_hold(nbytes: int, full: int, filters: Filters) -> bool:
    """Whether `nbytes` compressed bytes can decompress to `full` bytes.

    Deflate needs 2 bits for its longest match, 258 bytes; zstd 4 bytes for a block of 128 KiB.
    """
    max_ratio = 258 * 4 if filters[1][0] == _DEFLATE else 2**17 // 4
    return full <= (nbytes + 64) * max_ratio


def compress(content: bytes, itemsize: int, method: str) -> bytes:
    shuffled = np.frombuffer(content, np.uint8).reshape(-1, itemsize).T.tobytes()
    if method == "gzip":
        return zlib.compress(shuffled, _GZIP_LEVEL)
    return _zstandard().ZstdCompressor(_ZSTD_LEVEL).compress(shuffled)


def decompress(content: bytes, nbytes: int, itemsize: int, filters: Filters) -> bytes:
    """Decompress to exactly `nbytes` bytes, or raise ValueError; a longer result is never allocated."""
    if filters[1][0] == _DEFLATE:
        inflating = zlib.decompressobj()
        try:
            shuffled = inflating.decompress(content, nbytes)
            whole = inflating.eof or not inflating.decompress(inflating.unconsumed_tail, 1) and inflating.eof
        except zlib.error as error:
            raise ValueError(str(error)) from error
        if not whole or inflating.unused_data:
            raise ValueError("a chunk of the wrong length")
    else:
        zstandard = _zstandard()
        try:
            parameters = zstandard.get_frame_parameters(content)
            if parameters.content_size != nbytes:
                raise ValueError("a chunk of the wrong length")
            shuffled = zstandard.ZstdDecompressor().decompress(content, max_output_size=nbytes, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
    if len(shuffled) != nbytes:
        raise ValueError("a chunk of the wrong length")
    return np.frombuffer(shuffled, np.uint8).reshape(itemsize, -1).T.tobytes()


def _zstandard() -> ModuleType:
    try:
        import zstandard
    except ImportError as error:
        raise StoreError("zstd needs the package zstandard: pip install 'featx[export]'") from error
    return zstandard
