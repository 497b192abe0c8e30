"""Rows of X for the solvers: the rows with weight, shifted and scaled, in blocks of rows or strips of columns."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from featx.solvers.problems import Intercept


class Columns:
    """Some rows of X with a common shift and scale and a constant column: blocks of ((x - shift) / scale, constant).

    kept : (n,) positions of the rows in X, or None for all
    like : an empty tensor of the rows' type and device
    constant : the value of the constant column, or None
    """

    def __init__(
        self,
        X: np.ndarray,
        kept: np.ndarray | None,
        shift: np.ndarray,
        scale: np.ndarray | None,
        intercept: Intercept,
        device: torch.device,
    ) -> None:
        self.X, self.kept = X, kept
        self.n, self.d = len(X) if kept is None else len(kept), X.shape[1]
        self.like = torch.empty(0, dtype=torch.float32 if X.dtype == np.float32 else torch.float64, device=device)
        self.shift, self.scale = shift, scale
        self.constant = None if isinstance(intercept, str) else float(intercept)
        self.width = self.d + (self.constant is not None)
        self.most = max(256, 2**21 // self.width)  # rows of a block

    def block(self, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """(m, width), written to `out` if there is one."""
        block = np.empty((stop - start, self.width), self.X.dtype) if out is None or out.is_cuda else out.numpy()
        rows = slice(start, stop) if self.kept is None else self.kept[start:stop]
        rounded = self.shift.astype(self.X.dtype)
        np.subtract(self.X[rows], rounded, out=block[:, : self.d])
        if (rest := (self.shift - rounded).astype(self.X.dtype)).any():  # what rounding took from the shift
            block[:, : self.d] -= rest
        if self.scale is not None:
            block[:, : self.d] /= self.scale.astype(self.X.dtype)
        if self.constant is not None:
            block[:, self.d] = self.constant
        if out is None:
            return torch.from_numpy(block).to(self.like.device)
        return out.copy_(torch.from_numpy(block)) if out.is_cuda else out

    def strip(self, columns: slice | np.ndarray) -> Tensor:
        """(n, c) float64, of all rows."""
        if self.kept is None:
            values = self.X[:, columns]
        else:
            values = self.X[self.kept, columns] if isinstance(columns, slice) else self.X[np.ix_(self.kept, columns)]
        strip = values - self.shift[columns].astype(np.float64)
        if self.scale is not None:
            strip /= self.scale[columns]
        return torch.from_numpy(strip).to(self.like.device)

    def strips(self) -> Iterator[slice]:
        columns = max(64, 2**22 // self.n)
        return (slice(start, min(start + columns, self.d)) for start in range(0, self.d, columns))

    def blocks(self) -> Iterator[slice]:
        return (slice(start, min(start + self.most, self.n)) for start in range(0, self.n, self.most))


def weighted_mean(X: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(d,) the mean row, computed relative to one row of positive weight, so that a constant column's is exact."""
    first = X[int((weights > 0).argmax())]
    total = np.zeros(X.shape[1])
    rows = max(256, 2**21 // X.shape[1])
    for start in range(0, len(X), rows):
        s = weights[start : start + rows]
        block = X[start : start + rows] - first
        total += s.astype(block.dtype) @ block if s.all() else s[s > 0] @ block[s > 0]
    return first + total / weights.sum()
