"""Data and fits at the edges of what linear models take: each once gave a wrong answer, a crash or a false warning."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.linear_model
import sklearn.svm
import torch
from numpy.testing import assert_allclose, assert_array_equal
from pairwise import pairwise

from featx.errors import FeatxError
from featx.learn import Fit, LinearSVC, LogisticRegression, Ridge, RidgeClassifier
from featx.solvers import Loss, Problem, solve

CLASSIFIERS = [LogisticRegression, LinearSVC]


def rows(dtype: type = np.float64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(80, 6)).astype(dtype), rng.integers(0, 4, 80)


@pairwise(
    shape={"wide": (4, 5), "tall": (8, 5)}, intercept=[True, False], model=CLASSIFIERS, dtype=[np.float32, np.float64]
)
def test_rows_that_are_all_alike_have_no_coefficients(shape, intercept, model, dtype):
    X = np.full(shape, float(intercept), dtype)
    fitted = model(fit_intercept=intercept).fit(X, np.arange(len(X)) % 2)
    assert_allclose(fitted.coef_, 0, atol=1e-6)


@pairwise(model=CLASSIFIERS, dtype=[np.float32, np.float64])
def test_classes_that_nothing_tells_apart_are_no_cause_for_a_warning(model, dtype):
    X, _ = rows(dtype)
    fitted = model().fit(np.vstack([X, X]), np.repeat([0, 1], len(X)))
    assert_allclose(fitted.coef_, 0, atol=1e-4)


@pytest.mark.parametrize("size", [1e-5, 1e-6, 1e-8])
def test_small_columns_are_no_cause_for_a_warning(size):
    X, y = rows(np.float32)
    assert_allclose(LogisticRegression().fit(X * np.float32(size), y).coef_, 0, atol=size * 100)


@pytest.mark.parametrize("model", CLASSIFIERS)
def test_a_fit_does_not_feel_the_others_of_its_call(model):
    X, y = rows(np.float32)
    _, beside = model().fit_many(X, y, [Fit({"C": 1e-20}), Fit({"C": 1.0})])
    assert_allclose(beside.coef_, model().fit(X, y).coef_, atol=1e-3)


def test_class_factors_are_of_one_problem():
    X, y = rows()
    weighted = Problem(1.0, class_factors=np.array([1000.0, 1, 1, 1]))
    (alone,) = solve(X, y, [weighted], Loss.SQUARED_HINGE, tol=1e-6, max_iter=1000)
    _, beside = solve(X, y, [Problem(1.0), weighted], Loss.SQUARED_HINGE, tol=1e-6, max_iter=1000)
    assert_allclose(beside.objective, alone.objective, rtol=1e-6)
    assert beside.status is alone.status


def test_scales_of_a_call_change_nothing_but_their_own_fit():
    X, y = rows()
    scale = np.linspace(0.6, 1.9, 6)
    _, beside = LogisticRegression(tol=1e-8).fit_many(X, y, [Fit(), Fit(scale=scale)])
    (alone,) = LogisticRegression(tol=1e-8).fit_many(X, y, [Fit(scale=scale)])
    assert_allclose(beside.coef_, alone.coef_, atol=1e-6)


@pytest.mark.parametrize("C", [10.0, 1000.0])
def test_noise_in_more_columns_than_rows_ends_near_liblinear_s_objective(C):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(50, 57)), rng.integers(0, 3, 50)

    def objective(model):
        short = np.maximum(0, 1 - np.where(y[:, None] == model.classes_, 1, -1) * model.decision_function(X))
        return 0.5 * ((model.coef_**2).sum() + (model.intercept_**2).sum()) + C * (short**2).sum()

    theirs = sklearn.svm.LinearSVC(C=C, max_iter=100_000).fit(X, y)
    assert objective(LinearSVC(C=C, max_iter=5000).fit(X, y)) <= 1.001 * objective(theirs)


def test_uneven_columns_end_below_scikit_learn_s_objective():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(300, 80)) * 10 ** rng.uniform(-3, 3, 80), rng.integers(0, 3, 300)
    X += 3 * X.std(0) * rng.normal(size=(3, 80))[y]

    def objective(model):
        return 0.5 * (model.coef_**2).sum() - model.predict_log_proba(X)[np.arange(300), y].sum()

    theirs = sklearn.linear_model.LogisticRegression(max_iter=5000).fit(X, y)
    assert objective(LogisticRegression().fit(X, y)) < objective(theirs)


def test_a_class_that_float32_cannot_weigh_is_absent():
    X, y = rows(np.float32)
    fitted = LogisticRegression().fit(X, y, sample_weight=np.where(y == 0, 1e-50, 1))
    assert_array_equal(fitted.coef_.shape, (3, 6))
    assert np.isfinite(fitted.intercept_).all()


@pytest.mark.parametrize(
    "fit, got",
    [
        (Fit(scale=np.zeros(6)), "0.0"),
        (Fit(scale=np.full(6, np.nan)), "nan"),
        (Fit(shift=np.array([0, 0, 1, np.inf, 0, 0])), "inf"),
        (Fit(shift=np.ones(1)), r"shape \(1,\)"),
    ],
)
def test_a_shift_or_scale_that_cannot_be_used_is_refused(fit, got):
    X, y = rows()
    with pytest.raises(
        FeatxError, match=rf"Fit\.(shift|scale) must have a number for each of the 6 columns, .* got {got}$"
    ):
        LogisticRegression().fit_many(X, y, [fit])


def test_shifts_and_fits_may_be_lists_and_generators():
    X, y = rows()
    (listed,) = LogisticRegression().fit_many(X, y, (Fit(shift=[1.0] * 6) for _ in range(1)))
    (array,) = LogisticRegression().fit_many(X, y, [Fit(shift=np.ones(6))])
    assert_array_equal(listed.coef_, array.coef_)


@pytest.mark.parametrize(
    "weight, words",
    [
        (np.nan, "sample_weight must be finite; got nan"),
        (np.inf, "sample_weight must be finite; got inf"),
        (np.r_[np.ones(79), np.nan], "Input sample_weight contains NaN"),
        (np.r_[np.ones(79), np.inf], "Input sample_weight contains infinity"),
    ],
    ids=["nan", "inf", "a nan", "an inf"],
)
def test_a_weight_that_is_not_finite_is_refused(weight, words):
    for model in CLASSIFIERS:
        with pytest.raises(ValueError, match=words) as error:
            model().fit(*rows(), sample_weight=weight)
        assert "\n" not in str(error.value)


def test_targets_too_large_for_the_type_of_x_are_refused():
    X, y = rows(np.float32)
    with pytest.raises(FeatxError, match="too large"):
        Ridge().fit(X, y * 1e200)


def test_autocast_changes_nothing():
    X, y = rows(np.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = LogisticRegression().fit(X, y).coef_
    assert_array_equal(inside, LogisticRegression().fit(X, y).coef_)


@pytest.fixture
def other_defaults():
    """`other_defaults()`: from now on tensors are without values and of half precision, if nothing else is said."""

    def change() -> None:
        torch.set_default_device("meta")
        torch.set_default_dtype(torch.float16)

    yield change
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "model, shape, dtype",
    [
        (LogisticRegression(warm_start=True), (80, 6), np.float32),
        (LogisticRegression(warm_start=True), (20, 40), np.float64),
        (LinearSVC(class_weight="balanced"), (80, 6), np.float64),
        (LinearSVC(class_weight="balanced"), (20, 40), np.float32),
        (Ridge(), (80, 6), np.float32),
        (RidgeClassifier(), (20, 40), np.float64),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_torch_s_default_device_and_type_change_nothing(model, shape, dtype, other_defaults):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=shape).astype(dtype), np.arange(shape[0]) % 3
    fits = [Fit(), Fit(sample_weight=rng.uniform(0.5, 2, len(X)), shift=X.mean(axis=0), scale=X.std(axis=0))]

    def coefs() -> list[np.ndarray]:
        fitted = model.fit_many(X, y, fits)
        return [fit.coef_ for fit in [*fitted, fitted[0].fit(X, y)]]

    expected = coefs()
    other_defaults()
    for found, wanted in zip(coefs(), expected, strict=True):
        assert found.dtype == (np.float64 if isinstance(model, LinearSVC) else dtype)
        assert_array_equal(found, wanted)
