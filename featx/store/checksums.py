"""The checksums of a run's rows: computed as rows arrive, recorded in the journal by groups of images, and restored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from featx.errors import Parameter, StoreError
from featx.store import files, layout
from featx.store.hdf5 import Array
from featx.store.layout import GROUP_ROWS


class Checksums:
    """The checksums of all blocks of all layers.

    Parameters
    ----------
    handle : file descriptor of the run's file
    layers : {name: Array}, the places of the rows in it

    Attributes
    ----------
    of : {name: (blocks,) uint64}
    """

    def __init__(self, handle: int, layers: Mapping[str, Array]) -> None:
        self._handle, self._layers = handle, layers
        self._rows = {name: layout.block_rows(array.row_bytes) for name, array in layers.items()}
        self.of = {name: np.zeros(-(-array.shape[0] // self._rows[name]), "<u8") for name, array in layers.items()}
        self._known = {name: np.zeros(len(sums), bool) for name, sums in self.of.items()}

    def add(self, name: str, first: int, content: memoryview) -> None:
        """Compute the checksums of the blocks that some consecutive rows cover; `complete` reads the others back.

        Parameters
        ----------
        first : position of the first row
        content : bytes of the rows
        """
        array, rows = self._layers[name], self._rows[name]
        n, count = array.shape[0], len(content) // array.row_bytes
        for block in range(-(-first // rows), len(self.of[name])):
            stop = min((block + 1) * rows, n)
            if stop > first + count:
                break
            self.of[name][block] = layout.checksum(
                content[(block * rows - first) * array.row_bytes : (stop - first) * array.row_bytes]
            )
            self._known[name][block] = True

    def complete(self, start: int, stop: int) -> None:
        """Compute the checksums of groups `start` to `stop` that are not known yet."""
        for name, first, last in self._spans(start, stop):
            for block in (first + np.flatnonzero(~self._known[name][first:last])).tolist():
                self.of[name][block] = self._in_file(name, block)
                self._known[name][block] = True

    def to_journal(self, start: int, stop: int) -> dict[str, str]:
        """The checksums of groups `start` to `stop` as a journal entry: {name: hexadecimal digits}."""
        return {name: self.of[name][first:last].tobytes().hex() for name, first, last in self._spans(start, stop)}

    def from_journal(self, start: int, stop: int, entry: Mapping[str, str]) -> None:
        """Restore the checksums of groups `start` to `stop` from an entry of `to_journal`."""
        for name, first, last in self._spans(start, stop):
            self.of[name][first:last] = np.frombuffer(bytes.fromhex(entry[name]), "<u8")
            self._known[name][first:last] = True

    def forget(self, start: int, stop: int) -> None:
        """Drop the checksums of groups `start` to `stop`, whose rows will be written again."""
        for name, first, last in self._spans(start, stop):
            self._known[name][first:last] = False

    def match_file(self, start: int, stop: int) -> bool:
        """Whether the rows of groups `start` to `stop` in the file have these checksums."""
        return all(
            self.of[name][block] == self._in_file(name, block)
            for name, first, last in self._spans(start, stop)
            for block in range(first, last)
        )

    def compacted(self, keep: np.ndarray) -> dict[str, np.ndarray]:
        """The checksums that the layers will have after compaction.

        Parameters
        ----------
        keep : (m,) increasing positions of the rows that remain

        Raises
        ------
        StoreError
            Rows in the file do not have the recorded checksums.
        """
        checksums = {}
        for name, array in self._layers.items():
            rows, pending, sums = self._rows[name], b"", []
            full = rows * array.row_bytes
            for block in range(len(self.of[name])):
                start, stop = block * rows, min((block + 1) * rows, array.shape[0])
                content = files.pread(self._handle, (stop - start) * array.row_bytes, array.offset + block * full)
                if layout.checksum(content) != self.of[name][block]:
                    raise unfinished_damage()
                first, last = np.searchsorted(keep, (start, stop))
                kept = np.frombuffer(content, np.uint8).reshape(stop - start, -1)[keep[first:last] - start]
                pending += kept.tobytes()
                if len(pending) >= full:
                    sums.append(layout.checksum(pending[:full]))
                    pending = pending[full:]
            if pending:
                sums.append(layout.checksum(pending))
            checksums[name] = np.array(sums, "<u8")
        return checksums

    def _spans(self, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
        """(layer, first, last + 1) of the blocks that contain the rows of groups `start` to `stop`."""
        for name, sums in self.of.items():
            per_group = GROUP_ROWS // self._rows[name]
            yield name, start * per_group, min(stop * per_group, len(sums))

    def _in_file(self, name: str, block: int) -> int:
        array, rows = self._layers[name], self._rows[name]
        count = min(rows, array.shape[0] - block * rows)
        offset = array.offset + block * rows * array.row_bytes
        return layout.checksum(files.pread(self._handle, count * array.row_bytes, offset))


def unfinished_damage() -> StoreError:
    return StoreError("the unfinished run is damaged; discard it with ", Parameter("discard", True), " and run again")
