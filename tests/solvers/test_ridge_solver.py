"""Ridge regression in closed form: the oracle's solution, whatever problems are made of and however X is read."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import oracle
import sklearn.linear_model
import torch
from numpy.testing import assert_allclose, assert_array_equal
from pairwise import pairwise

from featx.solvers import FREE, NONE, Loss, Problem, Solution, Status, solve, squares

INTERCEPTS = {"free": FREE, "none": NONE, "one": 1.0, "constant": 0.3}
SHAPES = {"tall": (40, 7), "wide": (12, 30)}
DTYPES = [np.float32, np.float64]
OPTIONS = {"tol": 1e-9, "max_iter": 1, "device": "cpu"}


def rows(shape: tuple[int, int], dtype: type = np.float64) -> tuple[np.ndarray, np.ndarray]:
    """X (n, d) with means of about 1 and three targets."""
    rng = np.random.default_rng(shape)
    X = rng.normal(size=shape) * np.logspace(-0.5, 0.5, shape[1]) + rng.normal(size=shape[1])
    Y = X @ rng.normal(size=(shape[1], 3)) + rng.normal(size=(shape[0], 3)) + [5, 0, -20]
    return X.astype(dtype), Y.astype(dtype)


def solved(X: np.ndarray, Y: np.ndarray, *problems: Problem, **options: int) -> list[Solution]:
    return solve(X, Y, problems, Loss.SQUARED_ERROR, **(OPTIONS | options))


def assert_best(X: np.ndarray, Y: np.ndarray, *problems: Problem, rtol: float = 1e-9) -> None:
    """The solvers' answers are the oracle's: coefficients, intercepts and objectives."""
    found = solved(X, Y, *problems)
    for ours, theirs in zip(found, oracle.solve(X, Y, problems, Loss.SQUARED_ERROR, **OPTIONS), strict=True):
        assert_same(ours, theirs, rtol)
        assert ours.status is Status.CONVERGED and ours.n_iter == 1
        assert_array_equal(ours.classes, np.arange(Y.shape[1]))
        assert ours.coef.dtype == ours.intercept.dtype == X.dtype


def assert_same(ours: Solution, theirs: Solution, rtol: float = 1e-9) -> None:
    assert_allclose(ours.coef, theirs.coef, rtol=rtol, atol=rtol * np.abs(theirs.coef).max())
    assert_allclose(ours.intercept, theirs.intercept, rtol=rtol, atol=rtol * np.abs(theirs.intercept).max())
    assert_allclose(ours.objective, theirs.objective, rtol=rtol, atol=1e-12)


def folds(n: int) -> list[np.ndarray]:
    """Three folds, the same with row weights, and one that shares nothing with them."""
    rng = np.random.default_rng(n)
    kept = [np.arange(n) % 3 != fold for fold in range(3)]
    s = rng.uniform(0.1, 3, n)
    return [fold.astype(float) for fold in kept] + [s * kept[0], rng.uniform(0, 1, n) * (rng.uniform(size=n) < 0.8)]


@pairwise(shape=SHAPES)
def test_it_is_the_minimum(shape):
    for intercept, l2 in product(INTERCEPTS.values(), (1e-8, 1.0, 1e4, np.array([0.1, 100.0, 3.0]))):
        assert_best(*rows(shape), Problem(l2, intercept=intercept))


@pairwise(shape=SHAPES)
def test_weights_of_which_some_are_zero(shape):
    for intercept in INTERCEPTS.values():
        assert_best(*rows(shape), *(Problem(0.5, s, intercept=intercept) for s in folds(shape[0])))


@pairwise(shape=SHAPES)
def test_a_shift_and_a_scale_are_of_the_columns(shape):
    X, Y = rows(shape)
    scale = X.std(axis=0) * np.where(np.arange(shape[1]) % 2, 1, -1)
    for intercept in INTERCEPTS.values():
        problem = Problem(0.5, folds(shape[0])[0], X.mean(axis=0), scale, intercept)
        assert_best(X, Y, problem, replace(problem, shift=None), replace(problem, scale=None))
        (ours,) = solved(X, Y, problem)
        (moved,) = solved((X - X.mean(axis=0)) / scale, Y, replace(problem, shift=None, scale=None))
        assert_same(ours, moved)


@pairwise(shape=SHAPES)
def test_many_at_once_are_as_one_by_one(shape):
    X, Y = rows(shape)
    shift, scale, every = X.mean(axis=0), X.std(axis=0), [None, *folds(shape[0])]
    problems = [
        Problem(l2, s, *moved, intercept)
        for l2 in (0.0, 0.1, np.array([1.0, 2.0, 30.0]))
        for s in every
        for moved in ((None, None), (shift, scale), (shift, None))
        for intercept in (FREE, NONE, 0.5)
    ]
    for together, problem in zip(solved(X, Y, *problems), problems, strict=True):
        assert_same(together, *solved(X, Y, problem))


@pairwise(shape=SHAPES)
def test_of_many_minima_it_is_the_smallest(shape):
    X, Y = rows(shape)
    X[:, 1] = X[:, 0]
    X[:, 3] = X[:, 2] - 2 * X[:, 4]
    for intercept in INTERCEPTS.values():
        assert_best(X, Y, *(Problem(0.0, s, intercept=intercept) for s in (None, *folds(shape[0]))), rtol=1e-7)


@pairwise(shape=SHAPES)
def test_float32_is_solved_as_exactly_as_it_can_be_written(shape):
    X, Y = rows(shape, np.float32)
    for intercept, l2 in product(INTERCEPTS.values(), (1e-3, 1.0)):
        assert_best(X, Y, Problem(l2, folds(shape[0])[0].astype(np.float32), intercept=intercept), rtol=2e-6)


def test_float32_with_nearly_dependent_columns():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 5)).astype(np.float32)
    X[:, 1] = X[:, 0] + 1e-4 * X[:, 1]
    Y = X[:, :2] @ np.array([[1000.0], [-1000.0]], np.float32) + 5
    problems = [Problem(0.0), Problem(1e-6)]
    for ours, theirs in zip(
        solved(X, Y, *problems), oracle.solve(X, Y, problems, Loss.SQUARED_ERROR, **OPTIONS), strict=True
    ):
        assert_allclose(ours.coef, theirs.coef, rtol=1e-6, atol=1e-4)


def test_large_means_of_float32_columns():
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(300, 6)) + 1e4).astype(np.float32)
    Y = (X @ rng.normal(size=(6, 2)) + rng.normal(size=(300, 2))).astype(np.float32)
    assert_best(X, Y, Problem(0.0), Problem(1.0), Problem(1.0, folds(300)[0]), rtol=1e-5)


@pairwise(shape=SHAPES)
def test_constant_and_duplicate_columns(shape):
    X, Y = rows(shape)
    X[:, 0], X[:, 1], X[:, 2] = 7.3, 0.0, X[:, 3]
    for intercept in (FREE, NONE, 1.0):
        assert_best(X, Y, Problem(0.0, intercept=intercept), Problem(1.0, intercept=intercept), rtol=1e-7)
    for one in solved(X, Y, Problem(0.0), Problem(1.0)):
        assert_array_equal(one.coef[:, :2], 0)
        assert_allclose(one.coef[:, 2], one.coef[:, 3])


@pairwise(intercept=INTERCEPTS)
def test_columns_of_very_different_sizes(intercept):
    X, Y = rows((40, 7))
    sizes = 10.0 ** np.resize([6, 0, -6], 7)
    for l2, s in product((0.0, 1e-3, 1.0, [1e-6, 1.0, 1e6]), (None, folds(40)[3])):
        problem = Problem(np.array(l2), s, intercept=intercept)
        (ours,), (theirs,) = (
            solved(X * sizes, Y, problem),
            oracle.solve(X * sizes, Y, [problem], Loss.SQUARED_ERROR, **OPTIONS),
        )
        assert_allclose(ours.objective, theirs.objective, rtol=1e-9)
        for column in range(7):
            assert_allclose(ours.coef[:, column], theirs.coef[:, column], rtol=1e-6)


@pairwise(intercept=INTERCEPTS)
def test_more_columns_than_rows_of_very_different_sizes(intercept):
    """Products of rows know of small columns what rounding leaves beside the large ones."""
    X, Y = rows((12, 30))
    sizes, problem = 10.0 ** np.resize([6, 0, -6], 30), Problem(1.0, intercept=intercept)
    (ours,), (theirs,) = (
        solved(X * sizes, Y, problem),
        oracle.solve(X * sizes, Y, [problem], Loss.SQUARED_ERROR, **OPTIONS),
    )
    assert_allclose(ours.objective, theirs.objective, rtol=1e-3)
    assert_best(X * sizes, Y, replace(problem, scale=sizes))


@pairwise(shape=SHAPES, size=[1e6, 1e-6])
def test_a_common_size_of_all_columns(shape, size):
    X, Y = rows(shape)
    (one,), (other,) = solved(X, Y, Problem(1.0)), solved(X * size, Y, Problem(size**2))
    assert_allclose(other.coef * size, one.coef)
    assert_allclose(other.intercept, one.intercept)


@pairwise(shape=SHAPES, dtype=DTYPES)
def test_a_map_that_is_larger_than_the_budget_is_as_an_array(shape, dtype, tmp_path: Path, monkeypatch):
    X, Y = rows(shape, dtype)
    mapped = np.memmap(tmp_path / "X", dtype, "w+", shape=shape)
    mapped[:] = X
    mapped.flush()
    mapped = np.memmap(tmp_path / "X", dtype, "r", shape=shape)
    problems = [Problem(l2, s, intercept=i) for l2 in (0.1, 10.0) for s in folds(shape[0]) for i in (FREE, NONE, 2.0)]
    read = []
    monkeypatch.setattr(
        squares.Rows, "block", lambda *args, block=squares.Rows.block: read.append(block(*args)) or read[-1]
    )
    streamed = solved(mapped, Y, *problems, budget_bytes=8_000)
    assert max(block.numel() for block in read) <= 8_000 // 32 < X.size
    for ours, theirs in zip(streamed, solved(X, Y, *problems), strict=True):
        assert_same(ours, theirs, 1e-9 if dtype is np.float64 else 1e-5)


def test_what_is_given_may_be_read_only_and_stays_as_it_was():
    X, Y = rows((40, 7))
    s, shift, scale, l2 = folds(40)[0], X.mean(axis=0), X.std(axis=0), np.array([1.0, 2, 3])
    given = X, Y, s, shift, scale, l2
    copies = [array.copy() for array in given]
    for array in given:
        array.flags.writeable = False
    solved(X, Y, Problem(l2, s, shift, scale), Problem(1.0, s, None, scale, 1.0))
    for array, copy in zip(given, copies, strict=True):
        assert_array_equal(array, copy)


@pairwise(shape=SHAPES)
def test_a_row_of_weight_zero_is_as_if_absent(shape):
    X, Y = rows(shape)
    s = folds(shape[0])[3]
    s[0], X[0] = 0, 1e30
    for intercept in INTERCEPTS.values():
        (ours,), (theirs,) = (
            solved(X, Y, Problem(0.5, s, intercept=intercept)),
            solved(X[s > 0], Y[s > 0], Problem(0.5, s[s > 0], intercept=intercept)),
        )
        assert_same(ours, theirs)


@pairwise(shape=SHAPES, intercept={"free": FREE, "none": NONE, "constant": 0.3}, dtype=DTYPES)
def test_the_gradient_s_norm_is_that_of_the_solution(shape, intercept, dtype):
    X, Y = rows(shape, dtype)
    X, s = X - X.mean(axis=0), np.ones(shape[0])
    l2 = np.array([0.1, 1.0, 10.0])
    (ours,) = solved(X, Y, Problem(l2, s, intercept=intercept))
    measured, _, _ = oracle.rows_of(X, Y, Problem(l2, s, intercept=intercept), Loss.SQUARED_ERROR)
    constant = {FREE: 1.0, NONE: None}.get(intercept, intercept)
    theta = ours.coef.T.astype(np.float64)
    if constant is not None:
        theta = np.vstack([theta, ours.intercept / constant])
    start = np.zeros_like(theta)
    if intercept == FREE:
        start[-1] = Y.mean(axis=0, dtype=np.float64)
    norms = [
        np.linalg.norm(measured.A.T @ (measured.A @ at - measured.y) + measured.penalties * at) for at in (theta, start)
    ]
    wanted = norms[0] / norms[1]
    if dtype is np.float64:
        assert max(ours.gradient_norm, wanted) < 1e-12
    else:  # the intercept was rounded once more, when the means went into it
        assert 1e-8 < wanted < 1e-5 and 0.2 < ours.gradient_norm / wanted < 5


def test_targets_that_never_change():
    X, Y = rows((40, 7))
    (ours,) = solved(X, np.full_like(Y, 0.1), Problem(1.0))
    assert_array_equal(ours.coef, 0)
    assert_array_equal(ours.intercept, 0.1)
    assert ours.objective == ours.gradient_norm == 0


@pairwise(shape=SHAPES, fit_intercept=[True, False])
def test_it_is_scikit_learn_s(shape, fit_intercept):
    X, Y = rows(shape)
    s, alphas = folds(shape[0])[3], [1e-3, 1.0, 1e3]
    for ours, alpha in zip(
        solved(X, Y, *(Problem(a, s, intercept=FREE if fit_intercept else NONE) for a in alphas)), alphas, strict=True
    ):
        theirs = sklearn.linear_model.Ridge(alpha, fit_intercept=fit_intercept, solver="svd").fit(X, Y, s)
        assert_allclose(ours.coef, theirs.coef_, rtol=1e-6, atol=1e-9)
        assert_allclose(ours.intercept, theirs.intercept_, rtol=1e-6, atol=1e-9)


def test_folds_multiply_each_row_once():
    parts, shares = squares._parts(torch.from_numpy(np.stack(folds(40)[:3] + [np.ones(40)])))
    assert_array_equal((parts > 0).sum(0), 1)
    assert_allclose(shares @ parts, np.stack(folds(40)[:3] + [np.ones(40)]))
