"""`finetune`: a fine-tuned network beside the linear probe that it starts from, on the same held-out images."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

from featx.errors import FeatxError, Parameter
from featx.learn.scores import METRICS, Interval, held_out_interval, paired_interval
from featx.learn.selection import A_FIFTH, HoldOut, Interrupted, Labels, define_experiment
from featx.progress import TrainingProgress
from featx.store import FeatureStore
from featx.transfer.finetuning import FineTuner, FineTunerRegressor

Tuner = FineTuner | FineTunerRegressor


@dataclass(frozen=True, eq=False, repr=False)
class FineTuning:
    """The result of `finetune`.

    Attributes
    ----------
    tuner : FineTuner or FineTunerRegressor
        Fitted on the training images.
    score, probe_score : float
        Scores of the tuner and of the probe on the held-out images.
    interval, probe_interval : Interval
        Their 95 % confidence intervals.
    difference : float
        score - probe_score
    difference_interval : Interval
        95 %, over the same images.
    scoring : "accuracy" or "r2"
    n_train, n_test : int
        Number of images.
    n_classes : int or None
        None for regression.
    chance : float
        Score of a constant prediction.
    seconds, probe_seconds : float
        Time of the two fits; both contain that of the probe.
    is_partial : bool
        Whether training was interrupted.
    """

    tuner: Tuner
    score: float
    interval: Interval
    probe_score: float
    probe_interval: Interval
    difference: float
    difference_interval: Interval
    scoring: str
    n_train: int
    n_test: int
    n_classes: int | None
    chance: float
    seconds: float
    probe_seconds: float
    is_partial: bool = False

    @property
    def is_better(self) -> bool:
        """Whether the interval of the difference lies above 0."""
        return self.difference_interval.low > 0

    def __repr__(self) -> str:
        return (
            f"fine-tuned {self.scoring} {self.score:.3f}, probe {self.probe_score:.3f}, difference "
            f"{self.difference:+.3f} [{self.difference_interval.low:+.3f}, {self.difference_interval.high:+.3f}]"
        )


def finetune(
    store: FeatureStore,
    boundary: str,
    y: Labels = None,
    *,
    holdout: HoldOut = A_FIFTH,
    groups: str | None = None,
    allow_duplicates: bool = False,
    random_state: int = 0,
    progress: bool | Callable[[TrainingProgress], None] = True,
    **options: Any,
) -> FineTuning:
    """Fine-tune from a stored layer, and score the network and its linear probe on images held out.

    Parameters
    ----------
    store, boundary : as in `FineTuner`
    y, holdout, groups, allow_duplicates, random_state : as in `featx.learn.select_model`
        `groups` is a column of the store.
    progress : bool or callable(featx.TrainingProgress)
    **options : further parameters of `FineTuner`, or of `FineTunerRegressor` if labels are floats

    Returns
    -------
    FineTuning

    Raises
    ------
    FeatxError
        No image is held out, or as in `FineTuner.fit`.
    Interrupted
        A KeyboardInterrupt after the first epoch; its `result` has the weights of the best epoch so far.
    """
    experiment = define_experiment(
        store, y, random_state=random_state, groups=groups, allow_duplicates=allow_duplicates, holdout=holdout
    )
    if experiment.X_test is None or experiment.y_test is None:
        raise FeatxError("the probe and the network are compared on images held out: give holdout a size above 0")
    kind = FineTunerRegressor if experiment.is_numeric else FineTuner
    if unknown := sorted(options.keys() - set(kind._get_param_names())):
        raise FeatxError(f"{kind.__name__}, which predicts ", "numbers" if experiment.is_numeric else "classes",
                         ", has no parameter ", Parameter(unknown[0]))  # fmt: skip
    common: dict[str, Any] = {"groups": groups, "random_state": random_state}
    tuner = kind(store, boundary, **common, progress=progress, **options)
    probe = kind(store, boundary, **common, **(options | {"epochs": 0, "head": "probe", "checkpoint": None}))
    try:
        tuner._validate_params()
    except ValueError as error:  # scikit-learn's words
        raise FeatxError(str(error)) from error
    metric = METRICS["r2" if experiment.is_numeric else "accuracy"]
    predictions, seconds, is_partial = [], [], False
    for each in (probe, tuner):
        start = time.monotonic()
        try:
            each.fit(experiment.X, experiment.y)
        except KeyboardInterrupt:
            if each is probe or getattr(each, "n_iter_", 0) < 1:
                raise
            is_partial = True
        seconds.append(time.monotonic() - start)
        scored = each
        if experiment.test_store is not None:
            scored = copy(each).set_params(store=experiment.test_store)
        predictions.append(scored.predict(experiment.X_test))
    truth, together = experiment.y_test, experiment.test_groups
    scores = [metric.score(truth, predicted) for predicted in predictions]
    intervals = [held_out_interval(metric, truth, predicted, together) for predicted in predictions]
    result = FineTuning(
        tuner=tuner,
        score=scores[1],
        interval=intervals[1],
        probe_score=scores[0],
        probe_interval=intervals[0],
        difference=scores[1] - scores[0],
        difference_interval=paired_interval(metric, truth, predictions[0], predictions[1], together),
        scoring=metric.name,
        n_train=len(experiment.X),
        n_test=len(truth),
        n_classes=None if experiment.classes is None else len(experiment.classes),
        chance=experiment.chance(metric),
        seconds=seconds[1],
        probe_seconds=seconds[0],
        is_partial=is_partial,
    )
    if is_partial:
        raise Interrupted(result)
    return result
