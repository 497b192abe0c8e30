"""Runs of the store that are killed, again and again: a program without torch, that forks a process for each life.

`python crash_child.py` answers each line [function, folder, run, options] on stdin by a line of what went wrong. Every
trial is in a fork of its own: they share nothing but the time it takes to import.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from faults import REAL, Steps, Unsynced, sampled
from helpers import digests_of, left_in, recipe, rows_of

from featx.errors import ImageError
from featx.store import FeatureStore, StoreWriter, compaction, export, layout, merge, writer

FINISHED, KILLED = 0, -signal.SIGKILL


@dataclass(frozen=True)
class Run:
    """One run of the store.

    n : number of images
    bad : those that have no row
    taps : {layer: shape of a row}
    batch : images that are written at a time
    seed : of the order in which images come, five and five; None for the straight one
    old : whether another store lies at the output
    sync_bytes, move_bytes, block_bytes : the steps of writing, of closing up, and the blocks of checksums
    """

    n: int = 150
    bad: tuple[int, ...] = ()
    taps: dict[str, list[int]] = field(default_factory=lambda: {"a:avg": [100], "b:none": [3, 5]})
    batch: int = 30
    seed: int | None = None
    dtype: str = "float32"
    old: bool = False
    sync_bytes: int = 0
    move_bytes: int = 2**24
    block_bytes: int = 2**20

    @functools.cached_property
    def rows(self) -> dict[str, np.ndarray]:
        rows = rows_of(range(self.n), self.taps, self.dtype)
        rows["a:avg"][[1, self.n // 2], 0] = np.nan, np.inf
        return rows

    @functools.cached_property
    def batches(self) -> list[np.ndarray]:
        if self.seed is None:
            return np.split(np.arange(self.n), range(self.batch, self.n, self.batch))
        fives = np.random.default_rng(self.seed).permutation(-(-self.n // 5))
        images = (5 * fives[:, None] + np.arange(5)).reshape(-1)
        images = images[images < self.n]
        return [np.sort(part) for part in np.split(images, range(self.batch, self.n, self.batch))]

    def begin(self, output: Path) -> StoreWriter:
        ids = [f"image {i}" for i in range(self.n)]
        y, columns = np.array(["x", "y", "z"] * self.n)[: self.n], {"site": np.array(ids)}
        return StoreWriter(output, recipe(self.taps, dtype=self.dtype), ids, y, columns)

    def write(self, target: StoreWriter) -> None:
        """What is still to do."""
        for batch in self.batches:
            todo = batch[target.todo[batch]]
            good = todo[~np.isin(todo, self.bad)]
            if len(good):
                target.write(good, {name: rows[good] for name, rows in self.rows.items()}, digests_of(good))
            target.fail({i: ImageError("missing", "there is none") for i in set(todo.tolist()) & {*self.bad}})
        target.finish()

    def __call__(self, output: Path) -> None:
        """From the beginning, or from where it was killed, to the end."""
        with self.begin(output) as target:
            self.write(target)

    def prepare(self, output: Path) -> None:
        """What lies at the output, and elsewhere, before the run."""
        if self.old:
            Run(n=70, seed=3)(output)

    def break_off(self, output: Path) -> None:
        """Interrupted at the third line of the journal, so that one group of images is kept."""
        lines: list[int] = []

        def happen(moment: int, name: str) -> None:
            if name == "write":
                lines.append(moment)
                if len(lines) == 3:
                    raise KeyboardInterrupt

        try:
            with Steps(happen):
                self(output)
        except KeyboardInterrupt:
            return
        raise AssertionError("it ran to its end")


@dataclass(frozen=True)
class Merge(Run):
    """A merge of two stores of n images each, of which some failed; with `old`, over the first of them."""

    def prepare(self, output: Path) -> None:
        parts = self._parts(output)
        parts[0].parent.mkdir()
        for number, part in enumerate(parts):
            names = [f"image {i}" for i in range(number * self.n, (number + 1) * self.n)]
            good = np.setdiff1d(np.arange(self.n), self.bad)
            with StoreWriter(part, recipe(self.taps), names, np.array(names), {"site": np.array(names)}) as target:
                target.write(good, rows_of(good + number * self.n, self.taps), digests_of(good + number * self.n))
                target.fail({i: ImageError("missing", "there is none") for i in self.bad})
                target.finish()
        if self.old:
            parts[0].rename(output)

    @staticmethod
    def _parts(output: Path) -> list[Path]:
        return [output.parent.with_name("parts") / f"{number}.h5" for number in range(2)]

    def __call__(self, output: Path) -> None:
        first, second = self._parts(output)
        merge([output if self.old else first, second], output, replace=self.old)


@dataclass(frozen=True)
class Export(Run):
    """A store of n images written into another kind of file; with `old`, over another store."""

    def prepare(self, output: Path) -> None:
        super().prepare(output)
        self._store(output).parent.mkdir()
        super().__call__(self._store(output))

    @staticmethod
    def _store(output: Path) -> Path:
        return output.parent.with_name("whole") / "a.h5"

    def __call__(self, output: Path) -> None:
        export(self._store(output), output, replace=self.old)


RUN = Run(n=150, bad=(3, 70), taps={"a:avg": [50], "b:none": [3, 5]})  # what most tests are made with


class Trial:
    """A run in a folder of its own, to be killed at any of its moments.

    Parameters
    ----------
    folder : an empty one
    run : Run
    power : whether a kill is a power cut, which loses what was not synced

    Attributes
    ----------
    moments : names of the moments of an unbroken run
    complaints : what was not as it should be
    kills : how many lives were ended
    went_on : how many lives began with the journal of another
    """

    def __init__(self, folder: str, run: Run, power: bool = False) -> None:
        writer._SYNC_BYTES, compaction._MOVE_BYTES, layout._BLOCK_BYTES = (
            run.sync_bytes,
            run.move_bytes,
            run.block_bytes,
        )
        self.folder, self.aside = Path(folder) / "store", Path(folder) / "aside"
        for path in (self.folder, self.aside):
            path.mkdir()
        self.run, self.output = run, self.folder / "a.h5"
        self.complaints: list[str] = []
        self.kills = self.went_on = 0
        self.first: bytes | None = None
        run.prepare(self.output)
        if self.output.exists():
            self.first = self.output.read_bytes()
        self.unsynced = Unsynced(self.aside, self.folder) if power else None
        names: list[str] = []
        with Steps(lambda _, name: names.append(name), sync=False):
            run(self.output)
        self.moments = names
        self.whole = self.output.read_bytes()
        FeatureStore(self.output).verify()

    def begin(self) -> None:
        """As it was before the run."""
        for path in self.folder.iterdir():
            path.unlink()
        if self.first is not None:
            self.output.write_bytes(self.first)
        if self.unsynced is not None:
            self.unsynced.resolve_recipe()

    @property
    def has_journal(self) -> bool:
        return (self.folder / "a.h5.journal").exists()

    def _die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def life(self, last: int | None = None, seconds: float | None = None) -> tuple[int, str]:
        """A process that runs; killed at its moment `last`, or after so many seconds. (exit code, its last words)"""
        self.went_on += self.has_journal
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            code = 1
            try:
                if seconds is None:
                    with Steps(lambda moment, _: self._die() if moment == last else None, self.unsynced, sync=False):
                        self.run(self.output)
                else:
                    self.run(self.output)
                code = 0
            except BaseException:
                REAL["write"](writing, traceback.format_exc()[-2000:].encode())
            finally:
                os._exit(code)
        os.close(writing)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with os.fdopen(reading) as words:
            said = words.read()
        self.kills += status == KILLED
        return status, said

    def look(self, story: str) -> None:
        """The output is what was there before the run, or whole."""
        content = self.output.read_bytes() if self.output.exists() else None
        if content not in (self.first, self.whole):
            self.complaints.append(f"{story}: neither absent, nor old, nor whole")
        elif content == self.whole:
            FeatureStore(self.output).verify()
        if not {*left_in(self.folder)} <= {"a.h5", "a.h5.partial", "a.h5.journal", "a.h5.writing"}:
            self.complaints.append(f"{story}: {left_in(self.folder)} is left")

    def finish(self, story: str) -> None:
        """A rerun, which nobody kills, ends as if nothing had been."""
        self.went_on += self.has_journal
        try:
            with Steps(lambda *_: None, self.unsynced, sync=False):
                self.run(self.output)
        except Exception as error:
            self.complaints.append(f"{story}: the rerun fails: {error!r}")
            return
        if self.output.read_bytes() != self.whole:
            self.complaints.append(f"{story}: the rerun gives other bytes")
        elif left_in(self.folder) != ["a.h5"]:
            self.complaints.append(f"{story}: the rerun leaves {left_in(self.folder)}")

    def kill(self, *moments: int, seed: int = 0) -> None:
        """Life after life, each killed at its moment (or finished, where it has not as many); then one that is not."""
        self.begin()
        story = "killed" if self.unsynced is None else "power cut"
        for moment in moments:
            status, said = self.life(moment)
            name = self.moments[moment] if moment < len(self.moments) else "?"
            story += f" at {moment} ({name})"
            if self.unsynced is not None:
                self.unsynced.lose(np.random.default_rng([seed, moment]))
                story += f", seed {seed}"
            if status == FINISHED and not (self.output.exists() and self.output.read_bytes() == self.whole):
                self.complaints.append(f"{story}: what was finished is not there")
            if status not in (KILLED, FINISHED):
                self.complaints.append(f"{story}: {said.strip().splitlines()[-1:]}")
            self.look(story)
        self.finish(story)

    def said(self) -> dict[str, Any]:
        return {
            "moments": self.moments,
            "complaints": self.complaints[:20],
            "kills": self.kills,
            "went_on": self.went_on,
        }


def _run(options: dict[str, Any]) -> Run:
    if "export" in options:
        return Export(**options["export"])
    return Merge(**options["merge"]) if "merge" in options else Run(**options)


def at_every_moment(
    folder: str, run: dict[str, Any], power: bool = False, seeds: int = 1, step: int = 1
) -> dict[str, Any]:
    """One kill; at each moment, or at those that are `sampled`."""
    trial = Trial(folder, _run(run), power)
    for moment in sampled(trial.moments, step):
        for seed in range(seeds):
            trial.kill(moment, seed=seed)
    return trial.said()


def at_the_end_and_the_beginning(
    folder: str, run: dict[str, Any], power: bool = False, step: int = 1
) -> dict[str, Any]:
    """Two kills: as the first run renames its file and clears up, and as the next begins among what is left."""
    trial = Trial(folder, _run(run), power)
    first = trial.moments.index("posix_fallocate") + 6
    for last in range(trial.moments.index("replace"), len(trial.moments)):
        for moment in range(last % step, first, step):
            trial.kill(last, moment, seed=moment)
    return trial.said()


def several_times(
    folder: str, run: dict[str, Any], tries: int, seed: int, power: bool = False, most: int = 3
) -> dict[str, Any]:
    """Two or more kills, each at a random moment."""
    trial, rng = Trial(folder, _run(run), power), np.random.default_rng(seed)
    for number in range(tries):
        trial.kill(*rng.integers(0, len(trial.moments), int(rng.integers(2, most + 1))).tolist(), seed=number)
    return trial.said()


def at_random_times(folder: str, run: dict[str, Any], kills: int, seed: int) -> dict[str, Any]:
    """Kills from outside, whatever the run is doing; the disk is the real one."""
    trial, rng = Trial(folder, _run(run)), np.random.default_rng(seed)
    trial.begin()
    start = time.perf_counter()
    trial.life(seconds=None)
    longest = time.perf_counter() - start
    trial.begin()
    while trial.kills < kills:
        trial.life(seconds=float(rng.uniform(0, longest)))
        trial.look(f"kill {trial.kills} of seed {seed}")
        if rng.random() < 0.5:  # else the next kill hits a run that goes on
            trial.finish(f"after kill {trial.kills} of seed {seed}")
            trial.begin()
    trial.finish("at last")
    return trial.said()


CALLS = (at_every_moment, at_the_end_and_the_beginning, several_times, at_random_times)


def main() -> None:
    assert "torch" not in sys.modules  # it has threads, and a fork has none of them
    calls = {call.__name__: call for call in CALLS}
    for line in sys.stdin:
        name, folder, run, options = json.loads(line)
        child = os.fork()
        if not child:
            try:
                print(json.dumps(calls[name](folder, run, **options)), flush=True)
            except BaseException:
                print(json.dumps(traceback.format_exc()), flush=True)
            finally:
                os._exit(0)
        if status := os.waitpid(child, 0)[1]:
            print(json.dumps(f"the trial itself ended with {os.waitstatus_to_exitcode(status)}"), flush=True)


if __name__ == "__main__":
    main()
