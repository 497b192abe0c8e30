"""S3 by s3fs, where its public functions cost more: lists of objects, and ranges with the version that they are of.

s3fs's `walk` holds a folder of millions in memory, and its `cat_file` drops the version, which would take another
request. Private names of s3fs: `_iterdir`, `_call_s3` and `loop`; without them featx does as in other stores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def is_s3fs(system: Any) -> bool:
    """Whether a file system is that of s3fs, with what this file needs."""
    has_all = all(hasattr(system, name) for name in ("_iterdir", "_call_s3", "loop"))
    return type(system).__module__.startswith("s3fs.") and has_all


def each_object(system: Any, inner: str, visit: Callable[[str, dict[str, Any]], None]) -> None:
    """Call `visit(path below inner, info)` for each object, folders' placeholders left out."""
    from fsspec.asyn import sync

    bucket, _, key = inner.partition("/")
    prefix = f"{key}/" if key else ""

    async def visited() -> None:
        async for info in system._iterdir(bucket, delimiter="", prefix=prefix):
            path = info["Key"][len(bucket) + 1 + len(prefix) :]
            if path and not path.endswith("/"):
                visit(path, info)

    sync(system.loop, visited)


def read_range(system: Any, inner: str, start: int, stop: int) -> tuple[bytes, dict[str, Any]]:
    """Some bytes of an object, and what `info` says of the version that they are of."""
    from fsspec.asyn import sync

    bucket, _, key = inner.partition("/")

    async def read() -> tuple[bytes, dict[str, Any]]:
        answer = await system._call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}")
        try:
            content = await answer["Body"].read()
        finally:
            answer["Body"].close()
        size = answer.get("ContentRange", "").rpartition("/")[2] or answer["ContentLength"]
        return content, {"size": int(size), "ETag": answer.get("ETag"), "LastModified": answer.get("LastModified")}

    return sync(system.loop, read)
