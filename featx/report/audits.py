"""The result of `audit`: what it found in words, as a table, as CSV and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from featx.display import printable_lines
from featx.errors import count, listed
from featx.report.columns import FittedTable
from featx.report.interchange import csv_text, json_text
from featx.report.page.sections import Check

if TYPE_CHECKING:
    from featx.audit import Audit

_FEW = 0.04  # share of wrong labels below which labels are called clean
_SHOWN = 5  # findings of a kind in the table
_COLUMNS = ("kind", "rank", "score", "id", "other", "label", "suggestion", "reason")


def audit_checks(audit: Audit) -> Iterator[Check]:
    """(level, sentence) of each kind of finding: "good", "note" or "warning"; and what could not be done."""
    yield from _label_checks(audit)
    yield from _copy_checks(audit)
    yield from _outlier_checks(audit)
    yield from _confusion_checks(audit)
    yield from _shortcut_checks(audit)
    yield from _split_checks(audit)
    for text in audit.missing:
        yield "note", f"Not audited: {text}."


def _label_checks(audit: Audit) -> Iterator[Check]:
    judged = audit.labels
    if judged is None:
        return
    n = len(judged.rows)
    if judged.is_open:
        yield (
            "note",
            f"Whether labels are wrong cannot be told: the features hardly predict them. Of {n:,}, between none and "
            "half may be wrong.",
        )
        return
    if judged.is_clean:
        most = "none" if judged.interval.high < 1 else f"at most {judged.interval.high:,.0f}"
        if judged.interval.high > _FEW * n:
            text = f"No clear sign of wrong labels, but so few images do not exclude some: {most} of {n:,}"
            yield "note", f"{text} (95 % interval)."
        else:
            yield "good", f"No sign of wrong labels: {most} of {n:,} (95 % interval)."
        return
    interval = f"95 % interval {judged.interval.low:,.0f} to {judged.interval.high:,.0f}"
    if judged.interval.low < 1:
        text = f"About {judged.count:,.0f} of {n:,} labels may be wrong, or none ({interval})"
        yield "note", f"{text}; those that probably are, are listed."
        return
    yield (
        "warning",
        f"About {judged.count:,.0f} of {n:,} labels are wrong ({interval}); the most suspicious are listed.",
    )


def _copy_checks(audit: Audit) -> Iterator[Check]:
    if audit.leaks is not None:
        n = len(set(audit.leaks.pairs[:, 1].tolist()))
        if n:
            yield "warning", f"{count(n, 'test image')} {'is a copy' if n == 1 else 'are copies'} of training images."
        else:
            compared = all(each is None or each.statistics for each in (audit.store, audit.test))
            how = "is a copy of" if compared else "has the same content as"
            yield "good", f"No test image {how} a training image."
    copies = audit.duplicates
    kinds = Counter(copies.kinds.tolist())
    if not kinds:
        how = "is a copy of" if audit.store.statistics else "has the same content as"
        image = "image" if audit.test is None else "training image"
        where = " on its side of the split" if audit.test is None and audit.leaks is not None else ""
        yield "good", f"No {image} {how} another one{where}."
    else:
        n_near = kinds["hash"] + kinds["features"]
        yield (
            "note",
            f"{count(len(copies.pairs), 'pair')} of copies: {kinds['exact']:,} of the same file, {n_near:,} of the "
            f"same picture saved, resized, mirrored or cropped{_two_labels(audit)}. A search keeps copies of a file on "
            "one side of a split; with groups 'near-duplicates' it keeps all.",
        )
    if audit.store.statistics and copies.most_bits < 0:
        yield "note", "Different images look so alike here that hashes alone do not tell copies from them."


def _two_labels(audit: Audit) -> str:
    """How many pairs of copies have different labels, in words."""
    if audit.y is None:
        return ""
    first, second = audit.y[audit.duplicates.pairs].T
    differ = int(((first != second) & (first != "") & (second != "")).sum())
    return f"; {count(differ, 'pair')} labelled differently" if differ else ""


def _outlier_checks(audit: Audit) -> Iterator[Check]:
    kinds = Counter(each.kind for each in audit.outliers)
    if not kinds:
        yield "good", "No image is unlike all others."
        return
    words = {"features": "by their features", "aspect": "of an odd shape", "size": "very large"}
    parts = [f"{n:,} {words.get(kind, kind)}" for kind, n in kinds.most_common()]
    n_images = len({each.row for each in audit.outliers})
    yield "note", f"{count(n_images, 'image')} unlike the others: {', '.join(parts)}."


def _confusion_checks(audit: Audit) -> Iterator[Check]:
    if audit.confused:
        pair = audit.confused[0]
        yield (
            "note",
            f"Most confused are {pair.first!r} and {pair.second!r}: {pair.n_first + pair.n_second:,} images are taken "
            "for the other class.",
        )
    elif audit.labels is not None and not audit.labels.is_open:
        yield "good", "No two classes are confused in more than 5 % of their images."
    if audit.too_small:
        yield "note", f"Classes with too few images to judge: {listed(audit.too_small)}."


def _shortcut_checks(audit: Audit) -> Iterator[Check]:
    from featx.audit import shortcut_reason

    warned = [each for each in audit.shortcuts if each.is_warning]
    for each in warned:
        text = shortcut_reason(each)
        yield "warning", f"{text[0].upper()}{text[1:]}. A model may have learned that instead of the picture."
    if audit.shortcuts and not warned:
        names = listed([each.column for each in audit.shortcuts], 12)
        yield "good", f"The label is not predicted from these alone: {names}."


def _split_checks(audit: Audit) -> Iterator[Check]:
    from featx.audit import split_warnings

    if audit.split is None:
        return
    split, texts = audit.split, [text for _, text in split_warnings(audit.split)]
    for text in texts:
        yield "warning", f"{text[0].upper()}{text[1:]}."
    if not split.differs and split.auc is not None:
        yield (
            "good",
            f"Test images are like training images: a classifier cannot tell them apart (ROC AUC {split.auc:.2f}).",
        )


def audit_text(audit: Audit) -> str:
    """What was found, a line each."""
    marks = {"good": "ok", "note": "note", "warning": "warning"}
    return "\n".join(f"{marks[level]}: {text}" for level, text in audit_checks(audit))


def audit_table(audit: Audit) -> FittedTable | None:
    """The first findings of each kind; None if there are none."""
    findings = audit.findings()
    if not findings:
        return None
    layers = ", ".join(audit.layers)
    table = FittedTable(f"{audit.store.path.name}: {len(audit.store):,} images, by {layers}", spare=("label",))
    table.add_names("finding", "image", "label")
    table.add_words("what")
    counts = Counter(finding.kind for finding in findings)
    for finding in findings:
        if finding.rank <= _SHOWN:
            between = ", test image " if finding.kind == "leak" else ", "
            images = f"{finding.id}{between}{finding.other}" if finding.other else finding.id
            table.add_row(finding.kind, images, finding.label, finding.reason)
    more = [f"{n - _SHOWN:,} more of kind {kind}" for kind, n in counts.items() if n > _SHOWN]
    if more:
        table.caption = printable_lines([f"not shown: {', '.join(more)}"])
    return table


def audit_csv(audit: Audit) -> str:
    """CSV with a line for each finding; `interchange.csv_text` says how texts are written."""
    return csv_text([_COLUMNS, *([getattr(found, name) for name in _COLUMNS] for found in audit.findings())])


def audit_json(audit: Audit) -> str:
    """A JSON object with the verdicts and all findings."""
    judged = audit.labels
    return json_text(
        {
            "store": str(audit.store.path),
            "test": None if audit.test is None else str(audit.test.path),
            "layers": list(audit.layers),
            "checks": [{"level": level, "text": text} for level, text in audit_checks(audit)],
            "wrong_labels": None
            if judged is None
            else {"judged": len(judged.rows), "count": judged.count, "interval": list(judged.interval)},
            "findings": [{name: _plain(getattr(found, name)) for name in _COLUMNS} for found in audit.findings()],
            "seconds": audit.seconds,
        },
        indent=1,
    )


def _plain(value: object) -> object:
    return round(value, 6) if isinstance(value, float) else value
