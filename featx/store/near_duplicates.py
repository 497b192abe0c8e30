"""Images that are copies of one another: the same file, or the same picture saved, resized, mirrored or cropped.

A pair of copies has the same content, or perceptual hashes (see FORMAT.md) that are close enough, or hashes that are
less close and features that are close. Compression and brightness hardly change a hash, but a crop does. Mirroring and
crops hardly change features, but compressing a texture does.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np

from featx.errors import StoreError
from featx.store.reader import FeatureStore

MOST_BITS = 8  # of 64, by which the hashes of two copies differ if nothing was cropped
_MOST_CROPPED_BITS = 16
_LEAST_SIMILARITY = 0.8  # of the features of a cropped copy
_TAIL = range(12, 21)  # distances from which the number of pairs alike by chance is extrapolated
_BY_CHANCE = 0.01  # pairs per image that may be taken for copies by their hashes alone
_BY_CHANCE_WITH_FEATURES = 2e-4
_SAMPLE = 1000
_MOST_SAMPLED = 5000
_LEAST_CONTRAST = 0.02  # a picture with less is blank, and its hash is noise
_BLOCK = 2**22
_MOST_KEPT = 2**22  # pairs whose features are to be compared; if there are more, hashes are compared twice
_MOST_COPIES = 20  # of one image, each with an image before it, that are listed
MOST_NUMBERS = 2**16  # of a row whose features are compared


class Copies(NamedTuple):
    """Pairs of copies.

    An image with very many copies is in some pairs only, by which the same images are connected. Pairs of the same
    content are first, then those whose hashes differ least.

    pairs : (p, 2) rows: of one store, the first smaller than the second; or of the first and of the second store
    kinds : (p,) "exact", "hash" or "features"
    bits : (p,) by how many bits of 64 the hashes differ, or those of one image and the mirror image of the other
    are_mirrored : (p,) whether the mirror image is closer
    similarity : (p,) cosine of the centred features, NaN where they were not compared or contain NaN or inf
    most_bits : hashes that differ by as many bits or fewer are copies; -1 if hashes alone cannot tell copies
    """

    pairs: np.ndarray
    kinds: np.ndarray
    bits: np.ndarray
    are_mirrored: np.ndarray
    similarity: np.ndarray
    most_bits: int


def near_duplicates(store: FeatureStore, other: FeatureStore | None = None, layer: str | None = None) -> Copies:
    """The copies in a store, or of a store's images in another one.

    Parameters
    ----------
    store : FeatureStore
    other : FeatureStore, optional
    layer : str, optional
        A layer of both whose features are compared; none, or one of over 65,536 numbers, finds no crops.

    Notes
    -----
    Stores without statistics of images give exact copies only. How many pairs are alike by chance is estimated from the
    pairs of the store whose hashes differ by 12 to 20 bits: the logarithm of their number is extrapolated linearly. On
    silhouettes, for example, hashes of different images may be equal, and then hashes alone cannot tell copies.

    Time grows with the square of the number of images, memory with their number.
    """
    exact = _exact(store, other)
    features = None if layer is None else _Features(store, other, layer)
    if not store.statistics or other is not None and not other.statistics:
        close, most_bits = _Pairs(0).all(), -1
    else:
        most_bits = _most_bits(_distances(store), len(store))
        close = _close_pairs(store, other, features, most_bits)
    width = len(store) if other is None else len(other)
    is_new = ~np.isin(close.first * width + close.second, exact[:, 0] * width + exact[:, 1])
    order = np.flatnonzero(is_new)[np.argsort(close.bits[is_new], kind="stable")]
    first, second, bits, mirrored = (values[order] for values in close)
    similarity = np.full(len(bits), np.nan) if features is None else features.similarity(first, second)
    n_exact = len(exact)
    return Copies(
        np.concatenate([exact, np.stack([first, second], axis=1)]),
        np.concatenate([np.full(n_exact, "exact"), np.where(bits <= most_bits, "hash", "features")]).astype("<U8"),
        np.concatenate([np.zeros(n_exact, np.int64), bits]),
        np.concatenate([np.zeros(n_exact, bool), mirrored]),
        np.concatenate([np.ones(n_exact), similarity]),
        most_bits,
    )


def _exact(store: FeatureStore, other: FeatureStore | None) -> np.ndarray:
    """(p, 2) rows of the same content; in one store, each image with the first that is the same."""
    if other is None:
        pairs = [(int(group[0]), int(row)) for group in store.duplicates for row in group[1:]]
    else:
        row_of: dict[bytes, int] = {}
        for row, digest in enumerate(map(bytes, store.digests)):
            row_of.setdefault(digest, row)
        pairs = [(row_of[d], row) for row, d in enumerate(map(bytes, other.digests)) if d in row_of]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _hashes(store: FeatureStore) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the images that are not blank, their hashes and those of their mirror images."""
    statistics = store.statistics
    rows = np.flatnonzero(statistics["contrast"] >= _LEAST_CONTRAST)
    return rows, statistics["hash"][rows], statistics["mirror_hash"][rows]


class _Close(NamedTuple):
    """Pairs of images whose hashes are close: (p,) rows of the first and the second, int64, bits, and mirrored."""

    first: np.ndarray
    second: np.ndarray
    bits: np.ndarray
    are_mirrored: np.ndarray

    def at(self, which: np.ndarray) -> _Close:
        return _Close(*(values[which] for values in self))


class _Pairs:
    """Collects pairs from blocks of the matrix of all pairs, so that memory grows with the number of images.

    Of each image, its pairs with the first 20 images before it are kept, and those that connect images which the kept
    pairs do not connect.

    Parameters
    ----------
    n : number of nodes: images, of both stores
    """

    def __init__(self, n: int) -> None:
        empty = np.empty(0, np.int64)
        self._kept = [_Close(empty, empty, empty, empty.astype(bool))]
        self._counts, self._roots, self._n_joined = np.zeros(n, np.int64), np.arange(n), 0

    def add(self, block: _Block, chosen: np.ndarray, offset: int = 0) -> None:
        """Add the pairs of a block that a mask chooses; `offset` is that of the second store's nodes."""
        if not chosen.any():
            return
        columns = block.second + offset
        few = chosen & (np.cumsum(chosen, axis=0, dtype=np.int32) <= _MOST_COPIES - self._counts[columns])
        self._counts[columns] += chosen.sum(axis=0)
        self._kept.append(block.pairs(few))
        rest = chosen & ~few
        while rest.any():
            for close in self._kept[self._n_joined :]:
                self._roots = _joined(self._roots, close.first, close.second + offset)
            self._n_joined = len(self._kept)
            rest &= self._roots[block.first][:, None] != self._roots[columns]
            connecting = np.zeros_like(rest)
            connecting[rest.argmax(axis=0), np.arange(rest.shape[1])] = rest.any(axis=0)
            self._kept.append(block.pairs(connecting))

    def all(self, *more: _Close) -> _Close:
        """The pairs that were kept, and some more."""
        return _Close(*(np.concatenate(each) for each in zip(*self._kept, *more, strict=True)))


def _close_pairs(store: FeatureStore, other: FeatureStore | None, features: _Features | None, most_bits: int) -> _Close:
    """The pairs that are copies by their hashes, or by their hashes and features."""
    offset = 0 if other is None else len(store)
    pairs, n_close = _Pairs(len(store) + (0 if other is None else len(other))), 0
    undecided: list[_Close] = []
    n_undecided = 0
    for block in _blocks(store, other):
        are_close = block.within(_MOST_CROPPED_BITS)
        n = int(np.count_nonzero(are_close))
        n_close += n
        if not n:
            continue
        are_copies = block.within(most_bits)
        pairs.add(block, are_copies, offset)
        if features is not None:
            are_close &= ~are_copies
            n_undecided += int(np.count_nonzero(are_close))
            undecided = [*undecided, block.pairs(are_close)] if n_undecided <= _MOST_KEPT else []
    if features is None or not n_undecided:
        return pairs.all()
    least = features.least_similarity(n_close)
    if n_undecided <= _MOST_KEPT:
        return pairs.all(*(close.at(features.similarity(close.first, close.second) >= least) for close in undecided))
    for block in _blocks(store, other):
        are_copies = block.within(_MOST_CROPPED_BITS) & ~block.within(most_bits)
        close = block.pairs(are_copies)
        are_copies[are_copies] = features.similarity(close.first, close.second) >= least
        pairs.add(block, are_copies, offset)
    return pairs.all()


class _Block(NamedTuple):
    """Some rows of the matrix of all pairs.

    first, second : (r,) and (c,) rows of the stores
    bits : (r, c) uint8, by how many bits the hashes differ; 255 for pairs that do not count
    are_mirrored : (r, c)
    """

    first: np.ndarray
    second: np.ndarray
    bits: np.ndarray
    are_mirrored: np.ndarray

    def within(self, bits: int) -> np.ndarray:
        """(r, c) whether hashes differ by so many bits or fewer; none do by -1."""
        return self.bits <= bits if bits >= 0 else np.zeros(self.bits.shape, bool)

    def pairs(self, chosen: np.ndarray) -> _Close:
        at, to = np.nonzero(chosen)
        return _Close(self.first[at], self.second[to], self.bits[at, to].astype(np.int64), self.are_mirrored[at, to])


def _blocks(store: FeatureStore, other: FeatureStore | None) -> Iterator[_Block]:
    """All pairs of a store, each once, or of two stores, without blank images."""
    first, hashes, mirrors = _hashes(store)
    if other is None:
        yield from _blocks_within(first, hashes, mirrors)
        return
    second, others, mirrors = _hashes(other)
    step = max(1, _BLOCK // max(1, len(second)))
    for start in range(0, len(first), step):
        yield _block(first[start : start + step], hashes[start : start + step], second, others, mirrors)


def _blocks_within(rows: np.ndarray, hashes: np.ndarray, mirrors: np.ndarray) -> Iterator[_Block]:
    """All pairs of some rows, each once."""
    step = max(1, _BLOCK // max(1, len(rows)))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        block = _block(rows[part], hashes[part], rows[start:], hashes[start:], mirrors[start:])
        size = len(block.first)
        block.bits[:, :size][np.tri(size, dtype=bool)] = 255
        yield block


def _block(
    first: np.ndarray, hashes: np.ndarray, second: np.ndarray, others: np.ndarray, mirrors: np.ndarray
) -> _Block:
    plain, mirrored = np.bitwise_count(hashes[:, None] ^ others), np.bitwise_count(hashes[:, None] ^ mirrors)
    return _Block(first, second, np.minimum(plain, mirrored), mirrored < plain)


def _distances(store: FeatureStore) -> np.ndarray:
    """Number of pairs at each distance, of a sample of the images, scaled to all."""
    rows, hashes, mirrors = _hashes(store)
    sample = np.random.default_rng(0).permutation(len(rows))[:_MOST_SAMPLED]
    counts = np.zeros(65)
    for block in _blocks_within(sample, hashes[sample], mirrors[sample]):
        counts += np.bincount(block.bits.reshape(-1), minlength=256)[:65]
    return counts * (len(rows) / max(1, len(sample))) ** 2


def _most_bits(counts: np.ndarray, n: int) -> int:
    """The largest distance up to 8 bits within which few enough of n images would be alike by chance; -1 if none.

    counts : number of pairs at each distance
    """
    distances = np.array(_TAIL)
    slope, offset = np.polyfit(distances, np.log(counts[distances] + 0.5), 1)
    slope = max(slope, 0.1)
    by_chance = np.exp(offset + slope * np.arange(MOST_BITS + 1)).cumsum()
    few = np.flatnonzero(by_chance <= max(_BY_CHANCE * n, 2.0))
    return int(few[-1]) if len(few) else -1


class _Features:
    """Compares the features of pairs of images.

    Rows of over 65,536 numbers are not compared: every similarity is NaN.
    """

    def __init__(self, store: FeatureStore, other: FeatureStore | None, layer: str) -> None:
        self._store, self._other, self._layer = store, store if other is None else other, layer
        self._are_compared = store.row_bytes(layer) <= 4 * MOST_NUMBERS

    @cached_property
    def _sample(self) -> tuple[np.ndarray, np.ndarray]:
        """(mean, centred rows of unit length) of a random sample of the first store."""
        sample = np.sort(np.random.default_rng(0).permutation(len(self._store))[:_SAMPLE])
        rows = _flat(self._store, sample, self._layer)
        rows = rows[np.isfinite(rows).all(axis=1)]
        mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32) if len(rows) else np.zeros(1, np.float32)
        return mean, _unit(rows - mean)

    def least_similarity(self, n: int) -> float:
        """The least similarity of a copy: among n pairs of different images, few are so similar by chance.

        It is estimated from the pairs of a random sample.
        """
        if not self._are_compared:
            return np.inf
        _, rows = self._sample
        of_sample = (rows @ rows.T)[np.triu_indices(len(rows), 1)]
        share = min(1.0, _BY_CHANCE_WITH_FEATURES * len(self._store) / n)
        limit = float(np.quantile(of_sample, 1 - share)) if len(of_sample) else 1.0
        return max(limit, _LEAST_SIMILARITY)

    def similarity(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """(p,) cosine of the centred features of pairs; NaN if one contains NaN or inf."""
        similarity = np.full(len(first), np.nan)
        if not self._are_compared or not len(first):
            return similarity
        mean, _ = self._sample
        step = max(1, _BLOCK // len(mean))
        for start in range(0, len(first), step):
            part = slice(start, start + step)
            one = _unit(_flat(self._store, first[part], self._layer) - mean)
            two = _unit(_flat(self._other, second[part], self._layer) - mean)
            similarity[part] = np.einsum("ij,ij->i", one, two)
        return similarity


def _flat(store: FeatureStore, rows: np.ndarray, layer: str) -> np.ndarray:
    return store.take(rows, layer).reshape(len(rows), -1).astype(np.float32)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of unit length; zeros stay zeros, and rows that contain NaN or inf are NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))[:, None]
        return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths != 0, casting="same_kind")


NEAR_DUPLICATES = "near-duplicates"


def near_duplicate_groups(store: FeatureStore) -> np.ndarray:
    """(n,) numbers of groups of copies, each image in one; the features of the last layer find crops.

    Raises
    ------
    StoreError
        The store keeps no statistics of its images.
    """
    if not store.statistics:
        how = "; extract the same images to it again, which computes them and keeps all rows"
        raise StoreError(
            f"{store.path.name} keeps no statistics of its images, by which near duplicates are found"
            f"{'; its rows were imported' if store.recipe.is_imported else how}"
        )
    return connected(len(store), near_duplicates(store, layer=store.layers[-1]).pairs)


def connected(n: int, pairs: np.ndarray) -> np.ndarray:
    """(n,) the smallest row that each row is connected with by pairs, itself if there is none."""
    return _joined(np.arange(n), pairs[:, 0], pairs[:, 1])


def pairs_of_equal(values: np.ndarray) -> np.ndarray:
    """(n, 2) the first row that has the same value, and each row: what `connected` takes."""
    _, first, codes = np.unique(values, return_index=True, return_inverse=True)
    return np.stack([first[codes], np.arange(len(values))], axis=1)


def _joined(roots: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n,) the smallest node that each node is connected with, by `roots`, the smallest so far, and by pairs."""
    while True:
        low, high = np.minimum(roots[first], roots[second]), np.maximum(roots[first], roots[second])
        if (low == high).all():
            return roots
        parents = np.arange(len(roots))
        np.minimum.at(parents, high, low)
        while ((higher := parents[parents]) != parents).any():
            parents = higher
        roots = parents[roots]
