"""The entry point: problems on one X are grouped by what they can share, and each group is solved in parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite

import numpy as np
import torch
from torch import Tensor

from featx.solvers.affine import Affine, common_scale, scaled_shift, values_or
from featx.solvers.basis import Basis, DualBasis, PrimalBasis
from featx.solvers.columns import Columns, weighted_mean
from featx.solvers.groups import Subproblem, by_weights, groups_of, mean_weights, row_order, subproblems_of
from featx.solvers.hardware import budget_of, device_of
from featx.solvers.interning import array_numbers
from featx.solvers.lbfgs import Minimum, Stopping, minimise
from featx.solvers.losses import Loss
from featx.solvers.losses.base import ClassificationLoss
from featx.solvers.losses.squared_error import SquaredError
from featx.solvers.matmul import full_precision
from featx.solvers.newton import PROVEN, affordable, finish, max_passes
from featx.solvers.objective import Batch, Objective
from featx.solvers.plan import MemoryPlan, plan_memory
from featx.solvers.problems import FREE, Problem, Solution, Status
from featx.solvers.ridge import solve_ridge
from featx.solvers.threads import Team, threads_for

_BLOCK = 2**19  # scores of a block of rows
_BLOCK_CUDA = 2**26
_MAX_L2 = 1e30  # of the mean loss; float32 still holds its products


def solve(
    X: np.ndarray,
    y: np.ndarray,
    problems: Sequence[Problem],
    loss: Loss,
    *,
    tol: float,
    max_iter: int,
    device: str = "auto",
    budget_bytes: int | None = None,
) -> list[Solution]:
    """Solve many problems, which share every product with X.

    Parameters
    ----------
    X : (n, d) float32 or float64
        Finite. A memory map larger than the budget is read in blocks, once in each pass.
    y : (n,) or (n, k)
        Class numbers; for squared errors, targets (n, k).
    problems : sequence of Problem
    loss : Loss
    tol : float
        A problem has converged when its `Solution.gradient_norm` is at most this, or when rounding hides the rest of
        its descent. No effect on squared errors, which are solved in closed form.
    max_iter : int
        Maximum number of passes over the data.
    device : "auto", "cpu", "cuda" or "cuda:1"
    budget_bytes : int, optional
        Memory for copies of rows and the state of problems; by default a quarter of what the process may use, or of the
        GPU's. At least one problem is worked on, and the eigenbasis, of min(n, d) squared elements in float64, is
        computed whatever the budget.

    Returns
    -------
    list of Solution, one for each problem

    Raises
    ------
    FeatxError
        A problem has fewer than two classes, X is too large for its type, or the device does not exist.
    """
    torch_device = device_of(device)
    budget = budget_of(torch_device, budget_bytes)
    method = loss.value
    if isinstance(method, SquaredError):
        return solve_ridge(X, y, problems, torch_device, budget)
    stopping = Stopping(tol, max_iter, method.preconditioned_share, method.gap_part(X.size), method.bound_part)
    subproblems: list[Subproblem] = []
    for number, (problem, arrays) in enumerate(zip(problems, array_numbers(problems), strict=True)):
        subproblems += subproblems_of(number, problem, arrays, y, method, X.dtype)
    parts: list[list[_SubSolution]] = [[] for _ in problems]
    with torch.no_grad(), torch.autocast(torch_device.type, enabled=False), full_precision():
        # each shift and scale needs a penalty matrix of d columns
        most_affine = max(1, budget // 4 // (X.itemsize * (X.shape[1] + 1) ** 2))
        for group in groups_of(subproblems, X.shape, most_affine):
            for solution in _solve_group(X, y, group, method, stopping, torch_device, budget):
                parts[solution.subproblem.number].append(solution)
    return [_joined(part) for part in parts]


@dataclass(frozen=True, eq=False)
class _SubSolution:
    """The solution of a subproblem, coef (k, d) and intercept (k,)."""

    subproblem: Subproblem
    coef: np.ndarray
    intercept: np.ndarray
    objective: float
    gradient_norm: float
    n_iter: int
    status: Status


@dataclass(frozen=True, eq=False)
class _Group:
    """Subproblems on their common basis.

    targets : (n,) class numbers; with several columns of scores, numbers of columns
    """

    subproblems: list[Subproblem]
    loss: ClassificationLoss
    columns: Columns
    basis: Basis
    targets: Tensor
    plan: MemoryPlan

    @property
    def k(self) -> int:
        return self.subproblems[0].k

    @property
    def like(self) -> Tensor:
        return self.columns.like


def _solve_group(
    X: np.ndarray,
    y: np.ndarray,
    subproblems: list[Subproblem],
    loss: ClassificationLoss,
    stopping: Stopping,
    device: torch.device,
    budget_bytes: int,
) -> Iterator[_SubSolution]:
    group = _prepared(X, y, by_weights(subproblems), loss, device, budget_bytes)
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    with threads_for(0), Team(threads) as team:
        for part in group.plan.parts(len(subproblems)):
            yield from _solve_part(group, part, stopping, team)


def _prepared(
    X: np.ndarray,
    y: np.ndarray,
    subproblems: list[Subproblem],
    loss: ClassificationLoss,
    device: torch.device,
    budget_bytes: int,
) -> _Group:
    d, first = X.shape[1], subproblems[0]
    free = first.problem.intercept == FREE
    problems = [subproblem.problem for subproblem in subproblems]
    arrays = [subproblem.arrays for subproblem in subproblems]
    weights = mean_weights(subproblems, len(X))
    kept = None if weights.all() else np.flatnonzero(weights)  # rows without weight in any problem are not read
    # rounded to X's type, so that the intercepts are corrected by exactly the shift of the rows
    shift = weighted_mean(X, weights).astype(X.dtype).astype(float) if free else values_or(first.problem.shift, 0.0, d)
    columns = Columns(X, kept, shift, common_scale(problems, arrays, d), first.problem.intercept, device)
    own = Affine(problems, arrays, shift, columns.scale, first.problem.intercept, columns.like)
    affine = None if own.trivial else own
    n_affine = 0 if affine is None else len(affine.ratios)
    plan = plan_memory(X, columns.n, columns.width, first.k, free, n_affine, device, budget_bytes)
    if plan.resident and not plan.wide:  # else no pass leaves rows out
        columns.kept = row_order(subproblems, kept)
    if columns.kept is not None:
        y, weights = y[columns.kept], weights[columns.kept]
    basis: Basis
    with threads_for(columns.n * d * min(columns.n, d) / 4):
        if plan.wide:
            basis = DualBasis(columns, weights, free, plan.low)
        else:
            odd_squares = columns.like.new_zeros(1, 0)
            if affine is not None and len(affine.odd):
                odd_squares = _odd_squares(columns, subproblems, affine)
            basis = PrimalBasis(columns, weights, free, affine, odd_squares, plan.resident, plan.low)
    classes = np.searchsorted(first.live, y).clip(max=first.k - 1) if first.k > 1 else y
    targets = torch.tensor(classes, dtype=torch.int64, device=device)
    return _Group(subproblems, loss, columns, basis, targets, plan)


def _odd_squares(columns: Columns, subproblems: list[Subproblem], affine: Affine) -> Tensor:
    """(F, c) mean squares of the odd columns, with the weights and in the scale of the first problem of each."""
    values = columns.strip(affine.odd.cpu().numpy()).square()  # (n, c)
    squares: dict[int, Tensor] = {}
    for which, subproblem in zip(affine.which.tolist(), subproblems, strict=True):
        if which not in squares:
            s = _weights(subproblem.problem, columns)
            squares[which] = torch.from_numpy(s / s.sum()).to(values) @ values * affine.odd_ratios[which] ** 2
    return torch.stack([squares[which] for which in sorted(squares)]).to(columns.like)


def _weights(problem: Problem, columns: Columns) -> np.ndarray:
    """(n,) float64 weights of the rows."""
    if problem.weights is None:
        return np.ones(columns.n)
    weights = np.asarray(problem.weights, np.float64)
    return weights if columns.kept is None else weights[columns.kept]


def _solve_part(group: _Group, part: np.ndarray, stopping: Stopping, team: Team) -> Iterator[_SubSolution]:
    """Solve the subproblems at the positions `part` (B,)."""
    subproblems = [group.subproblems[position] for position in part]
    batch, totals = _batch(group, subproblems, torch.from_numpy(part).to(group.like.device))
    block_scores = _BLOCK_CUDA if group.like.device.type == "cuda" else _BLOCK
    objective = Objective(batch, block_scores, group.plan.low is not None, team)
    moves = None
    if batch.basis.free:
        moves = np.stack([scaled_shift(subproblem.problem, group.columns.shift) for subproblem in subproblems])
    intercept_only = _intercept_only(batch)
    start = _start(subproblems, intercept_only, batch, moves)
    newton = affordable(batch, group.plan.left_bytes)
    rule = stopping
    if newton:  # for L-BFGS: what it cannot prove is left to Newton's method
        proof = PROVEN if isfinite(stopping.bound_part) else inf
        rule = replace(stopping, max_iter=min(stopping.max_iter, max_passes(batch)), bound_part=proof)
    minimum = minimise(objective, start, intercept_only, rule)
    if newton:
        finish(batch, minimum, stopping)
    return _sub_solutions(subproblems, batch, minimum, totals, moves, group.columns.X.dtype)


def _batch(group: _Group, subproblems: list[Subproblem], positions: Tensor) -> tuple[Batch, np.ndarray]:
    """The subproblems as tensors, and the sums of their weights (B,)."""
    like, device, dtype = group.like, group.like.device, group.columns.X.dtype
    folds: dict[int, int] = {}  # by the weights' number
    alike: dict[tuple[int, tuple[int, int], int, float], int] = {}
    sums, rows = [], []
    for subproblem in subproblems:
        arrays = subproblem.arrays
        if arrays.weights not in folds:
            folds[arrays.weights] = len(folds)
            s = _weights(subproblem.problem, group.columns)
            sums.append(s.sum())
            rows.append((s / s.sum()).astype(dtype))
        alike.setdefault(_all_but_l2(subproblem), len(alike))
    fold = np.array([folds[subproblem.arrays.weights] for subproblem in subproblems])
    totals = np.array(sums)[fold]
    l2 = np.array([float(subproblem.problem.l2) for subproblem in subproblems]) / totals
    factors = [subproblem.factor for subproblem in subproblems]
    batch = Batch(
        basis=group.basis,
        loss=group.loss,
        k=group.k,
        position=positions,
        y=group.targets,
        weights=torch.from_numpy(np.stack(rows)).to(device),
        fold=torch.from_numpy(fold).to(device),
        positive=torch.tensor([subproblem.positive for subproblem in subproblems], device=device),
        factor=None if all(factor == 1 for factor in factors) else like.new_tensor(factors),
        l2=torch.from_numpy(l2.clip(max=_MAX_L2).astype(dtype)).to(device),
        alike=torch.tensor([alike[_all_but_l2(subproblem)] for subproblem in subproblems], device=device),
    )
    return batch, totals


def _all_but_l2(subproblem: Subproblem) -> tuple[int, tuple[int, int], int, float]:
    """What tells apart problems that differ in more than l2."""
    return subproblem.arrays.weights, subproblem.arrays.affine, subproblem.positive, subproblem.factor


def _intercept_only(batch: Batch) -> Tensor:
    """(B, k, D) the best free intercepts, and zeros."""
    model = batch.basis.spectrum.new_zeros(len(batch), batch.k, len(batch.basis.spectrum))
    if batch.basis.free:
        weights = batch.weights.double()  # in float32 the rounding of a sum may exceed the weight of a rare class
        shares = weights.new_zeros(len(weights), int(batch.y.max()) + 1).index_add_(1, batch.y, weights)
        model[..., -1] = batch.loss.intercept_only(shares[batch.fold], batch.positive, batch.k).to(model)
    return model


def _start(subproblems: list[Subproblem], intercept_only: Tensor, batch: Batch, moves: np.ndarray | None) -> Tensor:
    """(B, k, D) where to begin; `intercept_only` itself if no problem has a start of its own."""
    if all(subproblem.problem.start is None for subproblem in subproblems):
        return intercept_only
    start = intercept_only.clone()
    for i, subproblem in enumerate(subproblems):
        if subproblem.problem.start is not None:
            coef, intercept = (np.asarray(part, np.float64) for part in subproblem.problem.start)
            if subproblem.k == 1 and len(coef) > 1:
                column = subproblem.live.index(subproblem.positive)
                coef, intercept = coef[column : column + 1], intercept[column : column + 1]
            if moves is not None:
                intercept = intercept + coef @ moves[i]
            W, b = torch.from_numpy(coef).to(start), torch.from_numpy(intercept).to(start)
            start[i] = batch.basis.coordinates(W[None], b[None], batch.position[i : i + 1])[0]
    return start - start.mean(1, keepdim=True) if batch.k > 1 else start


def _sub_solutions(
    subproblems: list[Subproblem],
    batch: Batch,
    minimum: Minimum,
    totals: np.ndarray,
    moves: np.ndarray | None,
    dtype: np.dtype,
) -> Iterator[_SubSolution]:
    dtype = np.dtype(np.float64) if batch.loss.float64_coefficients else dtype
    W, intercepts = (part.cpu().numpy() for part in batch.basis.coefficients(minimum.U, batch.position))
    for i, subproblem in enumerate(subproblems):
        coef, intercept = W[i], intercepts[i]
        if subproblem.k > 1:  # adding a constant to all classes changes no probability: the smallest coefficients
            coef, intercept = coef - coef.mean(0), intercept - intercept.mean()
        coef = coef.astype(dtype)
        if moves is not None:  # by the rounded coefficients
            intercept = intercept - coef.astype(np.float64) @ moves[i]
        yield _SubSolution(
            subproblem=subproblem,
            coef=coef,
            intercept=intercept.astype(dtype),
            objective=float(minimum.value[i]) * totals[i],
            gradient_norm=float(minimum.norm[i]),
            n_iter=int(minimum.n_iter[i]),
            status=minimum.status[i],
        )


def _joined(parts: list[_SubSolution]) -> Solution:
    """The solution of a problem from those of its subproblems."""
    worst = max(parts, key=lambda part: list(Status).index(part.status))
    return Solution(
        coef=np.concatenate([part.coef for part in parts]),
        intercept=np.concatenate([part.intercept for part in parts]),
        classes=np.array(parts[0].subproblem.live),
        objective=sum(part.objective for part in parts),
        gradient_norm=max(part.gradient_norm for part in parts),
        n_iter=max(part.n_iter for part in parts),
        status=worst.status,
    )
