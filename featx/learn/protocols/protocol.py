"""The common part of all protocols: the experiment, the loop over layers, and the result.

A protocol scores each layer on held-out images, which it uses for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from featx.errors import Call, FeatxError, Parameter
from featx.learn.features import StoredFeatures
from featx.learn.scores import METRICS
from featx.learn.selection import (
    Curve,
    Experiment,
    Interrupted,
    Labels,
    ProtocolResult,
    Stores,
    define_experiment,
)
from featx.progress import SearchClock, SearchProgress

Progress = Callable[[SearchProgress, list], None] | None
Measured = TypeVar("Measured")


def classification_experiment(stores: Stores, y: Labels, **options: Any) -> Experiment:
    """`define_experiment` with held-out images and class names; raises FeatxError for others."""
    experiment = held_out_experiment(stores, y, **options)
    if experiment.is_numeric:
        raise FeatxError(
            "this protocol is for classification, and the labels are numbers; use learning curves (",
            Call("featx.learn.learning_curves"),
            ") or model selection (",
            Call("featx.learn.select_model"),
            ")",
        )
    return experiment


def held_out_experiment(stores: Stores, y: Labels, **options: Any) -> Experiment:
    """`define_experiment`; raises FeatxError if no images are held out."""
    experiment = define_experiment(stores, y, **options)
    if experiment.X_test is None:
        raise FeatxError(
            "a protocol is scored on images held out; give ",
            Parameter("holdout", Call("HoldOut", Parameter("size", 0.2))),
            ", or another share above 0",
        )
    return experiment


def result_of(
    protocol: str,
    varied: str,
    curves: Sequence[Curve],
    experiment: Experiment,
    n_train: int,
    repeats: int,
    title: str = "",
) -> ProtocolResult:
    assert experiment.y_test is not None
    scoring = "r2" if experiment.is_numeric else "accuracy"
    return ProtocolResult(
        protocol=protocol,
        varied=varied,
        curves=tuple(curves),
        n_train=n_train,
        n_validation=len(experiment.y) - n_train,
        n_test=len(experiment.y_test),
        classes=experiment.classes,
        chance=experiment.chance(METRICS[scoring]),
        repeats=repeats,
        stores=experiment.stores,
        scoring=scoring,
        title=title,
    )


def layer_by_layer(
    all_features: Sequence[StoredFeatures],
    measure: Callable[[StoredFeatures], Measured],
    result: Callable[[list[Measured]], ProtocolResult],
    on_progress: Progress,
) -> ProtocolResult:
    """Measure layer by layer, and make the result; after an interrupt, the result of the layers that were done.

    Raises
    ------
    Interrupted
        Ctrl-C, after the first layer; before that, KeyboardInterrupt.
    """
    measured: list[Measured] = []
    clock = SearchClock(lambda now: on_progress and on_progress(now, []))
    widths = [
        200 + features.n_features_out_ for features in all_features
    ]  # the time of a layer, in columns: a constant part and its own
    clock.expect(len(widths), {"layers": sum(widths)})
    try:
        for features, width in zip(all_features, widths, strict=True):
            with clock.piece("layers", width):
                measured.append(measure(features))
            clock.fitted()
    except KeyboardInterrupt:
        if not measured:
            raise
        raise Interrupted(replace(result(measured), is_partial=True)) from None
    return result(measured)
