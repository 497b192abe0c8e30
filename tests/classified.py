"""Labelled rows for the solvers' tests, and what a solution is worth: measured anew, by the oracle's formulas."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import oracle
from numpy.testing import assert_allclose, assert_array_equal
from pairwise import pairwise

from featx.solvers import FREE, NONE, Loss, Problem, Solution, Status, solve

AXES = {
    "shape": {"tall": (60, 6), "wide": (16, 24)},
    "intercept": {"free": FREE, "none": NONE, "constant": 0.7},
    "loss": {"logistic": Loss.LOGISTIC, "hinge": Loss.SQUARED_HINGE},
    "k": {"two": 2, "three": 3},
}
OPTIONS = {"tol": 1e-9, "max_iter": 2000, "device": "cpu"}


def cases(*names: str, **more: Mapping[str, Any] | Sequence[Any]) -> Callable[..., Any]:
    """Parametrise a test by these of AXES and by others, so that any two levels meet."""
    return pairwise(**{name: AXES[name] for name in names}, **more)


def labelled(shape: tuple[int, int], k: int = 3, dtype: type = np.float64) -> tuple[np.ndarray, np.ndarray]:
    """X (n, d), y (n,): classes that overlap, of unequal sizes; columns with means of about 1."""
    n, d = shape
    rng = np.random.default_rng([n, d, k])
    y = rng.permutation(np.r_[np.repeat(np.arange(k), 3), rng.integers(0, k, n - 3 * k)])
    X = rng.normal(size=shape) * np.logspace(0.3, -0.3, d) + 0.5 * rng.normal(size=(k, d))[y] + rng.normal(size=d)
    return X.astype(dtype), y


def folds(n: int, y: np.ndarray) -> list[np.ndarray]:
    """Two folds and a fold of weighted rows; every class keeps rows."""
    rng = np.random.default_rng(n)
    turns = np.empty(n, int)
    for c in np.unique(y):
        turns[y == c] = np.arange((y == c).sum()) % 3
    return [(turns != 0).astype(float), (turns != 1).astype(float), rng.uniform(0.1, 3, n) * (turns != 2)]


def solved(X: np.ndarray, y: np.ndarray, problems: Iterable[Problem], loss: Loss, **options: object) -> list[Solution]:
    return solve(X, y, list(problems), loss, **(OPTIONS | options))  # type: ignore[arg-type]


def assert_best(
    X: np.ndarray, y: np.ndarray, problems: list[Problem], loss: Loss, rtol: float = 1e-4, **options: object
) -> list[Solution]:
    """The solvers' answers are the oracle's, and their certificates true."""
    found = solved(X, y, problems, loss, **options)
    for ours, theirs, problem in zip(found, oracle.solve(X, y, problems, loss, **OPTIONS), problems, strict=True):
        assert_allclose(ours.objective, theirs.objective, rtol=rtol / 100, atol=1e-9)
        assert_same(ours, theirs, rtol)
        objective, gradient_norm = certificate(X, y, problem, loss, ours)
        assert_allclose(ours.objective, objective, rtol=1e-9)
        assert ours.status is Status.CONVERGED
        # a free intercept is measured where all problems' columns are centred, here where one's are
        assert gradient_norm <= 1.05 * (OPTIONS | options)["tol"] + 1e-12
    return found


def assert_same(ours: Solution, theirs: Solution, rtol: float) -> None:
    """Of the same classes, coefficients and intercepts, compared with the largest of each."""
    assert_array_equal(ours.classes, theirs.classes)
    assert ours.coef.dtype == theirs.coef.dtype and ours.intercept.dtype == theirs.intercept.dtype
    assert_allclose(ours.coef, theirs.coef, atol=rtol * np.abs(theirs.coef).max(), rtol=0)
    size = max(np.abs(theirs.intercept).max(), np.abs(theirs.coef).max())
    assert_allclose(ours.intercept, theirs.intercept, atol=rtol * size, rtol=0)


def assert_all_same(ours: list[Solution], theirs: list[Solution], rtol: float = 1e-6) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert_same(one, other, rtol)
        assert_allclose(one.objective, other.objective, rtol=rtol, atol=1e-12)


def certificate(X: np.ndarray, y: np.ndarray, problem: Problem, loss: Loss, solution: Solution) -> tuple[float, float]:
    """The objective at a solution, and its gradient's norm relative to that at W = 0 with the best intercept there."""
    rows, classes, means = oracle.rows_of(X, y, problem, loss)
    assert_array_equal(classes, solution.classes)
    theta = solution.coef.T.astype(np.float64)
    free = problem.intercept == FREE
    if free:
        theta = np.vstack([theta, solution.intercept + means @ theta])
    elif problem.intercept != NONE:
        theta = np.vstack([theta, solution.intercept / problem.intercept])
    if loss is Loss.LOGISTIC and theta.shape[1] > 1:
        parts = [(oracle._multinomial(rows), theta)]
    else:
        one = oracle._binary if loss is Loss.LOGISTIC else oracle._squared_hinge
        parts = [(one(rows.column(c)), theta[:, c : c + 1]) for c in range(theta.shape[1])]
    objective, here, at_zero = 0.0, 0.0, 0.0
    for evaluate, at in parts:
        intercept = np.zeros_like(at, bool)
        intercept[-1] = free
        value, gradient, _ = evaluate(at.ravel())
        null = oracle._newton(evaluate, np.zeros(at.size), intercept.ravel())
        objective, here = objective + value, np.hypot(here, np.linalg.norm(gradient))
        at_zero = np.hypot(at_zero, np.linalg.norm(evaluate(null)[1]))
    return objective, here / at_zero
