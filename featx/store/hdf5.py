"""Writes the subset of HDF5 that a store uses; h5py and h5dump read it.

The same datasets always give the same bytes: those of `emit`.

Source: HDF5 File Format Specification, version 3.0: superblock 2 (II.A.2), object header 2 (IV.A.1.b), messages
(IV.A.2), fixed array index (VII.C).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
UNDEFINED = 2**64 - 1
SPACE, LINK_INFO, TYPE, _FILL, LINK, LAYOUT, _GROUP_INFO, FILTERS, ATTRIBUTE = 1, 2, 3, 5, 6, 8, 10, 11, 12
_FLOATS = {2: (15, 10, 5, 10, 15), 4: (31, 23, 8, 23, 127), 8: (63, 52, 11, 52, 1023)}  # sign, exponent, mantissa, bias
SUPERBLOCK_BYTES = 48


class Malformed(ValueError):
    """The bytes are not HDF5 objects as a store has them."""


@dataclass(frozen=True)
class Chunks:
    """The chunks of a compressed dataset.

    rows : per chunk
    filters : (identifier, name, parameters), in the order of compression
    extents : (offset in the file, bytes) of each chunk
    """

    rows: int
    filters: tuple[tuple[int, str, tuple[int, ...]], ...]
    extents: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Array:
    """A dataset: type ("<f4", "<i8", "S12" ...), shape, and the offset of its bytes in the file, or its chunks."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    chunks: Chunks | None = None

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


Tree = Mapping[str, "Array | Mapping[str, Array]"]  # the children of a root: datasets, and groups of datasets


def emit(tree: Tree, attributes: Mapping[str, bytes | int], base: int, start: int) -> tuple[bytes, bytes]:
    """Write the superblock and all objects.

    Parameters
    ----------
    tree : {name: Array, or {name: Array}}
    attributes : of the root group
    base : offset of the superblock in the file; HDF5's addresses count from there
    start : offset of the objects in the file

    Returns
    -------
    superblock : 48 bytes
    objects : the root's header is the last
    """
    objects = bytearray()

    def add(block: bytes) -> int:
        objects.extend(block)
        objects.extend(bytes(-len(objects) % 8))
        return start + len(objects) - len(block) - (-len(block) % 8) - base

    def dataset(array: Array) -> int:
        index = None if array.chunks is None else _add_index(array, base, add, start + len(objects) - base)
        return add(_header(_dataset_messages(array, base, index)))

    addresses: dict[str, int] = {}
    for name, node in tree.items():
        if isinstance(node, Array):
            addresses[name] = dataset(node)
        else:
            addresses[name] = add(_header(_group_messages({key: dataset(array) for key, array in node.items()})))
    messages = [*_group_messages(addresses), *(_attribute(name, value) for name, value in attributes.items())]
    root = add(_header(messages))
    head = _SIGNATURE + struct.pack("<4B4Q", 2, 8, 8, 0, base, UNDEFINED, start + len(objects), root)
    return head + struct.pack("<I", _lookup3(head)), bytes(objects)


def _message(kind: int, data: bytes) -> bytes:
    return struct.pack("<BHB", kind, len(data), 0) + data


def _header(messages: Sequence[bytes]) -> bytes:
    body = b"".join(messages)
    head = b"OHDR" + struct.pack("<BBI", 2, 2, len(body)) + body
    return head + struct.pack("<I", _lookup3(head))


def _group_messages(addresses: Mapping[str, int]) -> list[bytes]:
    links = [_message(LINK_INFO, struct.pack("<BBQQ", 0, 0, UNDEFINED, UNDEFINED)), _message(_GROUP_INFO, bytes(2))]
    for name, address in addresses.items():
        text = name.encode()  # hard link, UTF-8, two bytes of length
        links.append(_message(LINK, struct.pack("<BBBH", 1, 0x11, 1, len(text)) + text + struct.pack("<Q", address)))
    return links


def _dataset_messages(array: Array, base: int, index: int | None) -> list[bytes]:
    messages = [
        _message(SPACE, _space(array.shape)),
        _message(TYPE, _type(np.dtype(array.dtype))),
        _message(_FILL, bytes([3, 0x05])),  # allocated early, never filled
    ]
    if array.chunks is None:
        address = array.offset - base if array.nbytes else UNDEFINED
        return [*messages, _message(LAYOUT, struct.pack("<BBQQ", 3, 1, address, array.nbytes))]
    extent = (array.chunks.rows, *array.shape[1:], np.dtype(array.dtype).itemsize)
    width = (max(extent).bit_length() + 7) // 8
    sizes = b"".join(size.to_bytes(width, "little") for size in extent)
    layout = bytes([4, 2, 0, len(extent), width]) + sizes + struct.pack("<BBQ", 3, _page_bits(array), index)
    return [*messages, _message(LAYOUT, layout), _message(FILTERS, _filters(array.chunks))]


def _page_bits(array: Array) -> int:
    """The size of a page, so that one page holds the whole index."""
    assert array.chunks is not None
    return max(10, len(array.chunks.extents).bit_length())


def _add_index(array: Array, base: int, add: Callable[[bytes], int], address: int) -> int:
    """Add the fixed array of a chunked dataset, the offset and length of each chunk; returns its address."""
    assert array.chunks is not None
    width = size_width(array)
    entry_bytes = 8 + width + 4
    block_bytes = 4 + 1 + 1 + 8 + entry_bytes * len(array.chunks.extents) + 4
    block_at, header_at = address, address + block_bytes + -block_bytes % 8
    block = b"FADB" + struct.pack("<BBQ", 0, 1, header_at)
    block += b"".join(
        struct.pack("<Q", offset - base) + nbytes.to_bytes(width, "little") + bytes(4)
        for offset, nbytes in array.chunks.extents
    )
    add(block + struct.pack("<I", _lookup3(block)))
    header = b"FAHD" + struct.pack("<BBBB", 0, 1, entry_bytes, _page_bits(array))
    header += struct.pack("<QQ", len(array.chunks.extents), block_at)
    return add(header + struct.pack("<I", _lookup3(header)))


def size_width(array: Array) -> int:
    assert array.chunks is not None
    full = array.chunks.rows * array.row_bytes
    return min(8, 1 + (full.bit_length() - 1 + 8) // 8)


def _filters(chunks: Chunks) -> bytes:
    message = struct.pack("<BB", 2, len(chunks.filters))
    for identifier, name, parameters in chunks.filters:
        message += struct.pack("<H", identifier)
        text = name.encode() + b"\0" if identifier >= 256 else b""
        if identifier >= 256:
            message += struct.pack("<H", len(text))
        message += struct.pack("<HH", 0, len(parameters)) + text
        message += struct.pack(f"<{len(parameters)}I", *parameters)
    return message


def _space(shape: tuple[int, ...]) -> bytes:
    return struct.pack(f"<4B{len(shape)}Q", 2, len(shape), 0, 1 if shape else 0, *shape)


def _type(dtype: np.dtype) -> bytes:
    size = dtype.itemsize
    if dtype.kind == "S":
        return struct.pack("<BBBBI", 0x13, 0x11, 0, 0, size)  # UTF-8, null-padded
    if dtype.kind in "iu":
        return struct.pack("<BBBBIHH", 0x10, 0x08 if dtype.kind == "i" else 0, 0, 0, size, 0, 8 * size)
    sign, exponent_at, exponent, mantissa, bias = _FLOATS[size]
    parts = struct.pack("<HHBBBBI", 0, 8 * size, exponent_at, exponent, 0, mantissa, bias)
    return struct.pack("<BBBBI", 0x11, 0x20, sign, 0, size) + parts


def _attribute(name: str, value: bytes | int) -> bytes:
    dtype = np.dtype("<i8") if isinstance(value, int) else np.dtype(f"S{len(value)}")
    data = struct.pack("<q", value) if isinstance(value, int) else value
    text, kind, space = name.encode() + b"\0", _type(dtype), _space(())
    head = struct.pack("<BBHHHB", 3, 0, len(text), len(kind), len(space), 1)
    return _message(ATTRIBUTE, head + text + kind + space + data)


def _lookup3(data: bytes) -> int:
    """Bob Jenkins' lookup3 ("hashlittle", initial value 0): the checksum of HDF5's metadata."""
    mask = 0xFFFFFFFF
    length = len(data)
    a = b = c = (0xDEADBEEF + length) & mask
    words = struct.unpack(f"<{-(-length // 12) * 3}I", data + bytes(-length % 12))
    if not length:
        return c

    def rotated(x: int, k: int) -> int:
        return (x << k | x >> (32 - k)) & mask

    for i in range(0, len(words) - 3, 3):
        a, b, c = (a + words[i]) & mask, (b + words[i + 1]) & mask, (c + words[i + 2]) & mask
        a, c = (a - c) & mask ^ rotated(c, 4), (c + b) & mask
        b, a = (b - a) & mask ^ rotated(a, 6), (a + c) & mask
        c, b = (c - b) & mask ^ rotated(b, 8), (b + a) & mask
        a, c = (a - c) & mask ^ rotated(c, 16), (c + b) & mask
        b, a = (b - a) & mask ^ rotated(a, 19), (a + c) & mask
        c, b = (c - b) & mask ^ rotated(b, 4), (b + a) & mask
    a, b, c = (a + words[-3]) & mask, (b + words[-2]) & mask, (c + words[-1]) & mask
    c = ((c ^ b) - rotated(b, 14)) & mask
    a = ((a ^ c) - rotated(c, 11)) & mask
    b = ((b ^ a) - rotated(a, 25)) & mask
    c = ((c ^ b) - rotated(b, 16)) & mask
    a = ((a ^ c) - rotated(c, 4)) & mask
    b = ((b ^ a) - rotated(a, 14)) & mask
    return ((c ^ b) - rotated(b, 24)) & mask
