"""What the disk is asked to do: a file that nobody else writes, bytes at their place, a name that appears at once."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from featx.errors import Parameter, StoreError, readable

KEPT, NOTHING_KEPT = "what is done is kept: run it again to go on", "nothing was kept"


def real(output: Path) -> Path:
    """Where a file is; what a link points to is replaced, not the link."""
    return Path(os.path.realpath(output))


def beside(output: Path, suffix: str) -> Path:
    return real(output).with_name(real(output).name + suffix)


def open_alone(path: Path) -> int:
    """A handle on a file, made if it is not there, that no other run has."""
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
        os.close(handle)  # the other run was done between our two steps


def is_at(path: Path, handle: int) -> bool:
    """Whether a name still means the file that is open."""
    return path.exists() and os.path.samestat(os.stat(path), os.fstat(handle))


def reserve(handle: int, nbytes: int, path: Path, extra: int = 0) -> None:
    """Give the file its room on the disk, so that no later write lacks it.

    Parameters
    ----------
    extra : bytes that will be wanted beyond that

    Raises
    ------
    StoreError
        The disk has less left.
    """
    status, disk = os.fstat(handle), os.fstatvfs(handle)
    wanted, free = nbytes + extra - status.st_blocks * 512, disk.f_bavail * disk.f_frsize
    if wanted > free:
        raise StoreError(
            f"cannot write {path}: it takes {readable(wanted)} and the disk has {readable(free)} free; "
            "make room, or choose another disk"
        )
    try:
        os.posix_fallocate(handle, 0, nbytes)
    except (AttributeError, OSError) as error:  # not every system and file system has it
        if isinstance(error, OSError) and error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        os.ftruncate(handle, max(nbytes, status.st_size))


def pwrite(handle: int, data: Any, offset: int) -> None:
    """All bytes, however few the system takes at a time."""
    left = memoryview(data).cast("B")
    while left:
        done = os.pwrite(handle, left, offset)
        left, offset = left[done:], offset + done


def pread(handle: int, nbytes: int, offset: int) -> bytes:
    """`nbytes` bytes, or fewer where the file ends."""
    parts, left = [], nbytes
    while left and (part := os.pread(handle, left, offset)):
        parts.append(part)
        left, offset = left - len(part), offset + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def told(output: Path, kept: Callable[[], str]) -> Iterator[None]:
    """An error of the disk as one sentence; `kept` says what is left."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "the disk refused"
        raise StoreError(f"cannot write {output}: {reason}; {kept()}") from error


def refuse_unwritable(output: Path) -> None:
    """Raise StoreError if no file of that name can be made."""
    try:
        output.exists()
    except OSError as error:  # a name too long, say
        raise StoreError(f"cannot write {output}: {error.strerror}") from error
    if output.is_dir():
        raise StoreError(f"the output is a file; {output} is a folder. Name a file in it: {output / 'features.h5'}")
    if not output.parent.is_dir():
        raise StoreError(f"cannot write {output}: there is no folder {output.parent}; make it first")
    if not os.access(output.parent, os.W_OK):
        raise StoreError(f"cannot write {output}: no permission in {output.parent}; choose another folder")


def refuse_existing(output: Path, replace: bool) -> None:
    """Raise StoreError if there is a file of that name that must not be replaced, or no place for one."""
    refuse_unwritable(output)
    if output.exists() and not replace:
        raise StoreError(
            f"{output} is there already; choose another output, or replace it with ", Parameter("replace", True)
        )


@contextlib.contextmanager
def written_aside(output: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the output's name when it is complete.

    A kill leaves OUTPUT.writing, which the next file of that name begins with.
    """
    partial = beside(output, ".writing")
    has_its_name = False
    complete = "the file is complete, but a power failure may lose it"
    with told(output, lambda: complete if has_its_name else NOTHING_KEPT):
        handle = open_alone(partial)
        try:
            with os.fdopen(handle, "r+b", closefd=False) as file:
                os.ftruncate(handle, 0)
                yield file
            os.fsync(handle)
            os.replace(partial, real(output))
            has_its_name = True
            fsync_folder(real(output).parent)
        finally:
            if is_at(partial, handle):
                partial.unlink()
            os.close(handle)
