"""The linear probe and the k-nearest-neighbours probe, and what all protocols share; `subsamples` has the others.

A protocol scores each layer on held-out images, which it uses for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from sklearn.metrics import accuracy_score
from sklearn.pipeline import Pipeline

from featx.errors import Call, FeatxError
from featx.learn.estimators import Fit, LogisticRegression
from featx.learn.features import StoredFeatures
from featx.learn.scores import METRICS, held_out_interval, wilson
from featx.learn.selection import (
    A_FIFTH,
    Curve,
    Experiment,
    HoldOut,
    Interrupted,
    Labels,
    Layers,
    Point,
    ProtocolResult,
    Split,
    Stores,
    define_experiment,
    hold_out,
    stored_features,
)
from featx.progress import SearchClock, SearchProgress

Progress = Callable[[SearchProgress, list], None] | None
Measured = TypeVar("Measured")

_TEMPERATURE = 0.07
_BLOCK_ROWS = 1024


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
    if not len(C) or min(C) <= 0:
        raise FeatxError(f"C is one or more positive numbers; got {list(C)}")
    experiment = classification_experiment(
        stores, y, groups=groups, allow_duplicates=allow_duplicates, holdout=holdout, random_state=random_state
    )
    learn, validate = _validation(experiment, validation_size, validation_rows, random_state)

    def measure(features: StoredFeatures) -> tuple[Curve, Pipeline]:
        X = features.transform(experiment.X)
        estimator = LogisticRegression(max_iter=1000)
        models = estimator.fit_many(X[learn], experiment.y[learn], [Fit({"C": float(value)}) for value in sorted(C)])
        scores = [accuracy_score(experiment.y[validate], model.predict(X[validate])) for model in models]
        points = _measured(sorted(C), scores, len(validate))
        chosen = max(points, key=lambda point: (point.mean, -point.x))  # of equal ones the stronger regularization
        pipeline = Pipeline([("features", features), ("estimator", estimator.set_params(C=float(chosen.x)))])
        pipeline.fit(experiment.X, experiment.y)
        predicted = experiment.reading_test(pipeline).predict(experiment.X_test)
        return _tested(features, points, chosen, predicted, experiment), pipeline

    def result(measured: list[tuple[Curve, Pipeline]]) -> ProtocolResult:
        best_first = sorted(measured, key=lambda one: -one[0].chosen.mean if one[0].chosen else 0)
        curves = [curve for curve, _ in best_first]
        return replace(
            result_of("linear-probe", "C", curves, experiment, len(learn), 1), best_estimator=best_first[0][1]
        )

    return layer_by_layer(
        stored_features(experiment.stores, layers, experiment.test_store), measure, result, on_progress
    )


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
    experiment = classification_experiment(
        stores, y, groups=groups, allow_duplicates=allow_duplicates, holdout=holdout, random_state=random_state
    )
    learn, validate = _validation(experiment, validation_size, validation_rows, random_state)
    usable = sorted(value for value in k if value <= len(learn))
    if not usable or usable[0] < 1:
        raise FeatxError(f"k is 1 or more, and at most the {len(learn):,} images to learn from; got {list(k)}")

    def measure(features: StoredFeatures) -> Curve:
        X = features.transform(experiment.X)
        votes = _votes(X[learn], experiment.y[learn], X[validate], usable)
        scores = [accuracy_score(experiment.y[validate], predicted) for predicted in votes]
        points = _measured(usable, scores, len(validate))
        chosen = max(points, key=lambda point: (point.mean, point.x))
        X_test = experiment.reading_test(Pipeline([("features", features)])).transform(experiment.X_test)
        (predicted,) = _votes(X, experiment.y, X_test, [int(chosen.x)])
        return _tested(features, points, chosen, predicted, experiment)

    def result(curves: list[Curve]) -> ProtocolResult:
        curves = sorted(curves, key=lambda curve: -curve.chosen.mean if curve.chosen else 0)
        return result_of("knn", "k", curves, experiment, len(learn), 1)

    return layer_by_layer(
        stored_features(experiment.stores, layers, experiment.test_store), measure, result, on_progress
    )


def classification_experiment(stores: Stores, y: Labels, **options: Any) -> Experiment:
    """`define_experiment` with held-out images and class names; raises FeatxError for others."""
    experiment = held_out_experiment(stores, y, **options)
    if experiment.is_numeric:
        raise FeatxError(
            "this protocol tells classes apart, and these labels are numbers; take learning curves (",
            Call("featx.learn.learning_curves"),
            ") or the grid (",
            Call("featx.learn.select_model"),
            ")",
        )
    return experiment


def held_out_experiment(stores: Stores, y: Labels, **options: Any) -> Experiment:
    """`define_experiment`; raises FeatxError if no images are held out."""
    experiment = define_experiment(stores, y, **options)
    if experiment.X_test is None:
        raise FeatxError("a protocol is scored on images held out; give a test size above 0")
    return experiment


def _validation(experiment: Experiment, share: float, rows: np.ndarray | None, random_state: int) -> Split:
    """(positions to train on, positions to validate on) among the training images."""
    if rows is None:
        if not 0 < share < 1:
            raise FeatxError(f"validation_size is the share of training images to choose on, above 0; got {share}")
        return hold_out(experiment.y, experiment.groups, share, random_state)
    return experiment.split_validation(rows)


def _votes(X: np.ndarray, y: np.ndarray, X_new: np.ndarray, ks: Sequence[int]) -> list[np.ndarray]:
    """(m,) predicted classes for each k."""
    names, classes = np.unique(y, return_inverse=True)
    X, X_new = _unit(X), _unit(X_new)
    predicted: list[list[np.ndarray]] = [[] for _ in ks]
    most = min(max(ks), len(X))
    for start in range(0, len(X_new), _BLOCK_ROWS):
        similarity = X_new[start : start + _BLOCK_ROWS] @ X.T  # (b, n)
        near = np.argpartition(-similarity, most - 1, axis=1)[:, :most]
        near = np.take_along_axis(near, np.argsort(-np.take_along_axis(similarity, near, 1), 1, kind="stable"), 1)
        weights = np.exp((np.take_along_axis(similarity, near, 1) - 1) / _TEMPERATURE)  # (b, most)
        for k, blocks in zip(ks, predicted, strict=True):
            votes = np.zeros((len(near), len(names)))
            np.add.at(votes, (np.arange(len(near))[:, None], classes[near[:, :k]]), weights[:, :k])
            blocks.append(names[votes.argmax(axis=1)])
    return [np.concatenate(blocks) for blocks in predicted]


def _unit(X: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(X.astype(np.float64), axis=1, keepdims=True)
    return X / np.where(lengths == 0, 1, lengths)


def _measured(xs: Sequence[float], scores: Sequence[float], n: int) -> tuple[Point, ...]:
    pairs = zip(xs, map(float, scores), strict=True)
    return tuple(Point(float(x), score, wilson(score, n), (score,)) for x, score in pairs)


def _tested(
    features: StoredFeatures, points: tuple[Point, ...], chosen: Point, predicted: np.ndarray, experiment: Experiment
) -> Curve:
    assert experiment.y_test is not None
    test = float(accuracy_score(experiment.y_test, predicted))
    place = (features.recipe_.backbone, features.layer_, features.n_features_out_)
    interval = held_out_interval(METRICS["accuracy"], experiment.y_test, predicted, experiment.test_groups)
    return Curve(*place, points, chosen, test, interval)


def result_of(
    protocol: str, varied: str, curves: Sequence[Curve], experiment: Experiment, n_train: int, repeats: int
) -> ProtocolResult:
    assert experiment.y_test is not None
    scoring = "r2" if experiment.is_numeric else "accuracy"
    return ProtocolResult(
        protocol=protocol,
        varied=varied,
        curves=tuple(curves),
        n_train=n_train,
        n_validation=len(experiment.y) - n_train,
        n_test=len(experiment.y_test),
        classes=experiment.classes,
        chance=experiment.chance(METRICS[scoring]),
        repeats=repeats,
        stores=experiment.stores,
        scoring=scoring,
    )


def layer_by_layer(
    all_features: Sequence[StoredFeatures],
    measure: Callable[[StoredFeatures], Measured],
    result: Callable[[list[Measured]], ProtocolResult],
    on_progress: Progress,
) -> ProtocolResult:
    """Measure layer by layer, and make the result; after an interrupt, the result of the layers that were done.

    Raises
    ------
    Interrupted
        Ctrl-C, after the first layer; before that, KeyboardInterrupt.
    """
    measured: list[Measured] = []
    clock = SearchClock(lambda now: on_progress and on_progress(now, []))
    widths = [
        200 + features.n_features_out_ for features in all_features
    ]  # the time of a layer, in columns: a constant part and its own
    clock.expect(len(widths), {"layers": sum(widths)})
    try:
        for features, width in zip(all_features, widths, strict=True):
            with clock.piece("layers", width):
                measured.append(measure(features))
            clock.fitted()
    except KeyboardInterrupt:
        if not measured:
            raise
        raise Interrupted(replace(result(measured), is_partial=True)) from None
    return result(measured)
