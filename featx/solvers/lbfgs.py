"""Batched L-BFGS: an objective of B problems in, their minimisers out. Every tick is one pass for all that are left.

Each problem has its own step, history and end; those that are done leave the batch. The inner metric M is diagonal: the
spectrum of the rows times the loss's curvature, plus the penalty; in the eigenbasis that is most of the Hessian.
Nocedal and Wright, Numerical Optimization (2006), algorithm 7.4. A step is 1, or cut back by a secant, which in this
metric is rare: a tick tries one step of every problem, and there is no other line search.

How far a problem is from its minimum is measured by two norms of the gradient, each relative to what it is at a model
that knows no column: the Euclidean one, and that in the inverse of M, half the square of which is about the gap, the
distance of the objective from its minimum, whatever the units of the columns. The gap counts relative to the objective,
and so does what the last step gained: a problem that still gains much is not there, however small its gradient.

M knows nothing of which rows are short of their margin. Of the squared hinge these may be so few that most directions
have no curvature but the penalty's, and the estimated gap is then too small by any factor. A bound of the gap that
always holds is |g|^2 / (2 l2), since f is strongly convex.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from featx.solvers.history import Pairs, dot
from featx.solvers.objective import Objective, Point, picked
from featx.solvers.problems import Status

_DECREASE = 1e-4  # Armijo's condition
_FLAT = 0.9  # where rounding hides a decrease, the slope must have fallen to this part of itself instead
_LOW_NOISE = 1e-5  # of the value and 1, in low precision
_NEAR = 1e-3  # of the value: a gap, and a bound of it, of which rounding may hide the rest
_GAIN = 30.0  # a step may still gain this multiple of `tol`, relative to the value
_FALL = 0.003  # of the gradient's norm since the anchor, after which low precision wants a new one
_DRIFT = 2.0  # times the norm that low precision has said: then the next anchor comes after half as many steps
_LEAST_SPAN = 3  # steps from one anchor to the next; where that is too long, low precision is given up
_FEW = 100  # columns of all problems: then reading the rows takes a pass longer than the arithmetic
_LOW_CUTS = 2  # refused steps in a row that are blamed on low precision
_EXACT_CUTS = 20  # ... and on rounding
_CROWD = 0.8  # the part of a batch that must be left, else it is packed


@dataclass(frozen=True)
class Stopping:
    """A problem has converged when the largest of these is at most `tol`, or where rounding hides the rest.

    The gradient's Euclidean norm and `metric_share` times its norm in the inverse metric, relative to those at the null
    model; relative to the value, the estimated gap divided by `gap_part`, its bound divided by `bound_part`, and the
    last step's gain divided by 30.

    max_iter : passes over the rows, at most
    """

    tol: float
    max_iter: int
    metric_share: float
    gap_part: float
    bound_part: float


@dataclass
class Minimum:
    """U (B, k, D) float64, value (B,), relative gradient norm (B,), passes (B,), how each ended.

    reference : (B, 2) the norms of the gradient, Euclidean and in the metric, that others are relative to
    """

    U: Tensor
    reference: Tensor
    value: Tensor
    norm: Tensor
    n_iter: Tensor
    status: list[Status]


def minimise(objective: Objective, start: Tensor, null: Tensor, stopping: Stopping) -> Minimum:
    """Run until each problem has converged, or cannot.

    Parameters
    ----------
    start : (B, k, D)
    null : (B, k, D), where the gradient has the norms that others are relative to; it may be `start`
    stopping : Stopping
    """
    run = _Run(objective, start, null, stopping)
    run.retire()
    while len(run.problem):
        run.tick()
        run.retire()
    return run.found


class _Run:
    """Where the problems that are left stand; K = k D."""

    def __init__(self, objective: Objective, start: Tensor, null: Tensor, stopping: Stopping) -> None:
        B, k, D = start.shape
        self.objective, self.shape, self.stopping = objective, (-1, k, D), stopping
        self.problem = torch.arange(B, device=start.device)  # which it is of those there were at the beginning
        self.reference = torch.ones(B, 2, dtype=torch.float64, device=start.device)
        self.gain = torch.zeros_like(self.reference[:, 0])  # of the last step
        self._stand(null, self._at_null(null))
        shares = self.reference.new_tensor([1.0, stopping.metric_share])
        tiny = torch.finfo(start.dtype).tiny
        self.reference = self._norms()[:, :2].clamp_min(tiny) / shares
        if start is not null:
            self._stand(start, objective.exact(start, self.problem))
        self.norm = self._norms().amax(1)
        self.anchor_norm = self.norm.clone()
        self.direction = torch.zeros_like(self.U)
        self.slope, self.length = torch.zeros_like(self.norm), torch.ones_like(self.norm)
        self.cuts, self.passes = torch.zeros_like(self.problem), torch.zeros_like(self.problem)
        self.alive = torch.ones_like(self.problem, dtype=torch.bool)
        self.exact = self.alive.clone()  # the point was evaluated exactly
        self.fresh = self.alive.clone()  # the point is new and needs a direction
        self.doubted = ~self.alive  # the next pass is an exact one, where the point is
        self.distrusted = self.alive.clone() if not objective.anchored else ~self.alive  # exact passes from now on
        self.since = torch.zeros_like(self.problem)  # steps in low precision since the anchor
        self.span = torch.full_like(self.problem, stopping.max_iter)  # ... and how many there may be
        self.pairs = Pairs(self.U, k)
        nobody = torch.zeros_like(self.problem)
        self.found = Minimum(
            start.to(torch.float64, copy=True),
            self.reference,
            self.value.clone(),
            self.norm.clone(),
            nobody,
            [Status.MAX_ITER] * B,
        )

    def _at_null(self, null: Tensor) -> Point:
        """Penalties have no part there: one problem stands for all that differ in nothing else."""
        different, which = self.objective.batch.alike.unique(return_inverse=True)
        firsts = torch.stack([(which == number).nonzero()[0, 0] for number in range(len(different))])
        point = self.objective.exact(null[firsts], firsts)
        self.objective.adopt(self.problem, firsts[which])
        return Point(point.value[which], point.gradient[which], point.curvature[which])

    def _stand(self, U: Tensor, point: Point) -> None:
        self.U = U.flatten(1).clone()  # (b, K)
        self.value, self.gradient, self.curvature = point.value, point.gradient.flatten(1), point.curvature
        self.metric = self._metric()

    def _metric(self) -> Tensor:
        """(b, k, D), and nowhere 0"""
        spectrum, penalty = self.objective.spectrum, self.objective.penalty
        largest = self.curvature.amax(1)[:, None, None] * self.objective.widest + penalty.amax(2, keepdim=True)
        kind = torch.finfo(penalty.dtype)
        return torch.addcmul(penalty + kind.eps * largest + kind.tiny, self.curvature[..., None], spectrum)

    def _norms(self) -> Tensor:
        """(b, 5), as of `Stopping`."""
        rule, tiny = self.stopping, torch.finfo(self.U.dtype).tiny
        square = dot(self.gradient, self.gradient / self.metric.flatten(1)).double()
        norms = [dot(self.gradient, self.gradient).double().sqrt(), square.sqrt()]
        self.gap = square / 2
        self.bound = self._bound() if isfinite(rule.bound_part) else torch.zeros_like(square)
        gap, gain = self.gap / (self.value * rule.gap_part + tiny), self.gain / (self.value * _GAIN + tiny)
        bound = self.bound / (self.value * rule.bound_part + tiny)
        return torch.cat([torch.stack(norms, 1) / self.reference, torch.stack([gap, gain, bound], 1)], 1)

    def _bound(self) -> Tensor:
        """(b,) of the gap; a free intercept has its own curvature."""
        gradient, penalty = self.gradient.view(self.shape).double(), self.objective.penalty
        least = torch.where(penalty > 0, penalty.expand_as(self.metric), self.metric)
        return (gradient.square() / least).sum((1, 2)) / 2

    def tick(self) -> None:
        """A direction where the point is new, a trial of every problem, and what follows from it.

        Exact passes of few problems cost much: who is in doubt waits until half of those left are.
        """
        if self.fresh.any():
            self._aim()
        if self._are_few(self.alive):
            self.distrusted |= self.alive
        waiting = self.doubted & self.alive
        waits = waiting & (2 * waiting.sum() < self.alive.sum())
        tried = self.alive & ~waits
        length = torch.where(self.doubted, 0.0, self.length).to(self.U.dtype)
        trial = torch.addcmul(self.U, length[:, None], self.direction)
        asked_exact = self.doubted | self.distrusted
        if self._are_few(tried & ~asked_exact) and (asked_exact & tried).any():
            asked_exact |= tried
        point = Point(self.value, self.gradient, self.curvature)
        for chosen, evaluate in ((asked_exact, self.objective.exact), (~asked_exact, self.objective.low)):
            where = (chosen & tried).nonzero()[:, 0]
            if len(where):
                some = evaluate(picked(trial, where).view(self.shape), where)
                point = Point(
                    _replaced(point.value, where, some.value),
                    _replaced(point.gradient, where, some.gradient.flatten(1)),
                    _replaced(point.curvature, where, some.curvature),
                )
        self.passes += tried
        self._judge(trial, point, asked_exact, tried)

    def _are_few(self, problems: Tensor) -> bool:
        """Whether low precision gains them little."""
        return self.objective.anchored and int(problems.sum()) * self.pairs.k < _FEW

    def _aim(self) -> None:
        metric = self.metric.flatten(1)  # (b, K)
        direction = self.pairs.direction(self.gradient, metric)
        slope = dot(self.gradient, direction).double()
        uphill = ~(slope < 0)
        if uphill.any():
            direction = torch.where(uphill[:, None], self.pairs.balanced(-self.gradient / metric), direction)
            slope = dot(self.gradient, direction).double()
        self.direction = _choose(self.fresh, direction, self.direction)
        self.slope = torch.where(self.fresh, slope, self.slope)
        self.length = torch.where(self.fresh, torch.ones_like(slope), self.length)

    def _judge(self, trial: Tensor, point: Point, exact: Tensor, tried: Tensor) -> None:
        # a row's loss is wrong by eps at least, however small it is
        size = 1 + self.value.abs()
        noise = torch.where(exact, 10 * torch.finfo(trial.dtype).eps * size, _LOW_NOISE * size)
        predicted = self.length * self.slope
        rise = point.value - self.value
        slope = dot(point.gradient, self.direction).double()
        decreased = rise <= _DECREASE * predicted
        flat = (rise <= noise) & (slope.abs() <= _FLAT * self.slope.abs())
        accepted = (self.doubted | decreased | flat) & tried
        self.pairs.push(trial - self.U, point.gradient - self.gradient, accepted & ~self.doubted)

        secant = self.length * self.slope / (self.slope - slope)
        cut = torch.clamp(secant.nan_to_num(0.0), 0.1 * self.length, 0.5 * self.length)
        self.length = torch.where(accepted | ~tried, self.length, cut)
        self.cuts = torch.where(accepted, torch.zeros_like(self.cuts), self.cuts + tried)

        self.gain = torch.where(accepted & ~self.doubted, -rise, self.gain)
        self.U = _choose(accepted, trial, self.U)
        self.gradient = _choose(accepted, point.gradient, self.gradient)
        self.value = torch.where(accepted, point.value, self.value)
        self.curvature = _choose(accepted, point.curvature, self.curvature)
        self.metric = self._metric()
        said = self.norm
        self.norm = torch.where(accepted, self._norms().amax(1), said)
        self.exact = torch.where(accepted, exact, self.exact)
        self.fresh = accepted
        if self.objective.anchored:
            self._doubt(exact, tried, said)

    def _doubt(self, exact: Tensor, tried: Tensor, said: Tensor) -> None:
        """Who needs an anchor, and who has no more use for low precision; `said` are the norms before this pass."""
        accepted, anchored = self.fresh, self.doubted & tried
        drifted = self.norm > _DRIFT * said
        self.span = torch.where(anchored, torch.where(drifted, self.since // 2, 2 * self.since), self.span)
        self.distrusted |= anchored & (self.span < _LEAST_SPAN)
        self.since = torch.where(exact & tried, 0, self.since + accepted)
        self.anchor_norm = torch.where(exact & accepted, self.norm, self.anchor_norm)
        fallen = self.norm <= torch.maximum(
            _FALL * self.anchor_norm, torch.full_like(self.norm, 0.9 * self.stopping.tol)
        )
        ran_out = (self.since >= self.span) | (self.passes >= self.stopping.max_iter)
        unsure = (accepted & fallen) | (self.cuts >= _LOW_CUTS) | ran_out
        refused = exact & ~accepted & ~self.exact  # perhaps since the point is not what low precision has said
        self.doubted = torch.where(tried, (~exact & unsure) | refused, self.doubted)

    def retire(self) -> None:
        """Write down what has ended, and pack the batch when many have."""
        stuck = self.cuts > _EXACT_CUTS
        eps = torch.finfo(self.U.dtype).eps
        near = torch.maximum(self.gap, self.bound) <= _NEAR * self.value
        there = (self.gap <= 10 * eps * (1 + self.value.abs())) & (self.stopping.tol >= 10 * eps)  # null was, or nearly
        converged = (self.norm <= self.stopping.tol) | (stuck & there & near)
        ended = self.alive & self.exact & ~self.doubted & (converged | stuck | (self.passes >= self.stopping.max_iter))
        if not ended.any():
            return
        numbers = self.problem[ended]
        self.found.U[numbers] = self.U[ended].view(self.shape).double()
        self.found.value[numbers], self.found.norm[numbers] = self.value[ended], self.norm[ended]
        self.found.n_iter[numbers] = self.passes[ended].clamp(max=self.stopping.max_iter)
        for chosen, status in ((stuck, Status.ROUNDING), (converged, Status.CONVERGED)):
            for number in self.problem[chosen & ended].tolist():
                self.found.status[number] = status
        self.alive = self.alive & ~ended
        if int(self.alive.sum()) <= _CROWD * len(self.alive):
            where = self.alive.nonzero()[:, 0]
            for name, held in vars(self).items():
                if isinstance(held, Tensor):
                    setattr(self, name, held[where])
            self.pairs.keep(where)
            self.objective.keep(where)


def _replaced(held: Tensor, where: Tensor, new: Tensor) -> Tensor:
    return new if len(where) == len(held) else held.index_copy(0, where, new)


def _choose(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """(b, m) rows of one or the other; a copy of the new ones is not made for nothing."""
    return new if bool(mask.all()) else torch.where(mask[:, None], new, old)
