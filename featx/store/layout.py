"""Where everything lies in the file: what FORMAT.md says, once, for the writer and the reader."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote, unquote

import h5py
import numpy as np

from featx.errors import StoreError

FORMAT = "featx-store"
VERSION = 1
ALIGNMENT = 4096  # bytes; a page, so that rows can be mapped
_BOUND = ("earliest", "v110")  # the newest HDF5 file structures a store may use


def create(path: Path) -> h5py.File:
    """A new, empty HDF5 file with the pinned structures and alignment."""
    try:
        return h5py.File(path, "w", libver=_BOUND, alignment_threshold=ALIGNMENT, alignment_interval=ALIGNMENT)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {_reason(error, path)}") from error


def reopen(path: Path) -> h5py.File:
    """The same file, to add to."""
    return h5py.File(path, "r+", libver=_BOUND, alignment_threshold=ALIGNMENT, alignment_interval=ALIGNMENT)


def add_rows(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: str) -> int:
    """Lay out a contiguous dataset, allocated at once and not filled; returns the offset of its bytes in the file."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)
    little = np.dtype(dtype).newbyteorder("<")
    space = h5py.h5s.create_simple(shape)
    dataset = h5py.h5d.create(group.id, name.encode(), h5py.h5t.py_create(little), space, properties)
    return int(dataset.get_offset())


def add_array(group: h5py.Group, name: str, values: np.ndarray) -> None:
    """A small dataset, without time stamps."""
    group.create_dataset(name, data=values, track_times=False)


def add_strings(group: h5py.Group, name: str, values: list[str]) -> None:
    """Strings as fixed-length UTF-8, null-padded to the longest: no variable-length type is ever written."""
    encoded = [value.encode() for value in values]
    longest = max([1, *map(len, encoded)])
    dtype = h5py.string_dtype("utf-8", longest)
    group.create_dataset(name, data=np.array(encoded, dtype=f"S{longest}").astype(dtype), track_times=False)


def read_strings(dataset: h5py.Dataset) -> list[str]:
    return [value.decode() for value in dataset[()].tolist()]


def member(name: str) -> str:
    """A column's or layer's name as a name that HDF5 allows; `member_name` is the way back."""
    return quote(name, safe=" :,-_()[]+=") if name not in (".", "..") else name.replace(".", "%2E")


def member_name(member: str) -> str:
    return unquote(member)


def _reason(error: OSError, path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    if path.is_dir():
        return "it is a folder"
    return os.strerror(error.errno) if error.errno else "the disk refused"
