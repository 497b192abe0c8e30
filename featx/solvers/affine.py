"""Problems whose shift and scale differ a little from those of the rows they share.

With v the coefficients of the shared columns (x - shift) / scale and of the constant c, and w a problem's own,

    v_j = w_j r_j,   v_0 = w_0 + sum_j w_j o_j,    r = scale / own scale,   o = (shift - own shift) / own scale / c

give the same scores; without the constant, a free intercept makes up for the shift. So all problems share the rows and
all products with them, and only the penalty |w|^2 becomes another quadratic form in v, one for each shift and scale.

Some columns are *odd*: their scales are far apart, as when a fold lacks a rare outlier. There the coordinate is w_j
itself, and products are taken with w_j r_j, since in v_j the problem would be badly conditioned.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from featx.solvers.interning import ArrayNumbers
from featx.solvers.problems import FREE, Intercept, Problem

MAX_SCALE_RATIO = 2.0  # of two scales of a column that problems share; columns beyond are odd


class Affine:
    """Shifts and scales of B problems on d shared columns.

    which : (B,) the number of the problem's own shift and scale among the F different ones
    ratios : (F, d) r, and 1 for the odd columns
    offsets : (F, d) o, or None where all are 0
    odd : (c,) numbers of the odd columns
    odd_ratios : (F, c) r of the odd columns
    """

    def __init__(
        self,
        problems: list[Problem],
        arrays: list[ArrayNumbers],
        shift: np.ndarray,
        scale: np.ndarray | None,
        intercept: Intercept,
        like: Tensor,
    ) -> None:
        d = len(shift)
        shared = values_or(scale, 1.0, d)
        numbers: dict[tuple[int, int], int] = {}
        ratios, offsets, which = [], [], []
        for problem, its in zip(problems, arrays, strict=True):
            if its.affine not in numbers:
                numbers[its.affine] = len(numbers)
                ratios.append(shared / values_or(problem.scale, 1.0, d))
                offsets.append(scaled_shift(problem, shift))
            which.append(numbers[its.affine])
        self.which = torch.tensor(which, device=like.device)
        self.ratios = torch.from_numpy(np.stack(ratios)).to(like)
        self.odd = (self.ratios.amax(0) > MAX_SCALE_RATIO * self.ratios.amin(0)).nonzero()[:, 0]
        self.odd_ratios = self.ratios[:, self.odd].clone()
        self.ratios[:, self.odd] = 1
        self.offsets = None
        if intercept != FREE and np.any(offsets):
            self.offsets = torch.from_numpy(np.stack(offsets) / float(intercept)).to(like)

    @property
    def trivial(self) -> bool:
        """Whether all problems have the shared shift and scale."""
        return self.offsets is None and not len(self.odd) and bool((self.ratios == 1).all())

    def penalties(self, Q: Tensor) -> Tensor:
        """(F, W, W) S: U S U^T = |w|^2 for coordinates U = v Q of the shared columns."""
        d = self.ratios.shape[1]
        S = Q.new_empty(len(self.ratios), *Q.shape)
        for f, ratios in enumerate(self.ratios.to(Q)):
            A = Q.clone()  # own coefficients of each coordinate, in rows
            A[:d] /= ratios[:, None]
            if self.offsets is not None:
                A[d] -= self.offsets[f].to(Q) @ A[:d]
            torch.mm(A.T, A, out=S[f])
        return S

    def own(self, V: Tensor, positions: Tensor) -> Tensor:
        """Own coefficients (b, k, W) of the problems at `positions` (b,), from shared ones."""
        d = self.ratios.shape[1]
        which = self.which[positions]
        W = V.clone()
        W[..., :d] /= self.ratios[which][:, None]
        if self.offsets is not None:
            W[..., d] -= (W[..., :d] @ self.offsets[which][..., None].to(W))[..., 0]
        return W

    def shared(self, W: Tensor, positions: Tensor) -> Tensor:
        """Shared coefficients (b, k, W) of the problems at `positions` (b,), from own ones."""
        d = self.ratios.shape[1]
        which = self.which[positions]
        V = W.clone()
        if self.offsets is not None:
            V[..., d] += (W[..., :d] @ self.offsets[which][..., None])[..., 0]
        V[..., :d] *= self.ratios[which][:, None]
        return V


def common_scale(problems: list[Problem], arrays: list[ArrayNumbers], d: int) -> np.ndarray | None:
    """(d,) the geometric mean of the problems' different scales."""
    scales = {its.scale: problem.scale for problem, its in zip(problems, arrays, strict=True)}
    if len(scales) == 1:
        return problems[0].scale
    values = [values_or(scale, 1.0, d) for scale in scales.values()]
    return np.exp(np.mean([np.log(np.abs(scale)) for scale in values], axis=0)) * np.sign(values[0])


def scaled_shift(problem: Problem, shift: np.ndarray) -> np.ndarray:
    """(d,) the common shift less the problem's own, in the problem's scale.

    Times the coefficients, that is what a free intercept of commonly shifted columns exceeds the problem's own by.
    """
    d = len(shift)
    return (shift - values_or(problem.shift, 0.0, d)) / values_or(problem.scale, 1.0, d)


def values_or(values: np.ndarray | None, default: float, d: int) -> np.ndarray:
    return np.full(d, default) if values is None else np.asarray(values, np.float64)
