"""How far a run is in, a bar or a caller's own words out. A leaf: it knows counts and times only."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np


class Progress(NamedTuple):
    """How far an extraction is.

    done : images that have rows or are failures, of earlier runs too
    failed : those among them that could not be read
    total : images of the run
    seconds : since this run began to compute
    images_per_second : of this run
    seconds_left : at that speed
    """

    done: int
    failed: int
    total: int
    seconds: float
    images_per_second: float
    seconds_left: float


class Clock:
    """Counts a run's images.

    todo : (n,) bool, changed by who works on it
    """

    def __init__(self, todo: np.ndarray, show: Callable[[Progress], None]) -> None:
        self._todo, self._show = todo, show
        self._at_first, self._start = int(todo.sum()), time.monotonic()

    def tick(self, failed: int) -> None:
        left, total = int(self._todo.sum()), len(self._todo)
        seconds = time.monotonic() - self._start
        speed = (self._at_first - left) / max(seconds, 1e-9)
        self._show(Progress(total - left, failed, total, seconds, speed, left / max(speed, 1e-9)))


@contextlib.contextmanager
def shown(progress: bool | Callable[[Progress], None]) -> Iterator[Callable[[Progress], None]]:
    """What to call as a run goes on: nothing, a bar on stderr, or the caller's."""
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda _: None
    else:
        with _bar() as show:
            yield show


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    said = TextColumn("{task.fields[said]}")
    with Bar(TextColumn("extracting"), BarColumn(), MofNCompleteColumn(), said, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None, said="")

        def show(now: Progress) -> None:
            left = f"{int(now.seconds_left) // 60}:{int(now.seconds_left) % 60:02d} left"
            said = f"{now.images_per_second:,.0f} images/s, {left}"
            bar.update(task, completed=now.done, total=now.total, said=said)

        yield show


@contextlib.contextmanager
def counted(what: str, progress: bool | Callable[[int, int], None]) -> Iterator[Callable[[int, int], None]]:
    """What to call with (done, total) as a run goes on: nothing, a bar on stderr that names it, or the caller's."""
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda done, total: None
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Bar(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
