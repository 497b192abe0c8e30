"""Figures of the predictions for held-out images: confusion matrix or scatter plot, and the worst mistakes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from featx.report.canvas import FAINT, INK
from featx.report.pictures import picture_of
from featx.report.scores import amount, score_name, scored, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from featx.learn.selection import Selection

MISTAKES = 8
_THUMBNAIL_PX = 256


def draw_held_out(axis: Axes, selection: Selection) -> None:
    """The confusion matrix; for regression, predicted against true values."""
    assert selection.held_out is not None and selection.test is not None
    if selection.training.classes is None:
        _draw_scatter(axis, selection)
    else:
        _draw_confusion(axis, selection)
    score = scored(selection.held_out, selection.held_out_interval, selection.settings.scoring)
    images = f"on {len(selection.test.y):,} images held out"
    axis.set_title(f"{score_name(selection.settings.scoring)} {score}\n{images}", fontsize=11)


def _draw_confusion(axis: Axes, selection: Selection) -> None:
    confusion = selection.confusion
    assert confusion is not None and selection.training.classes is not None
    share = confusion / confusion.sum(axis=1, keepdims=True).clip(1)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    k = len(selection.training.classes)
    if k <= 15:
        for (row, column), count in np.ndenumerate(confusion):
            color = "white" if share[row, column] > 0.6 else INK if count else FAINT
            axis.text(column, row, str(count), ha="center", va="center", fontsize=10 if k < 8 else 7, color=color)
    names = list(shortened(selection.training.classes, 15).values()) if k <= 30 else []
    if k <= 15:
        axis.set_xticks(range(len(names)), names, fontsize=8, rotation=45, ha="right", rotation_mode="anchor")
    else:
        axis.set_xticks(range(len(names)), names, fontsize=7, rotation=90)
    axis.set_yticks(range(len(names)), names, fontsize=8 if k <= 15 else 7)
    axis.tick_params(length=0)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")


def _draw_scatter(axis: Axes, selection: Selection) -> None:
    assert selection.test is not None
    y, predicted = selection.test.y, selection.test.predicted
    low, high = min(y.min(), predicted.min()), max(y.max(), predicted.max())
    ends = low - 0.04 * (high - low), high + 0.04 * (high - low)
    axis.plot(ends, ends, color=FAINT, linewidth=1, zorder=0)
    few = len(y) <= 1000
    axis.scatter(y, predicted, s=16 if few else 5, alpha=0.6 if few else 0.25, color="#2a6f97", linewidths=0)
    axis.set(xlim=ends, ylim=ends, aspect="equal")
    axis.set_xlabel("true")
    axis.set_ylabel("predicted")
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    if selection.held_out_mae is not None and selection.settings.scoring != "neg_mean_absolute_error":
        text = f"mean absolute error {amount(selection.held_out_mae)}"
        axis.text(0.03, 0.97, text, transform=axis.transAxes, va="top", fontsize=9, color=INK)


def mistake_pictures(selection: Selection) -> list[tuple[Any, str]]:
    """(picture, caption) of the most confident mistakes whose images can still be read."""
    test = selection.test
    if test is None:
        return []
    store = test.store or selection.training.stores[0]
    rows = store.rows(test.X)
    worst = selection.mistakes().tolist()
    words: Callable[[Any], str] = amount
    if selection.training.classes is not None:
        worst = _by_turns(worst, [(test.y[i], test.predicted[i]) for i in worst])
        words = shortened(selection.training.classes, 15).__getitem__
    captioned: list[tuple[Any, str]] = []
    for i in worst:
        if (picture := picture_of(store, rows[i])) is not None:
            picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
            captioned.append((picture, f"true: {words(test.y[i])}\npredicted: {words(test.predicted[i])}"))
        if len(captioned) == MISTAKES:
            break
    return captioned


def _by_turns(worst: list[int], kinds: list[tuple[Any, Any]]) -> list[int]:
    """One mistake of each (true, predicted) pair before the second one of any pair."""
    turns: Counter[tuple[Any, Any]] = Counter()
    ordered = []
    for place, (i, kind) in enumerate(zip(worst, kinds, strict=True)):
        ordered.append((turns[kind], place, i))
        turns[kind] += 1
    return [i for _, _, i in sorted(ordered)]


def draw_mistakes(part: Any, selection: Selection, mistakes: list[tuple[Any, str]]) -> None:
    part.suptitle(
        "the largest errors" if selection.training.classes is None else "the most confident mistakes", fontsize=11
    )
    axes = part.subplots(1, MISTAKES)
    for axis in axes:
        axis.axis("off")
    for axis, (picture, caption) in zip(axes[(MISTAKES - len(mistakes)) // 2 :], mistakes, strict=False):
        axis.imshow(picture)
        axis.set_title(caption, fontsize=8, color=INK)
