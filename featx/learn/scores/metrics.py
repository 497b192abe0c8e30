"""The metrics that a search can rank by, named as scikit-learn's scorers.

They are computed from counts or ranks alone, since a bootstrap computes thousands of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import make_scorer


@dataclass(frozen=True)
class Metric:
    """A metric; higher is better.

    name : a key of METRICS
    function : takes (k, k) counts, rows true and columns predicted; for regression (m,) targets and (m,) predictions;
        for a ranking metric the arguments of `_roc_auc`
    low, high : bounds of its values
    is_numeric : whether it is for regression
    is_ranked : whether it takes decision scores instead of predictions
    """

    name: str
    function: Callable[..., float]
    low: float
    high: float
    is_numeric: bool = False
    is_ranked: bool = False

    @property
    def scorer(self) -> Any:
        """The `scoring` of a search in which every class is among the scored images."""
        if not self.is_ranked:
            return self.name
        return make_scorer(self.score, response_method=("decision_function", "predict_proba"))

    def outputs(self, model: Any, X: Any) -> np.ndarray:
        """The outputs of a fitted model that it scores: predictions, or decision scores."""
        return decisions_of(model, X) if self.is_ranked else model.predict(X)

    def score(self, y: np.ndarray, outputs: np.ndarray, classes: np.ndarray | None = None) -> float:
        return self.scores(y, outputs, [np.arange(len(y))], classes)[0]

    def scores(
        self, y: np.ndarray, outputs: np.ndarray, samples: list[np.ndarray], classes: np.ndarray | None = None
    ) -> list[float]:
        """The score of each sample.

        Parameters
        ----------
        y : (m,)
        outputs : (m,) predictions; or decision scores, (m,) for the second of two classes or (m, k)
        samples : arrays of positions, which may repeat
        classes : (k,) classes of the decision scores; by default those of y
        """
        if self.is_ranked:
            return self._one_against_rest(y, outputs, samples, np.unique(y) if classes is None else classes)
        if self.is_numeric:
            return [float(self.function(y[rows], outputs[rows])) for rows in samples]
        names, codes = np.unique(np.concatenate([y, outputs]), return_inverse=True)
        k = len(names)
        cells = codes[: len(y)] * k + codes[len(y) :]
        return [float(self.function(np.bincount(cells[rows], minlength=k * k).reshape(k, k))) for rows in samples]

    def _one_against_rest(
        self, y: np.ndarray, decisions: np.ndarray, samples: list[np.ndarray], classes: np.ndarray
    ) -> list[float]:
        """The mean over classes; for two classes, the score of the second. Classes that a sample lacks are left out."""
        names = classes[1:] if decisions.ndim == 1 else classes
        columns = decisions.reshape(len(y), -1)
        if columns.shape[1] != len(names):
            raise ValueError(f"{self.name} needs a column of decision scores for each of {len(names)} classes; got "
                f"{columns.shape[1]}")  # fmt: skip
        of_each = np.empty((len(names), len(samples)))
        for c, (name, column) in enumerate(zip(names, columns.T, strict=True)):
            values, places = np.unique(column, return_inverse=True)
            is_one = y == name
            of_each[c] = [self.function(is_one[rows], places[rows], len(values)) for rows in samples]
        counted = np.isfinite(of_each)
        with np.errstate(invalid="ignore"):
            return (np.where(counted, of_each, 0).sum(axis=0) / counted.sum(axis=0)).tolist()


def decisions_of(model: Any, X: Any) -> np.ndarray:
    """Decision scores or, if there are none, probabilities: (m,) for the second of two classes, or (m, k)."""
    if hasattr(model, "decision_function"):
        return model.decision_function(X)
    shares = model.predict_proba(X)
    return shares[:, 1] if shares.shape[1] == 2 else shares


def _accuracy(counts: np.ndarray) -> float:
    return np.trace(counts) / counts.sum()


def _balanced_accuracy(counts: np.ndarray) -> float:
    """Mean recall of the classes that occur."""
    of_each = counts.sum(axis=1)
    return np.mean(np.diagonal(counts)[of_each > 0] / of_each[of_each > 0])


def _f1_macro(counts: np.ndarray) -> float:
    """2 TP / (2 TP + FP + FN), averaged over the classes that occur or are predicted."""
    either = counts.sum(axis=0) + counts.sum(axis=1)
    return np.mean(2 * np.diagonal(counts)[either > 0] / either[either > 0])


def _matthews(counts: np.ndarray) -> float:
    """(c s - p.t) / sqrt((s^2 - p.p) (s^2 - t.t)), or 0 if the denominator is 0.

    c of s images are predicted right; p and t are the numbers of images predicted as and belonging to each class.

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
    """The share of pairs of an image of the class and another image that are ranked right; ties count half.

    (J. A. Hanley and B. J. McNeil, The meaning and use of the area under a ROC curve, Radiology 143, 1982.)

    Parameters
    ----------
    is_one : (m,) bool
    places : (m,) ranks of the decision scores, from 0 to n_values - 1, equal for equal scores
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
