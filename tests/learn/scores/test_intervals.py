"""Intervals hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from featx.learn.scores.intervals import (
    cv_interval,
    drawn_interval,
    held_out_interval,
    mean_interval,
    paired_drawn_interval,
    paired_interval,
    splits_interval,
    standard_error,
    wilson,
    within_one_se,
)
from featx.learn.scores.metrics import METRICS

ACCURACY = METRICS["accuracy"]


def test_the_corrected_interval_is_nadeau_and_bengios():
    scores = [0.7, 0.75, 0.8, 0.72, 0.78]
    low, high = cv_interval(scores, 80, 20, 0, 1)
    half = stats.t.ppf(0.975, 4) * np.sqrt(np.var(scores, ddof=1) * (1 / 5 + 20 / 80))
    assert (low, high) == pytest.approx((np.mean(scores) - half, np.mean(scores) + half))
    plain = mean_interval(scores, 0, 1)
    assert plain == pytest.approx(stats.t.interval(0.95, 4, np.mean(scores), stats.sem(scores)))
    assert plain.low > low and plain.high < high


def test_intervals_are_clipped_to_what_a_score_can_be_and_one_score_has_none():
    assert cv_interval([0.99, 1.0, 0.95], 2, 1, 0, 1).high == 1
    assert cv_interval([0.1, -0.9, 0.4], 2, 1, -np.inf, 1).low < -1
    assert np.isnan(cv_interval([0.9], 2, 1, 0, 1)).all() and np.isnan(mean_interval([0.9], 0, 1)).all()


def test_equal_accuracies_have_wilsons_width_and_other_equal_scores_no_interval():
    assert cv_interval([1.0] * 5, 80, 20, 0, 1, n_images=100) == pytest.approx(wilson(1.0, 100))
    assert cv_interval([0.1 + 0.2] * 5, 80, 20, 0, 1, n_images=100) == pytest.approx(wilson(0.3, 100))
    assert np.isnan(cv_interval([1.0] * 5, 80, 20, 0, 1)).all()
    assert np.isnan(cv_interval([0.3, 0.1 + 0.2], 80, 20, 0, 1)).all()  # equal, but for rounding
    assert np.isnan(cv_interval([1.0], 80, 20, 0, 1, n_images=20)).all()


@pytest.mark.parametrize("largest", [0.62, 0.9], ids=["alike", "spread"])
def test_an_accuracys_interval_holds_both_that_of_the_splits_and_that_of_the_images(largest):
    for seed in range(3):
        scores = np.random.default_rng(seed).uniform(0.6, largest, 5)
        both = cv_interval(scores, 80, 20, 0, 1, n_images=100)
        splits, images = cv_interval(scores, 80, 20, 0, 1), wilson(scores.mean(), 100)
        assert both == (min(splits.low, images.low), max(splits.high, images.high))


def test_intervals_of_accuracies_near_one_hold_the_truth():
    """50 images in 5 folds, of which 98 % are told right: often all are."""
    rng = np.random.default_rng(0)
    held, over_splits_alone = 0, 0
    for _ in range(400):
        scores = (rng.random((5, 10)) < 0.98).mean(axis=1)
        low, high = cv_interval(scores, 40, 10, 0, 1, n_images=50)
        held += low <= 0.98 <= high
        low, high = cv_interval(scores, 40, 10, 0, 1)
        over_splits_alone += low <= 0.98 <= high
    assert held >= 0.93 * 400 and over_splits_alone < 0.8 * 400


def test_images_held_out_again_by_a_repeat_count_once():
    folds = [(np.delete(np.arange(60), test), test) for test in np.split(np.arange(60), 3)]
    once, twice = (splits_interval(ACCURACY, [1.0] * 3 * n, folds * n) for n in (1, 2))
    assert once == twice == pytest.approx(wilson(1.0, 60))
    assert splits_interval(METRICS["f1_macro"], [0.5, 0.6, 0.7], folds) == cv_interval([0.5, 0.6, 0.7], 40, 20, 0, 1)


@pytest.mark.parametrize("share, n", [(0.0, 10), (0.5, 40), (0.83, 400), (1.0, 6)])
def test_wilsons_interval_is_scipys(share, n):
    expected = stats.binomtest(round(share * n), n).proportion_ci(method="wilson")
    assert wilson(share, n) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("n, most_wrong", [(40, 6), pytest.param(100, 12, marks=pytest.mark.slow)])
def test_most_intervals_of_held_out_scores_hold_the_truth(n, most_wrong):
    """Of 95 % intervals about 95 % do; more than so many wrong would be a chance of 1 in 300, or of 1 in 500."""
    rng = np.random.default_rng(0)
    wrong = {"accuracy": 0, "balanced_accuracy": 0, "grouped": 0}
    for _ in range(n):
        y = rng.integers(2, size=150)
        predicted = np.where(rng.random(150) < 0.8, y, 1 - y)
        for name in ("accuracy", "balanced_accuracy"):
            low, high = held_out_interval(METRICS[name], y, predicted)
            wrong[name] += not low <= 0.8 <= high
        groups = np.arange(150) // 3  # three pictures of the same thing: right or wrong together
        low, high = held_out_interval(METRICS["accuracy"], y, np.where(rng.random(50)[groups] < 0.8, y, 1 - y), groups)
        wrong["grouped"] += not low <= 0.8 <= high
    assert max(wrong.values()) <= most_wrong, wrong


def test_an_interval_over_few_groups_is_not_known():
    y = np.arange(24) % 2
    right = np.where(np.arange(24) == 5, 1 - y, y)
    assert np.isnan(held_out_interval(ACCURACY, y, right, np.arange(24) // 12)).all()
    low, high = held_out_interval(ACCURACY, y, right, np.arange(24) // 4)
    assert low < 23 / 24 <= high


def test_an_accuracy_of_1_over_groups_has_the_width_of_their_number():
    y = np.arange(24) % 2
    assert held_out_interval(ACCURACY, y, y, np.arange(24) // 3) == wilson(1.0, 8)
    assert held_out_interval(ACCURACY, y, 1 - y, np.arange(24) // 3) == wilson(0.0, 8)
    assert np.isnan(held_out_interval(ACCURACY, y, y, np.arange(24) // 12)).all()


def test_groups_of_one_image_are_as_none():
    y = np.arange(24) % 2
    right = np.where(np.arange(24) == 5, 1 - y, y)
    assert held_out_interval(ACCURACY, y, right, np.arange(24)[::-1]) == held_out_interval(ACCURACY, y, right)


def test_images_that_go_together_say_less():
    y = np.tile(["a", "b"], 100)
    predicted = np.where(np.arange(200) < 150, y, "c")
    alone = held_out_interval(METRICS["accuracy"], y, predicted)
    grouped = held_out_interval(METRICS["accuracy"], y, predicted, np.arange(200) // 10)
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)
    assert held_out_interval(METRICS["accuracy"], y, predicted, np.arange(200) // 10) == grouped


@pytest.mark.parametrize("name", METRICS)
def test_every_score_has_an_interval_around_it_and_is_within_its_bounds(name):
    rng = np.random.default_rng(1)
    metric = METRICS[name]
    y = rng.normal(size=80) if metric.is_numeric else np.array(["x", "y", "z"])[rng.integers(3, size=80)]
    predicted = y + rng.normal(size=80) / 2 if metric.is_numeric else np.where(rng.random(80) < 0.7, y, "y")
    if metric.is_ranked:
        predicted = (y[:, None] == np.unique(y)) + rng.normal(size=(80, 3))
    low, high = held_out_interval(metric, y, predicted)
    assert metric.low <= low < metric.score(y, predicted) < high <= metric.high


# --- over draws of training images ---


def world(rng: np.random.Generator, n: int, draws: int, spread: float, alike: bool) -> tuple[float, np.ndarray]:
    """(the truth, (draws, n) right or wrong) of models that differ in skill on images that differ in difficulty.

    alike : whether equally good models are right on the same images
    """
    ease, skill = rng.normal(1.2, 1, n), rng.normal(0, spread, draws)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    truth = weights @ (1 / (1 + np.exp(-1.2 - np.hypot(1, spread) * nodes))) / weights.sum()
    luck = rng.random(n) if alike else rng.random((draws, n))
    return truth, luck < 1 / (1 + np.exp(-ease - skill[:, None]))


@pytest.mark.parametrize(
    "n, draws, spread, alike",
    [(60, 5, 0.1, True), (60, 5, 0.6, True), (400, 3, 0.6, True), (100, 10, 0.0, True), (60, 5, 0.6, False)],
)
def test_intervals_over_draws_hold_the_truth_of_fresh_images_and_fresh_draws(n, draws, spread, alike):
    rng = np.random.default_rng(0)
    held, over_draws_alone = 0, 0
    for _ in range(400):
        truth, right = world(rng, n, draws, spread, alike)
        low, high = drawn_interval(ACCURACY, np.ones(n, int), list(right.astype(int)))
        held += low <= truth <= high
        alone = mean_interval(right.mean(axis=1), 0, 1)
        over_draws_alone += alone.low <= truth <= alone.high
    assert held >= 0.93 * 400
    assert held > over_draws_alone
    if alike and spread < 0.5:
        assert over_draws_alone < 0.6 * 400


def test_of_one_draw_it_is_the_images_and_of_draws_that_agree_too():
    y = np.arange(50) % 2
    predicted = np.where(np.arange(50) < 40, y, 1 - y)
    assert drawn_interval(ACCURACY, y, [predicted]) == wilson(0.8, 50)
    assert drawn_interval(ACCURACY, y, [predicted] * 4) == pytest.approx(wilson(0.8, 50))


@pytest.mark.parametrize("name", ["accuracy", "r2"])
def test_both_errors_add_up_as_squares_and_the_order_of_draws_does_not_matter(name):
    rng, metric = np.random.default_rng(3), METRICS[name]
    y = rng.normal(size=60) if metric.is_numeric else rng.integers(3, size=60)
    noisy = [y + rng.normal(size=60) * s if metric.is_numeric else np.where(rng.random(60) < s, y, 0) for s in (
        0.3, 0.5, 0.7)]  # fmt: skip
    scores = [metric.score(y, predicted) for predicted in noisy]
    low, high = drawn_interval(metric, y, noisy)
    half = stats.t.ppf(0.975, 2) * stats.sem(scores)
    assert low < np.mean(scores) - half < np.mean(scores) < high and high <= 1
    if name == "accuracy":
        images = wilson(np.mean(scores), 60)
        assert low == pytest.approx(max(0, np.mean(scores) - np.hypot(np.mean(scores) - images.low, half)))
        assert high == pytest.approx(min(1, np.mean(scores) + np.hypot(images.high - np.mean(scores), half)))
    assert drawn_interval(metric, y, noisy[::-1]) == pytest.approx((low, high))


def test_images_that_go_together_say_less_over_draws_too():
    y = np.tile([0, 1], 100)
    draws = [np.where(np.arange(200) < m, y, 2) for m in (140, 150, 160)]
    alone, grouped = (drawn_interval(ACCURACY, y, draws, groups) for groups in (None, np.arange(200) // 10))
    assert grouped.high - grouped.low > 1.5 * (alone.high - alone.low)


@pytest.mark.parametrize("name", ["accuracy", "f1_macro"])
def test_a_difference_over_draws_is_paired_and_turns_around(name):
    rng, metric = np.random.default_rng(5), METRICS[name]
    y = rng.integers(3, size=120)
    first = np.where(rng.random(120) < 0.6, y, 0)
    better = [np.where(rng.random(120) < share, y, first) for share in (0.3, 0.4, 0.5)]
    low, high = paired_drawn_interval(metric, y, first, better)
    difference = np.mean([metric.score(y, one) for one in better]) - metric.score(y, first)
    assert 0 < low < difference < high
    apart = [drawn_interval(metric, y, models) for models in ([first], better)]
    assert high - low < sum(interval.high - interval.low for interval in apart)
    assert paired_drawn_interval(metric, y, first, [first] * 3) == pytest.approx((0, 0), abs=1e-12)
    assert paired_drawn_interval(metric, y, first, better[:1]) == paired_interval(metric, y, first, better[0])
    groups = np.arange(120) // 40
    assert np.isnan(paired_drawn_interval(metric, y, first, better, groups).low)


# --- one standard error ---


def test_the_standard_error_is_of_the_mean():
    scores = [0.8, 0.9, 0.85]
    assert standard_error(scores) == pytest.approx(stats.sem(scores)) and standard_error([0.5]) == 0


def test_the_order_of_candidates_does_not_decide_who_is_near():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        scores = rng.integers(10, 14, size=(30, 4)) / 20  # many equal means of unequal spread
        means = scores.mean(axis=1)
        near = within_one_se(means, scores)
        order = rng.permutation(30)
        assert (within_one_se(means[order], scores[order]) == near[order]).all() and near[means == means.max()].all()
        lowest = max(means.max() - stats.sem(row) for row in scores[means == means.max()])
        assert near[means >= lowest].all() and not near[means < means.max() - 0.2].any()


def test_rounding_does_not_part_equal_means():
    scores = [[0.85, 0.95, 0.9], [0.9, 0.9, 0.9 + 1e-16], [0.9, 0.9, 0.89]]
    assert within_one_se([0.9, 0.9 - 1e-16, np.nan], scores).tolist() == [True, True, False]
    assert within_one_se([0.9 - 1e-16, 0.9, 0.8], [scores[1], scores[1], scores[2]]).tolist() == [True, True, False]
