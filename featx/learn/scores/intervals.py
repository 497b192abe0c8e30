"""Confidence intervals of scores, and which scores are within one standard error of the best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from featx.learn.scores.metrics import Metric

_RESAMPLES = 1000
_ROUNDING = 1e-12  # relative difference between sums of the same scores in another order


class Interval(NamedTuple):
    """A 95 % confidence interval; (nan, nan) if it cannot be estimated."""

    low: float
    high: float


_LEAST_GROUPS = 6  # with fewer, resamples have so few distinct means that the interval is too narrow
UNKNOWN = Interval(float("nan"), float("nan"))


def standard_error(scores: Sequence[float]) -> float:
    """Standard error of the mean of J scores, std / sqrt(J) with J - 1 degrees of freedom; 0 for one score."""
    return float(np.std(scores, ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else 0.0


def within_one_se(means: Sequence[float] | np.ndarray, scores: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """Which candidates are within one standard error of the best: (c,) bool.

    mean >= best mean - standard error of the best candidate's scores. If several candidates are best, the largest of
    their standard errors counts, so that the order of candidates does not matter. (L. Breiman et al., Classification
    and Regression Trees, 1984, section 3.4.3; T. Hastie et al., The Elements of Statistical Learning, section 7.10.)

    Parameters
    ----------
    means : (c,), nan for candidates without a score
    scores : (c, J), one per split
    """
    means = np.asarray(means, float)
    best = np.nanmax(means)
    slack = _ROUNDING * abs(best)
    error = max(standard_error(scores[i]) for i in np.flatnonzero(means >= best - slack).tolist())
    return means >= best - error - slack


def cv_interval(
    scores: Sequence[float], n_train: float, n_test: float, low: float, high: float, n_images: int | None = None
) -> Interval:
    """Interval of a cross-validated mean: the corrected resampled t interval, clipped to [low, high]::

        mean +- t sqrt((1/J + n_test/n_train) s^2),    t of J - 1 degrees of freedom

    Training sets of different splits overlap, so the J scores are not independent and the variance of their mean is
    larger than s^2 / J. (C. Nadeau and Y. Bengio, Inference for the generalization error, Machine Learning 52, 2003,
    section 4.1; for repeated cross-validation R. Bouckaert and E. Frank, PAKDD 2004.)

    A few scores may be equal by chance. The interval of an accuracy therefore includes Wilson's interval over the
    images; other scores that are all equal have no interval.

    Parameters
    ----------
    scores : one per split
    n_train, n_test : mean number of images in a split
    low, high : bounds of the score
    n_images : for an accuracy, the number of images that were held out in some split
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
    """`cv_interval` of the scores of these splits, each (training positions, test positions)."""
    n_train, n_test = (float(np.mean([len(side) for side in sides])) for sides in zip(*splits, strict=True))
    tested = len(np.unique(np.concatenate([test for _, test in splits])))
    n_images = tested if metric.name == "accuracy" else None
    return cv_interval(scores, n_train, n_test, metric.low, metric.high, n_images)


def mean_interval(scores: Sequence[float], low: float, high: float) -> Interval:
    """Interval of the mean of independent scores: Student's t, clipped to [low, high]."""
    count = len(scores)
    if count < 2:
        return UNKNOWN
    return _around(float(np.mean(scores)), float(np.var(scores, ddof=1)) / count, count, low, high)


def _around(mean: float, variance: float, count: int, low: float, high: float) -> Interval:
    half = float(stats.t.ppf(0.975, count - 1)) * variance**0.5
    return Interval(float(max(low, mean - half)), float(min(high, mean + half)))


def wilson(share: float, n: int) -> Interval:
    """Wilson's interval of a share of n independent images, for example an accuracy on held-out images::

        (p + z^2/2n +- z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n),    z = 1.96

    Unlike p +- z sqrt(p (1 - p) / n) its width is not 0 at p = 1. (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927.)
    """
    z = float(stats.norm.ppf(0.975))
    middle = share + z**2 / (2 * n)
    half = z * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return Interval(max(0.0, (middle - half) / (1 + z**2 / n)), min(1.0, (middle + half) / (1 + z**2 / n)))


def held_out_interval(
    metric: Metric,
    y: np.ndarray,
    outputs: np.ndarray,
    groups: np.ndarray | None = None,
    classes: np.ndarray | None = None,
) -> Interval:
    """Interval of a score on held-out images: Wilson's for an accuracy without groups, otherwise by bootstrap.

    Images of one group are alike, so the percentile bootstrap draws whole groups. It has 1,000 resamples from a fixed
    seed. (B. Efron and R. Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13.) An accuracy over
    groups of one image each has Wilson's interval too; so does one of 0 or 1, whose resamples would all be equal, with
    n the number of groups.

    Parameters
    ----------
    metric : Metric
    y : (m,)
    outputs, classes : as in `Metric.scores`
    groups : (m,) numbers of groups, optional
    """
    return _over_images(metric, y, [outputs], groups, classes)


def paired_interval(
    metric: Metric, y: np.ndarray, first: np.ndarray, second: np.ndarray, groups: np.ndarray | None = None
) -> Interval:
    """Interval of the difference of two models' scores on the same held-out images, second - first.

    For accuracies without groups, where of m images b are predicted right only by the first model and c only by the
    second::

        (c - b) / (m + 2) +- z sqrt(b + c + 1 - (c - b)^2 / (m + 2)) / (m + 2),    z = 1.96

    (A. Agresti and Y. Min, Simple improved confidence intervals for comparing matched proportions, Statistics in
    Medicine 24, 2005: half an image is added to each of the four cells.) Otherwise the bootstrap of
    `held_out_interval`, the same resamples for both models.

    Parameters
    ----------
    metric : Metric
    y : (m,)
    first, second : (m,) predictions
    groups : (m,) numbers of groups, optional
    """
    if metric.name == "accuracy" and groups is None:
        gained = float(((second == y) & (first != y)).sum())
        lost = float(((second != y) & (first == y)).sum())
        m = len(y) + 2
        half = float(stats.norm.ppf(0.975)) * (gained + lost + 1 - (gained - lost) ** 2 / m) ** 0.5 / m
        return Interval((gained - lost) / m - half, (gained - lost) / m + half)
    samples = _resamples(len(y), groups)
    if samples is None:
        return UNKNOWN
    values = np.subtract(metric.scores(y, second, samples), metric.scores(y, first, samples))
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))


def drawn_interval(
    metric: Metric, y: np.ndarray, predictions: Sequence[np.ndarray], groups: np.ndarray | None = None
) -> Interval:
    """Interval of the mean score of R models, trained on random subsamples, on the same held-out images::

        low = mean - sqrt((mean - l)^2 + (t s)^2 / R),    high = mean + sqrt((u - mean)^2 + (t s)^2 / R),

    clipped to the bounds of the score. (l, u) is the interval over the held-out images (`held_out_interval`, of the
    mean over the models), s the standard deviation of the R scores, and t Student's with R - 1 degrees of freedom; if
    R = 1 the interval is (l, u). So it covers both the choice of training images and that of test images, two nearly
    independent errors whose half-widths add as squares; it is wider than necessary if the models are wrong on different
    images. (Method of variance estimates recovery: G. Y. Zou and A. Donner, Construction of confidence limits about
    effect measures: a general approach, Statistics in Medicine 27, 2008.)

    Parameters
    ----------
    metric : Metric
    y : (m,)
    predictions : R arrays of shape (m,)
    groups : (m,) numbers of groups, optional
    """
    scores = [metric.score(y, predicted) for predicted in predictions]
    ends = np.clip(_over_draws(scores, _over_images(metric, y, predictions, groups)), metric.low, metric.high)
    return Interval(*ends.tolist())


def paired_drawn_interval(
    metric: Metric,
    y: np.ndarray,
    first: np.ndarray,
    predictions: Sequence[np.ndarray],
    groups: np.ndarray | None = None,
) -> Interval:
    """Interval of the difference of the mean score of R models to that of one model on the same held-out images.

    `drawn_interval` of the difference: (l, u) is from the bootstrap of `paired_interval`; if R = 1 it is that interval.

    Parameters
    ----------
    metric, y, predictions, groups : as in `drawn_interval`
    first : (m,) predictions of the one model
    """
    if len(predictions) == 1:
        return paired_interval(metric, y, first, predictions[0], groups)
    samples = _resamples(len(y), groups)
    if samples is None:
        return UNKNOWN
    score, of_first = metric.score(y, first), metric.scores(y, first, samples)
    values = np.mean([metric.scores(y, one, samples) for one in predictions], axis=0) - of_first
    low, high = np.percentile(values, [2.5, 97.5])
    differences = [metric.score(y, predicted) - score for predicted in predictions]
    return _over_draws(differences, Interval(float(low), float(high)))


def _over_draws(scores: Sequence[float], over_images: Interval) -> Interval:
    """The interval of the mean of R scores, one over the images with the choice of training images added."""
    if len(scores) == 1 or np.isnan(over_images.low):
        return over_images
    mean = float(np.mean(scores))
    half = mean_interval(scores, -np.inf, np.inf).high - mean
    below, above = np.hypot(max(0.0, mean - over_images.low), half), np.hypot(max(0.0, over_images.high - mean), half)
    return Interval(float(mean - below), float(mean + above))


def _over_images(
    metric: Metric,
    y: np.ndarray,
    outputs: Sequence[np.ndarray],
    groups: np.ndarray | None,
    classes: np.ndarray | None = None,
) -> Interval:
    """Interval over the images, of the mean score of several models."""
    n = len(y) if groups is None else len(np.unique(groups))
    if metric.name == "accuracy":
        share = min(1.0, float(np.mean([metric.score(y, one) for one in outputs])))
        if n == len(y) or n >= _LEAST_GROUPS and share in (0.0, 1.0):
            return wilson(share, n)
    samples = _resamples(len(y), groups)
    if samples is None:
        return UNKNOWN
    values = np.mean([metric.scores(y, one, samples, classes) for one in outputs], axis=0)
    values = values[np.isfinite(values)]  # a resample may lack a class, and then has no ROC
    if not len(values):
        return UNKNOWN
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))


def _resamples(m: int, groups: np.ndarray | None) -> list[np.ndarray] | None:
    """Positions of the bootstrap's samples of m images, by whole groups; None if there are too few to draw from."""
    members = np.arange(m)[:, None] if groups is None else _members(groups)
    if len(members) < (2 if groups is None else _LEAST_GROUPS):
        return None
    generator = np.random.default_rng(0)
    samples = []
    for _ in range(_RESAMPLES):
        drawn = generator.integers(len(members), size=len(members))
        samples.append(drawn if groups is None else np.concatenate([members[i] for i in drawn]))
    return samples


def _members(groups: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
