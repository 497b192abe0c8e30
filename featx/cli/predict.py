"""`featx predict`: a saved or exported model on new images, or on the rows of a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from featx.cli.interrupts import loading
from featx.cli.printing import print_all, print_data, print_error
from featx.display import console
from featx.errors import FeatxError, ModelError, count, nearest
from featx.prediction import Prediction

_FORMAT = "Output format"


def predict(
    model: Annotated[
        Path, typer.Argument(help="A model that featx search or featx.save made, or a .onnx file of featx export.")
    ],
    images: Annotated[list[str] | None, typer.Argument(help="Image files, or folders or archives of them.")] = None,
    store: Annotated[
        Path | None,
        typer.Option(help="Predict the images of this store, from their stored rows; no network is needed."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="The network's weights, if they are not where they were: a state dict, a .pt2 program that you "
            "trust, or a name to download, DEFAULT for example."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=_FORMAT)] = False,
    as_csv: Annotated[
        bool,
        typer.Option(
            "--csv",
            help="Print CSV; a text that begins with = + - or @ gets an apostrophe in front.",
            rich_help_panel=_FORMAT,
        ),
    ] = False,
) -> int:
    """Predict the label of each image, or of each row of a store, with its probability or score."""
    from rich.progress import track

    from featx.images import files

    if as_json and as_csv:
        raise FeatxError("choose one of --json and --csv")
    if model.is_dir():
        raise ModelError(f"{model} is a folder, and the model comes first: featx predict MODEL IMAGES")
    if not model.exists():
        siblings = [path.name for ending in ("skops", "onnx") for path in model.parent.glob(f"*.{ending}")]
        raise ModelError(f"there is no model file {model}{nearest(model.name, siblings)}; featx search -o makes one")
    if bool(images) == (store is not None):
        raise FeatxError("give images, or a store with --store: featx predict MODEL IMAGES")
    if store is not None:
        rows, n = _of_store(model, store, weights)
    else:
        paths = files(images or [])
        rows, n = _predictions(model, paths, weights), len(paths)
    from featx.report import predictions_csv, predictions_json, predictions_table

    bar = console(stderr=True)
    predictions = list(track(rows, "predicting", n, console=bar, transient=True, disable=not bar.is_terminal))
    if as_json or as_csv:
        print_data(predictions_json(predictions) if as_json else predictions_csv(predictions))
    else:
        print_all(predictions_table(predictions))
    unreadable = sum(bool(row.error) for row in predictions)
    if unreadable:
        print_error(f"{unreadable:,} of {count(len(predictions), 'image')} cannot be read")
    return 1 if unreadable else 0


def _predictions(model: Path, images: Sequence[Any], weights: str | None) -> Iterator[Prediction]:
    """By onnxruntime, which starts at once, or by torch and scikit-learn."""
    if model.suffix.lower() == ".onnx":
        if weights is not None:
            raise FeatxError("a .onnx file holds its weights; leave out --weights")
        from featx.deploy import predict_onnx

        return predict_onnx(model, images)
    with loading("loading scikit-learn and torch"):
        from featx.learn import load, predict_images

        return predict_images(load(model, weights=weights), images)


def _of_store(model: Path, path: Path, weights: str | None) -> tuple[Iterator[Prediction], int]:
    """Predictions of a store's rows, and their number."""
    from featx.store import FeatureStore

    if model.suffix.lower() == ".onnx":
        raise FeatxError("--store is for a .skops model; a .onnx file of rows is run by onnxruntime")
    if weights is not None:
        raise FeatxError("--store needs no network; leave out --weights")
    store = FeatureStore(path)
    with loading("loading scikit-learn"):
        from featx.learn import load, predict_store

        return predict_store(load(model), store), len(store)
