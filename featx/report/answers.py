"""The result of a search or protocol in words, with a note on scores that are biased by the choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featx.display import printable_lines
from featx.report.scores import amount, named, score_name, scored, value_text

if TYPE_CHECKING:
    from featx.learn.selection import Nested, ProtocolResult, Selection


def selection_text(result: Selection | ProtocolResult) -> str:
    """The result in a few lines: first the score by which the model was chosen, then the unbiased scores."""
    from featx.learn.selection import Selection

    return printable_lines(_search_lines(result) if isinstance(result, Selection) else _protocol_lines(result))


def model_text(result: Selection | ProtocolResult) -> str:
    """A fitted model in words, for the line that names its file."""
    from featx.learn.selection import Selection

    if isinstance(result, Selection):
        return f"{named(result.chosen)}, fitted on the {result.training.n:,} training images"
    best = result.curves[0]
    assert best.chosen is not None
    images = result.n_train + result.n_validation
    return (
        f"{best.layer}, {result.varied} = {value_text(best.chosen.x)}, fitted on {images:,} images, all but the test's"
    )


def _search_lines(selection: Selection) -> list[str]:
    scoring, chosen = selection.settings.scoring, selection.chosen
    lines = []
    if selection.settings.steps:
        lines.append(f"between features and scaler: {', '.join(selection.settings.steps)}")
    if selection.training.n_groups is not None:
        lines.append(f"{selection.training.n_groups:,} groups of images were never split between training and test")
    if selection.training.n_duplicates:
        n_duplicates = f"{selection.training.n_duplicates:,}"
        lines.append(f"{n_duplicates} images have the same content as another one; copies were kept on one side")
    n = len(selection.candidates)
    among = f"{'best' if chosen == selection.best else 'chosen'} of {n:,} " if n > 1 else ""
    score = scored(chosen.mean, chosen.interval, scoring)
    lines.append(f"{among}in cross-validation: {score}{_bias(n)}: {named(chosen)}")
    if selection.nested is not None:
        lines.append(_nested_line(selection.nested))
    if selection.held_out is not None and selection.test is not None:
        score = scored(selection.held_out, selection.held_out_interval, scoring)
        mae = selection.held_out_mae if scoring != "neg_mean_absolute_error" else None
        error = "" if mae is None else f", {score_name('neg_mean_absolute_error')} {amount(mae)},"
        lines.append(f"held out: {score}{error} on {len(selection.test.y):,} images that played no part in it")
    elif selection.is_partial:
        lines.append("interrupted: nothing was fitted, and nothing scored on images held out")
    elif selection.nested is None and n > 1:
        lines.append("no images were held out: every score is biased upwards by the choice")
    return lines


def _nested_line(nested: Nested) -> str:
    done = len(nested.scores)
    if not done:
        return f"nested cross-validation: interrupted in the first of {nested.folds} outer splits"
    score = scored(nested.mean, nested.interval, nested.scoring)
    splits = f"{done} of {nested.folds} outer splits, interrupted" if nested.is_partial else f"{done} outer splits"
    return f"nested cross-validation: {score}, for the whole search, without the bias of its choice, over {splits}"


def _protocol_lines(result: ProtocolResult) -> list[str]:
    best, scoring = result.curves[0], result.scoring
    lines = []
    if best.chosen is not None and best.test is not None:
        score = scored(best.chosen.mean, best.chosen.interval, scoring)
        choices = sum(len(curve.points) for curve in result.curves)
        best_of = f"best of {choices:,} " if choices > 1 else ""
        lines += [
            f"{best_of}in validation: {score}{_bias(choices)}: {best.layer}, "
            f"{result.varied} = {value_text(best.chosen.x)}",
            f"test: {scored(best.test, best.test_interval, scoring)} on {result.n_test:,} images that played no part "
            "in it",
        ]
    else:
        last = best.points[-1]
        draws = f"over {len(last.scores):,} draws" if len(last.scores) > 1 else "of one draw"
        draws = "all there are" if last.x == result.n_train else draws
        score = scored(last.mean, last.interval, scoring)
        lines.append(f"best with {last.x:,g} {result.varied}, {draws}: {best.layer}, {score}")
        if len(result.curves) > 1:
            lines.append(f"of {len(result.curves):,} layers; its score is biased upwards by the choice")
    if result.is_partial:
        lines.append("interrupted: results are incomplete")
    return lines


def _bias(choices: int) -> str:
    return ", biased upwards by the choice" if choices > 1 else ""
