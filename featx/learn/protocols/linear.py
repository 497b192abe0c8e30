"""The linear probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from sklearn.metrics import accuracy_score
from sklearn.pipeline import Pipeline

from featx.errors import FeatxError, Parameter
from featx.learn.estimators import Fit, LogisticRegression
from featx.learn.features import StoredFeatures
from featx.learn.lazy_rows import rows_at
from featx.learn.protocols.protocol import (
    Progress,
    classification_experiment,
    layer_by_layer,
    result_of,
)
from featx.learn.protocols.validation import curve_of, points_of, validation_split
from featx.learn.selection import (
    A_FIFTH,
    Curve,
    HoldOut,
    Labels,
    Layers,
    ProtocolResult,
    Stores,
    brief,
    check_callback,
    positive_numbers,
    stored_features,
)


def linear_probe(
    stores: Stores,
    y: Labels = None,
    *,
    layers: Layers = None,
    C: Sequence[float] = tuple(np.logspace(-6, 5, 45)),
    validation_size: float = 0.2,
    validation_rows: np.ndarray | None = None,
    groups: str | Sequence[object] | np.ndarray | None = None,
    allow_duplicates: bool = False,
    holdout: HoldOut = A_FIFTH,
    random_state: int = 0,
    on_progress: Progress = None,
) -> ProtocolResult:
    """Logistic regression on each layer, with C chosen on validation images and refitted on these as well.

    Features are not standardised; C has 45 values from 1e-6 to 1e5. (S. Kornblith et al., Do better ImageNet models
    transfer better?, CVPR 2019, section A.4; SimCLR and CLIP use the same protocol.)

    Parameters
    ----------
    stores, y, layers, groups, allow_duplicates, holdout, random_state
        As in `select_model`.
    C : sequence of float
    validation_size : float
        Share of the training images to validate on, stratified, by whole groups.
    validation_rows : (n,) bool, optional
        The images to validate on, in place of a random share.
    on_progress : callable(featx.SearchProgress, []), optional
        Called before the first layer and after each layer.

    Returns
    -------
    ProtocolResult
        One curve per layer: points are on validation images, `test` is on the held-out images.

    Raises
    ------
    FeatxError
        Labels are numbers, no images are held out, or as in `select_model`.
    Interrupted
        Ctrl-C; its `result` has the curves of the layers that were done.

    Warns
    -----
    RowsDifferWarning
        As in `select_model`.
    """
    if (values := positive_numbers(C)) is None:
        raise FeatxError(Parameter("C"), f" is a list of one or more positive numbers; got {brief(C)}")
    values = sorted(values)
    check_callback("on_progress", on_progress)
    experiment = classification_experiment(
        stores, y, groups=groups, allow_duplicates=allow_duplicates, holdout=holdout, random_state=random_state
    )
    learn, validate = validation_split(experiment, validation_size, validation_rows, random_state)

    def measure(features: StoredFeatures) -> tuple[Curve, Pipeline]:
        X = features.transform(experiment.X)
        held_out = rows_at(X, validate)
        estimator = LogisticRegression(max_iter=1000)
        fits = [Fit({"C": float(value)}) for value in values]
        models = estimator.fit_many(rows_at(X, learn), experiment.y[learn], fits)
        scores = [accuracy_score(experiment.y[validate], model.predict(held_out)) for model in models]
        points = points_of(values, scores, len(validate))
        chosen = max(points, key=lambda point: (point.mean, -point.x))  # of equal ones the stronger regularization
        pipeline = Pipeline([("features", features), ("estimator", estimator.set_params(C=float(chosen.x)))])
        pipeline.fit(experiment.X, experiment.y)
        predicted = experiment.reading_test(pipeline).predict(experiment.X_test)
        return curve_of(features, points, chosen, predicted, experiment), pipeline

    def result(measured: list[tuple[Curve, Pipeline]]) -> ProtocolResult:
        best_first = sorted(measured, key=lambda one: -one[0].chosen.mean if one[0].chosen else 0)
        curves = [curve for curve, _ in best_first]
        probe = result_of("linear-probe", "C", curves, experiment, len(learn), 1, "linear probe")
        return replace(probe, best_estimator=best_first[0][1])

    return layer_by_layer(
        stored_features(experiment.stores, layers, experiment.test_store), measure, result, on_progress
    )
