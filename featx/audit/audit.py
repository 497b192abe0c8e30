"""`audit`: everything a store says about its data, in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from featx.audit.confusion import ConfusedPair, confused_pairs
from featx.audit.label_errors import LabelErrors, label_errors
from featx.audit.outliers import Outlier, outliers
from featx.audit.shift import Shift, Side, shift
from featx.audit.shortcuts import Shortcut, shortcuts
from featx.errors import FeatxError, Parameter, StoreError, count, listed
from featx.learn.selection import Groups, Labels, brief, check_integer, group_numbers, labels_of
from featx.store import Copies, FeatureStore, connected, near_duplicates

_MOST_LAYERS = 4
_MOST_NUMBERS = 2**16  # of a row
_LEAST_IN_CLASS = 5  # different images


class Finding(NamedTuple):
    """One line of an audit's table.

    kind : "label", "duplicate", "leak", "outlier", "confused", "shortcut" or "split"
    rank : 1 for the first of its kind
    score : see `reason`; larger is worse
    id : the image, or "" for findings about the whole store
    other : the other image of a pair, or ""
    label : the image's given label, or ""
    suggestion : another label, or ""
    reason : in words
    row, other_row : rows in their stores, or -1
    """

    kind: str
    rank: int
    score: float
    id: str
    other: str
    label: str
    suggestion: str
    reason: str
    row: int
    other_row: int


@dataclass(frozen=True, eq=False)
class Audit:
    """What a store says about its data.

    Attributes
    ----------
    store : FeatureStore
    test : FeatureStore or None
        The store of the test images, if it is another one.
    y : (n,) labels, or None
    layers : the layers that were used, the one for distances last
    labels : LabelErrors or None
    duplicates : Copies
        Copies among the images; with test rows, those on one side.
    leaks : Copies or None
        Copies of training images among the test images, whose rows are second.
    outliers : list of Outlier
    confused : list of ConfusedPair
    too_small : {class: number of different images} of the classes that are too small to judge
    shortcuts : list of Shortcut
    split : Shift or None
    missing : list of str
        What could not be done, and how to get it.
    seconds : float
    """

    store: FeatureStore
    test: FeatureStore | None
    y: np.ndarray | None
    layers: tuple[str, ...]
    labels: LabelErrors | None
    duplicates: Copies
    leaks: Copies | None
    outliers: list[Outlier]
    confused: list[ConfusedPair]
    too_small: dict[str, int]
    shortcuts: list[Shortcut]
    split: Shift | None
    missing: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def findings(self) -> list[Finding]:
        """All findings as one table, those of a kind ranked."""
        makers = (
            self._label_findings,
            self._leak_findings,
            self._duplicate_findings,
            self._outlier_findings,
            self._confused_findings,
            self._shortcut_findings,
            self._split_findings,
        )
        return [finding for maker in makers for finding in maker()]

    def _label(self, row: int) -> str:
        return "" if self.y is None else str(self.y[row])

    def _label_findings(self) -> list[Finding]:
        judged, found = self.labels, []
        for i in range(0 if judged is None else judged.n_listed):
            assert judged is not None
            row, suggested = int(judged.rows[i]), str(judged.suggested[i])
            given = self._label(row)
            other = "" if suggested == given else suggested
            reason = f"wrong with probability {min(judged.probability[i], 0.99):.2f}"
            reason += f": the features say {other!r}" if other else ": no class fits well"
            found.append(_finding(self.store, "label", i, judged.probability[i], row, given, other, reason))
        return found

    def _duplicate_findings(self) -> list[Finding]:
        return [self._pair(self.store, "duplicate", self.duplicates, i) for i in range(len(self.duplicates.pairs))]

    def _leak_findings(self) -> list[Finding]:
        if self.leaks is None:
            return []
        return [self._pair(self.test or self.store, "leak", self.leaks, i) for i in range(len(self.leaks.pairs))]

    def _pair(self, other: FeatureStore, kind: str, copies: Copies, i: int) -> Finding:
        row, other_row = copies.pairs[i].tolist()
        reason = copy_reason(copies, i)
        first = self._label(row)
        if other is self.store and self.y is not None and (second := self._label(other_row)) != first:
            reason += f"; labelled {first!r} and {second!r}"
        made = _finding(self.store, kind, i, 1 - copies.bits[i] / 64, row, first, "", reason)
        return made._replace(other=str(other.ids[other_row]), other_row=other_row)

    def _outlier_findings(self) -> list[Finding]:
        return [
            _finding(self.store, "outlier", i, each.score, each.row, self._label(each.row), "", each.reason)
            for i, each in enumerate(self.outliers)
        ]

    def _confused_findings(self) -> list[Finding]:
        found = []
        for i, pair in enumerate(self.confused):
            times = count(pair.n_first, "time")
            reason = f"{pair.first!r} taken for {pair.second!r} {times}, the other way {pair.n_second:,}"
            found.append(_finding(self.store, "confused", i, pair.share, -1, pair.first, pair.second, reason))
        for name, n in self.too_small.items():
            reason = f"class {name!r} has {count(n, 'different image')}: too few to judge its labels"
            found.append(_finding(self.store, "confused", len(found), 0.0, -1, name, "", reason))
        return found

    def _shortcut_findings(self) -> list[Finding]:
        warned = [each for each in self.shortcuts if each.is_warning]
        return [
            _finding(self.store, "shortcut", i, each.score, -1, "", "", shortcut_reason(each))
            for i, each in enumerate(warned)
        ]

    def _split_findings(self) -> list[Finding]:
        reasons = [] if self.split is None else split_warnings(self.split)
        return [_finding(self.store, "split", i, score, -1, "", "", text) for i, (score, text) in enumerate(reasons)]


def _finding(
    store: FeatureStore, kind: str, i: int, score: float, row: int, label: str, suggestion: str, reason: str
) -> Finding:
    name = "" if row < 0 else str(store.ids[row])
    return Finding(kind, i + 1, float(score), name, "", label, suggestion, reason, row, -1)


def copy_reason(copies: Copies, i: int) -> str:
    """Why pair i are copies, in words."""
    mirrored = "mirror images: " if copies.are_mirrored[i] else ""
    match copies.kinds[i]:
        case "exact":
            return "the same file"
        case "hash":
            return f"{mirrored}hashes differ by {count(int(copies.bits[i]), 'bit')} of 64"
    alike = f"features alike ({copies.similarity[i]:.2f}) and hashes differ by {copies.bits[i]} bits of 64"
    return f"{mirrored}{alike}: cropped?"


def shortcut_reason(found: Shortcut) -> str:
    """What a column tells, in words."""
    text = (
        f"the label is predicted from {found.column} alone: balanced accuracy {found.score:.2f} "
        f"[{found.interval.low:.2f}, {found.interval.high:.2f}], chance {found.chance:.2f}"
    )
    if found.told_score > 0.9 and found.score < 0.9:
        text += f"; class {found.told!r} is told from the others almost always"
    return text


def split_warnings(found: Shift) -> list[tuple[float, str]]:
    """(score, text) of each difference between training and test images."""
    warnings = []
    if found.differs:
        text = (
            f"test images differ from training images: a classifier tells them apart with ROC AUC {found.auc:.2f} "
            f"[{found.interval.low:.2f}, {found.interval.high:.2f}]; 0.5 is chance"
        )
        warnings.append((found.auc, text))
    if found.shares_differ:
        name, (a, b) = max(found.shares.items(), key=lambda each: abs(each[1][0] - each[1][1]))
        text = (
            f"the shares of the classes differ (p = {found.p_value:.2g}), most for {name!r}: {a:.1%} of the training "
            f"images, {b:.1%} of the test images"
        )
        warnings.append((1 - (found.p_value or 0.0), text))
    if found.common_groups:
        text = f"{count(len(found.common_groups), 'group')} on both sides: {listed(found.common_groups)}"
        warnings.append((1.0, text))
    return warnings


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
    labels = None if y is None and store.y is None else labels_of(store, y)
    missing: list[str] = []
    if labels is None:
        missing.append("labels, confused classes and shortcuts: the store has no labels; give some (labels)")
    elif labels.dtype.kind == "f":
        missing.append("labels, confused classes and shortcuts: they need class names, and the labels are numbers")
        labels = None
    chosen = _layers(store, layers)
    if not store.statistics:
        missing.append(
            "near duplicates, image quality and shortcuts by file: "
            + (
                "imported rows have no statistics of images"
                if store.recipe.is_imported
                else "the store keeps no statistics of its images; extract the same images to it again, which computes "
                "them and keeps all rows"
            )
        )
    test_rows, test_store = _test_of(store, test, chosen)
    numbers = group_numbers(store, groups)
    on_step("comparing images with one another")
    layer = chosen[-1]
    every = near_duplicates(store, layer=layer)
    copies, leaks = every, None
    if test_store is not None:
        leaks = near_duplicates(store, test_store, layer)
    elif test_rows is not None:
        across = test_rows[every.pairs[:, 0]] != test_rows[every.pairs[:, 1]]
        copies, leaks = _some(every, ~across), _training_first(_some(every, across), test_rows)
    together = _together(len(store), every.pairs, numbers)
    finite = _finite_rows(store, chosen)
    judged: LabelErrors | None = None
    pairs: list[ConfusedPair] = []
    telling: list[Shortcut] = []
    too_small: dict[str, int] = {}
    if labels is not None:
        rows, too_small = _judged_rows(labels, together.numbers, finite)
        if len(np.unique(labels[rows])) < 2:
            missing.append(
                f"labels, confused classes and shortcuts: they need two classes of {_LEAST_IN_CLASS} different images"
            )
        else:
            judged = label_errors(store, labels, rows, chosen, together, random_state=random_state, on_step=on_step)
            pairs = confused_pairs(judged, labels)
            on_step("looking for shortcuts")
            telling = _shortcuts(store, labels, rows, together, judged, random_state)
    on_step("looking for outliers")
    unlike = outliers(store, layer, labels, finite)
    split = None
    if test is not None:
        on_step("comparing test with training images")
        sides = _sides(store, test_store, test_rows, layer, labels, groups, every.pairs, leaks)
        split = shift(*sides, random_state)
    return Audit(
        store,
        test_store,
        labels,
        tuple(chosen),
        judged,
        copies,
        leaks,
        unlike,
        pairs,
        too_small,
        telling,
        split,
        missing,
        time.monotonic() - start,
    )


def _layers(store: FeatureStore, layers: Sequence[str] | None) -> list[str]:
    if layers is not None:
        if isinstance(layers, str) or not len(layers):
            raise FeatxError(Parameter("layers"), f" is a list of one or more layers of the store; got {brief(layers)}")
        return [store.recipe.layer(name) for name in layers]
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


def _training_first(copies: Copies, test_rows: np.ndarray) -> Copies:
    """The same pairs, each with its training image first."""
    swapped = test_rows[copies.pairs[:, 0]]
    return copies._replace(pairs=np.where(swapped[:, None], copies.pairs[:, ::-1], copies.pairs))


def _together(n: int, pairs: np.ndarray, numbers: np.ndarray | None) -> Groups:
    """Images that are never split between training and test: copies, and those of one group."""
    edges = pairs
    if numbers is not None:
        first = {number: row for row, number in reversed(list(enumerate(numbers.tolist())))}
        edges = np.concatenate([pairs, [[first[number], row] for row, number in enumerate(numbers.tolist())]])
    return Groups(connected(n, edges), "different images" if numbers is None else "groups")


def _finite_rows(store: FeatureStore, layers: Sequence[str]) -> np.ndarray:
    marked = {entry.id for entry in store.nonfinite if entry.layer in layers}
    if not marked:
        return np.arange(len(store))
    return np.flatnonzero([name not in marked for name in store.ids.tolist()])


def _judged_rows(y: np.ndarray, units: np.ndarray, finite: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    """(rows of classes with five different images or more, {class: number of different images} of the others)."""
    too_small = {}
    for name in np.unique(y).tolist():
        n = len(np.unique(units[finite][y[finite] == name]))
        if n < _LEAST_IN_CLASS:
            too_small[str(name)] = n
    return finite[~np.isin(y[finite].astype(str), list(too_small))], too_small


def _shortcuts(
    store: FeatureStore, y: np.ndarray, rows: np.ndarray, together: Groups, judged: LabelErrors, random_state: int
) -> list[Shortcut]:
    predicted = np.empty(len(store), object)
    predicted[judged.rows] = judged.suggested
    right = predicted[rows] == y[rows]
    score = float(np.mean([right[y[rows] == name].mean() for name in judged.classes]))
    return shortcuts(store, y, rows, together, right, score, random_state)


def _sides(
    store: FeatureStore,
    test_store: FeatureStore | None,
    test_rows: np.ndarray | None,
    layer: str,
    y: np.ndarray | None,
    groups: str | Sequence[object] | np.ndarray | None,
    pairs: np.ndarray,
    leaks: Copies | None,
) -> tuple[Side, Side]:
    """The training and the test images.

    pairs : (p, 2) all copies in the store
    """
    named = store.columns.get(groups) if isinstance(groups, str) else None if groups is None else np.asarray(groups)
    if test_store is None:
        assert test_rows is not None
        copies = connected(len(store), pairs)
        training, test = (_side(store, layer, copies, y, named, of) for of in (~test_rows, test_rows))
        return training, test
    offset = len(store)
    leaked = np.empty((0, 2), int) if leaks is None else leaks.pairs + [0, offset]
    copies = connected(offset + len(test_store), np.concatenate([pairs, leaked]))
    of_test = test_store.columns.get(groups) if isinstance(groups, str) else None
    test_y = test_store.y if test_store.classes is not None else None
    return (
        _side(store, layer, copies[:offset], y, named, np.ones(offset, bool)),
        _side(test_store, layer, copies[offset:], test_y, of_test, np.ones(len(test_store), bool)),
    )


def _side(
    store: FeatureStore,
    layer: str,
    copies: np.ndarray,
    y: np.ndarray | None,
    groups: np.ndarray | None,
    of: np.ndarray,
) -> Side:
    finite = _finite_rows(store, [layer])
    rows = finite[of[finite]]
    features = store.take(rows, layer).reshape(len(rows), -1).astype(np.float32)
    return Side(features, copies[rows], *(None if values is None else values[rows] for values in (y, groups)))
