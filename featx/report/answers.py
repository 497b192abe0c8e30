"""What a search or a protocol found in; the answer in words, and what flatters it, out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featx.report.scores import amount, bracket, named, number, score_name, value_text

if TYPE_CHECKING:
    from featx.learn.ranking import Nested, ProtocolResult, Selection


def selection_text(result: Selection | ProtocolResult) -> str:
    """The answer in a few lines: first the score that was chosen by, then the one that was not."""
    from featx.learn.ranking import Selection

    return "\n".join(_search_lines(result) if isinstance(result, Selection) else _protocol_lines(result))


def _search_lines(selection: Selection) -> list[str]:
    scoring, chosen = selection.scoring, selection.chosen
    lines = []
    if selection.steps:
        lines.append(f"between features and scaler: {', '.join(selection.steps)}")
    if selection.n_groups is not None:
        lines.append(f"{selection.n_groups:,} groups of images were never parted")
    if selection.n_duplicates:
        lines.append(f"{selection.n_duplicates:,} images are there more than once; copies were kept on one side")
    score = _with_interval(number(chosen.mean, scoring), bracket(chosen.interval, scoring))
    which = "best" if chosen == selection.best else "chosen"
    lines.append(
        f"{which} of {len(selection.candidates):,} in cross-validation: {score}, flattered by the choice: "
        f"{named(chosen)}"
    )
    if selection.nested is not None and selection.nested.scores:
        lines.append(_nested_line(selection.nested))
    if selection.held_out is not None and selection.y_test is not None:
        score = _with_interval(number(selection.held_out, scoring), bracket(selection.held_out_interval, scoring))
        mae = selection.held_out_mae if scoring != "neg_mean_absolute_error" else None
        error = "" if mae is None else f", {score_name('neg_mean_absolute_error')} {amount(mae)},"
        lines.append(f"held out: {score}{error} on {len(selection.y_test):,} images that played no part in it")
    elif selection.is_partial:
        lines.append("interrupted: nothing was fitted, and nothing scored on images held out")
    elif selection.nested is None:
        lines.append("held out: nothing, so there is no score that the choice has not flattered")
    return lines


def _nested_line(nested: Nested) -> str:
    score = _with_interval(number(nested.mean, nested.scoring), bracket(nested.interval, nested.scoring))
    done = len(nested.scores)
    splits = f"{done} outer splits" if done == nested.folds else f"{done} of {nested.folds} outer splits, interrupted"
    return f"nested cross-validation: {score}, what searching and taking the winner is worth, over {splits}"


def _protocol_lines(result: ProtocolResult) -> list[str]:
    best = result.curves[0]
    if best.chosen is not None and best.test is not None:
        score = _with_interval(number(best.test), bracket(best.test_interval))
        return [
            f"best in validation: {number(best.chosen.mean)}, flattered by the choice: {best.layer}, "
            f"{result.varied} = {value_text(best.chosen.x)}",
            f"test: {score} on {result.n_test:,} images that played no part in it",
        ]
    last = best.points[-1]
    score = _with_interval(number(last.mean), bracket(last.interval))
    lines = [f"best with {last.x:,g} {result.varied}: {best.layer}, {score}, over {result.repeats:,} draws"]
    if len(result.curves) > 1:
        lines.append(f"of {len(result.curves):,} layers; being the best of them flatters it")
    return lines


def _with_interval(score: str, interval: str) -> str:
    return f"{score} {interval}".strip()
