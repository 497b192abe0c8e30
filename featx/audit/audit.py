"""`audit`: everything a store says about its data, in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from featx.audit.confusion import ConfusedPair, confused_pairs
from featx.audit.findings import Audit
from featx.audit.label_errors import LabelErrors, label_errors
from featx.audit.outliers import LEAST_IMAGES, outliers
from featx.audit.shift import LEAST_DIFFERENT, Side, shift
from featx.audit.shortcuts import Shortcut, shortcuts
from featx.errors import FeatxError, Parameter, StoreError, listed
from featx.learn.selection import Groups, Labels, brief, check_integer, group_numbers, labels_of
from featx.store import Copies, FeatureStore, connected, near_duplicates, pairs_of_equal

_MOST_LAYERS = 4
_MOST_NUMBERS = 2**16  # of a row
_LEAST_IN_CLASS = 5  # different images
_AGAIN = "extract the same images to it again, which computes them and keeps all rows"


def audit(
    store: FeatureStore,
    y: Labels = None,
    *,
    test: FeatureStore | Sequence[bool] | np.ndarray | None = None,
    layers: Sequence[str] | None = None,
    groups: str | Sequence[object] | np.ndarray | None = None,
    random_state: int = 0,
    on_step: Callable[[str], None] = lambda step: None,
) -> Audit:
    """Look for wrong labels, copies, outliers, confused classes, shortcuts, and differences between training and test.

    Parameters
    ----------
    store : FeatureStore
    y : (n,) labels, or a column of the store, optional
        By default the store's labels. Without class names only copies, outliers and a split's features are audited.
    test : FeatureStore or (n,) bool, optional
        The test images: another store by the same recipe, or which of this store's images they are.
    layers : sequence of str, optional
        Layers by which labels are judged; the last one is for distances, too. By default at most four, spread over the
        store's.
    groups : column or (n,) values, optional
        Images of one group, for example of one patient, are never split between training and test.
    random_state : int
        Seed of the folds.
    on_step : callable
        Called with the name of each step.

    Returns
    -------
    Audit

    Raises
    ------
    FeatxError, StoreError
        A parameter does not fit the store.
    LayerError
        The store has no such layer.

    Examples
    --------
    >>> for finding in audit(FeatureStore("photos.h5")).findings(): print(finding)    # doctest: +SKIP
    """
    start = time.monotonic()
    if not isinstance(store, FeatureStore):
        raise FeatxError(f"store is a featx.FeatureStore; got {brief(store)}; featx.FeatureStore(path) opens one")
    check_integer("random_state", random_state, 0)
    missing: list[str] = []
    labels = _class_names(store, y, missing)
    chosen = _layers(store, layers)
    layer = chosen[-1]
    test_rows, test_store = _test_of(store, test, chosen)
    numbers = group_numbers(store, groups)
    _add_without_statistics(store, test_store, missing)
    on_step("comparing images with one another")
    copies = near_duplicates(store, layer=layer)
    together = _together(len(store), copies.pairs, numbers)
    finite = _finite_rows(store, chosen)
    if not len(finite):
        missing.append(f"labels and outliers: no image has finite features of {listed(chosen)}")
    judged = _Judged(None, [], [], {})
    if labels is not None and len(finite):
        column = y if isinstance(y, str) else ""
        judged = _judge(store, labels, column, chosen, together, finite, random_state, missing, on_step)
    on_step("looking for outliers")
    classes = None if labels is None or (labels == "").any() else labels
    unlike = outliers(store, layer, classes, finite)
    if 0 < len(finite) < LEAST_IMAGES:
        missing.append(f"outliers by features: they need {LEAST_IMAGES} images; there are {len(finite)}")
    duplicates, leaks, split = copies, None, None
    if test_store is not None or test_rows is not None:
        on_step("comparing test with training images")
        if test_store is not None:
            leaks = near_duplicates(store, test_store, layer)
            training, tested = _two_stores(store, test_store, layer, labels, groups, together, leaks, missing)
        else:
            assert test_rows is not None
            across = test_rows[copies.pairs[:, 0]] != test_rows[copies.pairs[:, 1]]
            duplicates, leaks = _some(copies, ~across), _leaks(store, _some(copies, across), test_rows)
            named = _names_of(store, groups)
            training, tested = (
                _side(store, layer, together.numbers, labels, named, of) for of in (~test_rows, test_rows)
            )
        split = shift(training, tested, random_state)
        if split.auc is None:
            missing.append(
                f"whether test images are like training images: that needs {LEAST_DIFFERENT} {together.noun} on each "
                "side"
            )
    return Audit(
        store=store,
        test=test_store,
        y=labels,
        layers=tuple(chosen),
        labels=judged.labels,
        duplicates=duplicates,
        leaks=leaks,
        outliers=unlike,
        confused=judged.confused,
        too_small=judged.too_small,
        shortcuts=judged.shortcuts,
        split=split,
        unit=together.noun.removesuffix("s"),
        missing=missing,
        seconds=time.monotonic() - start,
    )


def _class_names(store: FeatureStore, y: Labels, missing: list[str]) -> np.ndarray | None:
    """(n,) class names, "" where labels are masked; or None, and why."""
    by_class = "labels, confused classes and shortcuts"
    if y is None and store.y is None:
        missing.append(
            f"{by_class}: the store has no labels; give some, in the order of its images or as a CSV file by image id"
        )
        return None
    labels = labels_of(store, y)
    if labels.dtype.kind == "f":
        missing.append(f"{by_class}: they need class names, and the labels are numbers")
        return None
    return np.where(np.ma.getmaskarray(y), "", labels) if isinstance(y, np.ma.MaskedArray) else labels


def _add_without_statistics(store: FeatureStore, test: FeatureStore | None, missing: list[str]) -> None:
    without = [each.path.name for each in (store, test) if each is not None and not each.statistics]
    if store.statistics and without:
        missing.append(f"near duplicates across the split: {without[0]} keeps no statistics of its images; {_AGAIN}")
    elif without and store.recipe.is_imported:
        missing.append(
            "near duplicates, image quality and shortcuts by file: imported rows have no statistics of images"
        )
    elif without:
        missing.append(
            "near duplicates, image quality and shortcuts by file: the store keeps no statistics of its images; "
            f"{_AGAIN}"
        )


class _Judged(NamedTuple):
    """What the labels of a store tell; see `Audit`."""

    labels: LabelErrors | None
    confused: list[ConfusedPair]
    shortcuts: list[Shortcut]
    too_small: dict[str, int]


def _judge(
    store: FeatureStore,
    labels: np.ndarray,
    column: str,
    layers: Sequence[str],
    together: Groups,
    finite: np.ndarray,
    random_state: int,
    missing: list[str],
    on_step: Callable[[str], None],
) -> _Judged:
    """column : the column that the labels are from, or "" """
    rows, too_small = _judged_rows(labels, together.numbers, finite)
    if len(np.unique(labels[rows])) < 2:
        missing.append(
            f"labels, confused classes and shortcuts: they need two classes of {_LEAST_IN_CLASS} {together.noun}"
        )
        return _Judged(None, [], [], too_small)
    judged = label_errors(store, labels, rows, layers, together, random_state=random_state, on_step=on_step)
    on_step("looking for shortcuts")
    predicted = np.empty(len(store), object)
    predicted[judged.rows] = judged.suggested
    right = predicted[rows] == labels[rows]
    score = float(np.mean([right[labels[rows] == name].mean() for name in judged.classes]))
    telling = shortcuts(store, labels, rows, together, right, score, random_state, leave_out=column)
    pairs = [] if judged.is_open else confused_pairs(judged, labels)
    return _Judged(judged, pairs, telling, too_small)


def _layers(store: FeatureStore, layers: Sequence[str] | None) -> list[str]:
    if layers is not None:
        if isinstance(layers, str) or not len(layers):
            raise FeatxError(Parameter("layers"), f" is a list of one or more layers of the store; got {brief(layers)}")
        return list(dict.fromkeys(store.recipe.layer(name) for name in layers))
    able = [name for name in store.layers if store.row_bytes(name) <= 4 * _MOST_NUMBERS] or list(store.layers[-1:])
    places = np.unique(np.linspace(0, len(able) - 1, min(_MOST_LAYERS, len(able))).round().astype(int))
    return [able[i] for i in places]


def _test_of(store: FeatureStore, test: object, layers: Sequence[str]) -> tuple[np.ndarray | None, FeatureStore | None]:
    """(which of the store's images are for testing, the other store)."""
    if test is None:
        return None, None
    if isinstance(test, FeatureStore):
        if absent := [name for name in layers if name not in test.layers]:
            raise StoreError(
                f"{test.path.name} does not have {listed(absent)}; name layers of both (", Parameter("layers"), ")"
            )
        if differences := store.recipe.some(layers).other_meaning(test.recipe.some(layers)):
            raise StoreError(
                f"rows of {test.path.name} mean something else than those of {store.path.name}: "
                f"{'; '.join(map(str, differences))}; extract its images again with ",
                Parameter("like", store.path.name),
            )
        return None, test
    rows = np.asarray(test)
    if rows.dtype != bool or rows.shape != (len(store),):
        raise FeatxError(
            Parameter("test"),
            f" is a FeatureStore, or ({len(store)},) bool: which images are for testing; got {brief(test)}",
        )
    if rows.all() or not rows.any():
        raise FeatxError(Parameter("test"), " needs images on both sides: training and test")
    return rows, None


def _some(copies: Copies, of: np.ndarray) -> Copies:
    return copies._replace(**{name: getattr(copies, name)[of] for name in Copies._fields if name != "most_bits"})


def _leaks(store: FeatureStore, across: Copies, test_rows: np.ndarray) -> Copies:
    """Pairs across the split, each with its training image first, and every test image that is in a training file.

    across : pairs with an image on each side; of many copies of one file they do not name all
    """
    swapped = test_rows[across.pairs[:, 0]]
    pairs = np.where(swapped[:, None], across.pairs[:, ::-1], across.pairs)
    named = set(pairs[:, 1].tolist())
    more = [
        (int(group[~test_rows[group]][0]), row)
        for group in store.duplicates
        if not test_rows[group].all()
        for row in group[test_rows[group]].tolist()
        if row not in named
    ]
    n = len(more)
    return Copies(
        np.concatenate([np.array(more, np.int64).reshape(-1, 2), pairs]),
        np.concatenate([np.full(n, "exact"), across.kinds]),
        np.concatenate([np.zeros(n, np.int64), across.bits]),
        np.concatenate([np.zeros(n, bool), across.are_mirrored]),
        np.concatenate([np.ones(n), across.similarity]),
        across.most_bits,
    )


def _together(n: int, pairs: np.ndarray, numbers: np.ndarray | None) -> Groups:
    """Images that are never split between training and test: copies, and those of one group."""
    if numbers is None:
        return Groups(connected(n, pairs), "different images")
    return Groups(connected(n, np.concatenate([pairs, pairs_of_equal(numbers)])), "groups")


def _finite_rows(store: FeatureStore, layers: Sequence[str]) -> np.ndarray:
    marked = {entry.id for entry in store.nonfinite if entry.layer in layers}
    if not marked:
        return np.arange(len(store))
    return np.flatnonzero([name not in marked for name in store.ids.tolist()])


def _judged_rows(y: np.ndarray, units: np.ndarray, finite: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    """(rows of classes with five different images or more, {class: number of different images} of the others)."""
    rows = finite[y[finite] != ""]
    too_small = {}
    for name in np.unique(y[y != ""]).tolist():
        n = len(np.unique(units[rows][y[rows] == name]))
        if n < _LEAST_IN_CLASS:
            too_small[str(name)] = n
    return rows[~np.isin(y[rows].astype(str), list(too_small))], too_small


def _names_of(store: FeatureStore, groups: str | Sequence[object] | np.ndarray | None) -> np.ndarray | None:
    """(n,) names of groups; None if there are none, or they are copies."""
    if isinstance(groups, str):
        return store.columns.get(groups)
    return None if groups is None else np.array([*map(str, groups)])


def _two_stores(
    store: FeatureStore,
    test: FeatureStore,
    layer: str,
    y: np.ndarray | None,
    groups: str | Sequence[object] | np.ndarray | None,
    together: Groups,
    leaks: Copies,
    missing: list[str],
) -> tuple[Side, Side]:
    """The images of both stores; copies, and images of one group, have one number, across the stores too."""
    n = len(store)
    named = _names_of(store, groups)
    of_test = test.columns.get(groups) if isinstance(groups, str) else None
    if named is not None and of_test is None:
        missing.append(f"common groups: {test.path.name} has no groups; they are of a column of both stores")
    inside = near_duplicates(test, layer=layer).pairs
    edges = [pairs_of_equal(together.numbers), leaks.pairs + [0, n], inside + n]
    if named is not None and of_test is not None:
        edges.append(pairs_of_equal(np.concatenate([named.astype(str), of_test.astype(str)])))
    numbers = connected(n + len(test), np.concatenate(edges))
    test_y = None if test.classes is None else test.y
    return (
        _side(store, layer, numbers[:n], y, named, np.ones(n, bool)),
        _side(test, layer, numbers[n:], test_y, of_test, np.ones(len(test), bool)),
    )


def _side(
    store: FeatureStore,
    layer: str,
    together: np.ndarray,
    y: np.ndarray | None,
    groups: np.ndarray | None,
    of: np.ndarray,
) -> Side:
    finite = _finite_rows(store, [layer])
    rows = finite[of[finite]]
    features = store.take(rows, layer)
    features = features.reshape(len(rows), int(np.prod(features.shape[1:]))).astype(np.float32)
    return Side(features, together[rows], *(None if values is None else values[rows] for values in (y, groups)))
