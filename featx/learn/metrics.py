"""Labels and predictions in, one number out: the scores that a search can rank by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    matthews_corrcoef,
    mean_absolute_error,
    r2_score,
)


@dataclass(frozen=True)
class Metric:
    """A score of predictions, named as scikit-learn's scorers; more is better.

    name : a key of METRICS
    function : of (m,) labels and (m,) predictions
    low, high : what it lies between
    is_numeric : whether labels are numbers
    """

    name: str
    function: Callable[..., float]
    low: float
    high: float
    is_numeric: bool = False

    def score(self, y: np.ndarray, predicted: np.ndarray) -> float:
        return float(self.function(y, predicted))


def _balanced_accuracy(y: np.ndarray, predicted: np.ndarray) -> float:
    """scikit-learn's, without a warning where a class is predicted that none of these images has."""
    _, classes = np.unique(y, return_inverse=True)
    return float(np.mean(np.bincount(classes, weights=y == predicted) / np.bincount(classes)))


def _neg_mean_absolute_error(y: np.ndarray, predicted: np.ndarray) -> float:
    return -float(mean_absolute_error(y, predicted))


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", accuracy_score, 0, 1),
        Metric("balanced_accuracy", _balanced_accuracy, 0, 1),
        Metric("f1_macro", partial(f1_score, average="macro", zero_division=0), 0, 1),
        Metric("matthews_corrcoef", matthews_corrcoef, -1, 1),
        Metric("r2", r2_score, -np.inf, 1, is_numeric=True),
        Metric("neg_mean_absolute_error", _neg_mean_absolute_error, -np.inf, 0, is_numeric=True),
    )
}
