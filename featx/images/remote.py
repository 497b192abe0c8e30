"""Files and folders that a URL names, through fsspec: "s3://bucket/photos", "hf://datasets/...", "memory://x.zip".

An object is read whole or by ranges; after each image its version (an ETag or a time) is compared with that of the
listing. URLs are stored and shown without user names, passwords and queries.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from featx.errors import ImageError, SourceError
from featx.images.members import ContainingFile, Stamp, is_hidden

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::)")
_SECRETS = re.compile(r"(?<=//)[^/@]*@|\?.*")
_VERSIONS = "ETag etag generation md5Hash blob_id oid mtime LastModified last_modified updated modified created".split()


def is_url(source: object) -> bool:
    """Whether a source is a URL that fsspec may know."""
    return isinstance(source, str) and _URL.match(source) is not None


def shown(url: str) -> str:
    """The URL without user name, password and query."""
    return _SECRETS.sub("", url)


class RemoteFile(ContainingFile):
    """An object of a remote store.

    Parameters
    ----------
    url : str, without secrets
    system : fsspec.AbstractFileSystem
    inner : str, its path there
    info : dict, what the listing says of it
    """

    buffer_bytes = 2**20

    def __init__(self, url: str, system: Any, inner: str, info: dict[str, Any]) -> None:
        self._system, self._inner = system, inner
        if info.get("size") is None:
            info = system.info(inner)
        self._version = next((name for name in _VERSIONS if info.get(name) is not None), "")
        super().__init__(url, self._stamp_of(info))

    def _stamp_of(self, info: dict[str, Any]) -> Stamp:
        version = info.get(self._version, "")
        seconds = version.timestamp() if hasattr(version, "timestamp") else version  # listings differ in the type
        return int(info["size"] or 0), f"{seconds:.3f}" if isinstance(seconds, float) else str(seconds)

    def stamp(self) -> Stamp | None:
        try:
            return self._stamp_of(self._system.info(self._inner))
        except FileNotFoundError:
            return None
        except Exception as error:  # each file system raises types of its own
            raise ImageError("unreadable", "the object cannot be read") from error

    def read_at(self, start: int, nbytes: int) -> bytes:
        stop = min(start + nbytes, self.size)
        if stop <= start:
            return b""
        try:
            return self._system.cat_file(self._inner, start=start, end=stop)
        except MemoryError:
            raise
        except Exception as error:
            raise ImageError("unreadable", "the object cannot be read") from error


class RemotePath:
    """A URL, and what is there.

    Raises
    ------
    SourceError
        fsspec, or its package for this kind of URL, is not installed, or the store refuses access.
    """

    def __init__(self, url: str) -> None:
        self.url = shown(url).rstrip("/")
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise SourceError(f"{self.url} is read by fsspec; pip install 'featx[remote]'") from error
        self._system, self._inner = self._tried(lambda: url_to_fs(url, use_listings_cache=False))

    def _tried(self, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except SourceError:
            raise
        except FileNotFoundError as error:
            raise SourceError(f"there is no {self.url}") from error
        except ImportError as error:
            raise SourceError(f"{self.url} needs a package that is not installed: {_line(error)}") from error
        except Exception as error:  # each file system raises types of its own
            raise SourceError(f"cannot list {self.url}: {type(error).__name__}: {_line(error)}") from error

    def file(self) -> RemoteFile | None:
        """The object that the URL names; None if it names a folder."""
        info = self._tried(lambda: self._system.info(self._inner))
        return self._tried(lambda: RemoteFile(self.url, self._system, self._inner, info)) if _is_file(info) else None

    def folder(self, on_phase: Callable[[str], None]) -> list[tuple[str, RemoteFile]]:
        """(relative path, file) of the objects below the URL, hidden ones left out, sorted by path."""
        return self._tried(lambda: self._walked(on_phase))

    def _walked(self, on_phase: Callable[[str], None]) -> list[tuple[str, RemoteFile]]:
        listed: list[tuple[str, RemoteFile]] = []
        root = self._inner.rstrip("/")
        for folder, folders, files in self._system.walk(root, detail=True, on_error="raise"):
            for name in [name for name in folders if is_hidden(name)]:
                del folders[name]
            before = folder[len(root) :].strip("/")
            for name, info in files.items():
                if not is_hidden(name) and name:
                    path = f"{before}/{name}" if before else name
                    file = RemoteFile(f"{self.url}/{path}", self._system, info.get("name", f"{folder}/{name}"), info)
                    listed.append((path, file))
            on_phase(f"listing {self.url}: {len(listed):,} files")
        return sorted(listed, key=lambda each: each[0].split("/"))


def _is_file(info: dict[str, Any]) -> bool:
    return info.get("type") == "file"


def _line(error: BaseException) -> str:
    return shown((str(error).strip().splitlines() or ["no reason given"])[0])[:200]
