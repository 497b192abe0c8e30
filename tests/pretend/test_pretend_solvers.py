"""On a GPU every route of the solvers finds what it finds on the CPU."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from classified import assert_all_same, folds, labelled, solved

from featx.solvers import FREE, NONE, Loss, Problem, lbfgs, objective, plan
from featx.solvers.basis import DualBasis, PrimalBasis

module = importlib.import_module("featx.solvers.solve")  # the name `featx.solvers.solve` is the function

pytestmark = pytest.mark.usefixtures("gpu")
FORMS = pytest.mark.parametrize(
    "loss, k",
    [(Loss.LOGISTIC, 2), (Loss.LOGISTIC, 3), (Loss.SQUARED_HINGE, 2)],
    ids=["logistic", "softmax", "hinge"],
)


def problems(X: np.ndarray, y: np.ndarray, intercept: str | float = FREE) -> list[Problem]:
    """All rows and two folds, two penalties each; the folds are standardised by their own rows."""
    found = []
    for s in (None, *folds(len(y), y)[1:]):
        moved = (None, None) if s is None else (X[s > 0].mean(0, np.float64), X[s > 0].std(0, dtype=np.float64))
        found += [Problem(l2, s, *moved, intercept) for l2 in (30.0, 300.0)]
    return found


def assert_same_on_both(X: np.ndarray, y: np.ndarray, loss: Loss, intercept: str | float = FREE, **options) -> None:
    """With `budget_bytes`, that is the GPU's."""
    asked = problems(X, y, intercept)
    on_gpu = solved(X, y, asked, loss, tol=1e-6, device="cuda", **options)
    assert_all_same(on_gpu, solved(X, y, asked, loss, tol=1e-6), 1e-4)


@pytest.fixture
def bases(monkeypatch: pytest.MonkeyPatch) -> list[PrimalBasis | DualBasis]:
    """The bases that are made from now on."""
    made: list[PrimalBasis | DualBasis] = []
    for cls in (PrimalBasis, DualBasis):
        monkeypatch.setattr(module, cls.__name__, lambda *args, cls=cls: made.append(cls(*args)) or made[-1])
    return made


@FORMS
def test_dense_rows_with_a_scale_a_fold(loss, k, bases):
    X, y = labelled((60, 6), k)
    assert_same_on_both(X, y, loss)
    assert bases[0].resident.is_cuda
    scaled = next(basis for basis in bases if basis.affine is not None)
    assert scaled.resident.is_cuda and scaled.odd_squares.is_cuda


@FORMS
def test_a_column_that_a_fold_scales_otherwise(loss, k, bases):
    X, y = labelled((90, 52), k)
    X /= X.std(0)
    outlier = folds(90, y)[0].argmin()
    X[outlier, 2] = 100  # in one fold, and not in the other
    asked = [Problem(10.0, s, X[s > 0].mean(0), X[s > 0].std(0)) for s in folds(90, y)[:2]]
    on_gpu = solved(X, y, asked, loss, tol=1e-6, device="cuda")
    assert_all_same(on_gpu, solved(X, y, asked, loss, tol=1e-6), 1e-4)
    odd = bases[0].affine.odd
    assert odd.tolist() == [2] and odd.is_cuda


@pytest.mark.parametrize("shape, intercept", [((60, 6), NONE), ((60, 6), 0.7), ((16, 24), NONE)], ids=str)
def test_intercepts(shape, intercept):
    X, y = labelled(shape)
    assert_same_on_both(X, y, Loss.LOGISTIC, intercept)


@FORMS
def test_wide_rows(loss, k, bases):
    X, y = labelled((16, 24), k)
    assert_same_on_both(X, y, loss)
    assert isinstance(bases[0], DualBasis) and bases[0].resident.is_cuda


@FORMS
def test_rows_that_the_memory_does_not_hold(loss, k, bases, tmp_path: Path):
    X, y = labelled((60, 6), k)
    np.save(tmp_path / "X.npy", X)
    assert_same_on_both(np.load(tmp_path / "X.npy", mmap_mode="r"), y, loss, budget_bytes=1)
    assert bases[0].resident is None


@pytest.mark.parametrize(
    "loss, k, shape",
    [
        (Loss.LOGISTIC, 3, (60, 6)),  # dense
        (Loss.SQUARED_HINGE, 2, (60, 6)),
        (Loss.LOGISTIC, 3, (16, 24)),  # wide
        (Loss.LOGISTIC, 2, (600, 6)),  # streamed
        (Loss.SQUARED_HINGE, 2, (600, 6)),
    ],
    ids=str,
)
def test_low_precision(loss, k, shape, bases, monkeypatch):
    passes = []
    low = objective.Objective.low
    monkeypatch.setattr(plan, "_LOW_FROM", 0)
    monkeypatch.setattr(lbfgs, "_FEW", 2)  # the last of several problems are evaluated exactly, as those of large X are
    monkeypatch.setattr(objective.Objective, "low", lambda self, U, numbers: passes.append(U) or low(self, U, numbers))
    X, y = labelled(shape, k, np.float32)
    budget = {"budget_bytes": 42_000} if len(X) == 600 else {}
    asked = problems(X, y)
    on_gpu = solved(X, y, asked, loss, tol=1e-5, device="cuda", **budget)
    assert passes and all(one.is_cuda for one in passes)
    assert bool(budget) == (bases[0].resident is None)
    monkeypatch.setattr(plan, "_LOW_FROM", 2**40)
    assert_all_same(on_gpu, solved(X, y, asked, loss, tol=1e-5), 3e-3)


@pytest.mark.parametrize(
    "shape, budget, intercept",
    [
        ((40, 7), {}, FREE),
        ((40, 7), {"budget_bytes": 1}, FREE),
        ((40, 7), {"budget_bytes": 1}, 0.3),
        ((12, 30), {}, NONE),
        ((12, 30), {"budget_bytes": 1}, FREE),
        ((12, 30), {}, 0.3),
    ],
    ids=str,
)
def test_least_squares(shape, budget, intercept):
    X, y = labelled(shape)
    Y = np.random.default_rng(0).normal(size=(len(X), 3)) + X[:, :3]
    asked = problems(X, y, intercept) + [Problem([0.1, 3.0, 0.0], intercept=intercept)]
    on_gpu = solved(X, Y, asked, Loss.SQUARED_ERROR, device="cuda", **budget)
    assert_all_same(on_gpu, solved(X, Y, asked, Loss.SQUARED_ERROR), 1e-7)
