"""How far a run is in, a bar or a caller's own words out.

A leaf: it knows counts and times only, and is quick to import: the bar is there while everything else is imported.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from featx.display import console, printable

if TYPE_CHECKING:
    import numpy as np

EXTRACTING = "extracting"


class Progress(NamedTuple):
    """How far an extraction is.

    done : images that have rows or are failures, of earlier runs too
    failed : those among them that could not be read
    total : images of the run
    seconds : since this run began to compute
    images_per_second : of this run
    seconds_left : at that speed; None as long as there is none
    phase : what is being done: "extracting", and before that "building resnet50", "trying bfloat16", "compiling" ...
    """

    done: int
    failed: int
    total: int
    seconds: float
    images_per_second: float
    seconds_left: float | None
    phase: str = EXTRACTING


Show = Callable[[Progress], None]


def preparing(show: Show, total: int = 0) -> Callable[[str], None]:
    """What to call with each phase before the first rows."""
    start = time.monotonic()
    return lambda phase: show(Progress(0, 0, total, time.monotonic() - start, 0.0, None, phase))


class Clock:
    """Counts a run's images.

    todo : (n,) bool, changed by who works on it
    seconds : what was spent before on the first images that will be counted
    """

    def __init__(self, todo: np.ndarray, show: Show, seconds: float = 0.0) -> None:
        self._todo, self._show = todo, show
        self._at_first, self._start = int(todo.sum()), time.monotonic() - seconds

    def tick(self, failed: int, phase: str = EXTRACTING) -> None:
        left, total = int(self._todo.sum()), len(self._todo)
        seconds = time.monotonic() - self._start
        speed = (self._at_first - left) / max(seconds, 1e-9)
        seconds_left = left / speed if speed else None if left else 0.0
        self._show(Progress(total - left, failed, total, seconds, speed, seconds_left, phase))


@contextlib.contextmanager
def shown(progress: bool | Show) -> Iterator[Show]:
    """What to call as a run goes on: nothing, a bar on stderr, or the caller's."""
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda _: None
    else:
        with _bar() as show:
            yield show


@contextlib.contextmanager
def _bar() -> Iterator[Show]:
    """The phase, and once images are counted their number, speed and time left; the bar stays only then."""
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    phase, told = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[told]}"))
    screen = console(stderr=True)
    bar = Bar(phase, BarColumn(), told, console=screen, transient=True)
    task = bar.add_task("", total=None, told="")

    def show(now: Progress) -> None:
        told = f"{now.done:,}/{now.total:,}" if now.total else ""
        if now.images_per_second and now.seconds_left is not None:
            left = f"{int(now.seconds_left) // 60}:{int(now.seconds_left) % 60:02d} left"
            told += f" {now.images_per_second:,.0f} images/s, {left}"
        counting = now.phase == EXTRACTING
        bar.live.transient = bar.live.transient and not counting
        total = now.total if counting else None  # None: the bar moves to and fro
        bar.update(task, description=printable(now.phase), completed=now.done, total=total, told=told)
        if counting or screen.is_terminal:  # a log gets the last line, of a run that came to count
            bar.start()
        if not counting:
            bar.refresh()  # now: what follows may hold the interpreter for a second

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()


class SearchProgress(NamedTuple):
    """How far a search is.

    done : fits
    total : fits of the search, of successive halving those of the round
    seconds : since the search began
    seconds_left : estimated from the plan and from what the work done so far took; None where nothing is done yet
    """

    done: int
    total: int
    seconds: float
    seconds_left: float | None


class SearchClock:
    """Counts the fits of a search and estimates its time left.

    Work is of several kinds and done in pieces. What is left of a kind is expected to take as long, an amount, as what
    is done of it did; a kind of which nothing is done, as long as the others.
    """

    def __init__(self, show: Callable[[SearchProgress], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._show, self._clock, self._start = show, clock, clock()
        self._done, self._total = 0, 0
        self._left: dict[str, float] = {}
        self._amounts: dict[str, float] = {}  # of what is done
        self._seconds: dict[str, float] = {}
        self._piece: tuple[str, float, float] | None = None  # kind, amount, when it began

    def expect(self, fits: int, work: Mapping[str, float]) -> None:
        """More is to do: fits, and {kind: amount}."""
        self._total += fits
        for kind, amount in work.items():
            self._left[kind] = self._left.get(kind, 0) + amount

    def restart(self) -> None:
        """Nothing is to do, and nothing is done; what the kinds of work take stays known."""
        self._done, self._total = 0, 0
        self._left.clear()

    @contextlib.contextmanager
    def piece(self, kind: str, amount: float) -> Iterator[None]:
        """For the time that an amount of a kind is worked on."""
        self._left[kind] = max(0.0, self._left.get(kind, 0) - amount)
        self._piece = kind, amount, self._clock()
        self.show()
        try:
            yield
        finally:
            self._amounts[kind] = self._amounts.get(kind, 0) + amount
            self._seconds[kind] = self._seconds.get(kind, 0) + self._clock() - self._piece[2]
            self._piece = None

    def fitted(self) -> None:
        """One fit is done and scored."""
        self._done += 1
        self.show()

    def show(self) -> None:
        seconds = self._clock() - self._start
        left = 0.0 if self._done == self._total else self._seconds_left()
        self._show(SearchProgress(self._done, self._total, seconds, left))

    def _seconds_left(self) -> float | None:
        if not any(self._amounts.values()):
            return None
        every = sum(self._seconds.values()) / sum(self._amounts.values())
        of_kind = {kind: self._seconds[kind] / amount for kind, amount in self._amounts.items() if amount}
        left, begun = dict(self._left), 0.0
        if self._piece is not None:
            kind, amount, began = self._piece
            left[kind] += amount
            begun = self._clock() - began
            of_kind[kind] = max(of_kind.get(kind, every), begun / max(amount, 1e-300))  # it takes longer than thought
        return max(0.0, sum(amount * of_kind.get(kind, every) for kind, amount in left.items()) - begun)


@contextlib.contextmanager
def counted(what: str, progress: bool | Callable[[SearchProgress], None]) -> Iterator[Callable[[SearchProgress], None]]:
    """What to call as a search goes on: nothing, a bar on stderr that names it, or the caller's."""
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda _: None
    else:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Bar(*columns, left_column(), console=console(stderr=True)) as bar:
            task = bar.add_task("", total=None)
            yield lambda now: update(bar, task, now)


def left_column() -> Any:
    """A column of rich's bars that counts the time left of a search down, from what `update` was last given."""
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Left(ProgressColumn):
        def render(self, task: Task) -> Text:
            known = task.fields.get("known")
            return Text("" if known is None else left_text(known[0], time.monotonic() - known[1]))

    return Left()


def update(bar: Any, task: Any, now: SearchProgress) -> None:
    """Of a bar with a `left_column`."""
    bar.update(task, completed=now.done, total=now.total, known=(now, time.monotonic()))


def left_text(now: SearchProgress, since: float = 0.0) -> str:
    """ "3:05 left", some seconds after it was said; nothing where it is not known."""
    if now.seconds_left is None or now.done == now.total:
        return ""
    seconds = max(1, round(now.seconds_left - since))
    hours, minutes = divmod(seconds // 60, 60)
    return (f"{hours}:{minutes:02d}" if hours else str(minutes)) + f":{seconds % 60:02d} left"
