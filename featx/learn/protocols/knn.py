"""The k-nearest-neighbours probe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score
from sklearn.pipeline import Pipeline

from featx.errors import FeatxError, Parameter
from featx.learn.estimators import KNeighborsClassifier
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
    counts,
    stored_features,
)

_TEMPERATURE = 0.07


def knn_probe(
    stores: Stores,
    y: Labels = None,
    *,
    layers: Layers = None,
    k: Sequence[int] = (10, 20, 100, 200),
    validation_size: float = 0.2,
    validation_rows: np.ndarray | None = None,
    groups: str | Sequence[object] | np.ndarray | None = None,
    allow_duplicates: bool = False,
    holdout: HoldOut = A_FIFTH,
    random_state: int = 0,
    on_progress: Progress = None,
) -> ProtocolResult:
    """k-nearest-neighbours classification in each layer; k is chosen on validation images.

    A neighbour of cosine similarity s votes with weight exp(s / 0.07). (Z. Wu et al., Unsupervised feature learning via
    non-parametric instance discrimination, CVPR 2018, section 3.4; DINO reports it at these k.)

    Parameters
    ----------
    k : sequence of int
        Values above the number of training images are left out.

    Other parameters, Returns and Raises are as in `linear_probe`; there is no `best_estimator`.
    """
    check_callback("on_progress", on_progress)
    experiment = classification_experiment(
        stores, y, groups=groups, allow_duplicates=allow_duplicates, holdout=holdout, random_state=random_state
    )
    learn, validate = validation_split(experiment, validation_size, validation_rows, random_state)
    usable = sorted(value for value in counts(k, 1) or () if value <= len(learn))
    if not usable:
        raise FeatxError(
            Parameter("k"),
            f" is a list of integers from 1 to the {len(learn):,} images to learn from; got {brief(k)}",
        )

    def measure(features: StoredFeatures) -> Curve:
        X = features.transform(experiment.X)
        votes = _votes(rows_at(X, learn), experiment.y[learn], rows_at(X, validate), usable)
        scores = [accuracy_score(experiment.y[validate], predicted) for predicted in votes]
        points = points_of(usable, scores, len(validate))
        chosen = max(points, key=lambda point: (point.mean, point.x))
        X_test = experiment.reading_test(Pipeline([("features", features)])).transform(experiment.X_test)
        (predicted,) = _votes(X, experiment.y, X_test, [int(chosen.x)])
        return curve_of(features, points, chosen, predicted, experiment)

    def result(curves: list[Curve]) -> ProtocolResult:
        curves = sorted(curves, key=lambda curve: -curve.chosen.mean if curve.chosen else 0)
        return result_of("knn", "k", curves, experiment, len(learn), 1, "k nearest neighbours")

    return layer_by_layer(
        stored_features(experiment.stores, layers, experiment.test_store), measure, result, on_progress
    )


def _votes(X: Any, y: np.ndarray, X_new: Any, ks: Sequence[int]) -> list[np.ndarray]:
    """(m,) predicted classes for each k."""
    names, classes = np.unique(y, return_inverse=True)
    nearest = KNeighborsClassifier(min(max(ks), len(X)), metric="cosine").fit(X, y)
    distances, near = nearest.kneighbors(X_new)  # (m, most)
    weights = np.exp(-distances / _TEMPERATURE)
    predicted = []
    for k in ks:
        votes = np.zeros((len(near), len(names)))
        np.add.at(votes, (np.arange(len(near))[:, None], classes[near[:, :k]]), weights[:, :k])
        predicted.append(names[votes.argmax(axis=1)])
    return predicted
