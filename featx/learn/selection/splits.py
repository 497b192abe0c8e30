"""Splits of labelled images into training and test: seeded, stratified, and by whole groups.

Images of one group (a patient, a burst of photos) or of the same content are never split between training and test: a
score on a copy of a training image is meaningless.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split

from featx.errors import Call, FeatxError, Parameter, Part, StoreError, file_of_labels, listed, no_column
from featx.learn.selection.parameters import brief, check_integer, sequence
from featx.manifest import is_missing
from featx.store import NEAR_DUPLICATES, FeatureStore, connected, near_duplicate_groups, pairs_of_equal

_MANY_CLASSES = 10
Split = tuple[np.ndarray, np.ndarray]  # training positions, test positions, each ascending


@dataclass(frozen=True)
class Groups:
    """Which images are never split between training and test.

    numbers : (n,) equal for images that stay together
    noun : the word for such a group in messages: "groups", or "different images" if only copies stay together
    """

    numbers: np.ndarray
    noun: str

    def of(self, rows: np.ndarray) -> Groups:
        return Groups(self.numbers[rows], self.noun)


def group_numbers(store: FeatureStore, groups: str | Sequence[object] | np.ndarray | None) -> np.ndarray | None:
    """(n,) numbers of groups, from a column of the store, from one value per image, or "near-duplicates".

    Raises
    ------
    StoreError
        There is no such column, or it has empty cells.
    FeatxError
        There is not one value per image, or all values are equal.
    """
    if groups is None:
        return None
    if is_near_duplicates(store, groups):
        return near_duplicate_groups(store)
    if isinstance(groups, str):
        values = column_of(store, groups, "group")
    else:
        values = one_per_image(store, groups, "group", "groups")
    try:
        distinct, numbers = np.unique(values, return_inverse=True)
    except TypeError:  # of several types, which have no order
        distinct, numbers = np.unique([*map(str, values)], return_inverse=True)
    if len(distinct) < 2:
        raise FeatxError(
            Parameter("groups"), f" need two or more different values; all images have {str(distinct[0])!r}"
        )
    return numbers


def is_near_duplicates(store: FeatureStore, groups: object) -> bool:
    """Whether groups are those of near duplicates, and not a column of that name."""
    return isinstance(groups, str) and groups == NEAR_DUPLICATES and groups not in store.columns


def one_per_image(store: FeatureStore, values: object, noun: str, parameter: str) -> np.ndarray:
    """(n,) the values of a parameter; raises StoreError if there are more or fewer, or one is missing.

    noun : what they are, in the message
    """
    every = None if isinstance(values, set | frozenset) else sequence(values)  # a set has no order
    has = f"{store.path.name} has {len(store):,}"
    if every is None:
        raise StoreError(Parameter(parameter), f" is one {noun} per image, or a column; got {brief(values)}")
    if len(every) != len(store):
        raise StoreError(Parameter(parameter), f" is one {noun} per image: {has}, got {len(every):,}")
    try:
        array = np.asarray(values if isinstance(values, np.ndarray) else every)
    except ValueError:  # lists of different lengths
        array = np.empty((len(store), 0))
    if array.ndim != 1:
        raise StoreError(Parameter(parameter), f" is one {noun} per image; got {brief(every[0])} for the first")
    if array.dtype.kind in "OfM" and (missing := [row for row, value in enumerate(array) if is_missing(value)]):
        raise StoreError(
            f"every image needs a {noun} (", Parameter(parameter), f"); none is given for {listed(store.ids[missing])}"
        )
    return array


def column_of(store: FeatureStore, name: str, noun: str) -> np.ndarray:
    """(n,) cells of a column of the store; raises StoreError if one is empty. noun : what they are, in the message."""
    if name not in store.columns:
        raise StoreError(no_column(store.path.name, name, store.columns), *file_of_labels(name))
    values = store.columns[name]
    if (empty := values == "").any():
        raise StoreError(
            f"every image needs a {noun}; column {name!r} is empty for {empty.sum():,} of {len(store):,}: "
            f"{listed(store.ids[empty])}"
        )
    return values


def groups_of(store: FeatureStore, groups: np.ndarray | None, allow_duplicates: bool) -> Groups | None:
    """Which images stay together: those of one group or of the same content, and whatever these connect.

    Parameters
    ----------
    groups : (n,) numbers, optional
    allow_duplicates : whether images of the same content may be split between training and test

    Returns
    -------
    Groups, or None if no two images stay together
    """
    twins = () if allow_duplicates else store.duplicates
    if groups is None and not twins:
        return None
    pairs = [np.stack([np.full(len(rows), rows[0]), rows], axis=1) for rows in twins]
    pairs += [] if groups is None else [pairs_of_equal(groups)]
    numbers = np.unique(connected(len(store), np.concatenate(pairs)), return_inverse=True)[1]
    return Groups(numbers, "different images" if groups is None else "groups")


def cv_splits(labels: np.ndarray, groups: Groups | None, folds: int, repeats: int, random_state: int) -> list[Split]:
    """The splits of a cross-validation: stratified by class unless labels are numbers, by whole groups, repeated.

    Without groups they are those of StratifiedKFold or KFold, shuffled; repeats use the next seeds.

    Parameters
    ----------
    labels : (n,) class names or float64

    Raises
    ------
    FeatxError
        A fold would lack a class, or have no image.
    """
    check_integer("folds", folds, 2)
    check_integer("repeats", repeats, 1)
    _refuse_too_few(labels, groups, folds)
    splits: list[Split] = []
    for seed in range(int(random_state), int(random_state) + repeats):
        if groups is None:
            kind = KFold if is_numeric(labels) else StratifiedKFold
            splits += kind(folds, shuffle=True, random_state=seed).split(labels[:, None], labels)
            continue
        fold_of = _deal(_strata(labels), groups.numbers, np.full(folds, 1 / folds), np.random.default_rng(seed))
        for fold in range(folds):
            test = fold_of == fold
            if not is_numeric(labels) and (missing := sorted(set(labels) - set(labels[test]))):
                raise FeatxError(
                    f"every fold needs every class, and {folds} folds of whole groups leave one without "
                    f"{listed(missing)}; take fewer folds"
                )
            splits.append((np.flatnonzero(~test), np.flatnonzero(test)))
    return splits


def hold_out(
    labels: np.ndarray, groups: Groups | None, share: float, random_state: int, is_validation: bool = False
) -> Split:
    """Hold out a random share of the images, from 0 to below 1: stratified, by whole groups.

    Parameters
    ----------
    is_validation : whether the images validate, in place of testing; for the message

    Raises
    ------
    FeatxError
        The training or the held-out images would lack a class.
    """
    rows = np.arange(len(labels))
    if share == 0:
        return rows, rows[:0]
    strata = _strata(labels)
    names, counts = units(labels, groups)
    n_test = int(np.ceil(share * len(rows)))
    if counts.min() >= 2 and min(n_test, len(rows) - n_test) >= len(names):
        if groups is None:
            stratify = None if is_numeric(labels) else labels
            train, test = train_test_split(rows, test_size=share, stratify=stratify, random_state=random_state)
        else:
            side = _deal(strata, groups.numbers, np.array([1 - share, share]), np.random.default_rng(random_state))
            train, test = rows[side == 0], rows[side == 1]
        if len(np.unique(strata[train])) == len(np.unique(strata[test])) == len(names):
            return np.sort(train), np.sort(test)
    of_each, has = _rarest(labels, names, counts)
    noun = "images" if groups is None else groups.noun
    change = "" if counts.min() < 2 else f"hold out {'more' if share < 0.5 else 'fewer'}, or "
    advice = (
        () if is_validation else (", or hold none out: ", Parameter("holdout", Call("HoldOut", Parameter("size", 0))))
    )
    raise FeatxError(
        f"holding out {share:.0%} of {len(rows):,} images needs {noun}{of_each} on both sides; {has}: {change}add "
        "images",
        *advice,
        *_if_numbers(labels),
    )


def refuse_split_groups(
    held_out: np.ndarray,
    store: FeatureStore,
    groups: np.ndarray | None,
    allow_duplicates: bool,
    has_label: np.ndarray | None = None,
) -> None:
    """Raise FeatxError if held-out rows would split a group, or images of the same content.

    Parameters
    ----------
    held_out : (n,) bool
    groups : (n,) numbers, optional
    has_label : (n,) bool, optional
        Images without a label are on neither side; by default all have one.
    """
    has_label = np.ones(len(store), bool) if has_label is None else has_label
    copies = [] if allow_duplicates else [rows[has_label[rows]] for rows in store.duplicates]
    twins = [rows for rows in copies if len(set(held_out[rows])) > 1]
    if twins:
        same = listed(store.ids[twins[0]], 2)
        raise FeatxError(
            f"{len(twins):,} images are both held out and trained on, under several ids ({same}); a score on them says "
            "nothing: hold out both, take one out, or allow duplicates"
        )
    sides = held_out & has_label, ~held_out & has_label
    if groups is not None and len(shared := np.intersect1d(*(groups[side] for side in sides))):
        raise FeatxError(
            f"held-out images must be of other groups than the training images; {len(shared):,} groups are on both "
            f"sides, {str(store.ids[groups == shared[0]][0])!r} in one of them: hold out whole groups"
        )


def is_numeric(labels: np.ndarray) -> bool:
    """Whether labels are numbers to predict, not classes."""
    return labels.dtype.kind == "f"


def _strata(labels: np.ndarray) -> np.ndarray:
    """(n,) class numbers; one stratum if the labels are numbers."""
    if is_numeric(labels):
        return np.zeros(len(labels), int)
    return np.unique(labels, return_inverse=True)[1]


def units(labels: np.ndarray, groups: Groups | None) -> tuple[np.ndarray, np.ndarray]:
    """(classes, number of images or groups that have each); labels that are numbers count as one class."""
    numbers = np.arange(len(labels)) if groups is None else groups.numbers
    strata = _strata(labels)
    pairs = np.unique(np.stack([strata, numbers]), axis=1)  # (2, number of (class, group))
    return labels[:1] if is_numeric(labels) else np.unique(labels), np.bincount(pairs[0])


def _rarest(labels: np.ndarray, names: np.ndarray, counts: np.ndarray) -> tuple[str, str]:
    """("of each class", the class with the fewest images) in words."""
    if is_numeric(labels):
        return "", f"there are {counts.min()}"
    return " of each class", f"{str(names[counts.argmin()])!r} has {counts.min()}"


def _refuse_too_few(labels: np.ndarray, groups: Groups | None, folds: int) -> None:
    names, counts = units(labels, groups)
    if counts.min() < folds:
        noun = "training images" if groups is None else f"{groups.noun} among the training images"
        of_each, has = _rarest(labels, names, counts)
        raise FeatxError(
            f"{folds}-fold cross-validation needs {folds} {noun}{of_each}; {has}: add images, take fewer folds, or "
            "hold out fewer images",
            *_if_numbers(labels),
        )


def _if_numbers(labels: np.ndarray) -> tuple[Part, ...]:
    """A hint if class names look like numbers to predict: many distinct ones, all of them numbers."""
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


def _deal(strata: np.ndarray, groups: np.ndarray, shares: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(n,) the fold of each image: whole groups, and each class spread over the folds by their shares.

        min over assignments of groups to folds f:  sum_f sum_c N_fc^2 / (share_f T_c^2)

    N_fc of the T_c images of class c are in fold f. Greedy: the largest groups first, groups of equal size in random
    order; single images last, for which it is exact.
    """
    totals = np.bincount(strata)  # (k,)
    counts = np.zeros((len(shares), len(totals)))  # (folds, k)
    fold_of = np.empty(len(strata), int)
    order = generator.permutation(len(strata))
    order = order[np.argsort(groups[order], kind="stable")]
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
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
        slots = counts[:, c, None] + np.arange(len(rows))  # (folds, m): the number of the next image in each fold
        by_size = np.argsort(np.argsort(counts.sum(axis=1) / shares, kind="stable"))  # of equal folds the emptier one
        cost = np.round((2 * slots + 1) / shares[:, None], 9)
        fullness = np.broadcast_to(by_size[:, None], cost.shape)
        cheapest = np.lexsort((fullness.ravel(), cost.ravel()))[: len(rows)]
        fold_of[rows] = cheapest // len(rows)
        counts[:, c] += np.bincount(fold_of[rows], minlength=len(shares))
    return fold_of


def _least(cost: np.ndarray, size: np.ndarray) -> int:
    """The fold of least cost; ties go to the fold with fewer images."""
    return int(np.lexsort((size, np.round(cost, 12)))[0])
