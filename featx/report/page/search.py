"""What was searched: the grid of scores, the candidates, the outer splits of a nested cross-validation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featx.report.page.heldout import DARK
from featx.report.page.sections import Html, Section, Table, Text, text_html
from featx.report.scores import backbone_names, n_features, named, number, score_name, scored, setting, value_text

if TYPE_CHECKING:
    from featx.learn.selection import Candidate, Selection

_MOST_ROWS = 25


def grid_section(selection: Selection) -> Section:
    """The mean score of each layer at each value of each estimator's parameter, as coloured tables."""
    scoring = selection.settings.scoring
    means = [candidate.mean for candidate in selection.candidates]
    high, chance = max(means), selection.training.chance
    low = max(min(means), chance) if chance < high else min(means)
    tables = []
    layers = list(dict.fromkeys((c.backbone, c.layer) for c in _in_order(selection)))
    names = backbone_names(backbone for backbone, _ in layers)
    for estimator in dict.fromkeys(candidate.estimator for candidate in selection.candidates):
        of_estimator = [c for c in selection.candidates if c.estimator == estimator]
        values = sorted({c.value for c in of_estimator}, key=lambda value: value or 0.0)
        by_cell = {(c.backbone, c.layer, c.value): c for c in of_estimator}
        head = "".join(f'<th scope="col">{"" if v is None else value_text(v)}</th>' for v in values)
        lines = []
        for backbone, layer in layers:
            cells = [by_cell.get((backbone, layer, value)) for value in values]
            if any(cells):
                name = f"{names[backbone]} {layer}" if len(names) > 1 else layer
                drawn = "".join(_cell(cell, selection, low, high) for cell in cells)
                lines.append(f'<tr><th scope="row">{text_html(name)}</th>{drawn}</tr>')
        parameter = of_estimator[0].parameter
        caption = text_html(f"{estimator}{', by ' + parameter if parameter else ''}")
        tables.append(
            f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table class="grid">'
            f'<caption>{caption}</caption><thead><tr><th scope="col">layer</th>{head}</tr></thead>'
            f"<tbody>{''.join(lines)}</tbody></table></div>"
        )
    seen = (
        f"Mean {score_name(scoring)} of {selection.settings.folds}-fold cross-validation; the framed cell was chosen."
    )
    return Section("grid", "Layers and settings", [Html("\n".join([f"<p>{text_html(seen)}</p>", *tables]))])


def _in_order(selection: Selection) -> list[Candidate]:
    """Candidates in the order of their networks' layers."""
    order = {(s.recipe.backbone, layer): i for i, (s, layer) in enumerate(
        (store, layer) for store in selection.training.stores for layer in store.layers
    )}  # fmt: skip
    return sorted(selection.candidates, key=lambda c: order.get((c.backbone, c.layer), len(order)))


def _cell(candidate: Candidate | None, selection: Selection, low: float, high: float) -> str:
    if candidate is None:
        return "<td></td>"
    share = float(np.clip((candidate.mean - low) / (high - low), 0, 1)) if high > low else 1.0
    kind = ("dark " if share > DARK else "") + ("chosen" if candidate == selection.chosen else "")
    score = scored(candidate.mean, candidate.interval, selection.settings.scoring)
    title = text_html(f"{named(candidate)}: {score}")
    shown = number(candidate.mean, selection.settings.scoring)
    return f'<td class="{kind}" style="--v:{100 * share:.0f}%" title="{title}">{shown}</td>'


def candidates_section(selection: Selection) -> Section:
    """The candidates, best first, each layer and estimator at its best value."""
    scoring = selection.settings.scoring
    best: dict[tuple[str, str, str], Candidate] = {}
    for candidate in selection.candidates:
        best.setdefault((candidate.backbone, candidate.layer, candidate.estimator), candidate)
    shown = list(best.values())[:_MOST_ROWS]
    if selection.chosen not in shown:
        shown.append(selection.chosen)
    names = backbone_names(candidate.backbone for candidate in shown)
    rows = [
        [
            f"{'* ' if c == selection.chosen else ''}{c.layer}",
            names[c.backbone],
            c.estimator,
            setting(c),
            n_features(c),
            scored(c.mean, c.interval, scoring),
            f"{c.fit_seconds:.3f}",
        ]
        for c in shown
    ]
    folds, repeats = selection.settings.folds, selection.settings.repeats
    seconds = sum(c.fit_seconds * len(c.scores) for c in selection.candidates)
    fits = sum(len(c.scores) for c in selection.candidates)
    times = f", {repeats} times" if repeats > 1 else ""
    text = (
        f"{len(selection.candidates):,} candidates in {folds}-fold cross-validation{times}: {fits:,} fits in "
        f"{seconds:.1f} s. Each layer and estimator is shown at its best setting; * was chosen."
    )
    if selection.settings.steps:
        text += f" Between features and scaler: {', '.join(selection.settings.steps)}."
    header = ["layer", "network", "estimator", "setting", "features", f"{score_name(scoring)} [95 %]", "fit, s"]
    return Section(
        "tried", "What was tried", [Text(text), Table("candidates, best first", header, rows, words=4)], True
    )


def nested_section(selection: Selection) -> Section | None:
    nested = selection.nested
    if nested is None or not nested.scores:
        return None
    text = (
        f"The whole search, repeated in each of {len(nested.scores)} outer splits, is worth "
        f"{scored(nested.mean, nested.interval, nested.scoring)}: no choice has flattered this score."
    )
    rows = [
        [str(split), named(chosen), number(chosen.mean, nested.scoring), number(score, nested.scoring)]
        for split, (score, chosen) in enumerate(zip(nested.scores, nested.chosen, strict=True), start=1)
    ]
    header = ["split", "chosen there", "inside", "left out"]
    return Section("nested", "Nested cross-validation", [Text(text), Table("outer splits", header, rows, words=2)])
