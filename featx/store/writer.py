"""Rows in any order in, one whole HDF5 file out, or none.

Everything is written to `OUT.partial` beside the output: layers laid out in advance, rows by `os.pwrite` at their
place, metadata last; then fsync, rename, fsync of the folder. Image keys are made here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from featx.errors import ImageError, StoreError
from featx.store import layout
from featx.store.recipe import Recipe

_KEY_BITS = 52  # exact in a float64
_COPY_ROWS = 1024


def image_keys(ids: Sequence[str], digests: Sequence[bytes]) -> np.ndarray:
    """The integers that stand for images in X.

    Parameters
    ----------
    ids : n strings
    digests : n content digests, 16 bytes each

    Returns
    -------
    (n,) int64: 52 bits of a hash of id and content. They say nothing of order or class, and stores of the same
    images agree on them. Of two that collide, the later is hashed again.
    """
    keys: dict[int, None] = {}
    for name, digest in zip(ids, digests, strict=True):
        attempt = 0
        while True:
            text = digest + attempt.to_bytes(4, "little") + name.encode()
            key = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> (64 - _KEY_BITS)
            if key not in keys:
                break
            attempt += 1
        keys[key] = None
    return np.fromiter(keys, np.int64, len(keys))


class StoreWriter:
    """Write one store.

    Parameters
    ----------
    output : path of the finished file
    recipe : Recipe
    n_images : how many images the run has; each must be written or declared a failure

    Raises
    ------
    StoreError
        The output cannot be written, or the disk is full.

    Notes
    -----
    Used as a context manager, it leaves nothing behind unless `finish` was reached.
    """

    def __init__(self, output: str | os.PathLike, recipe: Recipe, n_images: int) -> None:
        self._output = Path(output)
        self._partial = self._output.with_name(self._output.name + ".partial")
        self._recipe = recipe
        self._written = np.zeros(n_images, bool)
        self._dtype = np.dtype(recipe.dtype).newbyteorder("<")
        self._offsets = self._lay_out(self._partial, n_images)
        self._file = os.open(self._partial, os.O_RDWR)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
        self._partial.unlink(missing_ok=True)  # after `finish` it is not there any more

    def _lay_out(self, path: Path, n: int) -> dict[str, int]:
        with layout.create(path) as file:
            group = file.create_group("layers")
            return {
                name: layout.add_rows(group, layout.member(name), (n, *tap["shape"]), self._recipe.dtype)
                for name, tap in self._recipe.taps.items()
            }

    def write(self, indices: np.ndarray, rows: Mapping[str, np.ndarray]) -> None:
        """Write the rows of some images.

        Parameters
        ----------
        indices : (m,) increasing positions in the run, none of them written before
        rows : {layer: (m, ...)} for every layer
        """
        if self._written[indices].any() or rows.keys() != self._offsets.keys():
            raise AssertionError("every row of every layer is written exactly once")
        # runs of neighbours are written in one call each
        starts = np.flatnonzero(np.diff(indices, prepend=-2) != 1)
        for name, values in rows.items():
            values = np.ascontiguousarray(values, self._dtype)
            row_bytes = values[0].nbytes
            for start, stop in zip(starts, [*starts[1:], len(indices)], strict=True):
                self._pwrite(values[start:stop], self._offsets[name] + int(indices[start]) * row_bytes)
        self._written[indices] = True

    def _pwrite(self, values: np.ndarray, offset: int) -> None:
        left = values.reshape(-1).view(np.uint8).data
        try:
            while left:
                done = os.pwrite(self._file, left, offset)
                left, offset = left[done:], offset + done
        except OSError as error:
            raise StoreError(f"cannot write {self._partial}: {error.strerror}; nothing was kept") from error

    def finish(
        self,
        ids: Sequence[str],
        digests: Mapping[int, bytes],
        y: np.ndarray | None,
        columns: Mapping[str, np.ndarray],
        failures: Mapping[int, ImageError],
    ) -> None:
        """Write the metadata, seal and rename.

        Parameters
        ----------
        ids : n_images names
        digests : {position: content digest} of the images that were written
        y : (n_images,) class names or floats, or None
        columns : {name: (n_images,) str}
        failures : {position: ImageError} of all others
        """
        keep = np.flatnonzero(self._written)
        if sorted([*keep.tolist(), *failures]) != list(range(len(ids))):
            raise AssertionError("every image is either written or a failure")
        if not len(keep):
            first = failures[0]
            raise StoreError(f"none of the {len(ids):,} images can be read; the first, {ids[0]!r}: {first}")
        if failures:
            self._compact(keep)
        kept_ids = [ids[i] for i in keep.tolist()]
        keys = image_keys(kept_ids, [digests[int(i)] for i in keep])
        try:
            with layout.reopen(self._partial) as file:
                images = file.create_group("images")
                layout.add_array(images, "key", keys)
                layout.add_strings(images, "id", kept_ids)
                digest_bytes = b"".join(digests[int(i)] for i in keep)
                layout.add_array(images, "digest", np.frombuffer(digest_bytes, np.uint8).reshape(-1, 16))
                if y is not None:
                    _add_labels(file.create_group("labels"), y[keep])
                group = file.create_group("columns")
                for name, values in columns.items():
                    layout.add_strings(group, layout.member(name), values[keep].tolist())
                group = file.create_group("failures")
                positions = sorted(failures)
                layout.add_strings(group, "id", [ids[i] for i in positions])
                layout.add_strings(group, "code", [failures[i].code for i in positions])
                layout.add_strings(group, "reason", [failures[i].reason for i in positions])
                layout.add_strings(file, "recipe", [self._recipe.to_json()])
                identity = hashlib.sha256(keys.tobytes() + self._recipe.to_json().encode()).hexdigest()
                file.attrs.create("format", np.bytes_(layout.FORMAT))
                file.attrs.create("version", np.int64(layout.VERSION))
                file.attrs.create("identity", np.bytes_(identity))
            os.fsync(self._file)
            os.replace(self._partial, self._output)
            _fsync_folder(self._output.parent)
        except OSError as error:
            raise StoreError(f"cannot write {self._output}: {error.strerror or error}; nothing was kept") from error

    def _compact(self, keep: np.ndarray) -> None:
        """Lay the file out again for the rows there are, and copy those."""
        compact = self._output.with_name(self._output.name + ".compact")
        try:
            offsets = self._lay_out(compact, len(keep))
            target = os.open(compact, os.O_RDWR)
            source, self._file = self._file, target
            try:
                for name, tap in self._recipe.taps.items():
                    shape = (len(self._written), *tap["shape"])
                    old = np.memmap(self._partial, self._dtype, "r", self._offsets[name], shape)
                    row_bytes = int(np.prod(tap["shape"])) * self._dtype.itemsize
                    for start in range(0, len(keep), _COPY_ROWS):
                        rows = np.ascontiguousarray(old[keep[start : start + _COPY_ROWS]])
                        self._pwrite(rows, offsets[name] + start * row_bytes)
            finally:
                os.close(source)
            os.replace(compact, self._partial)
            self._offsets = offsets
        finally:
            with contextlib.suppress(FileNotFoundError):
                compact.unlink()


def _add_labels(group: object, y: np.ndarray) -> None:
    if y.dtype.kind == "f":
        layout.add_array(group, "value", y.astype("<f8"))
        return
    classes, codes = np.unique(y, return_inverse=True)
    layout.add_strings(group, "classes", classes.tolist())
    layout.add_array(group, "code", codes.astype("<i8"))


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
