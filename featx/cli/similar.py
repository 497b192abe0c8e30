"""`featx similar`: the images of a store that are nearest to some others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from featx.cli.interrupts import loading, working
from featx.cli.printing import print_all, print_data, print_line, print_note
from featx.cli.search_files import FIGURES, check_file
from featx.errors import FeatxError, nearest

if TYPE_CHECKING:
    import numpy as np

    from featx.store import FeatureStore, Neighbors


def similar(
    store: Annotated[Path, typer.Argument(help="A store that featx extract made.")],
    images: Annotated[list[str], typer.Argument(help="Ids of images in the store, or files of new images.")],
    neighbors: Annotated[int, typer.Option("--neighbors", "-k", help="Number of similar images for each.")] = 10,
    layer: Annotated[
        str | None,
        typer.Option("--layer", "-l", help="The layer to compare.", show_default="penultimate, or the last one"),
    ] = None,
    metric: Annotated[Literal["cosine", "euclidean"], typer.Option(help="The distance of two rows.")] = "cosine",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Draw the images on a sheet: .png, .pdf or .svg.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel="Output format")] = False,
    as_csv: Annotated[
        bool,
        typer.Option(
            "--csv",
            help="Print CSV; a text that begins with = + - or @ gets an apostrophe in front.",
            rich_help_panel="Output format",
        ),
    ] = False,
) -> None:
    """Find the images of a store that are nearest to some others, by the rows of a layer.

    A new image goes through the store's network first. An image of the store is not similar to itself.
    """
    from featx.store import FeatureStore, written_aside

    if as_json and as_csv:
        raise FeatxError("choose one of --json and --csv")
    if neighbors < 1:
        raise FeatxError(f"--neighbors is 1 or more; got {neighbors}")
    check_file(output, FIGURES, "a sheet is a .png, .pdf or .svg file")
    opened = FeatureStore(store)
    found = _neighbors(opened, images, neighbors, layer, metric)
    from featx.report import similar_csv, similar_figure, similar_json, similar_table, stored_image

    if output is not None:
        ids = set(opened.ids.tolist())
        paths = [stored_image(opened, image) if image in ids else Path(image) for image in images]
        figure = similar_figure(opened, images, paths, found)
        with working("drawing the sheet"), written_aside(output) as file:
            figure.savefig(file, format=output.suffix[1:].lower(), dpi=110)
    if as_json or as_csv:
        print_data((similar_json if as_json else similar_csv)(opened, images, found))
    else:
        print_all(similar_table(opened, images, found))
        if output is not None:
            print_line(f"{output}: the sheet")


def _neighbors(store: FeatureStore, images: list[str], k: int, layer: str | None, metric: str) -> Neighbors:
    """The neighbours of ids and files; a file that has the content of an image of the store stands for that one."""
    import numpy as np

    from featx.store import Neighbors

    rows = _rows(store, images)
    is_new = rows < 0
    parts: list[tuple[np.ndarray, Neighbors]] = []
    if not is_new.all():
        parts.append((np.flatnonzero(~is_new), store.similar(store.X[rows[~is_new]], k, layer=layer, metric=metric)))
    if is_new.any():
        name = store.recipe.deepest if layer is None else store.recipe.layer(layer)
        with loading("loading torch and scikit-learn"):
            from featx.learn import StoredFeatures
        with working("computing features"):
            new = [image for image, is_its in zip(images, is_new, strict=True) if is_its]
            features = StoredFeatures(store, name).fit().transform(new)
        parts.append((np.flatnonzero(is_new), store.similar(np.asarray(features), k, layer=name, metric=metric)))
    order = np.argsort(np.concatenate([places for places, _ in parts]))
    return Neighbors(
        np.concatenate([found.distances for _, found in parts])[order],
        np.concatenate([found.rows for _, found in parts])[order],
    )


def _rows(store: FeatureStore, images: list[str]) -> np.ndarray:
    """(m,) rows of images in the store, or -1 for new files."""
    import numpy as np

    from featx.images import content_digest

    row_of = {name: row for row, name in enumerate(store.ids.tolist())}
    of_content = {digest.tobytes(): row for row, digest in reversed(list(enumerate(store.digests)))}
    rows = []
    for image in images:
        if image in row_of:
            rows.append(row_of[image])
            continue
        path = Path(image)
        if path.is_dir():
            raise FeatxError(f"{image} is a folder; give the files of images, or ids of {store.path.name}")
        if not path.exists():
            close = nearest(image, list(row_of)[:1000])
            raise FeatxError(f"there is no file {image}, and no image of this id in {store.path.name}{close}")
        row = of_content.get(content_digest(path), -1)
        if row >= 0:
            print_note(f"{image} has the same content as {store.ids[row]}, an image of the store")
        rows.append(row)
    return np.array(rows)
