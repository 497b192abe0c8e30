"""Tables, figures, CSV and JSON of extractions, stores and results. Callers print and save them."""

from __future__ import annotations

from featx.report.adaptations import adaptation_json, adaptation_table
from featx.report.answers import model_text, selection_text
from featx.report.audit_page import audit_html
from featx.report.audits import audit_csv, audit_json, audit_table, audit_text
from featx.report.comparisons import comparison_figure, comparison_json, comparison_table, similarity_figure
from featx.report.curves import protocol_figure
from featx.report.extractions import ExtractionLines, plan_table
from featx.report.figures import selection_figure
from featx.report.finetunings import finetuning_json, finetuning_table
from featx.report.installation import installation, installation_json, installation_table
from featx.report.labelling import to_label_csv, to_label_table
from featx.report.page import html
from featx.report.progress import search_progress
from featx.report.rankings import nested_table, protocol_table, ranking_table
from featx.report.results import results_csv, results_json
from featx.report.similar import similar_csv, similar_figure, similar_json, similar_table, stored_image
from featx.report.store_map import store_map
from featx.report.stores import difference_table, notes_text, store_table, together_text
from featx.report.tables import (
    boundaries_table,
    layers_table,
    models_table,
    predictions_csv,
    predictions_json,
    predictions_table,
)

__all__ = [
    "ExtractionLines",
    "adaptation_json",
    "adaptation_table",
    "audit_csv",
    "audit_html",
    "audit_json",
    "audit_table",
    "audit_text",
    "boundaries_table",
    "comparison_figure",
    "comparison_json",
    "comparison_table",
    "difference_table",
    "finetuning_json",
    "finetuning_table",
    "html",
    "installation",
    "installation_json",
    "installation_table",
    "layers_table",
    "model_text",
    "models_table",
    "nested_table",
    "notes_text",
    "plan_table",
    "predictions_csv",
    "predictions_json",
    "predictions_table",
    "protocol_figure",
    "protocol_table",
    "ranking_table",
    "results_csv",
    "results_json",
    "search_progress",
    "selection_figure",
    "selection_text",
    "similar_csv",
    "similar_figure",
    "similar_json",
    "similar_table",
    "similarity_figure",
    "store_map",
    "store_table",
    "stored_image",
    "to_label_csv",
    "to_label_table",
    "together_text",
]
