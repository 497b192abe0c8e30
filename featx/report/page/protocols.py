"""The report of a protocol: its curves and what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featx.report.answers import selection_text
from featx.report.page.charts import Series, chart
from featx.report.page.sections import Html, Section, Table, Text
from featx.report.scores import backbone_names, score_name, scored, value_text

if TYPE_CHECKING:
    from featx.learn.selection import ProtocolResult

_MOST_CURVES = 6


def protocol_sections(result: ProtocolResult) -> list[Section]:
    """The result in words, the curves of the best layers, and every point."""
    lines = [Text(line) for line in selection_text(result).split("\n")]
    names = backbone_names(curve.backbone for curve in result.curves)
    several = len(names) > 1
    series = []
    for curve in result.curves[:_MOST_CURVES]:
        label = f"{names[curve.backbone]} {curve.layer}" if several else curve.layer
        points = [(p.x, p.mean, p.interval.low, p.interval.high) for p in curve.points]
        x, mean, low, high = ([float(value) for value in column] for column in zip(*points, strict=True))
        series.append(Series(x, mean, label, low, high))
    is_log = min(min(each.x) for each in series) > 0
    what = f"{score_name(result.scoring)} by {result.varied}, of the best layers"
    drawn = chart(series, result.varied, score_name(result.scoring), what, is_log=is_log)
    rows = [
        [curve.layer, names[curve.backbone], value_text(p.x), scored(p.mean, p.interval, result.scoring)]
        for curve in result.curves
        for p in curve.points
    ]
    header = ["layer", "network", result.varied, f"{score_name(result.scoring)} [95 %]"]
    return [
        Section("verdict", "The result", lines),
        Section("curves", "Curves", [Html(drawn)]),
        Section("points", "Every point", [Table("layers, best first", header, rows, words=2)], True),
    ]
