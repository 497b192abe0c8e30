"""Calibrated, voting and stacking ensembles as torch modules, from the modules of their members."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featx.deploy.estimators import Outputs, named
from featx.errors import ModelError

Translate = Callable[[Any], nn.Module]  # a fitted estimator -> its module


class Sigmoid(nn.Module):
    """1 / (1 + exp(a s + b)) of scores s (b,), Platt's."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.a, self.b = float(a), float(b)

    def forward(self, scores: Tensor) -> Tensor:
        return (-(self.a * scores.double() + self.b)).sigmoid()


class Isotonic(nn.Module):
    """Linear interpolation between thresholds, of scores clipped to them."""

    x: Tensor
    y: Tensor
    slopes: Tensor

    def __init__(self, fitted: Any) -> None:
        super().__init__()
        x, y = (np.array(values, np.float64) for values in (fitted.X_thresholds_, fitted.y_thresholds_))
        if len(x) == 1:
            x, y = np.r_[x, x + 1], np.r_[y, y]
        self.register_buffer("x", torch.from_numpy(x))
        self.register_buffer("y", torch.from_numpy(y))
        self.register_buffer("slopes", torch.from_numpy(np.diff(y) / np.diff(x)))

    def forward(self, scores: Tensor) -> Tensor:
        clipped = scores.double().clamp(float(self.x[0]), float(self.x[-1]))
        left = (clipped[:, None] > self.x[1:-1]).sum(1)  # the last threshold below
        return self.y[left] + self.slopes[left] * (clipped - self.x[left])


class Temperature(nn.Module):
    """softmax(beta z) of scores or log probabilities z (b, k)."""

    def __init__(self, beta: float, are_probabilities: bool) -> None:
        super().__init__()
        self.beta, self.are_probabilities = float(beta), are_probabilities

    def forward(self, scores: Tensor) -> Tensor:
        scores = scores.double()
        if self.are_probabilities:
            scores = (scores + 1e-12).log()
        elif scores.ndim == 1:
            scores = torch.stack([-scores, scores], 1)
        return (self.beta * scores).softmax(1)


class Calibrated(nn.Module):
    """One member of CalibratedClassifierCV: (b, k) probabilities, one calibrator for each column of scores.

    classes : the position in the ensemble's classes of each class of the member
    """

    def __init__(
        self, member: nn.Module, calibrators: list[nn.Module], classes: list[int], k: int, is_scored: bool
    ) -> None:
        super().__init__()
        self.member, self.calibrators = member, nn.ModuleList(calibrators)
        self.classes, self.k, self.is_scored = classes, k, is_scored

    def forward(self, X: Tensor) -> Tensor:
        outputs = self.member(X)
        scores = outputs.scores if self.is_scored else outputs.probabilities
        if isinstance(self.calibrators[0], Temperature):
            return self.calibrators[0](scores)
        if self.k == 2:
            second = self.calibrators[0](scores if scores.ndim == 1 else scores[:, 1])
            return torch.stack([1 - second, second], 1)
        columns = [scores[:, 0].double() * 0] * self.k
        for number, (position, calibrator) in enumerate(zip(self.classes, self.calibrators, strict=True)):
            columns[position] = calibrator(scores[:, number])
        each = torch.stack(columns, 1)
        total = each.sum(1, keepdim=True)
        return torch.where(total == 0, 1 / self.k, each / torch.where(total == 0, 1.0, total))


class Mean(nn.Module):
    """The mean of the members' probabilities, or of the values of regressions, with weights."""

    def __init__(self, members: Sequence[nn.Module], weights: Any = None) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        weights = np.ones(len(members)) if weights is None else np.asarray(weights, np.float64)
        self.weights = (weights / weights.sum()).tolist()

    def forward(self, X: Tensor) -> Outputs:
        total = None
        for member, weight in zip(self.members, self.weights, strict=True):
            outputs = member(X)
            if isinstance(outputs, Outputs):
                outputs = outputs.values if outputs.probabilities is None else outputs.probabilities
            term = outputs.double() * weight
            total = term if total is None else total + term
        assert total is not None
        return Outputs(values=total) if total.ndim == 1 else Outputs(total.argmax(1), total)


class Votes(nn.Module):
    """The label that most members predict; scores are the weights of the votes."""

    def __init__(self, members: Sequence[nn.Module], k: int, weights: Any) -> None:
        super().__init__()
        self.members, self.k = nn.ModuleList(members), k
        self.weights = [1.0] * len(members) if weights is None else [float(weight) for weight in weights]

    def forward(self, X: Tensor) -> Outputs:
        labels = [member(X).label for member in self.members]
        votes = [
            nn.functional.one_hot(label, self.k).double() * weight
            for label, weight in zip(labels, self.weights, strict=True)
        ]
        total = torch.stack(votes).sum(0)
        return Outputs(total.argmax(1), scores=total)


class Stacked(nn.Module):
    """A final estimator on what the members predict, each by its method, side by side."""

    def __init__(self, members: Sequence[nn.Module], methods: list[str], final: nn.Module, with_rows: bool) -> None:
        super().__init__()
        self.members, self.methods = nn.ModuleList(members), methods
        self.final, self.with_rows = final, with_rows

    def forward(self, X: Tensor) -> Outputs:
        columns = [
            _columns(member(X), method).double() for member, method in zip(self.members, self.methods, strict=True)
        ]
        return self.final(torch.cat([*columns, X.double()] if self.with_rows else columns, 1))


def _columns(outputs: Outputs, method: str) -> Tensor:
    """(b, m) what a member adds to the rows of a stack's final estimator."""
    if method == "predict_proba":
        assert outputs.probabilities is not None
        return outputs.probabilities[:, 1:] if outputs.probabilities.shape[1] == 2 else outputs.probabilities
    values = outputs.scores if method == "decision_function" else outputs.values
    values = outputs.label if values is None else values
    assert values is not None
    return values[:, None] if values.ndim == 1 else values


def _calibrated(fitted: Any, translate: Translate) -> nn.Module:
    members = []
    classes = list(fitted.classes_)
    for one in fitted.calibrated_classifiers_:
        is_scored = hasattr(one.estimator, "decision_function")
        calibrators = [_calibrator(each, not is_scored) for each in one.calibrators]
        is_multiclass = one.method == "temperature"  # one calibrator of all columns
        positions = [] if is_multiclass else [classes.index(label) for label in one.estimator.classes_]
        if len(positions) == 2 < len(classes):
            raise ModelError(
                f"{named(fitted)} with a member that has seen two classes only cannot be exported; use fewer folds"
            )
        members.append(Calibrated(translate(one.estimator), calibrators, positions, len(classes), is_scored))
    return Mean(members)


def _calibrator(fitted: Any, are_probabilities: bool) -> nn.Module:
    if hasattr(fitted, "a_"):
        return Sigmoid(fitted.a_, fitted.b_)
    if hasattr(fitted, "beta_"):
        return Temperature(fitted.beta_, are_probabilities)
    return Isotonic(fitted)


def _voting(fitted: Any, translate: Translate) -> nn.Module:
    members, weights = [translate(member) for member in fitted.estimators_], fitted._weights_not_none
    if getattr(fitted, "voting", "soft") == "hard":
        return Votes(members, len(fitted.classes_), weights)
    return Mean(members, weights)


def _stacking(fitted: Any, translate: Translate) -> nn.Module:
    methods = [method for method in fitted.stack_method_ if method != "drop"]
    members = [translate(member) for member in fitted.estimators_]
    for member, method in zip(fitted.estimators_, methods, strict=True):
        # the labels of a prefit member may be any numbers, those of others are positions
        if method == "predict" and fitted.cv == "prefit" and hasattr(member, "classes_"):
            raise ModelError(f"{named(fitted)} of prefit {named(member)} cannot be exported; fit it with cv=5")
    return Stacked(members, methods, translate(fitted.final_estimator_), fitted.passthrough)


ENSEMBLES: dict[str, Callable[[Any, Translate], nn.Module]] = {
    "CalibratedClassifierCV": _calibrated,
    "StackingClassifier": _stacking,
    "StackingRegressor": _stacking,
    "VotingClassifier": _voting,
    "VotingRegressor": _voting,
}
