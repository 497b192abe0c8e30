"""Labels and predictions in, one number out: the scores that a search can rank by.

Those of scikit-learn's names, from counts alone: a bootstrap computes thousands of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Metric:
    """A score of predictions, named as scikit-learn's scorers; more is better.

    name : a key of METRICS
    function : of (k, k) counts, rows true, columns predicted; or of (m,) numbers and (m,) predictions
    low, high : what it lies between
    is_numeric : whether labels are numbers
    """

    name: str
    function: Callable[..., float]
    low: float
    high: float
    is_numeric: bool = False

    def score(self, y: np.ndarray, predicted: np.ndarray) -> float:
        return self.scores(y, predicted, [np.arange(len(y))])[0]

    def scores(self, y: np.ndarray, predicted: np.ndarray, samples: list[np.ndarray]) -> list[float]:
        """The score of each sample, positions that may repeat."""
        if self.is_numeric:
            return [float(self.function(y[rows], predicted[rows])) for rows in samples]
        names, codes = np.unique(np.concatenate([y, predicted]), return_inverse=True)
        k = len(names)
        cells = codes[: len(y)] * k + codes[len(y) :]
        return [float(self.function(np.bincount(cells[rows], minlength=k * k).reshape(k, k))) for rows in samples]


def _accuracy(counts: np.ndarray) -> float:
    return np.trace(counts) / counts.sum()


def _balanced_accuracy(counts: np.ndarray) -> float:
    """Mean recall of the classes that are there."""
    of_each = counts.sum(axis=1)
    return np.mean(np.diagonal(counts)[of_each > 0] / of_each[of_each > 0])


def _f1_macro(counts: np.ndarray) -> float:
    """Mean over the classes that are there or are predicted of 2 TP / (2 TP + FP + FN)."""
    either = counts.sum(axis=0) + counts.sum(axis=1)
    return np.mean(2 * np.diagonal(counts)[either > 0] / either[either > 0])


def _matthews(counts: np.ndarray) -> float:
    """(c s - p.t) / sqrt((s^2 - p.p) (s^2 - t.t)), c right of s, p predicted and t true of each class; 0 for 0 / 0.

    (J. Gorodkin, Comparing two K-category assignments, Comput. Biol. Chem. 28, 2004.)
    """
    right, size = float(np.trace(counts)), float(counts.sum())
    p, t = counts.sum(axis=0).astype(float), counts.sum(axis=1).astype(float)
    below = np.sqrt((size**2 - p @ p) * (size**2 - t @ t))
    return (right * size - p @ t) / below if below else 0.0


def _r2(y: np.ndarray, predicted: np.ndarray) -> float:
    spread = np.sum((y - y.mean()) ** 2)
    left = np.sum((y - predicted) ** 2)
    return 1 - left / spread if spread else float(left == 0)


def _neg_mean_absolute_error(y: np.ndarray, predicted: np.ndarray) -> float:
    return -np.mean(np.abs(y - predicted))


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", _accuracy, 0, 1),
        Metric("balanced_accuracy", _balanced_accuracy, 0, 1),
        Metric("f1_macro", _f1_macro, 0, 1),
        Metric("matthews_corrcoef", _matthews, -1, 1),
        Metric("r2", _r2, -np.inf, 1, is_numeric=True),
        Metric("neg_mean_absolute_error", _neg_mean_absolute_error, -np.inf, 0, is_numeric=True),
    )
}
