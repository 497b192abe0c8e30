"""The value and the gradient of many problems in one pass over the rows, exactly or in a low precision near an anchor.

    f_b(U) = sum_i s_bi l(z_i, y_i) + l2_b/2 |U|^2,    z_i = U x_i,    sum_i s_bi = 1

A pass takes the rows in blocks, and an exact one needs no more scores than those of a block; low precision keeps all
of a problem's, where the budget has room for them.

Low precision pays since it only carries differences. From where a problem was evaluated last, at U' with scores Z',
residuals R' and gradient G', it goes on with

    Z = Z' + X (U - U')        G = G' + X^T (R - R')

where both products may be wrong by a part in a few hundred: of a step, not of the whole. From time to time an exact
pass takes the errors out that have added up: an *anchor*. In between, G is the gradient of the loss at Z plus gap . U,
where gap = G - X^T R at the anchor is 0 but for the low X; the value has this term too, or no line search could trust
it.

This is iterative refinement; what is reported in the end always comes from an exact pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from featx.solvers.design import Design
from featx.solvers.losses import BlockLoss

_LEAST_ROWS = 256  # of a block


@dataclass(frozen=True)
class Batch:
    """B problems on one design, all of one loss and one number of columns k.

    member : (B,) which of the design's problems they are
    y : (n,) class numbers
    weights : (F, n) different row weights, each with the sum 1
    fold : (B,) which of them a problem has
    positive : (B,) the class that the one column is for (k = 1)
    factor : (B,) what else that class's rows weigh, or None where it is 1 for all
    l2 : (B,)
    alike : (B,) the same number for problems that differ in nothing but l2
    """

    design: Design
    loss: BlockLoss
    k: int
    member: Tensor
    y: Tensor
    weights: Tensor
    fold: Tensor
    positive: Tensor
    factor: Tensor | None
    l2: Tensor
    alike: Tensor

    def __len__(self) -> int:
        return len(self.l2)


@dataclass
class Point:
    """value (b,) float64, gradient (b, k, D), curvature (b, k) of problems somewhere."""

    value: Tensor
    gradient: Tensor
    curvature: Tensor


class Objective:
    """Evaluates problems of a batch; keeps where they were evaluated last if low passes will be asked for (`anchored`).

    block_scores : how many scores a block of rows has, about: they should stay in the cache between the two products
    """

    def __init__(self, batch: Batch, block_scores: int, anchored: bool) -> None:
        self.batch, self.block_scores, self.anchored = batch, block_scores, anchored
        design = batch.design
        B, k, n, D = len(batch), batch.k, design.n, len(design.spectrum)
        like = design.spectrum
        self.penalty = batch.l2[:, None, None] * design.penalised  # (B, 1, D)
        most = max(block_scores, B * k * min(n, _LEAST_ROWS))
        self.work = like.new_empty(2, most)  # fresh memory for each block would cost more than the arithmetic
        if anchored:
            self.low_work = torch.empty(most, dtype=design.low_rows(0, 1).dtype, device=like.device)
            self.scores, self.residuals = like.new_empty(B, k, n), like.new_empty(B, k, n)
            self.coordinates, self.gradient, self.gap = (like.new_zeros(B, k, D) for _ in range(3))
            self.gap_start = like.new_zeros(B)

    def _blocks(self, b: int) -> list[slice]:
        n = self.batch.design.n
        rows = max(_LEAST_ROWS, self.block_scores // (b * self.batch.k))
        return [slice(start, min(start + rows, n)) for start in range(0, n, rows)]

    def exact(self, U: Tensor, problems: Tensor) -> Point:
        """(b, k, D) coordinates of some problems, and which they are (b,)."""
        design, b, members = self.batch.design, len(U), self.batch.member[problems]
        V = design.shared(U, members).flatten(0, 1)  # (b k, D)
        value, curvature, runs = *self._zeros(b), _runs(problems)
        G, low_G = torch.zeros_like(V), torch.zeros_like(V)
        for block in self._blocks(b):
            rows = design.rows(block.start, block.stop)
            scores = self._scores(b, block)
            torch.mm(V, rows.T, out=scores.flatten(0, 1))
            if self.anchored:
                _put(self.scores, runs, block, scores)
            residuals = self._loss(scores, block, problems, value, curvature)
            G.addmm_(residuals, rows)
            if self.anchored:
                _put(self.residuals, runs, block, scores)
                low_G += self._lowered(residuals) @ design.low_rows(block.start, block.stop)
        gradient = design.own(G.view_as(U), members)
        if self.anchored:
            gap = gradient - design.own(low_G.view_as(U), members)
            self.gap[problems], self.gap_start[problems] = gap, (gap * U).sum((1, 2))
            self.coordinates[problems], self.gradient[problems] = U, gradient
        return self._point(U, problems, value, gradient, curvature)

    def low(self, U: Tensor, problems: Tensor) -> Point:
        """The same, with products in low precision, from where the problems were evaluated last."""
        design, (b, k, _), members = self.batch.design, U.shape, self.batch.member[problems]
        step = design.shared(U - self.coordinates[problems], members).flatten(0, 1).to(self.low_work.dtype)
        value, curvature, runs = *self._zeros(b), _runs(problems)
        value += (self.gap[problems] * U).sum((1, 2)) - self.gap_start[problems]
        change = torch.zeros(step.shape, dtype=U.dtype, device=U.device)
        for block in self._blocks(b):
            rows = design.low_rows(block.start, block.stop)
            scores, before = self._scores(b, block), self._scores(b, block, 1)
            _take(self.scores, runs, block, scores)
            moved = self.low_work[: scores.numel()].view(b * k, -1)
            scores += torch.mm(step, rows.T, out=moved).view_as(scores)
            _put(self.scores, runs, block, scores)
            residuals = self._loss(scores, block, problems, value, curvature)
            _take(self.residuals, runs, block, before)
            _put(self.residuals, runs, block, scores)
            change += torch.sub(residuals, before.flatten(0, 1), out=moved) @ rows
        gradient = self.gradient[problems] + design.own(change.view_as(U), members)
        self.coordinates[problems], self.gradient[problems] = U, gradient
        return self._point(U, problems, value, gradient, curvature)

    def adopt(self, problems: Tensor, others: Tensor) -> None:
        """Put problems where others of the same rows and classes were evaluated last."""
        if self.anchored:
            for held in (self.scores, self.residuals, self.coordinates, self.gradient, self.gap, self.gap_start):
                held[problems] = held[others]

    def _scores(self, b: int, block: slice, which: int = 0) -> Tensor:
        """(b, k, m) to work in."""
        m = block.stop - block.start
        return self.work[which, : b * self.batch.k * m].view(b, -1, m)

    def _lowered(self, residuals: Tensor) -> Tensor:
        return self.low_work[: residuals.numel()].view_as(residuals).copy_(residuals)

    def _loss(self, scores: Tensor, block: slice, problems: Tensor, value: Tensor, curvature: Tensor) -> Tensor:
        """Adds to value and curvature; (b k, m) residuals where the scores were."""
        batch = self.batch
        y, positive = batch.y[block], batch.positive[problems]
        weights = batch.weights[:, block][batch.fold[problems]]  # (b, m)
        if batch.factor is not None:
            weights *= torch.where(y == positive[:, None], batch.factor[problems][:, None], 1.0)
        block_value, block_curvature = batch.loss(scores, y, weights, positive)
        value += block_value
        curvature += block_curvature
        return scores.flatten(0, 1)

    def _zeros(self, b: int) -> tuple[Tensor, Tensor]:
        like = self.batch.design.spectrum
        return like.new_zeros(b, dtype=torch.float64), like.new_zeros(b, self.batch.k)

    def _point(self, U: Tensor, problems: Tensor, value: Tensor, gradient: Tensor, curvature: Tensor) -> Point:
        penalty = self.penalty[problems]
        value = value + 0.5 * (penalty * U * U).sum((1, 2)).double()
        return Point(value, gradient + penalty * U, curvature)


Runs = list[tuple[slice, slice]]  # positions among some problems, and which of all they are: neighbours together


def _runs(problems: Tensor) -> Runs:
    numbers = problems.tolist()
    ends = [i for i in range(1, len(numbers) + 1) if i == len(numbers) or numbers[i] != numbers[i - 1] + 1]
    return [(slice(i, j), slice(numbers[i], numbers[j - 1] + 1)) for i, j in pairwise([0, *ends])]


def _take(held: Tensor, runs: Runs, block: slice, out: Tensor) -> None:
    for mine, theirs in runs:
        out[mine].copy_(held[theirs, :, block])


def _put(held: Tensor, runs: Runs, block: slice, values: Tensor) -> None:
    for mine, theirs in runs:
        held[theirs, :, block].copy_(values[mine])
