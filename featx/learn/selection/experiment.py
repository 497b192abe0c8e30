"""The experiment of a search or protocol: labelled images to train on, and held-out images for the final score."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from sklearn.pipeline import Pipeline

from featx.errors import Call, FeatxError, KeysError, Parameter, StoreError, listed
from featx.learn.features import StoredFeatures
from featx.learn.scores import Metric
from featx.learn.selection.parameters import brief, check_flags, check_rows, check_share, counts, sequence
from featx.learn.selection.splits import (
    Groups,
    Split,
    column_of,
    group_numbers,
    groups_of,
    hold_out,
    is_near_duplicates,
    is_numeric,
    one_per_image,
    refuse_split_groups,
)
from featx.manifest import text_array
from featx.store import FeatureStore, near_duplicate_groups, near_duplicates

Stores = FeatureStore | Sequence[FeatureStore]
Labels = str | Sequence[object] | np.ndarray | None
_SEEDS = 2**31  # each repeat adds one, and scikit-learn takes seeds below 2**32
_LARGEST, _CLOSEST = 1e30, 1e-100  # size of numeric labels, and their range


@dataclass(frozen=True, eq=False)
class HoldOut:
    """Held-out images, on which the choice of a search is scored; exactly one parameter is passed.

    Parameters
    ----------
    size : float, optional
        Share of the images, drawn at random: stratified, and by whole groups. 0 holds out none.
    rows : (n,) bool, optional
        The images, in the order of the first store.
    store : FeatureStore, optional
        All images of another store, with its labels. Its rows must mean what those of the searched stores mean: the
        same network, weights, preprocessing, decoder and layers.

    Raises
    ------
    FeatxError
        Not exactly one parameter is passed, or its value has another type or is out of range.
    """

    size: float | None = None
    rows: np.ndarray | None = None
    store: FeatureStore | None = None

    def __post_init__(self) -> None:
        names = [name for name in ("size", "rows", "store") if getattr(self, name) is not None]
        if len(names) != 1:
            raise FeatxError(f"HoldOut takes one of size, rows and store; got {' and '.join(names) or 'none'}")
        if self.size is not None:
            check_share("size", self.size, "images held out", may_be_zero=True)
        if self.rows is not None:
            check_rows(Parameter("rows"), self.rows)
        if self.store is not None and not isinstance(self.store, FeatureStore):
            raise FeatxError(
                f"store is a featx.FeatureStore; got {brief(self.store)}; featx.FeatureStore(path) opens one"
            )


A_FIFTH = HoldOut(0.2)


@dataclass(frozen=True, eq=False)
class Experiment:
    """Labelled images to train on, and a test set that only the final score may see.

    X, y : (n, 1) keys and (n,) labels to train on: class names, or float64
    groups : which of these images must stay together, or None
    X_test, y_test : (m, 1), (m,), or None
    test_groups : (m,) numbers, or None
    test_store : the store of X_test, if it is not one of `stores`
    n_duplicates : labelled images of `stores` that have the same content as another one, and stay together
    n_groups : number of groups among all labelled images, or None
    """

    stores: list[FeatureStore] = field(repr=False)
    X: np.ndarray
    y: np.ndarray
    groups: Groups | None
    X_test: np.ndarray | None
    y_test: np.ndarray | None
    test_groups: np.ndarray | None
    test_store: FeatureStore | None
    n_duplicates: int
    n_groups: int | None

    @property
    def is_numeric(self) -> bool:
        return is_numeric(self.y)

    @property
    def classes(self) -> np.ndarray | None:
        return None if self.is_numeric else np.unique(self.y)

    def chance(self, metric: Metric) -> float:
        """The score of a constant prediction on the training images: the most frequent class; equal decision scores for
        a ranking metric; the mean for R^2, and the median for the mean absolute error."""
        if metric.is_ranked:
            return 0.5
        if self.is_numeric:
            guess = np.mean(self.y) if metric.name == "r2" else np.median(self.y)
        else:
            names, counts = np.unique(self.y, return_counts=True)
            guess = names[counts.argmax()]
        return metric.score(self.y, np.full(len(self.y), guess))

    def reading_test(self, pipeline: Pipeline) -> Pipeline:
        """The fitted pipeline, reading from the test store if there is one."""
        return pipeline if self.test_store is None else reading_from(pipeline, self.test_store)

    def split_validation(self, rows: np.ndarray) -> Split:
        """(positions to train on, positions to validate on) in X.

        rows : (n,) bool, the images of the first store to validate on

        Raises
        ------
        FeatxError
            A group, or images of the same content, would be split between training and validation.
        """
        of_X = self.stores[0].rows(self.X)
        is_validation = check_rows(Parameter("validation_rows"), rows, len(self.stores[0]))[of_X]
        if is_validation.all() or not is_validation.any():
            raise FeatxError(
                "the validation images (",
                Parameter("validation_rows"),
                ") must be some of the training images, not all and not none",
            )
        if self.groups is not None and len(
            shared := np.intersect1d(self.groups.numbers[is_validation], self.groups.numbers[~is_validation])
        ):
            name = self.stores[0].ids[of_X[self.groups.numbers == shared[0]][0]]
            raise FeatxError(
                f"{len(shared):,} {self.groups.noun} are both among the validation images and those to learn from, "
                f"for example that of {str(name)!r}: put each on one side"
            )
        if not self.is_numeric and (missing := sorted(set(self.y) - set(self.y[~is_validation]))):
            raise FeatxError(f"the images to learn from need every class; there is none of {listed(missing)}")
        return np.flatnonzero(~is_validation), np.flatnonzero(is_validation)


def reading_from(pipeline: Pipeline, store: FeatureStore) -> Pipeline:
    """A pipeline with the same fitted steps, whose features are read from another store."""
    features = pipeline["features"]
    reading = StoredFeatures(store, list(features.layers_), features.device, features.view).fit()
    return Pipeline([("features", reading), *pipeline.steps[1:]])


def define_experiment(
    stores: Stores,
    y: Labels,
    *,
    random_state: int,
    groups: str | Sequence[object] | np.ndarray | None = None,
    allow_duplicates: bool = False,
    holdout: HoldOut = A_FIFTH,
) -> Experiment:
    """Look up labels, groups and held-out images; parameters and errors as in `select_model`."""
    stores = _checked_stores(stores)
    store = stores[0]
    if counts([random_state], 0, _SEEDS - 1) is None:
        raise FeatxError(
            "the seed (",
            Parameter("random_state"),
            f") is an integer from 0 to {_SEEDS - 1}; got {brief(random_state)}",
        )
    check_flags(allow_duplicates=allow_duplicates)
    if not isinstance(holdout, HoldOut):
        raise FeatxError(f"holdout is a featx.learn.HoldOut, HoldOut(0.2) for example; got {brief(holdout)}")
    has_label = ~np.ma.getmaskarray(y) if isinstance(y, np.ma.MaskedArray) else np.ones(len(store), bool)
    labels = labels_of(store, y)
    labelled = np.flatnonzero(has_label)
    if not is_numeric(labels) and len(np.unique(labels[labelled])) < 2:
        raise FeatxError(f"at least two classes are needed; there is only {str(labels[labelled][0])!r}")
    if is_numeric(labels):
        _refuse_extreme(labels[labelled])
    for other in stores[1:]:
        if len(lacking := np.setdiff1d(store.ids, other.ids)):
            raise KeysError(
                f"stores that are searched together must hold the same images; {other.path.name} lacks "
                f"{listed(lacking.tolist())}. ",
                Call("featx.merge"),
                " makes one store of several with different images",
            )
        if (store.recipe.is_imported or other.recipe.is_imported) and not np.isin(store.X, other.X).all():
            raise KeysError(
                f"{other.path.name} has other rows for the same ids, so its images count as other ones: features that "
                "are searched together must be imported as layers of one store"
            )
        other.rows(store.X)  # raises where images of the same id differ
    numbers = group_numbers(store, groups)
    together = groups_of(store, numbers, allow_duplicates)
    test_store = holdout.store
    if test_store is not None:
        train, test = labelled, np.arange(0)
    elif holdout.rows is not None:
        in_holdout = Parameter("holdout", Call("HoldOut", Parameter("rows", ...)))
        held_out = check_rows(in_holdout, holdout.rows, len(store))
        if held_out[labelled].all() or not held_out[labelled].any():
            raise FeatxError("the test images (", in_holdout, ") must be some of the images, not all and not none")
        refuse_split_groups(held_out, store, numbers, allow_duplicates, has_label)
        train, test = np.flatnonzero(has_label & ~held_out), np.flatnonzero(has_label & held_out)
    else:
        of_labelled = None if together is None else together.of(labelled)
        train, test = (
            labelled[side] for side in hold_out(labels[labelled], of_labelled, holdout.size or 0, random_state)
        )
    X_test, y_test = (store.X[test], labels[test]) if len(test) else (None, None)
    test_groups = None if numbers is None or not len(test) else numbers[test]
    if test_store is not None:
        if test_store.y is None and not isinstance(y, str):
            raise StoreError(
                f"{test_store.path.name} has no labels, and a test store is scored by its own: extract it from class "
                "folders, or from a manifest with labels"
            )
        X_test, y_test = test_store.X, labels_of(test_store, y if isinstance(y, str) else None)
        _refuse_unlike(store.digests[train], labels[train], test_store, y_test, allow_duplicates)
        if is_near_duplicates(store, groups):
            test_groups = _groups_without_copies(store, train, test_store)
        elif isinstance(groups, str) and groups in test_store.columns:
            test_groups = _other_groups(store, test_store, groups)
    if is_numeric(labels) and np.ptp(labels[train]) == 0:
        raise FeatxError(f"the training images need labels that differ; they are all {labels[train][0]:g}")
    if not is_numeric(labels) and len(np.unique(labels[train])) < 2:
        raise FeatxError(f"the training images need two classes or more; they are all {str(labels[train][0])!r}")
    return Experiment(
        stores=stores,
        X=store.X[train],
        y=labels[train],
        groups=None if together is None else together.of(train),
        X_test=X_test,
        y_test=y_test,
        test_groups=test_groups,
        test_store=test_store,
        n_duplicates=0 if allow_duplicates else _n_duplicates(store, has_label),
        n_groups=None if numbers is None else len(np.unique(numbers[labelled])),
    )


def _n_duplicates(store: FeatureStore, has_label: np.ndarray) -> int:
    counts = [int(has_label[rows].sum()) for rows in store.duplicates]
    return sum(n for n in counts if n > 1)


def _checked_stores(stores: Stores) -> list[FeatureStore]:
    every = [stores] if isinstance(stores, FeatureStore | str | os.PathLike) else sequence(stores)
    if not every:
        raise FeatxError(Parameter("stores"), f" is a featx.FeatureStore or several; got {brief(stores)}")
    if other := [store for store in every if not isinstance(store, FeatureStore)]:
        raise FeatxError(
            "each of ",
            Parameter("stores"),
            f" is a featx.FeatureStore; got {brief(other[0])}; featx.FeatureStore(path) opens one",
        )
    return every


def labels_of(store: FeatureStore, y: Labels) -> np.ndarray:
    """(n,) class names, the store's own or of a column; or float64 if the labels are floats.

    Where labels are masked, they are some label.
    """
    if isinstance(y, str):
        return column_of(store, y, "label")
    if isinstance(y, np.ma.MaskedArray):
        if not len(present := y.compressed()):
            raise StoreError("all labels (", Parameter("y"), ") are masked; give some images a label")
        y = y.filled(present[0])
    labels = store.y if y is None else one_per_image(store, y, "label", "y")
    if labels is None:
        raise StoreError(
            f"{store.path.name} has no labels; give them: ",
            Parameter("y", Call("store.align", "'labels.csv'")),
        )
    if labels.dtype.kind != "f":
        return text_array([*map(str, labels.tolist())]) if labels.dtype == object else labels.astype(str)
    if not np.isfinite(labels).all():
        raise StoreError(f"numeric labels must be finite; got {labels[~np.isfinite(labels)][0]}")
    return labels.astype(np.float64)


def _other_groups(store: FeatureStore, test_store: FeatureStore, name: str) -> np.ndarray:
    """(m,) numbers of the test images' groups; raises FeatxError if one is a group of the training images too."""
    values = column_of(test_store, name, "group")
    if shared := sorted(set(values) & set(store.columns[name])):
        raise FeatxError(
            f"test images must be of other groups than the training images; {len(shared):,} of column {name!r} are in "
            f"both stores: {listed(shared)}"
        )
    return np.unique(values, return_inverse=True)[1]


def _groups_without_copies(store: FeatureStore, train: np.ndarray, test_store: FeatureStore) -> np.ndarray:
    """(m,) numbers of the test images' groups of copies; raises FeatxError if one is a copy of a training image."""
    groups, layer = near_duplicate_groups(test_store), store.layers[-1]
    copies = near_duplicates(store, test_store, layer if layer in test_store.layers else None)
    pairs = copies.pairs[np.isin(copies.pairs[:, 0], train)]
    if len(pairs):
        ids = [f"{str(test_store.ids[row])!r} of {str(store.ids[of])!r}" for of, row in pairs[:3].tolist()]
        raise FeatxError(
            f"{len(np.unique(pairs[:, 1])):,} of the {len(test_store):,} test images are near duplicates of training "
            f"images: {', '.join(ids)}{' ...' if len(pairs) > 3 else ''}; take them out of one of the stores"
        )
    return groups


def _refuse_extreme(y: np.ndarray) -> None:
    """Raise FeatxError if the numbers would overflow in float32, or the squares of their differences underflow."""
    low, high = float(y.min()), float(y.max())
    if max(-low, high) > _LARGEST or 0 < high - low < _CLOSEST:
        raise FeatxError(
            f"labels are numbers up to {_LARGEST:g} in size that differ by {_CLOSEST:g} or more; got numbers from "
            f"{low:g} to {high:g}; multiply them by a power of ten"
        )


def _refuse_unlike(
    digests: np.ndarray, y: np.ndarray, test_store: FeatureStore, y_test: np.ndarray, allow_duplicates: bool
) -> None:
    """Raise FeatxError if a score on the test store would be meaningless: shared images, or other labels.

    digests, y : of the training images
    """
    shared = set(map(bytes, test_store.digests)) & set(map(bytes, digests))
    if shared and not allow_duplicates:
        raise FeatxError(
            f"{len(shared):,} of the {len(test_store):,} test images are training images too; a score on them says "
            "nothing: take them out of one of the stores"
        )
    if is_numeric(y) != is_numeric(y_test):
        kinds = ("numbers", "classes") if is_numeric(y) else ("classes", "numbers")
        raise FeatxError(
            f"the labels are {kinds[0]} here and {kinds[1]} in the test store; extract both with one target"
        )
    if not is_numeric(y) and (unknown := sorted(set(y_test) - set(y))):
        raise FeatxError(f"the test store has classes that the training images lack: {listed(unknown)}")
