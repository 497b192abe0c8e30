"""Whatever passes are made of: low precision, blocks, chunks, maps and devices find the same solutions."""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from classified import (
    assert_all_same,
    assert_same,
    cases,
    certificate,
    folds,
    labelled,
    solved,
)
from numpy.testing import assert_allclose, assert_array_equal

from featx.solvers import FREE, NONE, Loss, Problem, Status, lbfgs, objective, plan
from featx.solvers.columns import Columns
from featx.solvers.matmul import full_precision, product

module = importlib.import_module("featx.solvers.solve")  # the name `featx.solvers.solve` is the function


@pytest.fixture
def low(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Low precision from now on, however small X is; the numbers of problems of each low pass."""
    monkeypatch.setattr(plan, "_LOW_FROM", 0)
    monkeypatch.setattr(plan, "low_type", lambda device: torch.bfloat16)
    monkeypatch.setattr(lbfgs, "_FEW", 2)  # the last of several problems are evaluated exactly, as those of large X are
    passes: list[int] = []
    method = objective.Objective.low

    def counted(self, U, problems):
        passes.append(len(problems))
        return method(self, U, problems)

    monkeypatch.setattr(objective.Objective, "low", counted)
    return passes


def several(X: np.ndarray, y: np.ndarray, intercept: str | float = FREE) -> list[Problem]:
    """Penalties, folds, and a standardisation of each."""
    moved = [(None, None), (X.mean(axis=0), X.std(axis=0))]
    return [Problem(l2, s, *m, intercept) for l2 in (3.0, 30.0) for s in (None, folds(len(y), y)[2]) for m in moved]


@cases("shape", "intercept", "loss", "k", dtype=[np.float32, np.float64])
def test_low_precision_finds_what_exact_passes_find(dtype, k, loss, intercept, shape, low):
    X, y = labelled(shape, k, dtype)
    problems = several(X, y, intercept)
    tol = 1e-5 if dtype is np.float32 else 1e-9
    found = solved(X, y, problems, loss, tol=tol)
    assert low
    for ours, problem in zip(found, problems, strict=True):
        assert ours.status is Status.CONVERGED
        value, gradient_norm = certificate(X, y, problem, loss, ours)
        assert_allclose(ours.objective, value, rtol=1e-5 if dtype is np.float32 else 1e-9)
        assert gradient_norm <= (3e-5 if dtype is np.float32 else 1.01e-9)
    low.clear()
    plan._LOW_FROM = 2**40
    exact = solved(X, y, problems, loss, tol=tol)
    assert not low
    for ours, theirs in zip(found, exact, strict=True):
        assert_same(ours, theirs, 3e-3 if dtype is np.float32 else 1e-5)
        assert_allclose(ours.objective, theirs.objective, rtol=1e-5 if dtype is np.float32 else 1e-9)


@cases("loss", "k")
def test_low_precision_costs_few_passes_more(k, loss, low):
    X, y = labelled((300, 20), k)
    problems = [Problem(l2) for l2 in (1.0, 30.0)]
    rough = solved(X, y, problems, loss, tol=1e-6)
    assert low
    plan._LOW_FROM = 2**40
    for ours, theirs in zip(rough, solved(X, y, problems, loss, tol=1e-6), strict=True):
        assert ours.n_iter <= 2 * theirs.n_iter + 10


@cases("intercept", "loss", "k", dtype=[np.float32, np.float64])
def test_a_map_read_in_each_pass_is_as_an_array(dtype, k, loss, intercept, tmp_path: Path):
    """Rows that don't fit in the budget are not kept."""
    X, y = labelled((60, 6), k, dtype)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    problems = several(X, y, intercept)
    tol = 1e-5 if dtype is np.float32 else 1e-9
    kept = []
    with pytest.MonkeyPatch.context() as patched:
        primal = module.PrimalBasis
        patched.setattr(module, "PrimalBasis", lambda *args: kept.append(primal(*args)) or kept[-1])
        streamed = solved(mapped, y, problems, loss, tol=tol, budget_bytes=1)
    assert kept and all(one.resident is None for one in kept)
    for ours, theirs in zip(streamed, solved(X, y, problems, loss, tol=tol), strict=True):
        assert_same(ours, theirs, 3e-3 if dtype is np.float32 else 1e-5)
        assert_allclose(ours.objective, theirs.objective, rtol=1e-5 if dtype is np.float32 else 1e-9)


@cases("shape", "loss", "k")
def test_parts_that_the_budget_makes_of_a_batch_are_as_one(k, loss, shape, monkeypatch):
    X, y = labelled(shape, k)
    problems = several(X, y)
    batches = []
    one = module.minimise
    monkeypatch.setattr(
        module, "minimise", lambda objective, *rest: batches.append(len(objective.batch)) or one(objective, *rest)
    )
    whole = solved(X, y, problems, loss)
    number, each = len(batches), max(batches)
    parts = solved(X, y, problems, loss, budget_bytes=1)
    assert each > max(batches[number:]) == 1
    assert_all_same(parts, whole, 1e-5)


@cases("loss", "k")
def test_blocks_of_rows_are_as_one(k, loss, monkeypatch):
    X, y = labelled((700, 5), k)
    problems = several(X, y)
    whole = solved(X, y, problems, loss)
    monkeypatch.setattr(module, "_BLOCK", 1)  # blocks of 256 rows
    assert_all_same(solved(X, y, problems, loss), whole, 1e-5)


@cases("shape", "loss", "k", rounding={"exact": False, "low": True})
def test_the_same_call_gives_the_same_bytes(rounding, k, loss, shape, request, three_threads):
    if rounding:
        request.getfixturevalue("low")
    X, y = labelled(shape, k, np.float32)
    first, again = (solved(X, y, several(X, y), loss, tol=1e-5) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert_array_equal(one.coef, other.coef)
        assert_array_equal(one.intercept, other.intercept)
        assert (one.objective, one.gradient_norm, one.n_iter) == (other.objective, other.gradient_norm, other.n_iter)


@cases("shape", "loss", "k")
def test_what_is_given_may_be_read_only_and_stays_as_it_was(k, loss, shape):
    X, y = labelled(shape, k)
    s, shift, scale = folds(len(y), y)[2], X.mean(axis=0), X.std(axis=0)
    given = X, y, s, shift, scale
    copies = [array.copy() for array in given]
    for array in given:
        array.flags.writeable = False
    solved(X, y, [Problem(10.0, s, shift, scale, i) for i in (FREE, NONE, 1.0)], loss)
    for array, copy in zip(given, copies, strict=True):
        assert_array_equal(array, copy)


@cases("shape", "intercept", "loss", "k", rounding={"exact": False, "low": True})
def test_rows_left_out_of_passes_are_as_rows_without_weight(rounding, k, loss, intercept, shape, request, monkeypatch):
    if rounding:
        request.getfixturevalue("low")
    X, y = labelled(shape, k)
    problems = several(X, y, intercept)[4:]  # of one penalty, the one that takes fewer passes
    problems += [replace(problem, weights=folds(len(y), y)[0]) for problem in problems]
    pieces, cut = [], objective._pieces
    monkeypatch.setattr(objective, "_pieces", lambda weighs, least: pieces.append(cut(weighs, 1)) or pieces[-1])
    skipping = solved(X, y, problems, loss)
    assert max(map(len, pieces)) > 1
    monkeypatch.setattr(objective, "_pieces", lambda weighs, least: cut(weighs, len(y)))
    assert_all_same(skipping, solved(X, y, problems, loss), 1e-5)


def test_pieces_are_long_enough_cover_all_rows_and_leave_out_what_weighs_nothing():
    weighs = torch.ones(3, 100, dtype=torch.bool)
    weighs[0, :20], weighs[1, 20:60], weighs[2, 60:63], weighs[2, 95:] = False, False, False, False
    found = [(piece.start, piece.stop, active.tolist()) for piece, active in objective._pieces(weighs, 10)]
    assert found == [(0, 20, [False, True, True]), (20, 60, [True, False, True]), (60, 100, [True, True, True])]
    assert len(objective._pieces(weighs, 101)) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_products_however_the_second_matrix_lies(dtype):
    A, B = (torch.randn(m, 70, generator=torch.Generator().manual_seed(m), dtype=dtype) for m in (30, 50))
    whole = torch.cat([B, B], 1)
    for second in (B, B.T.contiguous().T, whole[:, :70], whole.T.contiguous().T[:, :70], B[::2], B[:1]):
        wanted = (A.double() @ second.double().T).to(dtype)
        torch.testing.assert_close(product(A, second), wanted, atol=1e-4 if dtype is torch.float32 else 1e-12, rtol=0)


def test_lower_precision_that_the_user_allows_is_not_for_the_solvers():
    kind = torch.backends.mkldnn.matmul
    before = kind.fp32_precision
    try:
        kind.fp32_precision = "bf16"
        with full_precision():
            assert (kind.fp32_precision, torch.backends.cuda.matmul.fp32_precision) == ("ieee", "ieee")
        assert kind.fp32_precision == "bf16"
        first, second = full_precision(), full_precision()  # of two threads
        for turn, wanted in (
            (first.__enter__, "ieee"),
            (second.__enter__, "ieee"),
            (partial(first.__exit__, None, None, None), "ieee"),
            (partial(second.__exit__, None, None, None), "bf16"),
        ):
            turn()
            assert kind.fp32_precision == wanted
    finally:
        kind.fp32_precision = before


@pytest.mark.parametrize("loss", list(Loss), ids=lambda loss: loss.name)
def test_the_user_s_default_device_and_type_have_no_part(loss):
    X, y = labelled((60, 6))
    targets = np.eye(3)[y] if loss is Loss.SQUARED_ERROR else y
    plain = solved(X, targets, [Problem(1.0, s) for s in (None, *folds(60, y))], loss)
    before = torch.get_default_dtype()
    try:
        torch.set_default_device("meta")
        torch.set_default_dtype(torch.float16)
        moved = solved(X, targets, [Problem(1.0, s) for s in (None, *folds(60, y))], loss)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)
    for one, other in zip(plain, moved, strict=True):
        assert_array_equal(one.coef, other.coef)


@cases("loss")
def test_what_does_not_fit_is_read_in_blocks_however_few_the_problems(loss, monkeypatch):
    X, y = labelled((3000, 1100), 2, np.float32)
    asked, block = [], Columns.block
    monkeypatch.setattr(Columns, "block", lambda self, *at: asked.append(at[1] - at[0]) or block(self, *at))
    solved(X, y, [Problem(1.0)], loss, max_iter=2, budget_bytes=1)
    assert max(asked) * 1100 <= 2**21


@cases("intercept", "loss")
def test_float32_rows_are_moved_by_the_whole_shift(loss, intercept):
    X, y = labelled((200, 6))
    X = (X + 1e5).astype(np.float32).astype(np.float64)
    problem = Problem(1.0, shift=X.mean(axis=0), intercept=intercept)
    (ours,), (theirs,) = (solved(x, y, [problem], loss, tol=1e-5) for x in (X.astype(np.float32), X))
    assert_allclose(ours.coef, theirs.coef, atol=2e-4 * np.abs(theirs.coef).max())
    assert_allclose(ours.intercept, theirs.intercept, atol=2e-4 * np.abs(theirs.intercept).max())


def test_a_precision_that_is_only_inherited_stays_so():
    kinds, before = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul), torch.backends.fp32_precision
    assert [kind.fp32_precision for kind in kinds] == ["none", "none"]
    try:
        torch.backends.fp32_precision = "tf32"
        with full_precision():
            assert [kind.fp32_precision for kind in kinds] == ["ieee", "ieee"]
        torch.backends.fp32_precision = "ieee"
        assert [kind.fp32_precision for kind in kinds] == ["ieee", "ieee"]
    finally:
        torch.backends.fp32_precision = before
