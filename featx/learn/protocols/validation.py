"""Protocols that choose a value on validation images: the split, the points and the curve of a layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import accuracy_score

from featx.learn.features import StoredFeatures
from featx.learn.scores import METRICS, held_out_interval, wilson
from featx.learn.selection import (
    Curve,
    Experiment,
    Point,
    Split,
    check_share,
    hold_out,
)


def validation_split(experiment: Experiment, share: float, rows: np.ndarray | None, random_state: int) -> Split:
    """(positions to train on, positions to validate on) among the training images."""
    check_share("validation_size", share, "training images to choose on")
    if rows is None:
        return hold_out(experiment.y, experiment.groups, share, random_state, is_validation=True)
    return experiment.split_validation(rows)


def points_of(xs: Sequence[float], scores: Sequence[float], n: int) -> tuple[Point, ...]:
    pairs = zip(xs, map(float, scores), strict=True)
    return tuple(Point(float(x), score, wilson(score, n), (score,)) for x, score in pairs)


def curve_of(
    features: StoredFeatures, points: tuple[Point, ...], chosen: Point, predicted: np.ndarray, experiment: Experiment
) -> Curve:
    assert experiment.y_test is not None
    test = float(accuracy_score(experiment.y_test, predicted))
    place = (features.recipe_.backbone, features.layer_, features.n_features_out_)
    interval = held_out_interval(METRICS["accuracy"], experiment.y_test, predicted, experiment.test_groups)
    return Curve(*place, points, chosen, test, interval)
