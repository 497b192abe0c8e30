"""`featx import`: features that were computed elsewhere into a store."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Literal

import typer

from featx.cli.printing import print_all, print_line
from featx.errors import ContradictionWarning, NonFiniteWarning, SourceError, count

_IDS, _OUTPUT = "Ids and labels", "Output file"


def import_(
    arrays: Annotated[
        list[str],
        typer.Argument(
            help="Files of arrays, one row an id: .npy, .npz (each array a layer), .parquet (columns of numbers, or "
            "of lists), or FILE.h5:PATH for a dataset. NAME=FILE names the layer."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HDF5 file to make.", rich_help_panel=_OUTPUT)],
    ids: Annotated[
        Path | None,
        typer.Option(
            help="A .csv file with a column id, in the order of the rows; its other columns are kept.",
            show_default="of a Parquet file its column id, else 0, 1 ...",
            rich_help_panel=_IDS,
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="The column of labels.", show_default="label, if there is one", rich_help_panel=_IDS),
    ] = None,
    target: Annotated[
        Literal["class", "numeric"],
        typer.Option(help="Whether labels are class names or numbers.", rich_help_panel=_IDS),
    ] = "class",
    name: Annotated[
        str | None,
        typer.Option(
            help="What made the features, all-MiniLM-L6-v2 for example: stores of one name can be used together.",
            show_default="none: the store goes with no other",
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16"],
        typer.Option(help="Number type of the stored rows.", rich_help_panel=_OUTPUT),
    ] = "float32",
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace an existing file.", rich_help_panel=_OUTPUT)
    ] = False,
) -> None:
    """Make a store of features that were computed elsewhere: of texts or sounds, or by another tool."""
    from featx.array_files import described, open_arrays
    from featx.manifest import read_manifest
    from featx.report import notes_text
    from featx.store import FeatureStore, import_arrays

    opened = open_arrays(arrays, labels)
    table = opened.table if ids is None else read_manifest(ids)
    if not table and labels is not None:
        raise SourceError("--labels is a column of the .csv file of ids; give that with --ids")
    rows = described(table, "the table" if ids is None else str(ids), labels) if table else {}
    with warnings.catch_warnings():
        for printed_below in (NonFiniteWarning, ContradictionWarning):
            warnings.simplefilter("ignore", printed_below)
        rounding = import_arrays(output, opened.layers, **rows, target=target, name=name, dtype=dtype, replace=replace)
    store = FeatureStore(output)
    labelled = "no labels" if store.y is None else "numbers as labels"
    labelled = f"{len(store.classes)} classes" if store.classes is not None else labelled
    widths = ", ".join(f"{layer} ({tap['shape'][0]:,} numbers)" for layer, tap in store.recipe.taps.items())
    print_line(f"{output}: {count(len(store), 'row')}, {labelled}; layers {widths}")
    for layer, error in rounding.items():
        if not error:
            continue
        made = opened.layers[layer].dtype
        print_line(f"{layer}: {made} was rounded to {dtype}; the largest relative error (L2) of a row is {error:.1e}")
    if notes := notes_text(store):
        print_all(notes)
