"""Scores in; their uncertainty, and which candidates it cannot tell apart, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from featx.errors import FeatxError
from featx.learn.metrics import Metric

_RESAMPLES = 1000


class Interval(NamedTuple):
    """A 95 % confidence interval; nan, nan where one score is all there is."""

    low: float
    high: float


def standard_error(scores: Sequence[float]) -> float:
    """Of the mean of J scores, std / sqrt(J) with std over J - 1; 0 for one score."""
    return float(np.std(scores, ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else 0.0


def cv_interval(scores: Sequence[float], n_train: float, n_test: float, low: float, high: float) -> Interval:
    """Of a cross-validated mean: the corrected resampled t interval, clipped to [low, high].

    Training sets of different splits overlap, so J scores are less than J measurements; the variance of their mean is
    not s^2 / J but about (1/J + n_test/n_train) s^2, with J - 1 degrees of freedom. (C. Nadeau and Y. Bengio, Inference
    for the generalization error, Machine Learning 52, 2003, section 4.1; for repeated cross-validation R. Bouckaert and
    E. Frank, PAKDD 2004.)

    Parameters
    ----------
    scores : one a split
    n_train, n_test : images of a split, on average
    low, high : bounds of the score
    """
    count = len(scores)
    if count < 2:
        return Interval(float("nan"), float("nan"))
    variance = float(np.var(scores, ddof=1)) * (1 / count + n_test / n_train)
    return _around(float(np.mean(scores)), variance, count, low, high)


def mean_interval(scores: Sequence[float], low: float, high: float) -> Interval:
    """Of the mean of independent draws: Student's t, clipped to [low, high]."""
    count = len(scores)
    if count < 2:
        return Interval(float("nan"), float("nan"))
    return _around(float(np.mean(scores)), float(np.var(scores, ddof=1)) / count, count, low, high)


def _around(mean: float, variance: float, count: int, low: float, high: float) -> Interval:
    half = float(stats.t.ppf(0.975, count - 1)) * variance**0.5
    return Interval(float(max(low, mean - half)), float(min(high, mean + half)))


def wilson(share: float, n: int) -> Interval:
    """Of a share among n independent images, for instance an accuracy on images held out.

    (p + z^2/2n +- z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.96. (E. B. Wilson, J. Am. Stat. Assoc. 22,
    1927.) Unlike p +- z sqrt(p (1 - p) / n) it has a width at p = 1.
    """
    z = float(stats.norm.ppf(0.975))
    middle = share + z**2 / (2 * n)
    half = z * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return Interval(max(0.0, (middle - half) / (1 + z**2 / n)), min(1.0, (middle + half) / (1 + z**2 / n)))


def held_out_interval(
    metric: Metric, y: np.ndarray, predicted: np.ndarray, groups: np.ndarray | None = None
) -> Interval:
    """Of a score on images held out: Wilson's for an accuracy of ungrouped images, else the percentile bootstrap.

    Images of a group say much the same, so whole groups are drawn. (B. Efron and R. Tibshirani, An Introduction to the
    Bootstrap, 1993, chapters 8 and 13.) 1,000 resamples from a fixed seed.

    Parameters
    ----------
    metric : Metric
    y, predicted : (m,)
    groups : (m,) numbers of groups, optional
    """
    if metric.name == "accuracy" and groups is None:
        return wilson(metric.score(y, predicted), len(y))
    members = np.arange(len(y))[:, None] if groups is None else _members(groups)
    if len(members) < 2:
        return Interval(float("nan"), float("nan"))
    generator = np.random.default_rng(0)
    samples = []
    for _ in range(_RESAMPLES):
        drawn = generator.integers(len(members), size=len(members))
        samples.append(drawn if groups is None else np.concatenate([members[i] for i in drawn]))
    low, high = np.percentile(metric.scores(y, predicted, samples), [2.5, 97.5])
    return Interval(float(low), float(high))


def _members(groups: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)


_STRONGER = {"C": 1, "alpha": -1, "n_neighbors": -1, "n_components": 1}  # less of it (1) or more (-1) is simpler


def one_se(cv_results: Mapping[str, Any]) -> int:
    """The cheapest candidate within one standard error of the best; a callable for GridSearchCV's `refit`.

    Within one standard error: its mean is at least the best mean less std / sqrt(J) of the best's J scores, std over
    J - 1. (L. Breiman et al., Classification and Regression Trees, 1984, section 3.4.3; T. Hastie et al., The Elements
    of Statistical Learning, section 7.10.)

    Cheapest: candidates that differ in nothing but C, alpha, n_neighbors or n_components are a family; the family whose
    mean fit and score time is least; in it the strongest penalty: the smallest n_components, the smallest C, the
    largest alpha, the most neighbours; at last the first in the grid. The same `cv_results`, the same candidate.

    Parameters
    ----------
    cv_results : mapping, GridSearchCV's `cv_results_` of one metric

    Returns
    -------
    index of the candidate

    Raises
    ------
    FeatxError
        There are several metrics, or no candidate has a score.

    Examples
    --------
    >>> GridSearchCV(pipe, grid, refit=one_se).fit(store.X, store.y)    # doctest: +SKIP
    """
    if "mean_test_score" not in cv_results:
        raise FeatxError("one_se compares one score, 'mean_test_score'; this search has several: give scoring one name")
    means = np.asarray(cv_results["mean_test_score"], float)
    if not np.isfinite(means).any():
        raise FeatxError("one_se needs a candidate that has a score, and every fit failed; see error_score='raise'")
    best = int(np.nanargmax(means))
    splits = sum(key.startswith("split") and key.endswith("_test_score") for key in cv_results)
    lowest = means[best] - standard_error([cv_results[f"split{i}_test_score"][best] for i in range(splits)])
    seconds = np.asarray(cv_results["mean_fit_time"], float) + np.asarray(cv_results["mean_score_time"], float)
    families: dict[str, list[float]] = {}
    names = []
    for params, time in zip(cv_results["params"], seconds, strict=True):
        names.append(repr(sorted((key, repr(value)) for key, value in params.items() if _last(key) not in _STRONGER)))
        families.setdefault(names[-1], []).append(time)

    def cost(i: int) -> tuple[Any, ...]:
        params = cv_results["params"][i]
        strength = {_last(key): _STRONGER[_last(key)] * value for key, value in params.items() if _is_strength(key)}
        ordered = tuple(strength.get(name, 0) for name in ("n_components", "C", "alpha", "n_neighbors"))
        return float(np.mean(families[names[i]])), names[i], ordered, i

    return min((i for i in range(len(means)) if means[i] >= lowest), key=cost)


def _last(key: str) -> str:
    return key.rsplit("__", 1)[-1]


def _is_strength(key: str) -> bool:
    return _last(key) in _STRONGER
