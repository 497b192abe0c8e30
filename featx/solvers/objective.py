"""The value and the gradient of many problems in one pass over the rows, exactly or in a low precision near an anchor.

    f_b(U) = sum_i s_bi l(z_i, y_i) + l2_b/2 |U|^2,    z_i = U x_i,    sum_i s_bi = 1

or U S U^T in place of |U|^2, S that of the problem's own shift and scale (`affine`).

A pass takes the rows in blocks, and an exact one needs no more scores than those of a block; low precision keeps all
of a problem's, where the budget has room for them.

Low precision pays since it only carries differences. From where a problem was evaluated last, at U' with scores Z',
residuals R' and gradient G', it goes on with

    Z = Z' + X (U - U')        G = G' + X^T (R - R')        U S = U' S + (U - U') + (U - U') (S - 1)

where the last products may be wrong by a part in a few hundred: of a step, not of the whole. R carries the rounded
changes, so what rounding takes from one change is part of the next. From time to time an exact pass takes the errors
out that have added up all the same: an *anchor*. In between, G is the gradient of the loss at Z plus gap . U, where
gap = G - X^T R at the anchor is 0 but for the low X; the value has this term too, or no line search could trust it.

This is iterative refinement; what is reported in the end always comes from an exact pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

from featx.solvers.basis import Design
from featx.solvers.losses import BlockLoss, Sums
from featx.solvers.matmul import product
from featx.solvers.threads import Team, worth_sharing

_LEAST_ROWS = 256  # of a block
# where problems were evaluated last
_STATE = ("scores", "residuals", "coordinates", "gradient", "gap", "gap_start", "penalised")


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

    def __getitem__(self, which: Tensor) -> Batch:
        return replace(
            self,
            member=self.member[which],
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
    """value (b,) float64, gradient (b, k, D), curvature (b, k) of problems somewhere."""

    value: Tensor
    gradient: Tensor
    curvature: Tensor


@dataclass(frozen=True)
class _Part:
    """A thread's blocks of a piece of the rows, and which of a pass's problems have weight there.

    chosen : (c,) positions among the pass's problems
    problems : (c,) which of all problems they are
    runs : the same, neighbours together, if there is something to keep of them
    """

    chosen: Tensor
    problems: Tensor
    runs: Runs
    blocks: list[slice]


class Objective:
    """Evaluates problems of a batch; keeps where they were evaluated last if low passes will be asked for (`anchored`).

    Rows that weigh nothing in a problem cost it nothing, where enough of them are neighbours. The blocks of a long pass
    are shared among the threads of the team.

    block_scores : how many scores a block of rows has, about: they should stay in the cache between the two products
    """

    def __init__(self, batch: Batch, block_scores: int, anchored: bool, team: Team | None = None) -> None:
        self.batch, self.block_scores, self.anchored, self.team = batch, block_scores, anchored, team or Team()
        design = batch.design
        B, k, n, D = len(batch), batch.k, design.n, len(design.spectrum)
        like = design.spectrum
        self.width = D - design.free
        self.squares = design.squares
        if self.squares is not None:
            free = like.new_zeros(len(self.squares), int(design.free))
            self.stretch = torch.cat([self.squares.diagonal(dim1=1, dim2=2), free], 1)  # (F, D)
        self._last: tuple[list[int], list[list[_Part]]] = ([], [])
        self._measure()
        self.widest = (self.spectrum * design.penalised).max()  # not the free intercept, which may be larger
        # a piece costs its problems a copy of their coordinates: of fewer rows, that is more than is saved
        self.pieces = _pieces(batch.weights > 0, max(_LEAST_ROWS, self.width))
        most = max(block_scores, B * k * min(n, _LEAST_ROWS))
        # each thread's own; fresh memory for each block costs more than the arithmetic
        self.work = like.new_empty(self.team.size, 1 + anchored, most)
        if anchored:
            low = design.low_rows(0, 1).dtype
            self.low_work = torch.empty(self.team.size, most, dtype=low, device=like.device)
            self.scores, self.residuals = like.new_empty(B, k, n), like.new_empty(B, k, n)  # without the free intercept
            self.coordinates, self.gradient, self.gap = (like.new_zeros(B, k, self.width) for _ in range(3))
            self.gap_start = like.new_zeros(B)
            self.penalised = like.new_zeros(B, k, 0 if self.squares is None else self.width)
            if self.squares is not None:  # what they are more than the identity, which carries most, takes no digits
                self.low_squares = torch.empty_like(self.squares, dtype=self.low_work.dtype)
                for low, square in zip(self.low_squares, self.squares, strict=True):
                    low.copy_(square - torch.eye(self.width, dtype=square.dtype, device=square.device))

    def _measure(self) -> None:
        """What the inner metric is made of, for the problems that are left.

        penalty : (b, 1, D) second derivatives of the penalty, as far as they are diagonal
        spectrum : (1 or b, 1, D) mean squares of the columns, of the odd ones in each problem's scale
        """
        design, members = self.batch.design, self.batch.member
        stretch = design.penalised.expand(len(self.batch), -1)
        if self.squares is not None:
            stretch = self.stretch[self._which(members)]
        self.penalty = self.batch.l2[:, None, None] * stretch[:, None]
        self.spectrum = design.spectrum[None, None]
        if c := design.odd_squares.shape[1]:
            self.spectrum = self.spectrum.repeat(len(self.batch), 1, 1)
            self.spectrum[:, 0, self.width - c : self.width] = design.odd_squares[self._which(members)]

    def keep(self, which: Tensor) -> None:
        """Only these of the problems, from now on."""
        self.batch, self._last = self.batch[which], ([], [])
        self._measure()
        moves = [(to, of) for to, of in enumerate(which.tolist()) if to != of]
        for name in _STATE if self.anchored else ():
            held = getattr(self, name)
            for to, of in moves:  # where they are: there might be no room for a copy
                held[to] = held[of]
            setattr(self, name, held[: len(which)])

    def exact(self, U: Tensor, problems: Tensor) -> Point:
        """(b, k, D) coordinates of some problems, and which they are (b,)."""
        design, members = self.batch.design, self.batch.member[problems]
        inner, intercept = self._split(U)
        work = partial(self._exact_share, design.shared(inner, members), intercept)
        sums, G, low_G = _total(self.team.map(work, self._shares(problems)))
        gradient = design.own(G, members)
        if self.anchored:
            gap = gradient - design.own(low_G, members)
            self.gap[problems], self.gap_start[problems] = gap, (gap * inner).sum((1, 2))
            self.coordinates[problems], self.gradient[problems] = inner, gradient
        shrink = inner if self.squares is None else self._squared(inner, problems, self.squares)
        if self.anchored and self.squares is not None:
            self.penalised[problems] = shrink
        return self._point(U, problems, sums, gradient, shrink)

    def _exact_share(
        self, V: Tensor, intercept: Tensor, thread: int, parts: list[_Part]
    ) -> tuple[Sums, Tensor, Tensor]:
        """Of one thread's blocks: sums, and gradients with exact and with low rows, (b, k, W)."""
        design, sums, G, low_G = self.batch.design, self._sums(len(V)), torch.zeros_like(V), torch.zeros_like(V)
        for part in parts:
            coefficients, constant = picked(V, part.chosen).flatten(0, 1), picked(intercept, part.chosen)
            part_G, part_low_G = (picked(held, part.chosen).flatten(0, 1) for held in (G, low_G))
            for block in part.blocks:
                rows = design.rows(block.start, block.stop)
                residuals = self._room(len(part.chosen), block, thread)
                scores = product(coefficients, rows).view_as(residuals)
                if self.anchored:
                    for mine, kept in part.runs:
                        self.scores[kept, :, block] = scores[mine]
                scores += constant
                self._add_loss(sums, part, block, scores, residuals)
                part_G += product(residuals.flatten(0, 1), rows.T)
                if self.anchored:
                    for mine, kept in part.runs:
                        self.residuals[kept, :, block] = residuals[mine]
                    lowered = self._lowered(residuals, thread).copy_(residuals).flatten(0, 1)
                    part_low_G += lowered @ design.low_rows(block.start, block.stop)
            _put(G, part.chosen, part_G)
            _put(low_G, part.chosen, part_low_G)
        return sums, G, low_G

    def low(self, U: Tensor, problems: Tensor) -> Point:
        """The same, with products in low precision, from where the problems were evaluated last."""
        design, members = self.batch.design, self.batch.member[problems]
        inner, intercept = self._split(U)
        step = inner - picked(self.coordinates, problems)
        shrink = inner
        if self.squares is not None:
            more = self._squared(step.to(self.low_work.dtype), problems, self.low_squares)
            shrink = picked(self.penalised, problems) + step + more
            self.penalised[problems] = shrink
        work = partial(self._low_share, design.shared(step, members).to(self.low_work.dtype), intercept)
        sums, change = _total(self.team.map(work, self._shares(problems)))
        gradient = picked(self.gradient, problems) + design.own(change, members)
        sums.value.add_((picked(self.gap, problems) * inner).sum((1, 2)) - self.gap_start[problems])
        self.coordinates[problems], self.gradient[problems] = inner, gradient
        return self._point(U, problems, sums, gradient, shrink)

    def _low_share(self, step: Tensor, intercept: Tensor, thread: int, parts: list[_Part]) -> tuple[Sums, Tensor]:
        """Of one thread's blocks: sums, and the change of the gradient (b, k, W)."""
        sums, change = self._sums(len(step)), torch.zeros_like(step, dtype=self.scores.dtype)
        for part in parts:
            coefficients, constant = picked(step, part.chosen).flatten(0, 1), picked(intercept, part.chosen)
            part_change = picked(change, part.chosen).flatten(0, 1)
            for block in part.blocks:
                rows, b = self.batch.design.low_rows(block.start, block.stop), len(part.chosen)
                scores, residuals = self._room(b, block, thread, 1), self._room(b, block, thread)
                moved = self._lowered(scores, thread)
                torch.mm(coefficients, rows.T, out=moved.flatten(0, 1))
                for mine, kept in part.runs:
                    held = self.scores[kept, :, block].add_(moved[mine])
                    torch.add(held, constant[mine], out=scores[mine])
                self._add_loss(sums, part, block, scores, residuals)
                for mine, kept in part.runs:
                    held = self.residuals[kept, :, block]
                    torch.sub(residuals[mine], held, out=moved[mine])
                    held.add_(moved[mine])  # what rounding left out is part of the next change
                part_change += moved.flatten(0, 1) @ rows
            _put(change, part.chosen, part_change)
        return sums, change

    def adopt(self, problems: Tensor, others: Tensor) -> None:
        """Put problems where others of the same rows and classes were evaluated last."""
        for to, of in zip(problems.tolist(), others.tolist(), strict=True):
            for name in _STATE if self.anchored and to != of else ():
                held = getattr(self, name)
                held[to] = held[of]

    def _shares(self, problems: Tensor) -> list[list[_Part]]:
        """What each thread does in a pass; that of the last pass is kept."""
        numbers = problems.tolist()
        if numbers != self._last[0]:
            self._last = numbers, self._cut(problems)
        return self._last[1]

    def _cut(self, problems: Tensor) -> list[list[_Part]]:
        folds, k, D = self.batch.fold[problems], self.batch.k, len(self.batch.design.spectrum)
        pieces = [(piece, active[folds].nonzero()[:, 0]) for piece, active in self.pieces]
        flop = 4 * k * D * sum((piece.stop - piece.start) * len(chosen) for piece, chosen in pieces)
        threads = self.team.size if worth_sharing(flop) else 1
        shares: list[list[_Part]] = [[] for _ in range(threads)]
        for piece, chosen in pieces:
            if not len(chosen):
                continue
            n = piece.stop - piece.start
            rows = min(max(_LEAST_ROWS, self.block_scores // (len(chosen) * k)), self.batch.design.most_rows)
            if threads > 1:  # as many blocks for each thread, of the same size
                rows = -(-n // (threads * -(-n // (threads * rows))))
            blocks = [slice(at, min(at + rows, piece.stop)) for at in range(piece.start, piece.stop, rows)]
            theirs = problems[chosen]
            runs = _runs(theirs) if self.anchored else []
            for thread, share in enumerate(shares):
                share.append(_Part(chosen, theirs, runs, blocks[thread::threads]))
        return shares

    def _split(self, U: Tensor) -> tuple[Tensor, Tensor]:
        """(b, k, D) -> (b, k, W), and the free intercept (b, k, 1) or zeros."""
        inner = U[..., : self.width]
        return inner, U[..., self.width :] if self.batch.design.free else torch.zeros_like(U[..., :1])

    def _room(self, b: int, block: slice, thread: int, which: int = 0) -> Tensor:
        """(b, k, m), of any content."""
        shape = (b, self.batch.k, block.stop - block.start)
        return self.work[thread, which, : prod(shape)].view(shape)

    def _lowered(self, scores: Tensor, thread: int) -> Tensor:
        return self.low_work[thread, : scores.numel()].view_as(scores)

    def _add_loss(self, sums: Sums, part: _Part, block: slice, scores: Tensor, residuals: Tensor) -> None:
        """The block's share of the sums of the part's problems, and their residuals (c, k, m)."""
        batch = self.batch
        y, positive = batch.y[block], batch.positive[part.problems]
        weights = batch.weights[:, block][batch.fold[part.problems]]  # (c, m)
        if batch.factor is not None:
            weights *= torch.where(y == positive[:, None], batch.factor[part.problems][:, None], 1.0)
        for held, more in zip(sums, batch.loss(scores, y, weights, positive, residuals), strict=True):
            held.index_add_(0, part.chosen, more)

    def _squared(self, U: Tensor, problems: Tensor, squares: Tensor) -> Tensor:
        """(b, k, W) times the square (F, W, W) of each problem's shift and scale."""
        found, start = torch.empty_like(U), 0
        numbers, counts = self._which(self.batch.member[problems]).unique_consecutive(return_counts=True)
        threads = self.team.size if worth_sharing(2 * U.numel() * U.shape[-1]) else 1
        shares: list[list[tuple[int, slice]]] = [[] for _ in range(threads)]
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            for thread, share in enumerate(shares):  # problems of the same shift and scale are neighbours
                ends = (start + count * (thread + after) // threads for after in (0, 1))
                share.append((number, slice(*ends)))
            start += count

        def work(_: int, share: list[tuple[int, slice]]) -> None:
            for number, mine in share:
                found[mine] = product(U[mine].flatten(0, 1), squares[number]).view_as(found[mine])

        self.team.map(work, shares)
        return found

    def _which(self, members: Tensor) -> Tensor:
        affine = self.batch.design.affine
        assert affine is not None
        return affine.which[members]

    def _sums(self, b: int) -> Sums:
        like = self.batch.design.spectrum
        return Sums(like.new_zeros(b, dtype=torch.float64), *like.new_zeros(2, b, self.batch.k))

    def _point(self, U: Tensor, problems: Tensor, sums: Sums, gradient: Tensor, shrink: Tensor) -> Point:
        """`gradient` of the loss and `shrink`, that of |w|^2 / 2, both (b, k, W)."""
        shrink = shrink * self.batch.l2[problems][:, None, None]
        value = sums.value + 0.5 * (shrink * U[..., : self.width]).sum((1, 2)).double()
        gradient = gradient + shrink
        if self.batch.design.free:
            gradient = torch.cat([gradient, sums.slope[..., None]], -1)
        return Point(value, gradient, sums.curvature)


def picked(held: Tensor, which: Tensor) -> Tensor:
    """Those `which` (sorted) of the problems; no copy where that is all."""
    return held if len(which) == len(held) else held[which]


def _total(shares: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Sums and gradients of all shares, added up."""
    (sums, *gradients), *rest = shares
    for more_sums, *more in rest:
        for total, part in zip((*sums, *gradients), (*more_sums, *more), strict=True):
            total += part
    return sums, *gradients


def _put(held: Tensor, which: Tensor, values: Tensor) -> None:
    """What came of `_of`, changed, back in its place."""
    if len(which) < len(held):
        held[which] = values.view(len(which), *held.shape[1:])


def _pieces(weighs: Tensor, least: int) -> list[tuple[slice, Tensor]]:
    """Neighbouring rows, `least` or more, that matter to the same of the weights (F, n), and to which."""
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


Runs = list[tuple[slice, slice]]  # positions among some problems, and which of all they are: neighbours together


def _runs(problems: Tensor) -> Runs:
    numbers = problems.tolist()
    ends = [i for i in range(1, len(numbers) + 1) if i == len(numbers) or numbers[i] != numbers[i - 1] + 1]
    return [(slice(i, j), slice(numbers[i], numbers[j - 1] + 1)) for i, j in pairwise([0, *ends])]
