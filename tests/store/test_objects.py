"""HDF5's objects are written and read without its library: h5py and `parse` read what `emit` writes."""

from __future__ import annotations

import dataclasses
import io
import math
import struct
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featx.store import hdf5
from featx.store.compression import compress, filters_of
from featx.store.hdf5 import Array, Chunks, emit
from featx.store.hdf5_parse import parse

SUPERBLOCK = hdf5.SUPERBLOCK_BYTES
often = settings(
    max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)

# h5py cannot name what has a surrogate, HDF5 what has a slash, a null byte, or is a dot
names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=30)
names = names.filter(lambda name: name != ".")
kinds = st.sampled_from([f"<{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)] + ["<f2", "<f4", "<f8"])
kinds = kinds | st.integers(1, 300).map("S{}".format)
shapes = st.lists(st.integers(0, 5), max_size=5).map(tuple)
arrays = st.builds(Array, kinds, shapes, st.just(0))
pieces = st.builds(
    lambda dtype, shape, rows, method: Array(dtype, shape, 0, Chunks(rows, filters_of(dtype)[method], ())),
    st.sampled_from(["<f2", "<f4", "<f8", "<i8", "<u1"]),
    st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple),
    st.integers(1, 4),
    st.just("gzip"),
)
nodes = arrays | pieces | st.dictionaries(names, arrays | pieces, max_size=5)
trees = st.dictionaries(names, nodes, max_size=5)
attributes = st.dictionaries(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20),
    st.integers(-(2**63), 2**63 - 1) | st.binary(min_size=1, max_size=50),
    max_size=4,
)


def laid_out(tree: dict[str, Any], base: int, seed: int) -> tuple[bytearray, dict[str, Any], dict[str, np.ndarray]]:
    """A file of random values for all datasets of a tree, without objects; the tree with its places; the values."""
    rng = np.random.default_rng(seed)
    content, values = bytearray(base + 64), {}

    def placed(name: str, array: Array) -> Array:
        dtype = np.dtype(array.dtype)
        values[name] = np.frombuffer(rng.bytes(array.nbytes), dtype).reshape(array.shape)
        if array.chunks is None:
            at = len(content)
            content.extend(values[name].tobytes() + bytes(-array.nbytes % 8))
            return dataclasses.replace(array, offset=at if array.nbytes else 0)
        extents = []
        for start in range(0, array.shape[0], array.chunks.rows):
            rows = values[name][start : start + array.chunks.rows].tobytes()
            piece = compress(rows.ljust(array.chunks.rows * array.row_bytes, b"\0"), dtype.itemsize, "gzip")
            extents.append((len(content), len(piece)))
            content.extend(piece)
        return dataclasses.replace(array, chunks=dataclasses.replace(array.chunks, extents=tuple(extents)))

    found: dict[str, Any] = {}
    for name, node in tree.items():
        if isinstance(node, Array):
            found[name] = placed(name, node)
        else:
            found[name] = {key: placed(f"{name}/{key}", array) for key, array in node.items()}
    content.extend(bytes(-len(content) % 64))
    return content, found, values


@often
@given(trees, attributes, st.sampled_from([0, 512, 4096]), st.integers(0, 2**32))
def test_h5py_and_parse_read_what_emit_wrote(tree, attributes, base, seed):
    content, tree, values = laid_out(tree, base, seed)
    start = len(content)
    superblock, objects = emit(tree, attributes, base, start)
    assert emit(tree, attributes, base, start) == (superblock, objects) and len(superblock) == SUPERBLOCK
    content[base : base + SUPERBLOCK] = superblock
    content += objects
    again = parse(superblock, objects, base, start, attributes)
    assert again == tree and [*again] == [*tree]
    assert all([*again[name]] == [*node] for name, node in tree.items() if isinstance(node, dict))

    with h5py.File(io.BytesIO(bytes(content))) as file:
        assert {*file} == {*tree} and {*file.attrs} == {*attributes}
        for name, value in attributes.items():
            found = file.attrs[name]
            assert found == value if isinstance(value, int) else found.tobytes().rstrip(b"\0") == value.rstrip(b"\0")
        for name, node in tree.items():
            if isinstance(node, Array):
                check(file[name.encode()], node, values[name])
            else:
                group = file[name.encode()]
                assert isinstance(group, h5py.Group) and {*group} == {*node}
                for key, array in node.items():
                    check(group[key.encode()], array, values[f"{name}/{key}"])


def check(dataset: h5py.Dataset, array: Array, values: np.ndarray) -> None:
    assert dataset.shape == array.shape and dataset.dtype == np.dtype(array.dtype)
    found = dataset[()]
    assert np.asarray(found, array.dtype).tobytes() == values.tobytes()
    if array.chunks is not None:
        assert dataset.chunks == (array.chunks.rows, *array.shape[1:])
        infos = [dataset.id.get_chunk_info(i) for i in range(dataset.id.get_num_chunks())]
        assert [(info.byte_offset, info.size) for info in infos] == [*array.chunks.extents]
    elif array.nbytes:
        assert dataset.id.get_offset() == array.offset


@pytest.mark.parametrize("count", [0, 1, 100, 3000])
def test_groups_of_any_length_are_read(count):
    tree = {"many": {f"{i} {'x' * (i % 200)}": Array("<f4", (1,), 64 + 4 * i) for i in range(count)}}
    content = bytearray(64) + np.arange(count + 16 - count % 16).astype("<f4").tobytes()
    superblock, objects = emit(tree, {}, 0, len(content))
    assert parse(superblock, objects, 0, len(content), {}) == tree
    content[:SUPERBLOCK] = superblock
    with h5py.File(io.BytesIO(bytes(content + objects))) as file:
        assert len(file["many"]) == count
        assert [file["many"][name][0] for name in tree["many"]] == [*range(count)]


@pytest.mark.parametrize(
    "data, expected",
    [  # the vectors of lookup3.c, and one that HDF5 computed
        (b"", 0xDEADBEEF),
        (b"Four score and seven years ago", 0x17770551),
    ],
)
def test_lookup3_gives_its_authors_vectors(data, expected):
    assert hdf5._lookup3(data) == expected


def test_lookup3_is_the_checksum_that_hdf5_itself_writes():
    checked = set()
    for extra in range(24):  # blocks of every length, so that every tail of the hash is met
        file_bytes = io.BytesIO()
        with h5py.File(file_bytes, "w", libver="latest", userblock_size=512) as file:
            file.attrs["a"] = np.bytes_(b"x" * (60 + extra))  # does not fit into the root's header
        content = file_bytes.getvalue()
        superblock = content[512 : 512 + SUPERBLOCK]
        assert struct.unpack("<I", superblock[44:]) == (hdf5._lookup3(superblock[:44]),)
        start = 512 + struct.unpack_from("<Q", superblock, 36)[0]
        assert content[start : start + 5] == b"OHDR\x02"
        flags = content[start + 5]
        at = start + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        at, stop = at + width, at + width + int.from_bytes(content[at : at + width], "little")
        blocks = [content[start : stop + 4]]
        while at + 4 < stop:  # messages; one of kind 16 says where the header goes on
            kind, size = struct.unpack_from("<BH", content, at)
            at += 6 if flags & 4 else 4
            if kind == 16:
                offset, length = struct.unpack_from("<QQ", content, at)
                blocks.append(content[512 + offset : 512 + offset + length])
            at += size
        for block in blocks:
            assert block[:4] in (b"OHDR", b"OCHK")
            assert struct.unpack("<I", block[-4:]) == (hdf5._lookup3(block[:-4]),)
            checked.add(len(block) % 12)
    assert len(checked) == 12


def test_the_size_of_an_array():
    for dtype, shape in (("<f4", (3, 5)), ("S7", (2,)), ("<i8", ()), ("<f2", (0, 4))):
        assert (
            Array(dtype, shape, 0).nbytes
            == math.prod(shape) * np.dtype(dtype).itemsize
            == np.empty(shape, dtype).nbytes
        )
