"""Files and folders that a URL names, through fsspec: "s3://bucket/photos", "hf://datasets/...", "memory://x.zip".

An object is read whole or by ranges, and after each request its version (an ETag or a time) is compared with that of
the listing. A request that fails is made again, and at last ends the run: only an object that has changed or is gone is
the failure of an image. URLs are stored and shown without user names, passwords and queries.
"""

from __future__ import annotations

import hashlib
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, overload

import numpy as np

from featx.errors import ImageError, SourceError, count
from featx.images.listings import Listing
from featx.images.members import ContainingFile, Slice, Stamp, changed, is_hidden
from featx.images.s3 import each_object, is_s3fs, read_range
from featx.urls import REQUESTS, asked_again, is_gone, is_web, is_without_bucket, opened, read_part, shown, tried

_VERSIONS = (
    "ETag etag generation md5Hash blob_id oid mtime LastModified last_modified Last-Modified updated modified created"
).split()
_BLOCK_BYTES, _KEPT_BLOCKS = 2 * 2**20, 48
_PHASE_EVERY = 1000  # files
_WHOLE_BYTES = 16 * 2**20  # of an archive that is sent whole for each block of it


class RemoteFile(ContainingFile):
    """An object of a remote store.

    Parameters
    ----------
    url : str, without secrets
    system : fsspec.AbstractFileSystem
    inner : str, its path there
    listed : Stamp
    """

    buffer_bytes = 2**17
    is_remote = True

    def __init__(self, url: str, system: Any, inner: str, listed: Stamp) -> None:
        self._system, self._inner = system, inner
        super().__init__(url, listed)

    def stamp(self) -> Stamp | None:
        return self._of_the_image(lambda: stamp_of(self._system.info(self._inner), self.listed[1]))

    def refuse_changed(self) -> None:
        """Nothing is left to do: `read_at` compares the versions after each request."""

    def read_at(self, start: int, nbytes: int) -> bytes:
        stop = min(start + nbytes, self.size)
        if stop <= start:
            return b""
        if start == 0 and stop == self.size or nbytes >= _BLOCK_BYTES:
            return self.fetched(start, stop)
        numbers = range(start // _BLOCK_BYTES, -(-stop // _BLOCK_BYTES))
        content = b"".join(_blocks.of(self, number) for number in numbers)
        first = numbers[0] * _BLOCK_BYTES
        return content[start - first : stop - first]

    def fetched(self, start: int, stop: int) -> bytes:
        """A range of its bytes, of the version that was listed."""
        try:
            answer = self._of_the_image(lambda: self._requested(start, stop))
        except SourceError:
            super().refuse_changed()  # the range may be outside a shorter object
            raise
        if answer is None:
            raise ImageError("missing", "the file vanished while the run was on")
        content, version = answer
        if version is None:
            super().refuse_changed()
        elif version != self.listed:
            raise changed()
        if len(content) == self.size:  # a web server may know no ranges
            content = content[start:stop]
        if len(content) != stop - start:
            raise SourceError(f"cannot read {self.path}: {len(content):,} bytes arrived of {stop - start:,}")
        return content

    def _requested(self, start: int, stop: int) -> tuple[bytes, Stamp | None]:
        """A range of its bytes, and their version if the answer has it."""
        if is_s3fs(self._system):
            content, info = read_range(self._system, self._inner, start, stop)
            return content, stamp_of(info, self.listed[1])
        try:
            return read_part(self._system, self._inner, start, stop, self.size), None
        except ValueError as error:
            if not is_web(self._system):
                raise
            if self.size > _WHOLE_BYTES:
                line = f"{self.path} is on a server that sends no parts of files; download it first"
                raise SourceError(line) from error
            return read_part(self._system, self._inner, 0, self.size, self.size), None

    def _of_the_image(self, request: Callable[[], Any]) -> Any:
        """What a request returns, None if the object is gone; any other error ends the run, which can go on later."""

        def answer() -> Any:
            try:
                return asked_again(request)
            except FileNotFoundError as error:
                if is_gone(error) and not is_without_bucket(error):
                    return None
                raise

        return tried(self.path, answer, SourceError, then="; run it again to go on")


def stamp_of(info: dict[str, Any], like: int | str | None = None) -> Stamp:
    """Size and version of an object.

    Parameters
    ----------
    info : what the file system says of it
    like : the version of another stamp, which is made of the same field; by default it is the first that is there

    Returns
    -------
    size : bytes
    version : 60 bits of a hash of the field, times 16, plus the number of the field; 15 without one
    """
    if like is None:
        number = next((number for number, name in enumerate(_VERSIONS) if info.get(name) is not None), 15)
    else:
        number = int(like) % 16
    if number == 15:
        return int(info["size"] or 0), 15
    value = info.get(_VERSIONS[number], "")
    seconds = value.timestamp() if hasattr(value, "timestamp") else value  # listings differ in the type
    text = f"{seconds:.3f}" if isinstance(seconds, float) else str(seconds)
    hashed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    return int(info["size"] or 0), hashed >> 4 << 4 | number


class _Blocks:
    """The blocks of remote archives that were read last: images that lie next to each other share a request."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, Stamp, int], Future[bytes]] = OrderedDict()

    def of(self, file: RemoteFile, number: int) -> bytes:
        key = file.path, file.listed, number
        with self._lock:
            block = self._kept.get(key)
            is_new = block is None
            if block is None:
                block = self._kept[key] = Future()
            self._kept.move_to_end(key)
            while len(self._kept) > _KEPT_BLOCKS:
                self._kept.popitem(last=False)
        if is_new:
            start = number * _BLOCK_BYTES
            try:
                block.set_result(file.fetched(start, min(start + _BLOCK_BYTES, file.size)))
            except BaseException as error:
                with self._lock:
                    self._kept.pop(key, None)
                block.set_exception(error)
        return block.result()


_blocks = _Blocks()


class RemoteImages(Sequence[Slice]):
    """Objects below a URL as images; each takes its path and 16 bytes of memory.

    Parameters
    ----------
    url : str
    system : fsspec.AbstractFileSystem
    inner : str
        What precedes a path there.
    paths : list of n str
    sizes, versions : (n,) int64 and uint64, as in a Stamp
    """

    def __init__(
        self, url: str, system: Any, inner: str, paths: list[str], sizes: np.ndarray, versions: np.ndarray
    ) -> None:
        self.paths, self.sizes, self.versions = paths, sizes, versions
        self._url, self._system, self._inner = url, system, inner

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Slice: ...
    @overload
    def __getitem__(self, index: slice) -> list[Slice]: ...
    def __getitem__(self, index: int | slice) -> Slice | list[Slice]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return Slice(file := self.file(index), "", 0, file.size)

    def file(self, index: int) -> RemoteFile:
        path, listed = self.paths[index], (int(self.sizes[index]), int(self.versions[index]))
        return RemoteFile(f"{self._url}/{path}", self._system, f"{self._inner}/{path}", listed)

    def some(self, indices: Sequence[int]) -> RemoteImages:
        chosen = [self.paths[i] for i in indices]
        return RemoteImages(self._url, self._system, self._inner, chosen, self.sizes[indices], self.versions[indices])


class RemotePath:
    """A URL, and what is there.

    Parameters
    ----------
    listing : Listing
        What an unfinished run has found there is taken from it; otherwise it is added.

    Raises
    ------
    SourceError
        fsspec, or its package for this kind of URL, is not installed, or the store refuses access.
    """

    def __init__(self, url: str, listing: Listing) -> None:
        self.url = shown(url).rstrip("/")
        self._listing = listing
        self._system, self._inner = opened(url, SourceError)
        self._inner = self._inner.rstrip("/")

    @property
    def is_web(self) -> bool:
        """Whether it is on a web server, which lists no folders."""
        return is_web(self._system)

    def _tried(self, function: Callable[[], Any]) -> Any:
        return tried(self.url, function, SourceError, "list")

    def _info(self, inner: str = "") -> dict[str, Any]:
        return self._tried(lambda: self._system.info(inner or self._inner))

    def file(self) -> RemoteFile | None:
        """The object that the URL names; None if it names a folder."""
        listed = self._listing.stamp(self.url)
        if listed is None:
            info = self._info()
            if not _is_file(info):
                return None
            if self.is_web and info.get("mimetype") == "text/html":
                raise SourceError(
                    f"{self.url} is a web page; a web server lists no folders: give an archive, or a .csv file of paths"
                )
            listed = stamp_of(info)
            self._listing.add(self.url, [""], *_columns([listed]))
        return RemoteFile(self.url, self._system, self._inner, listed)

    def folder(self, on_phase: Callable[[str], None]) -> RemoteImages:
        """The objects below the URL, hidden ones left out, sorted by path."""
        kept = self._listing.folder(self.url)
        if kept is None:
            kept = self._tried(lambda: self._walked(on_phase))
            self._listing.add(self.url, *kept)
        else:
            self._info()  # refuses another endpoint, where all images would be missing
        return RemoteImages(self.url, self._system, self._inner, *kept)

    def files(self, paths: Iterable[str]) -> RemoteImages:
        """Those of some paths below the URL that exist; one request each."""
        kept = self._listing.folder(self.url)
        if kept is None:
            wanted = list(dict.fromkeys(paths))
            with ThreadPoolExecutor(REQUESTS, thread_name_prefix="featx-list") as pool:
                stamps = self._tried(lambda: list(pool.map(self._stamp_or_none, wanted)))
            exist = [(path, stamp) for path, stamp in zip(wanted, stamps, strict=True) if stamp is not None]
            kept = [path for path, _ in exist], *_columns([stamp for _, stamp in exist])
            self._listing.add(self.url, *kept)
        return RemoteImages(self.url, self._system, self._inner, *kept)

    def _stamp_or_none(self, path: str) -> Stamp | None:
        try:
            return stamp_of(asked_again(lambda: self._system.info(f"{self._inner}/{path}")))
        except Exception as error:
            if is_gone(error):
                return None
            raise

    def _walked(self, on_phase: Callable[[str], None]) -> tuple[list[str], np.ndarray, np.ndarray]:
        paths: list[str] = []
        sizes, versions = array("q"), array("Q")

        def add(path: str, info: dict[str, Any]) -> None:
            if not is_hidden(path):
                if info.get("size") is None:
                    info = self._system.info(info["name"])
                size, version = stamp_of(info)
                paths.append(path)
                sizes.append(size)
                versions.append(version)
                if len(paths) % _PHASE_EVERY == 0:
                    on_phase(f"listing {self.url}: {count(len(paths), 'file')}")

        if is_s3fs(self._system):
            each_object(self._system, self._inner, add)
        else:
            self._walk(add)
        on_phase(f"listing {self.url}: {count(len(paths), 'file')}")
        order = sorted(range(len(paths)), key=lambda i: paths[i].replace("/", "\0"))  # by folders, then names
        return [paths[i] for i in order], np.array(sizes, "<i8")[order], np.array(versions, "<u8")[order]

    def _walk(self, add: Callable[[str, dict[str, Any]], None]) -> None:
        for folder, folders, files in self._system.walk(self._inner, detail=True, on_error="raise"):
            for name in [name for name in folders if is_hidden(name)]:
                del folders[name]
            before = folder[len(self._inner) :].strip("/")
            for name, info in files.items():
                if name:
                    add(f"{before}/{name}" if before else name, {"name": f"{folder}/{name}"} | info)


def _columns(stamps: Sequence[Stamp]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([size for size, _ in stamps], "<i8"), np.array([version for _, version in stamps], "<u8")


def _is_file(info: dict[str, Any]) -> bool:
    return info.get("type") == "file"
