"""Images that are unlike all others: by their features, and by the statistics of their pixels and files."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from featx.audit.neighbours import distances_to_nearest
from featx.store import FeatureStore

_NEIGHBOURS = 10
LEAST_IMAGES = 2 * _NEIGHBOURS + 1  # of which features are compared
_COMPONENTS = 50
_MOST_FITTED = 20_000  # rows among which neighbours are, and of which components and the covariance are estimated
_FAR = 5.0  # robust standard deviations
_BLANK = 0.02  # contrast
_EXPOSED = 0.9  # share of dark, or bright, pixels
_LEAST_PIXELS = 16  # a side
_FACTOR = 4.0  # by which a size or an aspect ratio is odd
_BLUR_FACTOR = 3.0
_MAD = 1.4826  # standard deviations of a normal distribution in one median absolute deviation


class Outlier(NamedTuple):
    """An image that is unlike all others.

    row : in the store
    kind : "features", "blank", "tiny", "dark", "bright", "blurred", "aspect" or "size"
    score : robust standard deviations from the median, or another number that grows with the distance
    reason : in words
    """

    row: int
    kind: str
    score: float
    reason: str


def outliers(store: FeatureStore, layer: str, y: np.ndarray | None, rows: np.ndarray) -> list[Outlier]:
    """The outliers of a store, the farthest of each kind first.

    Parameters
    ----------
    store : FeatureStore
    layer : str
    y : (n,) class names of the store's images, or None
        With them, features are far from every class.
    rows : (m,) rows whose features are finite

    Notes
    -----
    Features of an image are far if two distances are, by their robust z-score in the logarithm: the mean Euclidean
    distance to the 10 nearest images (among 20,000 drawn at random if there are more), and the Mahalanobis distance to
    the nearest class mean, with one shrunk covariance of 50 principal components (Ledoit and Wolf 2004). Images that
    are far from their neighbours are left out when means and covariance are estimated. Cosines do not do: around the
    mean of images that are alike, every image has a direction of its own.
    """
    found = _by_statistics(store) if store.statistics else []
    return [*_by_features(store, layer, y, rows), *found]


def robust_z(values: np.ndarray) -> np.ndarray:
    """(x - median) / (1.4826 MAD); 0 where the MAD is 0."""
    distance = values - np.median(values)
    spread = _MAD * np.median(np.abs(distance))
    return distance / spread if spread > 0 else np.zeros_like(distance)


def _by_features(store: FeatureStore, layer: str, y: np.ndarray | None, rows: np.ndarray) -> list[Outlier]:
    if len(rows) < LEAST_IMAGES:
        return []
    features = store.take(rows, layer).reshape(len(rows), -1).astype(np.float32, copy=False)
    features -= features.mean(axis=0)
    if np.allclose(features, 0):
        return []
    among = np.sort(np.random.default_rng(0).permutation(len(features))[:_MOST_FITTED])
    distances = distances_to_nearest(features, _NEIGHBOURS, among).mean(axis=1)
    by_neighbours = robust_z(_logarithm(distances))
    is_typical = by_neighbours <= _FAR
    by_class = robust_z(_logarithm(_mahalanobis(features, None if y is None else y[rows], is_typical)))
    score = np.minimum(by_neighbours, by_class)
    far = np.flatnonzero(score > _FAR)
    far = far[np.argsort(-score[far], kind="stable")]
    whom = "all others" if y is None else "every class"
    return [
        Outlier(int(rows[i]), "features", float(score[i]), f"its features are far from {whom}") for i in far.tolist()
    ]


def _logarithm(distances: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(distances, 1e-6 * np.median(distances) + 1e-30))


def _mahalanobis(features: np.ndarray, labels: np.ndarray | None, is_typical: np.ndarray) -> np.ndarray:
    """(m,) distance to the nearest class mean; means and covariance are those of typical rows."""
    sample = np.random.default_rng(0).permutation(np.flatnonzero(is_typical))[:_MOST_FITTED]
    with threadpool_limits(1):
        pca = PCA(min(_COMPONENTS, len(sample) - 1, features.shape[1]), random_state=0).fit(features[sample])
        parts = pca.transform(features)
    codes = np.zeros(len(features), int) if labels is None else np.unique(labels, return_inverse=True)[1]
    present = np.unique(codes[is_typical])
    means = np.stack([parts[is_typical & (codes == c)].mean(axis=0) for c in present])
    of_sample = parts[sample] - means[np.searchsorted(present, codes[sample])]
    shrunk = LedoitWolf(assume_centered=True).fit(of_sample)
    squares = np.full(len(parts), np.inf)
    for mean in means:
        squares = np.minimum(squares, np.einsum("ij,ij->i", (parts - mean) @ shrunk.precision_, parts - mean))
    return np.sqrt(np.maximum(squares, 0))


def _by_statistics(store: FeatureStore) -> list[Outlier]:
    s = store.statistics
    height, width = s["height"].astype(float), s["width"].astype(float)
    found: list[Outlier] = []

    def add(kind: str, is_odd: np.ndarray, score: np.ndarray, reason: str) -> None:
        """reason : a format of the row's values."""
        odd = np.flatnonzero(is_odd)
        for row in odd[np.argsort(-score[odd], kind="stable")].tolist():
            values = {name: column[row] for name, column in s.items()}
            found.append(Outlier(row, kind, float(score[row]), reason.format(**values)))

    blank = s["contrast"] < _BLANK
    add("blank", blank, -s["contrast"], "blank: its grey values hardly differ (standard deviation {contrast:.3f} of 1)")
    add("dark", ~blank & (s["dark"] > _EXPOSED), s["dark"], "underexposed: {dark:.0%} of its pixels are almost black")
    add("bright", ~blank & (s["bright"] > _EXPOSED), s["bright"], "overexposed: {bright:.0%} are almost white")
    sharpness = np.log(np.maximum(s["sharpness"], 1e-6))
    blur = -robust_z(sharpness)
    much = sharpness < np.median(sharpness) - np.log(_BLUR_FACTOR)
    add("blurred", ~blank & much & (blur > _FAR), blur, "blurred: little changes from pixel to pixel ({sharpness:.3f})")
    aspect = np.log(width / height)
    from_median = np.abs(aspect - np.median(aspect))
    odd = (from_median > np.log(_FACTOR)) & ((np.abs(robust_z(aspect)) > _FAR) | (np.ptp(aspect) > 0) & _rare(aspect))
    typical = f"{np.exp(np.median(aspect)):.2f}"
    add("aspect", odd, from_median, "odd shape: {width} x {height} pixels; the typical ratio is " + typical)
    pixels = np.log(width * height)
    smaller = np.median(pixels) - pixels
    tiny = (np.minimum(width, height) < _LEAST_PIXELS) | (smaller > 2 * np.log(_FACTOR))
    shape = f"{int(np.median(width))} x {int(np.median(height))}"
    is_rare = _rare(pixels) | (np.abs(robust_z(pixels)) > _FAR)
    add("tiny", tiny & is_rare, smaller, "tiny: {width} x {height} pixels; typical are " + shape)
    large = (smaller < -2 * np.log(_FACTOR)) & is_rare
    add("size", large, -smaller, "large: {width} x {height} pixels; typical are " + shape)
    return found


def _rare(values: np.ndarray) -> np.ndarray:
    """(n,) whether most images have another value, and that is one value for most."""
    distinct, codes, counts = np.unique(np.round(values, 6), return_inverse=True, return_counts=True)
    return counts[codes] < 0.05 * len(values) if counts.max() > 0.5 * len(values) else np.zeros(len(values), bool)
