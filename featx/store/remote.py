"""Stores at URLs, through fsspec, and `fetched`, which downloads one into the cache folder.

A store is whole or absent, there and here. Its first page, its seal, has the size of the file and the digest of its
metadata, which contains the checksums of the rows; so two files with equal seals are the same store, and reading this
page tells whether a copy is the remote store as it is now. A download is checked by all checksums before it gets its
name.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from featx.errors import Call, DamageError, Parameter, StoreError, readable
from featx.progress import Progress, preparing, shown
from featx.store import files, layout
from featx.store.blocks import Blocks
from featx.store.contents import Contents
from featx.store.files import disk_errors
from featx.store.layout import Seal
from featx.store.mapped import Mapped
from featx.urls import asked_again, counting, is_gone, is_web, opened, read_part, tried
from featx.urls import shown as shown_url

_OBJECT_STORES = frozenset("s3 s3a gs gcs abfs abfss az adl oci oss".split())  # an upload has its name once it is whole
_PART_BYTES, _PARTS_AT_ONCE = 16 * 2**20, 8


class NotAStore(StoreError):
    """What a URL names is not a whole store."""


class RemoteStore:
    """The file that a URL names.

    Raises
    ------
    StoreError
        fsspec, or its package for this kind of URL, is not installed, or the file cannot be read.
    """

    def __init__(self, url: str) -> None:
        self.url = shown_url(url)
        self._system, self._inner = opened(url, StoreError)

    def seal(self) -> Seal | None:
        """The seal of a whole store; None if there is no file.

        Raises
        ------
        StoreError
            It is another file, is not whole, or cannot be read.
        """
        info = tried(self.url, self._info, StoreError)
        if info is None:
            return None
        size = int(info.get("size") or 0)
        if info.get("type") == "directory":
            raise StoreError(f"{self.url} is a folder; a store is one file, such as {self.url.rstrip('/')}/photos.h5")
        page = self._read(0, min(layout.PAGE, size), size) if size else b""
        if (version := layout.version_of(page)) is None:
            raise NotAStore(f"{self.url} is not a featx store; ", Call("featx.put"), " uploads one")
        if version not in layout.VERSIONS:
            raise NotAStore(f"{self.url} has format version {version}, which this featx does not read; update it")
        try:
            seal = Seal.from_bytes(page)
        except ValueError as error:
            raise NotAStore(f"{self.url} is not a whole featx store, its seal is damaged; put it again") from error
        if size != seal.size:
            sizes = f"it has {size:,} bytes and should have {seal.size:,}"
            raise NotAStore(f"{self.url} is not a whole featx store, {sizes}; put it again")
        return seal

    def _info(self) -> dict[str, Any] | None:
        try:
            return self._system.info(self._inner)
        except FileNotFoundError as error:
            if is_gone(error):
                return None
            raise

    def _read(self, start: int, stop: int, size: int) -> bytes:
        return tried(self.url, lambda: read_part(self._system, self._inner, start, stop, size), StoreError)

    def _sends_parts(self, seal: Seal) -> bool:
        """Whether ranges can be read; some web servers send whole files only."""
        if is_web(self._system):
            try:
                self._read(1, 2, seal.size)
            except StoreError as error:
                if not isinstance(error.__cause__, ValueError):
                    raise
                return False
        return True

    def _part(self, start: int, stop: int, size: int) -> bytes:
        """A part of a download, which is asked for again after an error."""

        def answer() -> bytes:
            return asked_again(lambda: read_part(self._system, self._inner, start, stop, size))

        return tried(self.url, answer, StoreError, then=f"; {files.KEPT}")

    def matches(self, seal: Seal) -> bool:
        """Whether it is whole and, apart from the rows, which are not read, the store of a seal."""
        if self.seal() != seal:
            return False
        superblock = self._read(0, layout.FIRST_LAYER, seal.size)[layout.PAGE : layout.FIRST_LAYER]
        metadata = self._read(seal.metadata, seal.size, seal.size)[-(seal.size - seal.metadata) :]
        return layout.identity_of(superblock, metadata) == seal.identity

    def refuse_unwritable(self) -> None:
        """Raise StoreError if it is on a web server."""
        if is_web(self._system):
            raise StoreError(f"{self.url} is on a web server, which stores no files; put it to a bucket, such as s3://")

    def upload(self, path: Path, seal: Seal, on_phase: Callable[[str], None]) -> None:
        """Upload a file under a temporary name and rename it; object stores do so by themselves."""

        def show(done: int) -> None:
            on_phase(f"uploading {path.name}: {readable(done)} of {readable(seal.size)}")

        protocol = self._system.protocol
        is_atomic = not _OBJECT_STORES.isdisjoint([protocol] if isinstance(protocol, str) else protocol)
        aside = self._inner if is_atomic else f"{self._inner}.{seal.identity[:8]}.uploading"

        def put() -> None:
            self._system.put_file(str(path), aside, callback=counting(show))
            if not is_atomic:
                self._system.mv(aside, self._inner)

        tried(self.url, put, StoreError, "write", "; put it again")

    def download(self, seal: Seal, path: Path, handle: int, on_phase: Callable[[str], None]) -> None:
        """Write its bytes to an open file, after those that an interrupted download of the same store has left."""

        def show(done: int) -> None:
            if done > seal.size:
                raise StoreError(f"{self.url} is longer than the {seal.size:,} bytes of its store; put it again")
            on_phase(f"downloading {self.url}: {readable(done)} of {readable(seal.size)}")

        if not self._sends_parts(seal):
            tried(self.url, lambda: self._system.get_file(self._inner, str(path), callback=counting(show)), StoreError)
            os.fsync(handle)
            return
        done = os.fstat(handle).st_size // _PART_BYTES * _PART_BYTES
        if files.pread(handle, layout.PAGE, 0) != seal.to_bytes():
            done = 0
        os.ftruncate(handle, done)
        ahead: deque[Future[bytes]] = deque()
        starts = iter(range(done, seal.size, _PART_BYTES))
        with ThreadPoolExecutor(_PARTS_AT_ONCE, thread_name_prefix="featx-download") as pool:
            try:
                while done < seal.size:
                    while len(ahead) < _PARTS_AT_ONCE and (start := next(starts, None)) is not None:
                        ahead.append(pool.submit(self._part, start, min(start + _PART_BYTES, seal.size), seal.size))
                    show(done)
                    content = ahead.popleft().result()
                    if len(content) != min(_PART_BYTES, seal.size - done):
                        raise StoreError(f"cannot read {self.url}: {len(content):,} bytes arrived of a part; try again")
                    files.pwrite(handle, content, done)
                    done += len(content)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        os.fsync(handle)


def fetched(url: str, progress: bool | Callable[[Progress], None] = True) -> Path:
    """The path of a local copy of the store at a URL, downloaded if there is none or the store has changed.

    Raises
    ------
    StoreError
        There is no store, it cannot be read, or the copy cannot be written.
    """
    remote = RemoteStore(url)
    name = remote.url.rstrip("/").rpartition("/")[2] or "store.h5"
    folder = cache_folder() / "stores" / hashlib.blake2b(remote.url.encode(), digest_size=8).hexdigest()
    path = folder / name
    try:
        seal = remote.seal()
    except NotAStore:
        raise
    except StoreError as error:
        if not path.exists():
            raise
        raise StoreError(*error.parts, f"; {path} is a copy of what was there before") from error
    if seal is None:
        raise StoreError(f"there is no store {remote.url}; ", Call("featx.put"), " uploads one")
    if _is_copy(path, seal):
        return path
    with shown(progress) as show, disk_errors(path, lambda: files.KEPT):
        on_phase = preparing(show)
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{name}.download"
        handle = _opened_alone(partial, lambda: on_phase(f"waiting for another download of {remote.url}"))
        try:
            if _is_copy(path, seal):  # the other process has finished
                partial.unlink()
                return path
            remote.download(seal, partial, handle, on_phase)
            on_phase(f"checking {path.name}")
            _verify(remote.url, partial, seal)
            os.replace(partial, path)
            files.fsync_folder(folder)
        finally:
            os.close(handle)
    return path


def _opened_alone(path: Path, waiting: Callable[[], None]) -> int:
    while True:
        try:
            return files.open_alone(path)
        except StoreError as error:
            if not isinstance(error.__cause__, BlockingIOError):
                raise
        waiting()
        time.sleep(0.2)


def _is_copy(path: Path, seal: Seal) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(layout.PAGE) == seal.to_bytes() and os.fstat(file.fileno()).st_size == seal.size
    except OSError:
        return False


def _verify(url: str, path: Path, seal: Seal) -> None:
    """Compare a download with all checksums; remove it if they differ."""
    try:
        mapped = Mapped(path)
        if mapped.seal != seal:
            raise StoreError("it has changed meanwhile")
        Blocks(Contents(mapped)).verify()
    except (StoreError, DamageError) as error:
        path.unlink(missing_ok=True)
        raise StoreError(
            f"what was downloaded of {url} is damaged and was removed: {str(error).partition(';')[0]}; open it again, "
            "or put it there again with ",
            Parameter("replace", True),
        ) from error


def cache_folder() -> Path:
    """The folder of downloads: $FEATX_CACHE, or "featx" in the user's cache folder."""
    if folder := os.environ.get("FEATX_CACHE"):
        return Path(folder)
    default = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or default).expanduser() / "featx"
