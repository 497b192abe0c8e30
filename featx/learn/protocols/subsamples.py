"""Stores in, the score against the number of images out: a few of each class, and the learning curve."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from featx.errors import FeatxError, Parameter
from featx.learn.estimators import Fit, LogisticRegression, Ridge
from featx.learn.features import StoredFeatures
from featx.learn.protocols.probes import Progress, asked_classes, asked_held_out, layer_by_layer, result_of
from featx.learn.scores import METRICS, drawn_interval
from featx.learn.search import GridSearchCV
from featx.learn.selection import (
    ESTIMATORS,
    Curve,
    Labels,
    Layers,
    Point,
    ProtocolResult,
    Question,
    Split,
    Stores,
    cv_splits,
    stored_features,
    units,
)

_SHOTS = (1, 2, 4, 8, 16)
_FEWEST_NUMBERS = 2  # images to learn a number from


def few_shot(
    stores: Stores,
    y: Labels = None,
    *,
    layers: Layers = None,
    shots: Sequence[int] | None = None,
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
    shots : sequence of int, optional
        Images a class, no more than the rarest class has; by default those of 1, 2, 4, 8, 16.
    repeats : int
    C : float

    The others and Raises as of `linear_probe`.

    Returns
    -------
    ProtocolResult
        Points are on the images held out; their intervals are of both draws, of those to learn from and of the test
        images.
    """
    asked = asked_classes(stores, y, random_state, test)
    _at_least_one(repeats)
    names, counts = np.unique(asked.y, return_counts=True)
    shots = [shot for shot in _SHOTS if shot <= counts.min()] if shots is None else shots
    if not _are_counts(shots, 1, counts.min()):
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

    def measure(features: StoredFeatures) -> Curve:
        X, X_test = _both(features, asked)
        scaler = StandardScaler().fit(X)
        estimator = LogisticRegression(C=C, max_iter=1000)
        return _drawn(features, scaler.transform(X), scaler.transform(X_test), asked, draws, estimator, scaled=False)

    return _curves("few-shot", "images a class", asked, layers, measure, repeats, on_progress)


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
    """The score of a standardised linear model against the number of training images, for each layer.

    What more images would bring: of classes the accuracy of logistic regression; where the labels are numbers, R^2 of
    ridge regression. The images of a smaller draw are among those of a larger one; classes keep their shares, and each
    has an image in all.

    Parameters
    ----------
    sizes : sequence of int, optional
        Training images; by default all there are, a half, a quarter ... down to two a class, or of numbers to ten.
    repeats : int
        Draws of each size; of all images there is one.
    C : float, optional
        Of logistic regression; by default chosen for each layer by cross-validation on the training images, as alpha
        of ridge regression always is.

    The others and Raises as of `linear_probe`, but labels may be numbers.

    Returns
    -------
    ProtocolResult
        Points are on the images held out; their intervals are of both draws, of those to learn from and of the test
        images.
    """
    asked = asked_held_out(stores, y, random_state, test)
    _at_least_one(repeats)
    if asked.is_numeric and C is not None:
        raise FeatxError(f"C is of logistic regression, and these labels are numbers; leave it out, got C={C}")
    n = len(asked.y)
    kinds = np.zeros(n) if asked.is_numeric else asked.y  # of numbers, any draw will do
    _, strata, counts = np.unique(kinds, return_inverse=True, return_counts=True)
    fewest = _FEWEST_NUMBERS if asked.is_numeric else len(counts)
    usual = 5 * fewest if asked.is_numeric else 2 * fewest
    sizes = [n // 2**i for i in range(6) if n // 2**i >= usual] or [n] if sizes is None else sizes
    if not _are_counts(sizes, fewest, n):
        least = f"{fewest}" if asked.is_numeric else f"one for each of the {fewest} classes"
        raise FeatxError(f"sizes are numbers of training images, from {least} to all {n:,}; got {list(sizes)}")
    draws: dict[int, list[np.ndarray]] = {size: [] for size in sorted(sizes)}
    for seed in range(repeats):
        order = np.random.default_rng([random_state, seed]).permutation(n)
        order = order[np.argsort(strata[order], kind="stable")]
        turn = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)  # 0, 1, 2 ... in each class
        order = order[np.lexsort((turn / np.repeat(counts, counts), turn > 0))]  # any beginning of it is stratified
        for size, drawn in draws.items():
            if size < n or not drawn:
                drawn.append(order[:size])
    family = ESTIMATORS["ridge" if asked.is_numeric else "logistic_regression"]
    values = family.values if C is None else (C,)
    folds = max(2, min(5, *units(asked.y, asked.tied)[1].tolist()))
    splits = cv_splits(asked.y, asked.tied, folds, 1, random_state) if C is None else []

    def measure(features: StoredFeatures) -> Curve:
        X, X_test = _both(features, asked)
        estimator = clone(family.estimator).set_params(**{family.parameter: values[0]})
        if len(values) > 1:
            estimator = _best(estimator, {family.parameter: list(values)}, X, asked.y, splits)
        return _drawn(features, X, X_test, asked, draws, estimator, scaled=True)

    return _curves("learning-curve", "training images", asked, layers, measure, repeats, on_progress)


def _best(
    estimator: Ridge | LogisticRegression,
    grid: Mapping[str, list[float]],
    X: np.ndarray,
    y: np.ndarray,
    splits: Sequence[Split],
) -> Ridge | LogisticRegression:
    """The estimator of the grid that cross-validates best on standardised columns, not fitted."""
    pipeline = Pipeline([("scaler", StandardScaler()), ("estimator", estimator)])
    values = {f"estimator__{name}": those for name, those in grid.items()}
    search = GridSearchCV(pipeline, values, cv=splits, refit=False, error_score="raise").fit(X, y)
    return clone(pipeline).set_params(**search.best_params_)["estimator"]


def _curves(
    protocol: str,
    varied: str,
    asked: Question,
    layers: Layers,
    measure: Callable[[StoredFeatures], Curve],
    repeats: int,
    on_progress: Progress,
) -> ProtocolResult:
    """What is measured of each layer, by the score with most images."""

    def result(curves: list[Curve]) -> ProtocolResult:
        curves = sorted(curves, key=lambda curve: -curve.points[-1].mean)
        return result_of(protocol, varied, curves, asked, len(asked.y), repeats)

    return layer_by_layer(stored_features(asked.stores, layers, asked.test_store), measure, result, on_progress)


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
    estimator: Ridge | LogisticRegression,
    scaled: bool,
) -> Curve:
    """A curve over draws, {x: rows of each draw}, all fitted at once; `scaled`: each standardised by itself."""
    assert asked.y_test is not None
    metric = METRICS["r2" if asked.is_numeric else "accuracy"]
    used = np.unique(np.concatenate([rows for drawn in draws.values() for rows in drawn]))
    X, y = X[used], asked.y[used]
    fits = []
    for rows in (rows for drawn in draws.values() for rows in drawn):
        chosen = np.isin(used, rows)
        scaler = StandardScaler().fit(X[chosen]) if scaled else None
        affine = (None, None) if scaler is None else (scaler.mean_, scaler.scale_)
        fits.append(Fit({}, chosen.astype(float), *affine))
    models = iter(estimator.fit_many(X, y, fits))
    waiting = iter(fits)
    points = []
    for x, drawn in draws.items():
        predictions = []
        for _ in drawn:
            fit, model = next(waiting), next(models)
            rows = X_test if fit.shift is None or fit.scale is None else (X_test - fit.shift) / fit.scale
            predictions.append(model.predict(rows))
        scores = tuple(metric.score(asked.y_test, predicted) for predicted in predictions)
        interval = drawn_interval(metric, asked.y_test, predictions, asked.test_groups)
        points.append(Point(x, float(np.mean(scores)), interval, scores))
    return Curve(features.recipe_.backbone, features.layer_, features.n_features_out_, tuple(points))


def _are_counts(values: Sequence[int], least: int, most: int) -> bool:
    return len(values) > 0 and all(isinstance(value, Integral) and least <= value <= most for value in values)


def _at_least_one(repeats: int) -> None:
    if repeats < 1:
        raise FeatxError("images are drawn once or more; got ", Parameter("repeats", repeats))
