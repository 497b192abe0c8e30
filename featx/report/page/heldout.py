"""The held-out images: who is taken for whom, the worst mistakes, calibration, and the score of each slice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from featx.report.page.charts import Series, chart
from featx.report.page.images import Images
from featx.report.page.sections import Block, Html, Section, Table, Text, images_button, text_html
from featx.report.scores import amount, bracket, number, score_name

if TYPE_CHECKING:
    from featx.learn.scores import Interval
    from featx.learn.selection import Selection, TestSet

_MOST_CONFUSION, _MOST_PAIRS = 40, 20
_MOST_MISTAKES = 24
_BINS = 10
_MOST_VALUES = 30  # of a column that is taken for categories
_LEAST_IN_SLICE = 5
DARK = 0.7  # share of a cell's full colour from which white is easier to read on it than black


def confusion_section(selection: Selection) -> Section | None:
    """The confusion matrix, whose cells open their images; for many classes the most confused pairs."""
    confusion, test, classes = selection.confusion, selection.test, selection.training.classes
    if confusion is None or test is None or classes is None:
        return None
    cells: dict[tuple[str, str], list[int]] = {}
    for i, (true, said) in enumerate(zip(test.y.tolist(), test.predicted.tolist(), strict=True)):
        cells.setdefault((str(true), str(said)), []).append(i)
    names = list(map(str, classes))
    blocks: list[Block] = []
    if len(names) <= _MOST_CONFUSION:
        blocks.append(Html(f"<p>A number opens its images.</p>{_matrix(names, cells)}"))
    wrong = sorted(((pair, of) for pair, of in cells.items() if pair[0] != pair[1]), key=lambda each: -len(each[1]))
    if len(names) > 2 and wrong:
        total = {name: sum(len(of) for pair, of in cells.items() if pair[0] == name) for name in names}
        rows = [[t, s, f"{len(of):,}", f"{len(of) / total[t]:.0%}"] for (t, s), of in wrong[:_MOST_PAIRS]]
        header = ["true", "predicted", "images", "of that class"]
        shown = [of for _, of in wrong[:_MOST_PAIRS]]
        blocks.append(Table("most frequent confusions", header, rows, words=2, images=shown))
    recall = [[name, *_class_cells(selection, test, name)] for name in names]
    header = ["class", "held out", "recall [95 %]", "precision [95 %]"]
    blocks.append(Table("each class", header, recall, is_folded=len(names) > _MOST_PAIRS))
    return Section("confusion", "Which classes are confused", blocks)


def _matrix(names: Sequence[str], cells: dict[tuple[str, str], list[int]]) -> str:
    head = "".join(f'<th scope="col"><span>{text_html(name)}</span></th>' for name in names)
    lines = []
    for true in names:
        of_row = [cells.get((true, said), []) for said in names]
        total = max(1, sum(map(len, of_row)))
        drawn = []
        for said, of in zip(names, of_row, strict=True):
            share = len(of) / total
            kind = " class=dark" if share > DARK else ""
            title = f"{len(of):,} images of {true}, predicted {said}"
            button = images_button(of, title, f"{len(of):,}") or "·"
            drawn.append(f'<td{kind} style="--v:{100 * share:.0f}%">{button}</td>')
        lines.append(f'<tr><th scope="row">{text_html(true)}</th>{"".join(drawn)}</tr>')
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="confusion matrix"><table class="grid confusion">'
        f"<caption>confusion matrix: rows true, columns predicted</caption><thead><tr><td></td>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _class_cells(selection: Selection, test: TestSet, name: str) -> list[str]:
    from featx.learn.scores import wilson

    is_true, is_said = test.y.astype(str) == name, test.predicted.astype(str) == name
    right = int(np.sum(is_true & is_said))
    cells = [f"{is_true.sum():,}"]
    for n in (int(is_true.sum()), int(is_said.sum())):
        cells.append("" if not n else f"{right / n:.3f} {bracket(wilson(right / n, n))}")
    return cells


def mistakes_section(selection: Selection, images: Images) -> Section | None:
    """The most confident mistakes, or for regression the largest errors."""
    test = selection.test
    worst = selection.mistakes()[:_MOST_MISTAKES].tolist()
    if test is None or not worst:
        return None
    title = "Largest errors" if selection.training.classes is None else "Most confident mistakes"
    listed = " ".join(map(str, worst))
    rows = [[images.ids[i], _label(test.y[i]), _label(test.predicted[i])] for i in worst]
    table = Table("the same as a table", ["image", "true", "predicted"], rows, words=3, is_folded=True)
    gallery = f'<div class="gallery" data-gallery="{listed}"></div>'
    return Section("mistakes", title, [Html(gallery), table])


def _label(value: object) -> str:
    return amount(float(value)) if isinstance(value, float | np.floating) else str(value)


def scatter_section(selection: Selection) -> Section | None:
    """Predicted against true values of a regression."""
    test = selection.test
    if test is None or selection.training.classes is not None:
        return None
    points = Series(
        test.y.tolist(), test.predicted.tolist(), "held-out image", is_line=False, images=list(range(len(test.y)))
    )
    ends = np.r_[test.y, test.predicted]
    pad = 0.04 * (ends.max() - ends.min()) or 1.0
    span = float(ends.min() - pad), float(ends.max() + pad)
    drawn = chart(
        [points], "true", "predicted", "predicted against true values of the held-out images", diagonal=True,
        x_range=span, y_range=span,
    )  # fmt: skip
    mae = f"The mean absolute error is {amount(selection.held_out_mae or 0.0)}."
    return Section("scatter", "Predicted against true", [Text(mae), Html(f"<p>A point opens its image.</p>{drawn}")])


def calibration_section(selection: Selection) -> Section | None:
    """How often the model is right at each confidence, and precision and recall at a threshold."""
    from featx.learn.scores import wilson

    test, classes = selection.test, selection.training.classes
    if test is None or classes is None or test.probabilities is None:
        return None
    confidence = test.probabilities.max(axis=1)
    right = test.y == test.predicted
    order = np.argsort(confidence, kind="stable")
    bins = [part for part in np.array_split(order, min(_BINS, max(1, len(order) // 10))) if len(part)]
    x = [float(confidence[part].mean()) for part in bins]
    y = [float(right[part].mean()) for part in bins]
    intervals = [wilson(share, len(part)) for share, part in zip(y, bins, strict=True)]
    error = sum(len(part) * abs(a - b) for part, a, b in zip(bins, x, y, strict=True)) / len(order)
    series = Series(x, y, "share that is right", [i.low for i in intervals], [i.high for i in intervals])
    drawn = chart(
        [series], "probability of the predicted class", "share that is right",
        "how often predictions are right, by their probability; on the diagonal they are calibrated",
        diagonal=True, x_range=(min(0.95, *x) - 0.02, 1.02), y_range=(0.0, 1.02),
    )  # fmt: skip
    text = (
        f"On the diagonal, a probability is how often the model is right. The mean distance from it is {error:.3f} "
        f"(expected calibration error, {len(bins)} bins of equal count)."
    )
    return Section("calibration", "Calibration and threshold", [Text(text), Html(drawn), Html(_THRESHOLD)])


_THRESHOLD = """<div id="threshold" hidden><p>Call an image <label>class <select id="threshold-class"></select></label>
from a probability of <label><input type="range" id="threshold-at" min="0" max="100" value="50" step="1"
aria-label="threshold in percent"> <output id="threshold-shown"></output></label> on:</p>
<div id="threshold-chart"></div><p id="threshold-text" aria-live="polite"></p></div>"""


class Slice(NamedTuple):
    """Held-out images with one value of a column, and their score."""

    column: str
    value: str
    positions: np.ndarray
    score: float
    interval: Interval


def slices_of(selection: Selection, images: Images) -> list[Slice]:
    """The slices of all columns and groups, those that may be worst first: the lowest upper ends of intervals."""
    test = selection.test
    if test is None:
        return []
    rows = images.rows[: images.n_test]
    columns = {name: values[rows] for name, values in images.store.columns.items()}
    slices = []
    for name, values in columns.items():
        for value, positions in _parts(values):
            if len(positions) >= _LEAST_IN_SLICE and len(positions) < len(values):
                slices.append(Slice(name, value, positions, *_scored(selection, test, positions)))
    return sorted(slices, key=lambda each: each.interval.high)


def _scored(selection: Selection, test: TestSet, positions: np.ndarray) -> tuple[float, Interval]:
    """Accuracy, or for regression the negative mean absolute error, of some held-out images."""
    from featx.learn.scores import METRICS, held_out_interval

    metric = METRICS["neg_mean_absolute_error" if selection.training.classes is None else "accuracy"]
    y, predicted = test.y[positions], test.predicted[positions]
    groups = None if test.groups is None else test.groups[positions]
    return metric.score(y, predicted), held_out_interval(metric, y, predicted, groups)


def _parts(values: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """(value, positions): each value of a column of categories; quarters of a column of numbers; else none."""
    distinct, codes = np.unique(values.astype(str), return_inverse=True)
    if len(distinct) <= _MOST_VALUES:
        return [(str(name) or "(empty)", np.flatnonzero(codes == i)) for i, name in enumerate(distinct)]
    try:
        numbers = values.astype(float)
    except ValueError:
        return []
    if not np.isfinite(numbers).all():
        return []
    ends = np.unique(np.quantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
    bins = np.clip(np.searchsorted(ends, numbers, side="right") - 1, 0, len(ends) - 2)
    return [(f"{ends[i]:.4g} to {ends[i + 1]:.4g}", np.flatnonzero(bins == i)) for i in range(len(ends) - 1)]


def slices_section(selection: Selection, images: Images) -> Section | None:
    """Where the model fails: the score by the values of each column of the manifest."""
    slices = slices_of(selection, images)
    if not slices:
        return None
    scoring = "neg_mean_absolute_error" if selection.training.classes is None else "accuracy"
    whole, _ = _scored(selection, selection.test, np.arange(images.n_test))  # type: ignore[arg-type]
    below = [each for each in slices if each.score < whole and each.interval.high < whole]
    text = f"All held-out images: {number(whole, scoring)}. "
    text += (
        f"{len(below):,} of {len(slices):,} slices are below it by more than their interval{_by_chance(len(slices))}."
        if below
        else f"None of {len(slices):,} slices is below it by more than its interval."
    )
    rows = [
        [s.column, s.value, f"{len(s.positions):,}", f"{number(s.score, scoring)} {bracket(s.interval, scoring)}"]
        for s in slices[:_MOST_PAIRS]
    ]
    header = ["column", "value", "images", f"{score_name(scoring)} [95 %]"]
    shown = [s.positions.tolist() for s in slices[:_MOST_PAIRS]]
    table = Table("slices, those that may be worst first", header, rows, words=2, images=shown)
    return Section("slices", "Where it fails", [Text(text), table])


def _by_chance(n: int) -> str:
    """How many of n slices would be by chance."""
    return f" (by chance about {0.025 * n:.1f} would be)" if n >= 4 else ""
