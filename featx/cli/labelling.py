"""`featx next`: which images to label next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from featx.cli.interrupts import loading, working
from featx.cli.printing import print_all, print_line
from featx.cli.search_files import check_file
from featx.errors import FeatxError, count
from featx.request import labels_in_file


def next_(
    store: Annotated[Path, typer.Argument(help="A store that featx extract made.")],
    number: Annotated[int, typer.Option("--number", "-n", help="Number of images.")] = 50,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="A CSV file of the labels so far, by image id (columns: id, label); a label may be empty.",
            show_default="store's",
        ),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(help="The column of labels in that file; without --labels, in the store.", show_default="label"),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option("--layer", "-l", help="The layer to choose by.", show_default="penultimate, or the last one"),
    ] = None,
    strategy: Annotated[
        Literal["auto", "typical", "uncertain"],
        typer.Option(
            help="typical: images of clusters without labels. uncertain: those about which a classifier is least sure. "
            "auto: uncertain from 20 labels a class on."
        ),
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Random seed of the clusters.")] = 0,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The CSV file to fill in; labels so far are copied into it.")
    ] = Path("next.csv"),
) -> None:
    """Choose the images whose labels would help a search most, and write a CSV file to fill in.

    Fill in the column label of as many as you like. featx search --labels reads the file, and so does the next featx
    next --labels; images without a label are left out.
    """
    from featx.store import FeatureStore, written_aside

    check_file(output, (".csv",), "labels are written into a .csv file")
    if number < 1:
        raise FeatxError(f"--number is 1 or more; got {number}")
    opened = FeatureStore(store)
    y = label_column if labels is None else labels_in_file(opened, labels, label_column, partial=True)
    with loading("loading scikit-learn"):
        from featx.audit import next_to_label
        from featx.report import to_label_csv, to_label_table
    with working("choosing images"):
        chosen = next_to_label(opened, number, y, layer=layer, strategy=strategy, random_state=seed)
    with written_aside(output) as file:
        file.write(f"{to_label_csv(chosen)}\n".encode())
    print_all(to_label_table(chosen))
    print_line(chosen.why)
    n_labels = chosen.labels.count()
    copied = f" and the {count(n_labels, 'label')} so far" if n_labels else ""
    print_line(
        f"{output}: {count(number, 'image')} to label{copied}; fill in its column label, then: "
        f"{shlex.join(['featx', 'search', str(store), '--labels', str(output)])}"
    )
