"""Classifiers, many at once: the oracle's optimum, whatever problems share the rows and however they are put."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from classified import (
    assert_all_same,
    assert_best,
    assert_same,
    cases,
    certificate,
    folds,
    labelled,
    solved,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from featx.errors import FeatxError
from featx.solvers import FREE, NONE, Loss, Problem, Status
from featx.solvers.groups import groups_of, subproblems_of
from featx.solvers.interning import array_numbers


@cases("shape", "intercept", "loss", "k")
def test_it_is_the_minimum(k, loss, intercept, shape):
    X, y = labelled(shape, k)
    assert_best(
        X,
        y,
        [Problem(l2, s, intercept=intercept) for l2 in (0.3, 3.0, 100.0) for s in (None, *folds(len(y), y))],
        loss,
    )


@cases("shape", "loss", "k")
def test_float32_is_solved_as_exactly_as_it_allows(k, loss, shape):
    X, y = labelled(shape, k, np.float32)
    problems = [Problem(l2, s.astype(np.float32)) for l2 in (1.0, 10.0) for s in folds(len(y), y)]
    for ours, theirs in zip(
        solved(X, y, problems, loss, tol=1e-5), solved(X.astype(np.float64), y, problems, loss), strict=True
    ):
        answered = np.float32 if loss is Loss.LOGISTIC else np.float64
        assert ours.coef.dtype == ours.intercept.dtype == answered
        assert_allclose(ours.objective, theirs.objective, rtol=1e-5)
        assert_allclose(ours.coef, theirs.coef, atol=1e-3 * np.abs(theirs.coef).max())
        assert ours.status is Status.CONVERGED


@cases("shape", "loss", "k")
def test_many_at_once_are_as_one_by_one(k, loss, shape):
    X, y = labelled(shape, k)
    shift, scale = X.mean(axis=0), X.std(axis=0)
    kinds = product(
        (None, folds(len(y), y)[2]), ((None, None), (shift, scale), (shift * 0.9, scale * 1.1)), (FREE, NONE, 0.5)
    )
    problems = [Problem((3.0, 30.0)[i % 2], s, *moved, intercept) for i, (s, moved, intercept) in enumerate(kinds)]
    assert_all_same(
        solved(X, y, problems, loss), [one for problem in problems for one in solved(X, y, [problem], loss)], 1e-5
    )


@cases("shape", "loss", "k")
def test_the_order_of_rows_does_not_matter(k, loss, shape):
    X, y = labelled(shape, k)
    s, order = folds(len(y), y)[2], np.random.default_rng(0).permutation(len(y))
    assert_all_same(
        solved(X[order], y[order], [Problem(10.0, s[order])], loss), solved(X, y, [Problem(10.0, s)], loss), 1e-5
    )


@cases("shape", "intercept", "loss")
def test_the_order_of_classes_does_not_matter(intercept, loss, shape):
    X, y = labelled(shape, 3)
    new = np.array([2, 0, 1])
    (ours,), (theirs,) = (solved(X, labels, [Problem(10.0, intercept=intercept)], loss) for labels in (new[y], y))
    assert_allclose(ours.coef[new], theirs.coef, atol=1e-6 * np.abs(theirs.coef).max())
    assert_allclose(ours.intercept[new], theirs.intercept, atol=1e-6)


@cases("intercept", "loss")
def test_two_classes_the_other_way_round_change_the_sign(intercept, loss):
    X, y = labelled((60, 6), 2)
    (ours,), (theirs,) = (solved(X, labels, [Problem(10.0, intercept=intercept)], loss) for labels in (1 - y, y))
    assert_allclose(ours.coef, -theirs.coef, atol=1e-7)
    assert_allclose(ours.intercept, -theirs.intercept, atol=1e-7)


@cases("shape", "loss", "k")
def test_weight_2_is_a_repeated_row(k, loss, shape):
    X, y = labelled(shape, k)
    twice = np.arange(len(y)) % 3 == 0
    for intercept in (FREE, NONE, 0.5):
        weighted = solved(X, y, [Problem(10.0, 1.0 + twice, intercept=intercept)], loss)
        repeated = solved(np.r_[X, X[twice]], np.r_[y, y[twice]], [Problem(10.0, intercept=intercept)], loss)
        assert_all_same(weighted, repeated, 1e-5)


@cases("shape", "loss", "k", outlier=[1.0, 100.0, 1e30])
def test_weight_0_is_a_removed_row(outlier, k, loss, shape):
    X, y = labelled(shape, k)
    s = folds(len(y), y)[2]
    s[0] = 0
    X[s == 0] *= outlier
    for intercept in (FREE, NONE, 0.5):
        weighted = solved(X, y, [Problem(10.0, s, intercept=intercept)], loss)
        removed = solved(X[s > 0], y[s > 0], [Problem(10.0, s[s > 0], intercept=intercept)], loss)
        assert_all_same(weighted, removed, 1e-5)


@cases("shape", "loss", k=[3, 4])
def test_a_class_of_weight_0_is_as_if_absent(k, loss, shape):
    X, y = labelled(shape, k)
    without = (y != 1).astype(float)
    together = solved(X, y, [Problem(10.0, without), Problem(10.0), Problem(3.0, without)], loss)
    alone = solved(X[y != 1], y[y != 1], [Problem(10.0), Problem(3.0)], loss)
    assert_array_equal(together[0].classes, [c for c in range(k) if c != 1])
    assert_array_equal(together[1].classes, np.arange(k))
    assert_all_same(together[::2], alone, 1e-5)


@cases("loss")
def test_one_class_is_refused(loss):
    X, y = labelled((60, 6), 3)
    with pytest.raises(FeatxError, match="two classes or more; problem 1 has 1"):
        solved(X, y, [Problem(10.0), Problem(10.0, (y == 2).astype(float))], loss)
    with pytest.raises(FeatxError, match="problem 0 has 1"):
        solved(X, np.zeros_like(y), [Problem(10.0)], loss)


@cases("shape", "intercept", "loss", "k", far={"near": False, "far": True})
def test_an_affine_problem_is_one_on_transformed_columns(far, k, loss, intercept, shape):
    """Several in one batch: a standardisation of each fold, or ones that have nothing in common."""
    X, y = labelled(shape, k)
    rng = np.random.default_rng(0)
    problems = []
    for s in folds(len(y), y)[1:]:
        mean = s @ X / s.sum()
        std = np.sqrt(s @ (X - mean) ** 2 / s.sum())
        if far:
            mean, std = mean + rng.normal(size=len(mean)) * 5, std * rng.choice([-30, 0.1, 1, 10], len(std))
        problems += [
            Problem(l2, s, shift, scale, intercept) for l2, shift, scale in ((10.0, mean, std), (100.0, mean, None))
        ]
    for ours, problem in zip(solved(X, y, problems, loss), problems, strict=True):
        moved = X if problem.shift is None else X - problem.shift
        moved = moved if problem.scale is None else moved / problem.scale
        (theirs,) = solved(moved, y, [replace(problem, shift=None, scale=None)], loss)
        assert_same(ours, theirs, 1e-4)
        assert_allclose(ours.objective, theirs.objective, rtol=1e-8)
        objective, gradient_norm = certificate(X, y, problem, loss, ours)
        assert_allclose(ours.objective, objective, rtol=1e-9)
        assert gradient_norm < 1e-8


@cases("intercept", "loss", "k", streamed={"resident": False, "streamed": True})
def test_few_columns_scaled_far_apart_keep_their_scales_and_share_the_rows(streamed, k, loss, intercept):
    """Nearly constant columns with an outlier, which one fold lacks."""
    n, budget = (2000, 3_000_000) if streamed else (200, None)
    X, y = labelled((n, 100), k)
    X[:, [3, 40]] *= 0.1
    X[0, 3], X[1, 40] = n**0.5 / 4, -(n**0.5) / 5
    problems = []
    for s in folds(len(y), y):
        mean = s @ X / s.sum()
        problems.append(Problem(10.0, s, mean, np.sqrt(s @ (X - mean) ** 2 / s.sum()), intercept))
    subproblems = [
        subproblem
        for i, (problem, arrays) in enumerate(zip(problems, array_numbers(problems), strict=True))
        for subproblem in subproblems_of(i, problem, arrays, y, loss.value, X.dtype)
    ]
    assert len(groups_of(subproblems, X.shape, 99)) == (len(problems) if intercept == NONE else 1)
    for ours, problem in zip(solved(X, y, problems, loss, budget_bytes=budget), problems, strict=True):
        (theirs,) = solved((X - problem.shift) / problem.scale, y, [replace(problem, shift=None, scale=None)], loss)
        assert_same(ours, theirs, 1e-4)
        assert_allclose(ours.objective, theirs.objective, rtol=1e-8)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("intercept", [FREE, 1.0])
def test_a_column_scaled_far_apart_is_measured_in_each_problems_own_scale(k, intercept):
    """Else the gap to the minimum, which ends a squared hinge, is thought to be small."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1500, 10)) @ rng.normal(size=(10, 80)) + 0.3 * rng.normal(size=(1500, 80))
    y = (X[:, :k] + rng.normal(size=(1500, k))).argmax(axis=1)
    near, far = X.std(axis=0), X.std(axis=0)
    far[3] *= 1000
    problems = [Problem(l2, None, X.mean(axis=0), scale, intercept) for scale in (near, far) for l2 in (1.0, 100.0)]
    found = solved(X, y, problems, Loss.SQUARED_HINGE, tol=1e-4)
    for ours, problem in zip(found, problems, strict=True):
        (theirs,) = solved(X, y, [problem], Loss.SQUARED_HINGE)
        assert ours.objective <= theirs.objective * (1 + 1e-6)


@cases("shape", "loss", "k")
def test_a_constant_on_x_only_moves_a_free_intercept(k, loss, shape):
    X, y = labelled(shape, k)
    away = np.linspace(-100, 100, shape[1])
    s = folds(len(y), y)[0]
    (ours,), (theirs,) = (solved(moved, y, [Problem(10.0, s)], loss) for moved in (X + away, X))
    assert_allclose(ours.coef, theirs.coef, atol=1e-5 * np.abs(theirs.coef).max())
    assert_allclose(ours.intercept + ours.coef @ away, theirs.intercept, atol=1e-4)
    assert_allclose(ours.objective, theirs.objective, rtol=1e-9)


@cases("intercept", "loss", "k")
def test_columns_of_zeros_change_nothing_however_many(k, loss, intercept):
    """With 60 of them there are more columns than rows."""
    X, y = labelled((40, 6), k)
    problems = [Problem(10.0, s, intercept=intercept) for s in folds(40, y)]
    (few, many) = (solved(np.c_[X, np.zeros((40, zeros))], y, problems, loss) for zeros in (3, 60))
    for a, b in zip(few, many, strict=True):
        assert max(np.abs(a.coef[:, 6:]).max(), np.abs(b.coef[:, 6:]).max()) < 1e-14
        assert_allclose(b.coef[:, :6], a.coef[:, :6], atol=1e-6 * np.abs(a.coef).max())
        assert_allclose(b.intercept, a.intercept, atol=1e-6)


@cases("intercept", "loss", "k")
def test_rows_of_weight_zero_change_nothing_however_many(k, loss, intercept):
    """With 60 of them there are more rows than columns."""
    X, y = labelled((16, 24), k)
    rng = np.random.default_rng(0)
    padded, classes = np.r_[X, rng.normal(size=(60, 24))], np.r_[y, rng.integers(0, k, 60)]
    s = np.r_[np.ones(16), np.zeros(60)]
    assert_all_same(
        solved(padded, classes, [Problem(10.0, s, intercept=intercept)], loss),
        solved(X, y, [Problem(10.0, intercept=intercept)], loss),
        1e-5,
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    n=st.integers(6, 40),
    d=st.integers(1, 12),
    k=st.integers(2, 4),
    loss=st.sampled_from([Loss.LOGISTIC, Loss.SQUARED_HINGE]),
    intercept=st.sampled_from([FREE, NONE, 1.0, -3.0]),
    l2=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_random_problems(n, d, k, loss, intercept, l2, seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * 10.0 ** rng.uniform(-1, 1, d) + rng.normal(size=d)
    y = np.r_[np.arange(k), rng.integers(0, k, n - k)]
    problems = [
        Problem(l2, s, shift, scale, intercept)
        for s in (None, np.where(np.arange(n) < k, 1.0, rng.integers(0, 3, n)))
        for shift, scale in ((None, None), (X.mean(axis=0), X.std(axis=0)))
    ]
    assert_best(X, y, problems, loss)


@cases("shape", "loss")
def test_rows_too_large_for_their_type_are_refused_with_advice(loss, shape):
    X, y = labelled(shape)
    for dtype, size in ((np.float32, 1e20), (np.float64, 1e160)):
        with pytest.raises(FeatxError, match=f"too large for {np.dtype(dtype).name}: standardise"):
            solved((X * size).astype(dtype), y, [Problem(1.0)], loss)
