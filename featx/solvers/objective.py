"""The values and gradients of many problems in one pass over the rows, exact or in low precision.

    f_b(U) = sum_i s_bi l(z_i, y_i) + l2_b/2 |U|^2,    z_i = U x_i,    sum_i s_bi = 1

or U S U^T in place of |U|^2, S that of the problem's own shift and scale (`affine`).

A pass takes the rows in blocks. An exact one keeps only the scores of a block; one in low precision keeps the scores of
all rows, if the budget has room for them.

Low precision only computes differences. From the last evaluation of a problem, at U' with scores Z', residuals R' and
gradient G', it continues with

    Z = Z' + X (U - U')        G = G' + X^T (R - R')        U S = U' S + (U - U') + (U - U') (S - 1)

where the last products may have a relative error of a few parts in a thousand: of the step, not of the whole. R
accumulates the rounded changes, so the rounding error of one change is part of the next. Other errors add up until the
next exact pass, an *anchor*, removes them. In between, G is the gradient of the loss at Z plus gap . U, where gap = G -
X^T R at the anchor is 0 except for the rounding of X; the value has this term too, to be consistent with its gradient
in the line search.

This is iterative refinement; the values reported at the end always come from an exact pass.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any, Self

import torch
from torch import Tensor

from featx.solvers.basis import Basis
from featx.solvers.losses.base import ClassificationLoss, Sums
from featx.solvers.matmul import product
from featx.solvers.threads import Team, worth_sharing

_LEAST_ROWS = 256  # of a block


@dataclass(frozen=True)
class Batch:
    """B problems on one basis, all of one loss and one number of columns of scores k.

    position : (B,) of the problem in the group of the basis
    y : (n,) class numbers
    weights : (F, n) the different row weights, each with the sum 1
    fold : (B,) which of them a problem has
    positive : (B,) the class of the single column (k = 1)
    factor : (B,) what the weights of that class's rows are multiplied by, or None where it is 1 for all
    l2 : (B,)
    alike : (B,) the same number for problems that differ in nothing but l2
    """

    basis: Basis
    loss: ClassificationLoss
    k: int
    position: Tensor
    y: Tensor
    weights: Tensor
    fold: Tensor
    positive: Tensor
    factor: Tensor | None
    l2: Tensor
    alike: Tensor

    def __getitem__(self, which: Tensor) -> Batch:
        return replace(
            self,
            position=self.position[which],
            fold=self.fold[which],
            positive=self.positive[which],
            factor=None if self.factor is None else self.factor[which],
            l2=self.l2[which],
            alike=self.alike[which],
        )

    def __len__(self) -> int:
        return len(self.l2)


@dataclass
class Point:
    """Value (b,) float64, gradient (b, k, D) and curvature (b, k) of some problems at one point each."""

    value: Tensor
    gradient: Tensor
    curvature: Tensor


@dataclass(frozen=True)
class _Last:
    """The last evaluation of each of B problems, for low precision to continue from.

    scores, residuals : (B, k, n) Z', without the free intercept, and R'
    coordinates, gradient : (B, k, W) U' and G'
    gap : (B, k, W), and its product with U at the anchor, gap_start (B,)
    penalised : (B, k, W) U' S, or (B, k, 0) where S is the identity
    """

    scores: Tensor
    residuals: Tensor
    coordinates: Tensor
    gradient: Tensor
    gap: Tensor
    gap_start: Tensor
    penalised: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))

    def copy(self, source: int, target: int) -> None:
        for tensor in self.tensors:
            tensor[target] = tensor[source]

    def keep(self, which: list[int]) -> Self:
        """Keep the problems at these ascending positions, in place: memory may not suffice for a copy."""
        for target, source in enumerate(which):
            if target != source:
                self.copy(source, target)
        return type(self)(*(tensor[: len(which)] for tensor in self.tensors))


@dataclass(frozen=True)
class _Part:
    """A thread's blocks of a piece of the rows, and the problems of a pass whose weights there are not all 0.

    chosen : (c,) positions among the pass's problems
    problems : (c,) numbers among all problems
    runs : both again as slices of neighbours, for low precision
    """

    chosen: Tensor
    problems: Tensor
    runs: Runs
    blocks: list[slice]


class Objective:
    """Evaluates problems of a batch; remembers the last evaluations if passes in low precision follow (`anchored`).

    Where enough neighbouring rows weigh nothing in a problem, its passes leave them out. The blocks of a long pass are
    shared among the threads of the team.

    block_scores : approximate number of scores of a block, which should stay in the cache between the two products
    penalty : (b, 1, D) second derivatives of the penalty, its diagonal
    spectrum : (1 or b, 1, D) mean squares of the columns; of odd ones, in each problem's scale
    widest : the largest mean square of a penalised column
    """

    def __init__(self, batch: Batch, block_scores: int, anchored: bool, team: Team | None = None) -> None:
        self.batch, self.block_scores, self.anchored, self.team = batch, block_scores, anchored, team or Team()
        basis = batch.basis
        B, k, n, D = len(batch), batch.k, basis.n, len(basis.spectrum)
        like = basis.spectrum
        self.width = D - basis.free
        self.penalties = basis.penalties
        if self.penalties is not None:
            free = like.new_zeros(len(self.penalties), int(basis.free))
            self.diagonals = torch.cat([self.penalties.diagonal(dim1=1, dim2=2), free], 1)  # (F, D)
        self._planned: tuple[list[int], list[list[_Part]]] = ([], [])
        self._set_curvatures()
        self.widest = (self.spectrum * basis.penalised).max()
        # a piece costs its problems a copy of their coordinates: with fewer rows, that is more than is saved
        self.pieces = _pieces(batch.weights > 0, max(_LEAST_ROWS, self.width))
        most = max(block_scores, B * k * min(n, _LEAST_ROWS))
        # one for each thread; allocating it for each block costs more than the arithmetic
        self.work = like.new_empty(self.team.size, 1 + anchored, most)
        if anchored:
            low = basis.low_rows(0, 1).dtype
            self.low_work = torch.empty(self.team.size, most, dtype=low, device=like.device)
            self.last = _Last(
                scores=like.new_empty(B, k, n),
                residuals=like.new_empty(B, k, n),
                coordinates=like.new_zeros(B, k, self.width),
                gradient=like.new_zeros(B, k, self.width),
                gap=like.new_zeros(B, k, self.width),
                gap_start=like.new_zeros(B),
                penalised=like.new_zeros(B, k, 0 if self.penalties is None else self.width),
            )
            if self.penalties is not None:  # S - 1, so that its digits are not spent on the identity
                self.low_penalties = torch.empty_like(self.penalties, dtype=self.low_work.dtype)
                for low, S in zip(self.low_penalties, self.penalties, strict=True):
                    low.copy_(S - torch.eye(self.width, dtype=S.dtype, device=S.device))

    def _set_curvatures(self) -> None:
        """Set `penalty` and `spectrum` for the problems that are left."""
        basis, positions = self.batch.basis, self.batch.position
        diagonals = basis.penalised.expand(len(self.batch), -1)
        if self.penalties is not None:
            diagonals = self.diagonals[self._affine_of(positions)]
        self.penalty = self.batch.l2[:, None, None] * diagonals[:, None]
        self.spectrum = basis.spectrum[None, None]
        if c := basis.odd_squares.shape[1]:
            self.spectrum = self.spectrum.repeat(len(self.batch), 1, 1)
            self.spectrum[:, 0, self.width - c : self.width] = basis.odd_squares[self._affine_of(positions)]

    def keep(self, which: Tensor) -> None:
        """Drop all other problems."""
        self.batch, self._planned = self.batch[which], ([], [])
        self._set_curvatures()
        if self.anchored:
            self.last = self.last.keep(which.tolist())

    def exact(self, U: Tensor, problems: Tensor) -> Point:
        """Evaluate problems (b,) at coordinates U (b, k, D)."""
        basis, positions = self.batch.basis, self.batch.position[problems]
        inner, intercept = self._split(U)
        work = partial(self._exact_share, basis.shared(inner, positions), intercept)
        sums, G, low_G = _total(self.team.map(work, self._shares(problems)))
        gradient = basis.own(G, positions)
        shrink = inner if self.penalties is None else self._penalised(inner, problems, self.penalties)
        if self.anchored:
            last, gap = self.last, gradient - basis.own(low_G, positions)
            last.gap[problems], last.gap_start[problems] = gap, (gap * inner).sum((1, 2))
            last.coordinates[problems], last.gradient[problems] = inner, gradient
            if self.penalties is not None:
                last.penalised[problems] = shrink
        return self._point(U, problems, sums, gradient, shrink)

    def _exact_share(
        self, V: Tensor, intercept: Tensor, thread: int, parts: list[_Part]
    ) -> tuple[Sums, Tensor, Tensor]:
        """One thread's sums, and its gradients (b, k, W) with the exact and with the low-precision rows."""
        basis, sums, G, low_G = self.batch.basis, self._sums(len(V)), torch.zeros_like(V), torch.zeros_like(V)
        for part in parts:
            coefficients, constant = picked(V, part.chosen).flatten(0, 1), picked(intercept, part.chosen)
            part_G, part_low_G = (picked(total, part.chosen).flatten(0, 1) for total in (G, low_G))
            for block in part.blocks:
                rows = basis.rows(block.start, block.stop)
                residuals = self._room(len(part.chosen), block, thread)
                scores = product(coefficients, rows).view_as(residuals)
                if self.anchored:
                    for run, numbers in part.runs:
                        self.last.scores[numbers, :, block] = scores[run]
                scores += constant
                self._add_loss(sums, part, block, scores, residuals)
                part_G += product(residuals.flatten(0, 1), rows.T)
                if self.anchored:
                    for run, numbers in part.runs:
                        self.last.residuals[numbers, :, block] = residuals[run]
                    lowered = self._lowered(residuals, thread).copy_(residuals).flatten(0, 1)
                    part_low_G += lowered @ basis.low_rows(block.start, block.stop)
            _put(G, part.chosen, part_G)
            _put(low_G, part.chosen, part_low_G)
        return sums, G, low_G

    def low(self, U: Tensor, problems: Tensor) -> Point:
        """The same with products in low precision, continuing from the problems' last evaluation."""
        basis, last, positions = self.batch.basis, self.last, self.batch.position[problems]
        inner, intercept = self._split(U)
        step = inner - picked(last.coordinates, problems)
        shrink = inner
        if self.penalties is not None:
            more = self._penalised(step.to(self.low_work.dtype), problems, self.low_penalties)
            shrink = picked(last.penalised, problems) + step + more
            last.penalised[problems] = shrink
        work = partial(self._low_share, basis.shared(step, positions).to(self.low_work.dtype), intercept)
        sums, change = _total(self.team.map(work, self._shares(problems)))
        gradient = picked(last.gradient, problems) + basis.own(change, positions)
        sums.value.add_((picked(last.gap, problems) * inner).sum((1, 2)) - last.gap_start[problems])
        last.coordinates[problems], last.gradient[problems] = inner, gradient
        return self._point(U, problems, sums, gradient, shrink)

    def _low_share(self, step: Tensor, intercept: Tensor, thread: int, parts: list[_Part]) -> tuple[Sums, Tensor]:
        """One thread's sums over its blocks, and the change that they make to the gradient (b, k, W)."""
        last, sums = self.last, self._sums(len(step))
        change = torch.zeros_like(step, dtype=last.scores.dtype)
        for part in parts:
            coefficients, constant = picked(step, part.chosen).flatten(0, 1), picked(intercept, part.chosen)
            part_change = picked(change, part.chosen).flatten(0, 1)
            for block in part.blocks:
                rows, b = self.batch.basis.low_rows(block.start, block.stop), len(part.chosen)
                scores, residuals = self._room(b, block, thread, 1), self._room(b, block, thread)
                moved = self._lowered(scores, thread)
                torch.mm(coefficients, rows.T, out=moved.flatten(0, 1))
                for run, numbers in part.runs:
                    total = last.scores[numbers, :, block].add_(moved[run])
                    torch.add(total, constant[run], out=scores[run])
                self._add_loss(sums, part, block, scores, residuals)
                for run, numbers in part.runs:
                    total = last.residuals[numbers, :, block]
                    torch.sub(residuals[run], total, out=moved[run])
                    total.add_(moved[run])  # the rounded change: its error is part of the next one
                part_change += moved.flatten(0, 1) @ rows
            _put(change, part.chosen, part_change)
        return sums, change

    def adopt(self, problems: Tensor, others: Tensor) -> None:
        """Take over the last evaluations of other problems with the same rows and classes."""
        for target, source in zip(problems.tolist(), others.tolist(), strict=True):
            if self.anchored and target != source:
                self.last.copy(source, target)

    def _shares(self, problems: Tensor) -> list[list[_Part]]:
        """The blocks and problems of each thread in a pass, kept from the last pass if that had the same problems."""
        numbers = problems.tolist()
        if numbers != self._planned[0]:
            self._planned = numbers, self._cut(problems)
        return self._planned[1]

    def _cut(self, problems: Tensor) -> list[list[_Part]]:
        folds, k, D = self.batch.fold[problems], self.batch.k, len(self.batch.basis.spectrum)
        pieces = [(piece, active[folds].nonzero()[:, 0]) for piece, active in self.pieces]
        flop = 4 * k * D * sum((piece.stop - piece.start) * len(chosen) for piece, chosen in pieces)
        threads = self.team.size if worth_sharing(flop) else 1
        shares: list[list[_Part]] = [[] for _ in range(threads)]
        for piece, chosen in pieces:
            if not len(chosen):
                continue
            n = piece.stop - piece.start
            rows = min(max(_LEAST_ROWS, self.block_scores // (len(chosen) * k)), self.batch.basis.most_rows)
            if threads > 1:  # the same number of blocks for each thread, of the same size
                rows = -(-n // (threads * -(-n // (threads * rows))))
            blocks = [slice(at, min(at + rows, piece.stop)) for at in range(piece.start, piece.stop, rows)]
            numbers = problems[chosen]
            runs = _runs(numbers) if self.anchored else []
            for thread, share in enumerate(shares):
                share.append(_Part(chosen, numbers, runs, blocks[thread::threads]))
        return shares

    def _split(self, U: Tensor) -> tuple[Tensor, Tensor]:
        """(b, k, W) coordinates of the working columns, and the free intercept (b, k, 1) or zeros."""
        inner = U[..., : self.width]
        return inner, U[..., self.width :] if self.batch.basis.free else torch.zeros_like(U[..., :1])

    def _room(self, b: int, block: slice, thread: int, which: int = 0) -> Tensor:
        """An uninitialised tensor (b, k, m)."""
        shape = (b, self.batch.k, block.stop - block.start)
        return self.work[thread, which, : prod(shape)].view(shape)

    def _lowered(self, scores: Tensor, thread: int) -> Tensor:
        return self.low_work[thread, : scores.numel()].view_as(scores)

    def _add_loss(self, sums: Sums, part: _Part, block: slice, scores: Tensor, residuals: Tensor) -> None:
        """Add a block to the sums of the part's problems, and write their residuals (c, k, m)."""
        batch = self.batch
        y, positive = batch.y[block], batch.positive[part.problems]
        weights = batch.weights[:, block][batch.fold[part.problems]]  # (c, m)
        if batch.factor is not None:
            weights *= torch.where(y == positive[:, None], batch.factor[part.problems][:, None], 1.0)
        for total, more in zip(sums, batch.loss.block(scores, y, weights, positive, residuals), strict=True):
            total.index_add_(0, part.chosen, more)

    def _penalised(self, U: Tensor, problems: Tensor, penalties: Tensor) -> Tensor:
        """U S (b, k, W), S the penalty (W, W) of each problem's shift and scale."""
        result, start = torch.empty_like(U), 0
        numbers, counts = self._affine_of(self.batch.position[problems]).unique_consecutive(return_counts=True)
        threads = self.team.size if worth_sharing(2 * U.numel() * U.shape[-1]) else 1
        shares: list[list[tuple[int, slice]]] = [[] for _ in range(threads)]
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            for thread, share in enumerate(shares):  # problems of the same shift and scale are neighbours
                ends = (start + count * (thread + after) // threads for after in (0, 1))
                share.append((number, slice(*ends)))
            start += count

        def work(_: int, share: list[tuple[int, slice]]) -> None:
            for number, run in share:
                result[run] = product(U[run].flatten(0, 1), penalties[number]).view_as(result[run])

        self.team.map(work, shares)
        return result

    def _affine_of(self, positions: Tensor) -> Tensor:
        affine = self.batch.basis.affine
        assert affine is not None
        return affine.which[positions]

    def _sums(self, b: int) -> Sums:
        like = self.batch.basis.spectrum
        return Sums(like.new_zeros(b, dtype=torch.float64), *like.new_zeros(2, b, self.batch.k))

    def _point(self, U: Tensor, problems: Tensor, sums: Sums, gradient: Tensor, shrink: Tensor) -> Point:
        """The Point that follows from the gradients (b, k, W) of the loss and of |w|^2 / 2, `shrink`."""
        shrink = shrink * self.batch.l2[problems][:, None, None]
        value = sums.value + 0.5 * (shrink * U[..., : self.width]).sum((1, 2)).double()
        gradient = gradient + shrink
        if self.batch.basis.free:
            gradient = torch.cat([gradient, sums.slope[..., None]], -1)
        return Point(value, gradient, sums.curvature)


def picked(values: Tensor, which: Tensor) -> Tensor:
    """values[which], `which` ascending; no copy where that is all."""
    return values if len(which) == len(values) else values[which]


def _total(shares: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The sums and gradients of all threads, added up."""
    (sums, *gradients), *rest = shares
    for more_sums, *more in rest:
        for total, part in zip((*sums, *gradients), (*more_sums, *more), strict=True):
            total += part
    return sums, *gradients


def _put(values: Tensor, which: Tensor, changed: Tensor) -> None:
    """Write `changed`, which began as `picked(values, which)`, back to `values`."""
    if len(which) < len(values):
        values[which] = changed.view(len(which), *values.shape[1:])


def _pieces(weighs: Tensor, least: int) -> list[tuple[slice, Tensor]]:
    """Slices of at least `least` rows that have weight in the same of F folds, and which these are, (F,).

    weighs : (F, n) whether a row has weight in a fold
    """
    n = weighs.shape[1]
    edges = [0]
    for edge in ((weighs[:, 1:] != weighs[:, :-1]).any(0).nonzero()[:, 0] + 1).tolist():
        if min(edge - edges[-1], n - edge) >= least:
            edges.append(edge)
    pieces: list[tuple[slice, Tensor]] = []
    for start, stop in pairwise([*edges, n]):
        active = weighs[:, start:stop].any(1)
        if pieces and bool((pieces[-1][1] == active).all()):
            start = pieces.pop()[0].start
        pieces.append((slice(start, stop), active))
    return pieces


Runs = list[tuple[slice, slice]]  # positions among some problems, and their numbers among all, both consecutive


def _runs(problems: Tensor) -> Runs:
    numbers = problems.tolist()
    ends = [i for i in range(1, len(numbers) + 1) if i == len(numbers) or numbers[i] != numbers[i - 1] + 1]
    return [(slice(i, j), slice(numbers[i], numbers[j - 1] + 1)) for i, j in pairwise([0, *ends])]
