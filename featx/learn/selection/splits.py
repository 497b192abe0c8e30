"""Labels, and which images belong together, in; rows to train and to test on, out.

Images of one group (a patient, a burst of photos) or of the same content are never on both sides of a split: a score on
an image whose twin was learned says nothing. The same seed gives the same splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split

from featx.errors import Call, FeatxError, Parameter, Part, StoreError, listed, no_column
from featx.store import FeatureStore

_MANY_CLASSES = 10
Split = tuple[np.ndarray, np.ndarray]  # positions to train on, positions to test on, in order


@dataclass(frozen=True)
class Tied:
    """Which images stay together.

    numbers : (n,) the same number for images that are never split between training and test
    noun : what such a number stands for: "groups" or "different images"
    """

    numbers: np.ndarray
    noun: str

    def of(self, rows: np.ndarray) -> Tied:
        return Tied(self.numbers[rows], self.noun)


def group_numbers(store: FeatureStore, groups: str | Sequence[object] | np.ndarray | None) -> np.ndarray | None:
    """(n,) numbers of groups, from the name of a column of the store or from a value an image.

    Raises
    ------
    StoreError
        There is no such column, or it has empty cells.
    FeatxError
        There is not one group an image, or all have the same.
    """
    if groups is None:
        return None
    if isinstance(groups, str):
        values = column_of(store, groups, "group")
    else:
        values = np.asarray(groups)
        if values.shape != (len(store),):
            raise FeatxError(f"groups has one value an image: {store.path.name} has {len(store):,}, got {values.shape}")
    found, numbers = np.unique(values, return_inverse=True)
    if len(found) < 2:
        raise FeatxError(f"groups need two or more different values; all images have {str(found[0])!r}")
    return numbers


def column_of(store: FeatureStore, name: str, noun: str) -> np.ndarray:
    """(n,) cells of a column of the store, none of them empty; an error says what they are wanted for."""
    if name not in store.columns:
        raise StoreError(no_column(store.path.name, name, store.columns))
    values = store.columns[name]
    if (empty := values == "").any():
        raise StoreError(
            f"every image needs a {noun}; column {name!r} is empty for {empty.sum():,} of {len(store):,}: "
            f"{listed(store.ids[empty])}"
        )
    return values


def tie(store: FeatureStore, groups: np.ndarray | None, allow_duplicates: bool) -> Tied | None:
    """What stays together: groups, and images of the same content; what touches in either way is one.

    Parameters
    ----------
    groups : (n,) numbers, optional
    allow_duplicates : whether images of the same content may be split between training and test

    Returns
    -------
    Tied, or None if no two images belong together
    """
    twins = () if allow_duplicates else store.duplicates
    if groups is None and not twins:
        return None
    images = np.arange(len(store))
    # a graph of images and what ties them: group g is node n + g, contents follow
    ties = [(images, groups + len(store))] if groups is not None else []
    first = len(store) + (0 if groups is None else int(groups.max()) + 1)
    ties += [(rows, np.full(len(rows), first + i)) for i, rows in enumerate(twins)]
    ends = [np.concatenate(side) for side in zip(*ties, strict=True)]
    size = first + len(twins)
    graph = coo_matrix((np.ones(len(ends[0]), bool), (ends[0], ends[1])), shape=(size, size))
    _, numbers = connected_components(graph, directed=False)
    return Tied(numbers[: len(store)], "different images" if groups is None else "groups")


def cv_splits(labels: np.ndarray, tied: Tied | None, folds: int, repeats: int, random_state: int) -> list[Split]:
    """The splits of a cross-validation: stratified by class unless labels are numbers, whole groups, repeated.

    Without anything tied they are StratifiedKFold's, or KFold's, shuffled with seeds `random_state` and on.

    Parameters
    ----------
    labels : (n,) class names or float64

    Raises
    ------
    FeatxError
        A fold would be without a class, or without any image.
    """
    if folds < 2:
        raise FeatxError("cross-validation needs two folds or more; got ", Parameter("folds", folds))
    if repeats < 1:
        raise FeatxError("cross-validation is done once or more; got ", Parameter("repeats", repeats))
    _refuse_too_few(labels, tied, folds)
    found: list[Split] = []
    for seed in range(int(random_state), int(random_state) + repeats):
        if tied is None:
            stock = KFold if is_numeric(labels) else StratifiedKFold
            found += stock(folds, shuffle=True, random_state=seed).split(labels[:, None], labels)
            continue
        fold_of = _deal(_strata(labels), tied.numbers, np.full(folds, 1 / folds), np.random.default_rng(seed))
        for fold in range(folds):
            test = fold_of == fold
            if not is_numeric(labels) and (missing := sorted(set(labels) - set(labels[test]))):
                raise FeatxError(
                    f"every fold needs every class, and {folds} folds of whole groups leave one without "
                    f"{listed(missing)}; take fewer folds"
                )
            found.append((np.flatnonzero(~test), np.flatnonzero(test)))
    return found


def hold_out(labels: np.ndarray, tied: Tied | None, share: float, random_state: int) -> Split:
    """A random share of the images held out, under the same rules.

    Raises
    ------
    FeatxError
        The share is not below 1, or a side would be without a class.
    """
    rows = np.arange(len(labels))
    if share == 0:
        return rows, rows[:0]
    if not 0 < share < 1:
        raise FeatxError(Parameter("test_size"), f" is the share of images held out, from 0 to below 1; got {share}")
    strata = _strata(labels)
    names, counts = units(labels, tied)
    n_test = int(np.ceil(share * len(rows)))
    if counts.min() >= 2 and min(n_test, len(rows) - n_test) >= len(names):
        if tied is None:
            stratify = None if is_numeric(labels) else labels
            train, test = train_test_split(rows, test_size=share, stratify=stratify, random_state=random_state)
        else:
            side = _deal(strata, tied.numbers, np.array([1 - share, share]), np.random.default_rng(random_state))
            train, test = rows[side == 0], rows[side == 1]
        if len(np.unique(strata[train])) == len(np.unique(strata[test])) == len(names):
            return np.sort(train), np.sort(test)
    of_each, has = _said(labels, names, counts)
    raise FeatxError(
        f"holding out {share:.0%} of {len(rows):,} images needs two or more {'images' if tied is None else tied.noun}"
        f"{of_each}, and one on both sides; {has}: add images, or hold none out (a test size of 0)",
        *_if_numbers(labels),
    )


def refuse_parted(held_out: np.ndarray, store: FeatureStore, groups: np.ndarray | None, allow_duplicates: bool) -> None:
    """Refuse a choice of images to hold out that parts a group or images of the same content.

    Parameters
    ----------
    held_out : (n,) bool
    groups : (n,) numbers, optional
    """
    twins = [] if allow_duplicates else [rows for rows in store.duplicates if len(set(held_out[rows])) > 1]
    if twins:
        same = listed(store.ids[twins[0]], 2)
        raise FeatxError(
            f"{len(twins):,} images are both held out and trained on, under several ids ({same}); a score on them says "
            "nothing: hold out both, take one out, or allow duplicates"
        )
    if groups is not None and len(shared := np.intersect1d(groups[held_out], groups[~held_out])):
        raise FeatxError(
            f"images held out are of other groups than the training images; {len(shared):,} groups are on both sides, "
            f"{str(store.ids[groups == shared[0]][0])!r} in one of them: hold out whole groups"
        )


def is_numeric(labels: np.ndarray) -> bool:
    """Whether labels are numbers to be predicted, not classes."""
    return labels.dtype.kind == "f"


def _strata(labels: np.ndarray) -> np.ndarray:
    """(n,) numbers of classes; one stratum where the labels are numbers."""
    if is_numeric(labels):
        return np.zeros(len(labels), int)
    return np.unique(labels, return_inverse=True)[1]


def units(labels: np.ndarray, tied: Tied | None) -> tuple[np.ndarray, np.ndarray]:
    """(names of the classes, how many images, or groups, have each); of numbers one class."""
    numbers = np.arange(len(labels)) if tied is None else tied.numbers
    strata = _strata(labels)
    pairs = np.unique(np.stack([strata, numbers]), axis=1)  # (2, number of (class, group))
    return labels[:1] if is_numeric(labels) else np.unique(labels), np.bincount(pairs[0])


def _said(labels: np.ndarray, names: np.ndarray, counts: np.ndarray) -> tuple[str, str]:
    """("of each class", who has fewest) in words."""
    if is_numeric(labels):
        return "", f"there are {counts.min()}"
    return " of each class", f"{str(names[counts.argmin()])!r} has {counts.min()}"


def _refuse_too_few(labels: np.ndarray, tied: Tied | None, folds: int) -> None:
    names, counts = units(labels, tied)
    if counts.min() < folds:
        noun = "training images" if tied is None else f"{tied.noun} among the training images"
        of_each, has = _said(labels, names, counts)
        raise FeatxError(
            f"{folds}-fold cross-validation needs {folds} {noun}{of_each}; {has}: add images, or take fewer folds or a "
            "smaller test share",
            *_if_numbers(labels),
        )


def _if_numbers(labels: np.ndarray) -> tuple[Part, ...]:
    """What to do where class names look like numbers to predict: many different ones, all of them numbers."""
    names = np.unique(labels)
    if is_numeric(labels) or len(names) <= _MANY_CLASSES:
        return ()
    try:
        names.astype(float)
    except ValueError:
        return ()
    return (
        f"; these labels, {listed(names, 2)}, are taken as classes: to predict numbers, give them as floats (",
        Call("y.astype", "float"),
        ")",
    )


def _deal(strata: np.ndarray, tied: np.ndarray, shares: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(n,) which of the folds each image is in; whole groups, every class spread as the shares say.

    # min over folds f of whole groups:  sum_f sum_c N_fc^2 / (share_f T_c^2),  N_fc of the T_c images of class c in f

    Greedily, the largest groups first, in random order among equals; single images at last, exactly.
    """
    totals = np.bincount(strata)  # (k,)
    counts = np.zeros((len(shares), len(totals)))  # (folds, k)
    fold_of = np.empty(len(strata), int)
    order = generator.permutation(len(strata))
    order = order[np.argsort(tied[order], kind="stable")]
    members = np.split(order, np.flatnonzero(np.diff(tied[order])) + 1)
    several = [rows for rows in members if len(rows) > 1]
    several = [several[i] for i in generator.permutation(len(several))]
    for rows in sorted(several, key=len, reverse=True):
        classes, sizes = np.unique(strata[rows], return_counts=True)
        grown = (2 * counts[:, classes] + sizes) * sizes / totals[classes] ** 2  # (folds, classes here)
        fold = _least(grown.sum(axis=1) / shares, counts.sum(axis=1) / shares)
        counts[fold, classes] += sizes
        fold_of[rows] = fold
    single = generator.permutation(np.array([rows[0] for rows in members if len(rows) == 1], int))
    for c in np.unique(strata[single]):
        rows = single[strata[single] == c]
        slots = counts[:, c, None] + np.arange(len(rows))  # (folds, m): what each fold's next image would be
        by_size = np.argsort(np.argsort(counts.sum(axis=1) / shares, kind="stable"))  # the emptier fold among equals
        cost = np.round((2 * slots + 1) / shares[:, None], 9)
        fullness = np.broadcast_to(by_size[:, None], cost.shape)
        cheapest = np.lexsort((fullness.ravel(), cost.ravel()))[: len(rows)]
        fold_of[rows] = cheapest // len(rows)
        counts[:, c] += np.bincount(fold_of[rows], minlength=len(shares))
    return fold_of


def _least(cost: np.ndarray, size: np.ndarray) -> int:
    """The fold of least cost, among equals the emptier."""
    return int(np.lexsort((size, np.round(cost, 12)))[0])
