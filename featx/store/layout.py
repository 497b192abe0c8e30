"""The layout of the file, as FORMAT.md specifies it, for both writing and reading.

A seal (4,096 bytes of text), HDF5's superblock (at 4,096), the layers (from 8,192 on), the metadata, HDF5's objects.
All offsets follow from types and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import xxhash

from featx.errors import StoreError
from featx.manifest import is_padded
from featx.recipe import Recipe
from featx.store import hdf5
from featx.store.hdf5 import Array
from featx.store.hdf5_parse import most_bytes

FORMAT = "featx-store"
VERSIONS = (1, 2, 3)  # version 2: texts with offsets, or views; version 3: statistics of images, or imported rows
ATTRIBUTES: Mapping[str, bytes | int] = {"format": FORMAT.encode(), "version": 1}
OFFSETS = "@offsets"  # suffix of a dataset's name; no `member` contains an @
MOST_RECIPE_BYTES = 4 * 2**20
PAGE = 4096  # bytes; a layer's offset is a multiple of it, so that rows can be mapped
FIRST_LAYER = 2 * PAGE
METADATA_ALIGNMENT = 64
_BLOCK_BYTES = 2**20
GROUP_ROWS = 64  # the most rows of a block of checksums; every block's size divides it

Metadata = Mapping[str, "np.ndarray | Mapping[str, np.ndarray]"]


def aligned(offset: int, to: int) -> int:
    return -(-offset // to) * to


def block_rows(row_bytes: int) -> int:
    """Number of rows that share one checksum: the largest power of two up to 64 that fits into 1 MiB, at least 1."""
    rows = GROUP_ROWS
    while rows > 1 and rows * row_bytes > _BLOCK_BYTES:
        rows //= 2
    return rows


def checksum(rows: Any) -> int:
    """XXH3 (64 bits) of the bytes of some rows."""
    return xxhash.xxh3_64_intdigest(rows)


def place_layers(recipe: Recipe, n: int) -> dict[str, Array]:
    """The layers of n images, in the order of the recipe."""
    layers, at = {}, FIRST_LAYER
    dtype = np.dtype(recipe.dtype).newbyteorder("<").str
    for name, tap in recipe.taps.items():
        layers[name] = Array(dtype, (n, *tap["shape"]), at)
        at = aligned(at + layers[name].nbytes, PAGE)
    return layers


def end_of(layers: Mapping[str, Array]) -> int:
    """The offset of the metadata, behind the layers."""
    last = list(layers.values())[-1]
    if last.chunks is not None:
        return aligned(sum(last.chunks.extents[-1]), METADATA_ALIGNMENT)
    return aligned(last.offset + last.nbytes, PAGE)


@dataclass(frozen=True)
class Seal:
    """The content of the file's first page, which is written last.

    size : size of the whole file, in bytes
    version : version of the format
    metadata : offset of the metadata
    structure : offset of HDF5's objects
    identity : XXH3 (128 bits) of bytes 4,096 to 8,191 and `metadata` to `size`: of everything but the rows, and so of
        the rows' checksums
    """

    size: int
    metadata: int
    structure: int
    identity: str
    version: int = 1

    def to_bytes(self) -> bytes:
        lines = [f"{FORMAT} {self.version}", f"size {self.size}", f"metadata {self.metadata}"]
        lines += [f"structure {self.structure}", f"identity {self.identity}"]
        text = "".join(f"{line}\n" for line in lines).encode()
        return (text + b"seal " + xxhash.xxh3_64_hexdigest(text).encode() + b"\n").ljust(PAGE, b"\0")

    @classmethod
    def from_bytes(cls, page: bytes) -> Seal:
        """Parse a page; raises ValueError unless it is exactly a seal."""
        match = _SEAL.match(page)
        if match is None:
            raise ValueError("no seal")
        version, size, metadata, structure = map(int, match.groups()[:4])
        seal = cls(size, metadata, structure, match[5].decode(), version)
        if seal.to_bytes() != page or not FIRST_LAYER < seal.metadata < seal.structure < seal.size:
            raise ValueError("a damaged seal")
        return seal


_SEAL = re.compile(
    rb"featx-store ([123])\nsize (\d{1,18})\nmetadata (\d{1,18})\nstructure (\d{1,18})\nidentity ([0-9a-f]{32})\n"
)


def attributes(version: int) -> dict[str, bytes | int]:
    """The attributes of the root group."""
    return {**ATTRIBUTES, "version": version}


def version_for(tree: Mapping[str, Any], views: Sequence[str] | None, is_imported: bool) -> int:
    """The format version of a file with these datasets, whose recipe has these views or is that of imported rows."""
    if is_imported or "statistics" in tree:
        return 3
    groups = (node for node in tree.values() if isinstance(node, Mapping))
    return 2 if views is not None or any(name.endswith(OFFSETS) for group in groups for name in group) else 1


def version_of(page: bytes) -> int | None:
    """The format version that a file's first page claims, or None if the file is not a store."""
    match = re.match(rb"featx-store (\d{1,9})\n", page)
    return None if match is None else int(match[1])


def identity_of(superblock_page: Any, metadata: Any) -> str:
    digest = xxhash.xxh3_128(superblock_page)
    digest.update(metadata)
    return digest.hexdigest()


def assemble(
    layers: Mapping[str, Array], metadata: Metadata, views: Sequence[str] | None = None, is_imported: bool = False
) -> tuple[bytes, bytearray, Seal]:
    """The bytes of everything but the rows.

    Parameters
    ----------
    views, is_imported : of the recipe

    Returns
    -------
    superblock_page : bytes to write at 4,096
    rest : bytes to write at `seal.metadata`, to the end of the file
    seal : Seal
    """
    start = end_of(layers)
    rest = bytearray()

    def placed(values: np.ndarray) -> Array:
        values = np.ascontiguousarray(values)
        array = Array(values.dtype.str.replace("|", "<" if values.dtype.kind == "u" else ""), values.shape, 0)
        if values.size:
            array = Array(array.dtype, array.shape, start + len(rest))
            rest.extend(values.reshape(-1).view(np.uint8).data)
            rest.extend(bytes(-len(rest) % METADATA_ALIGNMENT))
        return array

    tree: dict[str, Any] = {"layers": {member(name): array for name, array in layers.items()}}
    for name, node in metadata.items():
        tree[name] = placed(node) if isinstance(node, np.ndarray) else {key: placed(node[key]) for key in node}
    structure = start + len(rest)
    version = version_for(tree, views, is_imported)
    superblock, objects = hdf5.emit(tree, attributes(version), PAGE, structure)
    if len(objects) > most_bytes(structure):
        raise StoreError(
            "the metadata is too large compared with the rows; a store needs larger rows, or fewer columns"
        )
    rest.extend(objects)
    page = superblock.ljust(PAGE, b"\0")
    return page, rest, Seal(start + len(rest), start, structure, identity_of(page, rest), version)


def check_places(layers: Mapping[str, Array], others: Sequence[Array], seal: Seal) -> None:
    """Raise hdf5.Malformed unless every array has the offset that `place_layers` or `assemble` gives it."""
    at = FIRST_LAYER
    for array in layers.values():
        if array.chunks is None:
            at = _after(array, at, PAGE)
            continue
        for offset, nbytes in array.chunks.extents:
            if offset != at or nbytes < 1:
                raise hdf5.Malformed("a chunk of a layer is out of place")
            at += nbytes
        at = aligned(at, PAGE)
    if end_of(layers) != seal.metadata:
        raise hdf5.Malformed("the metadata is out of place")
    at = seal.metadata
    for array in others:
        if array.chunks is not None:
            raise hdf5.Malformed("compressed metadata")
        at = _after(array, at, METADATA_ALIGNMENT) if array.nbytes else at
    if at != seal.structure:
        raise hdf5.Malformed("the structure is out of place")


def _after(array: Array, at: int, alignment: int) -> int:
    if array.offset != at:
        raise hdf5.Malformed("a dataset is out of place")
    return aligned(at + array.nbytes, alignment)


def gaps(arrays: Iterable[Array], alignment: int, end: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the padding behind each array, whose bytes are zero."""
    for array in arrays:
        stop = array.offset + array.nbytes if array.chunks is None else sum(array.chunks.extents[-1])
        if array.nbytes and stop != (after := min(aligned(stop, alignment), end)):
            yield stop, after


def strings(values: Sequence[str]) -> np.ndarray:
    """Fixed-length UTF-8, null-padded to the longest; variable-length types are never written."""
    encoded = [value.encode() for value in values]
    return np.array(encoded, dtype=f"S{max([1, *map(len, encoded)])}")


def texts(name: str, values: Sequence[str]) -> dict[str, np.ndarray]:
    """The datasets of some texts: one as `strings` makes it, or the concatenated bytes and their offsets."""
    encoded = [value.encode() for value in values]
    lengths = np.array([*map(len, encoded)], np.int64)
    if is_padded(len(encoded), int(lengths.max(initial=0))):
        return {name: strings(values)}
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype("<u8")  # (n + 1,)
    return {name: np.frombuffer(b"".join(encoded), np.uint8), name + OFFSETS: offsets}


def member(name: str) -> str:
    """Encode the name of a column or layer as one that HDF5 allows; `member_name` decodes it."""
    if name in (".", ".."):
        return name.replace(".", "%2E")
    return quote(name, safe=" :,-_()[]+=") or "%"


def member_name(member: str) -> str:
    return "" if member == "%" else unquote(member, errors="strict")
