"""Writes a store of rows that were computed elsewhere: arrays with one row for each id.

The arrays are read twice, in parts: for the rows' digests, which identify them, and to write them.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import featx
from featx.errors import Parameter, StoreError, as_path, count, listed
from featx.grammar import IMPORTED, UNNAMED
from featx.manifest import as_labels, is_missing, text_array
from featx.recipe import Recipe
from featx.store.files import refuse_existing, refuse_unwritable_store
from featx.store.journal import discard, discard_quietly, unfinished
from featx.store.layout import GROUP_ROWS
from featx.store.writer import StoreWriter

_DTYPES = ("float32", "float16")
_PART_BYTES = 64 * 2**20  # of all layers as float64
_MOST_NAME, _MOST_LAYER_NAME = 200, 1000  # characters


def import_arrays(
    output: str | os.PathLike,
    layers: Mapping[str, Any],
    *,
    ids: Sequence[object] | np.ndarray | None = None,
    y: Sequence[object] | np.ndarray | None = None,
    columns: Mapping[str, Sequence[object] | np.ndarray] | None = None,
    target: str = "class",
    name: str | None = None,
    dtype: str = "float32",
    replace: bool = False,
) -> dict[str, float]:
    """Write a store of arrays; parameters and errors as in `FeatureStore.from_arrays`.

    Returns
    -------
    {layer: largest relative L2 error of a row} of the arrays whose numbers were rounded to `dtype`
    """
    output = as_path("path", output, StoreError)
    refuse_unwritable_store(output)
    refuse_existing(output, replace)
    if dtype not in _DTYPES:
        raise StoreError(f"rows are stored as {' or '.join(_DTYPES)}; got dtype {dtype!r}")
    backbone = UNNAMED if name is None else f"{IMPORTED}{name}"
    if name is not None and (not _is_line(name, _MOST_NAME) or backbone == UNNAMED):
        raise StoreError(
            Parameter("name"),
            f" says what made the rows, 'all-MiniLM-L6-v2' for example, in one line of at most {_MOST_NAME} "
            f"characters; got {str(name)[:100]!r}",
        )
    arrays = _checked_layers(layers)
    n = len(next(iter(arrays.values())))
    names = _checked_ids(ids, n)
    if y is not None:
        _refuse_other_length("labels", y, n)
        y = as_labels(y, target, names)
    columns = {} if columns is None else columns
    if not hasattr(columns, "items"):
        raise StoreError(f"columns are named lists, {{'speaker': [...]}} for example; got {type(columns).__name__}")
    texts = {str(key): _checked_column(str(key), values, n) for key, values in columns.items()}
    _discard_unfinished_import(output)
    digests, rounding = _examined(arrays, n, dtype)
    recipe = Recipe.imported(
        backbone,
        hashlib.sha256(digests.tobytes() if name is None else backbone.encode()).hexdigest(),
        {layer: array.shape[1] for layer, array in arrays.items()},
        dtype,
        {"featx": featx.__version__},
    )
    with StoreWriter(output, recipe, names, y, texts) as writer:
        try:
            for start, part in _parts(arrays, n):
                indices = np.arange(start, start + len(next(iter(part.values()))))
                rows = {f"{layer}:none": _stored(values, dtype) for layer, values in part.items()}
                writer.write(indices, rows, digests[indices])
            writer.finish()
        except BaseException:
            discard_quietly(output)
            raise
    return rounding


def _checked_layers(layers: object) -> dict[str, Any]:
    """{name: array of n rows}, what is no array converted to one."""
    if not isinstance(layers, Mapping) or not layers:
        raise StoreError(f"layers are named arrays, {{'minilm': X}} for example; got {type(layers).__name__}")
    arrays: dict[str, Any] = {}
    for key, values in layers.items():
        layer = str(key).removesuffix(":none")
        if not _is_line(layer, _MOST_LAYER_NAME):
            raise StoreError(
                f"a layer's name is one line of at most {_MOST_LAYER_NAME:,} characters; got {layer[:100]!r}"
            )
        if layer in arrays:
            raise StoreError(f"every layer needs a name of its own; {layer!r} is there twice")
        arrays[layer] = _checked_array(f"layer {layer!r}", values)
    lengths = {layer: len(array) for layer, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        text = ", ".join(f"{layer!r} has {length:,}" for layer, length in lengths.items())
        raise StoreError(f"all layers have one row for each id; {text}")
    return arrays


def _is_line(text: object, most: int) -> bool:
    return isinstance(text, str) and 0 < len(text) <= most and text.isprintable()


def _checked_array(layer: str, values: Any) -> Any:
    """An array, or what can be read in parts like one."""
    if isinstance(values, np.ma.MaskedArray) or hasattr(values, "toarray"):
        raise StoreError(f"{layer} is a {type(values).__name__}; pass a plain array: X.filled(nan), or X.toarray()")
    if not isinstance(getattr(values, "dtype", None), np.dtype):
        try:
            values = np.asarray(values)
        except (ValueError, TypeError, RuntimeError) as error:
            raise StoreError(f"{layer} is no (n, d) array of numbers: {' '.join(str(error).split())}") from error
    if values.dtype.kind not in "fiub":
        raise StoreError(f"{layer} has type {values.dtype}; features are floats, integers or booleans")
    if len(values.shape) != 2:
        how = "X[:, None]" if len(values.shape) == 1 else "X.reshape(len(X), -1)"
        needed = "" if not values.shape else f": {how}"
        raise StoreError(f"{layer} has shape {values.shape}; features are (n, d), a row for each id{needed}")
    if 0 in values.shape:
        raise StoreError(f"{layer} has {values.shape[0]:,} rows and {values.shape[1]:,} columns; it needs one or more")
    return values


def _checked_ids(ids: Any, n: int) -> list[str]:
    if ids is None:
        return [str(row) for row in range(n)]
    _refuse_other_length("ids", ids, n)
    names = [str(name) for name in ids]
    if empty := [row for row, name in enumerate(ids) if is_missing(name) or not names[row]]:
        raise StoreError(f"every row needs an id; there is none in row {empty[0]:,}, counted from 0")
    if repeated := [name for name, times in Counter(names).items() if times > 1]:
        raise StoreError(f"every id needs one row; these have several: {listed(repeated)}")
    return names


def _checked_column(name: str, values: Any, n: int) -> np.ndarray:
    _refuse_other_length(f"values of column {name!r}", values, n)
    return text_array(["" if is_missing(value) else str(value) for value in values])


def _refuse_other_length(what: str, values: Any, n: int) -> None:
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise StoreError(f"{what} are a list, one for each row; got {type(values).__name__}")
    if len(values) != n:
        raise StoreError(f"there are {count(n, 'row')} and {len(values):,} {what}; each row needs one")


def _discard_unfinished_import(output: Any) -> None:
    """Make room; an unfinished extraction, which may have taken hours, is refused."""
    begun = unfinished(output)
    if begun is not None and not begun.recipe.is_imported:
        raise StoreError(f"an extraction for {output} is unfinished; finish it, or choose another output")
    discard(output)


def _examined(arrays: Mapping[str, Any], n: int, dtype: str) -> tuple[np.ndarray, dict[str, float]]:
    """(n, 16) digests of the rows as they are stored, and the largest error of rounding, by layer."""
    digests = np.empty((n, 16), np.uint8)
    rounding = {layer: 0.0 for layer, array in arrays.items() if not np.can_cast(array.dtype, dtype, "safe")}
    for start, part in _parts(arrays, n):
        stored = {layer: _stored(values, dtype) for layer, values in part.items()}
        for layer in rounding:
            rounding[layer] = max(rounding[layer], _error(part[layer], stored[layer]))
        for i, rows in enumerate(zip(*stored.values(), strict=True)):
            digest = hashlib.blake2b(digest_size=16)
            for row in rows:
                digest.update(row)
            digests[start + i] = np.frombuffer(digest.digest(), np.uint8)
    return digests, rounding


def _parts(arrays: Mapping[str, Any], n: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """(first row, rows of every layer) of consecutive parts."""
    row_bytes = 8 * sum(array.shape[1] for array in arrays.values())
    size = max(GROUP_ROWS, _PART_BYTES // row_bytes // GROUP_ROWS * GROUP_ROWS)
    for start in range(0, n, size):
        yield start, {layer: np.asarray(array[start : start + size]) for layer, array in arrays.items()}


def _stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Rows as they are stored; numbers that are too large become inf."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, np.dtype(dtype).newbyteorder("<"))


def _error(values: np.ndarray, stored: np.ndarray) -> float:
    """The largest relative L2 error of a row; rows with NaN or inf do not count."""
    exact = values.astype(np.float64)
    finite = np.isfinite(stored).all(axis=1)
    norms = np.linalg.norm(exact[finite], axis=1)
    errors = np.linalg.norm(exact[finite] - stored[finite], axis=1)
    return float((errors[norms > 0] / norms[norms > 0]).max(initial=0.0))
