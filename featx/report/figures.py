"""The figure of a selection: the score by layer and setting, predictions for held-out images, the most
confident mistakes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from featx.report.canvas import INK, blank
from featx.report.grids import Grid
from featx.report.heldout import draw_held_out, draw_mistakes, mistake_pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featx.learn.selection import Selection

_WIDTH, _MISTAKES_HEIGHT = 13.0, 2.4


def selection_figure(selection: Selection, title: str = "") -> Figure:
    """Draw a selection.

    Parameters
    ----------
    selection : Selection
    title : above everything

    Returns
    -------
    matplotlib.figure.Figure
        Save it with `figure.savefig("search.png")`. What was chosen has a red frame. Pictures of mistakes are shown
        where the images are still where they were extracted from.

    Raises
    ------
    FeatxError
        matplotlib is not installed.
    """
    grid = Grid(selection)
    mistakes = mistake_pictures(selection)
    heights = [grid.height, *([_MISTAKES_HEIGHT] if mistakes else [])]
    figure = blank(_WIDTH, sum(heights))
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    if selection.held_out is None:
        grid.draw(parts[0])
    else:
        left, right = parts[0].subfigures(1, 2, width_ratios=[1.75, 1])
        grid.draw(left)
        draw_held_out(right.subplots(), selection)
    if mistakes:
        draw_mistakes(parts[1], selection, mistakes)
    if title:
        figure.suptitle(title, fontsize=14, fontweight="bold", color=INK)
    return figure
