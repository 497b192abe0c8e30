"""Would more images help: the held-out score of the chosen model, trained on parts of the training images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import train_test_split

from featx.learn.scores import METRICS, UNKNOWN, paired_interval
from featx.learn.selection import reading_from
from featx.report.page.charts import Series, chart
from featx.report.page.sections import Html, Section, Text
from featx.report.scores import number, score_name

if TYPE_CHECKING:
    from featx.learn.selection import Selection

_SHARES = (0.125, 0.25, 0.5, 1.0)
_DRAWS = 3
_FEWEST = 10  # images to train on
_GAIN = 0.02  # a doubling that surely gains less changes little


def growth_section(selection: Selection, random_state: int = 0) -> Section | None:
    """The score by number of training images, each the mean of a few draws."""
    training, test = selection.training, selection.test
    if selection.best_estimator is None or test is None or training.X is None or training.y is None:
        return None
    is_numeric, scoring = training.classes is None, selection.settings.scoring
    metric = METRICS[scoring]
    sizes, scores, outputs = [], [], []
    for share in _SHARES:
        fitted = [_outputs(selection, rows) for rows in _draws(training.y, is_numeric, share, random_state)]
        drawn = [each for each in fitted if each is not None]
        if drawn:
            sizes.append(round(share * len(training.y)))
            scores.append(float(np.mean([metric.score(test.y, each, training.classes) for each in drawn])))
            outputs.append(drawn[0])
    if len(sizes) < 2:
        return None
    shown = [-score for score in scores] if scoring == "neg_mean_absolute_error" else scores
    series = Series(sizes, shown, score_name(scoring))
    text = (
        f"With {sizes[-2]:,} training images the held-out {score_name(scoring)} is {number(scores[-2], scoring)}, with "
        f"{sizes[-1]:,} {number(scores[-1], scoring)}: "
    )
    half, whole = outputs[-2:]
    low, high = UNKNOWN if metric.is_ranked else paired_interval(metric, test.y, half, whole, test.groups)
    if metric.is_ranked:
        text += (
            f"a difference of {score_name(scoring)} has no interval here, so it is not known whether more would help."
        )
    elif low > 0:
        text += "more than chance explains, so more images would probably help."
    elif high < _GAIN * max(1.0, abs(scores[-1])):
        text += "twice as many images would change little."
    else:
        text += "no more than chance may explain, so it is not known whether more images would help."
    drawn_chart = chart([series], "training images", score_name(scoring), text, is_log=True)
    return Section("growth", "Would more images help?", [Text(text), Html(drawn_chart)])


def _draws(y: np.ndarray, is_numeric: bool, share: float, random_state: int) -> list[np.ndarray]:
    """Stratified random parts of the training images; none if they would be too few."""
    rows = np.arange(len(y))
    if share == 1:
        return [rows]
    fewest = _FEWEST if is_numeric else max(_FEWEST, 2 * len(np.unique(y)))
    n = round(share * len(y))
    if n < fewest:
        return []
    strata = None if is_numeric or min(np.unique(y, return_counts=True)[1]) < 2 else y
    seeds = range(random_state, random_state + _DRAWS)
    return [train_test_split(rows, train_size=n, stratify=strata, random_state=seed)[0] for seed in seeds]


def _outputs(selection: Selection, rows: np.ndarray) -> np.ndarray | None:
    """The outputs for the held-out images of the chosen pipeline, fitted on some training images, as its score takes
    them; None if they do not allow a fit."""
    training, test, best = selection.training, selection.test, selection.best_estimator
    assert best is not None and test is not None and training.X is not None and training.y is not None
    try:
        fitted = clone(best).fit(training.X[rows], training.y[rows])
    except ValueError:  # a PCA or neighbours that need more images
        return None
    if test.store is not None:
        fitted = reading_from(fitted, test.store)
    return METRICS[selection.settings.scoring].outputs(fitted, test.X)
