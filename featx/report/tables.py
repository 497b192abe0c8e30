"""Tables of backbones, and predictions as table, CSV or JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from featx.display import printable_lines
from featx.errors import readable
from featx.prediction import Prediction
from featx.report.columns import FittedTable
from featx.report.interchange import csv_text, json_text

if TYPE_CHECKING:  # each table needs one of these, and none should wait for the others' torch or scikit-learn
    from featx.backbones import Backbone


def layers_table(backbone: Backbone) -> FittedTable:
    """The tree of a backbone's layers: the shape of each output for one image, and its size after pooling."""
    from featx.backbones import describe

    height, width = backbone.preprocessing.size
    table = FittedTable(f"{backbone.name}, images of {height} x {width} px", spare=("bytes an image",))
    table.add_names("layer")
    table.add_words("output of one image")
    table.add_numbers("avg or max", "flatten", "bytes an image")
    table.add_words("")
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


def boundaries_table(backbone: Backbone) -> FittedTable:
    """The layers at which a backbone can be split for fine-tuning; see `backbones.Tail`."""
    from featx.backbones import boundaries

    table = FittedTable(f"{backbone.name}: layers behind which it can be fine-tuned")
    table.add_names("boundary")
    table.add_numbers("shape", "stored, an image", "forward saved", "parameters trained")
    for each in boundaries(backbone):
        table.add_row(
            each.name,
            " x ".join(map(str, each.shape)),
            readable(4 * math.prod(each.shape)),
            f"{each.saved:.0%}",
            f"{each.n_parameters:,}",
        )
    table.caption = printable_lines(["extract one with its whole output, layer:none; bytes are of float32"])
    return table


def models_table(pattern: str = "") -> FittedTable:
    """Pretrained backbones whose name contains the pattern; see `backbones.pretrained`."""
    from featx.backbones import n_timm, pretrained

    rows = pretrained(pattern)
    table = FittedTable(spare=("trained for", "px"))
    table.add_names("backbone", "weights", "trained for")
    table.add_numbers("parameters", "px", "top-1")
    table.add_names("")
    for row in rows:
        table.add_row(
            row.name,
            row.weights,
            row.task,
            "" if row.n_parameters is None else f"{row.n_parameters / 1e6:.1f} M",
            "" if row.size is None else str(row.size),
            "" if row.accuracy is None else f"{row.accuracy:.3f}",
            row.state,
        )
    notes = ["top-1: published accuracy on ImageNet-1K; empty where the library does not say"]
    n = n_timm()
    if n is None:
        notes.append("timm has a thousand more: pip install 'featx[timm]'")
    elif not pattern:
        notes.append(f"timm has {n:,} more: part of a name, convnext or timm:vit_small for example, finds them")
    table.caption = printable_lines(notes)
    return table


def predictions_table(predictions: Iterable[Prediction]) -> FittedTable:
    """A table of predictions, one row per image."""
    rows = list(predictions)
    kinds = {row.kind for row in rows} - {""}
    table = FittedTable()
    table.add_names("image")
    add_labels = table.add_numbers if any(isinstance(row.label, float) for row in rows) else table.add_names
    has_confidence = kinds != {"value"}  # of a number there is nothing else to say
    add_labels("label" if has_confidence else "value")
    if has_confidence:
        table.add_numbers("/".join(sorted(kinds)))
    for row in rows:
        confidence = ["" if row.confidence is None else f"{row.confidence:.3f}"] if has_confidence else []
        label = f"{row.label:g}" if isinstance(row.label, float) else str(row.label)
        table.add_row(row.image, f"cannot be read: {row.error}" if row.error else label, *confidence)
    return table


def predictions_json(predictions: Iterable[Prediction]) -> str:
    """A JSON list of objects with the fields of Prediction; a number that is inf or NaN is null."""
    rows = [row._asdict() for row in predictions]
    for row in rows:
        row |= {name: None for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)}
    return json_text(rows, indent=1)


def predictions_csv(predictions: Iterable[Prediction]) -> str:
    """CSV with a header line, the fields of Prediction; `interchange.csv_text` says how texts are written."""
    return csv_text([Prediction._fields, *predictions])
