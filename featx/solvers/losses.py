"""Scores of a block of rows in, the loss of every problem and its derivative by the scores out. No products.

Shapes: z (B, k, n) scores, y (n,) class numbers, s (B, n) row weights. The derivative takes the place of the scores:
fresh memory costs more than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

_LEAST = 0.005  # of the squared hinge's curvature, where it has none

# value (B,) float64 and curvature (B, k), about sum_i s_i d2l/dz2; z becomes s dl/dz
BlockLoss = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def softmax(z: Tensor, y: Tensor, s: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """l = logsumexp(z) - z[y]; dl/dz = p - onehot(y), p = softmax(z); `positive` is not needed."""
    k = z.shape[1]
    at_y = y.expand(len(z), 1, -1)
    z.sub_(z.amax(1, keepdim=True))
    zy = z.gather(1, at_y).squeeze(1)  # (B, n)
    total = z.exp_().sum(1)
    value = torch.linalg.vecdot(total.log() - zy, s).double()
    z.mul_((s / total)[:, None]).scatter_(1, at_y, 0.0)
    wrong = z.sum(1)  # s (1 - p[y]), with all its digits where p[y] is near 1
    z.scatter_(1, at_y, -wrong[:, None])
    # sum_c p_c (1 - p_c) = 1 - |p|^2, where the wrong classes share what is left equally, divided among the classes as
    # |dl/dz| is: that costs B n and a glance at the residuals
    py = zy.exp_().div_(total)
    curvature = torch.linalg.vecdot((1 - py) * (1 + py - (1 - py) / (k - 1)), s)
    sizes = z.sum(2).index_add_(1, y, wrong, alpha=2)  # (B, k) sums of |dl/dz|
    return value, sizes * (curvature / sizes.sum(1).clamp_min(torch.finfo(z.dtype).tiny))[:, None]


def logistic(z: Tensor, y: Tensor, s: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """l = log(1 + exp(-t z)), t = 1 where y is `positive` (B,), else -1; one column."""
    t = _signs(y, positive, z.dtype)
    margin = z.squeeze(1).mul_(t)
    value = -torch.linalg.vecdot(logsigmoid(margin), s).double()
    wrong = margin.neg_().sigmoid_()
    curvature = torch.linalg.vecdot(wrong * (1 - wrong), s)[:, None]
    wrong.mul_(t.mul_(s)).neg_()
    return value, curvature


def squared_hinge(z: Tensor, y: Tensor, s: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """l = max(0, 1 - t z)^2, t = 1 where y is `positive` (B,), else -1; one column."""
    t = _signs(y, positive, z.dtype)
    slack = z.squeeze(1).mul_(t).neg_().add_(1).clamp_min_(0)
    value = torch.linalg.vecdot(slack * slack, s).double()
    # where no row is short of its margin there is no curvature; a step must not be endless for that
    curvature = 2 * torch.linalg.vecdot((slack > 0).to(s.dtype).clamp_min_(_LEAST), s)[:, None]
    slack.mul_(t.mul_(s)).mul_(-2)
    return value, curvature


def _signs(y: Tensor, positive: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, n)"""
    return (y == positive[:, None]).to(dtype).mul_(2).sub_(1)
