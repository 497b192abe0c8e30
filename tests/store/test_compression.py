"""Decompressing a chunk gives exactly its bytes or a ValueError, and never allocates more than expected."""

from __future__ import annotations

import os
import tracemalloc
import zlib

import numpy as np
import pytest
import zstandard
from helpers import assert_tells
from hypothesis import given, settings
from hypothesis import strategies as st
from test_take import written

from featx.errors import DamageError, StoreError
from featx.store import FeatureStore, export, layout
from featx.store.compression import check_method, compress, decompress, filters_of

METHODS = pytest.mark.parametrize("method", ["gzip", "zstd"])
often = settings(max_examples=100, derandomize=True, deadline=None, database=None)


def undone(content: bytes, nbytes: int, method: str, itemsize: int = 4) -> bytes:
    return decompress(content, nbytes, itemsize, filters_of(f"<f{itemsize}")[method])


def piece() -> bytes:
    return np.random.default_rng(0).normal(size=300).astype("<f4").tobytes()


@METHODS
@pytest.mark.parametrize("itemsize", [2, 4])
def test_compressed_bytes_are_restored(method, itemsize):
    @often
    @given(st.binary(min_size=1, max_size=300), st.integers(1, 20))
    def holds(content, times):
        content = content * itemsize * times
        assert undone(compress(content, itemsize, method), len(content), method, itemsize) == content

    holds()


@METHODS
def test_a_chunk_of_the_wrong_length_is_refused(method, subtests):
    for nbytes in [4, 1196, 1204, 2400, 2**40]:
        with subtests.test(ascii(nbytes)):
            content = piece()
            assert len(content) == 1200
            with pytest.raises(ValueError):
                undone(compress(content, 4, method), nbytes, method)


@METHODS
def test_a_truncated_or_extended_chunk_is_refused(method):
    content = piece()
    compressed = compress(content, 4, method)
    damaged = [compressed[:length] for length in range(len(compressed))]
    damaged += [compressed + more for more in (b"\0", b"more", compressed)]
    for bad in damaged:
        with pytest.raises(ValueError):
            undone(bad, len(content), method)


@METHODS
def test_damaged_chunks_raise_value_error_or_give_the_right_length(method):
    content = piece()
    compressed = compress(content, 4, method)

    @often
    @given(st.lists(st.tuples(st.integers(0, len(compressed) - 1), st.integers(0, 255)), min_size=1, max_size=5))
    def holds(changes):
        damaged = bytearray(compressed)
        for at, value in changes:
            damaged[at] = value
        try:
            found = undone(bytes(damaged), len(content), method)
        except ValueError:
            return
        assert len(found) == len(content)

    @often
    @given(st.binary(max_size=100))
    def holds_for_any_bytes(content):
        with pytest.raises(ValueError):
            undone(content, 1200, method)

    holds()
    holds_for_any_bytes()


@pytest.mark.parametrize("kind", ["gzip", "zstd", "zstd that does not say"])
def test_a_bomb_is_not_decompressed(kind):
    zeros = bytes(200 * 10**6)
    if kind == "gzip":
        bomb = zlib.compress(zeros)
    else:
        bomb = zstandard.ZstdCompressor(write_content_size=kind == "zstd").compress(zeros)
    del zeros
    assert len(bomb) < 10**6
    tracemalloc.start()
    with pytest.raises(ValueError):
        undone(bomb, 4000, kind.split()[0])
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 10**6


@pytest.mark.parametrize("method", ["lz4", "", "GZIP"])
def test_an_unknown_method_is_refused_by_name(method):
    with pytest.raises(StoreError) as caught:
        check_method(method)
    assert_tells(caught.value, repr(method), "gzip", "zstd")


@METHODS
def test_every_flipped_bit_of_an_archives_chunks_is_found(tmp_path, method):
    """Checksums also cover bits without effect, such as deflate's padding and an unused bit of zstd's."""
    rows = np.random.default_rng(0).integers(0, 9, (70, 5)).astype(np.float32)
    plain = written(tmp_path / "a.h5", {"a:avg": rows})
    store = FeatureStore(export(plain, tmp_path / "b.h5", compression=method))
    content = store.path.read_bytes()
    seal = layout.Seal.from_bytes(content[: layout.PAGE])
    end = len(content[: seal.metadata].rstrip(b"\0"))
    handle, status = os.open(store.path, os.O_WRONLY), os.stat(store.path)
    try:
        unfound = []
        for bit in range(8 * layout.FIRST_LAYER, 8 * end):
            at = bit // 8
            os.pwrite(handle, bytes([content[at] ^ 1 << bit % 8]), at)
            os.utime(handle, ns=(status.st_atime_ns, status.st_mtime_ns))  # nobody wrote it: the disk did
            try:
                store.take([0, 69], "a", check=True)
                unfound.append(bit)
            except DamageError as error:
                assert error.damages in ([("a:avg", 0, 64)], [("a:avg", 64, 70)])
            os.pwrite(handle, content[at : at + 1], at)
        assert unfound == [] and end > layout.FIRST_LAYER + 100
    finally:
        os.close(handle)
    store = FeatureStore(store.path)
    assert np.array_equal(store.take(range(70), "a", check=True), rows)
