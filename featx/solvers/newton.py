"""Newton's method in float64, for columns of scores for which L-BFGS has not reached the minimum, or not proven that it
has.

A column is a problem of k = 1: two classes, or one against the rest.

    f(u) = sum_i s_i l(z_i, y_i) + l2/2 u S u^T,    z = u Z^T,    H = Z^T diag(s l''(z)) Z + l2 S

S is the identity except for problems with a shift and scale of their own (`affine`). The squared hinge is piecewise
quadratic, so the steps are few and the last one is exact: Keerthi and DeCoste, A modified finite Newton method for fast
solution of large scale linear SVMs (2005), here with a less exact line search. Where Newton's steps turn out short, the
column follows a path of penalties that falls from a large one to l2.

Two numbers measure the distance of the value from its minimum. Since f is strongly convex, |g|^2 / (2 l2) bounds it, g
the gradient by the penalised coordinates, with the best free intercept. Where this bound is too loose, g H^-1 g / 2 is
the decrease that the next Newton step predicts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from featx.solvers.compaction import take
from featx.solvers.history import dot
from featx.solvers.lbfgs import Minimum, Stopping
from featx.solvers.losses.base import ClassificationLoss
from featx.solvers.objective import Batch
from featx.solvers.problems import Status

_HESSIAN, _HESSIANS = 2**27, 2**30  # multiplications allowed for one Hessian, and for one of every column
_CHUNK = 2**23  # elements of all Hessians at once
PROVEN = 0.003  # a bound of the gap of at most this times `tol`, relative to the value, needs no further proof
_FLAT = 0.1  # a line search ends where the slope has fallen to this part of that at its start
_TRIALS = 30  # maximum number of lengths that a line search tries
_SHORT, _LONG = 0.1, 0.5  # a step shorter than the first starts the path; one longer than the second lowers its penalty
_FALL = 10.0  # the penalty along the path is divided by this
_INTERCEPT = 2  # Newton steps to the best intercept
_MAX_VAIN = 3  # steps in a row without progress, after which rounding is to blame


def affordable(batch: Batch, budget_bytes: int) -> bool:
    """Whether the problems are penalised columns whose Hessians take little time and fit in the budget."""
    n, D = batch.basis.n, len(batch.basis.spectrum)
    small = (
        batch.basis.resident is not None
        and n * D**2 <= min(_HESSIAN, _HESSIANS // len(batch))
        and 16 * n * D <= budget_bytes
    )
    return small and batch.k == 1 and bool((batch.l2 > 0).all())


def max_passes(batch: Batch) -> int:
    """Number of passes that L-BFGS gets before Newton's method: about as many as take the time of Newton's steps."""
    return 10 + int(len(batch.basis.spectrum) * min(3, 0.25 + len(batch) / 32))


def finish(batch: Batch, minimum: Minimum, stopping: Stopping) -> None:
    """Bring each column of `minimum` to its minimum, unless it is proven to have reached it."""
    data = _data(batch)
    n, D = data.Z.shape
    most = max(1, _CHUNK // (D**2 + 8 * n))
    for numbers in torch.arange(len(batch), device=data.Z.device).split(most):
        columns = _columns(batch, numbers, data)
        progress = _begin(data, columns, minimum, stopping)
        while progress.left.any():
            progress = _step(data, stopping, take(progress, progress.left.nonzero()[:, 0]), minimum)


@dataclass(frozen=True)
class _Data:
    """The data that all columns share.

    Z : (n, D) float64 rows, ones for the free intercept last
    y : (n,) class numbers
    free : whether there is a free intercept
    penalties : (F, D, D) S of each shift and scale
    floors : (F,) the least eigenvalue of each S, of its penalised coordinates
    """

    loss: ClassificationLoss
    Z: Tensor
    y: Tensor
    free: bool
    penalties: Tensor
    floors: Tensor

    @property
    def width(self) -> int:
        """Number of penalised coordinates."""
        return self.Z.shape[1] - self.free


@dataclass(frozen=True)
class _Columns:
    """b columns.

    number : (b,) in the batch
    positive : (b,) the column's own class
    s : (b, n) row weights
    l2 : (b,)
    which : (b,) number of the penalty S
    stretch : (b, D) the column's coordinates are those of the rows times this
    """

    number: Tensor
    positive: Tensor
    s: Tensor
    l2: Tensor
    which: Tensor
    stretch: Tensor


@dataclass(frozen=True)
class _Point:
    """Columns at u.

    u : (b, D)
    z : (b, n) scores
    loss : (b,)
    residuals : (b, n) s dl/dz
    pull : (b, D) gradient of the loss
    shrink : (b, D) u S
    """

    u: Tensor
    z: Tensor
    loss: Tensor
    residuals: Tensor
    pull: Tensor
    shrink: Tensor


@dataclass(frozen=True)
class _Progress:
    """Columns on their way.

    path : (b,) the present penalty, l2 or more
    direct : (b,) no path of penalties has been needed so far
    best, lowest : (b,) the least norm and the least value so far, at the penalty l2
    vain : (b,) consecutive steps without progress
    steps : (b,)
    left : (b,) whether the column has not ended
    """

    columns: _Columns
    point: _Point
    path: Tensor
    direct: Tensor
    best: Tensor
    lowest: Tensor
    vain: Tensor
    steps: Tensor
    left: Tensor


def _data(batch: Batch) -> _Data:
    basis = batch.basis
    Z = basis.rows(0, basis.n).double()  # (n, W)
    if basis.free:
        Z = torch.cat([Z, Z.new_ones(len(Z), 1)], 1)
    penalties, floors = torch.diag(basis.penalised.double())[None], Z.new_ones(1)
    if basis.penalties is not None:
        floors = torch.linalg.eigvalsh(basis.penalties.double())[:, 0]
        W = Z.shape[1] - basis.free
        penalties = Z.new_zeros(len(basis.penalties), Z.shape[1], Z.shape[1])
        penalties[:, :W, :W] = basis.penalties
    return _Data(batch.loss, Z, batch.y, basis.free, penalties, floors)


def _columns(batch: Batch, numbers: Tensor, data: _Data) -> _Columns:
    basis, positive, positions = batch.basis, batch.positive[numbers], batch.position[numbers]
    s = batch.weights[batch.fold[numbers]].double()
    if batch.factor is not None:
        s *= torch.where(batch.y == positive[:, None], batch.factor[numbers][:, None].double(), 1.0)
    which = torch.zeros_like(numbers) if basis.affine is None else basis.affine.which[positions]
    stretch = data.Z.new_ones(len(numbers), data.Z.shape[1])
    ones = basis.spectrum.new_ones(len(numbers), 1, data.width)
    stretch[:, : data.width] = basis.shared(ones, positions)[:, 0]  # resident rows are scaled, not rotated
    return _Columns(numbers, positive, s, batch.l2[numbers].double(), which, stretch)


def _begin(data: _Data, columns: _Columns, minimum: Minimum, stopping: Stopping) -> _Progress:
    point = _at(data, columns, minimum.U[columns.number, 0])
    unfinished = [minimum.status[number] is not Status.CONVERGED for number in columns.number.tolist()]
    unproven = _bound(data, columns, point) > PROVEN * stopping.tol * _value(point, columns.l2)
    zeros = torch.zeros_like(columns.number)
    return _Progress(
        columns=columns,
        point=point,
        path=columns.l2,
        direct=torch.ones_like(unproven),
        best=torch.full_like(point.loss, torch.inf),
        lowest=torch.full_like(point.loss, torch.inf),
        vain=zeros,
        steps=zeros,
        left=zeros.new_tensor(unfinished, dtype=torch.bool) | unproven,
    )


def _step(data: _Data, stopping: Stopping, progress: _Progress, minimum: Minimum) -> _Progress:
    """Write columns that have ended to `minimum`; take one Newton step of each other column."""
    columns, point, tol, eps = progress.columns, progress.point, stopping.tol, torch.finfo(torch.float64).eps
    step, gap = _newton_step(data, progress)
    value, gradient = _value(point, progress.path), _gradient(point, progress.path)
    there = progress.path == columns.l2
    norms = torch.stack([gradient.norm(dim=1), (2 * gap).sqrt()], 1) / minimum.reference[columns.number]
    gap_part = min(PROVEN, stopping.gap_part)
    norm = torch.maximum(norms.amax(1), gap / (value * gap_part + torch.finfo(gap.dtype).tiny))
    helped = (norm < 0.9 * progress.best) | (value * (1 + 10 * eps) < progress.lowest) | ~there
    rounded = there & (gap <= eps * value)  # a better value could not be told from this one
    vain = torch.where(helped & ~rounded, 0, progress.vain + 1)
    passes = minimum.n_iter[columns.number] + progress.steps
    converged = there & ((norm <= tol) | ((vain >= _MAX_VAIN) & rounded & (tol >= 10 * eps)))
    left = ~converged & (vain < _MAX_VAIN) & (passes < stopping.max_iter)
    for i in (~left).nonzero()[:, 0].tolist():
        number = int(columns.number[i])
        minimum.U[number, 0], minimum.value[number] = point.u[i], value[i]
        minimum.norm[number], minimum.n_iter[number] = norm[i], passes[i]
        unfinished = Status.MAX_ITER if vain[i] < _MAX_VAIN else Status.ROUNDING
        minimum.status[number] = Status.CONVERGED if converged[i] else unfinished
    progress = replace(
        progress,
        best=torch.where(there, torch.minimum(norm, progress.best), torch.inf),
        lowest=torch.where(there, torch.minimum(value, progress.lowest), torch.inf),
        vain=vain,
        left=left,
    )
    return _advance(data, progress, step, rounded) if left.any() else progress


def _advance(data: _Data, progress: _Progress, step: Tensor, rounded: Tensor) -> _Progress:
    """Take the steps. If a step is short, and for the first time, the column starts again at 0, on its path."""
    columns, point, path, direct = progress.columns, progress.point, progress.path, progress.direct
    length, ahead = _search(data, progress, step)
    lost = progress.left & direct & (length < _SHORT) & ~rounded
    good = ~direct & (length >= _LONG)
    u = torch.where(lost[:, None], 0.0, point.u + length[:, None] * step)
    z = torch.where(lost[:, None], 0.0, point.z + length[:, None] * ahead)
    path = torch.where(good, torch.maximum(columns.l2, path / _FALL), path)
    if lost.any():
        path = torch.where(lost, torch.maximum(columns.l2, _first_penalty(data, columns)), path)
    return replace(progress, point=_at(data, columns, u, z), path=path, direct=direct & ~lost, steps=progress.steps + 1)


def _first_penalty(data: _Data, columns: _Columns) -> Tensor:
    """(b,) a penalty so large that the minimiser is near 0."""
    return columns.s @ data.Z[:, : data.width].square().sum(1)


def _scores(data: _Data, columns: _Columns, u: Tensor) -> Tensor:
    """(b, n)"""
    return (u * columns.stretch) @ data.Z.T


def _shrunk(data: _Data, columns: _Columns, u: Tensor) -> Tensor:
    """u S, (b, D)."""
    if len(data.penalties) == 1:
        return u @ data.penalties[0]
    return torch.bmm(u[:, None], data.penalties[columns.which])[:, 0]


def _losses(data: _Data, columns: _Columns, z: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of s l (b,), and s dl/dz (b, n)."""
    residuals = torch.empty_like(z)
    sums = data.loss.block(z.clone()[:, None], data.y, columns.s.clone(), columns.positive, residuals[:, None])
    return sums.value, residuals


def _at(data: _Data, columns: _Columns, u: Tensor, z: Tensor | None = None) -> _Point:
    u = u.double()
    z = _scores(data, columns, u) if z is None else z
    loss, residuals = _losses(data, columns, z)
    pull = (residuals @ data.Z) * columns.stretch
    return _Point(u, z, loss, residuals, pull, _shrunk(data, columns, u))


def _value(point: _Point, penalty: Tensor) -> Tensor:
    return point.loss + penalty / 2 * dot(point.u, point.shrink)


def _gradient(point: _Point, penalty: Tensor) -> Tensor:
    return point.pull + penalty[:, None] * point.shrink


def _bound(data: _Data, columns: _Columns, point: _Point) -> Tensor:
    """(b,) an upper bound of the value's distance from its minimum.

    With a free intercept it holds where that is the best one for the other coefficients, which is approached first.
    """
    value = _value(point, columns.l2)
    for _ in range(_INTERCEPT if data.free else 0):
        curvature = data.loss.curvatures(point.residuals, columns.s).sum(1, keepdim=True)
        shift = point.pull[:, -1:] / curvature.clamp_min(torch.finfo(value.dtype).tiny)
        u = point.u.clone()
        u[:, -1:] -= shift
        point = _at(data, columns, u, point.z - shift)
    penalised = _gradient(point, columns.l2)[:, : data.width]
    return value - _value(point, columns.l2) + dot(penalised, penalised) / (2 * columns.l2 * data.floors[columns.which])


def _newton_step(data: _Data, progress: _Progress) -> tuple[Tensor, Tensor]:
    """-H^-1 g (b, D), and the decrease of the value that it predicts, (b,)."""
    columns, point, D = progress.columns, progress.point, data.Z.shape[1]
    curvatures = data.loss.curvatures(point.residuals, columns.s)
    gradient = _gradient(point, progress.path)
    H = progress.path[:, None, None] * data.penalties[columns.which]  # (b, D, D)
    for hessian, curvature, stretch in zip(H, curvatures, columns.stretch, strict=True):
        rows = curvature.nonzero()[:, 0]
        weighted = (data.Z[rows] * curvature[rows, None].sqrt()) * stretch
        hessian.addmm_(weighted.T, weighted)
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


def _search(data: _Data, progress: _Progress, step: Tensor) -> tuple[Tensor, Tensor]:
    """(b,) lengths at which the slope along the steps is nearly 0, and (b, n) scores for each unit of length.

    The slope grows with the length, so two lengths enclose its root; the next one is the root of the secant.
    """
    columns, point = progress.columns, progress.point
    ahead, shrink = _scores(data, columns, step), progress.path[:, None] * _shrunk(data, columns, step)
    first, more = dot(_gradient(point, progress.path), step), dot(step, shrink)
    start = dot(point.u, shrink)
    length, low, high = (torch.full_like(first, value) for value in (1.0, 0.0, torch.inf))
    low_slope, high_slope = first.clone(), torch.full_like(first, torch.inf)
    for _ in range(_TRIALS):
        _, residuals = _losses(data, columns, point.z + length[:, None] * ahead)
        slope = dot(residuals, ahead) + start + length * more
        if bool((slope.abs() <= _FLAT * first.abs()).all()):
            break
        short = slope < 0
        low, low_slope = torch.where(short, length, low), torch.where(short, slope, low_slope)
        high, high_slope = torch.where(short, high, length), torch.where(short, high_slope, slope)
        width = high - low
        secant = low - low_slope * width / (high_slope - low_slope)
        inside = torch.minimum(torch.maximum(secant, low + 0.1 * width), high - 0.1 * width)
        trial = torch.where(high.isinf(), 2 * length, inside)
        length = torch.where(slope.abs() <= _FLAT * first.abs(), length, trial)
    return length, ahead
