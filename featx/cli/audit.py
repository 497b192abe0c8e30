"""`featx audit`: what a store says about its data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featx.cli.interrupts import loading, working
from featx.cli.printing import print_all, print_data, print_line
from featx.cli.search_files import check_file
from featx.errors import FeatxError, Parameter
from featx.request import labels_in_file, rows_with

if TYPE_CHECKING:
    import numpy as np

    from featx.store import FeatureStore

_LABELS, _TEST, _OUTPUT = "Labels", "Test images", "Output"


def audit(
    store: Annotated[Path, typer.Argument(help="The store.")],
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            "-l",
            help="A layer by which labels are judged; may be repeated, the last one is for distances too.",
            show_default="at most four, spread over the store's",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="A CSV file of labels by image id (columns: id, label).", rich_help_panel=_LABELS),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(
            help="The column of labels in that file; without --labels, in the store.",
            show_default="label",
            rich_help_panel=_LABELS,
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(help="A column of the store; images of one group are never split.", rich_help_panel=_LABELS),
    ] = None,
    test_store: Annotated[
        Path | None, typer.Option(help="The store of the test images.", rich_help_panel=_TEST)
    ] = None,
    split_column: Annotated[
        str | None,
        typer.Option(help="Or the column that says which images are for testing.", rich_help_panel=_TEST),
    ] = None,
    test_value: Annotated[
        str | None,
        typer.Option(help="The value of that column for test images.", show_default="test", rich_help_panel=_TEST),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the folds.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="All findings as a .csv or .json file.", rich_help_panel=_OUTPUT),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            help="A page of the findings with their pictures, which needs no network.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=_OUTPUT)] = False,
) -> None:
    """Look for wrong labels, copies, outliers, confused classes, shortcuts, and test images unlike the training images.

    Findings are ranked and are for you to judge: nothing is changed.
    """
    check_file(output, (".csv", ".json"), "findings are a .csv or .json file")
    check_file(html, (".html", ".md"), "a page is a .html or .md file")
    if test_store is not None and split_column is not None:
        raise FeatxError(
            Parameter("test_store"), " and ", Parameter("split_column"), " both name test images; give one"
        )
    if test_value is not None and split_column is None:
        raise FeatxError(Parameter("test_value"), " is a value of ", Parameter("split_column"), "; give that, too")
    from featx.store import FeatureStore, written_aside

    opened = FeatureStore(store)
    values = label_column if labels is None else labels_in_file(opened, labels, label_column)
    test = _test(opened, test_store, split_column, test_value or "test")
    with loading("loading scikit-learn"):
        from featx.audit import audit as audited
        from featx.report import audit_csv, audit_html, audit_json, audit_table, audit_text
    with working("auditing") as on_step:
        result = audited(
            opened, values, test=test, layers=layer or None, groups=groups, random_state=seed, on_step=on_step
        )
    if output is not None:
        text = audit_csv(result) if output.suffix.lower() == ".csv" else audit_json(result)
        with written_aside(output) as file:
            file.write(f"{text}\n".encode("utf-8", "backslashreplace"))
    if html is not None:
        with working("writing the page"):
            audit_html(result, html)
    if as_json:
        print_data(audit_json(result))
        return
    print_all(*(each for each in (audit_table(result), audit_text(result)) if each is not None))
    for path, what in ((output, "all findings"), (html, "the page")):
        if path is not None:
            print_line(f"{path}: {what}")


def _test(
    store: FeatureStore, test_store: Path | None, split_column: str | None, test_value: str
) -> FeatureStore | np.ndarray | None:
    from featx.store import FeatureStore

    if test_store is not None:
        return FeatureStore(test_store)
    return None if split_column is None else rows_with(store, split_column, test_value)
