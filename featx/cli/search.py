"""`featx search`: the layer and the estimator that suit a store's labels best."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from featx.catalogue import ESTIMATORS, estimator_names
from featx.cli.interrupts import loading
from featx.cli.printing import print_all, print_error, print_note
from featx.cli.search_files import SearchFiles
from featx.display import printable
from featx.errors import FeatxError, ModelError
from featx.request import ProtocolName, SearchRequest

if TYPE_CHECKING:
    from featx.learn import ProtocolResult, Selection

_CANDIDATES, _LABELS, _HELD_OUT = "Candidates", "Labels", "Images held out"
_VALIDATION, _OUTPUT = "Cross-validation and draws", "Output"
_DEFAULT_ESTIMATORS = "; for regression: ".join(", ".join(estimator_names(kind, True)) for kind in (False, True))


def search(
    stores: Annotated[list[Path], typer.Argument(help="One store, or several of the same images.")],
    protocol: Annotated[
        ProtocolName,
        typer.Option(help="A grid of layers and estimators, or a standard protocol.", rich_help_panel=_CANDIDATES),
    ] = "grid",
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            "-l",
            help="Search only this layer; 'a+b' is two layers side by side, and 'all' the strongest features of all "
            "layers; may be repeated.",
            show_default="each stored layer",
            rich_help_panel=_CANDIDATES,
        ),
    ] = None,
    estimator: Annotated[
        list[str] | None,
        typer.Option(
            "--estimator",
            "-e",
            help="Search only this estimator; may be repeated.",
            metavar=f"<list[{'|'.join(ESTIMATORS)}]>",
            show_default=_DEFAULT_ESTIMATORS,
            rich_help_panel=_CANDIDATES,
        ),
    ] = None,
    l2: Annotated[
        bool, typer.Option("--l2", help="Scale each image's features to unit length.", rich_help_panel=_CANDIDATES)
    ] = False,
    power: Annotated[
        bool,
        typer.Option(
            "--power",
            help="Transform each feature towards a normal distribution (Yeo-Johnson); slow, 10 ms a feature.",
            rich_help_panel=_CANDIDATES,
        ),
    ] = False,
    pca: Annotated[
        int | None,
        typer.Option(
            help="Number of principal components to keep.", show_default="no PCA", rich_help_panel=_CANDIDATES
        ),
    ] = None,
    scoring: Annotated[
        str | None,
        typer.Option(
            help="accuracy, balanced_accuracy, f1_macro, matthews_corrcoef, roc_auc; for regression: r2, "
            "neg_mean_absolute_error.",
            show_default="accuracy; for regression: r2",
            rich_help_panel=_CANDIDATES,
        ),
    ] = None,
    one_se: Annotated[
        bool,
        typer.Option(
            "--one-se",
            help="Choose the simplest candidate within one standard error of the best.",
            rich_help_panel=_CANDIDATES,
        ),
    ] = False,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="A CSV file of labels by image id (columns: id, label); images without one are left out.",
            rich_help_panel=_LABELS,
        ),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(
            help="The column of labels in that file; without --labels, in the store.",
            show_default="label",
            rich_help_panel=_LABELS,
        ),
    ] = None,
    target: Annotated[
        Literal["class", "numeric"] | None,
        typer.Option(
            help="Whether these labels are class names or numbers.", show_default="class", rich_help_panel=_LABELS
        ),
    ] = None,
    test_size: Annotated[
        float | None,
        typer.Option(help="Share of images held out; 0 for none.", show_default="0.2", rich_help_panel=_HELD_OUT),
    ] = None,
    split_column: Annotated[
        str | None,
        typer.Option(
            help="The manifest's column that says which images are held out, instead of at random.",
            rich_help_panel=_HELD_OUT,
        ),
    ] = None,
    test_value: Annotated[
        str | None,
        typer.Option(
            help="The value of that column for images held out.", show_default="test", rich_help_panel=_HELD_OUT
        ),
    ] = None,
    validation_value: Annotated[
        str | None,
        typer.Option(
            help="The value of that column for images on which linear-probe and knn choose C or k.",
            rich_help_panel=_HELD_OUT,
        ),
    ] = None,
    test_store: Annotated[
        Path | None,
        typer.Option(
            help="Score on all images of this store, with its own labels; hold out no others.",
            rich_help_panel=_HELD_OUT,
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            help="A column of the manifest: images with the same value are never split between training and test. "
            "near-duplicates: copies that were saved, resized, mirrored or cropped are not.",
            rich_help_panel=_HELD_OUT,
        ),
    ] = None,
    allow_duplicates: Annotated[
        bool,
        typer.Option(
            "--allow-duplicates",
            help="Let images of the same content be split between training and test.",
            rich_help_panel=_HELD_OUT,
        ),
    ] = False,
    folds: Annotated[
        int | None,
        typer.Option(help="Folds of the cross-validation.", show_default="5", rich_help_panel=_VALIDATION),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(
            help="Repeats of the cross-validation, with other folds; or random draws of few-shot and learning-curve.",
            show_default="1; few-shot 10, learning-curve 5",
            rich_help_panel=_VALIDATION,
        ),
    ] = None,
    nested: Annotated[
        bool,
        typer.Option(
            "--nested",
            help="Score the whole search by nested cross-validation as well.",
            rich_help_panel=_VALIDATION,
        ),
    ] = False,
    seed: Annotated[
        int, typer.Option(help="Random seed of the split, the folds and the draws.", rich_help_panel=_VALIDATION)
    ] = 0,
    jobs: Annotated[
        int | None,
        typer.Option(help="Number of processes.", show_default="-1: one per core", rich_help_panel=_VALIDATION),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Save the best model, fitted, in this .skops file.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            help="Write every score into this .csv or .json; in CSV, a text like =1 gets an apostrophe in front.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Draw the result into this .png, .pdf or .svg.", rich_help_panel=_OUTPUT)
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Write a report: a .html page that needs no network, or Markdown (.md).", rich_help_panel=_OUTPUT
        ),
    ] = None,
    audit: Annotated[
        bool,
        typer.Option(
            "--audit",
            help="Audit the store and show in the report what the data say; see featx audit.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    top: Annotated[int, typer.Option(help="Number of rows of the table.", rich_help_panel=_OUTPUT)] = 12,
) -> int:
    """Choose layer, estimator and its parameter by cross-validation, and score the choice on images held out.

    Images of the same content are never split between training and test, nor are --groups. Labels that are numbers are
    predicted by regression. An interrupted search prints and writes what was done.
    """
    from featx.store import FeatureStore

    files = SearchFiles(output, results, figure, report, audit)
    files.check([path for path in (*stores, labels, test_store) if path is not None])
    if audit and protocol != "grid":
        raise FeatxError(f"--audit is of a grid's images; with --protocol {protocol} use featx audit")
    if top < 1:
        raise FeatxError(f"--top is 1 or more; got {top}")
    request = SearchRequest(
        protocol=protocol,
        output=output,
        layers=[[part.strip() for part in name.split("+")] for name in layer] if layer else None,
        estimators=estimator,
        l2=l2,
        power=power,
        pca=pca,
        scoring=scoring,
        one_se=one_se,
        nested=nested,
        labels=labels,
        label_column=label_column,
        target=target,
        groups=groups,
        allow_duplicates=allow_duplicates,
        test_size=test_size,
        split_column=split_column,
        test_value=test_value,
        validation_value=validation_value,
        test_store=test_store,
        folds=folds,
        repeats=repeats,
        random_state=seed,
        n_jobs=jobs,
    )
    request.validate()
    opened = [FeatureStore(path) for path in stores]
    arguments = request.arguments(opened[0])
    print_note(request.unlabelled_text(arguments.get("y")))
    with loading("loading scikit-learn"):
        from featx import learn
        from featx.report import search_progress
    is_whole = True
    try:
        with search_progress(scoring or "accuracy") as on_progress:
            result = request.run(opened, arguments, on_progress)
    except learn.Interrupted as interrupt:
        result, is_whole = interrupt.result, False
    except KeyboardInterrupt:
        print_error("interrupted before the first layer was done; nothing was written")
        return 130
    try:
        written = files.write(result)  # before anything is printed: whoever reads that may go away
    except ModelError:
        _print_result(result, top, [])
        raise
    _print_result(result, top, written)
    if is_whole:
        return 0
    not_saved = "" if output is None or files.saves_model_of(result) else f", and {output} was not written"
    print_error(f"interrupted; results are incomplete{not_saved}")
    return 130


def _print_result(result: Selection | ProtocolResult, top: int, written: list[str]) -> None:
    from featx.learn import Selection
    from featx.report import nested_table, protocol_table, ranking_table, selection_text

    if isinstance(result, Selection):
        print_all(ranking_table(result, top))
        if result.nested and result.nested.scores:
            print_all(nested_table(result.nested))
    else:
        print_all(protocol_table(result, top))
    print_all(selection_text(result), *map(printable, written))
