"""How far a search is and what leads it, as a live table on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from featx.report.scores import number, setting

if TYPE_CHECKING:
    from featx.learn.ranking import Candidate

_LEADERS = 5


@contextmanager
def search_progress() -> Iterator[Callable[[int, int, list[Candidate]], None]]:
    """A bar and the best few layers and estimators so far, for the time of a `with`.

    Gives what `select_model` takes as `on_progress`. Where stderr is no terminal, nothing is shown; on one, the bar
    stays when all is done, and the table, which the result repeats, goes.
    """
    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda done, total, ranked: None
        return
    bar = Progress(
        TextColumn("searching"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    task = bar.add_task("", total=None)
    live = Live(bar, console=console)

    def show(done: int, total: int, ranked: list[Candidate]) -> None:
        if not live.is_started:  # not before: what is refused at once shows no bar
            bar.reset(task)
            live.start()
        bar.update(task, completed=done, total=total)
        live.update(Group(bar, leaders_table(ranked)) if ranked else bar)

    try:
        yield show
    finally:
        if live.is_started:
            live.update(bar)
            live.stop()


def leaders_table(ranked: list[Candidate]) -> Table:
    """The best few layers and estimators, each with its best setting."""
    table = Table(box=None, padding=(0, 2))
    leaders: dict[tuple[str, str, str], Candidate] = {}
    for candidate in ranked:
        leaders.setdefault((candidate.backbone, candidate.layer, candidate.estimator), candidate)
        if len(leaders) == _LEADERS:
            break
    for name in ("layer", "estimator", "best"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    table.add_column("score", justify="right")
    for candidate in leaders.values():
        table.add_row(candidate.layer, candidate.estimator, setting(candidate), number(candidate.mean))
    return table
