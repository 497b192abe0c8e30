"""Stores in, the field's standard numbers out: the linear probe and the nearest neighbours; `draws` has the others.

Each measures a representation, a layer at a time, on images held out, and looks at none of these to choose anything.
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
    Curve,
    Interrupted,
    Labels,
    Layers,
    Point,
    ProtocolResult,
    Question,
    Split,
    Stores,
    ask,
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
    random_state: int = 0,
    on_progress: Progress = None,
    **test: Any,
) -> ProtocolResult:
    """Logistic regression on each layer, C chosen on validation images, fitted anew on train and validation.

    On the features as they are, at 45 values of C from 1e-6 to 1e5. (S. Kornblith et al., Do better ImageNet models
    transfer better?, CVPR 2019, section A.4; so do SimCLR and CLIP.)

    Parameters
    ----------
    stores, y, layers, random_state
        As of `select_model`.
    C : sequence of float
    validation_size : float
        Share of the training images to validate on, stratified, by whole groups.
    validation_rows : (n,) bool, optional
        Which images to validate on, instead of a random share.
    on_progress : callable(featx.SearchProgress, []), optional
        Called before the first layer and after each.
    **test : test_size, test_rows, test_store, groups, allow_duplicates
        As of `select_model`.

    Returns
    -------
    ProtocolResult
        A curve a layer: points are on validation images, `test` on the images held out.

    Raises
    ------
    FeatxError
        Labels are numbers, nothing is held out, or what `select_model` refuses.
    Interrupted
        Ctrl-C; it holds the curves of the layers that were done.

    Warns
    -----
    RowsDifferWarning
        As `select_model` does.
    """
    if not len(C) or min(C) <= 0:
        raise FeatxError(f"C is one or more positive numbers; got {list(C)}")
    asked = asked_classes(stores, y, random_state, test)
    learn, validate = _validation(asked, validation_size, validation_rows, random_state)

    def measure(features: StoredFeatures) -> tuple[Curve, Pipeline]:
        X = features.transform(asked.X)
        estimator = LogisticRegression(max_iter=1000)
        models = estimator.fit_many(X[learn], asked.y[learn], [Fit({"C": float(value)}) for value in sorted(C)])
        scores = [accuracy_score(asked.y[validate], model.predict(X[validate])) for model in models]
        points = _measured(sorted(C), scores, len(validate))
        chosen = max(points, key=lambda point: (point.mean, -point.x))  # of equal ones the stronger penalty
        pipeline = Pipeline([("features", features), ("estimator", estimator.set_params(C=float(chosen.x)))])
        pipeline.fit(asked.X, asked.y)
        predicted = asked.reading_test(pipeline).predict(asked.X_test)
        return _tested(features, points, chosen, predicted, asked), pipeline

    def result(found: list[tuple[Curve, Pipeline]]) -> ProtocolResult:
        found = sorted(found, key=lambda one: -one[0].chosen.mean if one[0].chosen else 0)
        curves = [curve for curve, _ in found]
        return replace(result_of("linear-probe", "C", curves, asked, len(learn), 1), best_estimator=found[0][1])

    return layer_by_layer(stored_features(asked.stores, layers, asked.test_store), measure, result, on_progress)


def knn_probe(
    stores: Stores,
    y: Labels = None,
    *,
    layers: Layers = None,
    k: Sequence[int] = (10, 20, 100, 200),
    validation_size: float = 0.2,
    validation_rows: np.ndarray | None = None,
    random_state: int = 0,
    on_progress: Progress = None,
    **test: Any,
) -> ProtocolResult:
    """The vote of the k nearest images in each layer, k chosen on validation images.

    Nearness is cosine similarity s, a vote weighs exp(s / 0.07). (Z. Wu et al., Unsupervised feature learning via
    non-parametric instance discrimination, CVPR 2018, section 3.4; DINO reports it at these k.) Nothing is fitted.

    Parameters
    ----------
    k : sequence of int
        Those above the number of images to learn from are left out.

    The others, Returns and Raises as of `linear_probe`; there is no `best_estimator`.
    """
    asked = asked_classes(stores, y, random_state, test)
    learn, validate = _validation(asked, validation_size, validation_rows, random_state)
    usable = sorted(value for value in k if value <= len(learn))
    if not usable or usable[0] < 1:
        raise FeatxError(f"k is 1 or more, and at most the {len(learn):,} images to learn from; got {list(k)}")

    def measure(features: StoredFeatures) -> Curve:
        X = features.transform(asked.X)
        votes = _votes(X[learn], asked.y[learn], X[validate], usable)
        scores = [accuracy_score(asked.y[validate], predicted) for predicted in votes]
        points = _measured(usable, scores, len(validate))
        chosen = max(points, key=lambda point: (point.mean, point.x))
        X_test = asked.reading_test(Pipeline([("features", features)])).transform(asked.X_test)
        (predicted,) = _votes(X, asked.y, X_test, [int(chosen.x)])
        return _tested(features, points, chosen, predicted, asked)

    def result(curves: list[Curve]) -> ProtocolResult:
        curves = sorted(curves, key=lambda curve: -curve.chosen.mean if curve.chosen else 0)
        return result_of("knn", "k", curves, asked, len(learn), 1)

    return layer_by_layer(stored_features(asked.stores, layers, asked.test_store), measure, result, on_progress)


def asked_classes(stores: Stores, y: Labels, random_state: int, test: dict[str, Any]) -> Question:
    asked = asked_held_out(stores, y, random_state, test)
    if asked.is_numeric:
        raise FeatxError(
            "this protocol tells classes apart, and these labels are numbers; take learning curves (",
            Call("featx.learn.learning_curves"),
            ") or the grid (",
            Call("featx.learn.select_model"),
            ")",
        )
    return asked


def asked_held_out(stores: Stores, y: Labels, random_state: int, test: dict[str, Any]) -> Question:
    asked = ask(stores, y, random_state=random_state, **test)
    if asked.X_test is None:
        raise FeatxError("a protocol is scored on images held out; give a test size above 0")
    return asked


def _validation(asked: Question, share: float, chosen: np.ndarray | None, random_state: int) -> Split:
    """Positions among the training images: to learn from, to validate on."""
    if chosen is None:
        if not 0 < share < 1:
            raise FeatxError(f"validation_size is the share of training images to choose on, above 0; got {share}")
        return hold_out(asked.y, asked.tied, share, random_state)
    return asked.parted(chosen)


def _votes(X: np.ndarray, y: np.ndarray, X_new: np.ndarray, ks: Sequence[int]) -> list[np.ndarray]:
    """(m,) classes for each k in order."""
    names, classes = np.unique(y, return_inverse=True)
    X, X_new = _unit(X), _unit(X_new)
    found: list[list[np.ndarray]] = [[] for _ in ks]
    most = min(max(ks), len(X))
    for start in range(0, len(X_new), _BLOCK_ROWS):
        nearness = X_new[start : start + _BLOCK_ROWS] @ X.T  # (b, n)
        near = np.argpartition(-nearness, most - 1, axis=1)[:, :most]
        near = np.take_along_axis(near, np.argsort(-np.take_along_axis(nearness, near, 1), 1, kind="stable"), 1)
        weights = np.exp((np.take_along_axis(nearness, near, 1) - 1) / _TEMPERATURE)  # (b, most)
        for k, blocks in zip(ks, found, strict=True):
            votes = np.zeros((len(near), len(names)))
            np.add.at(votes, (np.arange(len(near))[:, None], classes[near[:, :k]]), weights[:, :k])
            blocks.append(names[votes.argmax(axis=1)])
    return [np.concatenate(blocks) for blocks in found]


def _unit(X: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(X.astype(np.float64), axis=1, keepdims=True)
    return X / np.where(lengths == 0, 1, lengths)


def _measured(xs: Sequence[float], scores: Sequence[float], n: int) -> tuple[Point, ...]:
    pairs = zip(xs, map(float, scores), strict=True)
    return tuple(Point(float(x), score, wilson(score, n), (score,)) for x, score in pairs)


def _tested(
    features: StoredFeatures, points: tuple[Point, ...], chosen: Point, predicted: np.ndarray, asked: Question
) -> Curve:
    assert asked.y_test is not None
    test = float(accuracy_score(asked.y_test, predicted))
    place = (features.recipe_.backbone, features.layer_, features.n_features_out_)
    interval = held_out_interval(METRICS["accuracy"], asked.y_test, predicted, asked.test_groups)
    return Curve(*place, points, chosen, test, interval)


def result_of(
    protocol: str, varied: str, curves: Sequence[Curve], asked: Question, n_train: int, repeats: int
) -> ProtocolResult:
    assert asked.y_test is not None
    scoring = "r2" if asked.is_numeric else "accuracy"
    return ProtocolResult(
        protocol=protocol,
        varied=varied,
        curves=tuple(curves),
        n_train=n_train,
        n_validation=len(asked.y) - n_train,
        n_test=len(asked.y_test),
        classes=asked.classes,
        chance=asked.chance(METRICS[scoring]),
        repeats=repeats,
        stores=asked.stores,
        scoring=scoring,
    )


def layer_by_layer(
    all_features: Sequence[StoredFeatures],
    measure: Callable[[StoredFeatures], Measured],
    result: Callable[[list[Measured]], ProtocolResult],
    on_progress: Progress,
) -> ProtocolResult:
    """The result of what is measured of each layer; interrupted, of those that were done.

    Raises
    ------
    Interrupted
        Ctrl-C, after the first layer; before that, KeyboardInterrupt.
    """
    found: list[Measured] = []
    clock = SearchClock(lambda now: on_progress and on_progress(now, []))
    widths = [200 + features.n_features_out_ for features in all_features]  # a layer's own time, besides its columns'
    clock.expect(len(widths), {"layers": sum(widths)})
    try:
        for features, width in zip(all_features, widths, strict=True):
            with clock.piece("layers", width):
                found.append(measure(features))
            clock.fitted()
    except KeyboardInterrupt:
        if not found:
            raise
        raise Interrupted(replace(result(found), is_partial=True)) from None
    return result(found)
