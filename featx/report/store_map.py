"""A map of a store's images on a page of its own: a layer in two dimensions, coloured by label or by any column."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featx.errors import FeatxError, StoreError, as_path
from featx.report.page import document, illustrated, plain, unit
from featx.report.page.images import Images
from featx.report.page.sections import Html, Section, Text
from featx.store import FeatureStore, written_aside

if TYPE_CHECKING:
    from featx.learn.selection import Labels

_MOST_VALUES = 200  # of a column of texts


def store_map(
    store: FeatureStore,
    path: str | os.PathLike,
    y: Labels = None,
    *,
    layer: str | None = None,
    title: str = "",
    random_state: int = 0,
) -> Path:
    """Write a map of a store's images: one HTML page that loads nothing.

    A point is an image; its thumbnail and its label are shown under the pointer. The page colours the points by label
    or by a column of the store: one of numbers, or of at most 200 different texts.

    Parameters
    ----------
    store : FeatureStore
        With or without labels. Of more than 5,000 images a random 5,000 are drawn; rows with NaN or inf are left out.
    path : name that ends in ".html"
        An existing file is replaced.
    y : (n,) labels or a column of the store, optional
        By default the store's labels. A masked array has a label for some images only.
    layer : str, optional
        By default the penultimate layer, or else the last one. Its columns are standardised.
    title : str, optional
        By default the name of the store.
    random_state : int
        Seed of the sample and of t-SNE.

    Returns
    -------
    Path

    Raises
    ------
    FeatxError
        The name has another suffix, the store has fewer than five images without NaN or inf, or their rows are equal.
    LayerError
        The store has no such layer.

    Examples
    --------
    >>> featx.report.store_map(store, "photos.html")    # doctest: +SKIP
    """
    from sklearn.preprocessing import StandardScaler

    from featx.learn import StoredFeatures
    from featx.learn.selection import check_seed, labels_of
    from featx.report.page.maps import FEWEST_POINTS, MAP_HTML, MOST_POINTS, matrix_coordinates

    path = as_path("path", path, FeatxError)
    if path.suffix.lower() != ".html":
        raise FeatxError(f"a map is a .html file; got {path}")
    check_seed("random_state", random_state)
    features = StoredFeatures(store, store.recipe.deepest if layer is None else layer).fit()
    rows = np.sort(np.random.default_rng(random_state).permutation(len(store))[:MOST_POINTS])
    matrix = np.asarray(features.transform(store.X[rows]), np.float32)
    is_finite = np.isfinite(matrix).all(axis=1)
    if is_finite.sum() < FEWEST_POINTS:
        raise StoreError(
            f"a map needs {FEWEST_POINTS} images without NaN or inf; {store.path.name} has {is_finite.sum()}"
        )
    rows = rows[is_finite]
    maps = matrix_coordinates(StandardScaler().fit_transform(matrix[is_finite]), random_state)
    if not maps:
        raise StoreError(
            f"a map needs rows that differ; those of {features.layer_!r} in {store.path.name} are all equal"
        )
    has_labels = y is not None or store.y is not None
    labels = np.ma.masked_all(len(store), object)
    if has_labels:
        labels = np.ma.masked_array(labels_of(store, y), np.ma.getmask(y) if np.ma.isMaskedArray(y) else False)
    images = Images(rows, len(rows), labels[rows], list(map(str, store.ids[rows])), store, store)
    columns = {name: cells for name in store.columns if (cells := _cells(store.columns[name][rows]))}
    data = {
        "ids": images.ids,
        "n_test": len(rows),
        "y": [None if value is None else plain(value) for value in images.y.tolist()],
        "predicted": None,  # there is no model
        "classes": None,
        "probabilities": None,
        "maps": {name: np.round(unit(at), 4).tolist() for name, at in maps.items()},
        "slices": columns,
    }
    section = Section(
        "map", "A map of the images", [Text(_text(store, features.layer_, len(rows), columns)), Html(MAP_HTML)]
    )
    order = np.random.default_rng(random_state).permutation(len(rows)).tolist()
    page = document(title or store.path.name, [section], *illustrated(data, images, order))
    with written_aside(path) as file:
        file.write(page.encode("utf-8", "backslashreplace"))
    return path


def _text(store: FeatureStore, layer: str, n: int, columns: dict[str, Any]) -> str:
    of = f"{n:,} of {len(store):,} images" if n < len(store) else f"{n:,} images"
    text = (
        f"{layer} of {of}, standardised. Images that are close look alike to the network. In t-SNE, distances between "
        "groups mean nothing."
    )
    if left_out := [name for name in store.columns if name not in columns]:
        text += (
            f" Columns with one value, or with more than {_MOST_VALUES} texts, colour nothing: {', '.join(left_out)}."
        )
    return text


def _cells(values: np.ndarray) -> Sequence[str | float | None] | None:
    """The cells of a column that can colour a map: numbers, or not too many texts; None for an empty cell."""
    texts = list(map(str, values.tolist()))
    if len(set(texts)) < 2:
        return None
    try:
        numbers = [float(text) if text else None for text in texts]
    except ValueError:
        numbers = []
    if numbers and np.isfinite([number for number in numbers if number is not None]).all():
        return [None if number is None else plain(number) for number in numbers]
    return [text or None for text in texts] if len(set(texts)) <= _MOST_VALUES else None
