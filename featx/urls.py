"""URLs that fsspec opens: which strings are URLs, how they are shown, and how a store's errors become one line.

Extraction reads images from URLs and stores are opened from them, and neither may import the other; so this stands
beside `errors`.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable
from pathlib import PurePath
from typing import Any, TypeVar

from featx.errors import FeatxError

T = TypeVar("T")

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::)")
_URL_OF_A_PATH = re.compile(r"((?:[A-Za-z0-9+.-]+::)*[A-Za-z][A-Za-z0-9+.-]+):/(?!/)")
_SECRETS = re.compile(r"(?<=//)[^/?]*@|\?.*")
_PACKAGES = (
    dict.fromkeys(("s3", "s3a"), "s3fs")
    | dict.fromkeys(("gs", "gcs"), "gcsfs")
    | dict.fromkeys(("abfs", "abfss", "az", "adl"), "adlfs")
    | dict.fromkeys(("http", "https"), "aiohttp")
    | dict.fromkeys(("sftp", "ssh"), "paramiko")
    | {"hf": "huggingface_hub"}
)
_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
REQUESTS = 32  # at once; most of the time of one is latency
_PAUSES = (0.5, 2.0, 8.0)  # seconds before a request is made again


def is_url(source: object) -> bool:
    """Whether a value is a URL that fsspec may know."""
    return isinstance(source, str) and _URL.match(source) is not None


def url_of(value: str | os.PathLike) -> str | None:
    """The URL that a value is, or None.

    `Path("s3://bucket/x")` is "s3:/bucket/x"; the slash is restored, unless there is a folder "s3:".
    """
    if is_url(value):
        return str(value)
    made = _URL_OF_A_PATH.match(str(value)) if isinstance(value, PurePath) else None
    if made is not None and not os.path.exists(PurePath(value).parts[0]):
        slashes = ":///" if made[1].endswith(("file", "local")) else "://"
        return f"{made[1]}{slashes}{str(value)[made.end() :]}"
    return None


def shown(url: str) -> str:
    """The URL without user name, password and query."""
    return _SECRETS.sub("", url)


def opened(url: str, error: type[FeatxError]) -> tuple[Any, str]:
    """The file system of a URL, and the path there.

    Raises
    ------
    error
        fsspec, or its package for this kind of URL, is not installed.
    """
    try:
        from fsspec.config import conf
        from fsspec.core import url_to_fs
    except ImportError as cause:
        raise error(f"{shown(url)} is read by fsspec; pip install 'featx[remote]'") from cause
    options: dict[str, Any] = {"use_listings_cache": False}
    if url.startswith(("s3://", "s3a://")):
        if "@" in url.split("/")[2]:
            raise error(f"{shown(url)} takes no credentials in the URL; {_CREDENTIALS}")
        # botocore allows 10 connections
        configured = conf.get(url.partition(":")[0], {}).get("config_kwargs", {})
        options["config_kwargs"] = {"max_pool_connections": REQUESTS, **configured}
    return tried(url, lambda: url_to_fs(url, **options), error, "open")


def is_web(system: Any) -> bool:
    """Whether a file system is a web server, which lists no folders and stores no files."""
    protocol = system.protocol
    return not {"http", "https"}.isdisjoint([protocol] if isinstance(protocol, str) else protocol or ())


def read_part(system: Any, inner: str, start: int, stop: int, size: int) -> bytes:
    """A range of a file of `size` bytes. No more is read of a web server that sends whole files.

    Raises
    ------
    ValueError
        The server sends no ranges, and this one does not begin at 0.
    """
    if not is_web(system):
        return system.cat_file(inner, start=start, end=stop)
    try:
        with system.open(inner, "rb", size=size, cache_type="none") as file:
            file.seek(start)
            return file.read(stop - start)
    except Exception as error:
        if getattr(error, "status", 0) in (404, 410):
            raise FileNotFoundError(inner) from error
        raise


def counting(show: Callable[[int], None]) -> Any:
    """The callback with which a file system tells how many bytes of a file it has sent."""
    from fsspec.callbacks import Callback

    return Callback(hooks={"show": lambda size, value, **_: show(value)})


def tried(url: str, function: Callable[[], T], error: type[FeatxError], what: str = "read", then: str = "") -> T:
    """The result of a function; what a file system raises becomes an `error` of one line that names the URL.

    what : the verb of the line
    then : its end
    """
    try:
        return function()
    except (FeatxError, MemoryError):
        raise
    except ImportError as cause:
        package = _PACKAGES.get("".join(re.findall(r"([\w+.-]+)://", url)[-1:]))
        needed = f"pip install {package}" if package else _line(cause)
        raise error(f"{shown(url)} needs a package that is not installed: {needed}") from cause
    except Exception as cause:  # each file system raises types of its own
        if is_gone(cause):
            bucket = "; its bucket does not exist" if is_without_bucket(cause) else ""
            raise error(f"there is no {shown(url)}{bucket}") from cause
        reason = cause.__cause__ if isinstance(cause, FileNotFoundError) and cause.__cause__ else cause
        if type(cause).__name__ == "NoCredentialsError":
            then = f"; {_CREDENTIALS}"
        raise error(f"cannot {what} {shown(url)}: {type(reason).__name__}: {_line(reason)}{then}") from cause


def asked_again(function: Callable[[], T]) -> T:
    """The result of a request, which is made again after an error that may pass; the last error is raised."""
    for pause in _PAUSES:
        try:
            return function()
        except (FeatxError, MemoryError, PermissionError, NotImplementedError):
            raise
        except Exception as error:
            if is_gone(error) or getattr(error, "errno", 0) == errno.EINVAL:  # the request itself is wrong
                raise
            time.sleep(pause)
    return function()


def is_gone(error: BaseException) -> bool:
    """Whether an error says that there is no such object; of a web server, fsspec says so of any failed request."""
    cause = error.__cause__
    failed = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
    failed |= type(cause).__module__.startswith("aiohttp") and getattr(cause, "status", 0) not in (404, 410)
    return isinstance(error, FileNotFoundError) and not failed


def is_without_bucket(error: BaseException) -> bool:
    """Whether an error says that there is no such bucket."""
    return "bucket does not exist" in str(error)


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or ["no reason given"]
    return shown(" ".join(lines[: 2 if lines[0].endswith(":") else 1]))[:200]
