"""Few-shot evaluation and learning curves: the score against the number of training images, over random subsamples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from featx.errors import FeatxError, Parameter
from featx.learn.estimators import Fit, LogisticRegression, Ridge
from featx.learn.features import StoredFeatures
from featx.learn.protocols.probes import (
    Progress,
    classification_experiment,
    held_out_experiment,
    layer_by_layer,
    result_of,
)
from featx.learn.scores import METRICS, drawn_interval
from featx.learn.search import GridSearchCV
from featx.learn.selection import (
    A_FIFTH,
    ESTIMATORS,
    Curve,
    Experiment,
    HoldOut,
    Labels,
    Layers,
    Point,
    ProtocolResult,
    Split,
    Stores,
    cv_splits,
    stored_features,
    units,
)

_SHOTS = (1, 2, 4, 8, 16)
_FEWEST_NUMBERS = 2  # least number of training images for regression


def few_shot(
    stores: Stores,
    y: Labels = None,
    *,
    layers: Layers = None,
    shots: Sequence[int] | None = None,
    repeats: int = 10,
    C: float = 0.1,
    groups: str | Sequence[object] | np.ndarray | None = None,
    allow_duplicates: bool = False,
    holdout: HoldOut = A_FIFTH,
    random_state: int = 0,
    on_progress: Progress = None,
) -> ProtocolResult:
    """Accuracy of logistic regression trained on a few images of each class, over random subsamples, for each layer.

    C is fixed, since a few images leave none to choose it on. Columns are standardised over all training images, which
    uses no labels. The images of a subsample with fewer shots are among those with more.

    Parameters
    ----------
    shots : sequence of int, optional
        Images per class, at most as many as the rarest class has; by default those of 1, 2, 4, 8, 16.
    repeats : int
        Number of subsamples.
    C : float

    Other parameters and Raises are as in `linear_probe`.

    Returns
    -------
    ProtocolResult
        Points are on the held-out images; their intervals cover the choice of training images and of test images.
    """
    experiment = classification_experiment(
        stores, y, groups=groups, allow_duplicates=allow_duplicates, holdout=holdout, random_state=random_state
    )
    _at_least_one(repeats)
    names, counts = np.unique(experiment.y, return_counts=True)
    shots = [shot for shot in _SHOTS if shot <= counts.min()] if shots is None else shots
    if not _are_counts(shots, 1, counts.min()):
        raise FeatxError(
            f"shots are images a class, 1 or more, and at most the {counts.min():,} training images of "
            f"{str(names[counts.argmin()])!r}; got {list(shots)}"
        )
    draws: dict[int, list[np.ndarray]] = {shot: [] for shot in sorted(shots)}
    for seed in range(repeats):
        order = np.random.default_rng([random_state, seed]).permutation(len(experiment.y))
        of_each = [order[experiment.y[order] == name] for name in names]
        for shot, drawn in draws.items():
            drawn.append(np.concatenate([rows[:shot] for rows in of_each]))

    def measure(features: StoredFeatures) -> Curve:
        X, X_test = _both(features, experiment)
        scaler = StandardScaler().fit(X)
        estimator = LogisticRegression(C=C, max_iter=1000)
        return _drawn(
            features, scaler.transform(X), scaler.transform(X_test), experiment, draws, estimator, scaled=False
        )

    return _curves("few-shot", "images a class", experiment, layers, measure, repeats, on_progress)


def learning_curves(
    stores: Stores,
    y: Labels = None,
    *,
    layers: Layers = None,
    sizes: Sequence[int] | None = None,
    repeats: int = 5,
    C: float | None = None,
    groups: str | Sequence[object] | np.ndarray | None = None,
    allow_duplicates: bool = False,
    holdout: HoldOut = A_FIFTH,
    random_state: int = 0,
    on_progress: Progress = None,
) -> ProtocolResult:
    """The score of a linear model on standardised features against the number of training images, for each layer.

    Shows what more images would gain: accuracy of logistic regression, or R^2 of ridge regression if the labels are
    numbers. The images of a smaller subsample are among those of a larger one; classes keep their shares, and each has
    at least one image.

    Parameters
    ----------
    sizes : sequence of int, optional
        Numbers of training images; by default all, a half, a quarter ... down to two per class, or ten for regression.
    repeats : int
        Subsamples of each size; all images are fitted once.
    C : float, optional
        For logistic regression; by default chosen for each layer by cross-validation on the training images, as alpha
        of ridge regression always is.

    Other parameters and Raises are as in `linear_probe`, but labels may be numbers.

    Returns
    -------
    ProtocolResult
        Points are on the held-out images; their intervals cover the choice of training images and of test images.
    """
    experiment = held_out_experiment(
        stores, y, groups=groups, allow_duplicates=allow_duplicates, holdout=holdout, random_state=random_state
    )
    _at_least_one(repeats)
    if experiment.is_numeric and C is not None:
        raise FeatxError(f"C is of logistic regression, and these labels are numbers; leave it out, got C={C}")
    n = len(experiment.y)
    kinds = np.zeros(n) if experiment.is_numeric else experiment.y  # for regression there is one stratum
    _, strata, counts = np.unique(kinds, return_inverse=True, return_counts=True)
    fewest = _FEWEST_NUMBERS if experiment.is_numeric else len(counts)
    usual = 5 * fewest if experiment.is_numeric else 2 * fewest
    sizes = [n // 2**i for i in range(6) if n // 2**i >= usual] or [n] if sizes is None else sizes
    if not _are_counts(sizes, fewest, n):
        least = f"{fewest}" if experiment.is_numeric else f"one for each of the {fewest} classes"
        raise FeatxError(f"sizes are numbers of training images, from {least} to all {n:,}; got {list(sizes)}")
    draws: dict[int, list[np.ndarray]] = {size: [] for size in sorted(sizes)}
    for seed in range(repeats):
        order = np.random.default_rng([random_state, seed]).permutation(n)
        order = order[np.argsort(strata[order], kind="stable")]
        turn = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)  # 0, 1, 2 ... in each class
        order = order[np.lexsort((turn / np.repeat(counts, counts), turn > 0))]  # every beginning of it is stratified
        for size, drawn in draws.items():
            if size < n or not drawn:
                drawn.append(order[:size])
    spec = ESTIMATORS["ridge" if experiment.is_numeric else "logistic_regression"]
    values = spec.values if C is None else (C,)
    folds = max(2, min(5, *units(experiment.y, experiment.groups)[1].tolist()))
    splits = cv_splits(experiment.y, experiment.groups, folds, 1, random_state) if C is None else []

    def measure(features: StoredFeatures) -> Curve:
        X, X_test = _both(features, experiment)
        estimator = clone(spec.estimator).set_params(**{spec.parameter: values[0]})
        if len(values) > 1:
            estimator = _best(estimator, {spec.parameter: list(values)}, X, experiment.y, splits)
        return _drawn(features, X, X_test, experiment, draws, estimator, scaled=True)

    return _curves("learning-curve", "training images", experiment, layers, measure, repeats, on_progress)


def _best(
    estimator: Ridge | LogisticRegression,
    grid: Mapping[str, list[float]],
    X: np.ndarray,
    y: np.ndarray,
    splits: Sequence[Split],
) -> Ridge | LogisticRegression:
    """The unfitted estimator of the grid with the best cross-validated score on standardised columns."""
    pipeline = Pipeline([("scaler", StandardScaler()), ("estimator", estimator)])
    values = {f"estimator__{name}": of_name for name, of_name in grid.items()}
    search = GridSearchCV(pipeline, values, cv=splits, refit=False, error_score="raise").fit(X, y)
    return clone(pipeline).set_params(**search.best_params_)["estimator"]


def _curves(
    protocol: str,
    varied: str,
    experiment: Experiment,
    layers: Layers,
    measure: Callable[[StoredFeatures], Curve],
    repeats: int,
    on_progress: Progress,
) -> ProtocolResult:
    """The curves of all layers, best first by the score with most images."""

    def result(curves: list[Curve]) -> ProtocolResult:
        curves = sorted(curves, key=lambda curve: -curve.points[-1].mean)
        return result_of(protocol, varied, curves, experiment, len(experiment.y), repeats)

    return layer_by_layer(
        stored_features(experiment.stores, layers, experiment.test_store), measure, result, on_progress
    )


def _both(features: StoredFeatures, experiment: Experiment) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and rows to score on."""
    reading = experiment.reading_test(Pipeline([("features", features)]))
    return features.transform(experiment.X), reading.transform(experiment.X_test)


def _drawn(
    features: StoredFeatures,
    X: np.ndarray,
    X_test: np.ndarray,
    experiment: Experiment,
    draws: dict[int, list[np.ndarray]],
    estimator: Ridge | LogisticRegression,
    scaled: bool,
) -> Curve:
    """The curve over subsamples {x: rows of each}, all fitted at once; `scaled` : each is standardised by itself."""
    assert experiment.y_test is not None
    metric = METRICS["r2" if experiment.is_numeric else "accuracy"]
    used = np.unique(np.concatenate([rows for drawn in draws.values() for rows in drawn]))
    X, y = X[used], experiment.y[used]
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
        scores = tuple(metric.score(experiment.y_test, predicted) for predicted in predictions)
        interval = drawn_interval(metric, experiment.y_test, predictions, experiment.test_groups)
        points.append(Point(x, float(np.mean(scores)), interval, scores))
    return Curve(features.recipe_.backbone, features.layer_, features.n_features_out_, tuple(points))


def _are_counts(values: Sequence[int], least: int, most: int) -> bool:
    return len(values) > 0 and all(isinstance(value, Integral) and least <= value <= most for value in values)


def _at_least_one(repeats: int) -> None:
    if repeats < 1:
        raise FeatxError("images are drawn once or more; got ", Parameter("repeats", repeats))
