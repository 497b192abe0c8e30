"""Selections, backbones and predictions in; rich tables, plain sentences, CSV and JSON out."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.table import Table

from featx.errors import readable

if TYPE_CHECKING:  # each table needs one of these, and none should wait for the others' torch or scikit-learn
    from featx.backbones import Backbone
    from featx.learn import Candidate, Prediction, Selection


def ranking_table(selection: Selection, most: int = 12) -> Table:
    """Layers and estimators, each with its best C, best first; of every backbone at least one.

    Parameters
    ----------
    most : rows
    """
    best: dict[tuple[str, str, str], Candidate] = {}
    for candidate in selection.candidates:
        best.setdefault((candidate.backbone, candidate.layer, candidate.estimator), candidate)
    several = len({backbone for backbone, _, _ in best}) > 1
    title = f"{selection.folds}-fold accuracy on {selection.n_train:,} training images (chance {selection.chance:.3f})"
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("rank", justify="right")
    for name in [*(["backbone"] if several else []), "layer", "estimator"]:
        table.add_column(name)
    for name in ("features", "best C", "accuracy", "± s.e.", "fit s"):
        table.add_column(name, justify="right")
    shown: set[str] = set()
    for rank, candidate in enumerate(best.values(), start=1):
        if rank <= most or candidate.backbone not in shown:
            shown.add(candidate.backbone)
            error = candidate.std / math.sqrt(max(1, selection.folds - 1))
            cells = [str(rank), *([candidate.backbone] if several else []), candidate.layer, candidate.estimator]
            cells += [f"{candidate.d:,}", f"{candidate.C:g}", f"{candidate.mean:.3f}", f"{error:.3f}"]
            table.add_row(*cells, f"{candidate.fit_seconds:.2f}", style="bold" if rank == 1 else None)
    if table.row_count < len(best):
        table.caption = f"and {len(best) - table.row_count:,} more layers and estimators"
    return table


def selection_text(selection: Selection) -> str:
    """The answer in words: the best cross-validated score, which was chosen, and the held-out one, which was not."""
    best = selection.best
    lines = [f"best of {len(selection.candidates):,} in cross-validation: {best.mean:.3f} (flattered by the choice)"]
    if selection.held_out is not None and selection.y_test is not None:
        lines.append(
            f"held out: {selection.held_out:.3f} ± {selection.held_out_error:.3f} on {len(selection.y_test):,} images "
            "that played no part in it"
        )
    else:
        lines.append("held out: nothing, so there is no score that the choice has not flattered")
    return "\n".join(lines)


def layers_table(backbone: Backbone) -> Table:
    """The tree of a backbone's layers: what each gives for one image, and how much that is after pooling."""
    from featx.backbones import describe

    height, width = backbone.preprocessing.size
    table = Table(title=f"{backbone.name}, images of {height} x {width} px", title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("output of one image")
    table.add_column("avg or max", justify="right")
    table.add_column("flatten", justify="right")
    table.add_column("bytes an image", justify="right")
    table.add_column("")
    for layer in describe(backbone):
        flat = math.prod(layer.shape)
        sizes = readable(4 * layer.pooled)
        table.add_row(
            "  " * layer.depth + layer.name,
            " x ".join(map(str, layer.shape)),
            f"{layer.pooled:,}",
            f"{flat:,}",
            sizes if flat == layer.pooled else f"{sizes} to {readable(4 * flat)}",
            layer.mark,
            style="bold" if layer.mark else None,
        )
    return table


def predictions_table(predictions: Iterable[Prediction]) -> Table:
    rows = list(predictions)
    kinds = {row.kind for row in rows} - {""}
    table = Table()
    table.add_column("image", overflow="fold")
    table.add_column("label")
    table.add_column("/".join(sorted(kinds)) or "", justify="right")
    for row in rows:
        confidence = "" if row.confidence is None else f"{row.confidence:.3f}"
        label = f"{row.label:g}" if isinstance(row.label, float) else str(row.label)
        table.add_row(row.image, f"cannot be read: {row.error}" if row.error else label, confidence)
    return table


def predictions_json(predictions: Iterable[Prediction]) -> str:
    """A JSON list of objects with the fields of Prediction."""
    return json.dumps([row._asdict() for row in predictions], ensure_ascii=False, indent=1)


def predictions_csv(predictions: Iterable[Prediction]) -> str:
    """CSV with a header line, the fields of Prediction."""
    from featx.learn import Prediction

    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Prediction._fields)
    for row in predictions:
        writer.writerow(["" if value is None else value for value in row])
    return text.getvalue().rstrip("\n")
