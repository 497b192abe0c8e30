"""Classes that are confused, with the images between them, and classes with too few images to judge."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from featx.audit.label_errors import LabelErrors

_MOST_PAIRS = 10
_MOST_BETWEEN = 24
_BETWEEN = np.log(3)  # neither class is three times as probable as the other
_LEAST_SHARE = 0.05


class ConfusedPair(NamedTuple):
    """Two classes that are taken for one another.

    first, second : class names
    n_first, n_second : images of the first class that are taken for the second, and of the second for the first
    share : of the images of the smaller class, those taken for the other one; the larger of both directions
    between : rows of images between both, the least decided first
    """

    first: str
    second: str
    n_first: int
    n_second: int
    share: float
    between: np.ndarray


def confused_pairs(judged: LabelErrors, given: np.ndarray) -> list[ConfusedPair]:
    """The pairs of classes of which more than 5 % are taken for the other, the most confused first.

    given : (n,) labels of the store's images
    """
    labels, scores = given[judged.rows], judged.log_probabilities
    two = np.argsort(-scores, axis=1)[:, :2]
    margin = np.take_along_axis(scores, two, axis=1)
    close = margin[:, 0] - margin[:, 1]
    codes, predicted = np.searchsorted(judged.classes, labels), scores.argmax(axis=1)
    counts = np.zeros((len(judged.classes), len(judged.classes)), int)
    np.add.at(counts, (codes, predicted), 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    pairs = []
    for a, b in np.argwhere(np.triu(np.maximum(shares, shares.T) > _LEAST_SHARE, 1)).tolist():
        if counts[a, b] + counts[b, a] < 2:
            continue
        both = np.flatnonzero((two.min(axis=1) == a) & (two.max(axis=1) == b) & (close < _BETWEEN))
        both = judged.rows[both[np.argsort(close[both], kind="stable")][:_MOST_BETWEEN]]
        first, second = map(str, judged.classes[[a, b]])
        share = float(max(shares[a, b], shares[b, a]))
        pairs.append(ConfusedPair(first, second, int(counts[a, b]), int(counts[b, a]), share, both))
    return sorted(pairs, key=lambda pair: -(pair.n_first + pair.n_second))[:_MOST_PAIRS]
