"""Searches say what scikit-learn's say, whatever is searched over; see `searched.assert_same` for what is compared.

Estimators, the steps before them, splitters, scorers, weights, failures: any two of these meet in one combination.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import sklearn.linear_model
import sklearn.svm
from classified import labelled
from searched import TIGHT, assert_same, covering
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, hinge_loss, make_scorer, r2_score
from sklearn.model_selection import GroupKFold, RepeatedStratifiedKFold, ShuffleSplit, StratifiedKFold, TimeSeriesSplit
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    RobustScaler,
    StandardScaler,
)

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

N, D, K = 66, 5, 3
X, Y = labelled((N, D), K)
GROUPS = np.random.default_rng(1).integers(0, 6, N)
WEIGHTS = np.random.default_rng(2).uniform(0.2, 3, N)
CLASS_WEIGHT = {0: 1.0, 1: 0.5, 2: 2.0}


class Rotated(TransformerMixin, BaseEstimator):
    """A user's transformer: what it has learned of its rows decides what it makes of others."""

    def __init__(self, power: float = 0.5) -> None:
        self.power = power

    def fit(self, X: Any, y: Any = None) -> Rotated:
        self.n_fits_ = getattr(self, "n_fits_", 0) + 1
        self.mean_, moments = X.mean(0), np.cov(X.T)
        values, self.axes_ = np.linalg.eigh(moments)
        self.axes_ = self.axes_ * np.sign(self.axes_[0]) / values**self.power
        return self

    def transform(self, X: Any) -> np.ndarray:
        return (X - self.mean_) @ self.axes_ * self.n_fits_


STEPS: dict[str, list[tuple[str, Any]]] = {
    "no steps": [],
    "standard": [("scale", StandardScaler())],
    "minmax": [("scale", MinMaxScaler((-1, 2)))],
    "maxabs": [("scale", MaxAbsScaler())],
    "robust": [("scale", RobustScaler(quantile_range=(10, 90)))],
    "pca": [("reduce", PCA(3, random_state=0))],
    "normalizer": [("norm", Normalizer())],
    "normalizer, standard": [("norm", Normalizer("l1")), ("scale", StandardScaler(with_mean=False))],
    "columns": [
        ("columns", ColumnTransformer([("a", StandardScaler(), [0, 1, 2]), ("b", PCA(1, random_state=0), [3, 4])]))
    ],
    "user's": [("rotate", Rotated())],
    "union": [("union", FeatureUnion([("a", PCA(2, random_state=0)), ("b", MinMaxScaler())]))],
    "passthrough": [("none", "passthrough"), ("scale", StandardScaler()), ("function", FunctionTransformer())],
    "searched step": [("scale", None)],
}
# estimator, the searched parameter, its values, and one that fit refuses
ESTIMATORS: dict[str, tuple[Any, str, list[Any], Any]] = {
    "LogisticRegression": (LogisticRegression(**TIGHT), "C", [0.01, 1.0], -1.0),
    "LinearSVC": (LinearSVC(**TIGHT), "C", [0.003, 0.3], -1.0),
    "Ridge": (Ridge(), "alpha", [0.1, 30.0], -1.0),
    "RidgeClassifier": (RidgeClassifier(), "alpha", [0.1, 300.0], -1.0),
    "SVC": (SVC(tol=1e-8), "C", [0.1, 2.0], -1.0),
    "KNeighborsClassifier": (KNeighborsClassifier(), "n_neighbors", [1, 7], -1),
    "NearestCentroid": (NearestCentroid(), "metric", ["euclidean", "cosine"], "none such"),
    "MLPClassifier": (MLPClassifier((4,), tol=0.5, n_iter_no_change=2, random_state=0), "alpha", [1e-4, 30.0], -1.0),
    "theirs: LogisticRegression": (sklearn.linear_model.LogisticRegression(), "C", [0.01, 1.0], -1.0),
    "theirs: SVC": (sklearn.svm.SVC(), "C", [0.1, 2.0], -1.0),
    "theirs: forest": (RandomForestClassifier(2, max_depth=3, random_state=0), "max_depth", [1, 3], -1),
    "theirs: dummy": (DummyClassifier(), "strategy", ["prior", "most_frequent"], "none such"),
}


def _lacking() -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds without one of the classes, in training or held out, and one of few rows."""
    rows = np.arange(N)
    return [
        (rows[Y != 0], rows[::3]),
        (rows[rows % 2 == 0], rows[(rows % 2 == 1) & (Y != 1)]),
        (np.r_[np.flatnonzero(Y == 1)[:6], np.flatnonzero(Y == 2)[:5]], rows[::-5]),
    ]


SPLITTERS: dict[str, Callable[[], Any]] = {
    "stratified": lambda: StratifiedKFold(3, shuffle=True, random_state=0),
    "groups": lambda: GroupKFold(3),
    "time": lambda: TimeSeriesSplit(3, gap=2),
    "repeated": lambda: RepeatedStratifiedKFold(n_splits=2, n_repeats=2, random_state=0),
    "shuffled": lambda: ShuffleSplit(3, test_size=0.3, train_size=0.5, random_state=0),
    "masks": lambda: iter([(np.arange(N) % 3 != k, np.arange(N) % 3 == k) for k in range(3)]),
    "overlapping": lambda: [(np.arange(20 * k, 20 * k + 26), list(range(10, 45))) for k in range(3)],
    "lacking": _lacking,
}


def _float(estimator: Any, X: Any, y: Any) -> float:
    return float(np.mean(estimator.predict(X) == y))


def _dict(estimator: Any, X: Any, y: Any) -> dict[str, float]:
    predicted = estimator.predict(X)
    return {"a": float(np.mean(predicted == y)), "rows": float(len(X)), "columns": float(np.shape(X)[1])}


SCORERS = ("None", "named", "several", "float", "dict", "probabilities", "made", "made dict")


def _scoring(name: str, estimator: Any) -> tuple[Any, Any]:
    """(scoring, refit)"""
    regression = isinstance(estimator, Ridge)
    if name == "None":
        return None, True
    if name == "named":
        return ("neg_mean_squared_error" if regression else "accuracy"), True
    if name == "several":
        return (["r2", "max_error"], "max_error") if regression else (("accuracy", "f1_macro"), "f1_macro")
    if name == "float":
        return _float, True
    if name == "dict":
        return _dict, "a"
    if name == "probabilities":
        if hasattr(estimator, "predict_proba"):
            return ["neg_log_loss", "roc_auc_ovr"], False
        if hasattr(estimator, "decision_function"):
            loss = make_scorer(
                hinge_loss, response_method="decision_function", greater_is_better=False, labels=[0, 1, 2]
            )
            return loss, True
        return "r2" if regression else "balanced_accuracy", True
    if name == "made":
        made = make_scorer(r2_score) if regression else make_scorer(balanced_accuracy_score, adjusted=True)
        return made, lambda results: int(np.argmin(results["mean_test_score"]))
    if regression:
        return {"one": make_scorer(r2_score), "two": "neg_median_absolute_error"}, "one"
    return {"one": make_scorer(f1_score, average="micro"), "two": make_scorer(accuracy_score)}, False


LEVELS = {
    "steps": list(STEPS),
    "estimator": list(ESTIMATORS),
    "splitter": list(SPLITTERS),
    "scorer": SCORERS,
    "weights": ("None", "rows", "classes"),
    "train_score": ("without", "with"),
    "failing": ("none", "nan", "0"),
}
# Levels that take one path through a search; any two paths meet in the quick test, where their levels take turns.
PATHS = {
    "steps": {
        "none": ["no steps"],
        "scaler": ["standard", "minmax", "maxabs", "robust"],
        "transformer": ["pca", "columns", "user's", "union"],
        "normalizer": ["normalizer", "normalizer, standard"],
        "passthrough": ["passthrough"],
        "searched": ["searched step"],
    },
    "estimator": {
        "linear": ["LogisticRegression", "LinearSVC", "Ridge", "RidgeClassifier"],
        "kernel": ["SVC"],
        "neighbours": ["KNeighborsClassifier"],
        "centroid": ["NearestCentroid"],
        "perceptron": ["MLPClassifier"],
        "theirs": ["theirs: LogisticRegression", "theirs: SVC", "theirs: forest", "theirs: dummy"],
    },
    "splitter": {
        "partition": ["stratified", "groups", "repeated"],
        "subset": ["time", "shuffled"],
        **{name: [name] for name in ("masks", "overlapping", "lacking")},
    },
    "scorer": {
        "metric": ["None", "named", "made"],
        "metrics": ["several", "made dict"],
        **{name: [name] for name in ("float", "dict", "probabilities")},
    },
    **{name: {level: [level] for level in LEVELS[name]} for name in ("weights", "train_score", "failing")},
}


def _cases() -> Iterator[dict[str, str]]:
    turns = {name: {path: cycle(levels) for path, levels in paths.items()} for name, paths in PATHS.items()}
    for case in covering({name: list(paths) for name, paths in PATHS.items()}):
        yield {name: next(turns[name][path]) for name, path in case.items()}


UNWEIGHTED = (KNeighborsClassifier, NearestCentroid)


def _case(case: dict[str, str]) -> tuple[GridSearchCV, dict[str, Any]]:
    """The search of a combination, and what its fit is given."""
    estimator, parameter, values, refused = ESTIMATORS[case["estimator"]]
    estimator = clone(estimator)
    fit_params: dict[str, Any] = {"groups": GROUPS} if case["splitter"] == "groups" else {}
    steps = [(name, step) for name, step in STEPS[case["steps"]]]
    before = "final__" if steps else ""
    if case["weights"] == "rows" and not isinstance(estimator, UNWEIGHTED):
        fit_params[f"{before}sample_weight"] = WEIGHTS
    elif case["weights"] == "classes" and "class_weight" in estimator.get_params():
        estimator.set_params(class_weight=CLASS_WEIGHT)
    scoring, refit = _scoring(case["scorer"], estimator)
    grid: Any = {f"{before}{parameter}": [*values, *([] if case["failing"] == "none" else [refused])]}
    if case["steps"] == "searched step":
        grid = [
            grid | {"scale": [StandardScaler(), "passthrough"]},
            {"scale": [MinMaxScaler(), PCA(2, random_state=0)]},
        ]
    return GridSearchCV(
        Pipeline([*steps, ("final", estimator)]) if steps else estimator,
        grid,
        scoring=scoring,
        refit=refit,
        cv=SPLITTERS[case["splitter"]](),
        return_train_score=case["train_score"] == "with",
        error_score=0.0 if case["failing"] == "0" else np.nan,
    ), fit_params


def _name(case: dict[str, str]) -> str:
    return " | ".join(case.values())


@pytest.mark.parametrize("case", list(_cases()), ids=_name)
def test_any_two_paths_meet(case):
    _assert_as_scikit_learn(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", list(covering(LEVELS)), ids=_name)
def test_any_two_levels_meet(case):
    _assert_as_scikit_learn(case)


def test_every_level_has_a_path_and_a_quick_case():
    cases = list(_cases())
    for name, levels in LEVELS.items():
        assert {case[name] for case in cases} == set(levels), name


def _assert_as_scikit_learn(case: dict[str, str]) -> None:
    search, fit_params = _case(case)
    y = Y + X[:, 0] if case["estimator"] == "Ridge" and case["splitter"] != "stratified" else Y
    if case["splitter"] == "masks":  # what can be read once is made once for each
        search.cv = list(search.cv)
    search, theirs = assert_same(search, X, y, **fit_params)
    if hasattr(search, "best_estimator_"):
        np.testing.assert_allclose(search.predict(X), theirs.predict(X), atol=1e-6)
