"""Columns that L-BFGS left unfinished or unproven in, their minimisers out: Newton's method, in float64.

A column is a problem of k = 1: two classes, or one against the rest.

    f(u) = sum_i s_i l(z_i, y_i) + l2/2 u S u^T,    z = u Z^T,    H = Z^T diag(s l''(z)) Z + l2 S

S is the identity but for problems of their own shift and scale (`affine`). The squared hinge is quadratic between its
kinks, so the steps are few and the last one is exact: Keerthi and DeCoste, A modified finite Newton method for fast
solution of large scale linear SVMs (2005), with a looser line search.

Two numbers say how far the value is from its minimum. f is strongly convex, so |g|^2 / (2 l2) is a bound, of the
coordinates that are penalised, with the best free intercept. Where that is too loose, g H^-1 g / 2 is what the next
Newton step promises.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featx.solvers.history import dot
from featx.solvers.lbfgs import Minimum, Stopping
from featx.solvers.losses import logistic
from featx.solvers.objective import Batch
from featx.solvers.problems import Status

_HESSIAN, _HESSIANS = 2**27, 2**30  # multiplications that one, and that one of each column, may take
_CHUNK = 2**23  # numbers of all Hessians at once
PROVEN = 0.003  # times `tol`, of the value: a bound of the gap that needs no further proof
_FLAT = 0.1  # of the slope along a step, where its search ends
_TRIALS = 30  # of lengths of a step
_SHORT, _LONG = 0.1, 0.5  # steps that are shorter go astray, and those that are longer go well
_FALL = 10.0  # of the penalty along the path, after a step that went well
_INTERCEPT = 2  # Newton steps to the best intercept
_IN_VAIN = 3  # steps in a row that do not help, then rounding hides the rest


def affordable(batch: Batch, budget_bytes: int) -> bool:
    """Whether the problems are columns with a penalty each, and a Hessian takes no more than a moment."""
    n, D = batch.design.n, len(batch.design.spectrum)
    small = (
        batch.design.resident is not None
        and n * D**2 <= min(_HESSIAN, _HESSIANS // len(batch))
        and 16 * n * D <= budget_bytes
    )
    return small and batch.k == 1 and bool((batch.l2 > 0).all())


def finish(batch: Batch, minimum: Minimum, stopping: Stopping) -> None:
    """Bring each column of `minimum` to its minimum, unless it is proven to be there."""
    design = batch.design
    Z = design.rows(0, design.n).double()  # (n, W)
    if design.free:
        Z = torch.cat([Z, Z.new_ones(len(Z), 1)], 1)
    least = None if design.squares is None else torch.linalg.eigvalsh(design.squares.double())[:, 0]
    most = max(1, _CHUNK // (Z.shape[1] ** 2 + 8 * len(Z)))
    for numbers in torch.arange(len(batch), device=Z.device).split(most):
        _Columns(batch, numbers, Z, least).finish(minimum, stopping)


@dataclass
class _State:
    """Columns at u (b, D): scores z (b, n), loss (b,), residuals s l' (b, n); `pull` is its gradient, `shrink` S u."""

    u: Tensor
    z: Tensor
    loss: Tensor
    residuals: Tensor
    pull: Tensor
    shrink: Tensor


class _Columns:
    """Some columns of a batch on the rows Z (n, D).

    path : (b,) the penalty for now, l2 or more
    """

    def __init__(self, batch: Batch, numbers: Tensor, Z: Tensor, least: Tensor | None) -> None:
        design, self.loss, self.y = batch.design, batch.loss, batch.y
        self.numbers, self.Z, self.positive = numbers, Z, batch.positive[numbers]
        self.s = batch.weights[batch.fold[numbers]].double()  # (b, n)
        if batch.factor is not None:
            self.s *= torch.where(self.y == self.positive[:, None], batch.factor[numbers][:, None].double(), 1.0)
        self.l2 = batch.l2[numbers].double()
        self.path = self.l2.clone()
        members = batch.member[numbers]
        W = Z.shape[1] - design.free
        self.stretch = Z.new_ones(len(numbers), Z.shape[1])  # what a problem's columns are of the rows' columns
        self.stretch[:, :W] = design.shared(design.spectrum.new_ones(len(numbers), 1, W), members)[:, 0]
        self.penalty = torch.diag(design.penalised.double())[None]  # (F, D, D)
        self.which = torch.zeros_like(numbers)
        self.floor = torch.ones_like(self.l2)  # the least eigenvalue of the penalty
        if design.squares is not None:
            assert design.affine is not None and least is not None
            self.which, self.floor = design.affine.which[members], least[design.affine.which[members]]
            self.penalty = Z.new_zeros(len(design.squares), Z.shape[1], Z.shape[1])
            self.penalty[:, :W, :W] = design.squares
        self.free = design.free

    def __getitem__(self, which: Tensor) -> _Columns:
        some = object.__new__(_Columns)
        some.__dict__ |= self.__dict__
        for name in ("numbers", "positive", "s", "l2", "path", "stretch", "which", "floor"):
            setattr(some, name, getattr(self, name)[which])
        return some

    def finish(self, minimum: Minimum, stopping: Stopping) -> None:
        """Steps until each column's norm is at most `tol`; what has ended leaves."""
        numbers, columns, tol, gap_part = self.numbers, self, stopping.tol, min(PROVEN, stopping.gap_part)
        state = columns.at(minimum.U[numbers, 0])
        open_ = [minimum.status[number] is not Status.CONVERGED for number in numbers.tolist()]
        unproven = columns.bound(state) > PROVEN * tol * columns.value(state)
        left = numbers.new_tensor(open_, dtype=torch.bool) | unproven
        best, lowest = torch.full_like(state.loss, torch.inf), torch.full_like(state.loss, torch.inf)
        in_vain, steps = torch.zeros_like(numbers), torch.zeros_like(numbers)
        direct = torch.ones_like(left)  # no path of penalties was needed so far
        while True:
            where = left.nonzero()[:, 0]
            if not len(where):
                return
            columns, in_vain, steps = columns[where], in_vain[where], steps[where]
            best, lowest, direct = best[where], lowest[where], direct[where]
            state = _State(*(held[where] for held in vars(state).values()))
            step, gap = columns.step(state)
            value, gradient = columns.value(state), columns.gradient(state)
            there = columns.path == columns.l2
            norms = torch.stack([gradient.norm(dim=1), (2 * gap).sqrt()], 1) / minimum.reference[columns.numbers]
            norm = torch.maximum(norms.amax(1), gap / (value * gap_part + torch.finfo(gap.dtype).tiny))
            eps = torch.finfo(gap.dtype).eps
            helped = (norm < 0.9 * best) | (value * (1 + 10 * eps) < lowest) | ~there
            rounded = there & (gap <= eps * value)  # no value tells more
            in_vain = torch.where(helped & ~rounded, 0, in_vain + 1)
            best = torch.where(there, torch.minimum(norm, best), torch.inf)
            lowest = torch.where(there, torch.minimum(value, lowest), torch.inf)
            passes = minimum.n_iter[columns.numbers] + steps
            converged = there & ((norm <= tol) | ((in_vain >= _IN_VAIN) & rounded & (tol >= 10 * eps)))
            left = ~converged & (in_vain < _IN_VAIN) & (passes < stopping.max_iter)
            for i in (~left).nonzero()[:, 0].tolist():
                number = int(columns.numbers[i])
                minimum.U[number, 0], minimum.value[number] = state.u[i], value[i]
                minimum.norm[number], minimum.n_iter[number] = norm[i], passes[i]
                ran_out = Status.MAX_ITER if in_vain[i] < _IN_VAIN else Status.ROUNDING
                minimum.status[number] = Status.CONVERGED if converged[i] else ran_out
            if left.any():
                length, ahead = columns.search(state, step)
                lost = left & direct & (length < _SHORT) & ~rounded
                good = ~direct & (length >= _LONG)
                direct = direct & ~lost
                start = torch.where(lost[:, None], 0.0, state.u + length[:, None] * step)
                state = columns.at(start, torch.where(lost[:, None], 0.0, state.z + length[:, None] * ahead))
                columns.path = torch.where(good, torch.maximum(columns.l2, columns.path / _FALL), columns.path)
                columns.path = torch.where(lost, torch.maximum(columns.l2, columns.first), columns.path)
                steps = steps + 1

    @property
    def first(self) -> Tensor:
        """(b,) a penalty so large that the minimiser is near 0."""
        squares = self.Z[:, : self.Z.shape[1] - self.free].square().sum(1)
        return self.s @ squares

    def scores(self, u: Tensor) -> Tensor:
        """(b, n)"""
        return (u * self.stretch) @ self.Z.T

    def shrunk(self, u: Tensor) -> Tensor:
        """(b, D) S u"""
        if len(self.penalty) == 1:
            return u @ self.penalty[0]
        return torch.bmm(u[:, None], self.penalty[self.which])[:, 0]

    def losses(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(b,) sums, and (b, n) their derivatives by the scores."""
        residuals = torch.empty_like(z)
        sums = self.loss(z.clone()[:, None], self.y, self.s.clone(), self.positive, residuals[:, None])
        return sums.value, residuals

    def at(self, u: Tensor, z: Tensor | None = None) -> _State:
        u = u.double()
        z = self.scores(u) if z is None else z
        loss, residuals = self.losses(z)
        return _State(u, z, loss, residuals, (residuals @ self.Z) * self.stretch, self.shrunk(u))

    def value(self, state: _State) -> Tensor:
        return state.loss + self.path / 2 * dot(state.u, state.shrink)

    def gradient(self, state: _State) -> Tensor:
        return state.pull + self.path[:, None] * state.shrink

    def curvatures(self, state: _State) -> Tensor:
        """(b, n) second derivatives by the scores."""
        sizes = state.residuals.abs()  # logistic: s p, p the probability of the wrong class
        if self.loss is logistic:
            return sizes * (1 - torch.where(self.s > 0, sizes / self.s, 0.0))
        return 2 * self.s * (sizes > 0)

    def bound(self, state: _State) -> Tensor:
        """(b,) an upper bound of the value's distance from its minimum.

        With a free intercept it holds where that is the best there is for the other coefficients: one is looked for.
        """
        value = self.value(state)
        for _ in range(_INTERCEPT if self.free else 0):
            curvature = self.curvatures(state).sum(1, keepdim=True)
            shift = state.pull[:, -1:] / curvature.clamp_min(torch.finfo(value.dtype).tiny)
            u = state.u.clone()
            u[:, -1:] -= shift
            state = self.at(u, state.z - shift)
        penalised = self.gradient(state)[:, : self.Z.shape[1] - self.free]
        return value - self.value(state) + dot(penalised, penalised) / (2 * self.l2 * self.floor)

    def step(self, state: _State) -> tuple[Tensor, Tensor]:
        """Newton's (b, D), and what it promises of the value (b,)."""
        curvatures, gradient, D = self.curvatures(state), self.gradient(state), self.Z.shape[1]
        H = self.path[:, None, None] * self.penalty[self.which]  # (b, D, D)
        for held, curvature, stretch in zip(H, curvatures, self.stretch, strict=True):
            rows = curvature.nonzero()[:, 0]
            weighted = (self.Z[rows] * curvature[rows, None].sqrt()) * stretch
            held.addmm_(weighted.T, weighted)
        sizes = H.diagonal(dim1=1, dim2=2).clamp_min(torch.finfo(H.dtype).tiny).sqrt()
        H /= sizes[:, :, None] * sizes[:, None]
        ridge = D * torch.finfo(H.dtype).eps
        while True:
            H.diagonal(dim1=1, dim2=2).fill_(1 + ridge)
            L, failed = torch.linalg.cholesky_ex(H)
            if not failed.any():
                break
            ridge *= 100
        step = -torch.cholesky_solve((gradient / sizes)[..., None], L)[..., 0] / sizes
        return step, -dot(gradient, step) / 2

    def search(self, state: _State, step: Tensor) -> tuple[Tensor, Tensor]:
        """(b,) lengths of the steps, where the slope along them is nearly 0, and (b, n) scores for each unit of length.

        The slope grows with the length, so two lengths enclose its root; what is tried lies on the line between them.
        """
        ahead, shrink = self.scores(step), self.path[:, None] * self.shrunk(step)
        first, more = dot(self.gradient(state), step), dot(step, shrink)
        start = dot(state.u, shrink)
        length, low, high = (torch.full_like(first, value) for value in (1.0, 0.0, torch.inf))
        low_slope, high_slope = first.clone(), torch.full_like(first, torch.inf)
        for _ in range(_TRIALS):
            _, residuals = self.losses(state.z + length[:, None] * ahead)
            slope = dot(residuals, ahead) + start + length * more
            if bool((slope.abs() <= _FLAT * first.abs()).all()):
                break
            short = slope < 0
            low, low_slope = torch.where(short, length, low), torch.where(short, slope, low_slope)
            high, high_slope = torch.where(short, high, length), torch.where(short, high_slope, slope)
            width = high - low
            secant = low - low_slope * width / (high_slope - low_slope)
            inside = torch.minimum(torch.maximum(secant, low + 0.1 * width), high - 0.1 * width)
            tried = torch.where(high.isinf(), 2 * length, inside)
            length = torch.where(slope.abs() <= _FLAT * first.abs(), length, tried)
        return length, ahead
