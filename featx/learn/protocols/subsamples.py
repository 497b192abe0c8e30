"""Protocols over random subsamples of the training images: the curve of a layer, and all curves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from featx.learn.estimators import Fit, LogisticRegression, Ridge, StandardScaler
from featx.learn.features import StoredFeatures
from featx.learn.lazy_rows import in_blocks, rows_at
from featx.learn.protocols.protocol import (
    Progress,
    layer_by_layer,
    result_of,
)
from featx.learn.scores import METRICS, drawn_interval
from featx.learn.selection import (
    Curve,
    Experiment,
    Layers,
    Point,
    ProtocolResult,
    stored_features,
)


def curves_by_layer(
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


def training_and_test_rows(features: StoredFeatures, experiment: Experiment) -> tuple[Any, Any]:
    """Rows to train on, and rows to score on."""
    reading = experiment.reading_test(Pipeline([("features", features)]))
    return features.transform(experiment.X), reading.transform(experiment.X_test)


def curve_over_subsamples(
    features: StoredFeatures,
    X: Any,
    X_test: Any,
    experiment: Experiment,
    draws: dict[int, list[np.ndarray]],
    estimator: Ridge | LogisticRegression,
    scaled: bool,
) -> Curve:
    """The curve over subsamples {x: rows of each}, fitted together; with `scaled`, each is standardised by itself."""
    assert experiment.y_test is not None
    metric = METRICS["r2" if experiment.is_numeric else "accuracy"]
    used = np.unique(np.concatenate([rows for drawn in draws.values() for rows in drawn]))
    X, y = rows_at(X, used), experiment.y[used]
    fits = []
    for rows in (rows for drawn in draws.values() for rows in drawn):
        chosen = np.isin(used, rows)
        scaler = StandardScaler().fit(rows_at(X, chosen)) if scaled else None
        affine = (None, None) if scaler is None else (scaler.mean_, scaler.scale_)
        fits.append(Fit({}, chosen.astype(float), *affine))
    models = iter(estimator.fit_many(X, y, fits))
    waiting = iter(fits)
    points = []
    for x, drawn in draws.items():
        predictions = []
        for _ in drawn:
            fit, model = next(waiting), next(models)
            predictions.append(in_blocks(partial(_predicted, model, fit), X_test))
        scores = tuple(metric.score(experiment.y_test, predicted) for predicted in predictions)
        interval = drawn_interval(metric, experiment.y_test, predictions, experiment.test_groups)
        points.append(Point(x, float(np.mean(scores)), interval, scores))
    return Curve(features.recipe_.backbone, features.layer_, features.n_features_out_, tuple(points))


def _predicted(model: Ridge | LogisticRegression, fit: Fit, rows: np.ndarray) -> np.ndarray:
    return model.predict(rows if fit.shift is None or fit.scale is None else (rows - fit.shift) / fit.scale)
