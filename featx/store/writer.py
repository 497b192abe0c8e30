"""Rows in any order in, one whole HDF5 file out, or an unfinished run that goes on where it stopped.

`OUT.partial` has room for every row from the start; rows go to their place by `os.pwrite`. What the disk has for
certain is told to `OUT.journal`. At the end: rows of failed images are closed up, metadata written, fsync, seal, fsync,
rename, fsync of the folder. Long, since it is one run's state; what needs none of it has files of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from featx.errors import ImageError, Parameter, StoreError
from featx.recipe import Recipe, collection_digest
from featx.store import files, layout, metadata
from featx.store.checksums import Checksums, unfinished_damage
from featx.store.compaction import SPARE_BYTES, close_up
from featx.store.contents import Failure
from featx.store.journal import (
    Journal,
    Unfinished,
    discard_quietly,
    is_unfinished,
    journal_path,
    partial_path,
    unfinished,
)
from featx.store.layout import GROUP_ROWS
from featx.store.rows import RowFile, runs

_SYNC_BYTES = 160 * 2**20
_SYNC_SECONDS = 5.0
_METADATA_BYTES = 128  # an image, beside its texts: key, digest, checksums, the journal's line


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
    rows : RowFile, where other processes may write rows that `write` is then told of

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
        metadata.refuse_unstorable(recipe, self._ids, y, self._columns)
        self.recipe = replace(recipe, collection=collection_digest(ids, y, self._columns))
        n = len(self._ids)
        self._layers = layout.place_layers(self.recipe, n)
        self._end = layout.end_of(self._layers)
        self.todo = np.ones(n, bool)
        self.digests = np.zeros((n, 16), np.uint8)
        self.failures: dict[int, ImageError] = {}
        self._nonfinite: dict[tuple[int, str], str] = {}
        self._journaled = np.zeros(-(-n // GROUP_ROWS), bool)  # by groups of images
        self._told: list[dict[str, Any]] = []  # what the journal says of closing up
        self._unsynced, self._synced_at = 0, time.monotonic()
        self._refused = False  # by fsync: the system tells it once, and forgets what it could not write
        goes_on = is_unfinished(self._output)
        with files.told(self._output, lambda: files.KEPT if goes_on else files.NOTHING_KEPT):
            self._file = files.open_alone(self._partial)
            self.rows = RowFile(self._output, self._file, self._layers)
            self._sums = Checksums(self._file, self._layers)
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
                f"an unfinished run towards {self._output} is of another recipe or other images; finish it, or discard "
                "it with ",
                Parameter("discard", True),
            )
        if begun is None:  # an older journal must be gone before there is a file that it could be taken to tell of
            os.ftruncate(self._file, 0)
            journal_path(self._output).unlink(missing_ok=True)
            files.fsync_folder(self._partial.parent)
        others = len(self._ids) * (_METADATA_BYTES + len(self._layers)) + min(SPARE_BYTES, self._end)
        texts = metadata.text_nbytes(self._ids, self._y, self._columns)
        files.reserve(self._file, self._end, self._output, extra=texts + others)
        if begun is None:
            self._fsync()
        else:
            self._go_on(begun)
        return Journal(self._output, self.recipe, self._ids, begun)

    def _go_on(self, begun: Unfinished) -> None:
        """Believe what the journal says of rows that are on the disk as it says."""
        self._told = [entry for entry in begun.entries if "groups" not in entry]
        # rows have moved, and are checked when all have
        closing = any("closing" not in entry for entry in self._told)
        entries = [entry for entry in begun.entries if "groups" in entry]
        last = np.full(len(self._journaled), -1)  # the entry that holds, of a group that was done twice
        for number, entry in enumerate(entries):
            start, stop = entry["groups"]
            images = self._images(start, stop)
            self._sums.take_up(start, stop, entry["sums"])
            self._saw_passes_of(entry.get("pass_rows"))
            digests = np.frombuffer(bytes.fromhex(entry["digests"]), np.uint8)
            self.digests[images.start : images.stop] = digests.reshape(-1, 16)
            for group in range(start, stop):
                last[group] = number if closing or self._sums.hold(group, group + 1) else -1
        self._journaled = last >= 0
        for group in np.flatnonzero(~self._journaled).tolist():
            self._sums.forget(group, group + 1)
        self.todo = ~np.repeat(self._journaled, GROUP_ROWS)[: len(self.todo)]
        self.digests[self.todo] = 0
        for number, entry in enumerate(entries):
            for i, code, reason in entry["failures"]:
                if last[i // GROUP_ROWS] == number:
                    self.failures[i] = ImageError(code, reason)
            for i, name, what in entry["nonfinite"]:
                if last[i // GROUP_ROWS] == number:
                    self._nonfinite[i, name] = what

    def _images(self, start: int, stop: int) -> range:
        """Of groups start to stop."""
        return range(start * GROUP_ROWS, min(stop * GROUP_ROWS, len(self.todo)))

    def write(
        self,
        indices: np.ndarray,
        rows: Mapping[str, np.ndarray],
        digests: np.ndarray,
        pass_rows: int | None = None,
        in_file: Collection[str] = (),
    ) -> None:
        """Write the rows of some images.

        Parameters
        ----------
        indices : (m,) increasing positions in the run, none of them written before
        rows : {layer: (m, ...)} for every layer that is not `in_file`
        digests : (m, 16) uint8, content digests
        pass_rows : images of the forward pass, where they are fewer than the recipe's batch
        in_file : layers of which another process has written these rows; they are read back

        Raises
        ------
        StoreError
            The disk refuses.
        """
        new = bool(self.todo[indices].all() and (np.diff(indices) > 0).all())
        layers_fit = sorted([*rows, *in_file]) == sorted(self._layers)
        if not new or not layers_fit or digests.shape != (len(indices), 16):
            raise AssertionError("every row of every layer is written exactly once, with its image's digest")
        with files.told(self._output, self._kept):
            for name in self._layers:
                there = name in in_file
                values = self.rows.read(name, indices) if there else self.rows.write(name, indices, rows[name])
                for row in _nonfinite_rows(values):
                    self._nonfinite[int(indices[row]), name] = "nan" if np.isnan(values[row]).any() else "inf"
                for start, stop in runs(indices):
                    part = values[start:stop].reshape(-1).view(np.uint8).data
                    self._sums.add(name, int(indices[start]), part)
                self._unsynced += values.nbytes
            self.digests[indices] = digests
            self._saw_passes_of(pass_rows)
            self.todo[indices] = False
            self._sync_if_due()

    def _saw_passes_of(self, rows: int | None) -> None:
        known = self.recipe.pass_rows
        if rows is not None and (known is None or rows < known):
            self.recipe = replace(self.recipe, pass_rows=rows)

    def fail(self, failures: Mapping[int, ImageError]) -> None:
        """Declare that some images have no rows: {position: ImageError}."""
        if failures:
            if not self.todo[list(failures)].all():
                raise AssertionError("an image has a row or is a failure")
            self.failures |= failures
            self.todo[list(failures)] = False
            with files.told(self._output, self._kept):
                self._sync_if_due()

    def _kept(self) -> str:
        """What the disk has for certain, in words."""
        with contextlib.suppress(OSError):
            self._sync()
        has_its_name = not files.is_at(self._partial, self._file)
        return files.KEPT if has_its_name or self._journaled.any() else files.NOTHING_KEPT

    def _sync_if_due(self) -> None:
        if self._unsynced >= _SYNC_BYTES or time.monotonic() - self._synced_at >= _SYNC_SECONDS:
            self._sync()

    def _fsync(self) -> None:
        try:
            os.fsync(self._file)
        except OSError:
            self._refused = True
            raise

    def _sync(self) -> None:
        """Bring all rows to the disk and tell the journal of the groups that are complete since."""
        still = np.logical_or.reduceat(self.todo, np.arange(0, len(self.todo), GROUP_ROWS))
        complete = np.flatnonzero(~still & ~self._journaled)
        if len(complete) and not self._refused:
            self._fsync()
            self._journal.append(*self._entries(complete))
            self._journaled[complete] = True
        self._unsynced, self._synced_at = 0, time.monotonic()

    def _entries(self, complete: np.ndarray) -> Iterator[dict[str, Any]]:
        """What the journal is told: a line for each run of neighbouring groups."""
        failures: dict[int, list[tuple]] = defaultdict(list)
        nonfinite: dict[int, list[tuple]] = defaultdict(list)
        for i, error in self.failures.items():
            failures[i // GROUP_ROWS].append((i, error.code, error.reason))
        for (i, name), what in self._nonfinite.items():
            nonfinite[i // GROUP_ROWS].append((i, name, what))
        for run in np.split(complete, np.flatnonzero(np.diff(complete) != 1) + 1):
            start, stop = int(run[0]), int(run[-1]) + 1
            images = self._images(start, stop)
            self._sums.complete(start, stop)
            passes = {} if self.recipe.pass_rows is None else {"pass_rows": self.recipe.pass_rows}
            yield passes | {
                "groups": [start, stop],
                "digests": self.digests[images.start : images.stop].tobytes().hex(),
                "sums": self._sums.told(start, stop),
                "failures": [entry for group in range(start, stop) for entry in failures.get(group, ())],
                "nonfinite": [entry for group in range(start, stop) for entry in nonfinite.get(group, ())],
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
            self._sums.complete(0, len(self._journaled))
            if self.failures:
                self._sync()
                self._close_up(keep)
            page, rest, seal = layout.assemble(self._layers, self._metadata(keep))
            files.pwrite(self._file, page, layout.PAGE)
            files.pwrite(self._file, rest, seal.metadata)
            os.ftruncate(self._file, seal.size)
            self._fsync()
            files.pwrite(self._file, seal.to_bytes(), 0)
            self._fsync()
            os.replace(self._partial, files.real(self._output))
            fcntl.flock(self._file, fcntl.LOCK_UN)  # HDF5 takes the same lock to read
            files.fsync_folder(self._partial.parent)
            self._journal.remove()

    def _metadata(self, keep: np.ndarray) -> layout.Metadata:
        return metadata.datasets(
            self.recipe,
            [self._ids[i] for i in keep.tolist()],
            self.digests[keep],
            None if self._y is None else self._y[keep],
            {name: values[keep] for name, values in self._columns.items()},
            [Failure(self._ids[i], self.failures[i].code, self.failures[i].reason) for i in sorted(self.failures)],
            self._nonfinite,
            self._sums.of,
        )

    def _close_up(self, keep: np.ndarray) -> None:
        """From now on the run is one of only the images that have rows."""
        old, self._layers = self._layers, layout.place_layers(self.recipe, len(keep))
        closed, groups = Checksums(self._file, self._layers), -(-len(keep) // GROUP_ROWS)
        moved = [entry for entry in self._told if "closing" not in entry]
        if moved:
            closed.take_up(0, groups, next(entry["closing"] for entry in self._told[::-1] if "closing" in entry))
        else:
            closed.of = self._sums.closed_up(keep)
            self._journal.append({"closing": closed.told(0, groups)})
        close_up(self._file, self._fsync, self._journal, moved, old, self._layers, keep)
        if not closed.hold(0, groups):
            raise unfinished_damage()
        self._sums = closed
        self._nonfinite = {(int(np.searchsorted(keep, i)), name): what for (i, name), what in self._nonfinite.items()}


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
