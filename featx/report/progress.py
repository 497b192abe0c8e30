"""How far a selection is, as a live line on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from featx.learn import Candidate


@contextmanager
def search_progress() -> Iterator[Callable[[int, int, list[Candidate]], None]]:
    """A progress bar for the time of a `with`; gives what `select_model` takes as `on_progress`."""
    columns = (
        TextColumn("searching"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[best]}"),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("", total=None, best="")

    def show(done: int, total: int, ranked: list[Candidate]) -> None:
        bar.start()  # not before: what is refused at once shows no bar
        best = f"best {ranked[0].mean:.3f} {ranked[0].layer}" if ranked else ""
        bar.update(task, completed=done, total=total, best=best)

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()
