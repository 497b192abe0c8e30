"""The squared hinge loss, of one class against the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from featx.solvers.losses.base import ClassificationLoss, Sums, one_against_rest, signs

_LEAST = 0.005  # what a row without curvature adds to its column's, as a part of the others' curvature


@dataclass(frozen=True)
class SquaredHinge(ClassificationLoss):
    """l = max(0, 1 - t z)^2, t = 1 where y is `positive`, else -1."""

    joint: ClassVar = False
    float64_coefficients: ClassVar = True  # as liblinear's; its penalised intercept cannot make up for their rounding
    preconditioned_share: ClassVar = 1.0  # liblinear is near the minimum on nearly all problems
    bound_part: ClassVar = 10.0

    def gap_part(self, size: int) -> float:
        return 1e-3

    def block(self, z: Tensor, y: Tensor, s: Tensor, positive: Tensor, out: Tensor) -> Sums:
        z = z.squeeze(1)
        slope = signs(y, positive, z.dtype).mul_(-2)  # of l by z, for each unit of slack
        slack = torch.addcmul(z.new_ones(()), z, slope, value=0.5, out=z).clamp_min_(0)
        weighted = torch.mul(slack, s, out=out.squeeze(1))
        value = torch.linalg.vecdot(weighted, slack).double()
        # if no row were short of its margin, the curvature would be 0 and a step infinite
        curvature = 2 * torch.linalg.vecdot(slack.sign_().clamp_min_(_LEAST), s)[:, None]
        weighted.mul_(slope)
        return Sums(value, out.sum(2), curvature)

    def intercept_only(self, shares: Tensor, positive: Tensor, k: int) -> Tensor:
        """2 p - 1, p the share of the column's class."""
        p, q = one_against_rest(shares, positive)
        return (p - q) / (p + q)

    def curvatures(self, residuals: Tensor, s: Tensor) -> Tensor:
        """2 s where the row is short of its margin."""
        return 2 * s * (residuals.abs() > 0)
