"""No held-out row reaches a fit, shared or not, and what is shared is fitted once a fold."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from typing import Any

import numpy as np
import pytest
from classified import labelled
from searched import TIGHT, CountedClassifier, Recorded, RowsSeen
from sklearn.decomposition import PCA
from sklearn.model_selection import GroupKFold, ShuffleSplit, StratifiedKFold, TimeSeriesSplit
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, Normalizer, RobustScaler, StandardScaler

from featx.learn import (
    SVC,
    GridSearchCV,
    KNeighborsClassifier,
    LinearSVC,
    LogisticRegression,
    MLPClassifier,
    NearestCentroid,
    Ridge,
    RidgeClassifier,
)

N = 60
ROWS, Y = labelled((N, 5), 3)
X = np.column_stack([np.arange(N), ROWS])  # ids first
GROUPS = np.arange(N) // 7 % 4
SPLITTERS = {
    "stratified": StratifiedKFold(3, shuffle=True, random_state=1),
    "groups": GroupKFold(3),
    "time": TimeSeriesSplit(3),
    "overlapping": ShuffleSplit(3, test_size=0.4, random_state=2),
}
LOGISTIC = LogisticRegression(tol=1e-6)


def _forget() -> None:
    Recorded.lists.clear()
    CountedClassifier.raises.clear()


@pytest.fixture(autouse=True)
def _nothing_recorded():
    _forget()


UNSHARED = pytest.mark.filterwarnings("ignore:.*candidates could not share their work")


def _folds(cv: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(cv.split(X, Y, GROUPS if isinstance(cv, GroupKFold) else None))


@pytest.mark.parametrize(
    ("steps", "final", "grid", "splitters"),
    [
        ([RowsSeen("a")], LOGISTIC, {"final__C": [0.1, 1.0, 10.0]}, SPLITTERS),
        (
            [RowsSeen("a", True), RowsSeen("b")],
            LOGISTIC,
            {"final__C": [0.1, 1.0], "final__fit_intercept": [True, False]},
            ["groups", "overlapping"],
        ),
        ([RowsSeen("a", True), PCA(3, random_state=0)], LOGISTIC, {"final__C": [0.1, 1.0, 10.0]}, ["stratified"]),
        ([RowsSeen("a", True)], CountedClassifier("last"), {"final__power": [0.5, 1.0, 2.0]}, SPLITTERS),
        ([RowsSeen("a", True), StandardScaler()], Ridge(), {"final__alpha": [0.5, 1.0, 2.0]}, ["time", "overlapping"]),
    ],
    ids=["one step", "two steps", "a known step", "a user's estimator", "a scaler after it"],
)
def test_no_fit_sees_a_held_out_row_and_what_is_shared_is_fitted_once_a_fold(steps, final, grid, splitters):
    for splitter in splitters:
        _forget()
        _assert_fits(steps, final, grid, SPLITTERS[splitter])


def _assert_fits(steps: Any, final: Any, grid: Any, cv: Any) -> None:
    pipe = Pipeline([*((f"step{i}", step) for i, step in enumerate(steps)), ("final", final)])
    groups = {"groups": GROUPS} if isinstance(cv, GroupKFold) else {}
    search = GridSearchCV(pipe, grid, cv=cv, refit=False, error_score="raise").fit(X, Y, **groups)
    trained = sorted(sorted(train.tolist()) for train, _ in _folds(cv))
    n_candidates = len(search.cv_results_["params"])
    for name, seen in Recorded.lists.items():
        wanted = trained * n_candidates if name == "last" else trained
        assert sorted(map(sorted, seen)) == sorted(wanted), f"{name!r} is fitted on other rows, or more often"


def test_a_step_that_is_searched_is_fitted_once_a_value_and_fold():
    pipe = make_pipeline(RowsSeen("first", True), RowsSeen("second"), LOGISTIC)
    grid = {"rowsseen-2__factor": [0.5, 1.0], "logisticregression__C": [0.1, 1.0, 10.0]}
    cv = SPLITTERS["stratified"]
    GridSearchCV(pipe, grid, cv=cv, refit=False, error_score="raise").fit(X, Y)
    assert len(Recorded.of("first")) == 3, "once a fold"
    assert len(Recorded.of("second")) == 6, "once a fold and a factor"


def test_inside_a_union_too():
    union = FeatureUnion([("a", RowsSeen("a")), ("b", RowsSeen("b"))])
    search = GridSearchCV(make_pipeline(union, LOGISTIC), {"logisticregression__C": [0.1, 1.0]}, cv=3, refit=False)
    search.fit(X, Y)
    trained = sorted(sorted(train.tolist()) for train, _ in StratifiedKFold(3).split(X, Y))
    assert sorted(map(sorted, Recorded.of("a"))) == sorted(map(sorted, Recorded.of("b"))) == trained


class Keeper:
    """A scorer that keeps what `about` says of the models of a fold, the one with so many rows held out."""

    def __init__(self, parameter: str, about: Any, n_test: int) -> None:
        self.parameter, self.about, self.n_test = parameter, about, n_test
        self.kept: dict[Any, np.ndarray] = {}

    def __call__(self, estimator: Any, X: Any, y: Any) -> float:
        if len(y) == self.n_test:
            self.kept[estimator[-1].get_params()[self.parameter]] = np.array(self.about(estimator, estimator[-1]))
        return 0.0


def _coefficients(estimator: Any, final: Any) -> np.ndarray:
    return np.column_stack([final.coef_, np.broadcast_to(final.intercept_, len(final.coef_))])


def _decisions(estimator: Any, final: Any) -> np.ndarray:
    for name in ("decision_function", "predict_proba"):
        if hasattr(estimator, name):
            return getattr(estimator, name)(ROWS[:7] + 0.01)
    return final.centroids_


BEFORE = {
    "none": [],
    "standard": [StandardScaler()],
    "minmax": [MinMaxScaler()],
    "maxabs": [MaxAbsScaler()],
    "robust": [RobustScaler()],
    "pca": [PCA(3, random_state=0)],
    "normalizer": [Normalizer()],
}
LINEAR = {
    "LogisticRegression": (LogisticRegression(**TIGHT), "C", _coefficients),
    "LinearSVC": (LinearSVC(**TIGHT), "C", _coefficients),
    "RidgeClassifier": (RidgeClassifier(), "alpha", _coefficients),
}
OTHERS = {
    "SVC": (SVC(), "C", _decisions),
    "KNeighborsClassifier": (KNeighborsClassifier(), "n_neighbors", _decisions),
    "NearestCentroid": (NearestCentroid(), "metric", _decisions),
    "MLPClassifier": (
        MLPClassifier((4,), tol=0.1, n_iter_no_change=2, early_stopping=True, random_state=0),
        "alpha",
        _decisions,
    ),
}
MODELS = LINEAR | OTHERS


def models_after(steps: Iterable[str]) -> Any:
    """Parametrise by steps and models: after each step one linear model and one that is none, in turn."""
    turns = (cycle(LINEAR), cycle(OTHERS))
    return pytest.mark.parametrize(("before", "name"), [(step, next(turn)) for step in steps for turn in turns])


def _models(name: str, before: str, folds: Any, rows: np.ndarray, y: np.ndarray) -> Any:
    """What describes the model of each candidate in the first fold: its coefficients, or its decisions."""
    final, parameter, about = MODELS[name]
    values: list[Any] = {"n_neighbors": [1, 3], "metric": ["euclidean", "cosine"]}.get(parameter, [0.1, 0.3])
    keeper = Keeper(parameter, about, len(folds[0][1]))
    pipe = make_pipeline(*BEFORE[before], final)
    grid = {f"{pipe.steps[-1][0]}__{parameter}": values}
    GridSearchCV(pipe, grid, cv=folds, scoring=keeper, refit=False, error_score="raise").fit(rows, y)
    assert set(keeper.kept) == set(values), "a model a candidate"
    return [keeper.kept[value] for value in values]


@models_after(BEFORE)
def test_held_out_rows_and_labels_change_nothing_of_their_folds_model(before, name):
    """The held-out rows of the only fold made large, and their labels others; models are those of before."""
    train, test = np.arange(0, N, 2), np.arange(1, N, 2)
    poisoned, labels = ROWS.copy(), Y.copy()
    poisoned[test] = np.random.default_rng(0).normal(size=(len(test), 5)) * 1e6
    labels[test] = 1
    clean = _models(name, before, [(train, test)], ROWS, Y)
    for found, wanted in zip(_models(name, before, [(train, test)], poisoned, labels), clean, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10 * np.abs(wanted).max())


@models_after(["standard", "none", "standard"])
@UNSHARED
def test_nor_where_another_fold_trains_on_them_or_they_are_not_finite(before, name):
    """To the precision of a solver: another fold goes into its order of work, or everything goes to scikit-learn."""
    train, test = np.arange(0, N, 3), np.setdiff1d(np.arange(N), np.arange(0, N, 3))
    other, labels = ROWS.copy(), Y.copy()
    other[test] = 10 * other[test][::-1] + 3
    labels[test] = labels[test][::-1]
    missing = ROWS.copy()
    missing[test] = np.nan
    clean = _models(name, before, [(train, test)], ROWS, Y)
    for folds, rows in (([(train, test), (test, train)], other), ([(train, test)], missing)):
        for found, wanted in zip(_models(name, before, folds, rows, labels), clean, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
