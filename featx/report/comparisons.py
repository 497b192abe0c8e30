"""The table and the figure of a comparison of backbones, and the heat map of the layers' similarity."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from featx.display import printable_lines
from featx.errors import readable
from featx.report.canvas import FAINT, INK, blank
from featx.report.columns import FittedTable
from featx.report.interchange import json_text
from featx.report.scores import backbone_names, bracket, number, score_name, scored, shortened, stacked

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from featx.learn.scores import Interval
    from featx.transfer import ComparedBackbone, Comparison, Similarity

_METRICS = {"log_me": "LogME", "h_score": "H-score", "n_leep": "N-LEEP"}
_NAME = 34  # characters of a layer in a figure


def comparison_table(comparison: Comparison) -> FittedTable:
    """One row for each backbone, best first; a star marks the Pareto front of score against time."""
    names = backbone_names(each.name for each in comparison.backbones)
    metrics = list(comparison.best.layers[0].scores)
    table = FittedTable(comparison_title(comparison), spare=("row", "parameters", *map(_METRICS.get, metrics)))  # type: ignore[arg-type]
    table.add_numbers("rank")
    table.add_names("backbone", "best layer")
    table.add_words(f"{score_name(comparison.scoring)} [95%]", "behind the best [95%]")
    table.add_numbers("ms an image", "parameters", "row", *(_METRICS[name] for name in metrics))
    front = comparison.pareto
    for rank, each in enumerate(comparison.backbones, start=1):
        layer = each.layers[0]
        table.add_row(
            f"* {rank}" if each in front else str(rank),
            names[each.name],
            stacked(layer.layer),
            scored(each.best.mean, each.best.interval, comparison.scoring),
            "" if rank == 1 else f"{each.behind:+.3f} {bracket(each.behind_interval)}".strip(),
            "" if each.milliseconds is None else f"{each.milliseconds:.3g}",
            "" if each.n_parameters is None else f"{each.n_parameters / 1e6:.1f} M",
            readable(each.row_bytes),
            *(f"{value:.3f}" for value in layer.scores.values()),
            style="bold" if rank == 1 else None,
        )
    notes = ["* no other backbone is both better and faster"] if front else []
    close = [names[each.name] for each in comparison.backbones[1:] if each.behind_interval.high >= 0]
    if close:
        verb = "is" if len(close) == 1 else "are"
        notes.append(f"{' and '.join(close)} {verb} not clearly behind: the interval of the difference includes 0")
    table.caption = printable_lines(notes) or None
    return table


def comparison_title(comparison: Comparison) -> str:
    """ "linear probe, 5-fold accuracy on 1,000 images of 10 classes (chance 0.100)" """
    classes = "" if comparison.n_classes is None else f" of {comparison.n_classes:,} classes"
    return (
        f"linear probe, {comparison.folds}-fold {score_name(comparison.scoring)} on {comparison.n:,} images{classes} "
        f"(chance {number(comparison.chance, comparison.scoring)})"
    )


def comparison_json(comparison: Comparison) -> str:
    """A JSON object with everything in the table, and all layers; unknown numbers are null."""
    return json_text(
        {
            "scoring": comparison.scoring,
            "folds": comparison.folds,
            "images": comparison.n,
            "classes": comparison.n_classes,
            "chance": comparison.chance,
            "backbones": [
                {
                    "backbone": each.name,
                    "store": str(each.store.path),
                    "behind": each.behind,
                    "behind_interval": _known(each.behind_interval),
                    "milliseconds": each.milliseconds,
                    "parameters": each.n_parameters,
                    "pareto": each in comparison.pareto,
                    "layers": [
                        {
                            "layer": layer.layer,
                            "features": layer.d,
                            "nearest": layer.nearest,
                            "mean": None if layer.probe is None else layer.probe.mean,
                            "interval": None if layer.probe is None else _known(layer.probe.interval),
                            **layer.scores,
                        }
                        for layer in each.layers
                    ],
                }
                for each in comparison.backbones
            ],
        },
        indent=1,
    )


def _known(interval: Interval) -> list[float] | None:
    return None if math.isnan(interval.low) else list(interval)


def comparison_figure(comparison: Comparison, similarity: Similarity | None = None, title: str = "") -> Figure:
    """Draw a comparison: score against time with the Pareto front, the scores of all layers, and their similarity.

    Parameters
    ----------
    comparison : Comparison
    similarity : Similarity, optional
        Drawn as a heat map in a further panel.
    title : above everything

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    FeatxError
        matplotlib is not installed.
    """
    side = 0.0 if similarity is None else min(12.0, max(4.5, 0.3 * len(similarity.names) + 2.5))
    figure = blank(9.5 + side, max(4.8, side))
    parts = figure.subfigures(1, 2 if side else 1, width_ratios=[9.5, side] if side else None, squeeze=False)[0]
    left, right = parts[0].subplots(1, 2)
    _draw_costs(left, comparison)
    _draw_layers(right, comparison)
    if similarity is not None:
        _draw_similarity(parts[1].subplots(), similarity)
    heading = comparison_title(comparison)
    figure.suptitle(f"{title}\n{heading}" if title else heading, fontsize=11, color=INK)
    return figure


def similarity_figure(similarity: Similarity, title: str = "") -> Figure:
    """Draw the CKA of all pairs of layers as a heat map.

    Raises
    ------
    FeatxError
        matplotlib is not installed.
    """
    side = min(20.0, max(4.5, 0.3 * len(similarity.names) + 2.5))
    figure = blank(side, side)
    _draw_similarity(figure.subplots(), similarity)
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    return figure


def _draw_costs(axis: Axes, comparison: Comparison) -> None:
    """Score against milliseconds, of the backbones that were timed; the names belong to this panel and the next."""
    short = backbone_names(each.name for each in comparison.backbones)
    for place, each in enumerate(comparison.backbones):
        if each.milliseconds is not None:
            mean, (low, high) = each.best.mean, _ends(each)
            errors = [[mean - low], [high - mean]]
            axis.errorbar(each.milliseconds, mean, errors, fmt="o", color=f"C{place % 10}", capsize=3)
        axis.plot([], [], "o", color=f"C{place % 10}", label=short[each.name].replace("$", r"\$"))
    front = comparison.pareto
    costs, scores = [each.milliseconds or 0 for each in front], [each.best.mean for each in front]
    axis.plot(costs, scores, color=FAINT, lw=1, ls="--", zorder=0, label="Pareto front")
    axis.legend(frameon=False, fontsize=8)
    if front:
        axis.set_xscale("log")
    axis.axhline(comparison.chance, color=FAINT, linewidth=1, linestyle=":")
    axis.margins(x=0.3)
    axis.set_xlabel("milliseconds an image, measured here")
    axis.set_ylabel(f"{score_name(comparison.scoring)} of the best layer [95 %]")
    _clean(axis)


def _draw_layers(axis: Axes, comparison: Comparison) -> None:
    """The scores of all layers from the first to the last: of the probe, and of the nearest neighbours."""
    for place, each in enumerate(comparison.backbones):
        order = {layer: number for number, layer in enumerate(each.store.layers)}
        layers = sorted(each.layers, key=lambda layer: order[layer.layer])
        depth = np.linspace(0, 1, len(layers)) if len(layers) > 1 else np.array([1.0])
        colour = f"C{place % 10}"
        near = [math.nan if layer.nearest is None else layer.nearest for layer in layers]
        axis.plot(depth, near, "-", color=colour, lw=1, alpha=0.5)
        probed = [math.nan if layer.probe is None else layer.probe.mean for layer in layers]
        axis.plot(depth, probed, "o", color=colour, ms=5)
    axis.axhline(comparison.chance, color=FAINT, linewidth=1, linestyle=":")
    axis.set_xticks([0, 1], ["first layer", "last layer"])
    has_near = any(layer.nearest is not None for layer in comparison.best.layers)
    axis.set_ylabel(
        f"{score_name(comparison.scoring)}: probe (points)" + (", 5 neighbours (lines)" if has_near else "")
    )
    _clean(axis)


def _draw_similarity(axis: Axes, similarity: Similarity) -> None:
    short = backbone_names(backbone for backbone, _ in similarity.names)
    several = len(short) > 1
    full = [f"{short[backbone]}  {layer}" if several else layer for backbone, layer in similarity.names]
    cut = shortened(full, _NAME)
    names = [cut[name] for name in full]
    image = axis.imshow(similarity.values, vmin=0, vmax=1, cmap="magma")
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    edges = [i for i in range(1, len(full)) if similarity.names[i][0] != similarity.names[i - 1][0]]
    for edge in edges:
        axis.axhline(edge - 0.5, color="white", lw=1)
        axis.axvline(edge - 0.5, color="white", lw=1)
    axis.figure.colorbar(image, ax=axis, shrink=0.7, label=f"linear CKA on {similarity.n:,} images")


def _ends(each: ComparedBackbone) -> tuple[float, float]:
    low, high = each.best.interval
    return (each.best.mean, each.best.mean) if math.isnan(low) else (low, high)


def _clean(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#eeeeee")
    axis.set_axisbelow(True)
