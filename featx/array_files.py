"""Opens files of arrays for `featx import`: .npy, .npz, Parquet, and datasets of HDF5 files.

Arrays of .npy files and HDF5 datasets stay on the disk; the others are read into memory. No file can run code: NumPy
reads without pickle.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from featx.errors import SourceError, listed, nearest
from featx.manifest import column

_DATASET = re.compile(r"(.+?\.(?:h5|hdf5)):(.+)")
_KINDS = "arrays are read from .npy, .npz and .parquet files, and from datasets of HDF5 files, FILE.h5:PATH"


class ArrayFile(NamedTuple):
    """The content of one file.

    layers : {name: array of n rows}
    table : {name: n texts} of the columns of a Parquet file that are no features
    """

    layers: Mapping[str, Any]
    table: Mapping[str, list[str]]


def open_arrays(sources: Sequence[str], label_column: str | None = None) -> ArrayFile:
    """The arrays of several files, and the table of the first one that has ids.

    Parameters
    ----------
    sources : "FILE", or "NAME=FILE" to name the layer of a file with a single array
    label_column : a column of Parquet files that is no feature

    Raises
    ------
    SourceError
        A file is missing, is of another kind or damaged, holds Python objects, or has no numbers; a name is there
        twice; or a package is not installed.
    """
    layers: dict[str, Any] = {}
    table: Mapping[str, list[str]] = {}
    for source in sources:
        name, location = _named(source)
        opened = _opened(location, label_column)
        found = dict(opened.layers)
        if name and len(found) > 1:
            raise SourceError(f"{location} has several arrays, {listed(found, 20)}, each a layer; leave out {name}=")
        if name:
            found = dict(zip([name], found.values(), strict=True))
        if repeated := sorted(found.keys() & layers.keys()):
            raise SourceError(f"layer {repeated[0]!r} is there twice; name one of them: NAME={location}")
        layers |= found
        table = table or (opened.table if "id" in opened.table else {})
    return ArrayFile(layers, table)


def described(table: Mapping[str, list[str]], source: object, label_column: str | None) -> dict[str, Any]:
    """Ids, labels and columns of a table's rows, as `FeatureStore.from_arrays` takes them.

    Parameters
    ----------
    source : name of the table, for messages
    label_column : by default "label", if there is one
    """
    columns = dict(table)
    if not {"id", "path"} & columns.keys():
        raise SourceError(f"{source} has no column 'id'; it has {', '.join(columns)}: rename the column of ids")
    id_column = "id" if "id" in columns else "path"
    label_column = label_column or ("label" if "label" in columns else None)
    y = None if label_column is None else column(columns, label_column, str(source), "labels")
    others = {name: values for name, values in columns.items() if name not in (id_column, label_column)}
    return {"ids": columns[id_column], "y": y, "columns": others}


def _named(source: str) -> tuple[str, str]:
    """("NAME", "FILE") of "NAME=FILE", and ("", "FILE") of "FILE"."""
    name, _, location = source.partition("=")
    return ("", source) if not location or Path(source).exists() else (name, location)


def _opened(location: str, label_column: str | None) -> ArrayFile:
    match = _DATASET.fullmatch(location)
    path = Path(match[1] if match else location)
    if not path.is_file():
        siblings = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise SourceError(f"there is no file {path}{nearest(path.name, siblings)}")
    suffix = path.suffix.lower()
    if suffix in (".h5", ".hdf5"):
        return _dataset(path, match[2] if match else "")
    if suffix == ".parquet":
        return _parquet(path, label_column)
    readers = {".npy": _npy, ".npz": _npz}
    if suffix not in readers:
        raise SourceError(f"{_KINDS}; got {path}")
    return readers[suffix](path)


def _npy(path: Path) -> ArrayFile:
    try:
        return ArrayFile({path.stem: np.lib.format.open_memmap(path, mode="r")}, {})
    except Exception as error:  # NumPy raises many types on damaged headers
        raise _unreadable(path, "a .npy file", error) from error


def _npz(path: Path) -> ArrayFile:
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("it is no archive of arrays")
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # as above
        raise _unreadable(path, "a .npz file", error) from error
    if not arrays:
        raise SourceError(f"{path} holds no arrays")
    return ArrayFile(arrays, {})


def _unreadable(path: Path, kind: str, error: Exception) -> SourceError:
    if isinstance(error, MemoryError):
        return SourceError(f"{path} does not fit into memory; save its arrays as .npy files, which are read in parts")
    if "pickle" in str(error).lower() or "Python objects" in str(error):
        return SourceError(f"{path} holds Python objects, which can run code when they are read; save numbers instead")
    return SourceError(f"{path} cannot be read as {kind}: {' '.join(str(error).split())}")


def _dataset(path: Path, name: str) -> ArrayFile:
    try:
        import h5py
    except ImportError as error:
        raise SourceError("datasets of HDF5 files need the package h5py: pip install 'featx[import]'") from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise SourceError(f"{path} cannot be read as an HDF5 file: {' '.join(str(error).split())}") from error
    names: list[str] = []
    file.visititems(lambda key, node: names.append(key) if isinstance(node, h5py.Dataset) else None)
    dataset = file.get(name) if name else None
    if not isinstance(dataset, h5py.Dataset):
        raise SourceError(f"name a dataset, {path}:PATH{nearest(name, names)}; there are {listed(names, 20)}")
    if dataset.is_virtual or dataset.external or not Path(dataset.file.filename).samefile(path):
        raise SourceError(f"{path}:{name} takes its numbers from another file; name that file")
    return ArrayFile({name.rpartition("/")[2]: dataset}, {})


def _parquet(path: Path, label_column: str | None) -> ArrayFile:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise SourceError("Parquet needs the package pyarrow: pip install 'featx[parquet]'") from error
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise SourceError(f"{path} cannot be read as a Parquet file: {' '.join(str(error).split())}") from error
    kinds = {field.name: field.type for field in table.schema}
    is_list = {name: _is_list_of_numbers(kind) for name, kind in kinds.items()}
    described = {"id", "label", "key", label_column, *(name for name in kinds if name.startswith("__index_level_"))}
    if any(is_list.values()):
        features = [name for name in kinds if is_list[name]]
        layers = {name: _matrix(path, name, table[name]) for name in features}
    else:
        features = [name for name, kind in kinds.items() if _is_number(kind) and name not in described]
        if not features:
            raise SourceError(f"{path} has no columns of numbers and no column of lists; it has {listed(kinds, 20)}")
        layers = {path.stem: np.column_stack([table[name].to_numpy() for name in features])}
    others = [name for name in kinds if name not in features and name != "key" and "__index_level_" not in name]
    texts = {name: ["" if value is None else str(value) for value in table[name].to_pylist()] for name in others}
    return ArrayFile(layers, texts)


def _is_number(kind: Any) -> bool:
    from pyarrow import types

    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def _is_list_of_numbers(kind: Any) -> bool:
    from pyarrow import types

    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return is_list and _is_number(kind.value_type)


def _matrix(path: Path, name: str, lists: Any) -> np.ndarray:
    """(n, d) of a column of lists that are equally long."""
    from pyarrow import compute

    lengths = compute.unique(compute.list_value_length(lists)).to_pylist()
    if len(lengths) != 1 or lengths[0] is None:
        raise SourceError(f"{path}: column {name!r} has lists of different lengths, or empty cells")
    return compute.list_flatten(lists).to_numpy().reshape(len(lists), lengths[0])
