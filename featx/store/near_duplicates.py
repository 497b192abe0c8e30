"""Images that are copies of one another: the same file, or the same picture saved, resized, mirrored or cropped.

A pair of copies has the same content, or perceptual hashes (see FORMAT.md) that are close enough, or hashes that are
less close and features that are close. Compression and brightness hardly change a hash, but a crop does. Mirroring and
crops hardly change features, but compressing a texture does.
"""

from __future__ import annotations

from collections.abc import Iterator
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
_LEAST_CONTRAST = 0.02  # of pictures whose hashes mean something
_BLOCK = 2**22
MOST_NUMBERS = 2**16  # of a row whose features are compared


class Copies(NamedTuple):
    """Pairs of copies.

    pairs : (p, 2) rows: of one store, the first smaller than the second; or of the first and of the second store.
        Pairs of the same content are first, then those whose hashes differ least
    kinds : (p,) "exact", "hash" or "features"
    bits : (p,) by how many bits of 64 the hashes differ, or those of one image and the mirror image of the other
    are_mirrored : (p,) whether the mirror image is closer
    similarity : (p,) cosine of the centred features, NaN where they were not compared
    most_bits : hashes that differ by as many bits or fewer are copies; -1 if they tell nothing here
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
        A layer of both whose features are compared; none finds no crops.

    Notes
    -----
    Stores without statistics of images give exact copies only. How many pairs are alike by chance is estimated from the
    pairs of the store whose hashes differ by 12 to 20 bits: the logarithm of their number is extrapolated linearly. On
    silhouettes, for example, hashes of different images may be equal, and then hashes alone decide nothing.
    """
    exact = _exact(store, other)
    close = _close_hashes(store, other)
    bits, mirrored = close[2], close[3]
    most_bits = _most_bits(_distances(store), len(store)) if store.statistics else -1
    similarity = np.full(len(bits), np.nan)
    limit = np.inf
    if layer is not None and len(bits):
        similarity, limit = _similarity(store, other, layer, close[:2])
    kinds = np.where(bits <= most_bits, "hash", np.where(similarity >= limit, "features", ""))
    known = {tuple(pair): i for i, pair in enumerate(exact.tolist())}
    candidates = np.flatnonzero(kinds != "")
    candidates = candidates[np.argsort(bits[candidates], kind="stable")]
    keep = [i for i in candidates.tolist() if (int(close[0][i]), int(close[1][i])) not in known]
    n_exact = len(exact)
    return Copies(
        np.concatenate([exact, np.stack([close[0][keep], close[1][keep]], axis=1)]),
        np.concatenate([np.full(n_exact, "exact"), kinds[keep]]).astype("<U8"),
        np.concatenate([np.zeros(n_exact, np.int64), bits[keep]]),
        np.concatenate([np.zeros(n_exact, bool), mirrored[keep]]),
        np.concatenate([np.ones(n_exact), similarity[keep]]),
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
    """Rows whose hashes mean something, their hashes and those of their mirror images."""
    statistics = store.statistics
    rows = np.flatnonzero(statistics["contrast"] >= _LEAST_CONTRAST)
    return rows, statistics["hash"][rows], statistics["mirror_hash"][rows]


def _close_hashes(
    store: FeatureStore, other: FeatureStore | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(first row, second row, bits, mirrored) of the pairs whose hashes differ by 16 bits or fewer."""
    empty = np.empty(0, np.int64)
    if not store.statistics or other is not None and not other.statistics:
        return empty, empty, empty, empty.astype(bool)
    first, hashes, _ = _hashes(store)
    second, others, mirrors = (first, hashes, _hashes(store)[2]) if other is None else _hashes(other)
    found: list[tuple[np.ndarray, ...]] = [(empty, empty, empty, empty.astype(bool))]
    for start, nearest, mirrored in _blocks(hashes, others, mirrors):
        at, to = np.nonzero(nearest <= _MOST_CROPPED_BITS)
        if other is None:
            above = to > at + start
            at, to = at[above], to[above]
        found.append((first[start + at], second[to], nearest[at, to].astype(np.int64), mirrored[at, to]))
    first_rows, second_rows, bits, are_mirrored = (np.concatenate(each) for each in zip(*found, strict=True))
    return first_rows, second_rows, bits, are_mirrored


def _blocks(
    hashes: np.ndarray, others: np.ndarray, mirrors: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(first row, bits, mirrored) of blocks of rows of the matrix of all distances."""
    step = max(1, _BLOCK // max(1, len(others)))
    for start in range(0, len(hashes), step):
        part = hashes[start : start + step, None]
        plain, mirrored = np.bitwise_count(part ^ others), np.bitwise_count(part ^ mirrors)  # (step, m) uint8
        yield start, np.minimum(plain, mirrored), mirrored < plain


def _distances(store: FeatureStore) -> np.ndarray:
    """Number of pairs at each distance, of a sample of the images, scaled to all."""
    rows, hashes, mirrors = _hashes(store)
    sample = np.random.default_rng(0).permutation(len(rows))[:_MOST_SAMPLED]
    counts = np.zeros(65)
    for start, bits, _ in _blocks(hashes[sample], hashes[sample], mirrors[sample]):
        counts += np.bincount(bits[np.arange(len(sample)) > np.arange(start, start + len(bits))[:, None]], minlength=65)
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


def _similarity(
    store: FeatureStore, other: FeatureStore | None, layer: str, pairs: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, float]:
    """(cosine of each pair's centred features, the least of a copy).

    The least is such that, of pairs of a random sample, so few are more similar that among as many as these pairs few
    would be by chance.
    """
    if store.row_bytes(layer) > 4 * MOST_NUMBERS:
        return np.full(len(pairs[0]), np.nan), np.inf
    rng = np.random.default_rng(0)
    sample = np.sort(rng.permutation(len(store))[:_SAMPLE])
    mean = _flat(store, sample, layer).mean(axis=0)
    drawn = _unit(_flat(store, sample, layer) - mean)
    of_sample = (drawn @ drawn.T)[np.triu_indices(len(sample), 1)]
    share = min(1.0, _BY_CHANCE_WITH_FEATURES * len(store) / len(pairs[0]))
    limit = float(np.quantile(of_sample, 1 - share)) if len(of_sample) else 1.0
    similarity = np.empty(len(pairs[0]))
    step = max(1, _BLOCK // len(mean))
    for start in range(0, len(similarity), step):
        one, two = (rows[start : start + step] for rows in pairs)
        similarity[start : start + step] = np.einsum(
            "ij,ij->i",
            _unit(_flat(store, one, layer) - mean),
            _unit(_flat(store if other is None else other, two, layer) - mean),
        )
    return similarity, max(limit, _LEAST_SIMILARITY)


def _flat(store: FeatureStore, rows: np.ndarray, layer: str) -> np.ndarray:
    return store.take(rows, layer).reshape(len(rows), -1).astype(np.float32)


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


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
    root = np.arange(n)

    def find(row: int) -> int:
        while root[row] != row:
            root[row] = root[root[row]]
            row = int(root[row])
        return row

    for one, two in pairs.tolist():
        a, b = find(one), find(two)
        root[max(a, b)] = min(a, b)
    return np.array([find(row) for row in range(n)])
