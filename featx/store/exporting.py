"""Exports a store: one layer to .npy, layers to Parquet, or the whole store to an archive and back."""

from __future__ import annotations

import contextlib
import filecmp
import json
import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace as changed
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from featx.errors import LayerError, Parameter, StoreError, as_path
from featx.store import files, layout
from featx.store.compression import check_method, compress, filters_of
from featx.store.hdf5 import Chunks
from featx.store.reader import FeatureStore


def export(
    store: FeatureStore | str | os.PathLike,
    output: str | os.PathLike,
    layers: str | Sequence[str] | None = None,
    *,
    compression: str | None = None,
    replace: bool = False,
) -> Path:
    """Write a store's rows to another kind of file. Checksums are verified; the output appears when it is complete.

    An existing file with the same bytes is left as it is.

    Parameters
    ----------
    store : FeatureStore or path
    output : path
        The suffix determines the format. ".npy": one layer, (n, d) or (n, ...). ".parquet": key, id, label, the
        manifest's columns, and each layer as a column of fixed-size lists. ".h5": an archive, the whole store with
        compressed layers; FeatureStore reads the same values from it.
    layers : str or sequence of str, optional
        By default all; not allowed for archives.
    compression : "gzip", "zstd" or "none", optional
        For archives, by default "gzip". Bytes are shuffled first. "none" restores the archived store, byte for byte.
    replace : bool
        Replace an existing file.

    Returns
    -------
    Path
        The output.

    Raises
    ------
    LayerError
        The store has no such layer, or several were selected for .npy.
    StoreError
        The output exists, cannot be written or has another suffix, or a package is not installed.
    DamageError
        A row does not match its checksum.

    Examples
    --------
    >>> export("photos.h5", "penultimate.npy", ["penultimate"])    # doctest: +SKIP
    """
    output = as_path("output", output, StoreError)
    store = store if isinstance(store, FeatureStore) else FeatureStore(store)
    writers = {".npy": _write_npy, ".parquet": _write_parquet, ".h5": _write_store}
    if output.suffix not in writers:
        raise StoreError(f"the output's suffix must be one of {', '.join(writers)}; got {output.name!r}")
    if output.suffix != ".h5" and compression is not None:
        raise StoreError(f"compression is for archives (.h5); {output.name!r} is not one")
    if output.suffix == ".h5" and layers is not None:
        raise StoreError("an .h5 archive always contains every layer; leave out layers, or export to .npy or .parquet")
    names = _layer_names(store, layers)
    if output.suffix == ".npy" and len(names) != 1:
        raise LayerError(
            "a .npy file has one layer; choose it with ", Parameter("layers", ...), f": {', '.join(names)}"
        )
    may_be_same = output.is_file() and not replace and _may_be_same(output, store, names)  # a kill after the rename
    files.refuse_existing(output, replace or may_be_same)
    with contextlib.suppress(_Same), files.written_aside(output) as file:
        writers[output.suffix](file, output, store, names, compression or "gzip")
        file.flush()
        if may_be_same:
            if not filecmp.cmp(files.beside(output, ".writing"), output, shallow=False):
                files.refuse_existing(output, replace)
            raise _Same
    return output


def _layer_names(store: FeatureStore, layers: object) -> list[str]:
    """Full names of the layers, each once."""
    if layers is None:
        return list(store.layers)
    requested = [layers] if isinstance(layers, str) else layers
    if not isinstance(requested, Sequence) or not requested or not all(isinstance(name, str) for name in requested):
        raise LayerError(Parameter("layers"), f" is one or more names of {', '.join(store.layers)}; got {layers!r}")
    return list(dict.fromkeys(map(store.recipe.layer, requested)))


class _Same(Exception):
    """Raised when the output already has the same bytes."""


def _may_be_same(output: Path, store: FeatureStore, layers: list[str]) -> bool:
    """Whether an existing file is worth a comparison, byte by byte, with what would be written."""
    with contextlib.suppress(Exception):  # a reader may raise anything on a file of another kind
        if output.suffix == ".npy":
            rows = np.load(output, mmap_mode="r")
            return rows.dtype == store.recipe.dtype and rows.shape == (
                len(store),
                *store.recipe.taps[layers[0]]["shape"],
            )
        if output.suffix == ".h5":
            other = FeatureStore(output)
            return other.recipe == store.recipe and np.array_equal(other.digests, store.digests)
        from pyarrow import parquet

        return parquet.read_schema(output).metadata[b"featx.recipe"] == store.recipe.to_json().encode()
    return False


def _write_npy(file: BinaryIO, output: Path, store: FeatureStore, layers: list[str], _: str) -> None:
    (layer,) = layers
    shape = (len(store), *store.recipe.taps[layer]["shape"])
    dtype = np.dtype(store.recipe.dtype).newbyteorder("<")
    header: dict[str, Any] = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    files.reserve(file.fileno(), math.prod(shape) * dtype.itemsize, output)
    np.lib.format.write_array_header_1_0(file, header)
    for _start, rows in store.blocks(layer, check=True):
        file.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
    file.truncate()


def _write_parquet(file: BinaryIO, output: Path, store: FeatureStore, layers: list[str], _: str) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise StoreError("Parquet needs the package pyarrow: pip install 'featx[export]'") from error
    images: dict[str, np.ndarray] = {"key": store.X[:, 0], "id": store.ids}
    if (y := store.y) is not None:
        images["label"] = y
    for name, values in store.columns.items():
        images[f"column:{name}" if name in images or name in layers else name] = values
    metadata = {"featx.recipe": store.recipe.to_json()}
    numbers = pyarrow.from_numpy_dtype(np.dtype(store.recipe.dtype))
    shapes = {name: store.recipe.taps[name]["shape"] for name in layers}
    kinds = (pyarrow.string() if v.dtype.kind in "UO" else pyarrow.from_numpy_dtype(v.dtype) for v in images.values())
    fields = [pyarrow.field(name, kind) for name, kind in zip(images, kinds, strict=True)]
    for name, shape in shapes.items():
        kind = pyarrow.list_(numbers, math.prod(shape))
        fields.append(pyarrow.field(name, kind, metadata={"shape": json.dumps(shape)}))
    budget = 64 * 2**20 // len(layers)
    part = min(max(1, budget // store.row_bytes(name)) for name in layers)
    with pyarrow.parquet.ParquetWriter(file, pyarrow.schema(fields, metadata)) as writer:
        for start in range(0, len(store), part):
            rows = np.arange(start, min(start + part, len(store)))
            columns = [pyarrow.array(values[rows]) for values in images.values()]
            for name, shape in shapes.items():
                flat = pyarrow.array(store.take(rows, name, check=True).reshape(-1))
                columns.append(pyarrow.FixedSizeListArray.from_arrays(flat, math.prod(shape)))
            writer.write_batch(pyarrow.record_batch(columns, schema=writer.schema))


def _write_store(file: BinaryIO, output: Path, store: FeatureStore, layers: list[str], compression: str) -> None:
    handle, at = file.fileno(), layout.FIRST_LAYER
    placed = layout.place_layers(store.recipe, len(store))
    if compression == "none":
        files.reserve(handle, layout.end_of(placed), output)
    else:
        check_method(compression)
    checksums = {}
    for name, array in placed.items():
        sums, extents = [], []
        for piece in _pieces(store, name, compression):
            files.pwrite(handle, piece, at)
            sums.append(layout.checksum(piece))
            extents.append((at, len(piece)))
            at += len(piece)
        at = layout.aligned(at, layout.PAGE)
        checksums[layout.member(name)] = np.array(sums, "<u8")
        if compression != "none":
            filters = filters_of(array.dtype)[compression]
            chunks = Chunks(layout.block_rows(array.row_bytes), filters, tuple(extents))
            placed[name] = changed(array, offset=0, chunks=chunks)
    metadata = {**store._contents.datasets(), "checksums": checksums}
    page, rest, seal = layout.assemble(placed, metadata, store.recipe.views, store.recipe.is_imported)
    files.pwrite(handle, page, layout.PAGE)
    files.pwrite(handle, rest, seal.metadata)
    os.ftruncate(handle, seal.size)
    files.pwrite(handle, seal.to_bytes(), 0)


def _pieces(store: FeatureStore, layer: str, method: str) -> Iterator[bytes]:
    """The bytes of a layer's blocks in the file, in order. HDF5 pads the last compressed one with zeros."""
    row_bytes = store.row_bytes(layer)
    full = layout.block_rows(row_bytes) * row_bytes
    itemsize = np.dtype(store.recipe.dtype).itemsize
    blocks = (rows.tobytes() for _, rows in store.blocks(layer, budget_bytes=full, check=True))
    if method == "none":
        yield from blocks
        return

    def piece(content: bytes) -> bytes:
        return compress(content.ljust(full, b"\0"), itemsize, method)

    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[bytes]] = deque()
        for content in blocks:
            pending.append(pool.submit(piece, content))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        yield from (future.result() for future in pending)
