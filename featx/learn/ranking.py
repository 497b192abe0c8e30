"""What a selection found: candidates with their scores, the best of them fitted, what it said of held-out images."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix
from sklearn.pipeline import Pipeline

from featx.store import FeatureStore


@dataclass(frozen=True)
class Candidate:
    """One row of the table.

    mean, std : of the accuracy over the folds
    scores : (folds,)
    fit_seconds : mean of a fit
    """

    backbone: str
    layer: str
    d: int
    estimator: str
    C: float
    mean: float
    std: float
    scores: tuple[float, ...]
    fit_seconds: float


@dataclass(frozen=True)
class Selection:
    """What `select_model` found.

    candidates : best first; of equal ones the one with fewer features
    best_estimator : the best candidate's pipeline, fitted on all training images
    stores : what was searched
    n_train, folds : what the cross-validation saw
    classes : (k,)
    chance : share of the most frequent class among the training images
    X_test, y_test, predicted : the images held out, (m, 1) keys and (m,) class names, or None
    confidence : (m,) decision score of what was predicted
    test_store : where X_test are, if not in `stores`
    """

    candidates: list[Candidate]
    best_estimator: Pipeline
    stores: list[FeatureStore] = field(repr=False)
    n_train: int
    folds: int
    classes: np.ndarray
    chance: float
    X_test: np.ndarray | None = None
    y_test: np.ndarray | None = None
    predicted: np.ndarray | None = None
    confidence: np.ndarray | None = None
    test_store: FeatureStore | None = field(default=None, repr=False)

    @property
    def best(self) -> Candidate:
        return self.candidates[0]

    def mistakes(self) -> np.ndarray:
        """Positions among the held-out images of those predicted wrong, the most confident first."""
        if self.y_test is None or self.predicted is None or self.confidence is None:
            return np.empty(0, int)
        wrong = np.flatnonzero(self.y_test != self.predicted)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")]

    @property
    def held_out(self) -> float | None:
        return None if self.y_test is None else float(accuracy_score(self.y_test, self.predicted))

    @property
    def held_out_error(self) -> float | None:
        """Standard error of `held_out`, sqrt(p (1 - p) / m)."""
        p = self.held_out
        return None if p is None or self.y_test is None else float(np.sqrt(p * (1 - p) / len(self.y_test)))

    @property
    def confusion(self) -> np.ndarray | None:
        """(k, k) counts over the held-out images: rows true, columns predicted."""
        return None if self.y_test is None else confusion_matrix(self.y_test, self.predicted, labels=self.classes)
