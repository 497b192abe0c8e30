"""The files that `featx search` writes: a model, the scores, a figure and a report; none replaces another file."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featx.cli.interrupts import working
from featx.errors import FeatxError, ModelError
from featx.urls import shown, url_of

if TYPE_CHECKING:
    from featx.audit import Audit
    from featx.learn import ProtocolResult, Selection

FIGURES = (".png", ".pdf", ".svg")
REPORTS = (".html", ".md"), "a report is a .html or .md file"


@dataclass(frozen=True)
class SearchFiles:
    """Paths of --output, --results, --figure and --report, or None; and whether the report has an audit."""

    output: Path | None
    results: Path | None
    figure: Path | None
    report: Path | None
    audit: bool = False

    def check(self, inputs: Collection[Path]) -> None:
        """Raise FeatxError if a file cannot be written, exists, has another suffix, or is one of `inputs`."""
        chosen = [path for path in (self.output, self.figure, self.results, self.report) if path is not None]
        for path in chosen:
            if path.resolve() in {file.resolve() for file in inputs}:
                raise FeatxError(f"{path} is read by this search and would be written over; choose another name")
        if len({path.resolve() for path in chosen}) < len(chosen):
            raise FeatxError(
                "--output, --figure, --results and --report are files of their own; give them different names"
            )
        check_file(self.figure, FIGURES, "a figure is a .png, .pdf or .svg file")
        check_file(self.output, (".skops",), "a model is a .skops file")
        check_file(self.results, (".csv", ".json"), "results are a .csv or .json file")
        check_file(self.report, *REPORTS)
        if self.audit and self.report is None:
            raise FeatxError("--audit is shown in the report; give --report, too, or use featx audit")

    def saves_model_of(self, result: Selection | ProtocolResult) -> bool:
        return self.output is not None and result.best_estimator is not None and not result.is_partial

    def write(self, result: Selection | ProtocolResult) -> list[str]:
        """Write the files; one line about each. A ModelError is raised after the other files are written."""
        from featx.learn import Selection, save
        from featx.report import html, model_text, protocol_figure, results_csv, results_json, selection_figure
        from featx.store import written_aside

        lines = []
        failure: ModelError | None = None
        if self.output is not None and self.saves_model_of(result):
            try:
                save(result if isinstance(result, Selection) else result.best_estimator, self.output)
            except ModelError as error:
                failure = error
            stores = result.training.stores if isinstance(result, Selection) else result.stores
            inputs = "--store STORE" if stores[0].recipe.is_imported else "IMAGES..."
            lines.append(f"{self.output}: {model_text(result)}; featx predict {self.output} {inputs} uses it")
        if self.results is not None:
            text = results_csv(result) if self.results.suffix == ".csv" else results_json(result)
            with written_aside(self.results) as file:
                file.write(f"{text}\n".encode())
            lines.append(f"{self.results}: every score")
        if self.figure is not None:
            figure = selection_figure(result) if isinstance(result, Selection) else protocol_figure(result)
            with written_aside(self.figure) as file:
                figure.savefig(file, format=self.figure.suffix[1:].lower(), dpi=110)
            lines.append(f"{self.figure}: the picture")
        if self.report is not None:
            with working("writing the report"):
                audit = audit_of(result) if self.audit and isinstance(result, Selection) else None
                html(result, self.report, command=shlex.join(["featx", *sys.argv[1:]]), audit=audit)
            lines.append(f"{self.report}: the report")
        if failure is not None:
            raise failure
        return lines


def audit_of(selection: Selection) -> Audit:
    from featx.audit import audit_selection

    return audit_selection(selection)


def check_file(path: Path | None, suffixes: Collection[str], requirement: str) -> None:
    """Raise FeatxError if a file cannot be written, exists or has another suffix."""
    if path is None:
        return
    if (url := url_of(path)) is not None:
        raise FeatxError(f"the output is a local file; got {shown(url)}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise FeatxError(f"cannot write {path}: {'it is a folder' if path.is_dir() else 'there is no such folder'}")
    if path.exists():
        raise FeatxError(f"{path} is there already; choose another name, or remove the file")
    if path.suffix.lower() not in suffixes:
        raise FeatxError(f"{requirement}; got {path}")
