"""Labels that are probably wrong: out-of-fold probabilities of classifiers on several layers, pooled.

Each layer gives every image a probability of its label, by a logistic regression that has not seen the image or a copy
of it. The layers' log-probabilities are pooled with weights that, together with the share of wrong labels, explain the
given labels best. Then labels that are clearly contradicted are left out of training, and all is fitted once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq, minimize
from scipy.special import expit, log_softmax
from sklearn.pipeline import make_pipeline

from featx.learn.estimators import LogisticRegression, StandardScaler
from featx.learn.features import StoredFeatures
from featx.learn.scores import Interval
from featx.learn.search import GridSearchCV
from featx.learn.selection import Groups, Split, cv_splits
from featx.store import FeatureStore

_FOLDS = 5
_C = (3e-4, 3e-3, 3e-2, 0.3)
_LEAST_PROBABILITY = 1e-12
_CONTRADICTED = np.log(10)  # the predicted label is ten times as probable as the given one
_LEAST_PROBABLE = 2  # labels; of clean ones a single one may seem wrong
_MOST_WRONG = 0.5  # share of the labels
_DEVIANCE = 1.92  # half the 95 % point of chi-square with one degree of freedom


@dataclass(frozen=True, eq=False)
class LabelErrors:
    """How probable it is that labels are wrong.

    Attributes
    ----------
    rows : (m,) int64
        The store's rows that were judged, the most suspicious label first.
    probability : (m,) float64
        Of each of these labels, the probability that it is wrong.
    suggested : (m,) class names
        The most probable label of each.
    log_probabilities : (m, k) float64
        Pooled, out of fold: of each class, in the order of `classes`.
    classes : (k,) class names
    count : float
        Estimated number of wrong labels.
    interval : Interval
        Its 95 % interval.
    weights : {layer: weight in the pool}
    """

    rows: np.ndarray
    probability: np.ndarray
    suggested: np.ndarray
    log_probabilities: np.ndarray
    classes: np.ndarray
    count: float
    interval: Interval
    weights: dict[str, float]

    @property
    def n_probable(self) -> int:
        """Number of labels that are wrong with a probability above 0.5."""
        return int((self.probability > 0.5).sum())

    @property
    def is_clean(self) -> bool:
        """Whether the interval of the number of wrong labels includes none, and at most one label is probably wrong."""
        return self.interval.low < 1 and self.n_probable < _LEAST_PROBABLE

    @property
    def is_open(self) -> bool:
        """Whether the features predict the labels too poorly to tell how many are wrong: from none to half of them."""
        return self.is_clean and self.interval.high >= _MOST_WRONG * len(self.rows)

    @property
    def n_listed(self) -> int:
        """Number of labels worth a look.

        It is the upper end of the interval; where the interval includes none, the labels that are probably wrong.
        """
        if self.is_clean:
            return 0
        return self.n_probable if self.interval.low < 1 else min(len(self.rows), int(np.ceil(self.interval.high)))


def label_errors(
    store: FeatureStore,
    y: np.ndarray,
    rows: np.ndarray,
    layers: Sequence[str],
    groups: Groups | None = None,
    *,
    random_state: int = 0,
    on_step: Callable[[str], None] = lambda step: None,
) -> LabelErrors:
    """Judge the labels of some images.

    Parameters
    ----------
    store : FeatureStore
    y : (n,) class names of the store's images
    rows : (m,) int64
        Rows to judge, of finite features; every class has five images or more, that may be split.
    layers : sequence of str
    groups : Groups, optional
        Of the store's n images: those of one group are never split between training and test.
    random_state : int
        Seed of the folds.
    on_step : callable
        Called with the name of each step.

    Notes
    -----
    With p_l(y | x) of layer l, the given label y of one of m images is taken to be drawn with probability::

        (1 - r) s(y | x) + r (1 - s(y | x)) / (k - 1),    s(. | x) = softmax(sum_l w_l log p_l(. | x)),  w_l >= 0

    so that a share r of the labels is wrong. w and r maximise the likelihood; r's interval is that of the profile
    likelihood. The probability that a label is wrong is the second term's share. This assumes that wrong labels are as
    likely for images that are easy to classify as for others.
    """
    labels = y[rows]
    classes, codes = np.unique(labels, return_inverse=True)
    splits = cv_splits(labels, None if groups is None else groups.of(rows), _FOLDS, 1, random_state)
    on_step(f"classifying by {len(layers)} layers")
    grid: list[dict[str, Any]]
    grid = [{"storedfeatures__layer": [layer], "logisticregression__C": list(_C)} for layer in layers]
    by_candidate = _out_of_fold(store, rows, labels, classes, grid, splits)
    at = np.arange(len(rows))
    best = [max(_C, key=lambda c: by_candidate[layer, c][at, codes].mean()) for layer in layers]
    first = np.stack([by_candidate[layer, c] for layer, c in zip(layers, best, strict=True)])
    pool = _pool(first, codes)
    kept = pool.scores.max(axis=1) - pool.scores[at, codes] < _CONTRADICTED
    cleaned = [(train[kept[train]], test) for train, test in splits]
    tells = pool.low > 0 or pool.high < _MOST_WRONG
    if tells and not kept.all() and all(len(np.unique(codes[train])) == len(classes) for train, _ in cleaned):
        on_step("classifying again without contradicted labels")
        grid = [
            {"storedfeatures__layer": [layer], "logisticregression__C": [c]}
            for layer, c in zip(layers, best, strict=True)
        ]
        again = _out_of_fold(store, rows, labels, classes, grid, cleaned)
        pool = _pool(np.stack([again[layer, c] for layer, c in zip(layers, best, strict=True)]), codes)
    order = np.argsort(pool.scores[at, codes], kind="stable")
    return LabelErrors(
        rows[order],
        pool.wrong[order],
        classes[pool.scores.argmax(axis=1)][order],
        pool.scores[order],
        classes,
        len(rows) * pool.share,
        Interval(len(rows) * pool.low, len(rows) * pool.high),
        dict(zip(layers, pool.weights.tolist(), strict=True)),
    )


class _Recorder:
    """A scorer that keeps the log-probabilities of the images it scores, and returns the mean of the given labels'."""

    def __init__(self, store: FeatureStore, rows: np.ndarray, classes: np.ndarray) -> None:
        self._store, self._classes, self._n = store, classes, len(rows)
        self._position = np.zeros(len(store), np.int64)
        self._position[rows] = np.arange(len(rows))
        self.kept: dict[tuple[str, float], np.ndarray] = {}

    def __call__(self, pipeline: object, X: np.ndarray, y: np.ndarray) -> float:
        probabilities = pipeline.predict_proba(X)  # type: ignore[attr-defined]
        logs = np.log(np.maximum(probabilities, _LEAST_PROBABILITY))
        features, *_, classifier = (step for _, step in pipeline.steps)  # type: ignore[attr-defined]
        kept = self.kept.setdefault((features.layer, classifier.C), np.empty((self._n, len(self._classes))))
        kept[self._position[self._store.rows(X)]] = logs
        return float(logs[np.arange(len(y)), np.searchsorted(self._classes, y)].mean())


def _out_of_fold(
    store: FeatureStore,
    rows: np.ndarray,
    labels: np.ndarray,
    classes: np.ndarray,
    grid: Sequence[Mapping[str, Sequence[Any]]],
    splits: list[Split],
) -> dict[tuple[str, float], np.ndarray]:
    """{(layer, C): (m, k) log-probabilities of each image by a classifier that has not seen it}, in one search."""
    recorder = _Recorder(store, rows, classes)
    pipeline = make_pipeline(StoredFeatures(store), StandardScaler(), LogisticRegression())
    search = GridSearchCV(pipeline, grid, scoring=recorder, cv=splits, refit=False, n_jobs=1, error_score="raise")
    search.fit(store.X[rows], labels)
    return recorder.kept


@dataclass(frozen=True)
class _Pool:
    """Layers pooled.

    scores : (m, k) log-probabilities
    weights : (layers,)
    wrong : (m,) probability that each label is wrong
    share, low, high : share of wrong labels, and the ends of its interval
    """

    scores: np.ndarray
    weights: np.ndarray
    wrong: np.ndarray
    share: float
    low: float
    high: float


def _pool(logs: np.ndarray, codes: np.ndarray) -> _Pool:
    """Fit weights and the share of wrong labels to (layers, m, k) log-probabilities; see `label_errors`."""
    n_layers, n, k = logs.shape
    at = np.arange(n)

    def pooled(weights: np.ndarray) -> np.ndarray:
        return log_softmax(np.tensordot(weights, logs, 1), axis=1)

    def loss(weights: np.ndarray, share: float) -> tuple[float, np.ndarray, float]:
        """Mean negative log-likelihood, and its derivatives with respect to the weights and the share."""
        scores = pooled(weights)
        probabilities = np.exp(scores)
        given = probabilities[at, codes]
        likelihood = np.maximum((1 - share) * given + share * (1 - given) / (k - 1), 1e-300)
        by_given = -((1 - share) - share / (k - 1)) / likelihood * given / n  # times d log s(y) / dw
        mean_logs = np.einsum("lmk,mk->lm", logs, probabilities)
        by_weights = (logs[:, at, codes] - mean_logs) @ by_given
        by_share = -float((((1 - given) / (k - 1) - given) / likelihood).mean())
        return -float(np.log(likelihood).mean()), by_weights, by_share

    def both(values: np.ndarray) -> tuple[float, np.ndarray]:
        share = float(expit(values[-1]))
        value, by_weights, by_share = loss(values[:-1], share)
        return value, np.append(by_weights, by_share * share * (1 - share))

    start = np.append(np.full(n_layers, 1 / n_layers), -3.0)
    bounds = [(0.0, None)] * n_layers
    fitted = minimize(both, start, jac=True, method="L-BFGS-B", bounds=[*bounds, (-12.0, 0.0)])
    weights, share = fitted.x[:-1], float(expit(fitted.x[-1]))

    def excess(share: float) -> float:
        """By how much the profile likelihood at a share falls below the 95 % limit."""
        fixed = minimize(
            lambda w: loss(w, share)[:2], weights, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 30}
        )
        return n * (fixed.fun - fitted.fun) - _DEVIANCE

    least = 1e-2 / n
    low = 0.0 if share <= least or excess(least) <= 0 else brentq(excess, least, share, xtol=0.1 / n)
    high = _MOST_WRONG if excess(_MOST_WRONG) <= 0 else brentq(excess, max(share, least), _MOST_WRONG, xtol=0.1 / n)
    scores = pooled(weights)
    given = np.exp(scores[at, codes])
    wrong = share * (1 - given) / (k - 1)
    return _Pool(
        scores, weights, wrong / np.maximum(wrong + (1 - share) * given, 1e-300), share, float(low), float(high)
    )
