"""Few-shot evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featx.errors import FeatxError, Parameter
from featx.learn.estimators import LogisticRegression, StandardScaler
from featx.learn.features import StoredFeatures
from featx.learn.protocols.protocol import (
    Progress,
    classification_experiment,
)
from featx.learn.protocols.subsamples import (
    curve_over_subsamples,
    curves_by_layer,
    training_and_test_rows,
)
from featx.learn.selection import (
    A_FIFTH,
    Curve,
    HoldOut,
    Labels,
    Layers,
    ProtocolResult,
    Stores,
    brief,
    check_callback,
    check_integer,
    check_positive,
    counts,
)

_SHOTS = (1, 2, 4, 8, 16)


def few_shot(
    stores: Stores,
    y: Labels = None,
    *,
    layers: Layers = None,
    shots: Sequence[int] | None = None,
    repeats: int = 10,
    C: float = 0.1,
    groups: str | Sequence[object] | np.ndarray | None = None,
    allow_duplicates: bool = False,
    holdout: HoldOut = A_FIFTH,
    random_state: int = 0,
    on_progress: Progress = None,
) -> ProtocolResult:
    """Accuracy of logistic regression trained on a few images of each class, over random subsamples, for each layer.

    C is fixed, since a few images leave none to choose it on. Columns are standardised over all training images, which
    uses no labels. The images of a subsample with fewer shots are among those with more.

    Parameters
    ----------
    shots : sequence of int, optional
        Images per class, at most as many as the rarest class has; by default 1, 2, 4, 8 and
        16, as far as possible.
    repeats : int
        Number of subsamples.
    C : float

    Other parameters and Raises are as in `linear_probe`.

    Returns
    -------
    ProtocolResult
        Points are on the held-out images; their intervals cover the choice of training images and of test images.
    """
    check_integer("repeats", repeats, 1)
    check_positive("C", C)
    check_callback("on_progress", on_progress)
    experiment = classification_experiment(
        stores, y, groups=groups, allow_duplicates=allow_duplicates, holdout=holdout, random_state=random_state
    )
    names, n_of_each = np.unique(experiment.y, return_counts=True)
    shots = [shot for shot in _SHOTS if shot <= n_of_each.min()] if shots is None else shots
    if (distinct := counts(shots, 1, n_of_each.min())) is None:
        raise FeatxError(
            Parameter("shots"),
            f" is a list of numbers of images per class, from 1 to the {n_of_each.min():,} training images of "
            f"{str(names[n_of_each.argmin()])!r}; got {brief(shots)}",
        )
    draws: dict[int, list[np.ndarray]] = {shot: [] for shot in sorted(distinct)}
    for seed in range(repeats):
        order = np.random.default_rng([random_state, seed]).permutation(len(experiment.y))
        of_each = [order[experiment.y[order] == name] for name in names]
        for shot, drawn in draws.items():
            drawn.append(np.concatenate([rows[:shot] for rows in of_each]))

    def measure(features: StoredFeatures) -> Curve:
        X, X_test = training_and_test_rows(features, experiment)
        scaler = StandardScaler().fit(X)
        estimator = LogisticRegression(C=C, max_iter=1000)
        return curve_over_subsamples(
            features, scaler.transform(X), scaler.transform(X_test), experiment, draws, estimator, scaled=False
        )

    return curves_by_layer("few-shot", "images a class", experiment, layers, measure, repeats, on_progress)
