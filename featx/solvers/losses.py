"""Scores of a block of rows in, the loss of every problem and its derivative by the scores out. No products with X.

Shapes: z (B, k, m) scores, y (m,) class numbers, s (B, m) row weights, out (B, k, m) for s dl/dz: fresh memory costs
more than the arithmetic. The scores may be overwritten.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

_LEAST = 0.005  # of the squared hinge's curvature, where it has none


class Sums(NamedTuple):
    """Over the rows of a block: of s l (B,) float64, of s dl/dz (B, k), and about of s d2l/dz2 (B, k)."""

    value: Tensor
    slope: Tensor
    curvature: Tensor


# z, y, s, the class that one column is for (B,), out
BlockLoss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Sums]


def softmax(z: Tensor, y: Tensor, s: Tensor, positive: Tensor, out: Tensor) -> Sums:
    """l = logsumexp(z) - z[y]; dl/dz = p - onehot(y), p = softmax(z); `positive` is not needed."""
    k = z.shape[1]
    at_y = y.expand(len(z), 1, -1)
    p = torch.softmax(z, 1, out=out)
    py = p.gather(1, at_y).squeeze(1)  # (B, m)
    if py.amin() < torch.finfo(py.dtype).tiny:  # the logarithm would lose digits, or be infinite
        value = torch.linalg.vecdot(torch.logsumexp(z, 1) - z.gather(1, at_y).squeeze(1), s).double()
    else:
        value = -torch.linalg.vecdot(py.log_(), s).double()
    onehot = (y == torch.arange(k, device=y.device)[:, None]).to(z.dtype)  # (k, m)
    residuals = p.mul_(1 - onehot)
    wrong = residuals.sum(1)  # 1 - p[y], with all its digits where p[y] is near 1
    # sum_c p_c (1 - p_c) = 1 - |p|^2, where the wrong classes share what is left equally, divided among the classes as
    # |dl/dz| is: that costs B m and a glance at the residuals
    curvature = torch.linalg.vecdot(wrong * (2 - k / (k - 1) * wrong), s)
    wrong.mul_(s)
    residuals.mul_(s[:, None]).addcmul_(onehot, wrong[:, None], value=-1)
    slope = residuals.sum(2)
    sizes = slope + 2 * wrong @ onehot.T  # (B, k) sums of |dl/dz|
    return Sums(value, slope, sizes * (curvature / sizes.sum(1).clamp_min(torch.finfo(z.dtype).tiny))[:, None])


def logistic(z: Tensor, y: Tensor, s: Tensor, positive: Tensor, out: Tensor) -> Sums:
    """l = log(1 + exp(-t z)), t = 1 where y is `positive` (B,), else -1; one column."""
    t = _signs(y, positive, z.dtype)
    margin = z.squeeze(1).mul_(t)
    value = -torch.linalg.vecdot(logsigmoid(margin), s).double()
    wrong = torch.sigmoid(margin.neg_(), out=out.squeeze(1))
    curvature = torch.linalg.vecdot(wrong * (1 - wrong), s)[:, None]
    wrong.mul_(t.mul_(s)).neg_()
    return Sums(value, out.sum(2), curvature)


def squared_hinge(z: Tensor, y: Tensor, s: Tensor, positive: Tensor, out: Tensor) -> Sums:
    """l = max(0, 1 - t z)^2, t = 1 where y is `positive` (B,), else -1; one column."""
    z = z.squeeze(1)
    slope = _signs(y, positive, z.dtype).mul_(-2)  # of l by z, for each unit of slack
    slack = torch.addcmul(z.new_ones(()), z, slope, value=0.5, out=z).clamp_min_(0)
    weighted = torch.mul(slack, s, out=out.squeeze(1))
    value = torch.linalg.vecdot(weighted, slack).double()
    # where no row is short of its margin there is no curvature; a step must not be endless for that
    curvature = 2 * torch.linalg.vecdot(slack.sign_().clamp_min_(_LEAST), s)[:, None]
    weighted.mul_(slope)
    return Sums(value, out.sum(2), curvature)


def _signs(y: Tensor, positive: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, m)"""
    one = torch.ones((), dtype=dtype, device=y.device)
    return torch.where(y == positive[:, None], one, -one)
