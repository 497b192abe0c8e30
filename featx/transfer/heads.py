"""The linear layer at the end of a network that is fine-tuned, before training: of a linear probe, zeros or random."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from featx.catalogue import ESTIMATORS
from featx.learn.search import GridSearchCV
from featx.learn.selection import Groups, cv_splits, new_estimator, units

_FOLDS = 5
_LEAST_SCALE = 0.1


class _Scaler(StandardScaler):
    """A StandardScaler that divides by 0.1 of the root mean variance of all features at least.

    A feature that hardly varies would get a weight of hundreds, and change the scores by as much once the tail is
    trained and the feature takes other values.
    """

    scale_: np.ndarray

    def fit(self, X: np.ndarray, y: object = None, sample_weight: object = None) -> _Scaler:
        super().fit(X, y, sample_weight)
        self.scale_ = np.maximum(self.scale_, _LEAST_SCALE * np.sqrt(self.var_.mean()))
        return self


def fit_probe(
    X: np.ndarray, y: np.ndarray, groups: Groups | None, class_weight: Mapping | str | None, random_state: int
) -> Pipeline:
    """A linear probe: logistic regression on standardised features, or ridge regression of numbers; see `_Scaler`.

    Its penalty has the best cross-validated score, in five folds or as many as there are images of each class; with
    fewer than two it is in the middle of the grid.

    Parameters
    ----------
    X : (n, d) features
    y : (n,) labels, or float64
    """
    is_numeric = y.dtype.kind == "f"
    name = "ridge" if is_numeric else "logistic_regression"
    spec = ESTIMATORS[name]
    estimator = new_estimator(spec)
    if class_weight is not None:
        estimator.set_params(class_weight=class_weight)
    probe = make_pipeline(_Scaler(), estimator)
    parameter = f"{type(estimator).__name__.lower()}__{spec.parameter}"
    folds = min(_FOLDS, int(units(y, groups)[1].min()))
    if folds < 2:
        return probe.set_params(**{parameter: spec.values[len(spec.values) // 2]}).fit(X, y)
    splits = cv_splits(y, groups, folds, 1, random_state)
    search = GridSearchCV(probe, {parameter: list(spec.values)}, cv=splits, n_jobs=1, error_score="raise")
    return search.fit(X, y).best_estimator_


@torch.no_grad()
def start_head(head: nn.Linear, probe: Pipeline | None, kind: str, random_state: int) -> None:
    """Set a head's weights.

    Parameters
    ----------
    head : linear layer with a row for each class, or one for numbers
    probe : Pipeline, optional
        The fitted probe, for `kind` "probe"; its scaler becomes a part of the weights.
    kind : "probe", "zeros" or "random"
        "random" is torch's default for linear layers, uniform in +- 1 / sqrt(d).
    """
    if kind == "random":
        bound = head.in_features**-0.5
        generator = torch.Generator().manual_seed(random_state)
        for values in (head.weight, head.bias):
            values.copy_(2 * bound * (torch.rand(values.shape, generator=generator) - 0.5))
        return
    if kind == "zeros":
        head.weight.zero_()
        head.bias.zero_()
        return
    assert probe is not None
    scaler, model = probe[0], probe[-1]
    coef = np.atleast_2d(model.coef_).astype(np.float64) / scaler.scale_  # (1 or k, d)
    intercept = np.atleast_1d(model.intercept_) - coef @ scaler.mean_
    if len(coef) == 1 and head.out_features == 2:  # logistic regression of two classes: scores -s / 2 and s / 2
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    head.weight.copy_(torch.from_numpy(coef))
    head.bias.copy_(torch.from_numpy(intercept))
