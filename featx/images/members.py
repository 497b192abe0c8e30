"""Images that are not files of their own: members of an archive, rows of a table, remote objects.

A `Member` is path-like, so that it is named in messages as a file is; `decode`, `content_digest` and `stamp` read it by
its own methods. Members are pickled to the processes of a run and read by threads. A `ContainingFile` is what they are
read from; it remembers its state when it was listed, and refuses to be read after a change.
"""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from featx.errors import ImageError, SourceError
from featx.images import limits

Stamp = tuple[int, int]


def changed() -> ImageError:
    """The failure of an image whose file has changed during the run."""
    return ImageError("changed", "the file changed while the run was on")


class ContainingFile(ABC):
    """A file that contains images.

    Parameters
    ----------
    path : str
        Path or URL.
    listed : Stamp
        Its size in bytes and its version, when its images were listed.
    """

    buffer_bytes = 4096  # read at once while headers are read
    is_remote = False

    def __init__(self, path: str, listed: Stamp) -> None:
        self.path, self.listed = path, listed

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and (self.path, self.listed) == (other.path, other.listed)

    def __hash__(self) -> int:
        return hash((self.path, self.listed))

    @property
    def size(self) -> int:
        return self.listed[0]

    @abstractmethod
    def stamp(self) -> Stamp | None:
        """Its stamp now; None if it is gone."""

    @abstractmethod
    def read_at(self, start: int, nbytes: int) -> bytes:
        """At most `nbytes` bytes from a position on; raises ImageError if they cannot be read."""

    def refuse_changed(self) -> None:
        """Raise ImageError if the file is gone, or has changed since it was listed."""
        now = self.stamp()
        if now is None:
            raise ImageError("missing", "the file vanished while the run was on")
        if now != self.listed:
            raise changed()

    def opened(self) -> io.BufferedReader:
        """A file object for a library that reads the format."""
        return io.BufferedReader(_Reader(self), self.buffer_bytes)


class LocalFile(ContainingFile):
    """A file on disk. It is opened for each read: that takes 10 microseconds, and needs no handle to be shared.

    Raises
    ------
    SourceError
        There is no such file.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        path = os.fspath(path)
        try:
            status = os.stat(path)
        except (OSError, ValueError) as error:
            raise SourceError(f"there is no {path}") from error
        super().__init__(path, (status.st_size, status.st_mtime_ns))

    def __getstate__(self) -> dict[str, Any]:  # another process may run in another folder
        return vars(self) | {"path": os.path.join(os.getcwd(), self.path)}

    def stamp(self) -> Stamp | None:
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns

    def read_at(self, start: int, nbytes: int) -> bytes:
        try:
            with open(self.path, "rb") as file:
                file.seek(start)
                return file.read(max(0, min(nbytes, self.size - start)))  # it would allocate all that is asked for
        except OSError as error:
            raise ImageError("unreadable", f"the file cannot be read: {error.strerror}") from error


class _Reader(io.RawIOBase):
    def __init__(self, file: ContainingFile) -> None:
        self._file, self._position = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, relative_to: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size}[relative_to]
        if start + offset < 0:
            raise OSError(22, "Invalid argument")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        content = self._file.read_at(self._position, len(buffer))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


@lru_cache(maxsize=2)
def unpickled(archive: Callable[[ContainingFile], Any], file: ContainingFile) -> Any:
    """The archive in a file; one that is sent to a process again and again is opened there once."""
    return archive(file)


class Member(os.PathLike[str]):
    """An image inside a `ContainingFile`.

    Parameters
    ----------
    file : ContainingFile
    name : str
        Its name inside the file; "" if it is the whole file.
    """

    def __init__(self, file: ContainingFile, name: str) -> None:
        self.file, self.name = file, name

    def __fspath__(self) -> str:
        return f"{self.file.path}/{self.name}" if self.name else self.file.path

    def __str__(self) -> str:
        return self.__fspath__()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.__fspath__()!r})"

    def stamp(self) -> Stamp | None:
        return self.file.listed  # `read` compares it with what is there

    def read(self) -> bytes:
        """Its bytes; raises ImageError, also if the file has changed since it was listed."""
        try:
            return self._content()
        finally:
            self.file.refuse_changed()

    @abstractmethod
    def _content(self) -> bytes: ...


class Fetched(Member):
    """An image whose bytes are in memory."""

    def __init__(self, image: Member, content: bytes) -> None:
        super().__init__(image.file, image.name)
        self._bytes = content

    def read(self) -> bytes:
        return self._bytes

    def _content(self) -> bytes:
        return self._bytes


class Slice(Member):
    """An image that lies in its file as it is, at a position."""

    def __init__(self, file: ContainingFile, name: str, start: int, nbytes: int) -> None:
        super().__init__(file, name)
        self._start, self._nbytes = start, nbytes

    def _content(self) -> bytes:
        limits.refuse_file(self._nbytes)
        return self.file.read_at(self._start, self._nbytes)


class Link(Member):
    """What has the name of an image in an archive, and is no file."""

    def _content(self) -> bytes:
        raise ImageError("unreadable", "it cannot be read: it is not a file")


def is_remote(image: object) -> bool:
    """Whether reading an image takes requests to a server."""
    return isinstance(image, Member) and image.file.is_remote


def refuse_name(where: str, name: str) -> None:
    """Raise SourceError if a name inside an archive is not a plain relative path."""
    if "\\" in name or "\0" in name or name[1:2] == ":" or not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise SourceError(f"{where} contains the name {name!r}, which is no path inside it; make the archive anew")


def is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def is_image(name: str) -> bool:
    """Whether a name ends as those of images do."""
    return Path(name).suffix.lower() in EXTENSIONS


EXTENSIONS = frozenset(".jpg .jpeg .jpe .png .webp .bmp .tif .tiff .gif .ppm .pgm".split())
