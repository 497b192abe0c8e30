"""Stores and labels in; what is to be learned of which images, and which are kept out of it, out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral

import numpy as np
from sklearn.pipeline import Pipeline

from featx.errors import Call, FeatxError, KeysError, Parameter, StoreError, listed
from featx.learn.features import StoredFeatures
from featx.learn.scores import Metric
from featx.learn.selection.splits import Split, Tied, column_of, group_numbers, hold_out, is_numeric, refuse_parted, tie
from featx.manifest import text_array
from featx.request import refuse_several_hold_outs
from featx.store import FeatureStore

Stores = FeatureStore | Sequence[FeatureStore]
Labels = str | Sequence[object] | np.ndarray | None
_SEEDS = 2**31  # one more for each repeat, and still what scikit-learn takes


@dataclass(frozen=True, eq=False)
class Question:
    """Labelled images to learn from, and others, the test set, that nothing but the last score may see.

    X, y : (n, 1) keys and (n,) labels to learn from: class names, or float64
    tied : which of them stay together, or None
    X_test, y_test : (m, 1), (m,), or None
    test_groups : (m,) numbers, or None
    test_store : where X_test are, if not in `stores`
    n_duplicates : images of `stores` whose content another one has too, and that stay together
    n_groups : groups among all images, or None
    """

    stores: list[FeatureStore] = field(repr=False)
    X: np.ndarray
    y: np.ndarray
    tied: Tied | None
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
        """What a guess scores among the images to learn from: the most frequent class; for decision scores, all equal;
        for R^2 the mean, and for the mean absolute error the median."""
        if metric.is_ranked:
            return 0.5
        if self.is_numeric:
            guess = np.mean(self.y) if metric.name == "r2" else np.median(self.y)
        else:
            names, counts = np.unique(self.y, return_counts=True)
            guess = names[counts.argmax()]
        return metric.score(self.y, np.full(len(self.y), guess))

    def reading_test(self, pipeline: Pipeline) -> Pipeline:
        """A fitted pipeline as it reads the rows of X_test: from the test store, if there is one."""
        if self.test_store is None:
            return pipeline
        reading = StoredFeatures(self.test_store, list(pipeline["features"].layers_)).fit()
        return Pipeline([("features", reading), *pipeline.steps[1:]])

    def parted(self, chosen: np.ndarray) -> Split:
        """Positions in X of those that are not chosen, and of those that are, by a mask of the first store's images.

        Raises
        ------
        FeatxError
            A group, or images of the same content, would be split between training and test.
        """
        rows = self.stores[0].rows(self.X)
        chosen = _mask(chosen, len(self.stores[0]), "validation_rows")[rows]
        if chosen.all() or not chosen.any():
            raise FeatxError("the validation rows must be some of the training images, not all and not none")
        if self.tied is not None and len(
            shared := np.intersect1d(self.tied.numbers[chosen], self.tied.numbers[~chosen])
        ):
            name = self.stores[0].ids[rows[self.tied.numbers == shared[0]][0]]
            raise FeatxError(
                f"{len(shared):,} {self.tied.noun} are both among the validation images and those to learn from, "
                f"{str(name)!r} is of one of them: put each on one side"
            )
        if not self.is_numeric and (missing := sorted(set(self.y) - set(self.y[~chosen]))):
            raise FeatxError(f"the images to learn from need every class; there is none of {listed(missing)}")
        return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def ask(
    stores: Stores,
    y: Labels,
    *,
    random_state: int,
    groups: str | Sequence[object] | np.ndarray | None = None,
    allow_duplicates: bool = False,
    test_size: float = 0.2,
    test_rows: np.ndarray | None = None,
    test_store: FeatureStore | None = None,
) -> Question:
    """Parameters and errors as of `select_model`."""
    stores = [stores] if isinstance(stores, FeatureStore | str | os.PathLike) else list(stores)
    if strange := [other for other in stores if not isinstance(other, FeatureStore)]:
        raise FeatxError(f"a store is a featx.FeatureStore; got {strange[0]!r}; featx.FeatureStore(path) opens one")
    store = stores[0]
    if not isinstance(random_state, Integral) or not 0 <= random_state < _SEEDS:
        raise FeatxError(
            "the seed (",
            Parameter("random_state"),
            f") is a whole number from 0 to {_SEEDS - 1}; got {random_state!r}",
        )
    chosen = {"test_rows": test_rows, "test_store": test_store}
    refuse_several_hold_outs([name for name, value in chosen.items() if value is not None])
    labels = labels_of(store, y)
    if not is_numeric(labels) and len(np.unique(labels)) < 2:
        raise FeatxError(f"at least two classes are needed to tell apart; there is only {str(labels[0])!r}")
    for other in stores[1:]:
        if len(lacking := np.setdiff1d(store.ids, other.ids)):
            raise KeysError(
                f"stores that are searched together hold the same images; {other.path.name} lacks "
                f"{listed(lacking.tolist())}. ",
                Call("featx.merge"),
                " makes one store of several with different images",
            )
        other.rows(store.X)  # raises where images of the same id differ
    numbers = group_numbers(store, groups)
    tied = tie(store, numbers, allow_duplicates)
    if test_store is not None:
        train, test = np.arange(len(store)), np.arange(0)
    elif test_rows is not None:
        held_out = _mask(test_rows, len(store), "test_rows")
        if held_out.all() or not held_out.any():
            raise FeatxError("the test rows must be some of the images, not all and not none")
        refuse_parted(held_out, store, numbers, allow_duplicates)
        train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    else:
        train, test = hold_out(labels, tied, test_size, random_state)
    X_test, y_test = (store.X[test], labels[test]) if len(test) else (None, None)
    test_groups = None if numbers is None or not len(test) else numbers[test]
    if test_store is not None:
        if test_store.y is None and not isinstance(y, str):
            raise StoreError(
                f"{test_store.path.name} has no labels, and a test store is scored by its own: extract it from class "
                "folders, or from a manifest with labels"
            )
        X_test, y_test = test_store.X, labels_of(test_store, y if isinstance(y, str) else None)
        _refuse_unlike(store, labels, test_store, y_test, allow_duplicates)
        if isinstance(groups, str) and groups in test_store.columns:
            test_groups = _other_groups(store, test_store, groups)
    if is_numeric(labels) and np.ptp(labels[train]) == 0:
        raise FeatxError(f"the training images need labels that differ; they are all {labels[train][0]:g}")
    if not is_numeric(labels) and len(np.unique(labels[train])) < 2:
        raise FeatxError(f"the training images need two classes or more; they are all {str(labels[train][0])!r}")
    return Question(
        stores=stores,
        X=store.X[train],
        y=labels[train],
        tied=None if tied is None else tied.of(train),
        X_test=X_test,
        y_test=y_test,
        test_groups=test_groups,
        test_store=test_store,
        n_duplicates=0 if allow_duplicates else sum(map(len, store.duplicates)),
        n_groups=None if numbers is None else int(numbers.max()) + 1,
    )


def labels_of(store: FeatureStore, y: Labels) -> np.ndarray:
    """(n,) class names, the store's own or those of a column; or float64 where the labels are floats."""
    if isinstance(y, str):
        return column_of(store, y, "label")
    labels = store.y if y is None else np.asarray(y)
    if labels is None:
        raise StoreError(
            f"{store.path.name} has no labels; give them: ",
            Parameter("y", Call("store.align", "'labels.csv'")),
        )
    if labels.shape != (len(store),):
        raise StoreError(f"one label an image is needed: {store.path.name} has {len(store):,}, got {len(labels):,}")
    if labels.dtype.kind != "f":
        return text_array([*map(str, labels.tolist())]) if labels.dtype == object else labels.astype(str)
    if not np.isfinite(labels).all():
        raise StoreError(f"labels that are numbers are finite; got {labels[~np.isfinite(labels)][0]}")
    return labels.astype(np.float64)


def _mask(rows: np.ndarray, n: int, name: str) -> np.ndarray:
    rows = np.asarray(rows, bool)
    if rows.shape != (n,):
        raise FeatxError(f"{name} says of each of the {n:,} images whether it is held out; got {rows.shape}")
    return rows


def _other_groups(store: FeatureStore, test_store: FeatureStore, name: str) -> np.ndarray:
    """(m,) numbers of the test images' groups, none of which is a group of the training images."""
    found = column_of(test_store, name, "group")
    if shared := sorted(set(found) & set(store.columns[name])):
        raise FeatxError(
            f"test images are of other groups than the training images; {len(shared):,} of column {name!r} are in both "
            f"stores: {listed(shared)}"
        )
    return np.unique(found, return_inverse=True)[1]


def _refuse_unlike(
    store: FeatureStore, y: np.ndarray, test_store: FeatureStore, y_test: np.ndarray, allow_duplicates: bool
) -> None:
    """Refuse a test store that a score of what is learned here would say nothing about."""
    shared = set(map(bytes, test_store.digests)) & set(map(bytes, store.digests))
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
        raise FeatxError(f"the test store has classes that the training images have not: {listed(unknown)}")
