"""What an audit found: its result, and every finding in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from featx.audit.confusion import ConfusedPair
from featx.audit.label_errors import LabelErrors
from featx.audit.outliers import Outlier
from featx.audit.shift import Shift
from featx.audit.shortcuts import Shortcut
from featx.errors import count, listed
from featx.store import Copies, FeatureStore


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
    y : (n,) class names, "" where an image has no label; or None
    layers : the layers that were used, the one for distances last
    labels : LabelErrors or None
    duplicates : Copies
        Copies among the images; with test rows, those on one side.
    leaks : Copies or None
        Copies of training images among the test images, whose rows are second.
    outliers : list of Outlier
    confused : list of ConfusedPair
    too_small : {class: number of different images, or of groups} of the classes that are too small to judge
    shortcuts : list of Shortcut
    split : Shift or None
    unit : "different image" or "group"
        What is never split between training and test.
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
    unit: str = "different image"
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
            reason = f"class {name!r} has {count(n, self.unit)}: too few to judge its labels"
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
    if found.differs and found.auc is not None and found.interval is not None:
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
