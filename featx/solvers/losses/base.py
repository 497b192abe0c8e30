"""The interface of a loss of class labels for the iterative solvers.

Shapes: z (B, k, m) scores of a block of m rows, y (m,) class numbers, s (B, m) row weights. k is 1 for two classes and
for one class against the rest; the column's own class is then `positive` (B,).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor


class Sums(NamedTuple):
    """Sums over the rows of a block.

    value : (B,) float64, of s l
    slope : (B, k), of s dl/dz
    curvature : (B, k), of s d2l/dz2, approximately
    """

    value: Tensor
    slope: Tensor
    curvature: Tensor


@dataclass(frozen=True)
class ClassificationLoss(ABC):
    """A loss of class labels: its value and derivatives, and what follows from its curvature.

    joint : three or more classes are one problem with a column of scores each; else each class is a problem of its own
    float64_coefficients : coefficients are float64, also where X is float32
    preconditioned_share, bound_part : as in `lbfgs.Stopping`
    """

    joint: ClassVar[bool]
    float64_coefficients: ClassVar[bool]
    preconditioned_share: ClassVar[float]
    bound_part: ClassVar[float]

    @abstractmethod
    def gap_part(self, size: int) -> float:
        """As in `lbfgs.Stopping`, for an X of `size` elements."""

    @abstractmethod
    def block(self, z: Tensor, y: Tensor, s: Tensor, positive: Tensor, out: Tensor) -> Sums:
        """The loss of a block of rows; s dl/dz is written to `out` (B, k, m), and z may be overwritten.

        The caller passes `out` since allocating it costs more than the arithmetic.
        """

    @abstractmethod
    def intercept_only(self, shares: Tensor, positive: Tensor, k: int) -> Tensor:
        """The best free intercepts (B, k) of a model without columns; `shares` (B, classes) are the class weights."""

    @abstractmethod
    def curvatures(self, residuals: Tensor, s: Tensor) -> Tensor:
        """s d2l/dz2 (B, m) of single columns, from their residuals s dl/dz (B, m)."""


def signs(y: Tensor, positive: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, m) 1 where y is the column's class, -1 elsewhere."""
    one = torch.ones((), dtype=dtype, device=y.device)
    return torch.where(y == positive[:, None], one, -one)


def one_against_rest(shares: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 1) the weights of the column's class, and those of all others."""
    at = positive[:, None]
    return shares.gather(1, at), shares.scatter(1, at, 0).sum(1, keepdim=True)
