"""LogisticRegression: scikit-learn's optimum, probabilities that hold at the ends, warm starts."""

from __future__ import annotations

import joblib
import numpy as np
import pytest
import sklearn.linear_model
from numpy.testing import assert_allclose, assert_array_equal
from pairwise import pairwise
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris, make_classification

from featx.errors import FeatxError
from featx.learn import LogisticRegression

TIGHT = LogisticRegression(tol=1e-9, max_iter=5000)


def rows(k, dtype=np.float64):
    """(120, 6) overlapping classes 0 to k - 1, of unequal sizes."""
    shares = [0.6] if k == 2 else [0.4, 0.3, 0.2]
    X, y = make_classification(
        120, 6, n_informative=4, n_redundant=0, n_classes=k, weights=shares, class_sep=0.5, flip_y=0.1, random_state=0
    )
    return X.astype(dtype), y


def objective(model, X, y, s, C):
    chosen = model.predict_log_proba(X)[np.arange(len(y)), np.searchsorted(model.classes_, y)]
    return -s @ chosen + (model.coef_**2).sum() / (2 * C)


CLASS_WEIGHTS = {"even": None, "balanced": "balanced", "dict": {0: 5.0, 1: 0.3}}


@pairwise(k=[2, 4], fit_intercept=[True, False], class_weight=CLASS_WEIGHTS, C=[1e-4, 1.0, 1e4, np.inf])
def test_it_finds_scikit_learn_s_optimum(k, fit_intercept, class_weight, C):
    X, y = rows(k)
    s = np.random.default_rng(k).uniform(0.1, 3, len(y))
    parameters = {"C": C, "fit_intercept": fit_intercept, "class_weight": class_weight}
    ours = clone(TIGHT).set_params(**parameters).fit(X, y, sample_weight=s)
    theirs = sklearn.linear_model.LogisticRegression(solver="newton-cholesky", tol=1e-10, max_iter=1000, **parameters)
    theirs.fit(X, y, sample_weight=s)
    total = s.copy()
    for label in range(k):
        factor = (
            s.sum() / (k * s[y == label].sum()) if class_weight == "balanced" else (class_weight or {}).get(label, 1)
        )
        total[y == label] *= factor
    best = objective(theirs, X, y, total, C)
    assert objective(ours, X, y, total, C) <= best * (1 + 1e-9)
    assert_allclose(objective(ours, X, y, total, C), best, rtol=1e-6)
    assert ours.coef_.shape == theirs.coef_.shape and ours.intercept_.shape == theirs.intercept_.shape
    if k > 2:  # the same added to all classes changes nothing: ours add to nothing, as those of solver="lbfgs"
        assert_allclose(ours.coef_.sum(axis=0), 0, atol=1e-12 * np.abs(ours.coef_).max())
        assert_allclose(ours.intercept_.sum(), 0, atol=1e-12 * np.abs(ours.intercept_).max())
    centre = 1 if k > 2 else 0
    for got, wanted in ((ours.coef_, theirs.coef_), (ours.intercept_, theirs.intercept_)):
        got, wanted = got - centre * got.mean(axis=0), wanted - centre * wanted.mean(axis=0)
        assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * np.abs(theirs.coef_).max())


@pytest.mark.parametrize("k", [2, 4])
def test_at_the_default_tolerance_the_objective_is_no_worse_than_scikit_learn_s(k):
    X, y = rows(k)
    for C in (1e-3, 1.0, 1e3):
        ours, theirs = LogisticRegression(C=C).fit(X, y), sklearn.linear_model.LogisticRegression(C=C).fit(X, y)
        assert objective(ours, X, y, np.ones(120), C) <= objective(theirs, X, y, np.ones(120), C) * (1 + 1e-6)


@pytest.mark.parametrize(
    "name, C", [("digits", 1e-3), ("digits", 10.0), ("iris", 0.1), ("iris", 1e3), ("wide", 1e-3), ("wide", 1e3)]
)
def test_it_is_no_worse_on_well_known_rows_and_on_more_columns_than_rows(name, C):
    if name == "wide":
        X, y = make_classification(100, 300, n_informative=150, n_classes=5, random_state=2)
    else:
        X, y = {"digits": load_digits, "iris": load_iris}[name](return_X_y=True)
    theirs = sklearn.linear_model.LogisticRegression(C=C, max_iter=2000).fit(X, y)
    best = objective(theirs, X, y, np.ones(len(y)), C)
    assert objective(LogisticRegression(C=C).fit(X, y), X, y, np.ones(len(y)), C) <= best * (1 + 1e-6)


@pytest.mark.parametrize("k, dtype", [(2, np.float64), (4, np.float32)])
def test_probabilities_are_scikit_learn_s_and_logarithms_hold_where_these_round_to_zero(k, dtype):
    X, y = rows(k, dtype)
    model = LogisticRegression().fit(X, y)
    theirs = sklearn.linear_model.LogisticRegression().fit(X, y)
    theirs.coef_, theirs.intercept_ = model.coef_, model.intercept_
    tolerance = 10 * np.finfo(dtype).eps
    assert model.predict_proba(X).dtype == dtype
    assert_allclose(model.predict_proba(X), theirs.predict_proba(X), rtol=0, atol=tolerance)
    assert_allclose(model.predict_proba(X).sum(axis=1), 1, rtol=tolerance)
    assert_allclose(np.exp(model.predict_log_proba(X)), model.predict_proba(X), rtol=10 * tolerance)
    far = 1e5 * X
    logarithms = model.predict_log_proba(far)
    assert np.isfinite(logarithms).all() and logarithms.min() < -1e4
    scores = model.decision_function(far)
    margins = np.abs(scores) if k == 2 else np.sort(scores)[:, -1] - np.sort(scores)[:, 0]
    assert_allclose(logarithms.max(axis=1) - logarithms.min(axis=1), margins, rtol=1e-4)
    assert_array_equal(model.classes_[logarithms.argmax(axis=1)], model.predict(far))


def test_attributes_are_as_of_scikit_learn():
    for k, m in ((2, 1), (4, 4)):
        for fit_intercept in (True, False):
            X, y = rows(k, np.float32)
            ours = LogisticRegression(fit_intercept=fit_intercept).fit(X, y)
            theirs = sklearn.linear_model.LogisticRegression(fit_intercept=fit_intercept).fit(X, y)
            for name in ("coef_", "intercept_", "classes_", "n_iter_"):
                a, b = getattr(ours, name), getattr(theirs, name)
                assert a.shape == b.shape and a.dtype == b.dtype, name
            assert ours.coef_.shape == (m, 6)
            assert fit_intercept or not ours.intercept_.any()


@pytest.mark.parametrize("k", [2, 4])
def test_a_warm_start_goes_on_from_where_the_last_fit_ended(k):
    X, y = rows(k)
    cold = LogisticRegression(tol=1e-6, max_iter=1000).fit(X, y)
    warm = clone(cold).set_params(warm_start=True).fit(X, y)
    assert warm.n_iter_[0] == cold.n_iter_[0]  # nothing to start from yet
    coef = warm.coef_
    warm.fit(X, y)
    assert warm.n_iter_[0] <= 3 <= cold.n_iter_[0]
    assert_allclose(warm.coef_, coef, rtol=1e-4, atol=1e-6)
    again = cold.fit(X, y)
    assert again.n_iter_[0] > 3  # only where it was asked for


def test_a_warm_start_needs_the_same_classes_and_columns():
    X, y = rows(4)
    model = LogisticRegression(warm_start=True, max_iter=1000).fit(X, y)
    for wrong in ((X, y > 0), (X[:, :5], y)):
        with pytest.raises(FeatxError, match=r"warm_start needs the classes .* coef_ has shape \(4, 6\).*clone"):
            model.fit(*wrong)
    predicted = model.predict(X)  # the model of before is still there
    assert_array_equal(model.fit(X, y).predict(X), predicted)


def test_a_warm_start_begins_from_sparse_coefficients_too():
    X, y = rows(4)
    dense = LogisticRegression(warm_start=True).fit(X, y)
    sparse = LogisticRegression(warm_start=True).fit(X, y).sparsify()
    assert_array_equal(sparse.fit(X, y).coef_, dense.fit(X, y).coef_)
    assert sparse.n_iter_ == dense.n_iter_


def test_a_warm_start_begins_from_a_model_whose_arrays_are_memory_maps(tmp_path):
    X, y = rows(4)
    model = LogisticRegression(warm_start=True, max_iter=1000).fit(X, y)
    joblib.dump(model, tmp_path / "model.joblib")
    mapped = joblib.load(tmp_path / "model.joblib", mmap_mode="r")
    before = mapped.coef_
    assert not before.flags.writeable
    assert_array_equal(mapped.fit(X, y).coef_, model.fit(X, y).coef_)
    assert mapped.coef_.flags.writeable and mapped.coef_ is not before


def test_coefficients_can_be_sparse_for_prediction():
    X, y = rows(4)
    model = LogisticRegression().fit(X, y)
    predicted = model.predict(X)
    assert_array_equal(model.sparsify().predict(X), predicted)
    assert_array_equal(model.densify().predict(X), predicted)


@pytest.mark.parametrize(
    "changed",
    [
        {"solver": "sag", "random_state": 1},
        {"dual": True, "intercept_scaling": 7.0},
        {"verbose": 1},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_what_has_no_effect_has_none(changed, capsys):
    X, y = rows(4)
    plain, other = LogisticRegression().fit(X, y), LogisticRegression(**changed).fit(X, y)
    assert_array_equal(plain.coef_, other.coef_)
    assert capsys.readouterr() == ("", "")
