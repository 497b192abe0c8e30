"""A store's file, checked and mapped; and a layer as a memory map that knows whose rows it holds.

The whole file is mapped once, so what is read is one file's for as long as it is read, whatever takes its name. No
handle is shared with another process: a store, a layer and a view of one are pickled as path and identity, and opened
anew there, or refused.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import weakref
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from featx.errors import Call, StoreError, nearest
from featx.store import hdf5, layout
from featx.store.hdf5 import Array
from featx.store.hdf5_parse import parse
from featx.store.journal import is_unfinished


class Mapped:
    """A file whose seal, metadata and structure are whole.

    Parameters
    ----------
    path : path of the file

    Attributes
    ----------
    seal : layout.Seal
    tree : {name: Array, or {name: Array}}
    content : the file, mapped

    Raises
    ------
    StoreError
        There is no such file, or it is not a whole store.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _opened(path)
        weakref.finalize(self, os.close, self._file)
        status = os.fstat(self._file)
        self.inode, self._stamp = _inode(status), _stamp(status)
        try:
            page = os.pread(self._file, layout.PAGE, 0)
            self.content = mmap.mmap(self._file, 0, access=mmap.ACCESS_READ) if page else mmap.mmap(-1, 1)
        except (OSError, ValueError, OverflowError) as error:
            raise StoreError(f"cannot open {path} as a store: it cannot be read ({error})") from error
        if (version := layout.version_of(page)) is None:
            raise StoreError(f"{path} is not a featx store; ", Call("featx.extract"), " makes one, under another name")
        if version not in layout.VERSIONS:
            known = " and ".join(map(str, layout.VERSIONS))
            raise StoreError(f"{path} has format version {version}; this featx reads {known}: update it")
        try:
            self.seal = layout.Seal.from_bytes(page)
        except ValueError as error:
            raise damaged(path, "its seal is damaged") from error
        self.check_metadata()
        seal, view = self.seal, memoryview(self.content)
        superblock_page = view[layout.PAGE : layout.FIRST_LAYER]
        superblock = bytes(superblock_page[: hdf5.SUPERBLOCK_BYTES])
        if any(superblock_page[hdf5.SUPERBLOCK_BYTES :]):
            raise damaged(path, "there is something behind its superblock")
        try:
            attributes = layout.attributes(seal.version)
            self.tree = parse(superblock, bytes(view[seal.structure :]), layout.PAGE, seal.structure, attributes)
        except hdf5.Malformed as error:
            raise damaged(path, str(error)) from error

    def check_metadata(self) -> None:
        """Raise StoreError unless all that is not rows is as the seal says."""
        seal = self.seal
        if self.content.size() != seal.size:  # first: what is mapped, but not there, must not be touched
            raise damaged(self.path, f"it has {self.content.size():,} bytes and should have {seal.size:,}")
        view = memoryview(self.content)
        if view[: layout.PAGE] != seal.to_bytes():
            raise damaged(self.path, "its seal is damaged")
        if layout.identity_of(view[layout.PAGE : layout.FIRST_LAYER], view[seal.metadata :]) != seal.identity:
            raise damaged(self.path, "its metadata is damaged")

    def forget_metadata(self) -> None:
        """Let go of the pages that were looked at: a million images have a hundred megabytes of names and digests."""
        start = layout.aligned(self.seal.metadata, mmap.PAGESIZE)
        if hasattr(self.content, "madvise") and start < self.seal.size:
            self.content.madvise(mmap.MADV_DONTNEED, start)

    def refuse_overwritten(self) -> None:
        """Raise StoreError if the file itself, not its name, was written to since it was opened: `cp` does that."""
        if _stamp(os.fstat(self._file)) != self._stamp:
            self.check_metadata()
            raise StoreError(f"{self.path} was written to since it was opened; open it again")

    @contextlib.contextmanager
    def read_at_random(self) -> Iterator[None]:
        """Rows that are read now are far apart: what lies around them is not fetched from the disk with them."""
        if not hasattr(self.content, "madvise"):
            yield
            return
        self.content.madvise(mmap.MADV_RANDOM)
        try:
            yield
        finally:
            self.content.madvise(mmap.MADV_NORMAL)

    def is_zero(self, places: Iterable[tuple[int, int]]) -> bool:
        """Whether there is nothing at (start, stop)."""
        view = memoryview(self.content)
        return not any(any(view[start:stop]) for start, stop in places)

    def array(self, array: Array) -> np.ndarray:
        """A dataset's values, mapped, read-only."""
        self.refuse_overwritten()
        return np.ndarray(array.shape, array.dtype, self.content, array.offset if array.nbytes else 0)

    def layer(self, array: Array) -> MappedRows:
        """A layer's rows."""
        rows = np.ndarray.__new__(MappedRows, array.shape, array.dtype, self.content, array.offset)
        rows._mmap, rows.offset, rows.mode = self.content, array.offset, "r"
        rows.filename = CheckedPath(str(self.path), self.seal.identity)
        return rows


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def damaged(path: Path, reason: str) -> StoreError:
    return StoreError(f"{path} is not a whole featx store: {reason}; extract it again, or restore it from a copy")


def _opened(path: Path) -> int:
    try:
        is_file = stat.S_ISREG(os.stat(path).st_mode)  # before it is opened: a pipe would wait for ever
        if is_file:
            return os.open(path, os.O_RDONLY)
    except FileNotFoundError as error:
        if is_unfinished(path):
            raise StoreError(
                f"{path} is not finished yet: the ", Call("featx.extract"), " that began it goes on"
            ) from error
        siblings = [file.name for file in path.parent.glob("*.h5")] if path.parent.is_dir() else []
        if close := nearest(path.name, siblings):
            raise StoreError(f"there is no store {path}{close}") from error
        raise StoreError(f"there is no store {path}; ", Call("featx.extract"), " makes one") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StoreError(f"cannot open {path} as a store: {reason}") from error
    raise StoreError(f"cannot open {path} as a store: it is not a file")


def reopened(path: str, identity: str) -> Mapped:
    """The same store in another process.

    Raises
    ------
    StoreError
        There is another one at its place, or none.
    """
    found = _mapped_once(path, identity)
    found.refuse_overwritten()
    return found


@lru_cache(maxsize=8)
def _mapped_once(path: str, identity: str) -> Mapped:
    found = Mapped(Path(path))
    if found.seal.identity != identity:
        raise _replaced(path)
    return found


class CheckedPath(os.PathLike[str]):
    """A store's path that, unpickled, leads to the very store it led to, or raises StoreError.

    joblib pickles memory maps, and arrays that are views of one, by file name and offset.
    """

    def __init__(self, path: str, identity: str, handle: int | None = None) -> None:
        self.path, self.identity, self._handle = path, identity, handle
        if handle is not None:
            weakref.finalize(self, os.close, handle)

    def __fspath__(self) -> str:
        if self._handle is not None and os.path.exists(f"/proc/self/fd/{self._handle}"):
            return f"/proc/self/fd/{self._handle}"  # the file that was checked, whatever has its name by now
        return self.path

    def __str__(self) -> str:
        return self.path

    def resolve(self) -> CheckedPath:
        """NumPy asks for it, to keep it as `filename`."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _checked, (self.path, self.identity)


def _checked(path: str, identity: str) -> CheckedPath:
    inode, handle = reopened(path, identity).inode, os.open(path, os.O_RDONLY)
    found = CheckedPath(path, identity, handle)
    if _inode(os.fstat(handle)) != inode:
        raise _replaced(path)
    return found


def _replaced(path: str) -> StoreError:
    return StoreError(f"{path} was replaced by another store since it was opened; open it again")


class MappedRows(np.memmap):
    """Rows of a layer, mapped read-only; a pickle of them, or of contiguous rows of them, holds no rows."""

    filename: CheckedPath  # type: ignore[assignment]
    _mmap: mmap.mmap | None

    def __reduce__(self) -> Any:
        content = getattr(self, "_mmap", None)
        if content is None or not self.flags.c_contiguous or not self.size:
            return np.array(self, subok=False).__reduce__()  # computed from rows, or a selection of them
        start = np.frombuffer(content, np.uint8).__array_interface__["data"][0]
        offset = self.__array_interface__["data"][0] - start
        path, identity = self.filename.path, self.filename.identity
        return _layer_again, (path, identity, self.dtype.str, self.shape, offset)

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        # a selection is in memory, and an array like any other
        return found.view(np.ndarray) if isinstance(found, MappedRows) and found._mmap is None else found

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return array[()] if return_scalar else np.asarray(array)


def _layer_again(path: str, identity: str, dtype: str, shape: tuple[int, ...], offset: int) -> MappedRows:
    return reopened(path, identity).layer(Array(dtype, shape, offset))
