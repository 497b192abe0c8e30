"""Rows in any order in, one whole HDF5 file out, or an unfinished run that goes on where it stopped.

`OUT.partial` has room for every row from the start; rows go to their place by `os.pwrite`. What the disk has for
certain is told to `OUT.journal`. At the end: rows of failed images are closed up, metadata written, fsync, seal, fsync,
rename, fsync of the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from featx.errors import ImageError, StoreError
from featx.store import contents, files, layout
from featx.store.closing import close_up
from featx.store.contents import Failure
from featx.store.hdf5_parse import MOST_MEMBERS
from featx.store.journal import Journal, Unfinished, discard_quietly, journal_path, partial_path, unfinished
from featx.store.layout import GROUP_ROWS
from featx.store.recipe import Recipe, collection_digest

_SYNC_BYTES = 160 * 2**20
_SYNC_SECONDS = 5.0
_METADATA_BYTES = 64  # an image, beside its texts: key, digest, checksums


class StoreWriter:
    """Write one store, or go on with one that was begun.

    Parameters
    ----------
    output : path of the finished file
    recipe : Recipe
        `collection` is filled in.
    ids : n names; each image must be written or declared a failure
    y : (n,) class names or floats, or None
    columns : {name: (n,) str}

    Attributes
    ----------
    recipe : Recipe, as it will be in the file
    todo : (n,) bool, the images that the run still has to write or to declare a failure
    digests : (n, 16) uint8, content digests of those that are written
    failures : {position: ImageError}

    Raises
    ------
    StoreError
        The output cannot be written, another run is writing it, another unfinished run is there, or the disk has too
        little room.

    Notes
    -----
    A context manager. Left before `finish`, the run is unfinished: the same writer goes on with it; if no group of 64
    images was complete there is nothing to go on with, and nothing is left.
    """

    def __init__(
        self,
        output: str | os.PathLike,
        recipe: Recipe,
        ids: Sequence[str],
        y: np.ndarray | None = None,
        columns: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._output, self._ids, self._y, self._columns = Path(output), list(ids), y, dict(columns or {})
        self._partial = partial_path(self._output)
        self.recipe = replace(recipe, collection=collection_digest(ids, y, self._columns))
        n = len(self._ids)
        Recipe.from_json(self.recipe.to_json())  # what could not be read again is not written
        if max(len(self._columns), len(recipe.taps)) > MOST_MEMBERS:
            raise StoreError(f"a store has at most {MOST_MEMBERS:,} columns and as many layers; choose some")
        if len(self.recipe.to_json().encode()) > layout.MOST_RECIPE_BYTES:
            raise StoreError(f"a recipe has at most {files.readable(layout.MOST_RECIPE_BYTES)}; extract fewer layers")
        self._layers = layout.place_layers(self.recipe, n)
        self._end = layout.end_of(self._layers)
        self._block_rows = {name: layout.block_rows(array.row_bytes) for name, array in self._layers.items()}
        self.todo = np.ones(n, bool)
        self.digests = np.zeros((n, 16), np.uint8)
        self.failures: dict[int, ImageError] = {}
        self._nonfinite: dict[tuple[int, str], str] = {}
        self._sums = {name: np.zeros(-(-n // rows), "<u8") for name, rows in self._block_rows.items()}
        self._summed = {name: np.zeros(len(sums), bool) for name, sums in self._sums.items()}
        self._journaled = np.zeros(-(-n // GROUP_ROWS), bool)  # by groups of images
        self._moves: list[dict[str, Any]] = []
        self._unsynced, self._synced_at = 0, time.monotonic()
        self._refused = False  # by fsync: the system tells it once, and forgets what it could not write
        goes_on = journal_path(self._output).exists()
        with files.told(self._output, lambda: files.KEPT if goes_on else files.NOTHING_KEPT):
            self._file = files.open_alone(self._partial)
            try:
                begun = unfinished(self._output)
                goes_on = begun is not None
                self._journal = self._begin(begun)
            except BaseException:
                if not goes_on:
                    discard_quietly(self._output)
                os.close(self._file)
                raise

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if files.is_at(self._partial, self._file):  # not so after `finish`: then it has its final name
                with contextlib.suppress(OSError, StoreError):
                    self._sync()
                if not self._journaled.any():
                    discard_quietly(self._output)
        finally:
            self._journal.close()
            os.close(self._file)

    def _begin(self, begun: Unfinished | None) -> Journal:
        if begun is not None and (begun.recipe != self.recipe or begun.ids != self._ids):
            raise StoreError(
                f"an unfinished run towards {self._output} is of another recipe or other images; finish it, or "
                "--discard it (discard=True)"
            )
        if begun is None:  # an older journal must be gone before there is a file that it could be taken to tell of
            os.ftruncate(self._file, 0)
            journal_path(self._output).unlink(missing_ok=True)
            files.fsync_folder(self._partial.parent)
        texts = [layout.strings(self._ids), *self._columns.values(), *([] if self._y is None else [self._y])]
        row_bytes = _METADATA_BYTES + sum(values.dtype.itemsize for values in texts)
        files.reserve(self._file, self._end, self._output, extra=len(self._ids) * row_bytes)
        if begun is None:
            os.fsync(self._file)
        else:
            self._go_on(begun)
        return Journal(self._output, self.recipe, self._ids, begun)

    def _go_on(self, begun: Unfinished) -> None:
        """Believe what the journal says of rows that are on the disk as it says."""
        self._moves = [entry for entry in begun.entries if "moved" in entry or "closed_up" in entry]
        for entry in begun.entries:
            if "groups" not in entry:
                continue
            start, stop = entry["groups"]
            sums = {name: np.frombuffer(bytes.fromhex(entry["sums"][name]), "<u8") for name in self._layers}
            digests = np.frombuffer(bytes.fromhex(entry["digests"]), np.uint8).reshape(-1, 16)
            for group in range(start, stop):
                images = self._images(group, group + 1)
                for name, (first, last) in self._blocks(group):
                    offset = self._blocks_start(name, start)
                    self._sums[name][first:last] = sums[name][first - offset : last - offset]
                if self._moves or all(
                    self._sums[name][block] == self._checksum(name, block)
                    for name, (first, last) in self._blocks(group)
                    for block in range(first, last)
                ):
                    self.todo[images.start : images.stop] = False
                    offset = start * GROUP_ROWS
                    self.digests[images.start : images.stop] = digests[images.start - offset : images.stop - offset]
                    self._journaled[group] = True
                    for name, (first, last) in self._blocks(group):
                        self._summed[name][first:last] = True
            # of a group that was done twice the later entry holds
            images = self._images(start, stop)
            self.failures = {i: error for i, error in self.failures.items() if i not in images}
            self._nonfinite = {(i, name): what for (i, name), what in self._nonfinite.items() if i not in images}
            for i, code, reason in entry["failures"]:
                if not self.todo[i]:
                    self.failures[i] = ImageError(code, reason)
            self._nonfinite |= {(i, name): what for i, name, what in entry["nonfinite"] if not self.todo[i]}

    def _images(self, start: int, stop: int) -> range:
        """Of groups start to stop."""
        return range(start * GROUP_ROWS, min(stop * GROUP_ROWS, len(self.todo)))

    def _blocks_start(self, name: str, group: int) -> int:
        return group * GROUP_ROWS // self._block_rows[name]

    def _blocks(self, group: int) -> Iterator[tuple[str, tuple[int, int]]]:
        """(layer, (first, last + 1)) of the blocks that hold a group's rows."""
        for name in self._layers:
            yield (
                name,
                (self._blocks_start(name, group), min(self._blocks_start(name, group + 1), len(self._sums[name]))),
            )

    def _checksum(self, name: str, block: int) -> int:
        """Of a block as it is in the file."""
        array, rows = self._layers[name], self._block_rows[name]
        count = min(rows, array.shape[0] - block * rows)
        return layout.checksum(
            files.pread(self._file, count * array.row_bytes, array.offset + block * rows * array.row_bytes)
        )

    def write(self, indices: np.ndarray, rows: Mapping[str, np.ndarray], digests: np.ndarray) -> None:
        """Write the rows of some images.

        Parameters
        ----------
        indices : (m,) increasing positions in the run, none of them written before
        rows : {layer: (m, ...)} for every layer
        digests : (m, 16) uint8, content digests

        Raises
        ------
        StoreError
            The disk refuses.
        """
        if not self.todo[indices].all() or rows.keys() != self._layers.keys():
            raise AssertionError("every row of every layer is written exactly once")
        # runs of neighbours are written in one call each
        starts = np.flatnonzero(np.diff(indices, prepend=-2) != 1)
        with files.told(self._output, self._kept):
            for name, given in rows.items():
                array = self._layers[name]
                with np.errstate(over="ignore"):  # told below, with the image's name
                    values = np.ascontiguousarray(given, array.dtype)
                for row in _nonfinite_rows(values):
                    self._nonfinite[int(indices[row]), name] = "nan" if np.isnan(values[row]).any() else "inf"
                for start, stop in zip(starts, [*starts[1:], len(indices)], strict=True):
                    part = values[start:stop].reshape(-1).view(np.uint8).data
                    files.pwrite(self._file, part, array.offset + int(indices[start]) * array.row_bytes)
                    self._sum_whole_blocks(name, int(indices[start]), int(stop - start), part)
                self._unsynced += values.nbytes
            self.digests[indices] = digests
            self.todo[indices] = False
            self._sync_if_due()

    def _sum_whole_blocks(self, name: str, first: int, count: int, content: memoryview) -> None:
        """Checksums of the blocks that a run of rows covers, while they are in the cache."""
        rows, row_bytes, n = self._block_rows[name], self._layers[name].row_bytes, len(self.todo)
        for block in range(-(-first // rows), -(-n // rows)):
            stop = min((block + 1) * rows, n)
            if stop > first + count:
                break
            start = (block * rows - first) * row_bytes
            self._sums[name][block] = layout.checksum(content[start : (stop - first) * row_bytes])
            self._summed[name][block] = True

    def fail(self, failures: Mapping[int, ImageError]) -> None:
        """Declare that some images have no rows: {position: ImageError}."""
        if failures:
            self.failures |= failures
            self.todo[list(failures)] = False
            with files.told(self._output, self._kept):
                self._sync_if_due()

    def _kept(self) -> str:
        """What the disk has for certain, in words."""
        with contextlib.suppress(OSError):
            self._sync()
        return files.KEPT if self._journaled.any() else files.NOTHING_KEPT

    def _sync_if_due(self) -> None:
        if self._unsynced >= _SYNC_BYTES or time.monotonic() - self._synced_at >= _SYNC_SECONDS:
            self._sync()

    def _sync(self) -> None:
        """Bring all rows to the disk and tell the journal of the groups that are complete since."""
        complete = self._complete_groups()
        if len(complete) and not self._refused:
            self._refused = True
            os.fsync(self._file)
            self._refused = False
            runs = np.split(complete, np.flatnonzero(np.diff(complete) != 1) + 1)
            self._journal.append(*(self._entry(int(run[0]), int(run[-1]) + 1) for run in runs))
            self._journaled[complete] = True
        self._unsynced, self._synced_at = 0, time.monotonic()

    def _complete_groups(self) -> np.ndarray:
        """Groups that the journal does not know of yet, with the checksums that were not taken when rows came."""
        still = np.logical_or.reduceat(self.todo, np.arange(0, len(self.todo), GROUP_ROWS))
        complete = np.flatnonzero(~still & ~self._journaled)
        for name, (first, last) in (blocks for group in complete.tolist() for blocks in self._blocks(group)):
            for block in (first + np.flatnonzero(~self._summed[name][first:last])).tolist():
                self._sums[name][block] = self._checksum(name, block)
                self._summed[name][block] = True
        return complete

    def _entry(self, start: int, stop: int) -> dict[str, Any]:
        images = self._images(start, stop)
        return {
            "groups": [start, stop],
            "digests": self.digests[images.start : images.stop].tobytes().hex(),
            "sums": {
                name: sums[self._blocks_start(name, start) : self._blocks_start(name, stop)].tobytes().hex()
                for name, sums in self._sums.items()
            },
            "failures": [[i, error.code, error.reason] for i, error in self.failures.items() if i in images],
            "nonfinite": [[i, name, what] for (i, name), what in self._nonfinite.items() if i in images],
        }

    def finish(self) -> None:
        """Write the metadata, seal and rename.

        Raises
        ------
        StoreError
            Not one image was written, or the disk refuses.
        """
        if self.todo.any():
            raise AssertionError("every image is either written or a failure")
        keep = np.delete(np.arange(len(self.todo)), list(self.failures))
        if not len(keep):
            discard_quietly(self._output)  # there is nothing to go on with
            raise StoreError(f"none of the {len(self._ids):,} images can be read; the first, {self._ids[0]!r}: "
                             f"{self.failures[0]}")  # fmt: skip
        with files.told(self._output, self._kept):
            self._complete_groups()
            if self.failures:
                self._sync()
                self._close_up(keep)
            page, rest, seal = layout.assemble(self._layers, self._metadata(keep))
            files.pwrite(self._file, page, layout.PAGE)
            files.pwrite(self._file, rest, seal.metadata)
            os.ftruncate(self._file, seal.size)
            os.fsync(self._file)
            files.pwrite(self._file, seal.to_bytes(), 0)
            os.fsync(self._file)
            os.replace(self._partial, files.real(self._output))
            fcntl.flock(self._file, fcntl.LOCK_UN)  # HDF5 takes the same lock to read
            files.fsync_folder(self._partial.parent)
            self._journal.remove()

    def _metadata(self, keep: np.ndarray) -> layout.Metadata:
        return contents.metadata(
            self.recipe,
            [self._ids[i] for i in keep.tolist()],
            self.digests[keep],
            None if self._y is None else self._y[keep],
            {name: values[keep] for name, values in self._columns.items()},
            [Failure(self._ids[i], self.failures[i].code, self.failures[i].reason) for i in sorted(self.failures)],
            self._nonfinite,
            self._sums,
        )

    def _close_up(self, keep: np.ndarray) -> None:
        """From now on the run is one of only the images that have rows."""
        old, self._layers = self._layers, layout.place_layers(self.recipe, len(keep))
        close_up(self._file, self._journal, self._moves, old, self._layers, keep)
        self._nonfinite = {(int(np.searchsorted(keep, i)), name): what for (i, name), what in self._nonfinite.items()}
        for name, rows in self._block_rows.items():
            blocks = -(-len(keep) // rows)
            self._sums[name] = np.array([self._checksum(name, block) for block in range(blocks)], "<u8")


def _nonfinite_rows(values: np.ndarray) -> list[int]:
    """Positions of the rows that hold inf or NaN."""
    if values.dtype.itemsize == 4:
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(values.sum()):  # one pass and no copy; a sum that overflows is looked at closely
                return []
        bad = ~np.isfinite(values)
    else:
        bad = (values.view(np.uint16) & 0x7C00) == 0x7C00  # all bits of the exponent
    return np.flatnonzero(bad.reshape(len(values), -1).any(axis=1)).tolist()
