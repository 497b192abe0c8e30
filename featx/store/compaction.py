"""Closes the gaps that images without rows leave in a run's file, in place and safely against kills."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from featx.store import files, layout
from featx.store.checksums import unfinished_damage
from featx.store.hdf5 import Array
from featx.store.journal import Journal

_MOVE_BYTES = 16 * 2**20
_FAR_BYTES = 2**17  # between rows; a larger gap is not read
SPARE_BYTES = 2 * _MOVE_BYTES


def compact(
    handle: int,
    sync: Callable[[], None],
    journal: Journal,
    recorded: Sequence[dict[str, Any]],
    old: Mapping[str, Array],
    new: Mapping[str, Array],
    keep: np.ndarray,
) -> None:
    """Move the rows of some images to the places that they have in a file of these images only.

    In the order of the file, every row stays or moves towards the beginning. Rows are moved in steps. Each step first
    copies its rows behind all others and records that in the journal, so that a killed run can repeat the step: the
    copy is on the disk before the original is overwritten.

    Parameters
    ----------
    handle : file descriptor of the run's file
    sync : brings the file to the disk
    recorded : the journal's entries about this compaction
    old, new : the layers before and after
    keep : (m,) increasing positions of the images that have rows

    Raises
    ------
    StoreError
        The copy that a killed run left is damaged.
    """
    last = -1  # the last step that the journal records
    if recorded and "closed_up" in recorded[-1]:
        return
    if recorded:
        last = recorded[-1]["moved"]
    steps = list(_steps(old, len(keep)))
    longest = max((stop - start) * old[name].row_bytes for name, start, stop in steps)
    moved = 0
    for number, (name, start, stop) in enumerate(steps):
        # two places take turns: the recorded copy stays until the next one is recorded
        row_bytes, spare = old[name].row_bytes, layout.end_of(old) + moved % 2 * longest
        target = new[name].offset + start * row_bytes
        stays = target + (stop - start) * row_bytes == old[name].offset + (keep[stop - 1] + 1) * row_bytes
        moved += not stays
        if number == last:  # it may not have been finished
            content = files.pread(handle, (stop - start) * row_bytes, spare)
            if layout.checksum(content) != recorded[-1]["sum"]:
                raise unfinished_damage()
            files.pwrite(handle, content, target)
        elif number > last and not stays:
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
    """(layer, first row, last row + 1) of n rows, in parts of at most `_MOVE_BYTES` or one row."""
    for name, array in layers.items():
        part_rows = max(1, _MOVE_BYTES // array.row_bytes)
        for start in range(0, n, part_rows):
            yield name, start, min(start + part_rows, n)


def _rows_of(handle: int, array: Array, positions: np.ndarray) -> bytes:
    """Rows at some increasing positions; large gaps between them are not read."""
    far = np.flatnonzero(np.diff(positions) * array.row_bytes > _FAR_BYTES) + 1
    parts = []
    for near in np.split(positions, far):
        first, row_bytes = int(near[0]), array.row_bytes
        content = files.pread(handle, (int(near[-1]) + 1 - first) * row_bytes, array.offset + first * row_bytes)
        parts.append(np.frombuffer(content, np.uint8).reshape(-1, row_bytes)[near - first].tobytes())
    return b"".join(parts)
