"""Images to label next: a table for the screen, and the CSV file to fill in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featx.display import printable_lines
from featx.report.columns import FittedTable
from featx.report.interchange import csv_text

if TYPE_CHECKING:
    from featx.audit import ToLabel


def to_label_table(chosen: ToLabel, most: int = 10) -> FittedTable:
    """The first images to label next, and why these."""
    has_suggestions = any(chosen.suggestions)
    table = FittedTable(f"images to label next, by {chosen.layer}", spare=("suggestion",))
    table.add_names("image")
    if has_suggestions:
        table.add_names("suggestion")
    table.add_names("reason")
    for name, suggestion, reason in list(zip(chosen.ids, chosen.suggestions, chosen.reasons, strict=True))[:most]:
        table.add_row(str(name), *([suggestion] if has_suggestions else []), reason)
    notes = [f"and {len(chosen.rows) - most:,} more"] if len(chosen.rows) > most else []
    if chosen.n_nonfinite:
        notes.append(f"left out: {chosen.n_nonfinite:,} images whose rows contain NaN or inf")
    table.caption = printable_lines(notes) or None
    return table


def to_label_csv(chosen: ToLabel) -> str:
    """CSV with the columns id, label, suggestion and reason: first the images to label, with an empty label; then those
    that have one. `interchange.csv_text` says how texts are written; labels are written as they are.
    """
    store, labels = chosen.store, chosen.labels
    rows = [["id", "label", "suggestion", "reason"]]
    for name, suggestion, reason in zip(chosen.ids, chosen.suggestions, chosen.reasons, strict=True):
        rows.append([str(name), "", suggestion, reason])
    for row in np.flatnonzero(~np.ma.getmaskarray(labels)):
        rows.append([str(store.ids[row]), str(labels[row]), "", ""])
    return csv_text(rows, as_is=(1, 2))
