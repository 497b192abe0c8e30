"""Stores, selections and predictions in; rich tables, plain sentences, CSV and JSON out."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from featx.store import FeatureStore

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


def store_table(store: FeatureStore) -> Table:
    """What a store holds and what made it."""
    recipe = store.recipe
    table = Table(title=str(store.path), title_justify="left", show_header=False)
    table.add_row("images", f"{len(store):,}")
    if store.classes is not None and store.y is not None:
        names, counts = np.unique(store.y, return_counts=True)
        shown = ", ".join(f"{name} {count:,}" for name, count in list(zip(names, counts, strict=True))[:12])
        table.add_row("classes", f"{len(names):,}: {shown}{' ...' if len(names) > 12 else ''}")
    elif store.y is not None:
        table.add_row("labels", f"numbers from {store.y.min():g} to {store.y.max():g}")
    else:
        table.add_row("labels", "none; featx search --labels FILE.csv, or store.align, gives them")
    if store.columns:
        table.add_row("columns", ", ".join(store.columns))
    if store.failures:
        table.add_row("unreadable", f"{len(store.failures):,} images without rows, listed below")
    itemsize = np.dtype(recipe.dtype).itemsize
    for name, tap in recipe.taps.items():
        size = len(store) * math.prod(tap["shape"]) * itemsize
        others = [alias for alias, meant in recipe.aliases.items() if meant == name]
        alias = f" = {', '.join(others)}" if others else ""
        shape = " x ".join(f"{side:,}" for side in tap["shape"])
        table.add_row("layer", f"{name}{alias}: {shape} {recipe.dtype}, {_bytes(size)}")
    table.add_row("backbone", f"{recipe.backbone}, weights {recipe.weights} ({recipe.weights_sha256[:12]})")
    error = f", at most {recipe.precision_error:.2%} off" if recipe.precision_error is not None else ""
    table.add_row("computed", f"{recipe.precision}{error}, {recipe.engine}, on {recipe.device}")
    table.add_row("preprocessing", ", ".join(f"{key} {value}" for key, value in recipe.preprocessing.items()))
    table.add_row("decoding", recipe.decoder)
    table.add_row("versions", ", ".join(f"{name} {number}" for name, number in recipe.versions.items()))
    return table


def failures_text(store: FeatureStore, most: int = 20) -> str:
    """The images that have no rows, a line each; empty if there are none."""
    lines = [f"  {failure.id}: {failure.reason}" for failure in store.failures[:most]]
    if len(store.failures) > most:
        lines.append(f"  and {len(store.failures) - most:,} more, in store.failures")
    return "\n".join(lines)


def layers_table(backbone: Backbone) -> Table:
    """Every layer of a backbone: what it gives for one image, and how many features that is after pooling."""
    from featx.backbones import describe

    height, width = backbone.preprocessing.size
    table = Table(title=f"{backbone.name}, images of {height} x {width} px", title_justify="left")
    table.add_column("layer")
    table.add_column("output of one image")
    table.add_column("avg or max", justify="right")
    table.add_column("flatten", justify="right")
    table.add_column("")
    for layer in describe(backbone):
        table.add_row(
            layer.name,
            " x ".join(map(str, layer.shape)),
            f"{layer.pooled:,}",
            f"{math.prod(layer.shape):,}",
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


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"
