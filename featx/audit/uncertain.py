"""Rows about which a classifier is least sure, and which differ from each other, for when there are many labels."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

_SHORTLIST = 5  # times as many of the most uncertain rows as are chosen


def margins(probabilities: np.ndarray) -> np.ndarray:
    """(m,) the difference of the two highest probabilities, of (m, k); small where a classifier is unsure."""
    highest = np.partition(probabilities, -2, axis=1)
    return highest[:, -1] - highest[:, -2]


@threadpool_limits.wrap(limits=1)  # many small products, for which threads only wait
def uncertain_rows(X: np.ndarray, margin: np.ndarray, n: int, random_state: int) -> np.ndarray:
    """Choose n rows: of the 5 n of smallest margin, the one nearest to the centre of each of n clusters.

    Parameters
    ----------
    X : (m, d) float32
    margin : (m,)
    n : int, at most m
    random_state : int
        Seed of k-means.

    Returns
    -------
    (n,) rows, the smallest margin first
    """
    shortlist = np.argsort(margin, kind="stable")[: _SHORTLIST * n]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal rows: some centres are equal
        distances = KMeans(n, n_init=1, random_state=random_state).fit_transform(X[shortlist])  # (5n, n)
    chosen: list[int] = []
    for distance in distances.T:
        distance[chosen] = np.inf
        chosen.append(int(distance.argmin()))
    rows = shortlist[chosen]
    return rows[np.argsort(margin[rows], kind="stable")]
