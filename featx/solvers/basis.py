"""The matrix that problems share, in coordinates in which they are well conditioned.

A problem's own coefficients W belong to the columns (x - shift) / scale and the penalised constant, if there is one.
Solvers work in coordinates U = W Q instead, Q the eigenvectors of the columns' second moments: |U| = |W|, so the
penalty stays what it was, and the second moments are diagonal, so a diagonal preconditioner is good. A free intercept
is one more coordinate, which is not penalised and has no column in the rows; the columns are centred then, which makes
it nearly independent of the others. All rows have one common shift and scale; a problem whose own differ a little has
another penalty in the same coordinates (`affine`).
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from featx.errors import FeatxError
from featx.solvers.affine import Affine
from featx.solvers.columns import Columns
from featx.solvers.matmul import eigenvectors, product

_STRIPS = 8  # strips of a symmetric product, whose upper half is not computed
_FAR = 1e3  # if the largest direction is this many times the median, as with columns far from 0: rotate in float64
_UNEVEN = 1e5  # if columns' sizes differ by more: eigenvectors and rotation in float64, or small columns would be lost


class Basis(Protocol):
    """n rows of W working columns, and what belongs to them; with a free intercept problems have D = W + 1 coordinates.

    Problems are known by their positions in the group that the basis was made for.

    most_rows : the largest block to read at once
    spectrum : (D,) mean squares of the working columns, and 1; of odd columns the mean over the problems' scales
    odd_squares : (F, c) mean squares of the odd columns, the last c working ones, in each of the problems' scales
    penalised : (D,) 1, and 0 for the free intercept
    resident : (n, W) all rows, or None if they are read again in each pass
    affine : the problems' shifts and scales, or None where all are those of the rows
    penalties : (F, W, W) S of each of these: |w|^2 = U S U^T; None where it is |U|^2
    """

    n: int
    most_rows: int
    free: bool
    spectrum: Tensor
    odd_squares: Tensor
    penalised: Tensor
    affine: Affine | None

    @property
    def resident(self) -> Tensor | None: ...

    @property
    def penalties(self) -> Tensor | None: ...

    def rows(self, start: int, stop: int) -> Tensor:
        """(m, W) in the working type."""

    def low_rows(self, start: int, stop: int) -> Tensor:
        """(m, W), the same rows in the low type."""

    def shared(self, U: Tensor, positions: Tensor) -> Tensor:
        """Coefficients (b, k, W) of the rows, from coordinates; linear."""

    def own(self, G: Tensor, positions: Tensor) -> Tensor:
        """The transpose of `shared`, for gradients (b, k, W)."""

    def coefficients(self, U: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Own W (b, k, d) and intercepts (b, k), from coordinates (b, k, D)."""

    def coordinates(self, W: Tensor, intercept: Tensor, positions: Tensor) -> Tensor:
        """Coordinates (b, k, D), from own W (b, k, d) and intercepts (b, k)."""


class PrimalBasis:
    """d <= n: the eigenbasis of the d (or d + 1) columns.

    Rows are rotated once if there is memory for them (`resident`); else they are read again in each pass, and the
    coefficients are rotated instead.

    weights : (n,) row weights summed over all problems, for the second moments
    """

    def __init__(
        self,
        columns: Columns,
        weights: np.ndarray,
        free: bool,
        affine: Affine | None,
        odd_squares: Tensor,
        resident: bool,
        low: torch.dtype | None,
    ) -> None:
        self.columns, self.n, self.d, self.free = columns, columns.n, columns.d, free
        self.affine, self.odd_squares = affine, odd_squares
        like = columns.like
        width = columns.width
        self.resident = like.new_empty(self.n, width) if resident else None
        self.most_rows = self.n if resident else columns.most
        self.low = torch.empty(self.n, width, dtype=low, device=like.device) if low else None
        moments = like.new_zeros(width, width, dtype=torch.float64)
        even = bool((weights == weights[0]).all())  # as over all folds of a cross-validation
        roots = torch.from_numpy(np.sqrt(weights / weights.sum())).to(like)
        for block in columns.blocks():
            out = self.resident[block] if self.resident is not None else None
            rows = columns.block(block.start, block.stop, out)
            weighted = rows if even else rows * roots[block, None]
            _add_products(moments, weighted.T)
            if self.low is not None and self.resident is None:
                self.low[block] = rows
        moments = _finite(_mirrored(moments) / (self.n if even else 1), like)
        sizes = moments.diagonal().clamp_min(0).sqrt()
        uneven = bool((sizes > 0).any()) and float(sizes.max()) > _UNEVEN * float(sizes[sizes > 0].min())
        spectrum, Q = self._eigenbasis(moments if uneven else moments.to(like))
        self.Q = Q.to(like)
        far = float(spectrum.max()) > _FAR**2 * float(spectrum.median())
        self.spectrum = torch.cat([spectrum.clamp_min(0), spectrum.new_ones(int(free))]).to(like)
        self.penalised = torch.ones_like(self.spectrum)
        self.penalised[width:] = 0
        if self.resident is not None:
            turn = self.Q.double() if uneven or far else self.Q
            for block in columns.blocks():
                rows = self.resident[block]
                rows.copy_(product(rows.to(turn.dtype), turn.T))
                if self.low is not None:
                    self.low[block] = rows

    def _eigenbasis(self, moments: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squares and eigenvectors (W, W), of which the last are the odd columns themselves.

        The mean squares of odd columns are means over their own scales.
        """
        if self.affine is None or not len(odd := self.affine.odd):
            return eigenvectors(moments)
        rest = torch.ones(len(moments), dtype=torch.bool, device=moments.device)
        rest[odd] = False
        even = rest.nonzero()[:, 0]
        spectrum, inner = eigenvectors(moments[even][:, even])
        Q = moments.new_zeros(moments.shape)
        Q[even, : len(even)] = inner
        Q[odd, torch.arange(len(even), len(Q), device=odd.device)] = 1
        return torch.cat([spectrum, self.odd_squares.mean(0).to(moments)]), Q

    def rows(self, start: int, stop: int) -> Tensor:
        return self.columns.block(start, stop) if self.resident is None else self.resident[start:stop]

    def low_rows(self, start: int, stop: int) -> Tensor:
        assert self.low is not None
        return self.low[start:stop]

    def shared(self, U: Tensor, positions: Tensor) -> Tensor:
        U = self._stretched(U, positions)
        return U if self.resident is not None else _turned(U, self.Q)

    def own(self, G: Tensor, positions: Tensor) -> Tensor:
        return self._stretched(G if self.resident is not None else _turned(G, self.Q.T), positions)

    def _stretched(self, U: Tensor, positions: Tensor) -> Tensor:
        """U with its last columns, the odd ones, in the rows' scale."""
        if self.affine is None or not len(self.affine.odd):
            return U
        c = len(self.affine.odd)
        odd = U[..., -c:] * self.affine.odd_ratios[self.affine.which[positions]][:, None]
        return torch.cat([U[..., :-c], odd], -1)

    @cached_property
    def penalties(self) -> Tensor | None:
        return None if self.affine is None else self.affine.penalties(self.Q)

    def coefficients(self, U: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        W = _turned(U[..., : self.columns.width], self.Q.to(U))
        if self.affine is not None:
            W = self.affine.own(W, positions)
        if self.columns.constant is not None:
            return W[..., : self.d], W[..., self.d] * self.columns.constant
        return W, U[..., self.d] if self.free else torch.zeros_like(W[..., 0])

    def coordinates(self, W: Tensor, intercept: Tensor, positions: Tensor) -> Tensor:
        if self.columns.constant is not None:
            W = torch.cat([W, intercept[..., None] / self.columns.constant], -1)
        if self.affine is not None:
            W = self.affine.shared(W, positions)
        U = _turned(W, self.Q.T)
        return torch.cat([U, intercept[..., None]], -1) if self.free else U


class DualBasis:
    """d > n: minimisers lie in the span of the n rows, so r <= n coordinates in it are exact.

    With the rows' Gram matrix K = E diag(m) E^T, the rows are Z = E diag(m)^(1/2) in the basis X^T E diag(m)^(-1/2).
    Everything up to Z is float64, in which the products of float32 numbers are exact, so that the rank of K shows.

    weights : (n,) row weights summed over all problems, for the mean squares of Z
    """

    affine: Affine | None = None
    penalties: Tensor | None = None

    def __init__(self, columns: Columns, weights: np.ndarray, free: bool, low: torch.dtype | None) -> None:
        self.columns, self.n, self.d, self.free = columns, columns.n, columns.d, free
        self.most_rows = self.n
        m, E = eigenvectors(_finite(_row_products(columns), columns.like))
        kept = m > m[-1].clamp_min(torch.finfo(m.dtype).tiny) * len(m) * torch.finfo(m.dtype).eps
        kept[-1] = True  # at least one coordinate, also where all rows are equal
        m, E, one = m[kept].clamp_min(0), E[:, kept], m.new_ones(int(free))
        self.resident = (E * m.sqrt()).to(columns.like)  # (n, r)
        self.back = torch.where(m > 0, E / m.sqrt(), 0.0)  # (n, r)
        self.low = self.resident.to(low) if low else None
        shares = torch.from_numpy(weights / weights.sum()).to(m)
        self.spectrum = torch.cat([m * (shares @ E.square()), one]).to(columns.like)
        self.odd_squares = columns.like.new_zeros(1, 0)
        self.penalised = torch.cat([torch.ones_like(m), 0 * one]).to(columns.like)

    def rows(self, start: int, stop: int) -> Tensor:
        return self.resident[start:stop]

    def low_rows(self, start: int, stop: int) -> Tensor:
        assert self.low is not None
        return self.low[start:stop]

    def shared(self, U: Tensor, positions: Tensor) -> Tensor:
        return U

    def own(self, G: Tensor, positions: Tensor) -> Tensor:
        return G

    def coefficients(self, U: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        r = self.back.shape[1]
        A = U[..., :r].reshape(-1, r).to(self.back) @ self.back.T  # (b k, n)
        W = A.new_empty(len(A), self.d)
        for columns in self.columns.strips():
            W[:, columns] = A @ self.columns.strip(columns)
        W = W.to(U).view(*U.shape[:-1], -1)
        if self.columns.constant is not None:
            return W, A.sum(1).to(U).view(U.shape[:-1]) * self.columns.constant**2
        return W, U[..., r] if self.free else torch.zeros_like(W[..., 0])

    def coordinates(self, W: Tensor, intercept: Tensor, positions: Tensor) -> Tensor:
        """Coordinates of the projection of W on the span of the rows, in which all minimisers lie."""
        scores = self.back.new_zeros(*W.shape[:-1], self.n)
        for columns in self.columns.strips():
            scores += W[..., columns].to(scores) @ self.columns.strip(columns).T
        if self.columns.constant is not None:
            scores += intercept[..., None]  # of the constant column: constant times coefficient
        U = (scores @ self.back).to(W)
        return torch.cat([U, intercept[..., None]], -1) if self.free else U


def _turned(U: Tensor, turn: Tensor) -> Tensor:
    """U turn^T, of (b, k, W) and (W, W)."""
    return product(U.flatten(0, 1), turn).view_as(U)


def _row_products(columns: Columns) -> Tensor:
    """(n, n) float64, X X^T."""
    K = columns.like.new_zeros(columns.n, columns.n, dtype=torch.float64)
    for strip in columns.strips():
        _add_products(K, columns.strip(strip))
    if columns.constant is not None:
        K += columns.constant**2
    return _mirrored(K)


def _add_products(total: Tensor, A: Tensor) -> None:
    """Add A A^T (m, m) to the blocks of `total` on and below the diagonal."""
    for start, stop in pairwise(round(len(A) * part / _STRIPS) for part in range(_STRIPS + 1)):
        total[start:stop, :stop] += A[start:stop] @ A[:stop].T


def _finite(squares: Tensor, like: Tensor) -> Tensor:
    """`squares`, if their sum is finite in the type of `like`."""
    if not squares.trace().to(like).isfinite():
        kind = str(like.dtype).removeprefix("torch.")
        raise FeatxError(f"the columns' squares are too large for {kind}: standardise the columns (StandardScaler)")
    return squares


def _mirrored(lower: Tensor) -> Tensor:
    return lower.tril() + lower.tril(-1).T
