"""What searches and protocols found in; rich tables out, the best first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from featx.report.scores import amount, backbone_names, bracket, named, number, score_name, setting, stacked, value_text

if TYPE_CHECKING:
    from featx.learn.ranking import Candidate, Curve, Nested, Point, ProtocolResult, Selection


def ranking_table(selection: Selection, most: int = 12) -> Table:
    """Layers and estimators, each with the best value of its parameter, best first; of every backbone at least one.

    The chosen one is bold. Intervals are of 95 %; the caption names a candidate that costs less and that the
    cross-validation cannot tell from the best.

    Parameters
    ----------
    most : rows
    """
    scoring = selection.scoring
    best: dict[tuple[str, str, str], Candidate] = {}
    for candidate in selection.candidates:
        best.setdefault((candidate.backbone, candidate.layer, candidate.estimator), candidate)
    backbones = backbone_names(backbone for backbone, _, _ in best)
    several = len(backbones) > 1
    table = Table(title=ranking_title(selection), title_justify="left", caption_justify="left")
    table.add_column("rank", justify="right")
    for name in [*(["backbone"] if several else []), "layer"]:
        table.add_column(name, overflow="fold")
    table.add_column("estimator", no_wrap=True)
    has_mae = selection.classes is None and scoring != "neg_mean_absolute_error"
    for name in ("features", "best", score_name(scoring), "95 % interval", *(["MAE"] if has_mae else []), "fit s"):
        table.add_column(name, justify="right")
    chosen = selection.chosen
    shown: set[str] = set()
    for rank, (kind, candidate) in enumerate(best.items(), start=1):
        is_chosen = kind == (chosen.backbone, chosen.layer, chosen.estimator)
        if rank <= most or candidate.backbone not in shown or is_chosen:
            shown.add(candidate.backbone)
            cells = [
                str(rank),
                *([backbones[candidate.backbone]] if several else []),
                stacked(candidate.layer),
                candidate.estimator,
            ]
            cells += [f"{candidate.d:,}", setting(candidate), number(candidate.mean, scoring)]
            cells += [bracket(candidate.interval, scoring)]
            cells += [amount(candidate.mae or 0.0)] if has_mae else []
            table.add_row(*cells, f"{candidate.fit_seconds:.3f}", style="bold" if is_chosen else None)
    notes = []
    if table.row_count < len(best):
        notes.append(f"and {len(best) - table.row_count:,} more layers and estimators")
    if selection.is_partial:
        notes.append("interrupted: these are the layers that were done")
    if chosen != selection.best:
        notes.append(f"chosen, being the cheapest within one standard error of the best: {named(chosen)}")
    elif (cheaper := selection.cheaper) is not None:
        notes.append(
            f"cheaper, and within one standard error of the best: {named(cheaper)} "
            f"({cheaper.d:,} features, {number(cheaper.mean, scoring)})"
        )
    table.caption = "\n".join(notes) or None
    return table


def ranking_title(selection: Selection) -> str:
    """ "5-fold accuracy, 3 times, on 1,600 training images (chance 0.500)" """
    times = f", {selection.repeats} times," if selection.repeats > 1 else ""
    return (
        f"{selection.folds}-fold {score_name(selection.scoring)}{times} on {selection.n_train:,} training images "
        f"(chance {number(selection.chance, selection.scoring)})"
    )


def nested_table(nested: Nested) -> Table:
    """Every outer split: what its own search chose, what that scored inside, and on the images left out."""
    scoring = nested.scoring
    mean = f"{number(nested.mean, scoring)} {bracket(nested.interval, scoring)}".strip()
    title = f"nested cross-validation, {score_name(scoring)} {mean}"
    table = Table(title=title, title_justify="left", caption_justify="left")
    backbones = backbone_names(candidate.backbone for candidate in nested.chosen)
    several = len(backbones) > 1
    table.add_column("split", justify="right")
    for name in [*(["backbone"] if several else []), "layer chosen", "estimator", "with"]:
        table.add_column(name, overflow="fold")
    table.add_column("inside", justify="right")
    table.add_column("left out", justify="right")
    for split, (score, chosen) in enumerate(zip(nested.scores, nested.chosen, strict=True), start=1):
        cells = [
            str(split),
            *([backbones[chosen.backbone]] if several else []),
            stacked(chosen.layer),
            chosen.estimator,
            setting(chosen),
        ]
        table.add_row(*cells, number(chosen.mean, scoring), number(score, scoring))
    if len(nested.scores) < nested.folds:
        table.caption = f"interrupted after {len(nested.scores)} of {nested.folds} outer splits"
    return table


def protocol_table(result: ProtocolResult, most: int = 12) -> Table:
    """Layers in a protocol, best first.

    Where something is chosen ("linear-probe", "knn"), the chosen value, its validation accuracy and the test accuracy;
    else ("few-shot", "learning-curve") the mean test accuracy at every x, ± half of the 95 % interval.

    Parameters
    ----------
    most : rows
    """
    table = Table(title=protocol_title(result), title_justify="left", caption_justify="left")
    backbones = backbone_names(curve.backbone for curve in result.curves)
    several = len(backbones) > 1
    table.add_column("rank", justify="right")
    for name in [*(["backbone"] if several else []), "layer"]:
        table.add_column(name, overflow="fold")
    table.add_column("features", justify="right")
    chooses = any(curve.chosen is not None for curve in result.curves)
    xs = sorted({point.x for curve in result.curves for point in curve.points})
    headers = [f"best {result.varied}", "validation", "test", "95 % interval"] if chooses else [f"{x:,g}" for x in xs]
    for name in headers:
        table.add_column(name, justify="right")
    for rank, curve in enumerate(result.curves[:most], start=1):
        cells = [str(rank), *([backbones[curve.backbone]] if several else []), stacked(curve.layer), f"{curve.d:,}"]
        at = {point.x: point for point in curve.points}
        cells += _chosen_cells(curve) if chooses else [_with_half(at.get(x)) for x in xs]
        table.add_row(*cells, style="bold" if rank == 1 else None)
    if len(result.curves) > most:
        table.caption = f"and {len(result.curves) - most:,} more layers"
    return table


def protocol_title(result: ProtocolResult) -> str:
    name = {"linear-probe": "linear probe", "knn": "k nearest neighbours"}.get(result.protocol)
    name = name or f"accuracy by {result.varied}"
    images = f"{result.n_train:,} training"
    images += f", {result.n_validation:,} validation" if result.n_validation else ""
    draws = f", {result.repeats:,} draws" if result.repeats > 1 else ""
    return f"{name}: {images} and {result.n_test:,} test images{draws} (chance {number(result.chance)})"


def _chosen_cells(curve: Curve) -> list[str]:
    if curve.chosen is None or curve.test is None:
        return ["", "", "", ""]
    return [value_text(curve.chosen.x), number(curve.chosen.mean), number(curve.test), bracket(curve.test_interval)]


def _with_half(point: Point | None) -> str:
    """ "0.612 ± 0.031", on two lines"""
    if point is None:
        return ""
    half = max(point.mean - point.interval.low, point.interval.high - point.mean)
    return f"{number(point.mean)}\n± {half:.3f}" if half == half else number(point.mean)
