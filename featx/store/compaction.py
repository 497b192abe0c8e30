"""Rows of a run in which some images failed in, the same rows without gaps out, in the same file, killed or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from featx.store import files, layout
from featx.store.checksums import unfinished_damage
from featx.store.hdf5 import Array
from featx.store.journal import Journal

_MOVE_BYTES = 16 * 2**20
_FAR_BYTES = 2**17
SPARE_BYTES = 2 * _MOVE_BYTES


def close_up(
    handle: int,
    sync: Callable[[], None],
    journal: Journal,
    told: Sequence[dict[str, Any]],
    old: Mapping[str, Array],
    new: Mapping[str, Array],
    keep: np.ndarray,
) -> None:
    """Move the rows there are to where a file of only those has them.

    In the order of the file every row moves towards its beginning or stays. A part that moves is first copied behind
    all rows, and the journal told, so that a killed run can do the step again: the second copy is on the disk before
    the first is overwritten.

    Parameters
    ----------
    handle : the file
    sync : brings it to the disk
    told : what the journal says of this already
    old, new : layers as they were laid out at the start, and as they will be
    keep : (m,) increasing positions of the images that have rows

    Raises
    ------
    StoreError
        A copy that a killed run left is damaged.
    """
    done = -1  # the last step that the journal knows of
    if told and "closed_up" in told[-1]:
        return
    if told:
        done = told[-1]["moved"]
    steps = list(_steps(old, len(keep)))
    longest = max((stop - start) * old[name].row_bytes for name, start, stop in steps)
    moved = 0
    for number, (name, start, stop) in enumerate(steps):
        # two places take turns: the copy that the journal tells of stays until the next one is told
        row_bytes, spare = old[name].row_bytes, layout.end_of(old) + moved % 2 * longest
        target = new[name].offset + start * row_bytes
        stays = target + (stop - start) * row_bytes == old[name].offset + (keep[stop - 1] + 1) * row_bytes
        moved += not stays
        if number == done:  # begun, perhaps not finished
            content = files.pread(handle, (stop - start) * row_bytes, spare)
            if layout.checksum(content) != told[-1]["sum"]:
                raise unfinished_damage()
            files.pwrite(handle, content, target)
        elif number > done and not stays:
            content = _rows_of(handle, old[name], keep[start:stop])
            files.pwrite(handle, content, spare)
            sync()
            journal.append({"moved": number, "sum": layout.checksum(content)})
            journal.sync()
            files.pwrite(handle, content, target)
    for start, stop in layout.gaps(new.values(), layout.PAGE, layout.end_of(new)):
        files.pwrite(handle, bytes(stop - start), start)
    sync()
    journal.append({"closed_up": True})
    journal.sync()


def _steps(layers: Mapping[str, Array], n: int) -> Iterator[tuple[str, int, int]]:
    """(layer, first row, last row + 1) of n rows in parts that memory holds."""
    for name, array in layers.items():
        part_rows = max(1, _MOVE_BYTES // array.row_bytes)
        for start in range(0, n, part_rows):
            yield name, start, min(start + part_rows, n)


def _rows_of(handle: int, array: Array, positions: np.ndarray) -> bytes:
    """Rows where they were written first; what lies between rows that are far apart is not read."""
    far = np.flatnonzero(np.diff(positions) * array.row_bytes > _FAR_BYTES) + 1
    found = []
    for near in np.split(positions, far):
        first, row_bytes = int(near[0]), array.row_bytes
        content = files.pread(handle, (int(near[-1]) + 1 - first) * row_bytes, array.offset + first * row_bytes)
        found.append(np.frombuffer(content, np.uint8).reshape(-1, row_bytes)[near - first].tobytes())
    return b"".join(found)
