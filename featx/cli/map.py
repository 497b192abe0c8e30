"""`featx map`: a map of a store's images as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featx.cli.interrupts import loading, working
from featx.cli.printing import print_line
from featx.cli.search_files import check_file
from featx.request import labels_in_file


def map_(
    store: Annotated[Path, typer.Argument(help="A store that featx extract made.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write, a .html file.")],
    layer: Annotated[
        str | None,
        typer.Option("--layer", "-l", help="The layer to draw.", show_default="penultimate, or the last one"),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="A CSV file of labels by image id (columns: id, label).", show_default="store's"),
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="The column of labels in that file.", show_default="label")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the sample and of t-SNE.")] = 0,
) -> None:
    """Draw a map of a store's images: PCA and t-SNE of a layer, coloured by label or by any column.

    The page needs no network. A store of more than 5,000 images is sampled.
    """
    from featx.errors import FeatxError
    from featx.store import FeatureStore

    check_file(output, (".html",), "a map is a .html file")
    if label_column is not None and labels is None:
        raise FeatxError("--label-column is a column of --labels; give that too")
    opened = FeatureStore(store)
    y = None if labels is None else labels_in_file(opened, labels, label_column, partial=True)
    with loading("loading scikit-learn"):
        from featx.report import store_map
    with working("drawing the map"):
        store_map(opened, output, y, layer=layer, random_state=seed)
    print_line(f"{output}: the map")
