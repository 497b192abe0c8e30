"""Penalised least squares in closed form, in float64.

    min_W  sum_i s_i |y_i - a_i W|^2 / 2 + sum_c l2_c/2 |w_c|^2

    d <= n    A^T S A = Q diag(m) Q^T              W = Q diag(1 / (m + l2)) Q^T A^T S y
    n < d     S^1/2 A A^T S^1/2 = E diag(m) E^T    W = A^T S^1/2 E diag(1 / (m + l2)) E^T S^1/2 y

Problems with equal weights, shift, scale and intercept share one eigendecomposition, after which each penalty takes one
division. A free intercept centres A and y; a penalised one is a column of A, whose coefficient is the last of W.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featx.solvers.columns import weighted_mean
from featx.solvers.interning import array_numbers
from featx.solvers.matmul import eigenvectors
from featx.solvers.problems import FREE, NONE, Problem

_MOST = 2**23  # elements of a block: larger ones are no faster
_UNEVEN = 1000.0  # columns whose sizes differ by more are solved by Cholesky's factors: eigenvectors would mix them


@dataclass(frozen=True)
class Minimiser:
    """The solution of one problem.

    W : (k, d), with a penalised intercept (k, d + 1)
    level : (k,) with a free intercept, the scores of the common centre; else 0
    reference : norm of the gradient at W = 0
    """

    W: Tensor
    level: Tensor
    reference: float


class Rows:
    """X and Y, centred by their common means, in blocks; the problems, and their row weights.

    weights : (F, n) the different row weights
    fold : (B,) which of them a problem has
    arrays : which problems have equal shifts and scales
    """

    def __init__(
        self, X: np.ndarray, Y: np.ndarray, problems: Sequence[Problem], device: torch.device, budget_bytes: int
    ) -> None:
        self.X, self.problems, self.device, self.budget_bytes = X, problems, device, budget_bytes
        (self.n, self.d), self.k = X.shape, Y.shape[1]
        self.arrays = array_numbers(problems)
        self.fold = [arrays.weights for arrays in self.arrays]
        different = {number: problem.weights for number, problem in zip(self.fold, problems, strict=True)}
        weights = [np.ones(self.n) if s is None else np.asarray(s, np.float64) for s in different.values()]
        self.weights = self.tensor(np.stack(weights))
        mean_weights = np.mean([s / s.sum() for s in weights], axis=0)
        self.centre = weighted_mean(X, mean_weights)
        self.middle = self.tensor(weighted_mean(Y, mean_weights))
        self.Y = self.tensor(Y) - self.middle

    def tensor(self, array: np.ndarray) -> Tensor:
        """A float64 copy on the device."""
        return torch.from_numpy(np.array(array, np.float64)).to(self.device)

    def block(self, rows: slice, columns: slice = slice(None)) -> Tensor:
        """(m, c)"""
        return torch.from_numpy(self.X[rows, columns] - self.centre[columns]).to(self.device)

    def blocks(self, length: int, width: int) -> Iterator[slice]:
        """Slices of `length` lines of `width` elements that fit in the budget."""
        size = max(1, min(_MOST, self.budget_bytes // 32) // width)
        return (slice(start, min(start + size, length)) for start in range(0, length, size))

    def columns(self, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
        """scale (d,) and offset (d,) of a = (x - centre) / scale + offset; the penalised constant (1,), or (0,).

        With a free intercept the offset is 0 here and only changes the intercept at the end.
        """
        scale = self.tensor(np.ones(self.d) if problem.scale is None else problem.scale)
        if problem.intercept == FREE:
            return scale, torch.zeros_like(scale), scale[:0]
        offset = self.tensor(self.centre if problem.shift is None else self.centre - problem.shift) / scale
        return scale, offset, self.tensor(np.array([] if problem.intercept == NONE else [problem.intercept]))

    def has_free_intercept(self, number: int) -> bool:
        return self.problems[number].intercept == FREE

    def penalties(self, number: int) -> Tensor:
        """(k,)"""
        return self.tensor(np.broadcast_to(self.problems[number].l2, self.k))


def grouped(numbers: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    """Group the numbers that have equal keys."""
    groups: dict[Hashable, list[int]] = {}
    for number in numbers:
        groups.setdefault(key(number), []).append(number)
    return list(groups.values())


def solve_squares(rows: Rows) -> list[Minimiser]:
    """One minimiser for each problem; without a penalty, the one of least norm if columns are dependent."""
    minimisers = dict(_wide(rows) if rows.n < rows.d else _tall(rows))
    return [minimisers[number] for number in range(len(rows.problems))]


# d <= n: moments of the columns


def _tall(rows: Rows) -> Iterator[tuple[int, Minimiser]]:
    """Solve by the moments of the rows u = [x, 1, y]; those of each shift, scale and intercept follow from them."""
    width = rows.d + 1 + rows.k
    most = max(1, rows.budget_bytes // (2 * 8 * width**2))
    for folds in torch.arange(len(rows.weights), device=rows.weights.device).split(most):
        parts, shares = _parts(rows.weights[folds])
        moments = _moments(rows, parts)
        for fold, share in zip(folds.tolist(), shares, strict=True):
            M = torch.tensordot(share, moments, 1)
            numbers = [number for number, its_fold in enumerate(rows.fold) if its_fold == fold]
            for group in grouped(numbers, lambda i: (rows.arrays[i].affine, rows.problems[i].intercept)):
                yield from _solved_tall(rows, M, group)


def _parts(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Row weights (F, n) as shares (F, P) @ parts (P, n), P <= F.

    Parts have no row in common, so each row is multiplied once; in a cross-validation most folds hold it.
    """
    base = weights.amax(0)
    ratios = torch.where(base > 0, weights / base, 0.0)
    pattern = torch.zeros_like(base, dtype=torch.int64)
    for ratio in ratios:
        _, value = ratio.unique(return_inverse=True)
        _, pattern = (pattern * len(base) + value).unique(return_inverse=True)
    different = pattern[base > 0].unique()
    if len(different) > len(weights):
        return weights, torch.eye(len(weights), dtype=weights.dtype, device=weights.device)
    inside = (pattern == different[:, None]) & (base > 0)  # (P, n)
    return inside * base, ratios[:, inside.byte().argmax(1)]


def _moments(rows: Rows, parts: Tensor) -> Tensor:
    """(P, D, D) sum_i v_i u_i^T u_i, u = [x, 1, y] of length D."""
    d, width = rows.d, rows.d + 1 + rows.k
    moments = parts.new_zeros(len(parts), width, width)
    for block in rows.blocks(rows.n, 3 * width):
        u = parts.new_ones(block.stop - block.start, width)
        u[:, :d], u[:, d + 1 :] = rows.block(block), rows.Y[block]
        for M, v in zip(moments, parts[:, block], strict=True):
            kept = v.nonzero()[:, 0]
            M.addmm_((u[kept] * v[kept, None]).T, u[kept])
    return moments


def _solved_tall(rows: Rows, M: Tensor, group: list[int]) -> Iterator[tuple[int, Minimiser]]:
    d, problem = rows.d, rows.problems[group[0]]
    free = problem.intercept == FREE
    scale, offset, constant = rows.columns(problem)
    mean = M[d] / M[d, d]  # of [x, 1, y]
    if free:
        M = M - torch.outer(M[d], mean)
        M[d], M[:, d] = 0, 0

    def own(M: Tensor) -> Tensor:
        """[x, 1, y] -> [a, constant, y]"""
        a = M[:d] / scale[:, None] + torch.outer(offset, M[d])
        return torch.cat([a, torch.outer(constant, M[d]), M[d + 1 :] + torch.outer(rows.middle, M[d])])

    G = own(own(M).T)
    G, h = G[: -rows.k, : -rows.k], G[: -rows.k, -rows.k :]
    l2 = torch.cat([rows.penalties(number) for number in group])
    W = _solved(G, h, l2, (rows.n + d) * torch.finfo(G.dtype).eps)
    for number, one in zip(group, W.T.split(rows.k), strict=True):
        level = mean[d + 1 :] - one @ (mean[:d] / scale) if free else torch.zeros_like(rows.middle)
        yield number, Minimiser(one, level, float(h.norm()))


def _solved(G: Tensor, h: Tensor, l2: Tensor, rounding: float) -> Tensor:
    """(D, b k) of (G + l2) w = h, h (D, k) the same for all b problems, l2 (b k,).

    Where columns are of very different sizes, the rounding of large ones would hide the eigenvectors of small ones.
    Cholesky's factorisation is as accurate in any units of the columns, but serves a single penalty.
    """
    sizes = G.diagonal().clamp_min(0).sqrt()
    positive = sizes[sizes > 0]
    W = h.repeat(1, len(l2) // h.shape[1])
    left = torch.ones_like(l2, dtype=torch.bool)
    if len(positive) and positive.max() > _UNEVEN * positive.min():
        for value in l2.unique():
            units = (sizes.square() + value).sqrt()
            units[units == 0] = 1
            L, failed = torch.linalg.cholesky_ex((G / units / units[:, None]).fill_diagonal_(1))
            if not failed and L.diagonal().min().square() > rounding:
                W[:, l2 == value] = torch.cholesky_solve(W[:, l2 == value] / units[:, None], L) / units[:, None]
                left &= l2 != value
    if left.any():
        m, Q = eigenvectors(G)
        W[:, left] = Q @ _divided(Q.T @ W[:, left], m, l2[left], rounding)
    return W


def _divided(turned: Tensor, m: Tensor, l2: Tensor, rounding: float) -> Tensor:
    """(r, b k), divided by m + l2; 0 where this is only rounding."""
    total = m.clamp_min(0)[:, None] + l2
    return torch.where(total > rounding * m[-1], turned / total, 0.0)


# n < d: Gram matrix of the rows


def _wide(rows: Rows) -> Iterator[tuple[int, Minimiser]]:
    """Solve by the Gram matrix of the rows a, which all weights, penalties and kinds of intercept share."""

    def affine_key(number: int) -> Hashable:  # with a free intercept, the shift changes nothing but that
        shift = None if rows.has_free_intercept(number) else rows.arrays[number].shift
        return rows.arrays[number].scale, shift

    for alike in grouped(range(len(rows.problems)), affine_key):
        scale, offset, _ = rows.columns(rows.problems[alike[0]])

        def own(columns: slice, scale: Tensor = scale, offset: Tensor = offset) -> Tensor:
            return rows.block(slice(None), columns).div_(scale[columns]).add_(offset[columns])

        products = scale.new_zeros(rows.n, rows.n)
        for columns in rows.blocks(rows.d, 2 * rows.n):
            a = own(columns)
            products.addmm_(a, a.T)
        groups = grouped(alike, lambda i: (rows.fold[i], rows.problems[i].intercept))
        duals = [dual for group in groups for dual in _duals(rows, products, group)]
        V = torch.cat([dual.V for dual in duals], 1)  # (n, b k)
        W = V.new_empty(V.shape[1], rows.d)
        for columns in rows.blocks(rows.d, 2 * rows.n):
            W[:, columns] = V.T @ own(columns)
        for dual, one in zip(duals, W.split(rows.k), strict=True):
            constant = rows.columns(rows.problems[dual.number])[2]
            one = torch.cat([one, torch.outer(dual.V.sum(0), constant)], 1)
            yield dual.number, Minimiser(one, dual.level, dual.reference)


@dataclass(frozen=True)
class _Dual:
    """The solution of a problem as V (n, k), W = V^T A, with level and reference as in `Minimiser`."""

    number: int
    V: Tensor
    level: Tensor
    reference: float


def _duals(rows: Rows, products: Tensor, group: list[int]) -> Iterator[_Dual]:
    problem, s = rows.problems[group[0]], rows.weights[rows.fold[group[0]]]
    free, share = problem.intercept == FREE, s / s.sum()
    to_mean = products @ share  # (n,) a_i times the mean of all a
    if free:
        K, y = products - to_mean - to_mean[:, None] + share @ to_mean, rows.Y - share @ rows.Y
    else:
        K, y = products + rows.columns(problem)[2].square().sum(), rows.Y + rows.middle
    root, sy = s.sqrt()[:, None], s[:, None] * y
    m, E = eigenvectors(root * K * root.T)
    l2 = torch.cat([rows.penalties(number) for number in group])
    turned = (E.T @ (root * y)).repeat(1, len(group))
    V = root * (E @ _divided(turned, m, l2, (rows.n + rows.d) * torch.finfo(m.dtype).eps))
    reference = float((sy * (K @ sy)).sum().clamp_min(0).sqrt())
    for number, one in zip(group, V.split(rows.k, 1), strict=True):
        level = torch.zeros_like(rows.middle)
        if free:
            one = one - share[:, None] * one.sum(0)  # centre a; but for rounding, the sum is 0
            level = share @ rows.Y - to_mean @ one
        yield _Dual(number, one, level, reference)
