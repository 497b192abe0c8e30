"""Problems on one X in, solutions out: what can share a design is put together, as many as memory allows at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
import torch
from torch import Tensor

from featx.solvers.affine import Affine, common_scale, move_of, values_of
from featx.solvers.basis import Design, Dual, Primal
from featx.solvers.columns import Columns, weighted_mean
from featx.solvers.groups import Member, by_weights, factor_of, families_of, mean_weights, members_of, together
from featx.solvers.hardware import budget_of, device_of, low_type
from featx.solvers.history import PAIRS
from featx.solvers.lbfgs import Minimum, Stopping, minimise
from featx.solvers.losses import BlockLoss, logistic, softmax, squared_hinge
from featx.solvers.matmul import full_precision
from featx.solvers.newton import PROVEN, affordable, finish
from featx.solvers.objective import Batch, Objective
from featx.solvers.problems import FREE, Loss, Problem, Solution, Status
from featx.solvers.ridge import solve_ridge
from featx.solvers.threads import Team, threads_for

_LOW_FROM = 2**22  # elements of X from which low precision is worth its anchors: below, 3 to 5 times the CPU time
_BLOCK = 2**19  # scores of a block of rows
_BLOCK_CUDA = 2**26
# scikit-learn's lbfgs ends early on hard problems and is exact on easy ones, liblinear is exact on nearly all
_METRIC_SHARE = {Loss.LOGISTIC: 0.01, Loss.SQUARED_HINGE: 1.0}
_GAP_PART = {Loss.LOGISTIC: 0.1, Loss.SQUARED_HINGE: 1e-3}
_GAP_PART_LARGE = {Loss.LOGISTIC: 1.0, Loss.SQUARED_HINGE: 1e-3}
_LARGE = 2**20  # elements of X from which passes take so long that logistic regression ends a little earlier
_BOUND_PART = {Loss.LOGISTIC: inf, Loss.SQUARED_HINGE: 10.0}


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
    """Solve all problems; they share every product with X.

    Parameters
    ----------
    X : (n, d) float32 or float64, finite; a memory map larger than the budget is read in blocks, once a pass
    y : (n,) class numbers, or (n, k) targets of squared errors
    problems : of them
    loss : Loss
    tol : float
        A problem has converged when its `Solution.gradient_norm` is at most this, or rounding hides what is left of
        its objective. Squared errors are solved in closed form.
    max_iter : int
        Passes over the rows, at most.
    device : "auto", "cpu", "cuda" or "cuda:1"
    budget_bytes : int, optional
        Memory for copies of rows and the state of problems, of which one at least is worked on; by default a quarter of
        what the process may use, or of the GPU's. The eigenbasis, of min(n, d) squared elements in float64, is made
        whatever the budget.

    Returns
    -------
    list of Solution, one a problem

    Raises
    ------
    FeatxError
        A problem has fewer than two classes, X is too large for its type, or there is no such device.
    """
    where = device_of(device)
    budget = budget_of(where, budget_bytes)
    if loss is Loss.SQUARED_ERROR:
        return solve_ridge(X, y, problems, where, budget)
    members = [m for number, problem in enumerate(problems) for m in members_of(number, problem, y, loss, X.dtype)]
    pieces: dict[int, list[_Piece]] = {number: [] for number in range(len(problems))}
    with torch.no_grad(), torch.autocast(where.type, enabled=False), full_precision():
        # of scales apart each needs a square of d columns
        most_scales = max(1, budget // 4 // (X.itemsize * (X.shape[1] + 1) ** 2))
        for family in families_of(members, X.shape, most_scales):
            for piece in _solve_family(X, y, family, loss, tol, max_iter, where, budget):
                pieces[piece.number].append(piece)
    return [_joined(pieces[number]) for number in range(len(problems))]


@dataclass(frozen=True, eq=False)
class _Piece:
    """A member's solution: coef (k, d), intercept (k,)."""

    number: int
    live: tuple[int, ...]
    coef: np.ndarray
    intercept: np.ndarray
    objective: float
    gradient_norm: float
    n_iter: int
    status: Status


def _solve_family(
    X: np.ndarray,
    y: np.ndarray,
    family: list[Member],
    loss: Loss,
    tol: float,
    max_iter: int,
    device: torch.device,
    budget: int,
) -> Iterator[_Piece]:
    d = X.shape[1]
    family = by_weights(family)
    first = family[0].problem
    k = family[0].k
    free = first.intercept == FREE
    weights = mean_weights(family, len(X))
    kept = None if weights.all() else np.flatnonzero(weights)  # rows that no problem has are not read
    # rounded to X's type: what rows are moved by is what intercepts are moved back by
    shift = weighted_mean(X, weights).astype(X.dtype).astype(float) if free else values_of(first.shift, 0.0, d)
    n = len(X) if kept is None else len(kept)
    problems = [member.problem for member in family]
    scale = common_scale(problems, d)
    columns = Columns(X, kept, shift, scale, first.intercept, device)
    own = Affine(problems, shift, scale, first.intercept, columns.like)
    affine = None if own.trivial else own
    wide = n < d and affine is None
    low = low_type(device) if X.size >= _LOW_FROM else None
    gap_part = (_GAP_PART_LARGE if X.size >= _LARGE else _GAP_PART)[loss]
    stopping = Stopping(tol, max_iter, _METRIC_SHARE[loss], gap_part, _BOUND_PART[loss])
    D = (n if wide else columns.width) + free
    resident_bytes, low_bytes = n * D * X.itemsize, n * D * 2 if low else 0
    resident = wide or resident_bytes + low_bytes <= budget / 2
    if not resident and low_bytes > budget / 2:
        low, low_bytes = None, 0
    n_scales = 0 if affine is None else len(affine.ratios)
    square_bytes = D * D * (8 if wide else X.itemsize * (1 + n_scales) + (2 * n_scales if low else 0))
    left = max(0, budget - low_bytes - resident * resident_bytes - square_bytes)
    state_bytes = (2 * PAIRS + 30) * k * D * X.itemsize  # vectors, of which some come and go
    anchor_bytes = 2 * k * n * X.itemsize if low else 0
    if state_bytes + anchor_bytes > left:
        low, anchor_bytes = None, 0
    if resident and not wide:  # else no piece of the rows is long enough to be left out
        columns.kept = kept = together(family, kept, n)
    if kept is not None:
        y, weights = y[kept], weights[kept]
    most = max(1, int(left // (state_bytes + anchor_bytes)))
    chunks = np.array_split(np.arange(len(family)), -(-len(family) // most))

    design: Design
    with threads_for(n * d * min(n, d) / 4):  # of a product while it is made
        if wide:
            design = Dual(columns, weights, free, low)
        else:
            odd_squares = columns.like.new_zeros(1, 0)
            if affine is not None and len(affine.odd):
                odd_squares = _odd_squares(columns, family, affine)
            design = Primal(columns, weights, free, affine, odd_squares, resident, low)
    form: BlockLoss = softmax if k > 1 else logistic if loss is Loss.LOGISTIC else squared_hinge
    classes = np.searchsorted(family[0].live, y).clip(max=k - 1) if k > 1 else y
    targets = torch.tensor(classes, dtype=torch.int64, device=device)
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    block_scores = _BLOCK if device.type == "cpu" else _BLOCK_CUDA
    with threads_for(0), Team(threads) as team:
        for chunk in chunks:
            members = [family[i] for i in chunk]
            every = torch.from_numpy(chunk).to(device)
            batch, totals = _batch(members, every, kept, design, form, k, targets, device, X.dtype)
            objective = Objective(batch, block_scores, low is not None, team)
            moves = np.stack([move_of(member.problem, shift) for member in members]) if free else None
            null = _null(batch, free)
            start = _start(members, null, batch, moves)
            newton = affordable(batch, left)
            rule = stopping
            if newton:  # L-BFGS gets the passes that Newton's steps would cost, of which many columns share each
                proof = PROVEN if loss is Loss.SQUARED_HINGE else inf
                passes = 10 + int(D * min(3, 0.25 + len(batch) / 32))
                rule = replace(stopping, max_iter=min(max_iter, passes), bound_part=proof)
            minimum = minimise(objective, start, null, rule)
            if newton:
                finish(batch, minimum, stopping)
            # no free intercept takes up what rounding of the coefficients does to scores of columns far from 0
            answered = X.dtype if loss is Loss.LOGISTIC else np.dtype(np.float64)
            yield from _pieces(members, every, minimum, design, totals, moves, answered)


def _odd_squares(columns: Columns, family: list[Member], affine: Affine) -> Tensor:
    """(F, c) mean squares of the odd columns, with the weights and in the scale of the first problem of each."""
    odd = affine.odd.cpu().numpy()
    squares = columns.strip(odd).square()  # (n, c)
    found: dict[int, Tensor] = {}
    for which, member in zip(affine.which.tolist(), family, strict=True):
        if which not in found:
            held = member.problem.weights
            rows = np.ones(len(columns.X)) if held is None else np.asarray(held, np.float64)
            rows = rows if columns.kept is None else rows[columns.kept]
            found[which] = torch.from_numpy(rows / rows.sum()).to(squares) @ squares * affine.odd_ratios[which] ** 2
    return torch.stack([found[which] for which in sorted(found)]).to(columns.like)


def _batch(
    members: list[Member],
    every: Tensor,
    kept: np.ndarray | None,
    design: Design,
    form: BlockLoss,
    k: int,
    targets: Tensor,
    device: torch.device,
    dtype: np.dtype,
) -> tuple[Batch, np.ndarray]:
    """The members as tensors, and the sums of their weights."""
    folds: dict[int, int] = {}
    rows, totals = [], []
    for member in members:
        weights = member.problem.weights
        if id(weights) not in folds:
            folds[id(weights)] = len(folds)
            held = np.ones(design.n) if weights is None else np.asarray(weights, np.float64)
            held = held if kept is None or weights is None else held[kept]
            totals.append(held.sum())
            rows.append((held / held.sum()).astype(dtype))
    fold = np.array([folds[id(member.problem.weights)] for member in members])
    total = np.array(totals)[fold]
    l2 = np.array([float(member.problem.l2) for member in members]) / total
    factors = [factor_of(member) for member in members]
    keys = [
        (id(m.problem.weights), id(m.problem.shift), id(m.problem.scale), m.positive, factor)
        for m, factor in zip(members, factors, strict=True)
    ]
    alike = [keys.index(key) for key in keys]
    batch = Batch(
        design=design,
        loss=form,
        k=k,
        member=every,
        y=targets,
        weights=torch.from_numpy(np.stack(rows)).to(device),
        fold=torch.from_numpy(fold).to(device),
        positive=torch.tensor([member.positive for member in members], device=device),
        factor=None if all(factor == 1 for factor in factors) else design.spectrum.new_tensor(factors),
        l2=torch.from_numpy(l2.clip(max=1e30).astype(dtype)).to(device),
        alike=torch.tensor(alike, device=device),
    )
    return batch, total


def _null(batch: Batch, free: bool) -> Tensor:
    """(B, k, D) the model without columns: its free intercepts are the best, all else is 0."""
    null = batch.design.spectrum.new_zeros(len(batch), batch.k, len(batch.design.spectrum))
    if free:
        null[..., -1] = _best_intercepts(batch)
    return null


def _start(members: list[Member], null: Tensor, batch: Batch, moves: np.ndarray | None) -> Tensor:
    """(B, k, D) where to begin; `null` itself where no member says otherwise."""
    if all(member.problem.start is None for member in members):
        return null
    start = null.clone()
    for i, member in enumerate(members):
        if member.problem.start is not None:
            coef, constant = (np.asarray(part, np.float64) for part in member.problem.start)
            if member.k == 1 and len(coef) > 1:
                column = member.live.index(member.positive)
                coef, constant = coef[column : column + 1], constant[column : column + 1]
            if moves is not None:
                constant = constant + coef @ moves[i]
            W, intercept = torch.from_numpy(coef).to(null), torch.from_numpy(constant).to(null)
            start[i] = batch.design.coordinates(W[None], intercept[None], batch.member[i : i + 1])[0]
    return start - start.mean(1, keepdim=True) if batch.k > 1 else start


def _best_intercepts(batch: Batch) -> Tensor:
    """(B, k) of the model without columns: logs of the classes' shares or odds, 2 p - 1 for squared hinges."""
    weights = batch.weights.double()  # in float32 a sum over many rows is wrong by more than a rare class weighs
    shares = weights.new_zeros(len(weights), int(batch.y.max()) + 1).index_add_(1, batch.y, weights)
    shares = shares[batch.fold]  # (B, k)
    if batch.k > 1:
        logs = shares.log()
        best = logs - logs.mean(1, keepdim=True)
    else:
        at = batch.positive[:, None]
        p, q = shares.gather(1, at), shares.scatter(1, at, 0).sum(1, keepdim=True)
        best = (p - q) / (p + q) if batch.loss is squared_hinge else p.log() - q.log()
    return best.to(batch.weights)


def _pieces(
    members: list[Member],
    every: Tensor,
    minimum: Minimum,
    design: Design,
    totals: np.ndarray,
    moves: np.ndarray | None,
    dtype: np.dtype,
) -> Iterator[_Piece]:
    W, intercepts = (part.cpu().numpy() for part in design.coefficients(minimum.U, every))
    for i, member in enumerate(members):
        coef, intercept = W[i], intercepts[i]
        if member.k > 1:  # the same added to all classes changes nothing: of all these the smallest
            coef, intercept = coef - coef.mean(0), intercept - intercept.mean()
        coef = coef.astype(dtype)
        if moves is not None:  # of the coefficients as they are answered
            intercept = intercept - coef.astype(np.float64) @ moves[i]
        yield _Piece(
            number=member.number,
            live=member.live,
            coef=coef,
            intercept=intercept.astype(dtype),
            objective=float(minimum.value[i]) * totals[i],
            gradient_norm=float(minimum.norm[i]),
            n_iter=int(minimum.n_iter[i]),
            status=minimum.status[i],
        )


def _joined(pieces: list[_Piece]) -> Solution:
    """One problem's solution of its columns."""
    worst = max(pieces, key=lambda piece: list(Status).index(piece.status))
    return Solution(
        coef=np.concatenate([piece.coef for piece in pieces]),
        intercept=np.concatenate([piece.intercept for piece in pieces]),
        classes=np.array(pieces[0].live),
        objective=sum(piece.objective for piece in pieces),
        gradient_norm=max(piece.gradient_norm for piece in pieces),
        n_iter=max(piece.n_iter for piece in pieces),
        status=worst.status,
    )
