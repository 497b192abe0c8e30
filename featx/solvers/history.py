"""What L-BFGS remembers of the steps of many problems, and the directions that follow from it."""

from __future__ import annotations

import torch
from torch import Tensor

PAIRS = 10


class Pairs:
    """The last steps s and changes y of the gradient of each problem, and the direction they make.

    In compact form, which reads them in four products: Byrd, Nocedal and Schnabel, Representations of quasi-Newton
    matrices (1994), theorem 2.2. R, the upper triangle of the s_i . y_j from the oldest pair to the newest, is kept up.
    """

    def __init__(self, like: Tensor, k: int) -> None:
        b, K = like.shape
        self.k = k
        self.steps, self.changes = like.new_zeros(b, PAIRS, K), like.new_zeros(b, PAIRS, K)
        self.products = like.new_zeros(b, PAIRS, PAIRS)  # s_i . y_j, where i is not newer than j
        self.count = torch.zeros(b, dtype=torch.int64, device=like.device)  # a pair is in slot `count` modulo PAIRS

    def push(self, step: Tensor, change: Tensor, accepted: Tensor) -> None:
        curved = dot(step, change) > torch.finfo(step.dtype).eps * step.norm(dim=1) * change.norm(dim=1)
        where = (accepted & curved).nonzero()[:, 0]
        slot = self.count[where] % PAIRS
        self.steps[where, slot], self.changes[where, slot] = step[where], change[where]
        self.products[where, :, slot] = _products(change, self.steps)[where]
        self.count[where] += 1

    def direction(self, gradient: Tensor, metric: Tensor) -> Tensor:
        """-H g, (b, K). H starts as the inverse of `metric`, scaled to fit each problem's newest pair."""
        each = torch.arange(len(gradient), device=gradient.device)[:, None]
        order = (self.count[:, None] + torch.arange(PAIRS, device=gradient.device)) % PAIRS  # of slots, by age
        R = self.products[each[..., None], order[..., None], order[:, None]].triu()
        diagonal = R.diagonal(dim1=1, dim2=2)
        curvature = diagonal.clone()  # s . y, 0 where there is no pair
        diagonal += curvature == 0

        shares = _solved(R, _products(gradient, self.steps)[each, order], upper=True)
        q = _less(gradient, shares, order, self.changes)
        newest = self.changes[each[:, 0], order[:, -1]]
        scale = curvature[:, -1] / dot(newest, newest / metric)
        q.mul_(torch.where(curvature[:, -1] > 0, scale, 1.0)[:, None]).div_(metric)
        self.balanced(q)
        again = _solved(R.mT, curvature * shares - _products(q, self.changes)[each, order], upper=False)
        return _less(q, -again, order, self.steps).neg_()

    def balanced(self, q: Tensor) -> Tensor:
        """In place: sums over several classes are 0, as in all gradients; a metric of each class's own forgot that."""
        if self.k > 1:
            classes = q.view(len(q), self.k, -1)
            classes -= classes.mean(1, keepdim=True)
        return q

    def keep(self, where: Tensor) -> None:
        self.steps = self.steps[where]
        self.changes = self.changes[where]
        self.products, self.count = self.products[where], self.count[where]


def _products(v: Tensor, pairs: Tensor) -> Tensor:
    """(b, K), (b, PAIRS, K) -> (b, PAIRS)"""
    return torch.bmm(v[:, None], pairs.mT)[:, 0]


def _less(v: Tensor, shares: Tensor, order: Tensor, pairs: Tensor) -> Tensor:
    """v - sum_i shares_i pairs_(order i), (b, K)"""
    by_slot = torch.zeros_like(shares).scatter_(1, order, shares)
    return torch.baddbmm(v[:, None], by_slot[:, None], pairs, alpha=-1)[:, 0]


def _solved(R: Tensor, right: Tensor, upper: bool) -> Tensor:
    return torch.linalg.solve_triangular(R, right[..., None], upper=upper)[..., 0]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(b, K), (b, K) -> (b,)"""
    return torch.linalg.vecdot(a, b)
