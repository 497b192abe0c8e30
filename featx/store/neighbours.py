"""Finds the nearest rows of a layer, exactly. Parts of the layer come in, so that memory is bounded; arrays go out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

METRICS = ("cosine", "euclidean")


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
        With fewer than k finite distances where there are fewer rows; the others are inf.
    """
    distances, rows = np.empty((len(queries), 0)), np.empty((len(queries), 0), np.int64)
    for start, part in parts:
        new = _distances(queries, part, metric)  # (m, p)
        numbers = np.broadcast_to(np.arange(start, start + len(part)), new.shape)
        new[numbers == own[:, None]] = np.inf
        distances, rows = np.concatenate([distances, new], axis=1), np.concatenate([rows, numbers], axis=1)
        order = np.argsort(distances, axis=1, kind="stable")[:, :k]
        distances, rows = np.take_along_axis(distances, order, axis=1), np.take_along_axis(rows, order, axis=1)
    return Neighbors(distances, rows)


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
