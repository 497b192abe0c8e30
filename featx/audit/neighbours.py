"""The nearest rows of each row, exact, in blocks of bounded memory."""

from __future__ import annotations

import numpy as np

_BLOCK_BYTES = 64 * 2**20  # of similarities


def directions(rows: np.ndarray) -> np.ndarray:
    """Centred rows of length 1, (n, d) float32; a row that equals the mean becomes 0.

    Features behind a ReLU are not negative, so that without centring all cosines would be close to 1.
    """
    rows = rows.reshape(len(rows), -1).astype(np.float32)
    rows -= rows.mean(axis=0)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=rows, where=lengths > 0)


def nearest(queries: np.ndarray, rows: np.ndarray, k: int, *, same: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The k rows with the largest dot products, largest first.

    Parameters
    ----------
    queries : (m, d) float32
    rows : (n, d) float32
    k : int, at most n, or n - 1 if `same`
    same : whether queries are the rows, none of which is its own neighbour

    Returns
    -------
    indices : (m, k) int64
    products : (m, k) float32
    """
    indices, products = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    step = max(1, _BLOCK_BYTES // (4 * len(rows)))
    for start in range(0, len(queries), step):
        part = queries[start : start + step] @ rows.T  # (step, n)
        if same:
            part[np.arange(len(part)), start + np.arange(len(part))] = -np.inf
        found = np.argpartition(part, part.shape[1] - k, axis=1)[:, part.shape[1] - k :]
        values = np.take_along_axis(part, found, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        indices[start : start + step] = np.take_along_axis(found, order, axis=1)
        products[start : start + step] = np.take_along_axis(values, order, axis=1)
    return indices, products
