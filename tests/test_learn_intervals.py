"""Intervals hold what they promise, and one standard error takes what is cheaper and as good."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn.base import BaseEstimator
from sklearn.datasets import load_iris
from sklearn.metrics import get_scorer
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from featx.errors import FeatxError
from featx.learn import GridSearchCV, LogisticRegression, one_se
from featx.learn.intervals import cv_interval, held_out_interval, mean_interval, standard_error, wilson
from featx.learn.metrics import METRICS


class Says(BaseEstimator):
    """Predicts what it was told to."""

    def __init__(self, predicted):
        self.predicted = predicted

    def predict(self, X):
        return self.predicted


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


@pytest.mark.parametrize("share, n", [(0.0, 10), (0.5, 40), (0.83, 400), (1.0, 6)])
def test_wilsons_interval_is_scipys(share, n):
    expected = stats.binomtest(round(share * n), n).proportion_ci(method="wilson")
    assert wilson(share, n) == pytest.approx((expected.low, expected.high))


def test_most_intervals_of_held_out_scores_hold_the_truth():
    """Of 95 % intervals about 95 % do; of 100, 87 or fewer would be a chance of 1 in 500."""
    rng = np.random.default_rng(0)
    wrong = {"accuracy": 0, "balanced_accuracy": 0, "grouped": 0}
    for _ in range(100):
        y = rng.integers(2, size=150)
        predicted = np.where(rng.random(150) < 0.8, y, 1 - y)
        for name in ("accuracy", "balanced_accuracy"):
            low, high = held_out_interval(METRICS[name], y, predicted)
            wrong[name] += not low <= 0.8 <= high
        groups = np.arange(150) // 3  # three pictures of the same thing: right or wrong together
        low, high = held_out_interval(METRICS["accuracy"], y, np.where(rng.random(50)[groups] < 0.8, y, 1 - y), groups)
        wrong["grouped"] += not low <= 0.8 <= high
    assert max(wrong.values()) <= 12, wrong


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
    low, high = held_out_interval(metric, y, predicted)
    assert metric.low <= low < metric.score(y, predicted) < high <= metric.high


@pytest.mark.parametrize("name", METRICS)
def test_every_score_is_scikit_learns_of_that_name(name):
    rng = np.random.default_rng(2)
    for _ in range(20):
        n, k = rng.integers(2, 40), rng.integers(1, 5)
        y, predicted = np.array(list("abcde"))[rng.integers(k, size=(2, n))]
        if METRICS[name].is_numeric:
            y, predicted = rng.normal(size=(2, n))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that are predicted and not there
            expected = get_scorer(name)(Says(predicted), None, y)
        assert METRICS[name].score(y, predicted) == pytest.approx(expected, abs=1e-12)


# --- one standard error ---


def results(*rows: tuple[dict, list[float], float]) -> dict:
    """cv_results_ of (params, split scores, fit time)."""
    found: dict = {"params": [params for params, _, _ in rows]}
    scores = np.array([scores for _, scores, _ in rows])
    found |= {f"split{i}_test_score": column for i, column in enumerate(scores.T)}
    found |= {"mean_test_score": scores.mean(axis=1), "std_test_score": scores.std(axis=1)}
    return found | {"mean_fit_time": np.array([t for _, _, t in rows]), "mean_score_time": np.zeros(len(rows))}


BEST, NEAR, FAR = [0.8, 0.9, 0.85], [0.79, 0.88, 0.84], [0.7, 0.8, 0.75]


def test_the_standard_error_is_of_the_mean():
    assert standard_error(BEST) == pytest.approx(stats.sem(BEST)) and standard_error([0.5]) == 0


@pytest.mark.parametrize(
    "name, near, far",
    [("m__C", 1, 0.1), ("m__alpha", 100, 1000), ("knn__n_neighbors", 10, 50), ("pca__n_components", 8, 4)],
)
def test_of_candidates_within_one_standard_error_the_strongest_penalty_is_taken(name, near, far):
    best = 10 if near != 10 else 5
    found = results(({name: best}, BEST, 1.0), ({name: near}, NEAR, 1.0), ({name: far}, FAR, 1.0))
    assert one_se(found) == 1


def test_of_families_the_quickest_is_taken_and_nothing_worse_than_one_standard_error():
    found = results(
        ({"layer": "deep", "C": 1.0}, BEST, 9.0),
        ({"layer": "deep", "C": 0.1}, NEAR, 9.0),
        ({"layer": "small", "C": 1.0}, NEAR, 1.0),
        ({"layer": "tiny", "C": 1.0}, FAR, 0.1),
    )
    assert one_se(found) == 2


def test_equal_candidates_are_told_apart_by_their_place():
    assert one_se(results(({"a": 1}, BEST, 1.0), ({"a": 1}, BEST, 1.0))) == 0


def test_it_is_what_refit_takes():
    X, y = load_iris(return_X_y=True)
    pipeline = Pipeline([("scaler", StandardScaler()), ("estimator", LogisticRegression())])
    grid = [
        {"estimator": [LogisticRegression()], "estimator__C": [1e-3, 1e-2, 0.1, 1.0, 10.0]},
        {"estimator": [KNeighborsClassifier()], "estimator__n_neighbors": [1, 5, 10]},
    ]
    search = GridSearchCV(pipeline, grid, refit=one_se).fit(X, y)
    means = search.cv_results_["mean_test_score"]
    best = means.argmax()
    scores = [search.cv_results_[f"split{i}_test_score"][best] for i in range(5)]
    assert means[search.best_index_] >= means[best] - stats.sem(scores)
    assert search.best_estimator_.score(X, y) > 0.8


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(FeatxError, match="one_se compares one score"):
        one_se({"mean_test_accuracy": [1]})
    with pytest.raises(FeatxError, match="every fit failed"):
        one_se(results(({"C": 1}, [np.nan, np.nan], 1.0)))
