"""Small line and scatter charts as SVG, which take the page's colours, light or dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featx.report.page.sections import text_html

_WIDTH, _HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 44


@dataclass(frozen=True)
class Series:
    """Points of one kind.

    x, y : (n,)
    low, high : (n,) ends of the intervals of y, optional
    is_line : whether the points are joined
    label : in the legend and for screen readers
    images : positions of the points' images, for points that can be clicked
    """

    x: Sequence[float]
    y: Sequence[float]
    label: str
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    is_line: bool = True
    images: Sequence[int] | None = None


def chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    description: str,
    *,
    is_log: bool = False,
    diagonal: bool = False,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> str:
    """A chart as a <figure>.

    Parameters
    ----------
    series : the points
    x_label, y_label : of the axes
    description : what the chart shows, for who does not see it
    is_log : whether x is logarithmic
    diagonal : whether y = x is drawn
    x_range, y_range : of the axes; by default those of the points
    """
    drawn_x = np.concatenate([np.asarray(each.x, float) for each in series])
    ends = [part for each in series for part in (each.y, each.low, each.high) if part is not None]
    drawn_y = np.concatenate([np.asarray(part, float) for part in ends])
    x_low, x_high = x_range or _padded(drawn_x, is_log)
    y_low, y_high = y_range or _padded(drawn_y)

    def across(x: float) -> float:
        share = (np.log(x / x_low) / np.log(x_high / x_low)) if is_log else (x - x_low) / (x_high - x_low)
        return round(_LEFT + float(share) * (_WIDTH - _LEFT - _RIGHT), 1)

    def down(y: float) -> float:
        return round(_HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM), 1)

    parts = [f"<title>{text_html(description)}</title>"]
    for tick in _ticks(y_low, y_high):
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{down(tick)}" y2="{down(tick)}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{down(tick) + 4}" text-anchor="end">{tick:g}</text>')
    x_ticks = sorted(set(drawn_x.tolist())) if is_log and len(set(drawn_x.tolist())) <= 8 else _ticks(x_low, x_high)
    for tick in x_ticks:
        parts.append(f'<text x="{across(tick)}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick:,g}</text>')
    if diagonal:
        low, high = max(x_low, y_low), min(x_high, y_high)
        ends_of = f'x1="{across(low)}" y1="{down(low)}" x2="{across(high)}" y2="{down(high)}"'
        parts.append(f'<line class="diagonal" {ends_of}/>')
    for number, each in enumerate(series):
        parts += _drawn(each, number % 6, across, down)
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{text_html(x_label)}</text>')
    at = (_HEIGHT - _BOTTOM + _TOP) / 2
    turned = f'transform="rotate(-90 14 {at})"'
    parts.append(f'<text class="axis" x="14" y="{at}" text-anchor="middle" {turned}>{text_html(y_label)}</text>')
    legend = ""
    if len(series) > 1:
        entries = "".join(
            f'<span class="c{number % 6}">{text_html(each.label)}</span>' for number, each in enumerate(series)
        )
        legend = f"<figcaption>{entries}</figcaption>"
    return f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>{legend}</figure>'


def _drawn(each: Series, number: int, across, down) -> list[str]:  # type: ignore[no-untyped-def]
    points = [(across(x), down(y)) for x, y in zip(each.x, each.y, strict=True)]
    parts = []
    if each.low is not None and each.high is not None:
        for (x, _), low, high in zip(points, each.low, each.high, strict=True):
            parts.append(f'<line class="bar c{number}" x1="{x}" x2="{x}" y1="{down(low)}" y2="{down(high)}"/>')
    if each.is_line:
        joined = " ".join(f"{x},{y}" for x, y in points)
        parts.append(f'<polyline class="c{number}" points="{joined}"/>')
    radius = 3.5 if len(points) < 300 else 2
    for place, (x, y) in enumerate(points):
        shown = (
            "" if each.images is None else f' data-images="{each.images[place]}" data-title="{text_html(each.label)}"'
        )
        tip = f"<title>{text_html(f'{each.label}: {each.x[place]:.4g}, {each.y[place]:.4g}')}</title>"
        parts.append(f'<circle class="c{number}" cx="{x}" cy="{y}" r="{radius}"{shown}>{tip}</circle>')
    return parts


def _padded(values: np.ndarray, is_log: bool = False) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if is_log:
        return (low / 1.1, high * 1.1) if high > low else (low / 2, low * 2)
    pad = 0.05 * (high - low) or max(abs(high), 1.0) * 0.05
    return low - pad, high + pad


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round values."""
    raw = (high - low) / 5
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    first = np.ceil(low / step - 1e-9)
    ticks = [float(f"{(first + i) * step:.10g}") for i in range(10) if (first + i) * step <= high + 1e-9 * step]
    return [0.0 if tick == 0 else tick for tick in ticks]
