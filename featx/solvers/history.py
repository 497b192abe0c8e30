"""The step history of L-BFGS for many problems, and the directions that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

HISTORY_SIZE = 10


@dataclass(frozen=True)
class History:
    """The last steps s of each of b problems, and the changes y of its gradient; K = k D.

    A direction takes four products with them, in the compact form of Byrd, Nocedal and Schnabel, Representations of
    quasi-Newton matrices (1994), theorem 2.2. Its R, the upper triangle of the s_i . y_j ordered by age, is kept.

    steps, changes : (b, HISTORY_SIZE, K)
    products : (b, HISTORY_SIZE, HISTORY_SIZE) s_i . y_j, where i is not newer than j
    count : (b,) pairs so far; a pair is in slot `count` modulo HISTORY_SIZE
    """

    steps: Tensor
    changes: Tensor
    products: Tensor
    count: Tensor

    @classmethod
    def empty(cls, like: Tensor) -> Self:
        """An empty history of problems with coordinates `like` (b, K)."""
        b, K = like.shape
        return cls(
            steps=like.new_zeros(b, HISTORY_SIZE, K),
            changes=like.new_zeros(b, HISTORY_SIZE, K),
            products=like.new_zeros(b, HISTORY_SIZE, HISTORY_SIZE),
            count=torch.zeros(b, dtype=torch.int64, device=like.device),
        )

    def push(self, step: Tensor, change: Tensor, accepted: Tensor) -> None:
        """Add the accepted pairs of positive curvature, in place: a copy would cost as much as a pass."""
        curved = dot(step, change) > torch.finfo(step.dtype).eps * step.norm(dim=1) * change.norm(dim=1)
        where = (accepted & curved).nonzero()[:, 0]
        slot = self.count[where] % HISTORY_SIZE
        self.steps[where, slot], self.changes[where, slot] = step[where], change[where]
        self.products[where, :, slot] = _products(change, self.steps)[where]
        self.count[where] += 1

    def direction(self, gradient: Tensor, preconditioner: Tensor, k: int) -> Tensor:
        """-H g, (b, K).

        H starts as the inverse of `preconditioner` (b, K), scaled to fit each problem's newest pair.
        """
        each = torch.arange(len(gradient), device=gradient.device)[:, None]
        order = (self.count[:, None] + torch.arange(HISTORY_SIZE, device=gradient.device)) % HISTORY_SIZE  # by age
        R = self.products[each[..., None], order[..., None], order[:, None]].triu()
        diagonal = R.diagonal(dim1=1, dim2=2)
        curvature = diagonal.clone()  # s . y, 0 in empty slots
        diagonal += curvature == 0

        shares = _solved(R, _products(gradient, self.steps)[each, order], upper=True)
        q = _less(gradient, shares, order, self.changes)
        newest = self.changes[each[:, 0], order[:, -1]]
        scale = curvature[:, -1] / dot(newest, newest / preconditioner)
        q.mul_(torch.where(curvature[:, -1] > 0, scale, 1.0)[:, None]).div_(preconditioner)
        balance(q, k)
        shares = _solved(R.mT, curvature * shares - _products(q, self.changes)[each, order], upper=False)
        return _less(q, -shares, order, self.steps).neg_()


def balance(q: Tensor, k: int) -> Tensor:
    """Subtract the mean over the k classes from q (b, K), in place.

    The gradients of several classes sum to 0, but not when each class is divided by its own preconditioner.
    """
    if k > 1:
        classes = q.view(len(q), k, -1)
        classes -= classes.mean(1, keepdim=True)
    return q


def _products(v: Tensor, vectors: Tensor) -> Tensor:
    """(b, HISTORY_SIZE) of v (b, K) and vectors (b, HISTORY_SIZE, K)."""
    return torch.bmm(v[:, None], vectors.mT)[:, 0]


def _less(v: Tensor, shares: Tensor, order: Tensor, vectors: Tensor) -> Tensor:
    """v - sum_i shares_i vectors_(order i), (b, K)."""
    by_slot = torch.zeros_like(shares).scatter_(1, order, shares)
    return torch.baddbmm(v[:, None], by_slot[:, None], vectors, alpha=-1)[:, 0]


def _solved(R: Tensor, right: Tensor, upper: bool) -> Tensor:
    return torch.linalg.solve_triangular(R, right[..., None], upper=upper)[..., 0]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(b,) of (b, K) and (b, K)."""
    return torch.linalg.vecdot(a, b)
