"""The distances of each row to the nearest others, exact, in blocks of bounded memory."""

from __future__ import annotations

import numpy as np

_BLOCK_BYTES = 64 * 2**20  # of products


def distances_to_nearest(rows: np.ndarray, k: int) -> np.ndarray:
    """(n, k) Euclidean distances of each of (n, d) float32 rows to the k nearest others, in no order.

    Rows should be centred: |a - b|^2 = |a|^2 + |b|^2 - 2 a.b loses digits where the mean is large.
    """
    squares = np.einsum("ij,ij->i", rows, rows)
    distances = np.empty((len(rows), k), np.float32)
    step = max(1, _BLOCK_BYTES // (4 * len(rows)))
    for start in range(0, len(rows), step):
        part = squares - 2 * (rows[start : start + step] @ rows.T)  # (step, n)
        part[np.arange(len(part)), start + np.arange(len(part))] = np.inf
        least = np.partition(part, k - 1, axis=1)[:, :k] + squares[start : start + step, None]
        distances[start : start + step] = np.sqrt(np.maximum(least, 0))
    return distances
