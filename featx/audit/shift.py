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
LEAST_DIFFERENT = 10  # images, or groups, of each side whose features are compared
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
    auc : float or None
        Area under the ROC curve of a classifier that tells test from training images by their features,
        cross-validated: 0.5 if it cannot, 1 if it always can. None if one side has fewer than 10 different images.
    interval : Interval or None
        Its 95 % interval.
    shares : {class: (share of the training images, share of the test images)}
    p_value : float or None
        Probability that shares differ as much or more by chance (chi-square test).
    common_groups : list of str
        Groups with images on both sides.
    """

    n_training: int
    n_test: int
    auc: float | None
    interval: Interval | None
    shares: dict[str, tuple[float, float]]
    p_value: float | None
    common_groups: list[str]

    @property
    def differs(self) -> bool:
        """Whether the features of the two sides can be told apart: AUC above 0.6 with its interval above 0.5."""
        return self.interval is not None and self.interval.low > 0.5 and (self.auc or 0.0) > _LEAST_AUC

    @property
    def shares_differ(self) -> bool:
        """Whether the shares of the classes differ more than chance explains (p < 0.01)."""
        return self.p_value is not None and self.p_value < _LEAST_P


class Side(NamedTuple):
    """The training or the test images.

    features : (n, d) float32
    together : (n,) int, equal for copies and images of one group, on the other side too
    labels : (n,) class names, "" where an image has none; or None
    groups : (n,) names of groups, or None
    """

    features: np.ndarray
    together: np.ndarray
    labels: np.ndarray | None = None
    groups: np.ndarray | None = None


def shift(training: Side, test: Side, random_state: int = 0) -> Shift:
    """Compare test images with training images; of more than 5,000 a random sample is classified.

    random_state : seed of the sample and the folds; copies and groups stay in one fold
    """
    rng = np.random.default_rng(random_state)
    sides = [(side, np.sort(rng.permutation(len(side.features))[:_MOST_IMAGES])) for side in (training, test)]
    numbers = [side.together[rows] for side, rows in sides]
    auc = interval = None
    if min(len(np.unique(of_side)) for of_side in numbers) >= LEAST_DIFFERENT:
        X = np.concatenate([side.features[rows] for side, rows in sides])
        domain = np.repeat([0, 1], [len(rows) for _, rows in sides])
        scores = _out_of_fold(X, domain, np.concatenate(numbers), random_state)
        metric = METRICS["roc_auc"]
        auc, interval = metric.score(domain, scores), held_out_interval(metric, domain, scores)
    shares, p_value = _shares(training.labels, test.labels)
    common: list[str] = []
    if training.groups is not None and test.groups is not None:
        common = sorted({*map(str, training.groups)} & {*map(str, test.groups)})
    return Shift(len(training.features), len(test.features), auc, interval, shares, p_value, common)


def _out_of_fold(X: np.ndarray, domain: np.ndarray, together: np.ndarray, random_state: int) -> np.ndarray:
    """(n,) how much each image looks like a test image, by a classifier that has not seen it or a copy of it."""
    scores = np.zeros(len(X))
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=random_state)
    for train, held_out in folds.split(X, domain, together):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=_C, class_weight="balanced"))
        scores[held_out] = model.fit(X[train], domain[train]).decision_function(X[held_out])
    return scores


def _shares(
    training: np.ndarray | None, test: np.ndarray | None
) -> tuple[dict[str, tuple[float, float]], float | None]:
    if training is None or test is None:
        return {}, None
    sides = [side[side != ""].astype(str) for side in (training, test)]
    if not all(map(len, sides)):
        return {}, None
    names = np.unique(np.concatenate(sides))
    counts = np.array([[(side == name).sum() for name in names] for side in sides])
    shares = counts / counts.sum(axis=1, keepdims=True)
    p_value = float(chi2_contingency(counts).pvalue) if len(names) > 1 else None
    return {str(name): (float(a), float(b)) for name, a, b in zip(names, *shares, strict=True)}, p_value
