"""Finds the nearest rows of a layer, exactly. Parts of the layer come in, so that memory is bounded; arrays go out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

METRICS = ("cosine", "euclidean")
_CELLS = 2**22  # distances that are computed at once


class Neighbors(NamedTuple):
    """The k nearest images of m queries, the nearest first.

    Attributes
    ----------
    distances : (m, k) float64
        1 - cos for "cosine".
    rows : (m, k) int64
        Rows of the store; `store.ids[rows]` are the images' ids.
    """

    distances: np.ndarray
    rows: np.ndarray


def nearest_rows(
    queries: np.ndarray, own: np.ndarray, parts: Iterable[tuple[int, np.ndarray]], k: int, metric: str
) -> Neighbors:
    """The nearest rows of each query; of equal distances the first row comes first.

    Parameters
    ----------
    queries : (m, d) float64, finite
    own : (m,) int64
        The row that each query is itself, which is no neighbour of it; -1 for none.
    parts : of (position of the first row, (p, d) float64)
        Rows that contain NaN or inf are no neighbours.
    k : int
    metric : one of METRICS

    Returns
    -------
    Neighbors
        With fewer than k finite distances where there are fewer rows; the others are inf, and their rows mean nothing.
    """
    best = Neighbors(np.full((len(queries), k), np.inf), np.full((len(queries), k), -1))
    for start, part in parts:
        step = max(1, _CELLS // len(part))
        for first in range(0, len(queries), step):
            some = slice(first, first + step)
            new = _distances(queries[some], part, metric)  # (r, p)
            numbers = np.broadcast_to(np.arange(start, start + len(part)), new.shape)
            new[numbers == own[some, None]] = np.inf
            distances = np.concatenate([best.distances[some], new], axis=1)
            rows = np.concatenate([best.rows[some], numbers], axis=1)
            order = np.argsort(distances, axis=1, kind="stable")[:, :k]
            best.distances[some] = np.take_along_axis(distances, order, axis=1)
            best.rows[some] = np.take_along_axis(rows, order, axis=1)
    return best


def _distances(queries: np.ndarray, rows: np.ndarray, metric: str) -> np.ndarray:
    """(m, p) distances; inf to rows that contain NaN or inf. A row of zeros is at right angles to all."""
    with np.errstate(invalid="ignore", over="ignore"):
        if metric == "cosine":
            lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(rows, axis=1)
            cosines = np.divide(queries @ rows.T, lengths, out=np.zeros_like(lengths), where=lengths != 0)
            distances = np.maximum(1 - cosines, 0)
        else:
            squares = (queries**2).sum(axis=1)[:, None] + (rows**2).sum(axis=1) - 2 * queries @ rows.T
            distances = np.sqrt(np.maximum(squares, 0))
        distances[:, ~np.isfinite(rows).all(axis=1)] = np.inf
    return distances
