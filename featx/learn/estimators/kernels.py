"""Inner products, squared distances and kernels between rows, in blocks.

`libsvm` fits on these kernels, `kernel_machine` predicts with them, and `neighbors` finds the smallest distances.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featx.learn.estimators.batched import Fold
from featx.learn.lazy_rows import LazyRows
from featx.solvers import full_precision, product, threads_for

BLOCK = 1 << 22  # numbers in a block that is read once
_CHUNK = 1 << 17  # numbers in the part of a block that several elementwise operations process in turn
_SAMPLE = 512  # least number of rows from which the centre is computed


@dataclass(frozen=True)
class Kernel:
    """A kernel of two rows x and a, with libsvm's names and parameters.

    linear  x.a            poly  (gamma x.a + coef0)^degree
    sigmoid tanh(gamma x.a + coef0)    rbf  exp(-gamma |x - a|^2)
    """

    name: str
    gamma: float = 0.0
    coef0: float = 0.0
    degree: int = 0

    @classmethod
    def of_estimator(cls, estimator: Any) -> Kernel:
        """The kernel of an SVC or SVR, without parameters that it does not use, so that equal kernels compare equal."""
        if estimator.kernel == "linear":
            return cls("linear")
        if estimator.kernel == "rbf":
            return cls("rbf", float(estimator._gamma))
        degree = int(estimator.degree) if estimator.kernel == "poly" else 0
        return cls(estimator.kernel, float(estimator._gamma), float(estimator.coef0), degree)

    @property
    def squared(self) -> bool:
        """Whether the kernel is a function of squared distances; otherwise of inner products."""
        return self.name == "rbf"

    def apply_(self, values: Any) -> Any:
        """The kernel, from distances or products in a torch or numpy array, which it overwrites."""
        torch_or_numpy = np if isinstance(values, np.ndarray) else torch
        if self.name == "rbf":
            values *= -self.gamma
            return torch_or_numpy.exp(values, out=values)
        if self.name == "linear":
            return values
        values *= self.gamma
        values += self.coef0
        if self.name == "sigmoid":
            return torch_or_numpy.tanh(values, out=values)
        values **= self.degree
        return values


class Rows:
    """(n, d) rows whose inner products or squared distances are computed.

    Distances do not change when all rows are shifted alike, and lose fewer digits if the rows are near 0. The centre is
    a median, so that a few far rows, which may be held out, do not cost the others digits.
    """

    def __init__(self, Z: Tensor, squared: bool) -> None:
        """Z : (n, d); overwritten if `squared`."""
        self.squared = squared
        self.centre = Z[:: max(1, len(Z) // _SAMPLE)].median(0).values if squared and len(Z) else None
        self.Z = Z if self.centre is None else Z.sub_(self.centre)
        self.squares = _squares(self.Z) if squared else None

    def between(self, X: np.ndarray) -> Iterator[tuple[slice, Tensor]]:
        """(rows of X, block) of the distances or products of other rows, (m, d) -> (m, n)."""
        for part in blocks(len(X), len(self.Z)):
            Y = torch.from_numpy(np.array(X[part])).to(self.Z)  # a copy: torch warns about arrays that are read-only
            yield part, self.of(Y)

    def of(self, Y: Tensor) -> Tensor:
        """Distances or products of other rows; overwrites Y if `squared`."""
        if self.centre is not None:
            Y -= self.centre
        return self._between(Y, _squares(Y) if self.squared else None, slice(None))

    def among(self, rows: slice, columns: slice) -> Tensor:
        """Distances or products of these rows with each other; a row has distance 0 from itself."""
        block = self._between(self.Z[rows], None if self.squares is None else self.squares[rows], columns)
        start, stop = max(rows.start, columns.start), min(rows.stop, columns.stop)
        if self.squared and start < stop:
            common = slice(start - columns.start, stop - columns.start)
            block[start - rows.start : stop - rows.start, common].diagonal().zero_()
        return block

    def _between(self, Y: Tensor, squares: Tensor | None, columns: slice) -> Tensor:
        Z = self.Z[columns]
        with full_precision(), threads_for(2 * len(Y) * Z.numel()):
            block = product(Y, Z)  # (m, n)
        if squares is None or self.squares is None:
            return block
        with threads_for(0):
            for part, own in zip(block.split(_chunk(block)), squares.split(_chunk(block)), strict=True):
                part.mul_(-2).add_(self.squares[columns]).add_(own[:, None]).clamp_(min=0)
        return block


class Gram:
    """Distances or products of rows with each other: kept as (n, n), or computed at each use."""

    def __init__(self, rows: Rows, kept: bool) -> None:
        self.rows = rows
        self.kept: Tensor | None = None
        if kept:
            n = len(rows.Z)
            self.kept = rows.Z.new_empty(n, n)
            for start in range(0, n, 1024):
                stop = min(n, start + 1024)
                block = rows.among(slice(start, stop), slice(start, n))
                self.kept[start:stop, start:] = block
                self.kept[stop:, start:stop] = block[:, stop - start :].T

    def among(self, rows: slice, columns: slice) -> Tensor:
        """A block; must not be written to."""
        return self.rows.among(rows, columns) if self.kept is None else self.kept[rows, columns]

    def of(self, positions: np.ndarray) -> Iterator[tuple[slice, Tensor]]:
        """(part of `positions`, block of these rows and all columns); the blocks may be written to."""
        for part in blocks(len(positions), len(self.rows.Z)):
            at = torch.from_numpy(positions[part]).to(self.rows.Z.device)
            if self.kept is not None:
                yield part, self.kept.index_select(0, at)
            else:
                Y = self.rows.Z.index_select(0, at)
                squares = None if self.rows.squares is None else self.rows.squares[at]
                block = self.rows._between(Y, squares, slice(None))
                if squares is not None:
                    block[torch.arange(len(at), device=at.device), at] = 0
                yield part, block


def fill(K: np.ndarray, kernel: Kernel, parts: list[list[Tensor]], keep: list[np.ndarray | None]) -> None:
    """Compute the kernel matrix of some rows into K.

    K : (p, p) float64, p the number of rows that are kept
    parts : blocks of distances or products; parts[i][j] has the i-th rows and the j-th columns
    keep : positions of the rows, and columns, that are kept of each part; None for all
    """
    top = 0
    for row, rows in zip(parts, keep, strict=True):
        height, left = len(row[0]) if rows is None else len(rows), 0
        for part, columns in zip(row, keep, strict=True):
            if part.device.type != "cpu":
                part = kernel.apply_(part.clone()).cpu()
            width = part.shape[1] if columns is None else len(columns)
            # numpy: torch would use threads that are solving the next problem
            step, block = max(1, _CHUNK // max(1, width)), part.numpy()
            for start in range(0, height, step):
                at = slice(start, min(height, start + step))
                chunk = np.array(block[at]) if rows is None else block[rows[at]]
                if columns is not None:
                    chunk = chunk.take(columns, axis=1)
                chunk = chunk if row[0].device.type != "cpu" else kernel.apply_(chunk)
                K[top + at.start : top + at.stop, left : left + width] = chunk
            left += width
        top += height


def rows_of(X: Any, positions: np.ndarray, fold: Fold) -> Any:
    """A copy of rows of X, with the fold's shift and scale, in X's type; of LazyRows, LazyRows."""
    if isinstance(X, LazyRows):
        return X.take(positions).map(lambda rows: _scaled(rows.copy(), fold))
    return _scaled(X[positions], fold)


def _scaled(rows: np.ndarray, fold: Fold) -> np.ndarray:
    """The rows, shifted and scaled in place."""
    if fold.shift is not None:
        rows -= fold.shift  # in place, so rounded as StandardScaler rounds
    if fold.scale is not None:
        rows /= fold.scale
    return rows


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows that give blocks of about `BLOCK` numbers."""
    step = max(16, BLOCK // max(1, columns))
    return (slice(start, min(rows, start + step)) for start in range(0, rows, step))


def _chunk(block: Tensor) -> int:
    return max(1, _CHUNK // max(1, block.shape[1]))


def _squares(Z: Tensor) -> Tensor:
    """(n, d) -> (n,) squared lengths."""
    return torch.linalg.vecdot(Z, Z)


def unit(A: Tensor) -> Tensor:
    """Rows scaled to length 1; rows of 0 stay."""
    lengths = A.norm(dim=1, keepdim=True)
    return A / lengths.where(lengths > 0, 1)


class Moments:
    """Sums over each row of x - c and (x - c)^2, from which the variance of all numbers in some rows follows."""

    def __init__(self, Z: Tensor) -> None:
        self.d = Z.shape[1]
        origin, sums, squares = Z[0, 0], [], []
        for part in Z.split(256):
            moved = part - origin
            sums.append(moved.sum(1))
            squares.append(torch.linalg.vecdot(moved, moved))
        self.sums, self.squares = torch.cat(sums).numpy(), torch.cat(squares).numpy()

    def variance(self, rows: np.ndarray) -> float:
        numbers = len(rows) * self.d
        return float(max(0.0, self.squares[rows].sum() / numbers - (self.sums[rows].sum() / numbers) ** 2))
