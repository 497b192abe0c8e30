"""Rows of some images of a run in, their bytes at their places in its file out; and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from featx.store import files
from featx.store.hdf5 import Array


@dataclass(frozen=True)
class RowFile:
    """The layers of a run in its file. Several processes may write at once, each the rows of other images.

    output : the finished file's path, for messages
    handle : the open file; a process that inherits it shares the lock on the file, which lasts until all have closed it
    layers : {name: Array}, where rows are in it
    """

    output: Path
    handle: int
    layers: Mapping[str, Array]

    def write(self, name: str, indices: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Write rows of any type of number, (m, ...), at increasing positions; returns them as they are stored."""
        array = self.layers[name]
        with np.errstate(over="ignore"):  # the writer tells it, with the image's name
            values = np.ascontiguousarray(rows, array.dtype)
        if values.shape != (len(indices), *array.shape[1:]):
            raise AssertionError(f"rows of {name!r} are {array.shape[1:]}, got {values.shape[1:]}")
        for start, stop in runs(indices):
            part = values[start:stop].reshape(-1).view(np.uint8).data
            files.pwrite(self.handle, part, array.offset + int(indices[start]) * array.row_bytes)
        return values

    def read(self, name: str, indices: np.ndarray) -> np.ndarray:
        """(m, ...), what was written there."""
        array = self.layers[name]
        content = b"".join(
            files.pread(
                self.handle, (stop - start) * array.row_bytes, array.offset + int(indices[start]) * array.row_bytes
            )
            for start, stop in runs(indices)
        )
        return np.frombuffer(content, array.dtype).reshape(len(indices), *array.shape[1:])


def runs(indices: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) in `indices`, which increase, of those that are neighbours: one call to the system each."""
    if not len(indices):
        return []
    return list(pairwise([0, *(np.flatnonzero(np.diff(indices) != 1) + 1).tolist(), len(indices)]))
