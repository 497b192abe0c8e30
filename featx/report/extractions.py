"""A planned extraction as a table, and its progress as lines of JSON."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from featx.display import printable
from featx.errors import count, readable
from featx.progress import Progress
from featx.report.columns import PlainTable
from featx.report.interchange import json_text
from featx.store import FeatureStore

if TYPE_CHECKING:  # the networks' libraries, which a search does not need, take seconds to import
    from featx.extraction import Plan

_SECONDS_BETWEEN_LINES = 1.0


def plan_table(plan: Plan, seconds: float | None) -> PlainTable:
    """A table of a plan: its layers, the bytes of each and of all, and the estimated time.

    Parameters
    ----------
    seconds : an estimate of the run's time, if there is one
    """
    recipe, n = plan.recipe, len(plan.images.ids)
    passed_over = f", {count(plan.images.passed_over, 'other file')} passed over" if plan.images.passed_over else ""
    kept = f", {plan.n_kept:,} of them done" if plan.n_kept else ""
    open_choices = [name for name in ("precision", "engine") if getattr(recipe, name) == "auto"]
    made = [choice for choice in (recipe.precision, recipe.engine) if choice != "auto"]
    made += [f"{' and '.join(open_choices)} chosen on the first batch"] if open_choices else []
    how = ", ".join([*made, f"batches of {recipe.batch_size:,}", f"on {recipe.device}"])
    error = f" (at most {recipe.precision_error:.2%} off float32)" if recipe.precision_error is not None else ""
    table = PlainTable(f"{n:,} images{kept}{passed_over}, {recipe.backbone}", f"{how}{error}", show_footer=True)
    free = readable(shutil.disk_usage(plan.output.absolute().parent).free)
    table.add_column("layer", footer=f"all, of {free} free")
    table.add_column("row")
    table.add_column("bytes an image", justify="right", footer=readable(plan.nbytes / n))
    table.add_column("all images", justify="right", footer=readable(plan.nbytes))
    for name, tap in recipe.taps.items():
        size = plan.sizes[name]
        others = [alias for alias, meant in recipe.aliases.items() if meant == name]
        alias = f" = {', '.join(others)}" if others else ""
        table.add_row(
            f"{name}{alias}", " x ".join(f"{side:,}" for side in tap["shape"]), readable(size / n), readable(size)
        )
    if plan.is_done:
        table.caption = printable(f"{plan.output} is there already, and is this")
    elif seconds is not None:
        table.caption = f"about {spoken(seconds)}"
    elif plan.is_dry:
        table.caption = "the time is estimated once it runs"
    return table


def spoken(seconds: float) -> str:
    """ "2 min 10 s" """
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


class ExtractionLines:
    """Plan, progress and result as one JSON object per line, with the key "event": "plan", "progress" or "done".

    Parameters
    ----------
    plan : Plan
    write : callable(str)
        Called with each line.
    """

    def __init__(self, plan: Plan, write: Callable[[str], Any]) -> None:
        self._plan, self._write, self._written_at = plan, write, float("-inf")

    def plan(self, seconds: float | None) -> None:
        """Write the line of the plan."""
        plan, recipe = self._plan, self._plan.recipe
        self._write_event(
            "plan",
            output=str(plan.output),
            images=len(plan.images.ids),
            done=plan.n_kept,
            is_done=plan.is_done,
            backbone=recipe.backbone,
            precision=recipe.precision,
            engine=recipe.engine,
            batch_size=recipe.batch_size,
            device=recipe.device,
            layers={name: {"shape": tap["shape"], "bytes": plan.sizes[name]} for name, tap in recipe.taps.items()},
            bytes=plan.nbytes,
            seconds=None if seconds is None else round(seconds, 3),
        )

    def progress(self, now: Progress) -> None:
        """A line at most once a second, and at the end. Unknown values are null."""
        if time.monotonic() - self._written_at >= _SECONDS_BETWEEN_LINES or now.done == now.total:
            self._written_at = time.monotonic() if now.done else self._written_at  # the first rows are reported at once
            self._write_event(
                "progress",
                **{
                    name: round(value, 3) if isinstance(value, float) else value
                    for name, value in now._asdict().items()
                },
            )

    def result(self, store: FeatureStore) -> None:
        """Write the last line, with the result."""
        self._write_event(
            "done",
            output=str(store.path),
            images=len(store),
            failures=[failure._asdict() for failure in store.failures],
            layers=list(store.layers),
        )

    def _write_event(self, event: str, **values: Any) -> None:
        self._write(json_text({"event": event, **values}))
