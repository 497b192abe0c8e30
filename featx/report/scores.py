"""Short texts for scores and candidates, used by tables, figures and sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from featx.display import printable

if TYPE_CHECKING:
    from featx.learn.scores import Interval
    from featx.learn.selection import Candidate

_WORDS = {
    "balanced_accuracy": "balanced accuracy",
    "f1_macro": "macro F1",
    "matthews_corrcoef": "Matthews correlation",
    "roc_auc": "ROC AUC",
    "r2": "R²",
    "neg_mean_absolute_error": "mean absolute error",
}


def score_name(scoring: str) -> str:
    return _WORDS.get(scoring, scoring)


def number(score: float, scoring: str = "accuracy") -> str:
    """A score with three decimals; a negated error is shown as the error itself."""
    if scoring == "neg_mean_absolute_error":
        return amount(0.0 - score)
    return f"{score:.3f}" if abs(score) < 100 else f"{score:,.0f}"


def amount(value: float) -> str:
    """A number with three significant digits or, from 100 on, as an integer."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def bracket(interval: Interval | None, scoring: str = "accuracy") -> str:
    """ "[0.781, 0.852]", lower end first; "" where there is no interval."""
    if interval is None or math.isnan(interval.low):
        return ""
    low, high = interval
    if scoring == "neg_mean_absolute_error":
        low, high = high, low
    return f"[{number(low, scoring)}, {number(high, scoring)}]"


def scored(score: float, interval: Interval | None, scoring: str = "accuracy") -> str:
    """ "0.812 [0.781, 0.852]" """
    return f"{number(score, scoring)} {bracket(interval, scoring)}".strip()


def setting(candidate: Candidate) -> str:
    """ "C = 0.01", or "" for an estimator without a parameter."""
    return "" if candidate.value is None else f"{candidate.parameter} = {value_text(candidate.value)}"


def n_features(candidate: Candidate) -> str:
    """ "512", or "1,280 of 2,064" where the estimator is fitted on fewer features than the layer has."""
    kept = int(candidate.complexity[0])
    return f"{candidate.d:,}" if kept == candidate.d else f"{kept:,} of {candidate.d:,}"


def value_text(value: float) -> str:
    """A parameter's value, as an integer or with three significant digits."""
    return f"{value:g}" if value == int(value) else f"{value:.3g}"


def named(candidate: Candidate) -> str:
    """ "layer3:avg, rbf svm, C = 10" """
    return ", ".join(filter(None, (candidate.layer, candidate.estimator, setting(candidate))))


def backbone_names(backbones: Iterable[str]) -> dict[str, str]:
    """{name: name without its source, "resnet50"}, unless two backbones would then have the same name."""
    full = list(dict.fromkeys(backbones))
    bare = [name.partition(":")[2] or name for name in full]
    return dict(zip(full, bare if len(set(bare)) == len(full) else full, strict=True))


def stacked(layer: str) -> list[str]:
    """The names of concatenated layers as one line each, for a narrow column."""
    *upper, last = layer.split("+")
    return [*(f"{name} +" for name in upper), last]


def shortened(names: Iterable[object], most: int) -> dict[str, str]:
    """{name: name of at most `most` characters}: cut in its middle or, if two would be equal, at its start or end."""
    full = list(dict.fromkeys(map(str, names)))
    for head in (most // 2, 0, most - 1):
        cut = [_cut(printable(name), most, head) for name in full]
        if len(set(cut)) == len(full):
            break
    return {name: text.replace("$", r"\$") for name, text in zip(full, cut, strict=True)}  # no formula for matplotlib


def _cut(text: str, most: int, head: int) -> str:
    return text if len(text) <= most else f"{text[:head]}…{text[len(text) - (most - head - 1) :]}"
