"""Candidates that share rows do not see one another: what one writes to, warns of, or is given, no other knows."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

import numpy as np
import pytest
import sklearn.linear_model
import sklearn.model_selection
from numpy.testing import assert_allclose
from searched import assert_same
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import make_classification
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler, Normalizer, PolynomialFeatures, StandardScaler

from featx.learn import (
    SVC,
    GridSearchCV,
    HalvingGridSearchCV,
    KNeighborsClassifier,
    LogisticRegression,
    NearestCentroid,
    RandomizedSearchCV,
)
from featx.learn.search import executor

X, Y = make_classification(90, 6, n_informative=4, n_redundant=0, n_classes=3, random_state=0)


class Writer(ClassifierMixin, BaseEstimator):
    """Changes the rows that it is given."""

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = shift

    def fit(self, X: np.ndarray, y: np.ndarray) -> Writer:
        X -= X.mean(0)
        self.model_ = sklearn.linear_model.LogisticRegression().fit(X, y)
        self.classes_ = self.model_.classes_
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        X += self.shift
        return self.model_.predict(X)


class Stops(ClassifierMixin, BaseEstimator):
    """Is interrupted, or fails, where it is told to."""

    def __init__(self, stops: bool = False, fails: bool = False) -> None:
        self.stops, self.fails = stops, fails

    def fit(self, X: np.ndarray, y: np.ndarray) -> Stops:
        if self.stops:
            raise KeyboardInterrupt
        if self.fails:
            raise ValueError("as told")
        self.classes_ = np.unique(y)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return np.full(len(X), self.classes_[0])


def steps(*parts: Any) -> Pipeline:
    return Pipeline([(f"s{number}", part) for number, part in enumerate(parts[:-1])] + [("m", parts[-1])])


SCALERS = [StandardScaler(copy=False), "passthrough", PolynomialFeatures()]


@pytest.mark.parametrize(
    "pipeline, grid, train_scores",
    [
        (steps(PolynomialFeatures(1), Writer()), {"m__shift": [0.0, 1.0, 2.0]}, False),
        (steps(PolynomialFeatures(1), Writer()), {"m__shift": [0.0, 1.0, 2.0]}, True),
        (steps(MinMaxScaler(), sklearn.linear_model.RidgeClassifier(copy_X=False)), {"m__alpha": [0.01, 1.0]}, False),
        (steps(Normalizer(), None, sklearn.linear_model.LogisticRegression()), {"s1": SCALERS}, True),
        (steps(PolynomialFeatures(1), None, SVC(tol=1e-8)), {"s1": SCALERS}, False),
    ],
    ids=["estimator", "estimator, scored on training rows", "ridge", "scaler", "ours"],
)
def test_what_one_candidate_writes_to_is_its_own(pipeline, grid, train_scores):
    assert_same(GridSearchCV(pipeline, grid, cv=3, return_train_score=train_scores), X, Y)


class ReadOnly(executor.Parallel):
    """Hands rows over as read-only, as joblib does with more than 1 MB for another process."""

    def __call__(self, calls: Iterable[tuple[Any, tuple[Any, ...], dict[str, Any]]]) -> Any:
        return super().__call__((call, tuple(map(self.handed_over, args)), options) for call, args, options in calls)

    def handed_over(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            value = value.copy()
            value.setflags(write=False)
        return value


@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_rows_that_other_processes_cannot_write_to_are_copied(n_jobs, monkeypatch):
    many = np.tile(X, (1, 400))
    search = GridSearchCV(steps(PolynomialFeatures(1), Writer()), {"m__shift": [0.0, 1.0]}, cv=2, n_jobs=n_jobs)
    if n_jobs == 1:
        monkeypatch.setattr(executor, "Parallel", ReadOnly)
    assert np.isfinite(search.fit(many, Y).cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize(
    "model, grid",
    [
        (NearestCentroid(), {"metric": ["euclidean", "cosine"]}),
        (KNeighborsClassifier(), {"n_neighbors": [1, 3]}),
        (SVC(), {"C": [0.1, 1.0]}),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.filterwarnings("ignore:A column-vector y was passed")
def test_labels_may_be_a_column(model, grid):
    flat, column = (GridSearchCV(model, grid, cv=KFold(3)).fit(X, y).cv_results_ for y in (Y, Y[:, None]))
    assert_allclose(column["mean_test_score"], flat["mean_test_score"], rtol=0)


@pytest.mark.parametrize("size", [0.0, 12.0])
def test_folds_scaled_far_apart_stop_where_each_alone_would(size):
    """A column that is nearly constant but for one row is scaled otherwise in the fold that lacks it."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 40)) @ rng.normal(size=(40, 40)) / 6
    rows[:, :4] = 0.01 * rng.normal(size=(300, 4))
    rows[rng.choice(300, 4, replace=False), range(4)] += size
    y = (rows[:, 5] + 0.5 * rng.normal(size=300) > 0).astype(int)
    search = GridSearchCV(
        steps(StandardScaler(), LogisticRegression()), {"m__C": [0.1, 1.0]}, cv=KFold(5), scoring="neg_log_loss"
    )
    exact = GridSearchCV(**search.get_params(deep=False)).set_params(estimator__m__tol=1e-9).fit(rows, y).cv_results_
    found = search.fit(rows, y).cv_results_
    for split in range(5):
        key = f"split{split}_test_score"
        assert_allclose(found[key], exact[key], atol=5e-3)


def test_names_of_parameters_are_the_estimator_s_own_matter():
    """Some take any, and list only those that were given."""

    class Anything(Stops):
        def __init__(self, **params: Any) -> None:
            self.params = params

        stops = fails = False

        def get_params(self, deep: bool = True) -> dict[str, Any]:
            return dict(self.params)

        def set_params(self, **params: Any) -> Anything:
            self.params |= params
            return self

    assert len(GridSearchCV(Anything(), {"depth": [1, 2]}, cv=3).fit(X, Y).cv_results_["params"]) == 2


def test_planning_uses_nothing_up():
    folds = StratifiedKFold(3).split(X, Y)
    search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=folds)
    assert "6 fits of LogisticRegression in one solve" in str(search.plan(X, Y))
    assert search.fit(X, Y).n_splits_ == 3
    drawn = []
    for plans in (False, True):
        np.random.seed(0)
        search = RandomizedSearchCV(LogisticRegression(), {"C": list(np.logspace(-3, 3, 50))}, n_iter=3, cv=3)
        if plans:
            search.plan(X, Y)
        drawn.append(search.fit(X, Y).cv_results_["params"])
    assert drawn[0] == drawn[1]


def test_folds_are_whatever_gives_positions():
    splits = [(range(60), range(60, 80)), (list(range(60)), list(range(60, 80)))]
    assert_same(GridSearchCV(steps(StandardScaler(), LogisticRegression(tol=1e-9)), {"m__C": [1.0]}, cv=splits), X, Y)


@pytest.mark.filterwarnings("error")
def test_a_row_twice_in_a_fold_is_no_cause_for_a_warning():
    rng = np.random.default_rng(0)
    folds = [(rng.integers(0, 70, 70), np.arange(70, len(Y))) for _ in range(2)]
    model = LogisticRegression(tol=1e-9)
    assert_same(GridSearchCV(steps(StandardScaler(), model), {"m__C": [0.1, 1.0]}, cv=folds), X, Y)


def dictionary(model: Any, X: Any, y: Any) -> dict[str, float]:
    score = model.score(X, y)
    return {"a": score, "b": -score}


@pytest.mark.parametrize("fails_first", [True, False])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_interrupt_keeps_scores_of_failed_fits_too(fails_first):
    grid = [{"fails": [fails_first, not fails_first]}, {"stops": [True]}]
    search = GridSearchCV(Stops(), grid, cv=3, scoring=dictionary, refit="a")
    with pytest.raises(KeyboardInterrupt):
        search.fit(X, Y)
    assert np.isnan(search.partial_results_["mean_test_b"]).sum() == 1


def test_an_interrupted_refit_keeps_everything_and_the_next_fit_forgets_it():
    class StopsOnAll(Stops):
        def fit(self, X: np.ndarray, y: np.ndarray) -> Stops:
            if len(X) == len(Y) and self.stops:
                raise KeyboardInterrupt
            self.classes_ = np.unique(y)
            return self

    search = GridSearchCV(StopsOnAll(), {"stops": [True]}, cv=3)
    with pytest.raises(KeyboardInterrupt):
        search.fit(X, Y)
    assert len(search.partial_results_["params"]) == 1
    search.set_params(param_grid={"stops": [False]}).fit(X, Y)
    assert not hasattr(search, "partial_results_")


def test_interrupted_halving_says_which_round():
    class Late(Stops):
        def fit(self, X: np.ndarray, y: np.ndarray) -> Stops:
            self.stops = len(X) > 40
            return super().fit(X, y)

    search = HalvingGridSearchCV(Late(), {"fails": [False] * 4}, cv=2, factor=2, min_resources=20, random_state=0)
    with pytest.raises(KeyboardInterrupt):
        search.fit(X, Y)
    partial = search.partial_results_
    assert len(partial["iter"]) == len(partial["n_resources"]) == len(partial["params"]) >= 4


def test_each_candidate_is_given_what_it_asks_for():
    with sklearn.config_context(enable_metadata_routing=True):
        asks, declines = (LogisticRegression(tol=1e-9).set_fit_request(sample_weight=ask) for ask in (True, False))
        pipeline = steps(StandardScaler().set_fit_request(sample_weight=False), asks)
        scorer = sklearn.metrics.make_scorer(sklearn.metrics.accuracy_score).set_score_request(sample_weight=False)
        search = GridSearchCV(pipeline, {"m": [asks], "m__C": [0.1, 1.0]}, cv=3, scoring=scorer)
        assert_same(search, X, Y, sample_weight=np.linspace(0.1, 1, len(Y)))
        both = GridSearchCV(pipeline, {"m": [asks, declines]}, cv=3, scoring=scorer)
        plan = str(both.plan(X, Y, sample_weight=np.ones(len(Y))))
    assert plan.count("3 fits of LogisticRegression in one solve") == 2


def test_sizes_of_a_plan_grow_with_what_is_held():
    sizes = [
        GridSearchCV(pipeline, grid, cv=cv, return_train_score=train).plan(X, Y).nbytes
        for (pipeline, grid), cv, train in product(
            [
                (steps(StandardScaler(), SVC()), {"m__C": [1, 2]}),
                (steps(PolynomialFeatures(), StandardScaler(), SVC()), {"m__C": [1, 2]}),
                (
                    steps(PolynomialFeatures(), StandardScaler(), SVC()),
                    {"s0__degree": [1, 2], "s1__with_mean": [True, False]},
                ),
            ],
            [5],
            [False, True],
        )
    ]
    assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)
