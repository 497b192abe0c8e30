"""Scores in; their uncertainty, and which of them it cannot tell from the best, out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from featx.learn.scores.metrics import Metric

_RESAMPLES = 1000
_ROUNDING = 1e-12  # relative: what adding up the same scores in another order may change


class Interval(NamedTuple):
    """A 95 % confidence interval; nan, nan where the scores do not tell."""

    low: float
    high: float


_LEAST_GROUPS = 6  # of fewer the resamples have so few different means that their interval is too narrow
UNKNOWN = Interval(float("nan"), float("nan"))


def standard_error(scores: Sequence[float]) -> float:
    """Of the mean of J scores, std / sqrt(J) with std over J - 1; 0 for one score."""
    return float(np.std(scores, ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else 0.0


def within_one_se(means: Sequence[float] | np.ndarray, scores: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """Which candidates are within one standard error of the best: (c,) bool.

    Their mean is at least the best mean less the standard error of the best's scores; of equal best ones, less the
    largest of theirs, so that the order of candidates decides nothing. (L. Breiman et al., Classification and
    Regression Trees, 1984, section 3.4.3; T. Hastie et al., The Elements of Statistical Learning, section 7.10.)

    Parameters
    ----------
    means : (c,), nan for what has no score
    scores : (c, J), one a split
    """
    means = np.asarray(means, float)
    best = np.nanmax(means)
    slack = _ROUNDING * abs(best)
    error = max(standard_error(scores[i]) for i in np.flatnonzero(means >= best - slack).tolist())
    return means >= best - error - slack


def cv_interval(
    scores: Sequence[float], n_train: float, n_test: float, low: float, high: float, n_images: int | None = None
) -> Interval:
    """Of a cross-validated mean: the corrected resampled t interval, clipped to [low, high].

    Training sets of different splits overlap, so J scores are less than J measurements; the variance of their mean is
    not s^2 / J but about (1/J + n_test/n_train) s^2, with J - 1 degrees of freedom. (C. Nadeau and Y. Bengio, Inference
    for the generalization error, Machine Learning 52, 2003, section 4.1; for repeated cross-validation R. Bouckaert and
    E. Frank, PAKDD 2004.)

    A few scores may be alike by chance. An accuracy's interval holds Wilson's of the images too; of other scores that
    are all equal there is none, as they say nothing of the spread.

    Parameters
    ----------
    scores : one a split
    n_train, n_test : images of a split, on average
    low, high : bounds of the score
    n_images : of an accuracy, the images that were held out in turn, each counted once, whatever the repeats
    """
    count, mean = len(scores), float(np.mean(scores))
    if count < 2 or n_images is None and np.ptp(scores) <= _ROUNDING * abs(mean):
        return UNKNOWN
    variance = float(np.var(scores, ddof=1)) * (1 / count + n_test / n_train)
    over_splits = _around(mean, variance, count, low, high)
    if n_images is None:
        return over_splits
    of_images = wilson(min(mean, 1.0), n_images)  # the mean of ones may be rounded up
    return Interval(min(over_splits.low, of_images.low), max(over_splits.high, of_images.high))


def splits_interval(
    metric: Metric, scores: Sequence[float], splits: Sequence[tuple[np.ndarray, np.ndarray]]
) -> Interval:
    """`cv_interval` of the scores of these splits, (positions to train on, positions to test on) each."""
    n_train, n_test = (float(np.mean([len(side) for side in sides])) for sides in zip(*splits, strict=True))
    tested = len(np.unique(np.concatenate([test for _, test in splits])))
    n_images = tested if metric.name == "accuracy" else None
    return cv_interval(scores, n_train, n_test, metric.low, metric.high, n_images)


def mean_interval(scores: Sequence[float], low: float, high: float) -> Interval:
    """Of the mean of independent draws: Student's t, clipped to [low, high]."""
    count = len(scores)
    if count < 2:
        return UNKNOWN
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
    metric: Metric,
    y: np.ndarray,
    said: np.ndarray,
    groups: np.ndarray | None = None,
    classes: np.ndarray | None = None,
) -> Interval:
    """Of a score on images held out: Wilson's for an accuracy of ungrouped images, else the percentile bootstrap.

    Images of a group say much the same, so whole groups are drawn. (B. Efron and R. Tibshirani, An Introduction to the
    Bootstrap, 1993, chapters 8 and 13.) 1,000 resamples from a fixed seed.

    Parameters
    ----------
    metric : Metric
    y : (m,)
    said, classes : as of `Metric.scores`
    groups : (m,) numbers of groups, optional
    """
    return _over_images(metric, y, [said], groups, classes)


def drawn_interval(
    metric: Metric, y: np.ndarray, predictions: Sequence[np.ndarray], groups: np.ndarray | None = None
) -> Interval:
    """Of the mean score of R models, each of another draw of training images, on the same images held out.

    It covers both: which images were drawn to learn from, and which are tested. With (l, u) the interval over the
    images (`held_out_interval`, of the mean over the models) and s the standard deviation of the R scores,

        low = mean - sqrt((mean - l)^2 + (t s)^2 / R),    high = mean + sqrt((u - mean)^2 + (t s)^2 / R),

    t being Student's of R - 1 degrees of freedom, clipped to the bounds of the score; (l, u) where R = 1. The two
    errors add up and are nearly independent, so their half-widths add as squares; where the models are not wrong on
    the same images, this is wider than it need be. (Method of variance estimates
    recovery: G. Y. Zou and A. Donner, Construction of confidence limits about effect measures: a general approach,
    Statistics in Medicine 27, 2008.)

    Parameters
    ----------
    metric : Metric
    y : (m,)
    predictions : R times (m,)
    groups : (m,) numbers of groups, optional
    """
    low, high = _over_images(metric, y, predictions, groups)
    if len(predictions) == 1 or np.isnan(low):
        return Interval(low, high)
    scores = [metric.score(y, predicted) for predicted in predictions]
    mean = float(np.mean(scores))
    half = mean_interval(scores, -np.inf, np.inf).high - mean
    below, above = np.hypot(max(0.0, mean - low), half), np.hypot(max(0.0, high - mean), half)
    return Interval(max(metric.low, float(mean - below)), min(metric.high, float(mean + above)))


def _over_images(
    metric: Metric,
    y: np.ndarray,
    said: Sequence[np.ndarray],
    groups: np.ndarray | None,
    classes: np.ndarray | None = None,
) -> Interval:
    """Of the mean over what several models said of the same images."""
    if metric.name == "accuracy" and groups is None:
        return wilson(min(1.0, float(np.mean([metric.score(y, one) for one in said]))), len(y))
    members = np.arange(len(y))[:, None] if groups is None else _members(groups)
    if len(members) < (2 if groups is None else _LEAST_GROUPS):
        return UNKNOWN
    generator = np.random.default_rng(0)
    samples = []
    for _ in range(_RESAMPLES):
        drawn = generator.integers(len(members), size=len(members))
        samples.append(drawn if groups is None else np.concatenate([members[i] for i in drawn]))
    values = np.mean([metric.scores(y, one, samples, classes) for one in said], axis=0)
    values = values[np.isfinite(values)]  # a resample without a class has no ROC
    if not len(values):
        return UNKNOWN
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))


def _members(groups: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
