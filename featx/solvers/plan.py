"""What a group of problems keeps in memory, within a budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from featx.solvers.hardware import low_type
from featx.solvers.history import HISTORY_SIZE

_LOW_FROM = 2**22  # elements of X from which low precision saves time; below, it takes 3 to 5 times the CPU time
_STATE_VECTORS = 2 * HISTORY_SIZE + 30  # of one problem's coordinates, temporary ones included
_LOW_ITEMSIZE = 2


@dataclass(frozen=True)
class MemoryPlan:
    """What a group of problems keeps in memory.

    wide : problems are solved in the span of the rows, else in that of the columns
    resident : all rows are kept in their basis, else they are read again in each pass
    low : the type of the rows' copy for passes in low precision, or None for exact passes only
    together : how many problems are solved at once
    left_bytes : what the rows and the basis leave of the budget
    """

    wide: bool
    resident: bool
    low: torch.dtype | None
    together: int
    left_bytes: int

    def parts(self, count: int) -> list[np.ndarray]:
        """Positions of `count` problems in parts that are solved one after the other."""
        return np.array_split(np.arange(count), -(-count // self.together))


def plan_memory(
    X: np.ndarray,
    n: int,
    width: int,
    k: int,
    free: bool,
    n_affine: int,
    device: torch.device,
    budget_bytes: int,
) -> MemoryPlan:
    """Plan for problems on some rows of X.

    Parameters
    ----------
    X : (any, d)
        Only its size and type are used.
    n, width : int
        The rows that have weight, and the columns, with that of a penalised intercept.
    k : int
        Columns of scores of one problem.
    free : bool
        Whether the intercept is free.
    n_affine : int
        The number of shifts and scales that differ from the rows', 0 if none does.
    device : torch.device
    budget_bytes : int
    """
    wide = n < X.shape[1] and not n_affine
    low = low_type(device) if X.size >= _LOW_FROM else None
    D = (n if wide else width) + free
    resident_bytes, low_bytes = n * D * X.itemsize, n * D * _LOW_ITEMSIZE if low else 0
    resident = wide or resident_bytes + low_bytes <= budget_bytes / 2
    if not resident and low_bytes > budget_bytes / 2:
        low, low_bytes = None, 0
    square_bytes = 8 if wide else X.itemsize * (1 + n_affine) + (_LOW_ITEMSIZE * n_affine if low else 0)
    left_bytes = max(0, budget_bytes - low_bytes - resident * resident_bytes - D * D * square_bytes)
    state_bytes = _STATE_VECTORS * k * D * X.itemsize
    anchor_bytes = 2 * k * n * X.itemsize if low else 0
    if state_bytes + anchor_bytes > left_bytes:
        low, anchor_bytes = None, 0
    together = max(1, left_bytes // (state_bytes + anchor_bytes))
    return MemoryPlan(wide, resident, low, together, left_bytes)
