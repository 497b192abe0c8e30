"""The logistic loss: binary for two classes, softmax for more."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from featx.solvers.losses.base import ClassificationLoss, Sums, one_against_rest, signs

_LARGE = 2**20  # elements of X from which passes take so long that the solver stops a little earlier


@dataclass(frozen=True)
class Logistic(ClassificationLoss):
    """l = logsumexp(z) - z[y]; for a single column, l = log(1 + exp(-t z)), t = 1 where y is `positive`, else -1."""

    joint: ClassVar = True
    float64_coefficients: ClassVar = False
    preconditioned_share: ClassVar = 0.01  # scikit-learn's lbfgs stops early on hard problems
    bound_part: ClassVar = inf

    def gap_part(self, size: int) -> float:
        return 1.0 if size >= _LARGE else 0.1

    def block(self, z: Tensor, y: Tensor, s: Tensor, positive: Tensor, out: Tensor) -> Sums:
        return _softmax(z, y, s, out) if z.shape[1] > 1 else _binary(z, y, s, positive, out)

    def intercept_only(self, shares: Tensor, positive: Tensor, k: int) -> Tensor:
        """Logarithms of the class weights, with mean 0; for a single column, the logarithm of the odds."""
        if k > 1:
            logs = shares.log()
            return logs - logs.mean(1, keepdim=True)
        p, q = one_against_rest(shares, positive)
        return p.log() - q.log()

    def curvatures(self, residuals: Tensor, s: Tensor) -> Tensor:
        """s p (1 - p), p the probability of the wrong class; |residuals| = s p."""
        sizes = residuals.abs()
        return sizes * (1 - torch.where(s > 0, sizes / s, 0.0))


def _softmax(z: Tensor, y: Tensor, s: Tensor, out: Tensor) -> Sums:
    """l = logsumexp(z) - z[y]; dl/dz = p - onehot(y), p = softmax(z)."""
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
    # sum_c p_c (1 - p_c) = 1 - |p|^2 if the wrong classes are equally likely, divided among the classes as |dl/dz| is:
    # the exact curvatures would take another pass over the (B, k, m) probabilities
    curvature = torch.linalg.vecdot(wrong * (2 - k / (k - 1) * wrong), s)
    wrong.mul_(s)
    residuals.mul_(s[:, None]).addcmul_(onehot, wrong[:, None], value=-1)
    slope = residuals.sum(2)
    sizes = slope + 2 * wrong @ onehot.T  # (B, k) sums of |dl/dz|
    return Sums(value, slope, sizes * (curvature / sizes.sum(1).clamp_min(torch.finfo(z.dtype).tiny))[:, None])


def _binary(z: Tensor, y: Tensor, s: Tensor, positive: Tensor, out: Tensor) -> Sums:
    """l = log(1 + exp(-t z)); dl/dz = -t p, p = 1 / (1 + exp(t z))."""
    t = signs(y, positive, z.dtype)
    margin = z.squeeze(1).mul_(t)
    value = -torch.linalg.vecdot(logsigmoid(margin), s).double()
    wrong = torch.sigmoid(margin.neg_(), out=out.squeeze(1))
    curvature = torch.linalg.vecdot(wrong * (1 - wrong), s)[:, None]
    wrong.mul_(t.mul_(s)).neg_()
    return Sums(value, out.sum(2), curvature)
