"""Forged archives with a valid identity and seal: invalid chunks are damaged rows, and no bomb is decompressed."""

from __future__ import annotations

import tracemalloc
import zlib

import numpy as np
import pytest
import zstandard
from forged import good_store, pieces_of, refused, with_pieces, written
from helpers import assert_tells, recipe

from featx.errors import DamageError
from featx.store import FeatureStore, layout, metadata
from featx.store.compression import filters_of
from featx.store.hdf5 import Array, Chunks


def _shuffled(content: bytes) -> bytes:
    return np.frombuffer(content, np.uint8).reshape(-1, 4).T.tobytes()


def _forged_pieces(method: str, piece: bytes, full: int) -> dict[str, bytes]:
    """Invalid replacements of a chunk of `full` bytes."""
    frame = zstandard.ZstdCompressor(3)
    squeeze = zlib.compress if method == "gzip" else frame.compress
    found = {
        "a byte": b"x",
        "zeros": bytes(len(piece)),
        "cut short": piece[:-1],
        "with more behind it": piece + b"\0",
        "twice": piece + piece,
        "of nothing": squeeze(b""),
        "of too little": squeeze(bytes(full - 4)),
        "of a byte too many": squeeze(bytes(full + 1)),
        "of 100 MB": squeeze(bytes(10**8)),
        "by the other method": frame.compress(bytes(full)) if method == "gzip" else zlib.compress(bytes(full)),
    }
    if method == "gzip":
        raw = zlib.compressobj(wbits=-15)
        found["without its head"] = raw.compress(bytes(full)) + raw.flush()
        asks = zlib.compressobj(zdict=bytes(full))
        found["with a dictionary"] = asks.compress(bytes(full)) + asks.flush()
    else:
        unsaid = zstandard.ZstdCompressor(write_content_size=False).compress
        head = b"\x28\xb5\x2f\xfd"
        found |= {
            "that does not say its size": unsaid(bytes(full)),
            "that does not say its 100 MB": unsaid(bytes(10**8)),
            "that says 2 TiB": head + b"\xe0" + (2**41).to_bytes(8, "little") + bytes([1, 0, 0]),
            "that says all there can be": head + b"\xe0" + b"\xff" * 8 + bytes([1, 0, 0]),
            "of one size that holds another": head + b"\xa0" + full.to_bytes(4, "little") + bytes([1, 0, 0]),
            "of a size that holds 100 MB": head + b"\xa0" + full.to_bytes(4, "little") + squeeze(bytes(10**8))[9:],
            "with a window of 2 GiB": head + b"\x00\xa8" + bytes([1, 0, 0]),
            "with a dictionary": head + b"\x63\x01\0\0\0" + (full - 256).to_bytes(2, "little") + bytes([1, 0, 0]),
            "that may be skipped": b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + bytes(4),
        }
    return found


@pytest.mark.parametrize("method", ["gzip", "zstd"])
def test_invalid_chunks_of_an_archive_are_reported_as_damaged_rows(method, tmp_path):
    """Their checksums are valid."""
    archive = good_store(compression=method)
    pieces = pieces_of(archive)
    assert with_pieces(archive, pieces) == archive
    forged = _forged_pieces(method, pieces["b:none"][0], full := 64 * 16)
    for name, piece in forged.items():
        path = written(tmp_path / "a.h5", with_pieces(archive, pieces | {"b:none": [piece, pieces["b:none"][1]]}))
        tracemalloc.start()
        try:
            store = FeatureStore(path)
            for check in (False, True):
                with pytest.raises(DamageError) as caught:
                    store.take([3], "b", check=check)
                assert_tells(caught.value, "'b:none' rows 0 to 63")
                with pytest.raises(DamageError):
                    list(store.blocks("b", check=check))
                assert len(store.take([68], "b", check=check)) == len(store.take([3], "a", check=check)) == 1
            for use in (store.verify, lambda store=store: store["b"]):
                with pytest.raises(DamageError) as caught:
                    use()
                assert caught.value.damages == [("b:none", 0, 64)], name
            assert tracemalloc.get_traced_memory()[1] < 2**21, name
        finally:
            tracemalloc.stop()
    assert full == 1024 and len(forged) >= 12


def huge_archive(shape: tuple[int, ...], piece: bytes, method: str, n: int = 1) -> bytes:
    """An archive with huge rows and small chunks."""
    row_bytes = 4 * int(np.prod(np.array(shape, object)))
    rows = layout.block_rows(row_bytes)
    count = -(-n // rows)
    extents = tuple((layout.FIRST_LAYER + i * len(piece), len(piece)) for i in range(count))
    made = recipe({"a:avg": shape})
    layers = {"a:avg": Array("<f4", (n, *shape), 0, Chunks(rows, filters_of("<f4")[method], extents))}
    sums = {"a:avg": np.array([layout.checksum(piece)] * count, "<u8")}
    digests, ids = np.zeros((n, 16), np.uint8), [f"{i}" for i in range(n)]
    page, rest, seal = layout.assemble(layers, metadata.datasets(made, ids, digests, None, {}, [], {}, sums))
    return seal.to_bytes() + page + (piece * count).ljust(seal.metadata - layout.FIRST_LAYER, b"\0") + rest


@pytest.mark.parametrize("method, piece", [("gzip", zlib.compress(bytes(1000))), ("zstd", b"\x28\xb5\x2f\xfd\xe0")])
@pytest.mark.parametrize("shape", [(2**39,), (2**31,), (2**20, 2**20), (2**30,), tuple([2] * 30)], ids=str)
def test_an_archive_whose_chunks_are_too_short_for_its_rows_is_refused(tmp_path, method, piece, shape):
    for n in (1, 3):
        refused(written(tmp_path / "a.h5", huge_archive(shape, piece, method, n)), "not a whole")
