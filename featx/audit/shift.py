"""Whether the test images are like the training images: a domain classifier, the shares of classes, common groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import chi2_contingency
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featx.learn.estimators import LogisticRegression
from featx.learn.scores import METRICS, Interval, held_out_interval

_FOLDS = 5
_C = 1e-3
_LEAST_AUC = 0.6
_LEAST_P = 0.01
_MOST_IMAGES = 5000  # of each side


@dataclass(frozen=True, eq=False)
class Shift:
    """How test images differ from training images.

    Attributes
    ----------
    n_training, n_test : int
    auc : float
        Area under the ROC curve of a classifier that tells test from training images by their features,
        cross-validated: 0.5 if it cannot, 1 if it always can.
    interval : Interval
        Its 95 % interval.
    shares : {class: (share of the training images, share of the test images)}
    p_value : float or None
        Probability that shares differ as much or more by chance (chi-square test).
    common_groups : list of str
        Groups with images on both sides.
    """

    n_training: int
    n_test: int
    auc: float
    interval: Interval
    shares: dict[str, tuple[float, float]]
    p_value: float | None
    common_groups: list[str]

    @property
    def differs(self) -> bool:
        """Whether the features of the two sides can be told apart: AUC above 0.6 with its interval above 0.5."""
        return self.interval.low > 0.5 and self.auc > _LEAST_AUC

    @property
    def shares_differ(self) -> bool:
        """Whether the shares of the classes differ more than chance explains (p < 0.01)."""
        return self.p_value is not None and self.p_value < _LEAST_P


class Side(NamedTuple):
    """The training or the test images.

    features : (n, d) float32
    copies : (n,) int, equal for images that are copies of one another, on the other side too
    labels : (n,) class names, or None
    groups : (n,) names of groups, or None
    """

    features: np.ndarray
    copies: np.ndarray
    labels: np.ndarray | None = None
    groups: np.ndarray | None = None


def shift(training: Side, test: Side, random_state: int = 0) -> Shift:
    """Compare test images with training images; of more than 5,000 a random sample is classified.

    random_state : seed of the sample and the folds; copies stay in one fold
    """
    rng = np.random.default_rng(random_state)
    sides = [(side, np.sort(rng.permutation(len(side.features))[:_MOST_IMAGES])) for side in (training, test)]
    X = np.concatenate([side.features[rows] for side, rows in sides])
    domain = np.repeat([0, 1], [len(rows) for _, rows in sides])
    numbers = np.concatenate([side.copies[rows] for side, rows in sides])
    scores = np.zeros(len(X))
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=random_state)
    for train, held_out in folds.split(X, domain, numbers):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=_C, class_weight="balanced"))
        scores[held_out] = model.fit(X[train], domain[train]).decision_function(X[held_out])
    metric = METRICS["roc_auc"]
    shares, p_value = _shares(training.labels, test.labels)
    common: list[str] = []
    if training.groups is not None and test.groups is not None:
        common = sorted({*map(str, training.groups)} & {*map(str, test.groups)})
    return Shift(
        len(training.features),
        len(test.features),
        metric.score(domain, scores),
        held_out_interval(metric, domain, scores),
        shares,
        p_value,
        common,
    )


def _shares(
    training: np.ndarray | None, test: np.ndarray | None
) -> tuple[dict[str, tuple[float, float]], float | None]:
    if training is None or test is None:
        return {}, None
    names = sorted({*map(str, training)} | {*map(str, test)})
    counts = np.array([[(side.astype(str) == name).sum() for name in names] for side in (training, test)])
    shares = counts / counts.sum(axis=1, keepdims=True)
    p_value = float(chi2_contingency(counts).pvalue) if len(names) > 1 else None
    return {name: (float(a), float(b)) for name, a, b in zip(names, *shares, strict=True)}, p_value
