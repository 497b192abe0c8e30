"""Stores in, accuracy against the number of images out: a few of each class, and the learning curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from featx.errors import FeatxError
from featx.learn.features import StoredFeatures
from featx.learn.fits import Fit
from featx.learn.grids import ESTIMATORS, stored_features
from featx.learn.intervals import mean_interval, wilson
from featx.learn.logistic import LogisticRegression
from featx.learn.protocols import Labels, Layers, Progress, Stores, asked_classes, result_of, told
from featx.learn.questions import Question
from featx.learn.ranking import Curve, Point, ProtocolResult
from featx.learn.search import GridSearchCV
from featx.learn.splits import Split, cv_splits


def few_shot(
    stores: Stores,
    y: Labels = None,
    *,
    layers: Layers = None,
    shots: Sequence[int] = (1, 2, 4, 8, 16),
    repeats: int = 10,
    C: float = 0.1,
    random_state: int = 0,
    on_progress: Progress = None,
    **test: Any,
) -> ProtocolResult:
    """Accuracy of logistic regression on a few images of each class, drawn `repeats` times, for each layer.

    C is fixed: a few images leave none to choose it on. Columns are standardised over all training images, which uses
    none of their labels. The images of a draw with fewer shots are among those with more.

    Parameters
    ----------
    shots : sequence of int
        Images a class; those above what the rarest class has are refused.
    repeats : int
    C : float

    The others and Raises as of `linear_probe`.

    Returns
    -------
    ProtocolResult
        Points are on the images held out; their intervals tell how much the draw matters.
    """
    asked = asked_classes(stores, y, random_state, test)
    _at_least_one(repeats)
    names, counts = np.unique(asked.y, return_counts=True)
    if not len(shots) or min(shots) < 1 or max(shots) > counts.min():
        raise FeatxError(
            f"shots are images a class, 1 or more, and at most the {counts.min():,} training images of "
            f"{str(names[counts.argmin()])!r}; got {list(shots)}"
        )
    draws: dict[int, list[np.ndarray]] = {shot: [] for shot in sorted(shots)}
    for seed in range(repeats):
        order = np.random.default_rng([random_state, seed]).permutation(len(asked.y))
        of_each = [order[asked.y[order] == name] for name in names]
        for shot, drawn in draws.items():
            drawn.append(np.concatenate([rows[:shot] for rows in of_each]))
    curves = []
    for features in told(stored_features(asked.stores, layers), on_progress):
        X, X_test = _both(features, asked)
        scaler = StandardScaler().fit(X)
        curves.append(_drawn(features, scaler.transform(X), scaler.transform(X_test), asked, draws, C, scaled=False))
    curves.sort(key=lambda curve: -curve.points[-1].mean)
    return result_of("few-shot", "images a class", curves, asked, len(asked.y), repeats)


def learning_curves(
    stores: Stores,
    y: Labels = None,
    *,
    layers: Layers = None,
    sizes: Sequence[int] | None = None,
    repeats: int = 5,
    C: float | None = None,
    random_state: int = 0,
    on_progress: Progress = None,
    **test: Any,
) -> ProtocolResult:
    """Accuracy of standardised logistic regression against the number of training images, for each layer.

    What more images would bring. The images of a smaller draw are among those of a larger one, classes keep their
    shares, and each class has an image in all.

    Parameters
    ----------
    sizes : sequence of int, optional
        Training images; by default all there are, a half, a quarter ... down to two a class.
    repeats : int
        Draws of each size; of all images there is one.
    C : float, optional
        By default chosen for each layer by cross-validation on the training images.

    The others and Raises as of `linear_probe`.

    Returns
    -------
    ProtocolResult
        Points are on the images held out; their intervals tell how much the draw matters.
    """
    asked = asked_classes(stores, y, random_state, test)
    _at_least_one(repeats)
    names, strata, counts = np.unique(asked.y, return_inverse=True, return_counts=True)
    n = len(asked.y)
    sizes = [n // 2**i for i in range(6) if n // 2**i >= 2 * len(names)] or [n] if sizes is None else sizes
    if not len(sizes) or min(sizes) < len(names) or max(sizes) > n:
        raise FeatxError(
            f"sizes are numbers of training images, from one for each of the {len(names)} classes to all {n:,}; got "
            f"{list(sizes)}"
        )
    draws: dict[int, list[np.ndarray]] = {size: [] for size in sorted(sizes)}
    for seed in range(repeats):
        order = np.random.default_rng([random_state, seed]).permutation(n)
        order = order[np.argsort(strata[order], kind="stable")]
        turn = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)  # 0, 1, 2 ... in each class
        order = order[np.lexsort((turn / np.repeat(counts, counts), turn > 0))]  # any beginning of it is stratified
        for size, drawn in draws.items():
            if size < n or not drawn:
                drawn.append(order[:size])
    splits = [] if C is not None else cv_splits(asked.y, asked.tied, min(5, *counts.tolist()), 1, random_state)
    curves = []
    for features in told(stored_features(asked.stores, layers), on_progress):
        X, X_test = _both(features, asked)
        chosen = _chosen_C(X, asked.y, splits) if C is None else C
        curves.append(_drawn(features, X, X_test, asked, draws, chosen, scaled=True))
    curves.sort(key=lambda curve: -curve.points[-1].mean)
    return result_of("learning-curve", "training images", curves, asked, n, repeats)


def _chosen_C(X: np.ndarray, y: np.ndarray, splits: Sequence[Split]) -> float:
    pipeline = Pipeline([("scaler", StandardScaler()), ("estimator", LogisticRegression(max_iter=1000))])
    grid = {"estimator__C": list(ESTIMATORS["logistic_regression"].values)}
    search = GridSearchCV(pipeline, grid, cv=splits, refit=False, error_score="raise").fit(X, y)
    return search.best_params_["estimator__C"]


def _both(features: StoredFeatures, asked: Question) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from, and rows to be scored on."""
    reading = asked.reading_test(Pipeline([("features", features)]))
    return features.transform(asked.X), reading.transform(asked.X_test)


def _drawn(
    features: StoredFeatures,
    X: np.ndarray,
    X_test: np.ndarray,
    asked: Question,
    draws: dict[int, list[np.ndarray]],
    C: float,
    scaled: bool,
) -> Curve:
    """A curve over draws, {x: rows of each draw}, all fitted at once; `scaled`: each standardised by itself."""
    assert asked.y_test is not None
    used = np.unique(np.concatenate([rows for drawn in draws.values() for rows in drawn]))
    X, y = X[used], asked.y[used]
    fits = []
    for rows in (rows for drawn in draws.values() for rows in drawn):
        chosen = np.isin(used, rows)
        scaler = StandardScaler().fit(X[chosen]) if scaled else None
        affine = (None, None) if scaler is None else (scaler.mean_, scaler.scale_)
        fits.append(Fit({}, chosen.astype(float), *affine))
    models = iter(LogisticRegression(C=C, max_iter=1000).fit_many(X, y, fits))
    waiting = iter(fits)
    points = []
    for x, drawn in draws.items():
        scores = []
        for _ in drawn:
            fit, model = next(waiting), next(models)
            rows = X_test if fit.shift is None or fit.scale is None else (X_test - fit.shift) / fit.scale
            scores.append(float(accuracy_score(asked.y_test, model.predict(rows))))
        mean = float(np.mean(scores))
        interval = mean_interval(scores, 0, 1) if len(scores) > 1 else wilson(mean, len(asked.y_test))
        points.append(Point(x, mean, interval, tuple(scores)))
    return Curve(features.recipe_.backbone, features.layer_, features.n_features_out_, tuple(points))


def _at_least_one(repeats: int) -> None:
    if repeats < 1:
        raise FeatxError(f"images are drawn once or more; got repeats={repeats}")
