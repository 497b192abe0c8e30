"""Cosines of rows with their nearest neighbours, in blocks of bounded memory."""

from __future__ import annotations

import numpy as np

_BLOCK_BYTES = 64 * 2**20  # of similarities


def directions(rows: np.ndarray) -> np.ndarray:
    """Centred rows of length 1, (n, d) float32, in place of float32 rows; a row that equals the mean becomes 0.

    Features behind a ReLU are not negative, so that without centring all cosines would be close to 1.
    """
    rows = rows.reshape(len(rows), -1).astype(np.float32, copy=False)
    rows -= rows.mean(axis=0)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=rows, where=lengths > 0)


def largest_products(queries: np.ndarray, rows: np.ndarray, k: int, own: np.ndarray) -> np.ndarray:
    """The k largest dot products of each query with the rows, (m, k) float32, largest first.

    Parameters
    ----------
    queries : (m, d) float32
    rows : (n, d) float32
    k : int, less than n
    own : (m,) int64
        The row that each query is itself, which does not count; -1 for none.
    """
    products = np.empty((len(queries), k), np.float32)
    step = max(1, _BLOCK_BYTES // (4 * len(rows)))
    for start in range(0, len(queries), step):
        part = queries[start : start + step] @ rows.T  # (step, n)
        itself = own[start : start + step]
        part[np.flatnonzero(itself >= 0), itself[itself >= 0]] = -np.inf
        products[start : start + step] = -np.sort(-np.partition(part, part.shape[1] - k, axis=1)[:, -k:], axis=1)
    return products
