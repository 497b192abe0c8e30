"""Tables of the results of searches and protocols, best first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featx.display import printable_lines
from featx.errors import count
from featx.report.columns import FittedTable
from featx.report.scores import (
    amount,
    backbone_names,
    n_features,
    named,
    number,
    score_name,
    scored,
    setting,
    stacked,
    value_text,
)

if TYPE_CHECKING:
    from featx.learn.selection import Candidate, Curve, Nested, ProtocolResult, Selection


def ranking_table(selection: Selection, most: int = 12) -> FittedTable:
    """Layers and estimators, each with the best value of its parameter, best first; at least one row per backbone.

    The chosen candidate has a row of its own, with a star. Intervals are 95 %; the caption names a simpler candidate
    within one standard error of the best.

    Parameters
    ----------
    most : int
        Maximum number of rows.
    """
    scoring, chosen = selection.settings.scoring, selection.chosen
    best: dict[tuple[str, str, str], Candidate] = {}
    for candidate in selection.candidates:
        best.setdefault((candidate.backbone, candidate.layer, candidate.estimator), candidate)
    ranked = [candidate for candidate in selection.candidates if candidate in (*best.values(), chosen)]
    backbones = backbone_names(candidate.backbone for candidate in ranked)
    several = len(backbones) > 1
    table = FittedTable(ranking_title(selection), spare=("fit s", "features", "MAE"))
    table.add_numbers("rank")
    table.add_names(*(["backbone"] if several else []), "layer", "estimator")
    table.add_numbers("features", "best")
    table.add_words(f"{score_name(scoring)} [95%]")
    has_mae = selection.training.classes is None and scoring != "neg_mean_absolute_error"
    table.add_numbers(*(["MAE"] if has_mae else []), "fit s")
    shown: set[str] = set()
    for rank, candidate in enumerate(ranked, start=1):
        if rank <= most or candidate.backbone not in shown or candidate == chosen:
            shown.add(candidate.backbone)
            cells: list[str | list[str]] = [_starred(rank, candidate == chosen)]
            cells += [backbones[candidate.backbone]] if several else []
            cells += [stacked(candidate.layer), candidate.estimator, n_features(candidate), setting(candidate)]
            cells += [scored(candidate.mean, candidate.interval, scoring)]
            cells += [amount(candidate.mae or 0.0)] if has_mae else []
            table.add_row(*cells, f"{candidate.fit_seconds:.3f}", style="bold" if candidate == chosen else None)
    notes = []
    if table.row_count < len(ranked):
        notes.append(f"and {count(len(ranked) - table.row_count, 'more pair')} of layer and estimator")
    if selection.is_partial:
        notes.append("interrupted: results are incomplete")
    if chosen != selection.best:
        notes.append(f"* chosen, being the simplest within one standard error of the best: {named(chosen)}")
    else:
        notes.append("* chosen, being the best")
    if chosen == selection.best and (simpler := selection.simpler) is not None:
        notes.append(
            f"simpler, and within one standard error of the best: {named(simpler)} "
            f"({n_features(simpler)} features, {number(simpler.mean, scoring)})"
        )
    table.caption = printable_lines(notes) or None
    return table


def ranking_title(selection: Selection) -> str:
    """ "5-fold accuracy, 3 times, on 1,600 training images (chance 0.500)" """
    times = f", {selection.settings.repeats} times," if selection.settings.repeats > 1 else ""
    settings, training = selection.settings, selection.training
    return (
        f"{settings.folds}-fold {score_name(settings.scoring)}{times} on {training.n:,} training images "
        f"(chance {number(training.chance, settings.scoring)})"
    )


def nested_table(nested: Nested) -> FittedTable:
    """Each outer split: the candidate that its search chose, with its inner score and its score on the test images."""
    scoring = nested.scoring
    mean = scored(nested.mean, nested.interval, scoring)
    table = FittedTable(f"nested cross-validation, {score_name(scoring)} {mean}", spare=("inside",))
    backbones = backbone_names(candidate.backbone for candidate in nested.chosen)
    several = len(backbones) > 1
    table.add_numbers("split")
    table.add_names(*(["backbone"] if several else []), "layer chosen", "estimator")
    table.add_numbers("with", "inside", "left out")
    for split, (score, chosen) in enumerate(zip(nested.scores, nested.chosen, strict=True), start=1):
        cells: list[str | list[str]] = [str(split), *([backbones[chosen.backbone]] if several else [])]
        cells += [stacked(chosen.layer), chosen.estimator, setting(chosen)]
        table.add_row(*cells, number(chosen.mean, scoring), number(score, scoring))
    if nested.is_partial:
        table.caption = f"interrupted after {len(nested.scores)} of {nested.folds} outer splits"
    return table


def protocol_table(result: ProtocolResult, most: int = 12) -> FittedTable:
    """The layers of a protocol, best first.

    If the protocol chooses a value on validation images: that value, its validation accuracy and the test accuracy.
    Otherwise the mean test score at each x. Intervals are 95 %.

    Parameters
    ----------
    most : int
        Maximum number of rows.
    """
    backbones = backbone_names(curve.backbone for curve in result.curves)
    several = len(backbones) > 1
    chooses = any(curve.chosen is not None for curve in result.curves)
    xs = sorted({point.x for curve in result.curves for point in curve.points})
    table = FittedTable(protocol_title(result), spare=("features",), spare_at_last=[f"{x:,g}" for x in xs[:-1]])
    table.add_numbers("rank")
    table.add_names(*(["backbone"] if several else []), "layer")
    table.add_numbers("features")
    if chooses:
        table.add_numbers(f"best {result.varied}")
        table.add_words("validation [95%]", "test [95%]")
    else:
        table.add_words(*(f"{x:,g}" for x in xs))
    saved = result.curves[0] if result.best_estimator is not None and not result.is_partial else None
    for rank, curve in enumerate(result.curves[:most], start=1):
        at = {point.x: scored(point.mean, point.interval, result.scoring) for point in curve.points}
        cells: list[str | list[str]] = [_starred(rank, curve is saved)]
        cells += [backbones[curve.backbone]] if several else []
        cells += [stacked(curve.layer), f"{curve.d:,}"]
        cells += _chosen_cells(curve) if chooses else [at.get(x, "") for x in xs]
        table.add_row(*cells, style="bold" if rank == 1 else None)
    notes = []
    if not chooses:
        notes.append(f"{score_name(result.scoring)} [95%] by {result.varied}")
    if len(result.curves) > most:
        notes.append(f"and {len(result.curves) - most:,} more layers")
    if result.is_partial:
        notes.append("interrupted: results are incomplete")
    if saved is not None:
        notes.append("* the model to save, fitted on training and validation images")
    table.caption = printable_lines(notes) or None
    return table


def protocol_title(result: ProtocolResult) -> str:
    """ "k nearest neighbours: 80 training, 20 validation and 25 test images (chance 0.100)" """
    name = result.title or f"{score_name(result.scoring)} by {result.varied}"
    images = f"{result.n_train:,} training"
    images += f", {result.n_validation:,} validation" if result.n_validation else ""
    drawn = {len(point.scores) for point in result.curves[0].points}
    draws = f", {max(drawn):,} draws{' of fewer than all' if 1 in drawn else ''}" if max(drawn) > 1 else ""
    chance = number(result.chance, result.scoring)
    return f"{name}: {images} and {result.n_test:,} test images{draws} (chance {chance})"


def _chosen_cells(curve: Curve) -> list[str]:
    if curve.chosen is None or curve.test is None:
        return ["", "", ""]
    validation = scored(curve.chosen.mean, curve.chosen.interval)
    return [value_text(curve.chosen.x), validation, scored(curve.test, curve.test_interval)]


def _starred(rank: int, is_chosen: bool) -> str:
    return f"* {rank}" if is_chosen else str(rank)
