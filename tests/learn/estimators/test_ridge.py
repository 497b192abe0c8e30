"""Ridge and RidgeClassifier: scikit-learn's numbers and shapes, several targets, several labels a row."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.linear_model
from numpy.testing import assert_allclose, assert_array_equal
from pairwise import pairwise
from scipy import sparse
from sklearn.exceptions import DataConversionWarning

from featx import solvers
from featx.errors import FeatxError
from featx.learn import Fit, Ridge, RidgeClassifier

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 7)) * np.logspace(-1, 1, 7) + RNG.normal(size=7)
WIDE = RNG.normal(size=(20, 50)) + 1
NUMBERS = X @ RNG.normal(size=(7, 3)) + RNG.normal(size=(60, 3)) + [5, 0, -100]
LABELS = np.array(["ant", "bee", "cat"])[np.digitize(NUMBERS[:, 0], [0, 8])]
MANY_LABELS = (NUMBERS > NUMBERS.mean(axis=0)).astype(int)
S = RNG.uniform(0.1, 3, 60)


def assert_same_attributes(ours, theirs, rtol=1e-7):
    for name in ("coef_", "intercept_"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert np.shape(a) == np.shape(b) and np.asarray(a).dtype == np.asarray(b).dtype, name
        assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(theirs.coef_).max())
    assert isinstance(ours.intercept_, np.ndarray) == isinstance(theirs.intercept_, np.ndarray)


@pairwise(
    y={"one": NUMBERS[:, 0], "column": NUMBERS[:, :1], "three": NUMBERS},
    fit_intercept=[True, False],
    alpha=[1e-4, 1.0, 1e4],
    weights={"even": None, "number": 2.5, "array": S},
)
def test_ridge_is_scikit_learn_s(y, fit_intercept, alpha, weights):
    ours = Ridge(alpha, fit_intercept=fit_intercept).fit(X, y, sample_weight=weights)
    theirs = sklearn.linear_model.Ridge(alpha, fit_intercept=fit_intercept, solver="svd")
    theirs.fit(X, y, sample_weight=weights)
    assert_same_attributes(ours, theirs)
    assert ours.predict(X).shape == theirs.predict(X).shape
    assert_allclose(ours.predict(X), theirs.predict(X))
    assert_allclose(ours.score(X, y), theirs.score(X, y))


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_more_columns_than_rows(fit_intercept):
    y = WIDE @ RNG.normal(size=(50, 2))
    for alpha in (1e-3, 10.0):
        ours = Ridge(alpha, fit_intercept=fit_intercept).fit(WIDE, y)
        assert_same_attributes(ours, sklearn.linear_model.Ridge(alpha, fit_intercept=fit_intercept).fit(WIDE, y), 1e-6)


def test_without_a_penalty_it_is_least_squares():
    ours, theirs = Ridge(0.0).fit(X, NUMBERS), sklearn.linear_model.LinearRegression().fit(X, NUMBERS)
    assert_same_attributes(ours, theirs)


def test_a_penalty_a_target():
    alphas = [0.1, 100.0, 3.0]
    ours = Ridge(alphas).fit(X, NUMBERS)
    assert_same_attributes(ours, sklearn.linear_model.Ridge(alphas).fit(X, NUMBERS))
    for one, alpha, column in zip(ours.coef_, alphas, NUMBERS.T, strict=True):
        assert_allclose(one, Ridge(alpha).fit(X, column).coef_)
    assert_allclose(Ridge([2.0]).fit(X, NUMBERS).coef_, Ridge(2.0).fit(X, NUMBERS).coef_)


def test_penalties_that_do_not_fit_are_refused():
    with pytest.raises(FeatxError, match="Number of targets and number of penalties do not correspond: 2 != 3"):
        Ridge([1, 2]).fit(X, NUMBERS)
    with pytest.raises(FeatxError, match="every alpha must be at least 0; got -1$"):
        Ridge([1, -1, 2]).fit(X, NUMBERS)


def test_one_call_serves_all_penalties_whatever_else_is_set(monkeypatch):
    calls = []
    solve = solvers.solve

    def counted(X, y, problems, *args, **options):
        calls.append(len(problems))
        return solve(X, y, problems, *args, **options)

    monkeypatch.setattr(solvers, "solve", counted)
    fits = [Fit({"alpha": alpha, "tol": tol}) for alpha in (0.1, [1, 2, 3]) for tol in (1e-3, 1e-9)]
    models = Ridge().fit_many(X, NUMBERS, fits)
    assert calls == [4]
    assert_same_attributes(models[2], sklearn.linear_model.Ridge([1, 2, 3]).fit(X, NUMBERS))


def test_float32_stays_float32():
    for y in (NUMBERS[:, 0], NUMBERS, NUMBERS.astype(np.float32)):
        ours = Ridge().fit(X.astype(np.float32), y)
        theirs = sklearn.linear_model.Ridge().fit(X.astype(np.float32), y)
        assert_same_attributes(ours, theirs, 1e-3)
        assert ours.predict(X.astype(np.float32)).dtype == np.float32


# the classifier


@pairwise(
    rows={"three": LABELS != "", "two": LABELS != "cat"},
    fit_intercept=[True, False],
    weights={"even": None, "array": S},
    class_weight={"even": None, "balanced": "balanced", "dict": {"ant": 3.0, "bee": 0.5}},
)
def test_the_classifier_is_scikit_learn_s(rows, fit_intercept, weights, class_weight):
    parameters = {"alpha": 0.7, "fit_intercept": fit_intercept, "class_weight": class_weight}
    s = None if weights is None else weights[rows]
    ours = RidgeClassifier(**parameters).fit(X[rows], LABELS[rows], sample_weight=s)
    theirs = sklearn.linear_model.RidgeClassifier(**parameters).fit(X[rows], LABELS[rows], sample_weight=s)
    assert_same_attributes(ours, theirs)
    assert_array_equal(ours.classes_, theirs.classes_)
    assert_allclose(ours.decision_function(X), theirs.decision_function(X), atol=1e-9)
    assert_array_equal(ours.predict(X), theirs.predict(X))


@pytest.mark.parametrize("y, class_weight", [(MANY_LABELS, None), (MANY_LABELS[:, :2], "balanced")])
def test_several_labels_a_row(y, class_weight):
    ours = RidgeClassifier(class_weight=class_weight).fit(X, y, sample_weight=S)
    theirs = sklearn.linear_model.RidgeClassifier(class_weight=class_weight).fit(X, y, sample_weight=S)
    assert_same_attributes(ours, theirs)
    assert_array_equal(ours.classes_, theirs.classes_)
    assert_array_equal(ours.predict(X), theirs.predict(X))
    there = S > 1
    removed = RidgeClassifier(class_weight=class_weight).fit(X[there], y[there])
    assert_allclose(RidgeClassifier(class_weight=class_weight).fit(X, y, sample_weight=there).coef_, removed.coef_)


def test_targets_that_are_no_labels_are_refused():
    with pytest.raises(ValueError, match="Unknown label type"):
        RidgeClassifier().fit(X, NUMBERS[:, 0])
    with pytest.raises(ValueError, match="y should be a 1d array"):
        RidgeClassifier().fit(X, np.arange(120).reshape(60, 2) % 3)
    with pytest.raises(FeatxError, match="RidgeClassifier takes dense arrays, and y is sparse"):
        RidgeClassifier().fit(X, sparse.csr_array(MANY_LABELS))
    with pytest.raises(ValueError, match="class_weight should be a list of dicts"):
        RidgeClassifier(class_weight={0: 1}).fit(X, MANY_LABELS)


def test_a_column_of_labels_is_taken_with_a_warning():
    with pytest.warns(DataConversionWarning, match="A column-vector y was passed"):
        column = RidgeClassifier().fit(X, LABELS[:, None])
    assert_allclose(column.coef_, RidgeClassifier().fit(X, LABELS).coef_)


def test_what_has_no_effect_has_none():
    plain = Ridge().fit(X, NUMBERS)
    before = X.copy()
    other = Ridge(copy_X=False, max_iter=1, tol=1.0, solver="sag", random_state=3).fit(X, NUMBERS)
    assert_array_equal(plain.coef_, other.coef_)
    assert_array_equal(X, before)
