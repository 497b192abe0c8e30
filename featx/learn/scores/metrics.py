"""Labels and predictions in, one number out: the scores that a search can rank by.

Those of scikit-learn's names, from counts or ranks alone: a bootstrap computes thousands of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import make_scorer


@dataclass(frozen=True)
class Metric:
    """A score of what a model says, named as scikit-learn's scorers; more is better.

    name : a key of METRICS
    function : of (k, k) counts, rows true, columns predicted; or of (m,) numbers and (m,) predictions; or, if ranked,
        as `_roc_auc`
    low, high : what it lies between
    is_numeric : whether labels are numbers
    is_ranked : whether it judges decision scores, not predictions
    """

    name: str
    function: Callable[..., float]
    low: float
    high: float
    is_numeric: bool = False
    is_ranked: bool = False

    @property
    def scorer(self) -> Any:
        """What a search takes as `scoring`; every class is among the images that it scores."""
        if not self.is_ranked:
            return self.name
        return make_scorer(self.score, response_method=("decision_function", "predict_proba"))

    def said(self, model: Any, X: Any) -> np.ndarray:
        """What it judges of a fitted model: predictions, or decision scores."""
        return decisions_of(model, X) if self.is_ranked else model.predict(X)

    def score(self, y: np.ndarray, said: np.ndarray, classes: np.ndarray | None = None) -> float:
        return self.scores(y, said, [np.arange(len(y))], classes)[0]

    def scores(
        self, y: np.ndarray, said: np.ndarray, samples: list[np.ndarray], classes: np.ndarray | None = None
    ) -> list[float]:
        """The score of each sample, positions that may repeat.

        Parameters
        ----------
        y : (m,)
        said : (m,) predictions; or decision scores, (m,) for the second of two classes or (m, k)
        samples : of positions
        classes : (k,) that the decision scores are of; by default those of y
        """
        if self.is_ranked:
            return self._one_against_rest(y, said, samples, np.unique(y) if classes is None else classes)
        if self.is_numeric:
            return [float(self.function(y[rows], said[rows])) for rows in samples]
        names, codes = np.unique(np.concatenate([y, said]), return_inverse=True)
        k = len(names)
        cells = codes[: len(y)] * k + codes[len(y) :]
        return [float(self.function(np.bincount(cells[rows], minlength=k * k).reshape(k, k))) for rows in samples]

    def _one_against_rest(
        self, y: np.ndarray, decisions: np.ndarray, samples: list[np.ndarray], classes: np.ndarray
    ) -> list[float]:
        """The mean over classes; of two classes, the score of the second. A class that a sample lacks has no part."""
        names = classes[1:] if decisions.ndim == 1 else classes
        columns = decisions.reshape(len(y), -1)
        if columns.shape[1] != len(names):
            raise ValueError(f"{self.name} needs a column of decision scores for each of {len(names)} classes; there "
                             f"are {columns.shape[1]}")  # fmt: skip
        of_each = np.empty((len(names), len(samples)))
        for c, (name, column) in enumerate(zip(names, columns.T, strict=True)):
            values, places = np.unique(column, return_inverse=True)
            is_one = y == name
            of_each[c] = [self.function(is_one[rows], places[rows], len(values)) for rows in samples]
        counted = np.isfinite(of_each)
        with np.errstate(invalid="ignore"):
            return (np.where(counted, of_each, 0).sum(axis=0) / counted.sum(axis=0)).tolist()


def decisions_of(model: Any, X: Any) -> np.ndarray:
    """Decision scores of a fitted classifier, else its probabilities: (m,) for the second of two classes, or (m, k)."""
    if hasattr(model, "decision_function"):
        return model.decision_function(X)
    shares = model.predict_proba(X)
    return shares[:, 1] if shares.shape[1] == 2 else shares


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


def _roc_auc(is_one: np.ndarray, places: np.ndarray, n_values: int) -> float:
    """The share of pairs, one image of the class and one of the rest, that are ranked right; ties count half.

    (J. A. Hanley and B. J. McNeil, The meaning and use of the area under a ROC curve, Radiology 143, 1982.)

    Parameters
    ----------
    is_one : (m,) bool
    places : (m,) ranks of the decision scores, equal for equal ones, from 0 to below n_values
    """
    ones = np.bincount(places[is_one], minlength=n_values)
    rest = np.bincount(places[~is_one], minlength=n_values)
    pairs = float(ones.sum()) * float(rest.sum())
    return float(ones @ (rest.cumsum() - rest / 2)) / pairs if pairs else float("nan")


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", _accuracy, 0, 1),
        Metric("balanced_accuracy", _balanced_accuracy, 0, 1),
        Metric("f1_macro", _f1_macro, 0, 1),
        Metric("matthews_corrcoef", _matthews, -1, 1),
        Metric("roc_auc", _roc_auc, 0, 1, is_ranked=True),
        Metric("r2", _r2, -np.inf, 1, is_numeric=True),
        Metric("neg_mean_absolute_error", _neg_mean_absolute_error, -np.inf, 0, is_numeric=True),
    )
}
