"""StoreWriter writes rows in any order to one HDF5 file, or leaves an unfinished run that can be continued.

`OUT.partial` has its full size from the start, and `os.pwrite` puts rows to their places. `OUT.journal` records what is
on the disk. At the end the gaps of failed images are closed, the metadata is written, fsync, seal, fsync, rename, fsync
of the folder. All code that needs the state of a run is in this file.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import time
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from featx.errors import ImageError, Parameter, StoreError
from featx.image_statistics import IMAGE_STATISTICS
from featx.recipe import Recipe, collection_digest
from featx.store import files, layout, metadata
from featx.store.checksums import Checksums, unfinished_damage
from featx.store.compaction import SPARE_BYTES, compact
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
_METADATA_BYTES = 128  # per image, beside its texts: key, digest, checksums, the journal's line


class StoreWriter:
    """Write one store, or continue an unfinished one.

    Parameters
    ----------
    output : path of the finished file
    recipe : Recipe
        `collection` is filled in.
    ids : n names; each image must be written or declared a failure
    y : (n,) class names or floats, or None
    columns : {name: (n,) str}
    statistics : whether each image has a record of IMAGE_STATISTICS
    listing : what was found at the URLs of the source, kept in the journal for a run that continues this one

    Attributes
    ----------
    recipe : Recipe, as it will be in the file
    todo : (n,) bool, the images that are neither written nor failures yet
    digests : (n, 16) uint8, content digests of the images that are written
    failures : {position: ImageError}
    rows : RowFile, with which other processes may write rows; `write` then gets the names of their layers as `in_file`

    Raises
    ------
    StoreError
        The output cannot be written, another run is writing it, a different unfinished run exists, or the disk has too
        little space.

    Notes
    -----
    The writer is a context manager. If it is left before `finish`, the run is unfinished, and a writer with the same
    arguments continues it. If no group of 64 images was complete, there is nothing to continue, and no file is left.
    """

    def __init__(
        self,
        output: str | os.PathLike,
        recipe: Recipe,
        ids: Sequence[str],
        y: np.ndarray | None = None,
        columns: Mapping[str, np.ndarray] | None = None,
        *,
        statistics: bool = False,
        listing: str | None = None,
    ) -> None:
        self._listing = listing
        self._output, self._ids, self._y, self._columns = Path(output), list(ids), y, dict(columns or {})
        self._partial = partial_path(self._output)
        metadata.refuse_unstorable(recipe, self._ids, y, self._columns)
        self.recipe = replace(recipe, collection=collection_digest(ids, y, self._columns))
        n = len(self._ids)
        self._layers = layout.place_layers(self.recipe, n)
        self._end = layout.end_of(self._layers)
        self.todo = np.ones(n, bool)
        self.digests = np.zeros((n, 16), np.uint8)
        self._statistics = np.zeros(n, IMAGE_STATISTICS) if statistics else None
        self.failures: dict[int, ImageError] = {}
        self._nonfinite: dict[tuple[int, str], str] = {}
        self._journaled = np.zeros(-(-n // GROUP_ROWS), bool)  # by groups of images
        self._compaction: list[dict[str, Any]] = []  # the journal's entries about it
        self._unsynced, self._synced_at = 0, time.monotonic()
        self._fsync_failed = False  # the system reports that once, and drops the data that it could not write
        is_continued = is_unfinished(self._output)
        with files.disk_errors(self._output, lambda: files.KEPT if is_continued else files.NOTHING_KEPT):
            self._file = files.open_alone(self._partial)
            self.rows = RowFile(self._output, self._file, self._layers)
            self._sums = Checksums(self._file, self._layers)
            try:
                begun = unfinished(self._output)
                is_continued = begun is not None
                self._journal = self._begin(begun)
            except BaseException:
                if not is_continued:
                    discard_quietly(self._output)
                os.close(self._file)
                raise

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if files.is_at(self._partial, self._file):  # not after `finish`, which renames it
                with contextlib.suppress(OSError, StoreError):
                    self._sync()
                if not self._journaled.any():
                    discard_quietly(self._output)
        finally:
            self._journal.close()
            os.close(self._file)

    def _begin(self, begun: Unfinished | None) -> Journal:
        kept = [("statistics" in entry) for entry in begun.entries if "groups" in entry] if begun is not None else []
        other_parts = (self._statistics is None) in kept
        if begun is not None and (begun.recipe != self.recipe or begun.ids != self._ids or other_parts):
            raise StoreError(
                f"an unfinished run for {self._output} has another recipe or other images; finish it, or discard it "
                "with ",
                Parameter("discard", True),
            )
        if begun is None:  # remove an older journal before a new file exists to which it would seem to belong
            os.ftruncate(self._file, 0)
            journal_path(self._output).unlink(missing_ok=True)
            files.fsync_folder(self._partial.parent)
        per_image = _METADATA_BYTES + 2 * IMAGE_STATISTICS.itemsize * (self._statistics is not None)
        others = len(self._ids) * (per_image + len(self._layers)) + min(SPARE_BYTES, self._end)
        texts = metadata.text_nbytes(self._ids, self._y, self._columns)
        files.reserve(self._file, self._end, self._output, extra=texts + others)
        if begun is None:
            self._fsync()
        else:
            self._continue(begun)
        return Journal(self._output, self.recipe, self._ids, begun, self._listing)

    def _continue(self, begun: Unfinished) -> None:
        """Restore the state that the journal records, of groups whose rows have the recorded checksums."""
        self._compaction = [entry for entry in begun.entries if "groups" not in entry]
        # once rows have been moved, they are checked at the end of the compaction
        rows_moved = any("closing" not in entry for entry in self._compaction)
        entries = [entry for entry in begun.entries if "groups" in entry]
        last = np.full(len(self._journaled), -1)  # the valid entry of each group, which may have been written twice
        for number, entry in enumerate(entries):
            start, stop = entry["groups"]
            images = self._images(start, stop)
            self._sums.from_journal(start, stop, entry["sums"])
            self._record_pass_rows(entry.get("pass_rows"))
            digests = np.frombuffer(bytes.fromhex(entry["digests"]), np.uint8)
            self.digests[images.start : images.stop] = digests.reshape(-1, 16)
            if self._statistics is not None:
                records = zlib.decompress(base64.b64decode(entry["statistics"]))
                self._statistics[images.start : images.stop] = np.frombuffer(records, IMAGE_STATISTICS)
            for group in range(start, stop):
                last[group] = number if rows_moved or self._sums.match_file(group, group + 1) else -1
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
        """The images of groups `start` to `stop`."""
        return range(start * GROUP_ROWS, min(stop * GROUP_ROWS, len(self.todo)))

    def write(
        self,
        indices: np.ndarray,
        rows: Mapping[str, np.ndarray],
        digests: np.ndarray,
        pass_rows: int | None = None,
        in_file: Collection[str] = (),
        statistics: np.ndarray | None = None,
    ) -> None:
        """Write the rows of some images.

        Parameters
        ----------
        indices : (m,) increasing positions in the run, none of them written before
        rows : {layer: (m, ...)} for every layer that is not `in_file`
        digests : (m, 16) uint8, content digests
        pass_rows : images per forward pass, if fewer than the recipe's batch size
        in_file : layers whose rows another process has written; they are read back
        statistics : (m,) of IMAGE_STATISTICS, if the writer was made with `statistics`

        Raises
        ------
        StoreError
            The disk reports an error.
        """
        new = bool(self.todo[indices].all() and (np.diff(indices) > 0).all())
        layers_fit = sorted([*rows, *in_file]) == sorted(self._layers)
        if not new or not layers_fit or digests.shape != (len(indices), 16):
            raise AssertionError("every row of every layer is written exactly once, with its image's digest")
        with files.disk_errors(self._output, self._kept):
            for name in self._layers:
                if name in in_file:
                    values = self.rows.read(name, indices)
                else:
                    values = self.rows.write(name, indices, rows[name])
                for row in _nonfinite_rows(values):
                    self._nonfinite[int(indices[row]), name] = "nan" if np.isnan(values[row]).any() else "inf"
                for start, stop in runs(indices):
                    part = values[start:stop].reshape(-1).view(np.uint8).data
                    self._sums.add(name, int(indices[start]), part)
                self._unsynced += values.nbytes
            self.digests[indices] = digests
            if self._statistics is not None:
                self._statistics[indices] = statistics
            self._record_pass_rows(pass_rows)
            self.todo[indices] = False
            self._sync_if_due()

    def _record_pass_rows(self, rows: int | None) -> None:
        known = self.recipe.pass_rows
        if rows is not None and (known is None or rows < known):
            self.recipe = replace(self.recipe, pass_rows=rows)

    def fail(self, failures: Mapping[int, ImageError]) -> None:
        """Declare that some images have no rows: {position: ImageError}."""
        if failures:
            if not self.todo[list(failures)].all():
                raise AssertionError("an image either has a row or is a failure")
            self.failures |= failures
            self.todo[list(failures)] = False
            with files.disk_errors(self._output, self._kept):
                self._sync_if_due()

    def _kept(self) -> str:
        """Text for a message: which rows of the run are kept on the disk."""
        with contextlib.suppress(OSError):
            self._sync()
        is_renamed = not files.is_at(self._partial, self._file)
        return files.KEPT if is_renamed or self._journaled.any() else files.NOTHING_KEPT

    def _sync_if_due(self) -> None:
        if self._unsynced >= _SYNC_BYTES or time.monotonic() - self._synced_at >= _SYNC_SECONDS:
            self._sync()

    def _fsync(self) -> None:
        try:
            os.fsync(self._file)
        except OSError:
            self._fsync_failed = True
            raise

    def _sync(self) -> None:
        """Bring all rows to the disk, then record the groups that have become complete."""
        incomplete = np.logical_or.reduceat(self.todo, np.arange(0, len(self.todo), GROUP_ROWS))
        complete = np.flatnonzero(~incomplete & ~self._journaled)
        if len(complete) and not self._fsync_failed:
            self._fsync()
            self._journal.append(*self._entries(complete))
            self._journaled[complete] = True
        self._unsynced, self._synced_at = 0, time.monotonic()

    def _entries(self, complete: np.ndarray) -> Iterator[dict[str, Any]]:
        """Journal entries of complete groups, one for each run of consecutive groups."""
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
            extra: dict[str, Any] = {} if self.recipe.pass_rows is None else {"pass_rows": self.recipe.pass_rows}
            if self._statistics is not None:
                records = zlib.compress(self._statistics[images.start : images.stop].tobytes(), 1)
                extra["statistics"] = base64.b64encode(records).decode()
            yield extra | {
                "groups": [start, stop],
                "digests": self.digests[images.start : images.stop].tobytes().hex(),
                "sums": self._sums.to_journal(start, stop),
                "failures": [entry for group in range(start, stop) for entry in failures.get(group, ())],
                "nonfinite": [entry for group in range(start, stop) for entry in nonfinite.get(group, ())],
            }

    def finish(self) -> None:
        """Close gaps, write the metadata, seal and rename.

        Raises
        ------
        StoreError
            No image has a row, or the disk reports an error.
        """
        if self.todo.any():
            raise AssertionError("every image is either written or a failure")
        keep = np.delete(np.arange(len(self.todo)), list(self.failures))
        if not len(keep):
            discard_quietly(self._output)  # there is nothing to continue
            raise StoreError(f"none of the {len(self._ids):,} images can be read; the first, {self._ids[0]!r}: "
                             f"{self.failures[0]}")  # fmt: skip
        with files.disk_errors(self._output, self._kept):
            self._sums.complete(0, len(self._journaled))
            if self.failures:
                self._sync()
                self._compact(keep)
            page, rest, seal = layout.assemble(
                self._layers, self._metadata(keep), self.recipe.views, self.recipe.is_imported
            )
            files.pwrite(self._file, page, layout.PAGE)
            files.pwrite(self._file, rest, seal.metadata)
            os.ftruncate(self._file, seal.size)
            self._fsync()
            files.pwrite(self._file, seal.to_bytes(), 0)
            self._fsync()
            os.replace(self._partial, files.real(self._output))
            fcntl.flock(self._file, fcntl.LOCK_UN)  # HDF5 takes the same lock for reading
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
            None if self._statistics is None else self._statistics[keep],
        )

    def _compact(self, keep: np.ndarray) -> None:
        """Close the gaps of failed images; from now on the layers have rows of the images at `keep` only."""
        old, self._layers = self._layers, layout.place_layers(self.recipe, len(keep))
        sums, groups = Checksums(self._file, self._layers), -(-len(keep) // GROUP_ROWS)
        moves = [entry for entry in self._compaction if "closing" not in entry]
        if moves:
            recorded = next(entry["closing"] for entry in self._compaction[::-1] if "closing" in entry)
            sums.from_journal(0, groups, recorded)
        else:
            sums.of = self._sums.compacted(keep)
            self._journal.append({"closing": sums.to_journal(0, groups)})
        compact(self._file, self._fsync, self._journal, moves, old, self._layers, keep)
        if not sums.match_file(0, groups):
            raise unfinished_damage()
        self._sums = sums
        self._nonfinite = {(int(np.searchsorted(keep, i)), name): what for (i, name), what in self._nonfinite.items()}


def _nonfinite_rows(values: np.ndarray) -> list[int]:
    """Positions of the rows that contain NaN or inf."""
    if values.dtype.itemsize == 4:
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(values.sum()):  # one pass and no copy; if the sum overflows, values are checked one by one
                return []
        bad = ~np.isfinite(values)
    else:
        bad = (values.view(np.uint16) & 0x7C00) == 0x7C00  # all bits of the exponent
    return np.flatnonzero(bad.reshape(len(values), -1).any(axis=1)).tolist()
