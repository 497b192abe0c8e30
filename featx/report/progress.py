"""A live table of a search on stderr: progress, and the best candidates so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from featx.display import console
from featx.progress import SearchProgress, left_column, update
from featx.report.columns import FittedTable
from featx.report.scores import backbone_names, number, setting

if TYPE_CHECKING:
    from featx.learn.selection import Candidate

_LEADERS = 5


@contextmanager
def search_progress(scoring: str = "accuracy") -> Iterator[Callable[[SearchProgress, list[Candidate]], None]]:
    """A context in which a progress bar and the best layers and estimators so far are shown.

    It yields a function for the `on_progress` of `select_model`. Nothing is shown if stderr is not a terminal. At the
    end the table, which the result repeats, is removed, and the bar stays.
    """
    terminal = console(stderr=True)
    if not terminal.is_terminal or terminal.is_dumb_terminal:
        yield lambda now, ranked: None
        return
    bar = Progress(
        TextColumn("searching"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        left_column(),
    )
    task = bar.add_task("", total=None)
    live = Live(bar, console=terminal)

    def show(now: SearchProgress, ranked: list[Candidate]) -> None:
        if not live.is_started:  # not before: what is refused at once shows no bar
            bar.reset(task)
            live.start()
        update(bar, task, now)
        live.update(Group(bar, leaders_table(ranked, scoring)) if ranked else bar)

    try:
        yield show
    finally:
        if live.is_started:
            live.update(bar)
            live.stop()


def leaders_table(ranked: list[Candidate], scoring: str = "accuracy") -> FittedTable:
    """The best layers and estimators, each with its best setting."""
    leaders: dict[tuple[str, str, str], Candidate] = {}
    for candidate in ranked:
        leaders.setdefault((candidate.backbone, candidate.layer, candidate.estimator), candidate)
        if len(leaders) == _LEADERS:
            break
    backbones = backbone_names(candidate.backbone for candidate in leaders.values())
    several = len(backbones) > 1
    table = FittedTable()
    table.box = None
    table.add_names(*(["backbone"] if several else []), "layer", "estimator")
    table.add_numbers("best", "score")
    for candidate in leaders.values():
        cells = [*([backbones[candidate.backbone]] if several else []), candidate.layer, candidate.estimator]
        table.add_row(*cells, setting(candidate), number(candidate.mean, scoring))
    return table
