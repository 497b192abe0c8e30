"""Writes the rows of some images to their places in a run's file, and reads them back."""

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
    """The layers of a run in its file. Several processes may write at once if each writes the rows of other images.

    Attributes
    ----------
    output : Path
        Path of the finished file, for messages.
    handle : int
        Descriptor of the open file. A process that inherits it shares the lock, which is held until all have closed it.
    layers : {name: Array}
        The places of the rows in the file.
    """

    output: Path
    handle: int
    layers: Mapping[str, Array]

    def write(self, name: str, indices: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Write rows of any floating-point type, (m, ...), at increasing positions; returns them as they are stored."""
        array = self.layers[name]
        with np.errstate(over="ignore"):  # the writer reports it, with the image's id
            values = np.ascontiguousarray(rows, array.dtype)
        if values.shape != (len(indices), *array.shape[1:]):
            raise AssertionError(f"rows of {name!r} are {array.shape[1:]}, got {values.shape[1:]}")
        for start, stop in runs(indices):
            part = values[start:stop].reshape(-1).view(np.uint8).data
            files.pwrite(self.handle, part, array.offset + int(indices[start]) * array.row_bytes)
        return values

    def read(self, name: str, indices: np.ndarray) -> np.ndarray:
        """Read rows at increasing positions, (m, ...)."""
        array = self.layers[name]
        content = b"".join(
            files.pread(
                self.handle, (stop - start) * array.row_bytes, array.offset + int(indices[start]) * array.row_bytes
            )
            for start, stop in runs(indices)
        )
        return np.frombuffer(content, array.dtype).reshape(len(indices), *array.shape[1:])


def runs(indices: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) in the increasing `indices` of each run of consecutive numbers: one system call each."""
    if not len(indices):
        return []
    return list(pairwise([0, *(np.flatnonzero(np.diff(indices) != 1) + 1).tolist(), len(indices)]))
