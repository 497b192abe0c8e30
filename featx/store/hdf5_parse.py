"""Reads the HDF5 objects of a store, and refuses everything that `hdf5.emit` would not have written.

The HDF5 library is not used, since its reader is not safe on crafted files. Soft and external links, external and
virtual storage, and other types, filters and attributes are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from featx.store import hdf5
from featx.store.hdf5 import Array, Chunks, Malformed

MOST_MEMBERS = 10_000  # of a group, so that parsing takes little time
# Objects may have this many bytes, or the file's other bytes divided by this number: an archive's index grows with it.
_FREE_BYTES, _SHARE = 8 * 2**20, 8


def most_bytes(start: int) -> int:
    """The maximum size of objects whose offset in the file is `start`."""
    return max(_FREE_BYTES, start // _SHARE)


def parse(
    superblock: bytes, objects: bytes, base: int, start: int, attributes: Mapping[str, bytes | int]
) -> dict[str, Array | dict[str, Array]]:
    """The tree from which `emit` wrote these bytes.

    Parameters
    ----------
    superblock : 48 bytes at `base`
    objects : the bytes from `start` to the end of the file
    attributes : those that the root group must have

    Raises
    ------
    Malformed
        `emit` would not have written these bytes.
    """
    if len(objects) > most_bytes(start):
        raise Malformed("too many objects")
    try:
        reader = _Reader(objects, start - base, base)
        tree, root_attributes = reader.root(struct.unpack_from("<Q", superblock, 36)[0])
        if root_attributes != attributes:
            raise Malformed("the root's attributes are not those of a store")
        for node in tree.values():
            for array in [node] if isinstance(node, Array) else node.values():
                if len(array.shape) > 32 or array.nbytes >= 2**62:
                    raise Malformed("a dataset of impossible size")
        if hdf5.emit(tree, attributes, base, start) != (superblock, objects):
            raise Malformed("objects that a store does not have")
    except (struct.error, IndexError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise Malformed(str(error)) from error
    return tree


class _Reader:
    """Reads only what is needed to call `emit` again; its result is then compared with the bytes."""

    def __init__(self, objects: bytes, start: int, base: int) -> None:
        self._objects, self._start, self._base = objects, start, base
        self._left = len(objects)  # bytes that may still be read: every byte belongs to one object

    def _messages(self, address: int) -> Iterator[tuple[int, bytes]]:
        at = address - self._start
        if at < 0 or self._objects[at : at + 6] != b"OHDR\x02\x02":
            raise Malformed("an object that a store does not have")
        (length,) = struct.unpack_from("<I", self._objects, at + 6)
        self._left -= 14 + length
        if self._left < 0:
            raise Malformed("objects that overlap")
        at, stop = at + 10, at + 10 + length
        while at < stop:
            kind, size, _ = struct.unpack_from("<BHB", self._objects, at)
            yield kind, self._objects[at + 4 : at + 4 + size]
            at += 4 + size

    def _group(self, address: int) -> tuple[dict[str, int], dict[str, bytes | int]]:
        links: dict[str, int] = {}
        attributes: dict[str, bytes | int] = {}
        for kind, data in self._messages(address):
            if kind == hdf5.LINK:
                (length,) = struct.unpack_from("<H", data, 3)
                links[data[5 : 5 + length].decode()] = struct.unpack_from("<Q", data, 5 + length)[0]
                if len(links) > MOST_MEMBERS:
                    raise Malformed("too many datasets")
            elif kind == hdf5.ATTRIBUTE:
                name, of_type, of_space = struct.unpack_from("<HHH", data, 2)
                value = data[9 + name + of_type + of_space :]
                is_text = data[9 + name : 10 + name] == b"\x13"
                attributes[data[9 : 8 + name].decode()] = value if is_text else struct.unpack("<q", value)[0]
        return links, attributes

    def root(self, address: int) -> tuple[dict[str, Array | dict[str, Array]], dict[str, bytes | int]]:
        links, attributes = self._group(address)
        tree: dict[str, Array | dict[str, Array]] = {}
        for name, child in links.items():
            if self._objects[child - self._start + 10 : child - self._start + 11] == bytes([hdf5.LINK_INFO]):
                tree[name] = {key: self._dataset(inner) for key, inner in self._group(child)[0].items()}
            else:
                tree[name] = self._dataset(child)
        return tree, attributes

    def _dataset(self, address: int) -> Array:
        messages = dict(self._messages(address))
        rank = messages[hdf5.SPACE][1]
        shape = struct.unpack_from(f"<{rank}Q", messages[hdf5.SPACE], 4)
        dtype, layout = self._dtype(messages[hdf5.TYPE]), messages[hdf5.LAYOUT]
        if layout[0] == 3:
            (at,) = struct.unpack_from("<Q", layout, 2)
            return Array(dtype, shape, 0 if at == hdf5.UNDEFINED else at + self._base)
        rows = int.from_bytes(layout[5 : 5 + layout[4]], "little")
        (index,) = struct.unpack_from("<Q", layout, 5 + layout[4] * layout[3] + 2)
        empty = Array(dtype, shape, 0, Chunks(rows, (), ()))
        if rows < 1:
            raise Malformed("chunks without rows")
        return Array(dtype, shape, 0, Chunks(rows, self._filters(messages[hdf5.FILTERS]), self._extents(index, empty)))

    @staticmethod
    def _dtype(data: bytes) -> str:
        kind, bits = data[0], data[1]
        (size,) = struct.unpack_from("<I", data, 4)
        if kind == 0x13 and size:
            return f"S{size}"
        if size not in (1, 2, 4, 8):
            raise Malformed("a type that a store does not have")
        return {0x11: "<f", 0x10: "<i" if bits & 8 else "<u"}[kind] + str(size)

    def _extents(self, address: int, array: Array) -> tuple[tuple[int, int], ...]:
        at = address - self._start
        if at < 0 or self._objects[at : at + 4] != b"FAHD":
            raise Malformed("an index that a store does not have")
        n, block = struct.unpack_from("<QQ", self._objects, at + 8)
        width = hdf5.size_width(array)
        self._left -= n * (12 + width)
        assert array.chunks is not None
        if self._left < 0 or block < self._start or n != -(-array.shape[0] // array.chunks.rows):
            raise Malformed("an index of the wrong length")
        content = self._objects[block - self._start + 14 : block - self._start + 14 + n * (12 + width)]
        return tuple(
            (
                struct.unpack_from("<Q", content, i)[0] + self._base,
                int.from_bytes(content[i + 8 : i + 8 + width], "little"),
            )
            for i in range(0, len(content), 12 + width)
        )

    @staticmethod
    def _filters(data: bytes) -> tuple[tuple[int, str, tuple[int, ...]], ...]:
        filters, at = [], 2
        for _ in range(data[1]):
            (identifier,) = struct.unpack_from("<H", data, at)
            named = identifier >= 256
            length = struct.unpack_from("<H", data, at + 2)[0] if named else 0
            at += 4 if named else 2
            (count,) = struct.unpack_from("<H", data, at + 2)
            name = data[at + 4 : at + 4 + max(0, length - 1)].decode()
            parameters = struct.unpack_from(f"<{count}I", data, at + 4 + length)
            filters.append((identifier, name, parameters))
            at += 4 + length + 4 * count
        return tuple(filters)
