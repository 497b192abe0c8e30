"""Where everything lies in the file: what FORMAT.md says, once, for the writer and the reader."""

from __future__ import annotations

import io
import os
from typing import Any
from urllib.parse import quote, unquote

import h5py
import numpy as np

FORMAT = "featx-store"
VERSION = 1
ALIGNMENT = 4096  # bytes; a page, so that rows can be mapped
_BOUND = ("earliest", "v110")  # the newest HDF5 file structures a store may use


class Skeleton(io.RawIOBase):
    """A file in memory that holds what HDF5 writes of its own, and not the rows, which it never touches.

    HDF5 does not survive a write that fails; so it writes here, and the bytes go to disk by `extents` and calls of our
    own. Its size may be far beyond memory: between the extents there is nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.extents: list[tuple[int, bytes]] = []  # (offset, bytes), later ones over earlier ones
        self.size = 0
        self._at = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def truncate(self, size: int | None = None) -> int:
        self.size = self._at if size is None else size
        return self.size

    def write(self, data: Any) -> int:
        content = bytes(data)
        self.extents.append((self._at, content))
        self._at += len(content)
        self.size = max(self.size, self._at)
        return len(content)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), self.size - self._at))
        view[:length] = bytes(length)
        for offset, content in self.extents:
            start, stop = max(offset, self._at), min(offset + len(content), self._at + length)
            if start < stop:
                view[start - self._at : stop - self._at] = content[start - offset : stop - offset]
        self._at += length
        return length


def create(skeleton: Skeleton) -> h5py.File:
    """A new, empty HDF5 file of the pinned structures, in which everything is aligned: for the layers."""
    return h5py.File(skeleton, "w", libver=_BOUND, alignment_threshold=1, alignment_interval=ALIGNMENT)


def reopen(skeleton: Skeleton) -> h5py.File:
    """The same file, in which what is added lies close together: for all the rest."""
    return h5py.File(skeleton, "r+", libver=_BOUND)


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
    if name in (".", ".."):
        return name.replace(".", "%2E")
    return quote(name, safe=" :,-_()[]+=") or "%"


def member_name(member: str) -> str:
    return "" if member == "%" else unquote(member)
