"""TypiClust: typical rows of clusters that no label covers yet, for when there are few labels."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

_MOST_CLUSTERS = 500
_SMALL_CLUSTER = 5  # fewer rows than this are outliers: their clusters come last
_MOST_NEIGHBORS = 20


@threadpool_limits.wrap(limits=1)  # many small products, for which threads only wait
def typical_rows(
    X: np.ndarray, labelled: np.ndarray, candidates: np.ndarray, n: int, random_state: int
) -> tuple[np.ndarray, np.ndarray]:
    """Choose n rows one by one: from the cluster with the fewest labelled or chosen rows, the largest one of several,
    its most typical candidate::

        typicality(x) = 1 / mean |x - z| over the nearest rows z of its cluster, at most 20

    The clusters are those of k-means, as many as there are labelled rows and rows to choose, at most 500.

    Parameters
    ----------
    X : (m, d) float32
    labelled : (m,) bool
    candidates : (m,) bool
        Rows that may be chosen, n or more; none is labelled.
    n : int
    random_state : int
        Seed of k-means.

    Returns
    -------
    rows : (n,) in the order of choice
    sizes : (n,) number of rows in the cluster of each

    References
    ----------
    G. Hacohen, A. Dekel and D. Weinshall, Active learning on a budget: opposite strategies suit high and low budgets,
    ICML 2022, section 4.
    """
    k = min(int(labelled.sum()) + n, _MOST_CLUSTERS, len(X))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal rows: there are fewer clusters
        clusters = KMeans(k, n_init=1, random_state=random_state).fit_predict(X)
    size = np.bincount(clusters, minlength=k)
    covered = np.bincount(clusters[labelled], minlength=k)
    left = np.bincount(clusters[candidates], minlength=k)
    ranked: dict[int, list[int]] = {}
    rows: list[int] = []
    while len(rows) < n:
        c = min(np.flatnonzero(left).tolist(), key=lambda c: (size[c] < _SMALL_CLUSTER, covered[c], -size[c]))
        if c not in ranked:
            ranked[c] = _most_typical_first(X, np.flatnonzero(clusters == c), candidates)
        rows.append(ranked[c].pop(0))
        covered[c] += 1
        left[c] -= 1
    return np.array(rows), size[clusters[rows]]


def _most_typical_first(X: np.ndarray, members: np.ndarray, candidates: np.ndarray) -> list[int]:
    """The candidates among the rows of a cluster, the most typical first."""
    if n_neighbors := min(_MOST_NEIGHBORS, len(members) - 1):
        distances, _ = NearestNeighbors(n_neighbors=n_neighbors, algorithm="brute").fit(X[members]).kneighbors()
        members = members[np.argsort(distances.mean(axis=1), kind="stable")]
    return members[candidates[members]].tolist()
