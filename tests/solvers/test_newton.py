"""Problems unlike image features: whatever ends as converged is near its minimum, and what can be solved is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oracle
import pytest
from classified import OPTIONS, assert_best, cases, folds, labelled, solved

from featx.solvers import FREE, Loss, Problem, Status, newton

DEFAULT = {"tol": 1e-4, "max_iter": 1000}


def rows(
    n: int, d: int, k: int, spread: float = 0.0, scale: float = 1.0, correlated: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """X (n, d) of column scales from 10**-spread to 10**spread times `scale`, y (n,) of k classes that overlap."""
    rng = np.random.default_rng([n, d, k])
    y = rng.permutation(np.r_[np.arange(k), np.arange(k), rng.integers(0, k, n - 2 * k)])
    X = rng.normal(size=(n, d))
    if correlated:
        X = X * np.arange(1, d + 1) ** -1.0 @ np.linalg.qr(rng.normal(size=(d, d)))[0]
        X /= X.std()
    X += 3 * rng.normal(size=(k, d))[y] / np.sqrt(d)
    return X * scale * 10 ** rng.uniform(-spread, spread, d), y


def gap(X: np.ndarray, y: np.ndarray, problem: Problem, loss: Loss, objective: float) -> float:
    (best,) = oracle.solve(X.astype(np.float64), y, [problem], loss, **OPTIONS)
    return objective / best.objective - 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_squared_hinges_of_correlated_columns_more_than_rows(dtype):
    X, y = rows(42, 384, 2, scale=30, correlated=True)
    problem = Problem(1 / 21, intercept=1.0)
    (ours,) = solved(X.astype(dtype), y, [problem], Loss.SQUARED_HINGE, **DEFAULT)
    assert ours.status is Status.CONVERGED
    assert gap(X.astype(dtype), y, problem, Loss.SQUARED_HINGE, ours.objective) < (
        1e-4 if dtype is np.float32 else 1e-6
    )


@pytest.mark.parametrize(("l2", "k"), [(1 / 3e-4, 2), (1 / 3e-4, 5), (0.1, 2)])
def test_squared_hinges_of_weighted_rows_and_columns_of_many_scales(l2, k):
    X, y = rows(322, 150, k, spread=3)
    problem = Problem(l2, np.random.default_rng(0).uniform(0.1, 5, 322), intercept=1.0)
    (ours,) = solved(X, y, [problem], Loss.SQUARED_HINGE, **DEFAULT)
    assert ours.status is Status.CONVERGED
    assert gap(X, y, problem, Loss.SQUARED_HINGE, ours.objective) < 1e-6


@pytest.mark.parametrize("l2", [3e-4, 3e-2])
@pytest.mark.parametrize(
    ("n", "d", "k", "spread"), [(62, 30, 3, 0), (211, 110, 2, 0), (438, 24, 5, 3), (47, 128, 2, 2)]
)
def test_logistic_regression_ends_within_a_thousandth_of_its_minimum(n, d, k, spread, l2):
    X, y = rows(n, d, k, spread)
    (ours,) = solved(X, y, [Problem(l2)], Loss.LOGISTIC, **DEFAULT)
    assert ours.status is Status.CONVERGED
    assert gap(X, y, Problem(l2), Loss.LOGISTIC, ours.objective) < 1e-3


@cases("loss", cheap={"newton": True, "without": False}, max_iter=[15, 40, 300])
def test_what_is_called_converged_is_near_its_minimum(max_iter, cheap, loss, monkeypatch):
    if not cheap:
        monkeypatch.setattr(newton, "_HESSIAN", 0)
    X, y = rows(60, 40, 2, spread=1, correlated=True)
    weights = np.random.default_rng(0).uniform(0.1, 5, 60)
    problems = [Problem(l2, s, intercept=1.0) for l2 in (1e-6, 1e-3, 1.0, 1e3) for s in (None, weights)]
    found = solved(X, y, problems, loss, tol=1e-4, max_iter=max_iter)
    assert any(ours.status is Status.CONVERGED for ours in found)
    for ours, problem in zip(found, problems, strict=True):
        assert ours.n_iter <= max_iter
        if ours.status is Status.CONVERGED:
            assert gap(X, y, problem, loss, ours.objective) < 1e-3


@cases("shape", "intercept", "loss")
def test_newton_s_method_alone_finds_the_minimum(loss, intercept, shape, monkeypatch):
    """With one pass of L-BFGS before it; of penalties, weights, shifts and scales in one batch."""
    from importlib import import_module

    module = import_module("featx.solvers.solve")
    minimise = module.minimise
    monkeypatch.setattr(module, "minimise", lambda *a: minimise(*a[:-1], replace(a[-1], max_iter=1)))
    X, y = labelled(shape, 2)
    moved = [(None, None), (X.mean(axis=0), X.std(axis=0))]
    weights = (None, folds(len(y), y)[2])
    problems = [Problem(l2, s, *m, intercept) for l2 in (0.1, 30.0) for s in weights for m in moved]
    for ours in assert_best(X, y, problems, loss):
        assert ours.n_iter < 30


@pytest.mark.parametrize("intercept", [FREE, 1.0], ids=str)
def test_the_path_of_penalties_is_taken_where_newton_s_steps_are_short(intercept, monkeypatch):
    X, y = rows(97, 217, 2, spread=1)
    paths = []
    first = newton._first_penalty
    monkeypatch.setattr(newton, "_first_penalty", lambda *args: paths.append(1) or first(*args))
    problem = Problem(1e-5, np.random.default_rng(0).uniform(0.1, 5, 97), intercept=intercept)
    (ours,) = solved(X, y, [problem], Loss.SQUARED_HINGE, **DEFAULT)
    assert paths and ours.status is Status.CONVERGED
    assert gap(X, y, problem, Loss.SQUARED_HINGE, ours.objective) < 1e-6
