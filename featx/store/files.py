"""Operations on files: exclusive opening, writes at an offset, atomic replacement, and errors as one sentence."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from featx.errors import Call, Parameter, StoreError, readable
from featx.urls import shown, url_of

_OTHER_FORMATS = frozenset(
    ".csv .tsv .json .jsonl .npy .npz .parquet .txt .md .html .pdf .png .jpg .jpeg .svg .zip .tar .gz .skops .pkl "
    ".joblib .onnx .pt .pt2 .pth .safetensors".split()
)

KEPT, NOTHING_KEPT = "what is done is kept: run it again to go on", "nothing was kept"


def real(output: Path) -> Path:
    """The path with links resolved: the target of a link is replaced, not the link."""
    return Path(os.path.realpath(output))


def beside(output: Path, suffix: str) -> Path:
    return real(output).with_name(real(output).name + suffix)


def open_alone(path: Path) -> int:
    """Open a file, or create it, and lock it; returns the descriptor. Raises StoreError if another run has the lock."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(path, handle):
                return handle
        except BlockingIOError as error:
            os.close(handle)
            raise StoreError(f"another run is writing {path}; wait for it, or choose another output") from error
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the other run finished between opening and locking


def is_at(path: Path, handle: int) -> bool:
    """Whether a path still names the file that is open."""
    return path.exists() and os.path.samestat(os.stat(path), os.fstat(handle))


def reserve(handle: int, nbytes: int, path: Path, extra: int = 0) -> None:
    """Allocate space for a file, so that no later write finds the disk full.

    Parameters
    ----------
    extra : bytes that must be free beyond that

    Raises
    ------
    StoreError
        The disk has less free space.
    """
    status, disk = os.fstat(handle), os.fstatvfs(handle)
    needed, free = nbytes + extra - status.st_blocks * 512, disk.f_bavail * disk.f_frsize
    if needed > free:
        raise StoreError(
            f"cannot write {path}: it takes {readable(needed)} and the disk has {readable(free)} free; "
            "make room, or choose another disk"
        )
    try:
        os.posix_fallocate(handle, 0, nbytes)
    except (AttributeError, OSError) as error:  # not every system and file system supports it
        if isinstance(error, OSError) and error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        os.ftruncate(handle, max(nbytes, status.st_size))


def pwrite(handle: int, data: Any, offset: int) -> None:
    """Write all bytes, in as many calls as it takes."""
    remaining = memoryview(data).cast("B")
    while remaining:
        written = os.pwrite(handle, remaining, offset)
        remaining, offset = remaining[written:], offset + written


def pread(handle: int, nbytes: int, offset: int) -> bytes:
    """Read `nbytes` bytes, fewer only at the end of the file."""
    parts, remaining = [], nbytes
    while remaining and (part := os.pread(handle, remaining, offset)):
        parts.append(part)
        remaining, offset = remaining - len(part), offset + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def disk_errors(output: Path, kept: Callable[[], str]) -> Iterator[None]:
    """Turn an OSError into a StoreError in one sentence; `kept()` says which work remains."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "the disk refused"
        raise StoreError(f"cannot write {output}: {reason}; {kept()}") from error


def refuse_unwritable(output: Path) -> None:
    """Raise StoreError if no file can be created at this path."""
    if (url := url_of(output)) is not None:
        upload = (
            ()
            if output.suffix.lower() in _OTHER_FORMATS
            else (": make it locally, then upload it by ", Call("featx.put"))
        )
        raise StoreError(f"the output is a local file; got {shown(url)}", *upload)
    try:
        output.exists()
    except OSError as error:  # for example, the name is too long
        raise StoreError(f"cannot write {output}: {error.strerror}") from error
    if output.is_dir():
        raise StoreError(f"the output is a file; {output} is a folder. Name a file in it: {output / 'features.h5'}")
    if not output.parent.is_dir():
        raise StoreError(f"cannot write {output}: there is no folder {output.parent}; make it first")
    if not os.access(output.parent, os.W_OK):
        raise StoreError(f"cannot write {output}: no permission in {output.parent}; choose another folder")


def refuse_unwritable_store(output: Path) -> None:
    """Raise StoreError if no file can be created at this path, or its suffix belongs to another format."""
    refuse_unwritable(output)
    if output.suffix.lower() in _OTHER_FORMATS and not output.exists():
        raise StoreError(
            f"a store is an HDF5 file, and {output.name} is named like a {output.suffix.lower()} file; name it "
            f"{output.with_suffix('.h5')}, and ",
            Call("featx.export"),
            " writes its rows to a .npy or .parquet file",
        )


def refuse_existing(output: Path, replace: bool) -> None:
    """Raise StoreError if the output exists and must not be replaced, or cannot be created."""
    refuse_unwritable(output)
    if output.exists() and not replace:
        raise StoreError(
            f"{output} is there already; choose another output, or replace it with ", Parameter("replace", True)
        )


@contextlib.contextmanager
def written_aside(output: Path) -> Iterator[BinaryIO]:
    """Open a file that is renamed to `output` when the context ends without an error.

    A kill leaves OUTPUT.writing; the next attempt overwrites it.
    """
    partial = beside(output, ".writing")
    is_renamed = False
    complete = "the file is complete, but a power failure may lose it"
    with disk_errors(output, lambda: complete if is_renamed else NOTHING_KEPT):
        handle = open_alone(partial)
        try:
            with os.fdopen(handle, "r+b", closefd=False) as file:
                os.ftruncate(handle, 0)
                yield file
            os.fsync(handle)
            os.replace(partial, real(output))
            is_renamed = True
            fsync_folder(real(output).parent)
        finally:
            if is_at(partial, handle):
                partial.unlink()
            os.close(handle)
