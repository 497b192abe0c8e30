"""Tables and figures of what learning found. Nothing here prints or saves: the caller does."""

from __future__ import annotations

from featx.report.figures import selection_figure
from featx.report.progress import search_progress
from featx.report.tables import (
    failures_text,
    layers_table,
    predictions_csv,
    predictions_json,
    predictions_table,
    ranking_table,
    selection_text,
    store_table,
)

__all__ = [
    "failures_text",
    "layers_table",
    "predictions_csv",
    "predictions_json",
    "predictions_table",
    "ranking_table",
    "search_progress",
    "selection_figure",
    "selection_text",
    "store_table",
]
