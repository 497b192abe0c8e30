"""The objects below a prefix of S3, one after the other: s3fs's own `walk` holds a folder of millions in memory.

Private names of s3fs: `_iterdir` and `loop`. Without them folders are walked, as in other stores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def lists_objects(system: Any) -> bool:
    """Whether a file system is that of s3fs, with what `each_object` needs."""
    return type(system).__module__.startswith("s3fs.") and hasattr(system, "_iterdir") and hasattr(system, "loop")


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
