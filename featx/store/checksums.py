"""The checksums of a run's rows: taken as rows come, told to the journal by groups of images, taken up again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from featx.errors import Parameter, StoreError
from featx.store import files, layout
from featx.store.hdf5 import Array
from featx.store.layout import GROUP_ROWS


class Checksums:
    """Of every block of every layer.

    Parameters
    ----------
    handle : the file
    layers : {name: Array}, where rows are in it

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
        """Of the blocks that a run of rows covers as a whole; `complete` reads the others back."""
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
        """Take those of groups start to stop that are not known yet."""
        for name, first, last in self._spans(start, stop):
            for block in (first + np.flatnonzero(~self._known[name][first:last])).tolist():
                self.of[name][block] = self._in_file(name, block)
                self._known[name][block] = True

    def told(self, start: int, stop: int) -> dict[str, str]:
        """Of groups start to stop, as the journal has them."""
        return {name: self.of[name][first:last].tobytes().hex() for name, first, last in self._spans(start, stop)}

    def take_up(self, start: int, stop: int, told: Mapping[str, str]) -> None:
        """The way back."""
        for name, first, last in self._spans(start, stop):
            self.of[name][first:last] = np.frombuffer(bytes.fromhex(told[name]), "<u8")
            self._known[name][first:last] = True

    def forget(self, start: int, stop: int) -> None:
        """The rows of groups start to stop will come anew."""
        for name, first, last in self._spans(start, stop):
            self._known[name][first:last] = False

    def hold(self, start: int, stop: int) -> bool:
        """Whether the rows of groups start to stop are in the file as they should be."""
        return all(
            self.of[name][block] == self._in_file(name, block)
            for name, first, last in self._spans(start, stop)
            for block in range(first, last)
        )

    def closed_up(self, keep: np.ndarray) -> dict[str, np.ndarray]:
        """Those that rows will have when only the ones at some positions are left.

        Raises
        ------
        StoreError
            Rows are not in the file as they should be.
        """
        found = {}
        for name, array in self._layers.items():
            rows, waiting, sums = self._rows[name], b"", []
            full = rows * array.row_bytes
            for block in range(len(self.of[name])):
                start, stop = block * rows, min((block + 1) * rows, array.shape[0])
                content = files.pread(self._handle, (stop - start) * array.row_bytes, array.offset + block * full)
                if layout.checksum(content) != self.of[name][block]:
                    raise unfinished_damage()
                first, last = np.searchsorted(keep, (start, stop))
                kept = np.frombuffer(content, np.uint8).reshape(stop - start, -1)[keep[first:last] - start]
                waiting += kept.tobytes()
                if len(waiting) >= full:
                    sums.append(layout.checksum(waiting[:full]))
                    waiting = waiting[full:]
            if waiting:
                sums.append(layout.checksum(waiting))
            found[name] = np.array(sums, "<u8")
        return found

    def _spans(self, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
        """(layer, first, last + 1) of the blocks that hold the rows of groups start to stop."""
        for name, sums in self.of.items():
            a_group = GROUP_ROWS // self._rows[name]
            yield name, start * a_group, min(stop * a_group, len(sums))

    def _in_file(self, name: str, block: int) -> int:
        array, rows = self._layers[name], self._rows[name]
        count = min(rows, array.shape[0] - block * rows)
        offset = array.offset + block * rows * array.row_bytes
        return layout.checksum(files.pread(self._handle, count * array.row_bytes, offset))


def unfinished_damage() -> StoreError:
    return StoreError("the unfinished run is damaged; discard it with ", Parameter("discard", True), " and run again")
