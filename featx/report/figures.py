"""A selection in, one picture out: accuracy by layer and C, the confusion matrix, the most confident mistakes."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featx.errors import FeatxError, ImageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from featx.learn import Selection

_MISTAKES = 8
_INK, _FAINT, _MAP = "#222222", "#888888", "viridis"


def selection_figure(selection: Selection, title: str = "") -> Figure:
    """Draw a selection.

    Parameters
    ----------
    selection : Selection
    title : above everything

    Returns
    -------
    matplotlib.figure.Figure
        Save it with `figure.savefig("search.png")`. Pictures of mistakes are shown where the images are still where
        they were extracted from.

    Raises
    ------
    FeatxError
        matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FeatxError("a figure needs matplotlib: pip install 'featx[plot]'") from error
    layers = _layers(selection)
    mistakes = _mistake_pictures(selection)
    top = max(4.2, 0.29 * len(layers) + 1.8)
    figure = Figure(figsize=(13, top + (2.6 if mistakes else 0)), layout="constrained", facecolor="white")
    parts = figure.subfigures(2 if mistakes else 1, 1, height_ratios=[top, 2.6] if mistakes else None, squeeze=False)
    if selection.confusion is not None:
        left, right = parts[0, 0].subfigures(1, 2, width_ratios=[1.75, 1])
        _draw_confusion(right.subplots(), selection)
    else:
        left = parts[0, 0]
    _draw_grid(left, selection, layers)
    if mistakes:
        _draw_mistakes(parts[1, 0], mistakes)
    if title:
        figure.suptitle(title, fontsize=14, fontweight="bold", color=_INK)
    return figure


def _layers(selection: Selection) -> list[tuple[str, str]]:
    """(backbone, layer) in the order of the networks, of those that were searched."""
    searched = {(candidate.backbone, candidate.layer) for candidate in selection.candidates}
    ordered = [(store.recipe.backbone, layer) for store in selection.stores for layer in store.layers]
    return [pair for pair in ordered if pair in searched]


def _draw_grid(part: Any, selection: Selection, layers: list[tuple[str, str]]) -> None:
    """One heat map an estimator, side by side: layers down, C across, accuracy as colour and number."""
    estimators = list(dict.fromkeys(candidate.estimator for candidate in selection.candidates))
    grids = {name: sorted({c.C for c in selection.candidates if c.estimator == name}) for name in estimators}
    estimators.sort(key=lambda name: -len(grids[name]))
    axes = part.subplots(
        1, len(estimators), sharey=True, squeeze=False, width_ratios=[len(grids[name]) for name in estimators]
    )[0]
    low = min(candidate.mean for candidate in selection.candidates)
    scale = {"vmin": max(low, selection.chance - 0.05), "vmax": selection.best.mean}
    for axis, name in zip(axes, estimators, strict=True):
        means = np.full((len(layers), len(grids[name])), np.nan)
        for candidate in selection.candidates:
            if candidate.estimator == name:
                row = layers.index((candidate.backbone, candidate.layer))
                means[row, grids[name].index(candidate.C)] = candidate.mean
        axis.imshow(means, aspect="auto", cmap=_MAP, **scale)
        for (row, column), mean in np.ndenumerate(means):
            if np.isfinite(mean):
                dark = mean < (scale["vmin"] + scale["vmax"]) / 2
                best = mean == selection.best.mean and name == selection.best.estimator
                axis.text(
                    *(column, row, f"{mean:.2f}".lstrip("0")),
                    **{"ha": "center", "va": "center", "fontsize": 8, "color": "white" if dark else _INK},
                    fontweight="bold" if best else "normal",
                    bbox={"facecolor": "none", "edgecolor": "red", "linewidth": 1.5} if best else None,
                )
        axis.set_xticks(range(len(grids[name])), [f"{value:g}" for value in grids[name]], fontsize=8, rotation=45)
        axis.set_xlabel("C")
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    several = len({backbone for backbone, _ in layers}) > 1
    names = [f"{backbone.split(':')[-1]}  {layer}" if several else layer for backbone, layer in layers]
    axes[0].set_yticks(range(len(layers)), names, fontsize=8)
    part.suptitle(
        f"{selection.folds}-fold accuracy by layer and C, {selection.n_train:,} training images "
        f"(chance {selection.chance:.2f})",
        fontsize=11,
    )


def _draw_confusion(axis: Axes, selection: Selection) -> None:
    confusion = selection.confusion
    assert confusion is not None and selection.y_test is not None
    share = confusion / confusion.sum(axis=1, keepdims=True).clip(1)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    k = len(selection.classes)
    if k <= 15:
        for (row, column), count in np.ndenumerate(confusion):
            color = "white" if share[row, column] > 0.6 else _INK
            axis.text(column, row, str(count), ha="center", va="center", fontsize=10 if k < 8 else 7, color=color)
    names = [str(name) if len(str(name)) < 16 else str(name)[:14] + "…" for name in selection.classes]
    ticks = range(k) if k <= 30 else []
    axis.set_xticks(ticks, names if k <= 30 else [], rotation=45, ha="right", fontsize=8)
    axis.set_yticks(ticks, names if k <= 30 else [], fontsize=8)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.set_title(
        f"held out: {selection.held_out:.3f} ± {selection.held_out_error:.3f} on {len(selection.y_test):,} images",
        fontsize=11,
    )


def _mistake_pictures(selection: Selection) -> list[tuple[Any, str, str]]:
    """(picture, true, predicted) of the most confident mistakes whose images can still be read."""
    from featx.images import decode

    if selection.X_test is None or selection.y_test is None or selection.predicted is None:
        return []
    store = selection.test_store or selection.stores[0]
    if store.recipe.origin is None:
        return []
    rows = store.rows(selection.X_test)
    turns: Counter[tuple[str, str]] = Counter()  # every kind of mistake has its turn before any has a second one
    ordered: list[tuple[int, int, int]] = []
    for place, i in enumerate(selection.mistakes().tolist()):
        kind = (str(selection.y_test[i]), str(selection.predicted[i]))
        ordered.append((turns[kind], place, i))
        turns[kind] += 1
    found: list[tuple[Any, str, str]] = []
    for _, _, i in sorted(ordered):
        with contextlib.suppress(ImageError):  # moved or gone since
            picture, _digest = decode(Path(store.recipe.origin, str(store.ids[rows[i]])))
            found.append((picture, str(selection.y_test[i]), str(selection.predicted[i])))
        if len(found) == _MISTAKES:
            break
    return found


def _draw_mistakes(part: Any, mistakes: list[tuple[Any, str, str]]) -> None:
    part.suptitle("the most confident mistakes", fontsize=11)
    axes = part.subplots(1, _MISTAKES)
    for axis in axes:
        axis.axis("off")
    for axis, (picture, true, predicted) in zip(axes, mistakes, strict=False):
        axis.imshow(picture)
        axis.set_title(f"{true}\nnot {predicted}", fontsize=8, color=_INK)
