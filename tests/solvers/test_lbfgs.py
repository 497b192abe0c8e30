"""Where minima are hard to find, how runs end, and where they begin."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
import torch
from classified import (
    OPTIONS,
    assert_all_same,
    assert_best,
    cases,
    certificate,
    folds,
    labelled,
    solved,
)
from numpy.testing import assert_allclose

from featx.solvers import FREE, NONE, Loss, Problem, Status, lbfgs, objective
from featx.solvers.history import HISTORY_SIZE, History


@cases("loss", "k", l2=[1e-4, 1.0])
def test_separable_classes(l2, k, loss):
    X, y = labelled((60, 6), k)
    X[:, :k] += 20 * np.eye(k)[y]
    problems = [Problem(l2, s) for s in (None, *folds(60, y))]
    for ours, theirs in zip(solved(X, y, problems, loss), oracle.solve(X, y, problems, loss, **OPTIONS), strict=True):
        assert ours.status is Status.CONVERGED
        assert_allclose(ours.objective, theirs.objective, rtol=1e-4)


@cases("shape", "loss", "k")
def test_constant_and_duplicate_columns(k, loss, shape):
    X, y = labelled(shape, k)
    X[:, 0], X[:, 1], X[:, 2] = 7.3, 0.0, X[:, 3]
    for ours in assert_best(X, y, [Problem(10.0, s) for s in folds(len(y), y)], loss):
        size = np.abs(ours.coef).max()
        assert_allclose(ours.coef[:, :2], 0, atol=1e-10 * size)
        assert_allclose(ours.coef[:, 2], ours.coef[:, 3], atol=1e-6 * size)
    assert_best(X, y, [Problem(10.0, folds(len(y), y)[2], intercept=i) for i in (NONE, 1.0)], loss)


@cases("shape", "loss", "k", size=[1e6, 1e-6])
def test_a_common_size_of_all_columns(size, k, loss, shape):
    X, y = labelled(shape, k)
    (ours,), (theirs,) = solved(X * size, y, [Problem(10 * size**2)], loss), solved(X, y, [Problem(10.0)], loss)
    assert_allclose(ours.coef * size, theirs.coef, atol=1e-5 * np.abs(theirs.coef).max())
    assert_allclose(ours.objective, theirs.objective, rtol=1e-9)


@cases("intercept", "loss", "k")
def test_columns_of_very_different_sizes(k, loss, intercept):
    X, y = labelled((60, 6), k)
    sizes = 10.0 ** np.resize([6, 0, -6], 6)
    problems = [Problem(l2, intercept=intercept) for l2 in (1.0, 1e4)]
    wanted = oracle.solve(X * sizes, y, problems, loss, **OPTIONS)
    for ours, theirs in zip(solved(X * sizes, y, problems, loss), wanted, strict=True):
        assert_allclose(ours.objective, theirs.objective, rtol=1e-6)


@cases("shape", "intercept", "loss", "k")
def test_a_scale_makes_columns_of_very_different_sizes_alike(k, loss, intercept, shape):
    X, y = labelled(shape, k)
    sizes = 10.0 ** np.resize([6, 0, -6], shape[1])
    assert_best(X * sizes, y, [Problem(l2, None, None, sizes, intercept) for l2 in (10.0, 1e4)], loss)


@cases("shape", "intercept")
def test_factors_weigh_the_rows_of_a_class_in_its_own_column(intercept, shape):
    X, y = labelled(shape, 3)
    factors, s = np.array([0.5, 2.0, 5.0]), folds(len(y), y)[2]
    problem = Problem(10.0, s, intercept=intercept, class_factors=factors)
    together = solved(X, y, [problem, replace(problem, class_factors=None)], Loss.SQUARED_HINGE)[0]
    for c in range(3):
        weights = s * np.where(y == c, factors[c], 1.0)
        (alone,) = solved(X, (y == c).astype(int), [Problem(10.0, weights, intercept=intercept)], Loss.SQUARED_HINGE)
        assert_allclose(together.coef[c], alone.coef[0], atol=1e-5 * np.abs(alone.coef).max())
        assert_allclose(together.intercept[c], alone.intercept[0], atol=1e-5)


@cases("intercept", "loss", "k")
def test_without_a_penalty(intercept, k, loss):
    X, y = labelled((300, 4), k)
    X -= X.mean(axis=0)
    assert_best(X, y, [Problem(0.0, s, intercept=intercept) for s in (None, *folds(300, y))], loss)


@cases("loss", "k")
def test_large_means_of_float32_columns(k, loss):
    X, y = labelled((200, 6), k)
    X = (X + 1e4).astype(np.float32)
    problem = Problem(1.0, folds(200, y)[2])
    (ours,), (theirs,) = solved(X, y, [problem], loss, tol=1e-5), oracle.solve(X, y, [problem], loss, **OPTIONS)
    assert ours.status is Status.CONVERGED
    assert_allclose(ours.objective, theirs.objective, rtol=1e-5)
    assert_allclose(ours.coef, theirs.coef, atol=1e-3 * np.abs(theirs.coef).max())


@pytest.mark.parametrize("k", [200, pytest.param(1000, marks=pytest.mark.slow)])
@cases("loss")
def test_many_classes(loss, k):
    rng = np.random.default_rng(0)
    n = 2 * k
    y = np.arange(n) % k
    X = rng.normal(size=(k, 8))[y] + 0.3 * rng.normal(size=(n, 8))
    problems = [Problem(1.0), Problem(1.0, (np.arange(n) < 1.5 * k).astype(float))]
    for ours, problem in zip(solved(X, y, problems, loss, tol=1e-6), problems, strict=True):
        assert ours.coef.shape == (k, 8) and ours.status is Status.CONVERGED
        if loss is Loss.SQUARED_HINGE:  # the columns don't know one another
            (one,) = oracle.solve(X, (y == 5).astype(int), [problem], loss, **OPTIONS)
            assert_allclose(ours.coef[5], one.coef[0], atol=1e-3 * np.abs(one.coef).max())
        else:
            scores = X @ ours.coef.T + ours.intercept
            P = np.exp(scores - scores.max(axis=1, keepdims=True))
            s = np.ones(n) if problem.weights is None else problem.weights
            residuals = s[:, None] * (P / P.sum(axis=1, keepdims=True) - np.eye(k)[y])
            null = s[:, None] * (np.bincount(y, s) / s.sum() - np.eye(k)[y])
            norm = np.linalg.norm(residuals.T @ (X - X.mean(axis=0)) + ours.coef)
            assert norm <= 1e-5 * np.linalg.norm(null.T @ (X - X.mean(axis=0)))


@cases("shape", "intercept", "loss", "k", dtype=[np.float32, np.float64], max_iter=[1, 3])
def test_runs_that_end_early_say_so_truly(max_iter, dtype, k, loss, intercept, shape):
    X, y = labelled(shape, k, dtype)
    problems = [Problem(l2, s, intercept=intercept) for l2 in (1e-3, 1.0) for s in (None, *folds(len(y), y))]
    for ours, problem in zip(solved(X, y, problems, loss, tol=1e-7, max_iter=max_iter), problems, strict=True):
        assert ours.status is Status.MAX_ITER
        assert 1 <= ours.n_iter <= max_iter
        objective, gradient_norm = certificate(X, y, problem, loss, ours)
        assert_allclose(ours.objective, objective, rtol=1e-4 if dtype is np.float32 else 1e-10)
        # the Euclidean norm is one of two that it is the larger of; a free intercept moves it a little
        assert ours.gradient_norm >= (0.9 if intercept == FREE else 0.999) * gradient_norm


def test_what_rounding_hides_is_not_called_converged():
    X, y = labelled((60, 6), 3, np.float32)
    (ours,) = solved(X, y, [Problem(1.0)], Loss.LOGISTIC, tol=1e-12)
    assert ours.status is Status.ROUNDING
    assert 1e-12 < ours.gradient_norm < 1e-5


@cases("shape", "intercept", "loss", "k")
def test_from_the_solution_it_takes_one_pass(k, loss, intercept, shape):
    X, y = labelled(shape, k)
    s = folds(len(y), y)[2]
    problems = [
        Problem(l2, s, *moved, intercept)
        for l2 in (10.0, 30.0)
        for moved in ((None, None), (X.mean(axis=0), X.std(axis=0)))
    ]
    found = solved(X, y, problems, loss, tol=1e-9)
    started = [replace(problem, start=(one.coef, one.intercept)) for problem, one in zip(problems, found, strict=True)]
    for ours, theirs in zip(solved(X, y, started, loss, tol=2e-9), found, strict=True):
        assert ours.n_iter <= 1
        assert_allclose(ours.objective, theirs.objective, rtol=1e-12)
        assert_allclose(ours.gradient_norm, theirs.gradient_norm, rtol=0.5, atol=1e-10)


@cases("loss", "k")
def test_a_start_changes_the_way_not_the_end(k, loss):
    X, y = labelled((60, 6), k)
    rng = np.random.default_rng(0)
    m = 1 if k == 2 else k
    start = rng.normal(size=(m, 6)), rng.normal(size=m)
    problems = [Problem(1.0, start=start), Problem(30.0), Problem(30.0, start=start, intercept=NONE)]
    cold = [replace(problem, start=None) for problem in problems]
    assert_all_same(solved(X, y, problems, loss), solved(X, y, cold, loss), 1e-5)


def test_penalties_from_none_to_all_in_one_batch():
    X, y = labelled((300, 4), 3)
    found = solved(X, y, [Problem(l2, intercept=FREE) for l2 in (0.0, 1e-3, 1.0, 1e3, 1e6, 1e12)], Loss.LOGISTIC)
    norms = [np.linalg.norm(one.coef) for one in found]
    assert norms == sorted(norms, reverse=True) and norms[-1] < 1e-8
    shares = np.log(np.bincount(y) / 300)
    assert_allclose(found[-1].intercept, shares - shares.mean(), atol=1e-8)


def test_directions_are_those_of_the_two_loops():
    """Nocedal and Wright, algorithm 7.4, of problems with no steps in the history, some, or more than its size."""
    generator = torch.Generator().manual_seed(0)
    b, K = 4, 30
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    hessian = draw(K, K)
    hessian = hessian @ hessian.T / K + torch.eye(K)
    history, kept = History.empty(draw(b, K)), [[] for _ in range(b)]
    for turn in range(3 * HISTORY_SIZE):
        step = draw(b, K)
        change = step @ hessian
        accepted = torch.tensor([turn < limit for limit in (0, 3, HISTORY_SIZE, 2 * HISTORY_SIZE)]) & (draw(b) > -0.5)
        history.push(step, change, accepted)
        for i in accepted.nonzero()[:, 0].tolist():
            kept[i] = [*kept[i], (step[i], change[i])][-HISTORY_SIZE:]
    assert [len(held) for held in kept][::3] == [0, HISTORY_SIZE]
    gradient, preconditioner = draw(b, K), draw(b, K).exp()
    found = history.direction(gradient, preconditioner, 1)
    for i, held in enumerate(kept):
        q, shares = gradient[i].clone(), []
        for s, y in reversed(held):
            shares.append((s @ q) / (s @ y))
            q -= shares[-1] * y
        r = q / preconditioner[i]
        if held:
            s, y = held[-1]
            r *= (s @ y) / (y @ (y / preconditioner[i]))
        for (s, y), share in zip(held, reversed(shares), strict=True):
            r += (share - (y @ r) / (s @ y)) * s
        torch.testing.assert_close(found[i], -r, rtol=1e-9, atol=1e-9)


@cases("intercept", "loss", "k", dtype=[np.float32, np.float64])
def test_columns_far_smaller_than_the_intercept_s(dtype, k, loss, intercept):
    X, y = labelled((200, 6), k)
    size = 1e-6 if dtype is np.float32 else 1e-11
    scaled = intercept if isinstance(intercept, str) else intercept * size
    (ours,) = solved(
        (X * size).astype(dtype), y, [Problem(10 * size**2, intercept=scaled)], loss, tol=1e-4, max_iter=500
    )
    (theirs,) = solved(X, y, [Problem(10.0, intercept=intercept)], loss)
    assert ours.status is Status.CONVERGED
    assert_allclose(ours.objective, theirs.objective, rtol=1e-5)


def test_a_rare_class_among_many_rows():
    """The sum of 300,000 times 1 / 300,000 is 1.005 in float32."""
    X = np.random.default_rng(0).normal(size=(300_000, 1)).astype(np.float32)
    y = (np.arange(len(X)) >= 20).astype(int)
    for loss in (Loss.LOGISTIC, Loss.SQUARED_HINGE):
        (ours,), (theirs,) = (solved(x, y, [Problem(1.0)], loss, tol=1e-5) for x in (X, X.astype(np.float64)))
        assert ours.status is Status.CONVERGED
        assert_allclose(ours.objective, theirs.objective, rtol=1e-5)
        assert_allclose(ours.intercept, theirs.intercept, rtol=1e-3)


class Drifting:
    """One problem, f(u) = u H u / 2 - h u + 1000, whose passes in low precision are wrong.

    error : size of what each adds to the gradient, until the next exact pass
    jump : what a low pass adds to the value
    """

    anchored = True

    def __init__(self, D: int, error: float = 0.0, jump: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(0)
        self.spectrum = 1 / torch.arange(1, D + 1).square()[None, None].double()
        self.penalty = torch.full((1, 1, D), 1e-3, dtype=torch.float64)
        self.widest, self.batch = self.spectrum.max(), SimpleNamespace(alike=torch.zeros(1), k=1)
        turned = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64))[0]
        sizes = (self.spectrum + self.penalty)[0, 0].sqrt()
        # of condition 100 after preconditioning, so that it takes many steps
        self.H = sizes[:, None] * (turned * torch.logspace(-2, 0, D)) @ turned.T * sizes
        self.h = torch.randn(D, generator=generator, dtype=torch.float64) * sizes
        self.error = error * torch.randn(D, generator=generator, dtype=torch.float64) * sizes
        self.jump, self.passes, self.since = jump, {"exact": 0, "low": 0}, 0

    def exact(self, U: torch.Tensor, problems: torch.Tensor) -> objective.Point:
        self.passes["exact"] += 1
        self.since = 0
        return self._point(U[0, 0])

    def low(self, U: torch.Tensor, problems: torch.Tensor) -> objective.Point:
        self.passes["low"] += 1
        self.since += 1
        point = self._point(U[0, 0])
        point.gradient += self.since * self.error
        point.value += self.jump + self.since * float(self.error @ U[0, 0])
        return point

    def _point(self, u: torch.Tensor) -> objective.Point:
        value = u @ self.H @ u / 2 - self.h @ u + 1000
        return objective.Point(value[None], (self.H @ u - self.h)[None, None], torch.ones(1, 1, dtype=torch.float64))

    def keep(self, which: torch.Tensor) -> None:
        pass

    def adopt(self, problems: torch.Tensor, others: torch.Tensor) -> None:
        pass


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A problem may have low precision though there are no others."""
    monkeypatch.setattr(lbfgs, "_FEW", 0)


def run(drifting: Drifting) -> lbfgs.Minimum:
    zeros = torch.zeros(1, 1, len(drifting.h), dtype=torch.float64)
    return lbfgs.minimise(drifting, zeros, zeros, lbfgs.Stopping(1e-7, 1000, 1.0, math.inf, math.inf))


def test_low_precision_that_drifts_has_its_anchors_sooner(alone):
    sound, drifting = Drifting(40), Drifting(40, error=1e-6)
    for each in sound, drifting:
        assert run(each).status == [Status.CONVERGED]
    assert drifting.passes["exact"] > sound.passes["exact"]
    assert drifting.passes["low"] > drifting.passes["exact"]


def test_low_precision_whose_steps_are_all_refused_is_given_up(alone):
    refused = Drifting(40, jump=1e6)
    assert run(refused).status == [Status.CONVERGED]
    assert refused.passes["low"] < 5


@pytest.mark.parametrize("after", [1, 5, 20])
def test_a_point_that_low_precision_made_too_good_is_found_out_when_exact_passes_begin(after, alone, monkeypatch):
    drifting = Drifting(40, error=1e-4)
    low = drifting.low

    def until_then(U, problems):
        monkeypatch.setattr(lbfgs, "_FEW", 100 if drifting.passes["low"] >= after else 0)
        point = low(U, problems)
        point.value -= 10.0  # no later step gains as much
        return point

    monkeypatch.setattr(drifting, "low", until_then)
    assert run(drifting).status == [Status.CONVERGED]
