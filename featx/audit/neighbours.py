"""The distances of each row to the nearest others, in blocks of bounded memory."""

from __future__ import annotations

import numpy as np

_BLOCK_BYTES = 64 * 2**20  # of products


def distances_to_nearest(rows: np.ndarray, k: int, among: np.ndarray) -> np.ndarray:
    """(n, k) Euclidean distances of each of (n, d) float32 rows to the k nearest others among some, in no order.

    Rows should be centred: |a - b|^2 = |a|^2 + |b|^2 - 2 a.b loses digits where the mean is large.

    among : (m,) positions of the rows that count, more than k
    """
    squares = np.einsum("ij,ij->i", rows, rows)
    others = rows[among]
    own = np.full(len(rows), -1)  # the place of each row among the others
    own[among] = np.arange(len(among))
    distances = np.empty((len(rows), k), np.float32)
    step = max(1, _BLOCK_BYTES // (4 * len(others)))
    for start in range(0, len(rows), step):
        part = squares[among] - 2 * (rows[start : start + step] @ others.T)  # (step, m)
        places = own[start : start + step]
        part[np.flatnonzero(places >= 0), places[places >= 0]] = np.inf
        least = np.partition(part, k - 1, axis=1)[:, :k] + squares[start : start + step, None]
        distances[start : start + step] = np.sqrt(np.maximum(least, 0))
    return distances
