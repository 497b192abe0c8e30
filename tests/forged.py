"""Stores as an attacker writes them: any datasets and any bytes, with the identity and the seal that go with them."""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import assert_tells, recipe

from featx import manifest
from featx.errors import ImageError, StoreError
from featx.store import FeatureStore, StoreWriter, export, hdf5, layout
from featx.store.hdf5_parse import parse

# a function of bytes, and in Python slow: tests ask for the checksums of the same objects again and again
hdf5._lookup3 = lru_cache(maxsize=256)(hdf5._lookup3)


def small_store(path: Path, n: int = 70, labels: str = "classes") -> Path:
    """A store with something in each of its parts: two layers, labels, a column, a failure, a row with NaN."""
    rng = np.random.default_rng(1)
    rows = {"a:avg": rng.normal(size=(n, 3)).astype(np.float32), "b:none": rng.normal(size=(n, 2, 2)).astype("<f4")}
    rows["b:none"][9, 1, 1] = np.nan
    y = {"classes": np.array(["ant", "bee", "čmelák"])[np.arange(n) % 3], "values": rng.normal(size=n), "none": None}
    ids, columns = [f"ä {i}" for i in range(n)], {"site/1": np.array([f"s{i % 4}" for i in range(n)])}
    taps = {name: values.shape[1:] for name, values in rows.items()}
    with StoreWriter(path, recipe(taps, aliases={"last": "a:avg"}), ids, y[labels], columns) as writer:
        good = np.delete(np.arange(n), 5)
        digests = rng.integers(0, 256, (len(good), 16), np.uint8)
        writer.fail({5: ImageError("damaged", "its end is missing")})
        writer.write(good, {name: values[good] for name, values in rows.items()}, digests)
        writer.finish()
    return path


@contextlib.contextmanager
def no_text_is_padded() -> Iterator[None]:
    """As if all texts were long."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(manifest, "_SHORT", 0)
        patched.setattr(manifest, "_LITTLE", 0)
        yield


@cache
def good_store(n: int = 70, labels: str = "classes", compression: str | None = None, padded: bool = True) -> bytes:
    """The bytes of a small store, or of an archive of it."""
    with tempfile.TemporaryDirectory() as folder, contextlib.nullcontext() if padded else no_text_is_padded():
        path = small_store(Path(folder, "good.h5"), n, labels)
        return (export(path, Path(folder, "b.h5"), compression=compression) if compression else path).read_bytes()


def seal_of(content: bytes | bytearray) -> layout.Seal:
    return layout.Seal.from_bytes(bytes(content[: layout.PAGE]))


def sealed(content: bytes | bytearray, metadata: int, structure: int, version: int = 1) -> bytes:
    """The same bytes behind a seal that is right for them."""
    view = memoryview(content)
    identity = layout.identity_of(view[layout.PAGE : layout.FIRST_LAYER], view[metadata:])
    return layout.Seal(len(content), metadata, structure, identity, version).to_bytes() + view[layout.PAGE :]


@lru_cache(maxsize=8)
def _parsed(content: bytes) -> dict[str, Any]:
    seal = seal_of(content)
    superblock = content[layout.PAGE : layout.PAGE + hdf5.SUPERBLOCK_BYTES]
    attributes = layout.attributes(seal.version)
    return parse(superblock, content[seal.structure :], layout.PAGE, seal.structure, attributes)


def tree_of(content: bytes) -> dict[str, Any]:
    """The datasets of a good store and their places, to be changed."""
    return {name: dict(node) if isinstance(node, dict) else node for name, node in _parsed(content).items()}


class Wrapping(hdf5.Array):
    """A dataset whose size wraps around, as it does in programs that count in 64 bits."""

    @property
    def nbytes(self) -> int:
        return super().nbytes % 2**64


def _wrapping(node: Any) -> Any:
    if isinstance(node, hdf5.Array):
        return Wrapping(node.dtype, node.shape, node.offset, node.chunks)
    return {key: _wrapping(inner) for key, inner in node.items()}


def with_tree(
    content: bytes, tree: Mapping[str, Any], attributes: Mapping[str, Any] | None = None, version: int = 0
) -> bytes:
    """The same rows and metadata under objects that place them as an attacker likes."""
    seal = seal_of(content)
    version = version or seal.version
    attributes = layout.attributes(version) if attributes is None else attributes
    superblock, objects = hdf5.emit(_wrapping(tree), attributes, layout.PAGE, seal.structure)
    page = superblock.ljust(layout.PAGE, b"\0")
    middle = content[layout.FIRST_LAYER : seal.structure]
    return sealed(bytes(layout.PAGE) + page + middle + objects, seal.metadata, seal.structure, version)


def values_of(content: bytes) -> dict[str, Any]:
    """All metadata of a good store as arrays, to be changed."""

    def values(array: hdf5.Array) -> np.ndarray:
        return np.ndarray(array.shape, array.dtype, content, array.offset if array.nbytes else 0).copy()

    return {
        name: values(node) if isinstance(node, hdf5.Array) else {key: values(array) for key, array in node.items()}
        for name, node in tree_of(content).items()
        if name != "layers"
    }


def with_values(
    content: bytes,
    metadata: Mapping[str, Any],
    layers: Mapping[str, hdf5.Array] | None = None,
    views: Sequence[str] | None = None,
    is_imported: bool = False,
) -> bytes:
    """The same rows with other metadata, every dataset of it in its right place."""
    seal = seal_of(content)
    if layers is None:
        layers = {layout.member_name(name): array for name, array in tree_of(content)["layers"].items()}
    page, rest, new = layout.assemble(layers, metadata, views, is_imported)
    rows = content[layout.FIRST_LAYER : seal.metadata]
    return new.to_bytes() + page + rows[: new.metadata - layout.FIRST_LAYER] + rest


def pieces_of(content: bytes) -> dict[str, list[bytes]]:
    """The compressed pieces of an archive, {layer as HDF5 names it: pieces}."""
    layers = tree_of(content)["layers"]
    return {name: [content[at : at + nbytes] for at, nbytes in layers[name].chunks.extents] for name in layers}


def with_pieces(content: bytes, pieces: Mapping[str, list[bytes]], metadata: Mapping[str, Any] | None = None) -> bytes:
    """An archive of these pieces, their right checksums with them."""
    rows, layers = bytearray(), {}
    for name, array in tree_of(content)["layers"].items():
        extents = []
        for piece in pieces[name]:
            extents.append((layout.FIRST_LAYER + len(rows), len(piece)))
            rows += piece
        layers[name] = replace(array, chunks=replace(array.chunks, extents=tuple(extents)))
        last = len(rows)
        rows += bytes(-len(rows) % layout.PAGE)
    rows = rows[: layout.aligned(last, 64)]  # the last layer is not filled up to a page
    values = values_of(content) if metadata is None else dict(metadata)
    values["checksums"] = {name: np.array([*map(layout.checksum, pieces[name])], "<u8") for name in layers}
    page, rest, seal = layout.assemble(layers, values)
    return seal.to_bytes() + page + rows + rest


def changed_tree(content: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    tree = tree_of(content)
    change(tree)
    return with_tree(content, tree)


def changed_values(content: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    values = values_of(content)
    change(values)
    return with_values(content, values)


def header_spans(content: bytes | bytearray, structure: int) -> list[tuple[int, int]]:
    """(start, stop) of all headers of a good store's objects; the last four bytes of each are its checksum."""
    found, at = [], structure
    while at < len(content):
        (length,) = struct.unpack_from("<I", content, at + 6)
        found.append((at, at + 14 + length))
        at = layout.aligned(at + 14 + length, 8)
    return found


def refused(path: Path | str, *words: str, measured: bool = True) -> None:
    """Opening raises a StoreError of one line, which names the file once, and takes little memory.

    Measuring memory takes twenty times as long as opening: not where there are hundreds of files of a kind.
    """
    if measured:
        tracemalloc.start()
    try:
        with pytest.raises(StoreError) as caught:
            FeatureStore(path)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert_tells(caught.value, *words)
    assert str(caught.value).count(Path(path).name) <= 1, str(caught.value)
    assert most < 2**21 + (10 * os.path.getsize(path) if os.path.isfile(path) else 0)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
