"""Heat maps of candidates: one per estimator, layers by parameter, the score as colour and number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from featx.report.canvas import INK, INTERRUPTED
from featx.report.scores import backbone_names, score_name, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from featx.learn.selection import Selection

_MOST_COLUMNS = 22  # columns of numbers that fit side by side
_LETTER = 0.33  # columns that a letter of a title is wide
_MAP = "viridis"


class Grid:
    """The layout of the heat maps; a figure calls `height` and `draw`."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.layers = _layers(selection)
        values: dict[str, set[float]] = {}
        for candidate in selection.candidates:
            values.setdefault(candidate.estimator, set()).add(candidate.value or 0.0)  # 0: it has no parameter
        self.values = {name: sorted(values[name]) for name in sorted(values, key=lambda name: -len(values[name]))}
        self.lines: list[list[str]] = [[]]
        for name in self.values:
            if self.lines[-1] and self._width(self.lines[-1]) + self._span(name) > _MOST_COLUMNS:
                self.lines.append([])
            self.lines[-1].append(name)

    @property
    def height(self) -> float:
        """Height of the figure in inches."""
        return max(4.2, 0.6 + len(self.lines) * (0.27 * len(self.layers) + 1.2))

    def draw(self, part: Any) -> None:
        selection = self.selection
        means = [candidate.mean for candidate in selection.candidates]
        high = max(means)
        low = max(min(means), selection.training.chance - 0.1 * max(high - selection.training.chance, 0))
        low = min(low, high - 1e-9)
        widest = max(map(self._width, self.lines))
        backbones = backbone_names(backbone for backbone, _ in self.layers)
        several = len(backbones) > 1
        names = [f"{backbones[backbone]}  {layer}" if several else layer for backbone, layer in self.layers]
        for line, inner in zip(self.lines, part.subfigures(len(self.lines), 1, squeeze=False)[:, 0], strict=True):
            widths = [self._span(name) for name in line]
            spare = widest - sum(widths)
            widths += [spare] if spare else []
            axes = inner.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=widths)[0]
            for axis in axes[len(line) :]:  # keeps the cells of all lines as wide
                axis.set_visible(False)
            for axis, name in zip(axes, line, strict=False):
                self._draw_estimator(axis, name, low, high)
            inner.align_xlabels(axes[: len(line)])
            axes[0].set_yticks(range(len(names)), list(shortened(names, 44).values()), fontsize=8)
        times = f" x {selection.settings.repeats}" if selection.settings.repeats > 1 else ""
        chance = _cell(selection.training.chance, selection.settings.scoring)
        part.suptitle(
            f"{selection.settings.folds}-fold{times} {score_name(selection.settings.scoring)} by layer and setting, "
            f"{selection.training.n:,} training images (chance {chance})"
            f"{INTERRUPTED if selection.is_partial else ''}",
            fontsize=11,
        )

    def _draw_estimator(self, axis: Axes, name: str, low: float, high: float) -> None:
        selection, values = self.selection, self.values[name]
        means = np.full((len(self.layers), len(values)), np.nan)
        box = None
        for candidate in selection.candidates:
            if candidate.estimator == name:
                at = self.layers.index((candidate.backbone, candidate.layer)), values.index(candidate.value or 0.0)
                means[at] = candidate.mean
                box = at if candidate == selection.chosen else box
        axis.imshow(means, aspect="auto", cmap=_MAP, vmin=low, vmax=high)
        for (row, column), mean in np.ndenumerate(means):
            if np.isfinite(mean):
                is_dark = mean < low + 0.6 * (high - low)
                is_box = (row, column) == box
                axis.text(
                    column,
                    row,
                    _cell(mean, selection.settings.scoring),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if is_dark else INK,
                    fontweight="bold" if is_box else "normal",
                    bbox={"facecolor": "none", "edgecolor": "red", "linewidth": 1.5, "pad": 2} if is_box else None,
                )
        parameter = next(c.parameter for c in selection.candidates if c.estimator == name)
        names = [f"{value:g}" if parameter else "" for value in values]
        axis.set_xticks(range(len(values)), names, fontsize=8)
        if max(map(len, names)) > 3:
            for label in axis.get_xticklabels():
                label.set(rotation=45, ha="right", rotation_mode="anchor")
        axis.set_xlabel(parameter, fontsize=9)
        fits = len(name) * _LETTER <= self._span(name)
        axis.set_title(name.replace("_", " " if fits else "\n"), fontsize=10)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)

    def _span(self, name: str) -> float:
        """Number of columns of an estimator, at least as many as its title needs."""
        return max(len(self.values[name]), _LETTER * max(map(len, name.split("_"))))

    def _width(self, line: list[str]) -> float:
        return sum(map(self._span, line))


def _layers(selection: Selection) -> list[tuple[str, str]]:
    """The searched (backbone, layer) pairs in the order of execution; concatenated layers are last."""
    searched = dict.fromkeys((candidate.backbone, candidate.layer) for candidate in selection.candidates)
    stored = [(store.recipe.backbone, layer) for store in selection.training.stores for layer in store.layers]
    order = {pair: place for place, pair in enumerate(stored)}
    backbones = {backbone: place for place, (backbone, _) in enumerate(stored)}  # where its last layer is
    return sorted(searched, key=lambda pair: (order.get(pair, backbones.get(pair[0], len(stored)) + 0.5), pair[1]))


def _cell(score: float, scoring: str) -> str:
    """A score in five characters or fewer: ".82", "-.35", "1.00"."""
    if scoring == "neg_mean_absolute_error":
        error = abs(score)
        unit = next((unit for unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if error >= 0.9995 * unit[0]), (1, ""))
        return f"{error / unit[0]:.3g}{unit[1]}"
    return f"{score:.2f}".replace("0.", ".", 1) if abs(score) < 1 else f"{score:.2f}" if score > -10 else "< -10"
