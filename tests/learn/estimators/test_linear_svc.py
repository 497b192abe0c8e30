"""LinearSVC: liblinear's optimum, its penalised intercept and its way of weighing classes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import sklearn.svm
from numpy.testing import assert_allclose, assert_array_equal
from pairwise import pairwise
from sklearn.base import clone
from sklearn.datasets import make_classification

from featx import solvers
from featx.learn import Fit, LinearSVC, LogisticRegression

TIGHT = LinearSVC(tol=1e-9, max_iter=5000)


def rows(k, dtype=np.float64):
    """(120, 6) overlapping classes 0 to k - 1, of unequal sizes, standardised."""
    shares = [0.6] if k == 2 else [0.4, 0.3, 0.2]
    X, y = make_classification(
        120, 6, n_informative=4, n_redundant=0, n_classes=k, weights=shares, class_sep=0.5, flip_y=0.1, random_state=0
    )
    return ((X - X.mean(axis=0)) / X.std(axis=0) + 0.3).astype(dtype), y


def objective(model, X, y, s, factors):
    """The sum over the one-vs-rest problems; liblinear weighs only the rows of the class itself when k > 2."""
    total = 0.0
    k = len(model.classes_)
    scores = model.decision_function(X).reshape(len(X), -1)
    intercepts = np.broadcast_to(model.intercept_, len(model.coef_)) / model.intercept_scaling
    for column, c in enumerate([1] if k == 2 else range(k)):
        t = np.where(y == c, 1, -1)
        weights = s * (factors[y] if k == 2 else np.where(y == c, factors[c], 1))
        total += model.C * weights @ np.maximum(0, 1 - t * scores[:, column]) ** 2
        total += (model.coef_[column] ** 2).sum() / 2 + intercepts[column] ** 2 / 2
    return total


CLASS_WEIGHTS = {"even": None, "balanced": "balanced", "dict": {0: 5.0, 1: 0.3}}


@pairwise(k=[2, 4], intercept=[None, 1, 10.0], class_weight=CLASS_WEIGHTS, C=[1e-4, 1.0, 1e4])
def test_it_finds_scikit_learn_s_optimum(k, intercept, class_weight, C):
    X, y = rows(k)
    s = np.random.default_rng(k).uniform(0.1, 3, len(y))
    parameters = {
        "C": C,
        "fit_intercept": intercept is not None,
        "intercept_scaling": intercept or 1,
        "class_weight": class_weight,
    }
    ours = clone(TIGHT).set_params(**parameters).fit(X, y, sample_weight=s)
    theirs = sklearn.svm.LinearSVC(dual=False, tol=1e-10, max_iter=100_000, **parameters).fit(X, y, sample_weight=s)
    if class_weight == "balanced":
        factors = s.sum() / (k * np.bincount(y, s))
    else:
        factors = np.array([(class_weight or {}).get(c, 1.0) for c in range(k)])
    assert_allclose(objective(ours, X, y, s, factors), objective(theirs, X, y, s, factors), rtol=1e-6)
    assert np.shape(ours.intercept_) == np.shape(theirs.intercept_)
    scale = np.abs(theirs.coef_).max()
    assert_allclose(ours.coef_, theirs.coef_, rtol=1e-4, atol=1e-4 * scale)
    assert_allclose(ours.intercept_, theirs.intercept_, rtol=1e-4, atol=1e-4 * scale)
    assert_allclose(ours.decision_function(X), theirs.decision_function(X), rtol=1e-3, atol=1e-3)


@pairwise(shape=[(180, 96), (300, 50), (60, 300)], offset=[30.0, 8e3], scales={"alike": 0, "scales apart": 3})
def test_float32_columns_far_from_0_end_near_the_minimum(shape, offset, scales):
    rng = np.random.default_rng(0)
    n, d = shape
    y = np.arange(n) % 3
    X = rng.normal(size=shape) + rng.normal(size=(3, d))[y] / np.sqrt(d) + offset * rng.normal(size=d)
    X = (X * 10 ** rng.uniform(-scales, scales, d)).astype(np.float32)
    fitted = LinearSVC(C=5e3).fit(X, y)
    exact = LinearSVC(C=5e3, tol=1e-10, max_iter=10_000).fit(X.astype(np.float64), y)
    values = [objective(model, X.astype(np.float64), y, np.ones(n), np.ones(3)) for model in (fitted, exact)]
    assert values[0] <= 1.0001 * values[1]


def test_scores_of_many_rows_are_those_of_each_and_no_copy_of_all_rows_is_made():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50_000, 60)).astype(np.float32)
    for k in (2, 3):
        fitted = LinearSVC().fit(X[:500], np.arange(500) % k)
        tracemalloc.start()
        scores = fitted.decision_function(X)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak_bytes < 1.5 * X.nbytes  # in float64 they would take twice as much
        assert scores.dtype == np.float64 and scores.shape == ((50_000,) if k == 2 else (50_000, 3))
        assert_allclose(
            scores, np.squeeze(X.astype(float) @ fitted.coef_.T + fitted.intercept_), rtol=1e-12, atol=1e-12
        )
        assert_array_equal(fitted.sparsify().predict(X[:500]), fitted.densify().predict(X[:500]))


@pytest.mark.parametrize("k", [2, 4])
def test_at_the_default_tolerance_the_objective_is_no_worse_than_scikit_learn_s(k):
    X, y = rows(k)
    for C in (1e-3, 1.0, 100.0):
        ours, theirs = LinearSVC(C=C).fit(X, y), sklearn.svm.LinearSVC(C=C, random_state=0).fit(X, y)
        best = objective(theirs, X, y, np.ones(120), np.ones(k))
        assert objective(ours, X, y, np.ones(120), np.ones(k)) <= best * (1 + 1e-6)


def test_attributes_are_as_of_scikit_learn():
    for k in (2, 4):
        for fit_intercept in (True, False):
            X, y = rows(k)
            ours = LinearSVC(fit_intercept=fit_intercept).fit(X, y)
            theirs = sklearn.svm.LinearSVC(fit_intercept=fit_intercept).fit(X, y)
            for name in ("coef_", "intercept_", "classes_", "n_iter_"):
                a, b = getattr(ours, name), getattr(theirs, name)
                assert type(a) is type(b) and np.shape(a) == np.shape(b) and np.asarray(a).dtype == np.asarray(b).dtype


def test_a_class_of_weight_zero_is_no_rest_for_the_others():
    X, y = rows(4)
    ours = clone(TIGHT).set_params(class_weight={0: 0, 1: 2.0}).fit(X, y)
    removed = clone(TIGHT).set_params(class_weight={1: 2.0}).fit(X[y > 0], y[y > 0])
    assert_allclose(ours.classes_, [1, 2, 3])
    assert_allclose(ours.coef_, removed.coef_, rtol=1e-5, atol=1e-6)


def test_class_weights_of_many_classes_cost_one_call_however_many_fits(monkeypatch):
    X, y = rows(4)
    calls = []
    solve = solvers.solve

    def counted(X, y, problems, *args, **options):
        calls.append(len(problems))
        return solve(X, y, problems, *args, **options)

    monkeypatch.setattr(solvers, "solve", counted)
    fits = [Fit({"C": C}) for C in (0.01, 0.1, 1.0)]
    LinearSVC(class_weight="balanced").fit_many(X, y, fits)
    LinearSVC(class_weight="balanced").fit_many(X, y > 0, fits)
    LinearSVC().fit_many(X, y, fits)
    LogisticRegression(class_weight="balanced").fit_many(X, y, fits)
    assert calls == [3, 3, 3, 3]
