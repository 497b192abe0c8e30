"""Rows in any order in, one whole HDF5 file out, or none.

Everything is written to `OUT.partial` beside the output: layers laid out in advance, rows by `os.pwrite` at their
place, metadata last; then fsync, rename, fsync of the folder. Image keys are made here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import h5py
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
        The output cannot be written, another run is writing it, or the disk is full.

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
        skeleton = layout.Skeleton()
        self._offsets = self._lay_out(skeleton, n_images)
        with self._told():
            self._file = _open_alone(self._partial, skeleton.size)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if _is(self._partial, self._file):
            self._partial.unlink()  # not so after `finish`: then it has its final name
        os.close(self._file)

    def _lay_out(self, skeleton: layout.Skeleton, n: int) -> dict[str, int]:
        """Offsets of the layers' bytes: they come first in the file, and depend on the recipe and n alone."""
        with layout.create(skeleton) as file:
            group = file.create_group("layers")
            return {
                name: layout.add_rows(group, layout.member(name), (n, *tap["shape"]), self._recipe.dtype)
                for name, tap in self._recipe.taps.items()
            }

    def write(self, indices: np.ndarray, rows: Mapping[str, np.ndarray]) -> None:
        """Write the rows of some images.

        Parameters
        ----------
        indices : (m,) positions in the run, none of them written before
        rows : {layer: (m, ...)} for every layer
        """
        if self._written[indices].any() or rows.keys() != self._offsets.keys():
            raise AssertionError("every row of every layer is written exactly once")
        # runs of neighbours are written in one call each
        starts = np.flatnonzero(np.diff(indices, prepend=-2) != 1)
        with self._told():
            for name, values in rows.items():
                values = np.ascontiguousarray(values, self._dtype)
                for start, stop in zip(starts, [*starts[1:], len(indices)], strict=True):
                    place = self._offsets[name] + int(indices[start]) * values[0].nbytes
                    self._pwrite(values[start:stop].reshape(-1).view(np.uint8).data, place)
        self._written[indices] = True

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

        Raises
        ------
        StoreError
            Not one image was written, or the disk refuses.
        """
        keep = np.flatnonzero(self._written)
        if sorted([*keep.tolist(), *failures]) != list(range(len(ids))):
            raise AssertionError("every image is either written or a failure")
        if not len(keep):
            raise StoreError(f"none of the {len(ids):,} images can be read; the first, {ids[0]!r}: {failures[0]}")
        kept = [ids[i] for i in keep.tolist()]
        keys = image_keys(kept, [digests[i] for i in keep.tolist()])
        skeleton = layout.Skeleton()
        offsets = self._lay_out(skeleton, len(keep))
        with layout.reopen(skeleton) as file:
            images = file.create_group("images")
            layout.add_array(images, "key", keys.astype("<i8"))
            layout.add_strings(images, "id", kept)
            joined = b"".join(digests[i] for i in keep.tolist())
            layout.add_array(images, "digest", np.frombuffer(joined, np.uint8).reshape(-1, 16))
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
            labels = [
                None if y is None else y[keep].tolist(),
                {key: values[keep].tolist() for key, values in columns.items()},
            ]
            described = keys.tobytes() + self._recipe.to_json().encode() + json.dumps(labels).encode()
            identity = hashlib.sha256(described).hexdigest()
            file.attrs.create("format", np.bytes_(layout.FORMAT))
            file.attrs.create("version", np.int64(layout.VERSION))
            file.attrs.create("identity", np.bytes_(identity))
        with self._told():
            if failures:
                self._compact(keep, offsets)
            for offset, content in skeleton.extents:
                self._pwrite(memoryview(content), offset)
            os.ftruncate(self._file, skeleton.size)
            os.fsync(self._file)
            os.replace(self._partial, self._output)
            fcntl.flock(self._file, fcntl.LOCK_UN)  # HDF5 takes the same lock to read
            _fsync_folder(self._output.parent)

    def _compact(self, keep: np.ndarray, offsets: dict[str, int]) -> None:
        """Move the rows there are to where a file of only those has them.

        In the order of the file every row moves towards its beginning or stays, so nothing is overwritten unread.
        """
        for name in sorted(offsets, key=offsets.__getitem__):
            tap = self._recipe.taps[name]
            old = np.memmap(self._partial, self._dtype, "r", self._offsets[name], (len(self._written), *tap["shape"]))
            row_bytes = int(np.prod(tap["shape"])) * self._dtype.itemsize
            for start in range(0, len(keep), _COPY_ROWS):
                rows = np.ascontiguousarray(old[keep[start : start + _COPY_ROWS]])
                self._pwrite(rows.reshape(-1).view(np.uint8).data, offsets[name] + start * row_bytes)

    def _pwrite(self, left: memoryview, offset: int) -> None:
        while left:
            done = os.pwrite(self._file, left, offset)
            left, offset = left[done:], offset + done

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else "the disk refused"
            raise StoreError(f"cannot write {self._output}: {reason}; nothing was kept") from error


def _open_alone(path: Path, size: int) -> int:
    """A handle on a file of zeros that no other run has."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(path, handle):
                try:
                    os.ftruncate(handle, 0)  # what a killed run left
                    os.ftruncate(handle, size)
                except BaseException:
                    path.unlink()
                    raise
                return handle
        except BlockingIOError as error:
            os.close(handle)
            raise StoreError(f"another run is writing {path}; wait for it, or choose another output") from error
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the other run was done between our two steps


def _add_labels(group: h5py.Group, y: np.ndarray) -> None:
    if y.dtype.kind == "f":
        layout.add_array(group, "value", y.astype("<f8"))
        return
    classes, codes = np.unique(y, return_inverse=True)
    layout.add_strings(group, "classes", classes.tolist())
    layout.add_array(group, "code", codes.astype("<i8"))


def _is(path: Path, handle: int) -> bool:
    return path.exists() and os.path.samestat(os.stat(path), os.fstat(handle))


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
