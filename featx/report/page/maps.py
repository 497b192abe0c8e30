"""A map of the images: the features of the chosen layer in two dimensions."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from featx.learn.selection import reading_from
from featx.report.page.images import Images
from featx.report.page.sections import Html, Section, Text

if TYPE_CHECKING:
    from featx.learn.selection import Selection

MOST_POINTS = 5000
_COMPONENTS = 50  # of a PCA before t-SNE
FEWEST_POINTS = 5
# of t-SNE: 5,000 images in 12 s, where the defaults, 0.5 and 1000, take 29 s and keep as many neighbours
_ANGLE, _ITERATIONS = 0.8, 500
MAP_HTML = """<div><p class="controls"><label>map <select id="map-kind"></select></label>
<label>colour <select id="map-colour"></select></label></p>
<div class="holder"><canvas id="map-canvas" tabindex="0" role="application"
aria-label="map of the images; arrow keys move to the next image, Enter opens it"></canvas>
<div id="map-tip" hidden></div></div><p id="map-legend"></p><p id="map-said" aria-live="polite"></p></div>
<noscript><p>The map needs JavaScript.</p></noscript>"""


def coordinates(selection: Selection, images: Images, random_state: int = 0) -> dict[str, np.ndarray]:
    """{name of the map: (n, 2)} of the images, of what the estimator sees; empty if there are too few
    images or all rows are equal.

    PCA, t-SNE of 50 principal components (scikit-learn's), and UMAP if it is installed.
    """
    best = selection.best_estimator
    if best is None or len(images) < FEWEST_POINTS:
        return {}
    parts = []
    for store, rows in (
        (images.store, images.rows[: images.n_test]),
        (images.training_store, images.rows[images.n_test :]),
    ):
        if len(rows):
            parts.append(np.asarray(reading_from(best, store)[:-1].transform(store.X[rows]), np.float32))
    return matrix_coordinates(np.concatenate(parts), random_state)


def matrix_coordinates(matrix: np.ndarray, random_state: int = 0) -> dict[str, np.ndarray]:
    """`coordinates` of the rows of a matrix, (n, d) float32 with n of 5 or more."""
    if not np.ptp(matrix, axis=0).any():  # t-SNE would start with 0 / 0, and end the process
        return {}
    n_components = min(_COMPONENTS, *matrix.shape)
    components = PCA(n_components, random_state=random_state).fit_transform(matrix)
    if n_components < 2:
        components = np.c_[components, np.zeros(len(components))]
    maps = {"PCA": components[:, :2]}
    perplexity = min(30.0, (len(matrix) - 1) / 3)
    # one thread: beside other processes several would wait for each other in every one of its thousand steps
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")
        maps["t-SNE"] = TSNE(
            perplexity=perplexity, init="pca", angle=_ANGLE, max_iter=_ITERATIONS, random_state=random_state
        ).fit_transform(components)
        if find_spec("umap") is not None:
            import umap

            maps["UMAP"] = umap.UMAP(random_state=random_state).fit_transform(components)
    return maps


def map_section(selection: Selection, images: Images) -> Section:
    test = f"{images.n_test:,} held-out" if images.n_test else "no held-out"
    text = (
        f"{selection.chosen.layer} of {test} and {len(images) - images.n_test:,} training images, as the estimator "
        "sees them. Images that are close look alike to the network. In t-SNE, distances between groups mean nothing."
    )
    return Section("map", "A map of the images", [Text(text), Html(MAP_HTML)])
