"""The result of `audit` as one HTML page that needs no network, or as Markdown."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featx.errors import FeatxError, as_path, count
from featx.report.page import document, illustrated
from featx.report.page.data import data_section
from featx.report.page.images import Images
from featx.report.page.sections import Block, Code, Html, Section, Table, Text, markdown_of, section_html
from featx.report.scores import bracket
from featx.store import written_aside

if TYPE_CHECKING:
    from featx.audit import Audit, Finding, Shortcut

_MOST_ROWS = 200  # of a table; the CSV file has all
_MOST_IN_GALLERY = 24
_TITLES = {"label": "Labels that may be wrong", "leak": "Copies across the split", "duplicate": "Copies",
           "outlier": "Images unlike the others"}  # fmt: skip


def audit_html(audit: Audit, path: str | os.PathLike, *, title: str = "") -> Path:
    """Write a page of an audit: what was found in words, then tables whose rows open their images.

    Parameters
    ----------
    audit : Audit
    path : name that ends in ".html", or in ".md" for Markdown
        An existing file is replaced.
    title : str, optional
        By default the name of the store.

    Returns
    -------
    Path

    Raises
    ------
    FeatxError
        The name has another suffix, or the file cannot be written.

    Examples
    --------
    >>> featx.report.audit_html(featx.audit.audit(store), "audit.html")    # doctest: +SKIP
    """
    path = as_path("path", path, FeatxError)
    if path.suffix.lower() not in (".html", ".md"):
        raise FeatxError(f"a page of an audit is a .html or .md file; got {path}")
    title = title or f"{audit.store.path.name}: audit"
    shown = _Shown(audit)
    sections = list(_sections(audit, shown))
    if path.suffix.lower() == ".md":
        text = markdown_of(title, sections)
    else:
        images, words = shown.images()
        data = {
            "ids": images.ids, "n_test": images.n_test, "y": [None] * len(images), "predicted": None, "classes": None,
            "probabilities": None, "maps": {}, "slices": {}, "words": words,
        }  # fmt: skip
        text_bytes = sum(len(section_html(section).encode()) for section in sections)
        text = document(title, sections, *illustrated(data, images, range(len(images)), text_bytes))
    with written_aside(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))
    return path


class _Shown:
    """The images of a page: positions are dealt to (is of the test store, row) as tables name them."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._words: dict[tuple[bool, int], list[str]] = {}
        of_test = [] if audit.test is None or audit.leaks is None else np.unique(audit.leaks.pairs[:, 1]).tolist()
        self._of_test = {row: position for position, row in enumerate(of_test)}
        self._rows: dict[int, int] = {}

    def position(self, row: int, of_test: bool = False, words: str = "") -> int:
        noted = self._words.setdefault((of_test, row), [])
        if words and words not in noted:
            noted.append(words)
        if of_test:
            return self._of_test[row]
        return self._rows.setdefault(row, len(self._of_test) + len(self._rows))

    def images(self) -> tuple[Images, list[str]]:
        """The images in the order of their positions, and what is said below each."""
        audit = self._audit
        test = audit.test or audit.store
        keys = [(True, row) for row in self._of_test] + [(False, row) for row in self._rows]
        labels = {True: test.y, False: audit.y}
        words = []
        for of_test, row in keys:
            y = labels[of_test]
            label = [] if y is None or y[row] == "" else [f"label {y[row]}"]
            words.append("; ".join([*label, *self._words.get((of_test, row), [])]) or "no label")
        rows = np.array([row for _, row in keys], np.int64)
        ids = [str((test if of_test else audit.store).ids[row]) for of_test, row in keys]
        return Images(rows, len(self._of_test), np.empty(len(rows), object), ids, test, audit.store), words


def _sections(audit: Audit, shown: _Shown) -> Iterator[Section]:
    yield data_section(audit)
    findings = audit.findings()
    for kind, title in _TITLES.items():
        if found := [finding for finding in findings if finding.kind == kind]:
            yield Section(kind, title, list(_finding_blocks(audit, shown, kind, found)))
    if audit.confused:
        yield Section("confused", "Classes that are confused", [_confused_table(audit, shown)])
    if audit.shortcuts:
        yield Section("shortcuts", "What tells the label without the picture", list(_shortcut_blocks(audit, shown)))
    if audit.split is not None:
        yield Section("split", "Test images and training images", list(_split_blocks(audit)))
    recipe = json.dumps(json.loads(audit.store.recipe.to_json()), indent=1, ensure_ascii=True)
    yield Section("recipe", "The store", [Text(f"identity {audit.store.identity}"), Code(recipe)], True)


def _finding_blocks(audit: Audit, shown: _Shown, kind: str, found: Sequence[Finding]) -> Iterator[Block]:
    yield Text(_EXPLANATIONS[kind])
    across = kind == "leak" and audit.test is not None
    places = []
    for finding in found[:_MOST_ROWS]:
        of_pair = [shown.position(finding.row, words="" if finding.other else finding.reason)]
        if finding.other_row >= 0:
            of_pair.append(shown.position(finding.other_row, across))
        places.append(of_pair)
    if kind in ("label", "outlier"):
        gallery = " ".join(str(of[0]) for of in places[:_MOST_IN_GALLERY])
        yield Html(f'<div class="gallery" data-gallery="{gallery}"></div>')
    pairs = any(finding.other for finding in found)
    images = ["training image", "test image"] if kind == "leak" else ["image", *(["copy"] if pairs else [])]
    header = [*images, "label", *(["suggested"] if kind == "label" else []), "why"]
    rows = [
        [f.id, *([f.other] if pairs else []), f.label, *([f.suggestion] if kind == "label" else []), f.reason]
        for f in found[:_MOST_ROWS]
    ]
    yield Table(f"{count(len(found), 'finding')}, the strongest first", header, rows, words=len(header), images=places)
    if len(found) > _MOST_ROWS:
        yield Text(f"{len(found) - _MOST_ROWS:,} more are in the CSV file of the audit.")


_EXPLANATIONS = {
    "label": "Classifiers that have not seen an image contradict its label. Their number is an estimate for all images "
    "together; each one is for you to judge.",
    "leak": "A test score on these images says how well the training images are remembered.",
    "duplicate": "Copies count several times, and a copy on the other side of a split makes a score too good.",
    "outlier": "By features or by the picture's own statistics; rare images that belong here are listed too.",
}


def _confused_table(audit: Audit, shown: _Shown) -> Table:
    rows, places = [], []
    for pair in audit.confused:
        rows.append([pair.first, pair.second, f"{pair.n_first:,}", f"{pair.n_second:,}", f"{pair.share:.0%}"])
        words = f"between {pair.first} and {pair.second}"
        places.append([shown.position(row, words=words) for row in pair.between.tolist()])
    header = ["class", "other class", "taken for the other", "the other way", "at most"]
    return Table("pairs of classes, with the images between them", header, rows, words=2, images=places)


def _shortcut_blocks(audit: Audit, shown: _Shown) -> Iterator[Block]:
    yield Text(
        "Each column alone predicts the label, cross-validated. Above chance, a model may learn the column in place of "
        "the picture. A picture's content decides its file size, brightness, contrast and sharpness too: these are "
        "warned of only if they predict the label nearly as well as the features do."
    )
    rows = [
        [s.column, "warning" if s.is_warning else "", f"{s.score:.3f} {bracket(s.interval)}", f"{s.chance:.3f}"]
        for s in audit.shortcuts
    ]
    yield Table("columns", ["column", "", "balanced accuracy [95 %]", "chance"], rows, words=2)
    for each in audit.shortcuts:
        if each.is_warning and each.strata:
            yield _strata_table(each, shown)


def _strata_table(found: Shortcut, shown: _Shown) -> Table:
    rows = [[s.value, f"{len(s.rows):,}", f"{s.accuracy:.3f} {bracket(s.interval)}"] for s in found.strata]
    places = [[shown.position(row) for row in s.rows[:_MOST_IN_GALLERY].tolist()] for s in found.strata]
    caption = f"the features' own accuracy by {found.column}"
    return Table(caption, [found.column, "images", "accuracy [95 %]"], rows, images=places)


def _split_blocks(audit: Audit) -> Iterable[Block]:
    split = audit.split
    assert split is not None
    yield Text(f"{split.n_training:,} training and {split.n_test:,} test images.")
    if split.auc is not None:
        score = f"{split.auc:.3f} {bracket(split.interval)}"
        yield Text(f"A classifier of their features tells them apart with ROC AUC {score}; 0.5 is chance.")
    if split.shares:
        rows = [[name, f"{a:.1%}", f"{b:.1%}"] for name, (a, b) in split.shares.items()]
        test = "" if split.p_value is None else f" (chi-square test: p = {split.p_value:.2g})"
        caption = f"shares of the classes{test}"
        yield Table(caption, ["class", "training", "test"], rows)
