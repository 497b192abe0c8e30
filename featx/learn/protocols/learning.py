"""Learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from featx.catalogue import ESTIMATORS
from featx.errors import FeatxError, Parameter
from featx.learn.estimators import LogisticRegression, Ridge, StandardScaler
from featx.learn.features import StoredFeatures
from featx.learn.protocols.protocol import (
    Progress,
    held_out_experiment,
)
from featx.learn.protocols.subsamples import (
    curve_over_subsamples,
    curves_by_layer,
    training_and_test_rows,
)
from featx.learn.search import GridSearchCV
from featx.learn.selection import (
    A_FIFTH,
    Curve,
    HoldOut,
    Labels,
    Layers,
    ProtocolResult,
    Split,
    Stores,
    brief,
    check_callback,
    check_integer,
    check_positive,
    counts,
    cv_splits,
    new_estimator,
    units,
)

_FEWEST_NUMBERS = 2  # least number of training images for regression


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
        Of logistic regression; by default chosen for each layer by cross-validation on the training images, as alpha
        of ridge regression always is.

    Other parameters and Raises are as in `linear_probe`, but labels may be numbers.

    Returns
    -------
    ProtocolResult
        Points are on the held-out images; their intervals cover the choice of training images and of test images.
    """
    check_integer("repeats", repeats, 1)
    if C is not None:
        check_positive("C", C)
    check_callback("on_progress", on_progress)
    experiment = held_out_experiment(
        stores, y, groups=groups, allow_duplicates=allow_duplicates, holdout=holdout, random_state=random_state
    )
    if experiment.is_numeric and C is not None:
        raise FeatxError(
            Parameter("C"), f" is of logistic regression, and these labels are numbers; leave it out, got {brief(C)}"
        )
    n = len(experiment.y)
    kinds = np.zeros(n) if experiment.is_numeric else experiment.y  # for regression there is one stratum
    _, strata, n_of_each = np.unique(kinds, return_inverse=True, return_counts=True)
    fewest = _FEWEST_NUMBERS if experiment.is_numeric else len(n_of_each)
    usual = 5 * fewest if experiment.is_numeric else 2 * fewest
    sizes = [n // 2**i for i in range(6) if n // 2**i >= usual] or [n] if sizes is None else sizes
    if (distinct := counts(sizes, fewest, n)) is None:
        least = f"{fewest}" if experiment.is_numeric else f"one for each of the {fewest} classes"
        raise FeatxError(
            Parameter("sizes"),
            f" is a list of numbers of training images, from {least} to all {n:,}; got {brief(sizes)}",
        )
    draws: dict[int, list[np.ndarray]] = {size: [] for size in sorted(distinct)}
    for seed in range(repeats):
        order = np.random.default_rng([random_state, seed]).permutation(n)
        order = order[np.argsort(strata[order], kind="stable")]
        turn = np.arange(n) - np.repeat(np.cumsum(n_of_each) - n_of_each, n_of_each)  # 0, 1, 2 ... in each class
        share = turn / np.repeat(n_of_each, n_of_each)
        order = order[np.lexsort((share, turn > 0))]  # every beginning of it is stratified
        for size, drawn in draws.items():
            if size < n or not drawn:
                drawn.append(order[:size])
    spec = ESTIMATORS["ridge" if experiment.is_numeric else "logistic_regression"]
    values = spec.values if C is None else (C,)
    folds = max(2, min(5, *units(experiment.y, experiment.groups)[1].tolist()))
    splits = cv_splits(experiment.y, experiment.groups, folds, 1, random_state) if C is None else []

    def measure(features: StoredFeatures) -> Curve:
        X, X_test = training_and_test_rows(features, experiment)
        estimator = new_estimator(spec).set_params(**{spec.parameter: values[0]})
        if len(values) > 1:
            estimator = _best(estimator, {spec.parameter: list(values)}, X, experiment.y, splits)
        return curve_over_subsamples(features, X, X_test, experiment, draws, estimator, scaled=True)

    return curves_by_layer("learning-curve", "training images", experiment, layers, measure, repeats, on_progress)


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
