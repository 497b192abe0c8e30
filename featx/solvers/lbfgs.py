"""Batched L-BFGS: each step is one pass over the data for all problems that have not ended.

Nocedal and Wright, Numerical Optimization (2006), algorithm 7.4. Each problem has its own step length, history and end;
problems that have ended leave the batch. The preconditioner M is diagonal: the spectrum of the rows times the curvature
of the loss, plus that of the penalty. In the eigenbasis this is most of the Hessian, so a step length of 1 is rarely
too long. A pass tries one length for every problem, and a rejected one is cut by the secant rule; there is no other
line search.

The distance of a problem from its minimum is measured by two norms of the gradient g, |g| and (g M^-1 g)^1/2, each
relative to its value for the intercept-only model. Half the square of the latter estimates the *gap*, the difference of
the objective from its minimum, whatever the units of the columns. The gap and the decrease in the last step are taken
relative to the objective: a problem that still decreases much has not converged, however small its gradient.

M does not depend on which rows are within their margin. For the squared hinge so few rows may be that most directions
only have the curvature of the penalty; then the gap can be underestimated by any factor. |g|^2 / (2 l2) is
always an upper bound of it, since f is strongly convex.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite

import torch
from torch import Tensor

from featx.solvers.compaction import take
from featx.solvers.history import History, balance, dot
from featx.solvers.objective import Objective, Point, picked
from featx.solvers.problems import Status

_DECREASE = 1e-4  # Armijo's condition
_FLAT = 0.9  # where rounding hides a decrease, the slope must fall to this part of itself instead
_LOW_NOISE = 1e-5  # error of a value in low precision, relative to 1 + |value|
_NEAR = 1e-3  # of the value: the gap and its bound may be this large when rounding ends a problem as converged
_GAIN = 30.0  # a converged problem's last step decreased the value by at most this times `tol`, relative to it
_FALL = 0.003  # when the norm has fallen to this part of that at the anchor, low precision needs a new anchor
_DRIFT = 2.0  # when the anchor's norm is this times that in low precision, the next anchor comes twice as soon
_LEAST_SPAN = 3  # steps from one anchor to the next; where that is too many, low precision is given up
_FEW = 100  # columns of scores: with fewer, reading the rows takes a pass longer than the arithmetic
_LOW_CUTS = 2  # rejected steps in a row that are blamed on low precision
_EXACT_CUTS = 20  # ... and on rounding
_CROWD = 0.8  # the batch is compacted when at most this part of its problems is left


@dataclass(frozen=True)
class Stopping:
    """When to stop. A problem has converged when its `norm` is at most `tol`, or where rounding hides the rest.

    The norm is the largest of: |g|, and `preconditioned_share` times (g M^-1 g)^1/2, both relative to those of the
    intercept-only model; and, relative to the value, the estimated gap divided by `gap_part`, its upper bound divided
    by `bound_part`, and the decrease in the last step divided by 30.

    max_iter : maximum number of passes over the data
    """

    tol: float
    max_iter: int
    preconditioned_share: float
    gap_part: float
    bound_part: float


@dataclass
class Minimum:
    """The minimisers of B problems.

    U : (B, k, D) float64
    reference : (B, 2) the norms of the intercept-only model
    value, norm : (B,)
    n_iter : (B,) passes
    status : how each problem ended
    """

    U: Tensor
    reference: Tensor
    value: Tensor
    norm: Tensor
    n_iter: Tensor
    status: list[Status]


@dataclass(frozen=True)
class Iterate:
    """The coordinates of b problems, and their distances from the minima; K = k D.

    U : (b, K)
    value : (b,) float64
    gradient : (b, K)
    curvature : (b, k)
    preconditioner : (b, k, D) the diagonal of M
    gap, bound : (b,) an estimate and an upper bound of the value's distance from the minimum; the bound is 0 if unused
    gain : (b,) decrease of the value in the last step
    norm : (b,) as in `Stopping`
    """

    U: Tensor
    value: Tensor
    gradient: Tensor
    curvature: Tensor
    preconditioner: Tensor
    gap: Tensor
    bound: Tensor
    gain: Tensor
    norm: Tensor


@dataclass(frozen=True)
class Search:
    """The line searches.

    direction : (b, K)
    slope : (b,) float64, of the value along the direction
    length : (b,) to try next
    cuts : (b,) rejected lengths since the last accepted one
    fresh : (b,) whether the iterate is new and needs a direction
    """

    direction: Tensor
    slope: Tensor
    length: Tensor
    cuts: Tensor
    fresh: Tensor


@dataclass(frozen=True)
class Precision:
    """How far low precision is trusted.

    exact : (b,) whether the iterate was evaluated exactly
    doubted : (b,) whether the next pass is an exact one at the iterate, an anchor
    distrusted : (b,) whether all passes are exact from now on
    since : (b,) steps since the anchor, and how many there may be, span (b,)
    anchor_norm : (b,) the norm at the anchor
    """

    exact: Tensor
    doubted: Tensor
    distrusted: Tensor
    since: Tensor
    span: Tensor
    anchor_norm: Tensor


@dataclass(frozen=True)
class State:
    """The b problems that are left in the batch.

    number : (b,) of the problem among all
    reference : (b, 2) the norms of the intercept-only model
    alive : (b,) whether the problem has not ended
    passes : (b,)
    """

    number: Tensor
    reference: Tensor
    alive: Tensor
    passes: Tensor
    iterate: Iterate
    search: Search
    precision: Precision
    history: History


def minimise(objective: Objective, start: Tensor, intercept_only: Tensor, stopping: Stopping) -> Minimum:
    """Run until each problem has converged or cannot converge.

    Parameters
    ----------
    start : (B, k, D)
    intercept_only : (B, k, D)
        The intercept-only model, to whose gradient norms are relative; it may be `start` itself.
    stopping : Stopping
    """
    state = _begin(objective, start, intercept_only, stopping)
    minimum = Minimum(
        U=start.to(torch.float64, copy=True),
        reference=state.reference,
        value=state.iterate.value.clone(),
        norm=state.iterate.norm.clone(),
        n_iter=torch.zeros_like(state.number),
        status=[Status.MAX_ITER] * len(start),
    )
    while len((state := _retire(objective, stopping, state, minimum)).number):
        state = _step(objective, stopping, state)
    return minimum


def _begin(objective: Objective, start: Tensor, intercept_only: Tensor, stopping: Stopping) -> State:
    number = torch.arange(len(start), device=start.device)
    point = _evaluate_once(objective, intercept_only)
    norms = _squares(point.gradient.flatten(1), _preconditioner(objective, point.curvature)).sqrt()
    shares = norms.new_tensor([1.0, stopping.preconditioned_share])
    reference = norms.clamp_min(torch.finfo(start.dtype).tiny) / shares
    if start is not intercept_only:
        point = objective.exact(start, number)
    flat = Point(point.value, point.gradient.flatten(1), point.curvature)
    gain = torch.zeros_like(point.value)
    iterate = _iterate(objective, stopping, reference, start.flatten(1).clone(), flat, gain)
    every = torch.ones_like(number, dtype=torch.bool)
    return State(
        number=number,
        reference=reference,
        alive=every,
        passes=torch.zeros_like(number),
        iterate=iterate,
        search=Search(
            direction=torch.zeros_like(iterate.U),
            slope=torch.zeros_like(iterate.norm),
            length=torch.ones_like(iterate.norm),
            cuts=torch.zeros_like(number),
            fresh=every,
        ),
        precision=Precision(
            exact=every,
            doubted=~every,
            distrusted=~every if objective.anchored else every,
            since=torch.zeros_like(number),
            span=torch.full_like(number, stopping.max_iter),
            anchor_norm=iterate.norm,
        ),
        history=History.empty(iterate.U),
    )


def _evaluate_once(objective: Objective, intercept_only: Tensor) -> Point:
    """Evaluate the intercept-only models, which problems share that differ in nothing but l2."""
    different, which = objective.batch.alike.unique(return_inverse=True)
    firsts = torch.stack([(which == number).nonzero()[0, 0] for number in range(len(different))])
    point = objective.exact(intercept_only[firsts], firsts)
    objective.adopt(torch.arange(len(which), device=which.device), firsts[which])
    return Point(point.value[which], point.gradient[which], point.curvature[which])


def _iterate(
    objective: Objective, stopping: Stopping, reference: Tensor, U: Tensor, point: Point, gain: Tensor
) -> Iterate:
    """Measure the distance from the minimum at U (b, K); the gradient of `point` is (b, K) too."""
    preconditioner = _preconditioner(objective, point.curvature)
    squares = _squares(point.gradient, preconditioner)
    gap = squares[:, 1] / 2
    bound = torch.zeros_like(gap)
    if isfinite(stopping.bound_part):
        bound = _upper_bound(objective, point.gradient.view_as(preconditioner), preconditioner)
    tiny = torch.finfo(U.dtype).tiny
    relative = [
        gap / (point.value * stopping.gap_part + tiny),
        gain / (point.value * _GAIN + tiny),
        bound / (point.value * stopping.bound_part + tiny),
    ]
    norms = torch.cat([squares.sqrt() / reference, torch.stack(relative, 1)], 1)  # (b, 5)
    return Iterate(
        U, point.value, point.gradient, point.curvature, preconditioner, gap, bound, gain, norm=norms.amax(1)
    )


def _preconditioner(objective: Objective, curvature: Tensor) -> Tensor:
    """The diagonal of M (b, k, D), nowhere 0."""
    spectrum, penalty = objective.spectrum, objective.penalty
    largest = curvature.amax(1)[:, None, None] * objective.widest + penalty.amax(2, keepdim=True)
    kind = torch.finfo(penalty.dtype)
    return torch.addcmul(penalty + kind.eps * largest + kind.tiny, curvature[..., None], spectrum)


def _squares(gradient: Tensor, preconditioner: Tensor) -> Tensor:
    """|g|^2 and g M^-1 g, (b, 2) float64."""
    preconditioned = dot(gradient, gradient / preconditioner.flatten(1)).double()
    return torch.stack([dot(gradient, gradient).double(), preconditioned], 1)


def _upper_bound(objective: Objective, gradient: Tensor, preconditioner: Tensor) -> Tensor:
    """|g|^2 / (2 l2) (b,); a free intercept, which has no penalty, counts with its own curvature."""
    penalty = objective.penalty
    least = torch.where(penalty > 0, penalty.expand_as(preconditioner), preconditioner)
    return (gradient.double().square() / least).sum((1, 2)) / 2


def _step(objective: Objective, stopping: Stopping, state: State) -> State:
    """One pass: choose new directions where needed, try a step of every problem, and accept or shorten it.

    Exact passes over few problems are expensive, so problems that need an anchor wait until half of the others do too.
    """
    iterate, search, precision = state.iterate, state.search, state.precision
    if search.fresh.any():
        search = _new_directions(state)
    if _are_few(objective, state.alive):
        precision = replace(precision, distrusted=precision.distrusted | state.alive)
    waiting = precision.doubted & state.alive
    waits = waiting & (2 * waiting.sum() < state.alive.sum())
    tried = state.alive & ~waits
    length = torch.where(precision.doubted, 0.0, search.length).to(iterate.U.dtype)
    trial = torch.addcmul(iterate.U, length[:, None], search.direction)
    exact = precision.doubted | precision.distrusted
    if _are_few(objective, tried & ~exact) and (exact & tried).any():
        exact |= tried
    point = Point(iterate.value, iterate.gradient, iterate.curvature)
    for chosen, evaluate in ((exact, objective.exact), (~exact, objective.low)):
        where = (chosen & tried).nonzero()[:, 0]
        if len(where):
            some = evaluate(picked(trial, where).view(-1, *iterate.preconditioner.shape[1:]), where)
            point = Point(
                _replaced(point.value, where, some.value),
                _replaced(point.gradient, where, some.gradient.flatten(1)),
                _replaced(point.curvature, where, some.curvature),
            )
    state = replace(state, search=search, precision=precision, passes=state.passes + tried)
    return _judge(objective, stopping, state, trial, point, exact, tried)


def _are_few(objective: Objective, problems: Tensor) -> bool:
    """Whether low precision saves little, for so few problems."""
    return objective.anchored and int(problems.sum()) * objective.batch.k < _FEW


def _new_directions(state: State) -> Search:
    iterate, search, k = state.iterate, state.search, state.iterate.curvature.shape[1]
    preconditioner = iterate.preconditioner.flatten(1)  # (b, K)
    direction = state.history.direction(iterate.gradient, preconditioner, k)
    slope = dot(iterate.gradient, direction).double()
    uphill = ~(slope < 0)
    if uphill.any():
        descent = balance(-iterate.gradient / preconditioner, k)
        direction = torch.where(uphill[:, None], descent, direction)
        slope = dot(iterate.gradient, direction).double()
    return replace(
        search,
        direction=_choose(search.fresh, direction, search.direction),
        slope=torch.where(search.fresh, slope, search.slope),
        length=torch.where(search.fresh, torch.ones_like(slope), search.length),
    )


def _judge(
    objective: Objective, stopping: Stopping, state: State, trial: Tensor, point: Point, exact: Tensor, tried: Tensor
) -> State:
    """Accept the trials (b, K) or cut the lengths of their steps; `exact` and `tried` (b,) say how they were evaluated.

    A row's loss has an absolute error of eps at least, so the value's is relative to 1 + |value|.
    """
    iterate, search, doubted = state.iterate, state.search, state.precision.doubted
    size = 1 + iterate.value.abs()
    noise = torch.where(exact, 10 * torch.finfo(trial.dtype).eps * size, _LOW_NOISE * size)
    predicted = search.length * search.slope
    rise = point.value - iterate.value
    slope = dot(point.gradient, search.direction).double()
    decreased = rise <= _DECREASE * predicted
    flat = (rise <= noise) & (slope.abs() <= _FLAT * search.slope.abs())
    accepted = (doubted | decreased | flat) & tried
    stepped = accepted & ~doubted
    state.history.push(trial - iterate.U, point.gradient - iterate.gradient, stepped)

    secant = search.length * search.slope / (search.slope - slope)
    cut = torch.clamp(secant.nan_to_num(0.0), 0.1 * search.length, 0.5 * search.length)
    search = replace(
        search,
        length=torch.where(accepted | ~tried, search.length, cut),
        cuts=torch.where(accepted, torch.zeros_like(search.cuts), search.cuts + tried),
        fresh=accepted,
    )
    moved = Point(
        value=torch.where(accepted, point.value, iterate.value),
        gradient=_choose(accepted, point.gradient, iterate.gradient),
        curvature=_choose(accepted, point.curvature, iterate.curvature),
    )
    gain = torch.where(stepped, -rise, iterate.gain)
    reached = _iterate(objective, stopping, state.reference, _choose(accepted, trial, iterate.U), moved, gain)
    reached = replace(reached, norm=torch.where(accepted, reached.norm, iterate.norm))
    after = replace(state, iterate=reached, search=search)
    if not objective.anchored:
        return after  # all passes are exact
    return replace(after, precision=_precision(stopping, state, after, exact, tried))


def _precision(stopping: Stopping, before: State, after: State, exact: Tensor, tried: Tensor) -> Precision:
    """Update which problems need an anchor, and for which low precision no longer helps."""
    precision, norm, accepted = before.precision, after.iterate.norm, after.search.fresh
    anchored = precision.doubted & tried
    drifted = norm > _DRIFT * before.iterate.norm
    span = torch.where(anchored, torch.where(drifted, precision.since // 2, 2 * precision.since), precision.span)
    since = torch.where(exact & tried, 0, precision.since + accepted)
    anchor_norm = torch.where(exact & accepted, norm, precision.anchor_norm)
    now_exact = torch.where(accepted, exact, precision.exact)
    fallen = norm <= torch.maximum(_FALL * anchor_norm, torch.full_like(norm, 0.9 * stopping.tol))
    expired = (since >= span) | (after.passes >= stopping.max_iter)
    unsure = (accepted & fallen) | (after.search.cuts >= _LOW_CUTS) | expired
    refused = exact & ~accepted & ~now_exact  # perhaps low precision has misjudged the iterate
    return Precision(
        exact=now_exact,
        doubted=torch.where(tried, (~exact & unsure) | refused, precision.doubted),
        distrusted=precision.distrusted | (anchored & (span < _LEAST_SPAN)),
        since=since,
        span=span,
        anchor_norm=anchor_norm,
    )


def _retire(objective: Objective, stopping: Stopping, state: State, minimum: Minimum) -> State:
    """Write problems that have ended to `minimum`, and drop them if they are many."""
    iterate, precision, eps = state.iterate, state.precision, torch.finfo(state.iterate.U.dtype).eps
    stuck = state.search.cuts > _EXACT_CUTS
    near = torch.maximum(iterate.gap, iterate.bound) <= _NEAR * iterate.value
    # also if the start is the minimum, where the gradient has no reference
    rounded = (iterate.gap <= 10 * eps * (1 + iterate.value.abs())) & (stopping.tol >= 10 * eps)
    converged = (iterate.norm <= stopping.tol) | (stuck & rounded & near)
    done = converged | stuck | (state.passes >= stopping.max_iter)
    ended = state.alive & precision.exact & ~precision.doubted & done
    if not ended.any():
        return state
    numbers = state.number[ended]
    minimum.U[numbers] = iterate.U[ended].view(-1, *iterate.preconditioner.shape[1:]).double()
    minimum.value[numbers], minimum.norm[numbers] = iterate.value[ended], iterate.norm[ended]
    minimum.n_iter[numbers] = state.passes[ended].clamp(max=stopping.max_iter)
    for chosen, status in ((stuck, Status.ROUNDING), (converged, Status.CONVERGED)):
        for number in state.number[chosen & ended].tolist():
            minimum.status[number] = status
    state = replace(state, alive=state.alive & ~ended)
    if int(state.alive.sum()) > _CROWD * len(state.alive):
        return state
    left = state.alive.nonzero()[:, 0]
    objective.keep(left)
    return take(state, left)


def _replaced(values: Tensor, where: Tensor, new: Tensor) -> Tensor:
    return new if len(where) == len(values) else values.index_copy(0, where, new)


def _choose(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Rows (b, m) of `new` where the mask (b,) is set, else of `old`; no copy if it is set everywhere."""
    return new if bool(mask.all()) else torch.where(mask[:, None], new, old)
