"""Maps and checks a store's file; a layer is a memory map that carries the store's identity.

The whole file is mapped once, so all reads are from the file that was opened, even if its path is given to another
file. Processes share no handle: a store, a layer or a view of one is pickled as path and identity, and the other
process opens the file again or refuses it.
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
    """A mapped file whose seal, metadata and structure are intact.

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
            *others, last = map(str, layout.VERSIONS)
            known = f"{', '.join(others)} and {last}" if others else last
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
            raise damaged(path, "the bytes behind its superblock are not zero")
        try:
            attributes = layout.attributes(seal.version)
            self.tree = parse(superblock, bytes(view[seal.structure :]), layout.PAGE, seal.structure, attributes)
        except hdf5.Malformed as error:
            raise damaged(path, str(error)) from error

    def check_metadata(self) -> None:
        """Raise StoreError unless size, seal and metadata are as sealed; rows are not read."""
        seal = self.seal
        if self.content.size() != seal.size:  # first: reading mapped pages behind the end of a file is fatal
            raise damaged(self.path, f"it has {self.content.size():,} bytes and should have {seal.size:,}")
        view = memoryview(self.content)
        if view[: layout.PAGE] != seal.to_bytes():
            raise damaged(self.path, "its seal is damaged")
        if layout.identity_of(view[layout.PAGE : layout.FIRST_LAYER], view[seal.metadata :]) != seal.identity:
            raise damaged(self.path, "its metadata is damaged")

    def forget_metadata(self) -> None:
        """Release the pages that have been read: a million images have 100 MB of ids and digests."""
        start = layout.aligned(self.seal.metadata, mmap.PAGESIZE)
        if hasattr(self.content, "madvise") and start < self.seal.size:
            self.content.madvise(mmap.MADV_DONTNEED, start)

    def refuse_overwritten(self) -> None:
        """Raise StoreError if the open file itself was written to, as `cp` does; its path may name another file now."""
        if _stamp(os.fstat(self._file)) != self._stamp:
            self.check_metadata()
            raise StoreError(f"{self.path} was written to since it was opened; open it again")

    @contextlib.contextmanager
    def read_at_random(self) -> Iterator[None]:
        """A context without read-ahead, for reading rows that are far apart."""
        if not hasattr(self.content, "madvise"):
            yield
            return
        self.content.madvise(mmap.MADV_RANDOM)
        try:
            yield
        finally:
            self.content.madvise(mmap.MADV_NORMAL)

    def is_zero(self, places: Iterable[tuple[int, int]]) -> bool:
        """Whether all bytes of some ranges (start, stop) are zero."""
        view = memoryview(self.content)
        return not any(any(view[start:stop]) for start, stop in places)

    def array(self, array: Array) -> np.ndarray:
        """A dataset's values, mapped and read-only."""
        self.refuse_overwritten()
        return np.ndarray(array.shape, array.dtype, self.content, array.offset if array.nbytes else 0)

    def layer(self, array: Array) -> MappedRows:
        """A layer's rows, mapped and read-only."""
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
        is_file = stat.S_ISREG(os.stat(path).st_mode)  # checked before opening, which would block on a pipe
        if is_file:
            return os.open(path, os.O_RDONLY)
    except FileNotFoundError as error:
        if is_unfinished(path):
            raise StoreError(
                f"{path} is not finished yet: run the same ", Call("featx.extract"), " again to continue it"
            ) from error
        siblings = [file.name for file in path.parent.glob("*.h5")] if path.parent.is_dir() else []
        if close := nearest(path.name, siblings):
            raise StoreError(f"there is no store {path}{close}") from error
        raise StoreError(f"there is no store {path}; ", Call("featx.extract"), " makes one") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StoreError(f"cannot open {path} as a store: {reason}") from error
    if path.is_dir():
        raise StoreError(
            f"cannot open {path} as a store: it is a folder; ", Call("featx.extract"), " makes a store of its images"
        )
    raise StoreError(f"cannot open {path} as a store: it is not a file")


def reopened(path: str, identity: str) -> Mapped:
    """Open a store again in another process.

    Raises
    ------
    StoreError
        The file is gone, or is another store.
    """
    mapped = _mapped_once(path, identity)
    mapped.refuse_overwritten()
    return mapped


@lru_cache(maxsize=8)
def _mapped_once(path: str, identity: str) -> Mapped:
    mapped = Mapped(Path(path))
    if mapped.seal.identity != identity:
        raise _replaced(path)
    return mapped


class CheckedPath(os.PathLike[str]):
    """A store's path; unpickling raises StoreError unless it is still the path of the same store.

    joblib pickles memory maps, and views of them, by file name and offset.
    """

    def __init__(self, path: str, identity: str, handle: int | None = None) -> None:
        self.path, self.identity, self._handle = path, identity, handle
        if handle is not None:
            weakref.finalize(self, os.close, handle)

    def __fspath__(self) -> str:
        if self._handle is not None and os.path.exists(f"/proc/self/fd/{self._handle}"):
            return f"/proc/self/fd/{self._handle}"  # the file that was checked, even if another has its name now
        return self.path

    def __str__(self) -> str:
        return self.path

    def resolve(self) -> CheckedPath:
        """np.memmap calls this, and keeps the result as `filename`."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _checked, (self.path, self.identity)


def _checked(path: str, identity: str) -> CheckedPath:
    inode, handle = reopened(path, identity).inode, os.open(path, os.O_RDONLY)
    checked = CheckedPath(path, identity, handle)
    if _inode(os.fstat(handle)) != inode:
        raise _replaced(path)
    return checked


def _replaced(path: str) -> StoreError:
    return StoreError(f"{path} was replaced by another store since it was opened; open it again")


class MappedRows(np.memmap):
    """Rows of a layer, mapped read-only. A pickle of them, or of a contiguous part, contains no rows."""

    filename: CheckedPath  # type: ignore[assignment]
    _mmap: mmap.mmap | None

    def __reduce__(self) -> Any:
        content = getattr(self, "_mmap", None)
        if content is None or not self.flags.c_contiguous or not self.size:
            return np.array(self, subok=False).__reduce__()  # a result computed from rows, or a selection of them
        start = np.frombuffer(content, np.uint8).__array_interface__["data"][0]
        offset = self.__array_interface__["data"][0] - start
        path, identity = self.filename.path, self.filename.identity
        return _reopened_layer, (path, identity, self.dtype.str, self.shape, offset)

    def __getitem__(self, index: Any) -> Any:
        selected = super().__getitem__(index)
        # a selection that was copied into memory is an ordinary array
        is_copy = isinstance(selected, MappedRows) and selected._mmap is None
        return selected.view(np.ndarray) if is_copy else selected

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return array[()] if return_scalar else np.asarray(array)


def _reopened_layer(path: str, identity: str, dtype: str, shape: tuple[int, ...], offset: int) -> MappedRows:
    return reopened(path, identity).layer(Array(dtype, shape, offset))
