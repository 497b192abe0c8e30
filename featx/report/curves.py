"""The figure of a protocol: one curve per layer, the best with its interval, and the test accuracy of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from featx.report.canvas import FAINT, INK, INTERRUPTED, blank
from featx.report.rankings import protocol_title
from featx.report.scores import backbone_names, score_name, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from featx.learn.selection import ProtocolResult

_COLOURED = 7  # curves with distinguishable colours; the others are grey


def protocol_figure(result: ProtocolResult, title: str = "") -> Figure:
    """Draw a protocol: the score against what it varies, one curve per layer, the best in colour, one with a 95 % band.

    If a value is chosen on validation images, its point has a ring, and a second panel shows
    the test accuracy of each layer with its interval.

    Parameters
    ----------
    result : ProtocolResult
    title : above everything

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    FeatxError
        matplotlib is not installed.
    """
    tested = all(curve.test is not None for curve in result.curves)
    height = max(4.6, 0.27 * len(result.curves) * tested + 1.6)
    figure = blank(13 if tested else 10, height)
    parts = figure.subfigures(1, 2 if tested else 1, width_ratios=[1.5, 1] if tested else None, squeeze=False)[0]
    _draw_curves(parts[0].subplots(), result, "validation" if tested else "test")
    if tested:
        _draw_tests(parts[1].subplots(), result)
    else:
        _add_legend(parts[0].axes[0])
    heading = protocol_title(result) + (INTERRUPTED if result.is_partial else "")
    figure.suptitle(f"{title}\n{heading}" if title else heading, fontsize=11, color=INK)
    return figure


def _draw_curves(axis: Axes, result: ProtocolResult, images: str) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    names = _names(result)
    xs = sorted({point.x for curve in result.curves for point in curve.points})
    for place, curve in reversed(list(enumerate(result.curves))):
        colour = _colour(place)
        x, means = [point.x for point in curve.points], np.array([point.mean for point in curve.points])
        axis.plot(x, means, "o-", ms=3.5, lw=1.6, color=colour, label=names[place], zorder=3 - place / 100)
        if curve.chosen is not None:
            axis.plot(curve.chosen.x, curve.chosen.mean, "o", mfc="none", mec=colour, ms=10, mew=1.6, zorder=4)
    best = result.curves[0]  # more bands than one hide one another
    x, means = [point.x for point in best.points], np.array([point.mean for point in best.points])
    ends = np.array([point.interval for point in best.points]).T  # (2, m)
    if len(x) == 1:
        axis.errorbar(x, means, np.abs(ends - means), fmt="none", color=_colour(0), capsize=3)
    axis.fill_between(x, *ends, color=_colour(0), alpha=0.13, linewidth=0)
    if xs[0] > 0 and len(xs) > 1:
        axis.set_xscale("log")
    if len(xs) <= 12:
        axis.set_xticks(xs)
        axis.tick_params(axis="x", labelsize=8 if len(xs) > 6 else 10, rotation=45 if len(xs) > 8 else 0)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.axhline(result.chance, color=FAINT, linewidth=1, linestyle=":")
    axis.text(1.005, result.chance, "chance", transform=axis.get_yaxis_transform(), va="center", fontsize=8,
              color=FAINT)  # fmt: skip
    axis.set_xlabel(result.varied)
    axis.set_ylabel(f"{images} {score_name(result.scoring)} (band: 95 % of the best)")
    _clean(axis, "y")


def _add_legend(axis: Axes) -> None:
    """A legend to the right, the best on top, all grey curves as one entry."""
    handles, names = axis.get_legend_handles_labels()
    handles, names = handles[::-1], names[::-1]
    if len(names) > _COLOURED:
        more = len(names) - _COLOURED
        names[_COLOURED] = f"{more} more layer{'s' if more > 1 else ''}"
    axis.legend(handles[: _COLOURED + 1], names[: _COLOURED + 1], loc="upper left", bbox_to_anchor=(1.06, 1),
                frameon=False, fontsize=8)  # fmt: skip


def _draw_tests(axis: Axes, result: ProtocolResult) -> None:
    """Test accuracy of each layer with its interval, in the curves' colours, the best in validation on top."""
    for place, curve in enumerate(result.curves):
        assert curve.test is not None
        low, high = curve.test_interval or (curve.test, curve.test)
        axis.plot([low, high], [place, place], color=_colour(place), linewidth=1.6, alpha=0.6)
        axis.plot(curve.test, place, "o", color=_colour(place), ms=5)
        axis.annotate(f"{curve.test:.3f}", (high, place), (5, 0), textcoords="offset points", va="center", fontsize=8)
    axis.axvline(result.chance, color=FAINT, linewidth=1, linestyle=":")
    axis.set_yticks(range(len(result.curves)), _names(result), fontsize=8)
    axis.set_ylim(len(result.curves) - 0.4, -0.6)
    axis.margins(x=0.12)
    axis.set_xlabel(f"test {score_name(result.scoring)}")
    _clean(axis, "x")


def _colour(place: int) -> str:
    return f"C{place}" if place < _COLOURED else "#cccccc"


def _clean(axis: Axes, lines: Literal["x", "y"]) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis=lines, color="#eeeeee")
    axis.set_axisbelow(True)


def _names(result: ProtocolResult) -> list[str]:
    """The label of each curve."""
    backbones = backbone_names(curve.backbone for curve in result.curves)
    several = len(backbones) > 1
    names = [f"{backbones[curve.backbone]}  {curve.layer}" if several else curve.layer for curve in result.curves]
    cut = shortened(names, 44)
    return [cut[name] for name in names]
