"""The images that are nearest to some others: a table, JSON, CSV, and a sheet of thumbnails."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featx.errors import FeatxError, ImageError, Parameter
from featx.report.canvas import FAINT, INK, blank
from featx.report.columns import FittedTable
from featx.report.interchange import csv_text, json_text
from featx.report.scores import shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featx.store import FeatureStore, Neighbors

_CELL_INCHES, _CAPTION_INCHES, _GAP_INCHES = 1.3, 0.4, 0.1
_THUMBNAIL_PX = 200
_MOST_PICTURES = 600
_NAME = 18  # characters of an id


def similar_table(store: FeatureStore, names: Sequence[str], neighbors: Neighbors) -> FittedTable:
    """The neighbours of each image, the nearest first; `names` are those of the m queries."""
    table = FittedTable()
    table.add_names("image", "similar image")
    if store.y is not None:
        table.add_names("label")
    table.add_numbers("distance")
    for query, found in zip(names, _found(store, neighbors), strict=True):
        for rank, (name, label, distance) in enumerate(found, start=1):
            cells = [] if store.y is None else [str(label)]
            table.add_row(query if rank == 1 else "", name, *cells, f"{distance:.4f}", end_section=rank == len(found))
    return table


def similar_json(store: FeatureStore, names: Sequence[str], neighbors: Neighbors) -> str:
    """A JSON list of objects: each image with its neighbours' ids, labels and distances."""
    return json_text(
        [
            {"image": query, "similar": [dict(zip(("id", "label", "distance"), each, strict=True)) for each in found]}
            for query, found in zip(names, _found(store, neighbors), strict=True)
        ],
        indent=1,
    )


def similar_csv(store: FeatureStore, names: Sequence[str], neighbors: Neighbors) -> str:
    """CSV with one line for each neighbour; `interchange.csv_text` says how texts are written."""
    rows: list[Sequence[object]] = [("image", "rank", "id", "label", "distance")]
    for query, found in zip(names, _found(store, neighbors), strict=True):
        rows += [(query, rank, *each) for rank, each in enumerate(found, start=1)]
    return csv_text(rows)


def _found(store: FeatureStore, neighbors: Neighbors) -> list[list[tuple[str, str | float | None, float]]]:
    """(id, label, distance) of the neighbours of each query."""
    y = None if store.y is None else store.y.tolist()
    return [
        [
            (str(store.ids[row]), None if y is None else y[row], float(distance))
            for row, distance in zip(rows, distances, strict=True)
        ]
        for rows, distances in zip(neighbors.rows.tolist(), neighbors.distances.tolist(), strict=True)
    ]


def similar_figure(store: FeatureStore, names: Sequence[str], paths: Sequence[Any], neighbors: Neighbors) -> Figure:
    """Draw a line of thumbnails for each image: itself, then its neighbours with their labels and distances.

    Parameters
    ----------
    names, paths : of the m queries
    neighbors : (m, k)

    Raises
    ------
    FeatxError
        matplotlib is not installed, or there would be over 600 thumbnails.
    """
    m, k = neighbors.rows.shape
    if m * (k + 1) > _MOST_PICTURES:
        raise FeatxError(
            f"a sheet has {_MOST_PICTURES} pictures at most, and {m:,} images with their similar ones are "
            f"{m * (k + 1):,}: give fewer images, or less than ",
            Parameter("k", k),
        )
    width, height = (k + 1) * _CELL_INCHES, m * (_CELL_INCHES + _CAPTION_INCHES)
    figure = blank(width, height)
    figure.set_layout_engine("none")
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))  # one for all: each axis takes 0.1 s
    axis.axis("off")
    for line, (query, path, found) in enumerate(zip(names, paths, _found(store, neighbors), strict=True)):
        cells = [(path, query, "")]
        for name, label, distance in found:
            cells.append((stored_image(store, name), name, f"{'' if label is None else f'{label}, '}{distance:.3f}"))
        for place, cell in enumerate(cells):
            _draw(axis, place * _CELL_INCHES, line * (_CELL_INCHES + _CAPTION_INCHES), *cell)
    return figure


def stored_image(store: FeatureStore, name: str) -> Any:
    """The image where it was when it was extracted, as far as the store knows."""
    from featx.images import image_at

    return image_at(store.recipe.origin, name)


def _draw(axis: Any, left: float, top: float, path: Any, name: str, words: str) -> None:
    """A picture below its caption, in a cell of the sheet."""
    from featx.images import decode

    middle, side = left + _CELL_INCHES / 2, _CELL_INCHES - _GAP_INCHES
    caption = "\n".join(shortened([text], _NAME)[text] for text in (name, words) if text)
    axis.text(middle, top + _CAPTION_INCHES, caption, ha="center", va="bottom", fontsize=7, color=INK)
    top += _CAPTION_INCHES + _GAP_INCHES / 2
    with contextlib.suppress(ImageError):
        picture, _ = decode(path)
        picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        half_width, height = (
            side / 2 * min(1, picture.width / picture.height),
            side * min(1, picture.height / picture.width),
        )
        axis.imshow(picture, extent=(middle - half_width, middle + half_width, top + height, top), aspect="auto")
        return
    axis.text(middle, top + side / 2, "not found", ha="center", va="center", fontsize=7, color=FAINT)
