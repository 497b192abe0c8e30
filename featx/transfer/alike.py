"""Similarity of layers: linear centred kernel alignment (CKA), unbiased, over minibatches of the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featx.errors import FeatxError, Parameter
from featx.learn.features import StoredFeatures
from featx.learn.selection import Layers, Stores
from featx.store import FeatureStore

_LEAST_ROWS = 4  # of the unbiased estimator


@dataclass(frozen=True, eq=False)
class Similarity:
    """Linear CKA between layers.

    Attributes
    ----------
    names : m pairs (backbone, layer)
    values : (m, m) float
        1 on the diagonal; about 0 for unrelated features, slightly below 0 by chance.
    n : int
        Number of images.
    """

    names: tuple[tuple[str, str], ...]
    values: np.ndarray
    n: int


def similarity(stores: Stores, layers: Layers = None, *, batch_rows: int = 256, random_state: int = 0) -> Similarity:
    r"""Linear CKA [1]_ between all layers of stores of the same images::

        CKA(K, L) = sum H(K, L) / sqrt(sum H(K, K)  sum H(L, L))

    over minibatches [2]_, with K = X X^T of one layer, L of another, diagonals set to 0, and the unbiased
    estimator [3]_::

        H(K, L) = [tr(K L) + 1'K1 1'L1 / ((b - 1)(b - 2)) - 2 / (b - 2) 1'K L1] / (b (b - 3)).

    It is invariant to rotation and scaling of a layer; its expectation does not depend on the size of the minibatches.

    Parameters
    ----------
    stores : FeatureStore, or several of the same images
    layers : as in `select_model`
    batch_rows : int
        Images per minibatch, 4 or more. A last minibatch with fewer images is left out, unless it is the only one.
    random_state : int
        Seed of the order of the images, which would be sorted by class otherwise.

    Returns
    -------
    Similarity

    Raises
    ------
    FeatxError
        There are fewer than four images, or the stores hold different images.

    References
    ----------
    .. [1] S. Kornblith et al., Similarity of neural network representations revisited, ICML 2019.
    .. [2] T. Nguyen, M. Raghu, S. Kornblith, Do wide and deep networks learn the same things?, ICLR 2021, section 2.
    .. [3] L. Song et al., Feature selection via dependence maximization, JMLR 13, 2012, equation 4.
    """
    stores = [stores] if isinstance(stores, FeatureStore) else list(stores)
    n = len(stores[0])
    if not isinstance(batch_rows, int | np.integer) or batch_rows < _LEAST_ROWS:
        raise FeatxError(Parameter("batch_rows"), f" is {_LEAST_ROWS} images or more; got {batch_rows!r}")
    if n < _LEAST_ROWS:
        raise FeatxError(f"CKA needs {_LEAST_ROWS} images or more; {stores[0].path.name} has {n}")
    features = []
    for store in stores:
        store.rows(stores[0].X)  # raises if the images are others
        for layer in [layers] if isinstance(layers, str) else layers or store.layers:
            features.append(StoredFeatures(store, layer if isinstance(layer, str) else list(layer)).fit())
    order = np.random.default_rng(random_state).permutation(n)
    batches = [order[start : start + batch_rows] for start in range(0, n, batch_rows)]
    if len(batches) > 1 and len(batches[-1]) < batch_rows:
        batches.pop()
    total = np.zeros((len(features), len(features)))
    for batch in batches:
        keys = stores[0].X[np.sort(batch)]
        total += _alignment([np.asarray(each.transform(keys)) for each in features])
    norms = np.sqrt(np.maximum(total.diagonal(), 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        values = total / np.outer(norms, norms)  # NaN for a layer that is constant
    names = tuple((each.recipe_.backbone, each.layer_) for each in features)
    return Similarity(names, values, n)


def _alignment(rows: Sequence[np.ndarray]) -> np.ndarray:
    """(m, m) unbiased H of the layers' rows, (b, d) each, up to a common factor."""
    b = len(rows[0])
    kernels = np.empty((len(rows), b, b))
    for kernel, X in zip(kernels, rows, strict=True):
        X = X - X.mean(axis=0)  # H does not change by it, its rounding does
        kernel[:] = X @ X.T
        np.fill_diagonal(kernel, 0)
    sums = kernels.sum(axis=2)  # (m, b)
    flat = kernels.reshape(len(rows), b * b)
    totals = sums.sum(axis=1)
    return flat @ flat.T + np.outer(totals, totals) / ((b - 1) * (b - 2)) - 2 / (b - 2) * sums @ sums.T
