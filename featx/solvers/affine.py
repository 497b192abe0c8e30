"""Problems whose columns are shifted and scaled a little otherwise than the rows they share; their penalty there out.

With v the coefficients of the shared columns (x - shift) / scale and of the constant c, and w those of a problem's own,

    v_j = w_j r_j,   v_0 = w_0 + sum_j w_j o_j,    r = scale / own scale,   o = (shift - own shift) / own scale / c

give the same scores (without the constant, a free intercept takes up the shift). So the rows, and all products with
them, are the same for all; only |w|^2 is another square in v, of which there are as many as there are folds. In the
odd columns, where scales are far apart (a fold may lack a rare outlier), w_j itself is the coordinate and products are
taken with w_j r_j: in v_j the problem would look quite another way than it is.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from featx.solvers.problems import FREE, Intercept, Problem

MOST_APART = 2.0  # scales of problems that share rows differ by no more than this, but for those of the odd columns


class Affine:
    """B problems on d shared columns.

    which : (B,) number of the problem's own shift and scale among the F different ones
    ratios : (F, d) r
        r, and 1 for the odd columns
    offsets : (F, d) o, or None where all are 0
    odd : (c,) numbers of the odd columns
    odd_ratios : (F, c) r of these
    """

    def __init__(
        self, problems: list[Problem], shift: np.ndarray, scale: np.ndarray | None, intercept: Intercept, like: Tensor
    ) -> None:
        d = len(shift)
        shared = values_of(scale, 1.0, d)
        kinds: dict[tuple[int, int], int] = {}
        ratios, offsets, which = [], [], []
        for problem in problems:
            key = id(problem.shift), id(problem.scale)
            if key not in kinds:
                kinds[key] = len(kinds)
                ratios.append(shared / values_of(problem.scale, 1.0, d))
                offsets.append(move_of(problem, shift))
            which.append(kinds[key])
        self.which = torch.tensor(which, device=like.device)
        self.ratios = torch.from_numpy(np.stack(ratios)).to(like)
        self.odd = (self.ratios.amax(0) > MOST_APART * self.ratios.amin(0)).nonzero()[:, 0]
        self.odd_ratios = self.ratios[:, self.odd].clone()
        self.ratios[:, self.odd] = 1
        self.offsets = None
        if intercept != FREE and np.any(offsets):
            self.offsets = torch.from_numpy(np.stack(offsets) / float(intercept)).to(like)

    @property
    def trivial(self) -> bool:
        """All have the shared shift and scale."""
        return self.offsets is None and not len(self.odd) and bool((self.ratios == 1).all())

    def squares(self, Q: Tensor) -> Tensor:
        """(F, W, W): U S U^T = |w|^2 for coordinates U = v Q of the shared columns."""
        d = self.ratios.shape[1]
        found = Q.new_empty(len(self.ratios), *Q.shape)
        for f, ratios in enumerate(self.ratios.to(Q)):
            A = Q.clone()  # rows: own coefficients of each coordinate
            A[:d] /= ratios[:, None]
            if self.offsets is not None:
                A[d] -= self.offsets[f].to(Q) @ A[:d]
            torch.mm(A.T, A, out=found[f])
        return found

    def own(self, V: Tensor, problems: Tensor) -> Tensor:
        """(b, k, W) shared coefficients -> own."""
        d = self.ratios.shape[1]
        which = self.which[problems]
        W = V.clone()
        W[..., :d] /= self.ratios[which][:, None]
        if self.offsets is not None:
            W[..., d] -= (W[..., :d] @ self.offsets[which][..., None].to(W))[..., 0]
        return W

    def shared(self, W: Tensor, problems: Tensor) -> Tensor:
        """(b, k, W) own coefficients -> shared."""
        d = self.ratios.shape[1]
        which = self.which[problems]
        V = W.clone()
        if self.offsets is not None:
            V[..., d] += (W[..., :d] @ self.offsets[which][..., None])[..., 0]
        V[..., :d] *= self.ratios[which][:, None]
        return V


def common_scale(problems: list[Problem], d: int) -> np.ndarray | None:
    """(d,) the geometric mean of the problems' different scales."""
    scales = {id(problem.scale): values_of(problem.scale, 1.0, d) for problem in problems}
    first = next(iter(scales.values()))
    if all(np.array_equal(scale, first) for scale in scales.values()):
        return problems[0].scale
    return np.exp(np.mean([np.log(np.abs(scale)) for scale in scales.values()], axis=0)) * np.sign(first)


def move_of(problem: Problem, shift: np.ndarray) -> np.ndarray:
    """(d,) what a free intercept of the common shift is more than the problem's own, for each unit of coefficient."""
    d = len(shift)
    return (shift - values_of(problem.shift, 0.0, d)) / values_of(problem.scale, 1.0, d)


def values_of(values: np.ndarray | None, default: float, d: int) -> np.ndarray:
    return np.full(d, default) if values is None else np.asarray(values, np.float64)


def equal(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))
