"""Blank figures and the colours of all figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featx.errors import FeatxError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT = "#222222", "#888888"
INTERRUPTED = "\ninterrupted: results are incomplete"  # the end of a title


def blank(width: float, height: float) -> Figure:
    """A white figure, in inches.

    Raises
    ------
    FeatxError
        matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FeatxError("a figure needs matplotlib: pip install 'featx[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")
