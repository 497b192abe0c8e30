"""`featx adapt`: what helps a model of one domain on the images of another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featx.cli.interrupts import loading
from featx.cli.printing import print_all, print_data, print_line
from featx.cli.search_files import check_file
from featx.errors import FeatxError
from featx.request import labels_in_file

_WAYS, _LABELS, _SCORING, _OUTPUT = "Ways", "Labels", "Scoring", "Output"


def adapt(
    source: Annotated[Path, typer.Argument(help="The store of labelled images to learn from.")],
    target: Annotated[Path, typer.Argument(help="The store of the other domain's images, by the same recipe.")],
    layer: Annotated[
        str | None,
        typer.Option(
            "--layer",
            "-l",
            help="The layer; 'a+b' is two layers side by side.",
            show_default="the only one",
            rich_help_panel=_WAYS,
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="scaler, coral or linear_ot; may be repeated.", show_default="all three", rich_help_panel=_WAYS
        ),
    ] = None,
    shots: Annotated[
        list[int] | None,
        typer.Option(
            help="A number of labelled target images of each class; may be repeated; 0 for none.",
            show_default="5, 10, 25",
            rich_help_panel=_WAYS,
        ),
    ] = None,
    draws: Annotated[int, typer.Option(help="Number of random draws of these images.", rich_help_panel=_WAYS)] = 10,
    labels: Annotated[
        Path | None,
        typer.Option(help="A CSV file of the source's labels (columns: id, label).", rich_help_panel=_LABELS),
    ] = None,
    target_labels: Annotated[
        Path | None, typer.Option(help="A CSV file of the target's labels.", rich_help_panel=_LABELS)
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(
            help="The column of labels in these files, or else in the stores.",
            show_default="label",
            rich_help_panel=_LABELS,
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(help="A column of both stores; images of one group are never split.", rich_help_panel=_SCORING),
    ] = None,
    allow_duplicates: Annotated[
        bool,
        typer.Option(
            "--allow-duplicates",
            help="Allow images of the same content on both sides of a split, and in both stores.",
            rich_help_panel=_SCORING,
        ),
    ] = False,
    test_size: Annotated[
        float, typer.Option(help="Share of the target images held out.", rich_help_panel=_SCORING)
    ] = 0.5,
    scoring: Annotated[
        str,
        typer.Option(help="accuracy, balanced_accuracy, f1_macro, matthews_corrcoef.", rich_help_panel=_SCORING),
    ] = "accuracy",
    folds: Annotated[
        int, typer.Option(help="Folds of the cross-validation on the source.", rich_help_panel=_SCORING)
    ] = 5,
    seed: Annotated[
        int, typer.Option(help="Seed of the held-out images, the folds and the draws.", rich_help_panel=_SCORING)
    ] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Save the model of the one --method that you name in this .skops file.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=_OUTPUT)] = False,
) -> None:
    """Compare ways to predict another domain's images: another hospital's, another camera's.

    The source alone, aligned with the target by each method, and with 5, 10, 25 labelled target images of each class;
    all on the same held-out target images, which take part in nothing. Nothing is chosen for you.
    """
    check_file(output, (".skops",), "a model is a .skops file")
    if output is not None and len(method or []) != 1:
        raise FeatxError("name the one --method whose model is saved; without --output, featx adapt compares them")
    from featx.store import FeatureStore

    stores = [FeatureStore(path) for path in (source, target)]
    files = {"labels": labels, "target_labels": target_labels}
    values = [
        label_column if file is None else labels_in_file(store, file, label_column, option=option)
        for store, (option, file) in zip(stores, files.items(), strict=True)
    ]
    with loading("loading torch and scikit-learn"):
        from featx.learn import HoldOut, save
        from featx.report import adaptation_json, adaptation_table
        from featx.transfer import adapt as compare_ways
    result = compare_ways(
        *stores,
        layer=None if layer is None else [part.strip() for part in layer.split("+")],
        labels=values[0],
        target_labels=values[1],
        methods=method or None,
        shots=None if shots is None else [shot for shot in shots if shot],
        draws=draws,
        scoring=scoring,
        groups=groups,
        allow_duplicates=allow_duplicates,
        holdout=HoldOut(test_size),
        folds=folds,
        random_state=seed,
    )
    if output is not None and method is not None:
        save(result.pipelines[method[0]], output)
    if as_json:
        print_data(adaptation_json(result))
        return
    print_all(adaptation_table(result))
    if output is not None and method is not None:
        print_line(f"{output}: the source aligned by {method[0]}; featx predict {output} IMAGES... predicts the target")
