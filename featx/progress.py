"""Progress of extractions and searches: counts and times left, shown as a bar or passed to the caller's function.

The module is quick to import, so that a bar can be shown while torch and scikit-learn are imported.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from featx.display import console, printable
from featx.errors import FeatxError, Parameter

if TYPE_CHECKING:
    import numpy as np

EXTRACTING = "extracting"


class Progress(NamedTuple):
    """Progress of an extraction.

    Attributes
    ----------
    done : int
        Images that have rows or could not be read, those of earlier runs included.
    failed : int
        Images that could not be read.
    total : int
        Images of the run.
    seconds : float
        Time since this run began to compute.
    images_per_second : float
        Speed of this run.
    seconds_left : float or None
        Time left at that speed; None until the speed is known.
    phase : str
        What is being done: "extracting", and before that "building resnet50", "trying bfloat16", "compiling" and so on.
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
    """A function that shows the name of each phase before the first rows."""
    if not callable(show):
        raise FeatxError(Parameter("progress"), f" is a function; got {show!r}")
    start = time.monotonic()
    return lambda phase: show(Progress(0, 0, total, time.monotonic() - start, 0.0, None, phase))


class Clock:
    """Counts the images of an extraction.

    Parameters
    ----------
    todo : (n,) bool
        Images that are left to do; the extraction changes it in place.
    show : callable(Progress)
    seconds : float
        Time already spent on images that are still to be counted.
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
    """Yield a function that shows the progress of an extraction.

    Parameters
    ----------
    progress : bool or callable(Progress)
        True shows a bar on stderr, False shows nothing, a function is called with each update.
    """
    if callable(progress):
        yield progress
    elif not isinstance(progress, bool | None):
        raise FeatxError(Parameter("progress"), f" is True, False or a function; got {progress!r}")
    elif not progress:
        yield lambda _: None
    else:
        with _bar() as show:
            yield show


@contextlib.contextmanager
def _bar() -> Iterator[Show]:
    """A bar with the phase and, once images are counted, their number, speed and time left; only then does it stay on
    the screen.
    """
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    phase, counts = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[counts]}"))
    screen = console(stderr=True)
    bar = Bar(phase, BarColumn(), counts, console=screen, transient=True)
    task = bar.add_task("", total=None, counts="")

    def show(now: Progress) -> None:
        counts = f"{now.done:,}/{now.total:,}" if now.total else ""
        if now.images_per_second and now.seconds_left is not None:
            left = f"{int(now.seconds_left) // 60}:{int(now.seconds_left) % 60:02d} left"
            counts += f" {now.images_per_second:,.0f} images/s, {left}"
        counting = now.phase == EXTRACTING
        bar.live.transient = bar.live.transient and not counting
        total = now.total if counting else None  # None: the bar pulses
        bar.update(task, description=printable(now.phase), completed=now.done, total=total, counts=counts)
        if counting or screen.is_terminal:  # a log file gets the last line only, and only if images were counted
            bar.start()
        if not counting:
            bar.refresh()  # at once: an import may hold the interpreter for a second

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()


class SearchProgress(NamedTuple):
    """Progress of a search.

    Attributes
    ----------
    done : int
        Number of fits that are done.
    total : int
        Number of fits of the search; of successive halving, of the current round.
    seconds : float
        Time since the search began.
    seconds_left : float or None
        Estimated from the plan and from the time that the work so far took; None before any work is done.
    """

    done: int
    total: int
    seconds: float
    seconds_left: float | None


class SearchClock:
    """Counts the fits of a search and estimates its time left.

    Work is of several kinds, measured in amounts, and is done in pieces. Time left = sum over kinds of
    amount left x seconds per amount, where the seconds per amount are the mean so far: of the same kind, or of all
    kinds if none of it is done yet.
    """

    def __init__(self, show: Callable[[SearchProgress], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._show, self._clock, self._start = show, clock, clock()
        self._done, self._total = 0, 0
        self._left: dict[str, float] = {}
        self._amounts: dict[str, float] = {}  # done
        self._seconds: dict[str, float] = {}
        self._piece: tuple[str, float, float] | None = None  # kind, amount, start time

    def expect(self, fits: int, work: Mapping[str, float]) -> None:
        """Add work to do: a number of fits, and {kind: amount}."""
        self._total += fits
        for kind, amount in work.items():
            self._left[kind] = self._left.get(kind, 0) + amount

    def restart(self) -> None:
        """Forget the work done and left; keep the seconds per amount of each kind."""
        self._done, self._total = 0, 0
        self._left.clear()

    @contextlib.contextmanager
    def piece(self, kind: str, amount: float) -> Iterator[None]:
        """Time the work on an amount of one kind."""
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
        """Count one fit as done and scored."""
        self._done += 1
        self.show()

    def show(self) -> None:
        seconds = self._clock() - self._start
        left = 0.0 if self._done == self._total else self._seconds_left()
        self._show(SearchProgress(self._done, self._total, seconds, left))

    def _seconds_left(self) -> float | None:
        if not any(self._amounts.values()):
            return None
        pace_of_all = sum(self._seconds.values()) / sum(self._amounts.values())  # seconds per amount
        pace = {kind: self._seconds[kind] / amount for kind, amount in self._amounts.items() if amount}
        left, begun = dict(self._left), 0.0
        if self._piece is not None:
            kind, amount, began = self._piece
            left[kind] += amount
            begun = self._clock() - began
            pace[kind] = max(pace.get(kind, pace_of_all), begun / max(amount, 1e-300))  # slower than expected
        return max(0.0, sum(amount * pace.get(kind, pace_of_all) for kind, amount in left.items()) - begun)


class TrainingProgress(NamedTuple):
    """Progress of a training.

    Attributes
    ----------
    epoch : float
        Epochs that are done, with the fraction of the current one.
    epochs : int
        Number of epochs.
    loss : float
        Mean loss of the current epoch's minibatches.
    score : float
        Score of the last epoch on the images held out for early stopping; nan if there are none.
    seconds : float
        Time since training began or went on.
    seconds_left : float
        Time left at the speed so far.
    """

    epoch: float
    epochs: int
    loss: float
    score: float
    seconds: float
    seconds_left: float


@contextlib.contextmanager
def trained(progress: bool | Callable[[TrainingProgress], None]) -> Iterator[Callable[[TrainingProgress], None]]:
    """Yield a function that shows the progress of a training.

    Parameters
    ----------
    progress : bool or callable(TrainingProgress)
        True shows a bar on stderr, False shows nothing, a function is called with each update.
    """
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda _: None
    else:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        with Bar(
            TextColumn("training"), BarColumn(), TextColumn("{task.description}"), console=console(stderr=True)
        ) as bar:
            task = bar.add_task("", total=None)

            def show(now: TrainingProgress) -> None:
                score = f", score {now.score:.3f}" if now.score == now.score else ""
                left = f"{int(now.seconds_left) // 60}:{int(now.seconds_left) % 60:02d} left"
                words = f"epoch {math.ceil(now.epoch)}/{now.epochs}, loss {now.loss:.3g}{score}, {left}"
                bar.update(task, completed=now.epoch, total=now.epochs, description=words)

            yield show


@contextlib.contextmanager
def counted(what: str, progress: bool | Callable[[SearchProgress], None]) -> Iterator[Callable[[SearchProgress], None]]:
    """Yield a function that shows the progress of a search.

    Parameters
    ----------
    what : str
        The name of the search, shown before the bar.
    progress : bool or callable(SearchProgress)
        True shows a bar on stderr, False shows nothing, a function is called with each update.
    """
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
    """A column of a rich bar that counts down the time left since the last `update`."""
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Left(ProgressColumn):
        def render(self, task: Task) -> Text:
            latest = task.fields.get("latest")
            return Text("" if latest is None else left_text(latest[0], time.monotonic() - latest[1]))

    return Left()


def update(bar: Any, task: Any, now: SearchProgress) -> None:
    """Update a rich bar that has a `left_column`."""
    bar.update(task, completed=now.done, total=now.total, latest=(now, time.monotonic()))


def left_text(now: SearchProgress, since: float = 0.0) -> str:
    """ "3:05 left", `since` seconds after the update; "" where the time left is not known."""
    if now.seconds_left is None or now.done == now.total:
        return ""
    seconds = max(1, round(now.seconds_left - since))
    hours, minutes = divmod(seconds // 60, 60)
    return (f"{hours}:{minutes:02d}" if hours else str(minutes)) + f":{seconds % 60:02d} left"
