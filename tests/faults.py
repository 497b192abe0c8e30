"""Everything that a run asks of the disk, call by call, so that a test can kill, refuse or lose any part of it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SECTOR = 512  # bytes that a disk writes all or not at all
CALLS = ("open", "posix_fallocate", "ftruncate", "pwrite", "write", "fsync", "replace", "unlink")
REAL = {name: getattr(os, name) for name in CALLS}


def sampled(names: list[str], step: int) -> list[int]:
    """Positions of every `step`-th moment, and of the first and the last moment of each name."""
    ends = [at for name in set(names) for at in (names.index(name), len(names) - 1 - names[::-1].index(name))]
    return sorted({*range(0, len(names), step), *ends})


class Steps:
    """While it is entered, every call that changes the disk is a step, at which something may happen.

    Parameters
    ----------
    happen : called with the number of the moment and the name of the call
        A moment is before a call, or, "pwrite half", when half of its bytes are written. What is after a call is before
        the next. It may raise, or not return.
    unsynced : Unsynced, optional
        Is told of all that is done.
    sync : whether files are really synced; where only processes end, nothing that they wrote is lost
    """

    def __init__(self, happen: Callable[[int, str], None], unsynced: Unsynced | None = None, sync: bool = True) -> None:
        self.happen, self.unsynced, self.sync, self.count = happen, unsynced, sync, 0
        self._journals: set[int] = set()

    def __enter__(self) -> Steps:
        for name in CALLS:
            setattr(os, name, getattr(self, f"_{name}"))
        return self

    def __exit__(self, *_: object) -> None:
        for name, call in REAL.items():
            setattr(os, name, call)

    def _moment(self, name: str) -> None:
        number, self.count = self.count, self.count + 1
        self.happen(number, name)

    def _open(self, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        self._moment("open")
        made = bool(flags & os.O_CREAT) and not os.path.exists(path)
        handle = REAL["open"](path, flags, *args, **kwargs)
        if made and self.unsynced:
            self.unsynced.made(path, handle)
        (self._journals.add if str(path).endswith(".journal") else self._journals.discard)(handle)
        return handle

    def _posix_fallocate(self, handle: int, offset: int, length: int) -> None:
        self._moment("posix_fallocate")
        REAL["posix_fallocate"](handle, offset, length // 2)
        self._moment("posix_fallocate half")
        REAL["posix_fallocate"](handle, offset, length)

    def _ftruncate(self, handle: int, length: int) -> None:
        self._moment("ftruncate")
        REAL["ftruncate"](handle, length)

    def _pwrite(self, handle: int, data: Any, offset: int) -> int:
        self._moment("pwrite")
        if self.unsynced:
            self.unsynced.written(handle, offset, len(data))
        half = REAL["pwrite"](handle, data[: len(data) // 2], offset)
        self._moment("pwrite half")
        return half + REAL["pwrite"](handle, data[half:], offset + half)

    def _write(self, handle: int, data: Any) -> int:
        if handle not in self._journals:
            return REAL["write"](handle, data)
        self._moment("write")
        half = REAL["write"](handle, data[: len(data) // 2])
        self._moment("write half")
        return half + REAL["write"](handle, data[half:])

    def _fsync(self, handle: int) -> None:
        try:
            self._moment("fsync")
        except OSError:
            if self.unsynced:
                self.unsynced.refused(handle)
            raise
        if self.unsynced:
            self.unsynced.synced(handle)
        if self.sync:
            REAL["fsync"](handle)

    def _replace(self, source: Any, target: Any) -> None:
        self._moment("replace")
        if self.unsynced:
            self.unsynced.renamed(source, target)
        REAL["replace"](source, target)

    def _unlink(self, path: Any, *args: Any, **kwargs: Any) -> None:
        self._moment("unlink")
        if self.unsynced:
            self.unsynced.removed(path)
        REAL["unlink"](path, *args, **kwargs)


class Unsynced:
    """What a power cut may lose, over several lives of a run: kept in a folder, for those who know of it are killed.

    Parameters
    ----------
    aside : a folder that exists, on the disk of `folder`
    folder : of the output; what lies there now is on the disk for certain
    """

    def __init__(self, aside: Path, folder: Path) -> None:
        self.aside, self.folder, self._names = aside, folder, aside / "names"
        self._gone: dict[int, np.ndarray] = {}  # bytes that were written, and that the system will not write any more
        self.resolve_recipe()

    def resolve_recipe(self) -> None:
        """All that is there has come to the disk."""
        for path in self.aside.iterdir():
            path.unlink()
        self._gone.clear()
        self._names.write_text("")
        for path in self.folder.iterdir():
            self._content(path.stat().st_ino).write_bytes(path.read_bytes())

    def _content(self, inode: int) -> Path:
        return self.aside / f"content {inode}"

    def _tell(self, *change: str) -> None:
        with open(self._names, "a") as file:
            file.write(json.dumps(change) + "\n")

    def _kept(self, path: Any) -> str:
        """A second name for what loses its first."""
        for number in range(1000):
            if not (name := self.aside / f"kept {number}").exists():
                os.link(path, name)
                return str(name)
        raise AssertionError("that many names")

    def made(self, path: Any, handle: int) -> None:
        self._content(os.fstat(handle).st_ino).write_bytes(b"")  # the number may be that of a file that is gone
        self._tell("made", str(path))

    def synced(self, handle: int) -> None:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            self._names.write_text("")
        else:
            old, new = self._both(status.st_ino)
            gone = self._gone.get(status.st_ino, np.zeros(0, bool))[: len(new)]
            new[: len(gone)][gone] = old[: len(gone)][gone]
            self._content(status.st_ino).write_bytes(new.tobytes()[: status.st_size])

    def refused(self, handle: int) -> None:
        """An fsync failed: what it was for counts as written from now on, and is not."""
        status = os.fstat(handle)
        if not stat.S_ISDIR(status.st_mode):
            old, new = self._both(status.st_ino)
            self._gone[status.st_ino] = old != new

    def written(self, handle: int, offset: int, nbytes: int) -> None:
        if (gone := self._gone.get(os.fstat(handle).st_ino)) is not None:
            gone[offset : offset + nbytes] = False

    def _both(self, inode: int) -> tuple[np.ndarray, np.ndarray]:
        """What the disk has of a file, and what its readers see, filled up with zeros to the longer of the two."""
        paths = [path for path in self.folder.iterdir() if path.stat().st_ino == inode]
        return _of_one_length(self._content(inode).read_bytes(), *(path.read_bytes() for path in paths[:1]))

    def renamed(self, source: Any, target: Any) -> None:
        self._tell("renamed", str(source), str(target), self._kept(target) if os.path.exists(target) else "")

    def removed(self, path: Any) -> None:
        if os.path.exists(path):
            self._tell("removed", str(path), self._kept(path))

    def lose(self, rng: np.random.Generator | None = None) -> None:
        """The power fails: of what was not synced some came to the disk, some did not, some is garbage; without `rng`,
        nothing did.
        """
        changes = [json.loads(line) for line in self._names.read_text().splitlines()]
        first = 0 if rng is None else int(rng.integers(len(changes) + 1))
        for kind, path, *more in reversed(changes[first:]):  # file systems keep the order of names
            if kind == "made":
                os.unlink(path)
            elif kind == "removed":
                os.link(more[0], path)
            else:
                os.rename(more[0], path)
                if more[1]:
                    os.link(more[1], more[0])
        for path in self.folder.iterdir():
            content = self._content(path.stat().st_ino)
            old, new = content.read_bytes(), path.read_bytes()
            with open(path, "r+b") as file:  # the same file, not another of its name
                torn = old if rng is None else _torn(rng, old, new)
                file.write(torn)
                file.truncate(len(torn))
        self.resolve_recipe()


def _torn(rng: np.random.Generator, old: bytes, new: bytes) -> bytes:
    """By sectors the one or the other, or garbage where they differ."""
    size = int(rng.choice([len(old), len(new)]))
    both = np.stack(_of_one_length(old, new))
    garbage = np.where(both[0] != both[1], rng.integers(0, 256, both.shape[1], np.uint8), both[0])
    sectors = np.stack([*both, garbage]).reshape(3, -1, SECTOR)
    changed = np.flatnonzero((sectors[0] != sectors[1]).any(axis=1))
    if rng.random() < 0.5:  # all came but the last few, in the order of the file
        choice = np.ones(sectors.shape[1], int)
        lost = int(rng.integers(min(len(changed), int(rng.choice([3, 1000]))) + 1))
        choice[changed[len(changed) - lost :]] = rng.choice([0, 2])
    else:
        came = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])
        choice = rng.choice(3, sectors.shape[1], p=[(1 - came) * 0.8, came, (1 - came) * 0.2])
    return sectors[choice, np.arange(len(choice))].tobytes()[:size]


def _of_one_length(*contents: bytes) -> list[np.ndarray]:
    """Whole sectors of each, as many as the longest has."""
    size = -(-max(1, *map(len, contents)) // SECTOR) * SECTOR
    return [np.frombuffer(content.ljust(size, b"\0"), np.uint8).copy() for content in contents]
