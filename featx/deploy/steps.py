"""Fitted transformers as torch modules: rows (b, d) -> (b, d') of the same type.

They compute in float64 and round where scikit-learn rounds: its scalers change float32 rows in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featx.errors import ModelError


def constant(values: Any) -> Tensor:
    """An array as a tensor: float32 where that is exact, else float64."""
    array = np.array(values, np.float64)
    short = array.astype(np.float32)
    return torch.from_numpy(short if (short == array).all() else array)


class Affine(nn.Module):
    """(X - shift) / scale; either may be None.

    in_type : whether shift and scale are rounded to the type of X first
    """

    shift: Tensor | None
    scale: Tensor | None

    def __init__(self, shift: np.ndarray | None, scale: np.ndarray | None, in_type: bool = False) -> None:
        super().__init__()
        self.in_type = in_type
        self.register_buffer("shift", None if shift is None else constant(shift))
        self.register_buffer("scale", None if scale is None else constant(scale))

    def forward(self, X: Tensor) -> Tensor:
        kind = X.dtype if self.in_type else torch.float64
        if self.shift is not None:
            X = (X.double() - self.shift.to(kind).double()).to(X.dtype)
        if self.scale is not None:
            X = (X.double() / self.scale.to(kind).double()).to(X.dtype)
        return X


class Clipped(nn.Module):
    """Numbers within [low, high]."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = float(low), float(high)

    def forward(self, X: Tensor) -> Tensor:
        return X.clamp(self.low, self.high)


class MinMax(nn.Module):
    """X scale + least"""

    scale: Tensor
    least: Tensor

    def __init__(self, scale: np.ndarray, least: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("scale", constant(scale))
        self.register_buffer("least", constant(least))

    def forward(self, X: Tensor) -> Tensor:
        scaled = (X.double() * self.scale.double()).to(X.dtype)
        return (scaled.double() + self.least.double()).to(X.dtype)


class Norm(nn.Module):
    """Rows divided by their norm; rows of 0 stay."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.order = {"l1": 1.0, "l2": 2.0, "max": float("inf")}[norm]

    def forward(self, X: Tensor) -> Tensor:
        wide = X.double()
        if self.order == 1:
            norms = wide.abs().sum(1, keepdim=True)
        elif self.order == 2:
            norms = wide.square().sum(1, keepdim=True).sqrt()
        else:
            norms = wide.abs().amax(1, keepdim=True)
        return (wide / torch.where(norms == 0, 1.0, norms)).to(X.dtype)


class Projection(nn.Module):
    """X W^T - offset, W (d', d)"""

    W: Tensor
    offset: Tensor

    def __init__(self, W: np.ndarray, offset: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("W", constant(W))
        self.register_buffer("offset", constant(offset))

    def forward(self, X: Tensor) -> Tensor:
        return (X.double() @ self.W.double().T - self.offset.double()).to(X.dtype)


class Power(nn.Module):
    """The transforms of Yeo and Johnson (2000) or of Box and Cox (1964), each column with its own lambda.

    Yeo-Johnson : ((x + 1)^l - 1) / l for x >= 0, else -((1 - x)^(2 - l) - 1) / (2 - l)
    Box-Cox : (x^l - 1) / l, for positive x

    Where the denominator is 0 it is a logarithm.
    """

    lambdas: Tensor

    def __init__(self, lambdas: np.ndarray, method: str) -> None:
        super().__init__()
        self.signed = method == "yeo-johnson"
        self.register_buffer("lambdas", torch.from_numpy(np.array(lambdas, np.float64)))

    def forward(self, X: Tensor) -> Tensor:
        wide = X.double()
        if not self.signed:
            return _power(wide, self.lambdas).to(X.dtype)
        positive = _power(wide.clamp_min(0) + 1, self.lambdas)
        negative = -_power(1 - wide.clamp_max(0), 2 - self.lambdas)
        return torch.where(wide >= 0, positive, negative).to(X.dtype)


def _power(base: Tensor, exponents: Tensor) -> Tensor:
    """(base^l - 1) / l, or log(base) where l is 0."""
    is_log = exponents.abs() < np.finfo(np.float64).eps
    safe = torch.where(is_log, 1.0, exponents)
    return torch.where(is_log, base.log(), (base.pow(safe) - 1) / safe)


class Columns(nn.Module):
    """Some of the columns, in the given order; consecutive ones are a slice."""

    positions: Tensor

    def __init__(self, positions: np.ndarray) -> None:
        super().__init__()
        positions = np.asarray(positions, np.int64)
        self.span = None
        if len(positions) and (np.diff(positions) == 1).all():
            self.span = int(positions[0]), int(positions[-1]) + 1
        self.register_buffer("positions", None if self.span else torch.from_numpy(positions))

    def forward(self, X: Tensor) -> Tensor:
        return X[:, self.span[0] : self.span[1]] if self.span else X.index_select(1, self.positions)


class SideBySide(nn.Module):
    """The columns of several transformers, each times its weight."""

    def __init__(self, parts: list[nn.Module], weights: list[float]) -> None:
        super().__init__()
        self.parts, self.weights = nn.ModuleList(parts), weights

    def forward(self, X: Tensor) -> Tensor:
        rows = [part(X) for part in self.parts]
        scaled = [one if weight == 1 else one * weight for one, weight in zip(rows, self.weights, strict=True)]
        return torch.cat(scaled, 1)


def _clipped(module: nn.Module, fitted: Any, low: float, high: float) -> nn.Module:
    return nn.Sequential(module, Clipped(low, high)) if getattr(fitted, "clip", False) else module


def _standard(fitted: Any) -> nn.Module:
    return Affine(fitted.mean_ if fitted.with_mean else None, fitted.scale_, in_type=True)


def _min_max(fitted: Any) -> nn.Module:
    return _clipped(MinMax(fitted.scale_, fitted.min_), fitted, *fitted.feature_range)


def _robust(fitted: Any) -> nn.Module:
    return Affine(
        fitted.center_ if fitted.with_centering else None,
        fitted.scale_ if fitted.with_scaling else None,
    )


def _max_abs(fitted: Any) -> nn.Module:
    return _clipped(Affine(None, fitted.scale_), fitted, -1.0, 1.0)


def _pca(fitted: Any) -> nn.Module:
    W = np.asarray(fitted.components_, np.float64)
    offset = W @ fitted.mean_
    if fitted.whiten:
        variance = fitted.explained_variance_
        scale = np.maximum(np.sqrt(variance), np.finfo(variance.dtype).eps).astype(np.float64)
        W, offset = W / scale[:, None], offset / scale
    return Projection(W, offset)


def _truncated_svd(fitted: Any) -> nn.Module:
    return Projection(fitted.components_, np.zeros(len(fitted.components_)))


def _power_transformer(fitted: Any) -> nn.Module:
    power = Power(fitted.lambdas_, fitted.method)
    return nn.Sequential(power, _standard(fitted._scaler)) if fitted.standardize else power


def _selector(fitted: Any) -> nn.Module:
    return Columns(fitted.get_support(indices=True))


def _align(fitted: Any) -> nn.Module:
    """Images that are predicted are of the target domain: only "scaler" changes their rows."""
    return Affine(fitted.target_mean_, fitted.target_scale_) if fitted.method == "scaler" else nn.Identity()


def _function(fitted: Any) -> nn.Module:
    if fitted.func is not None:
        raise ModelError("a FunctionTransformer of a function of yours cannot be exported; only scikit-learn's can")
    return nn.Identity()


STEPS: dict[str, Callable[[Any], nn.Module]] = {
    "Align": _align,
    "FunctionTransformer": _function,
    "IncrementalPCA": _pca,
    "MaxAbsScaler": _max_abs,
    "MinMaxScaler": _min_max,
    "Normalizer": lambda fitted: Norm(fitted.norm),
    "PCA": _pca,
    "PowerTransformer": _power_transformer,
    "RobustScaler": _robust,
    "SelectFromModel": _selector,
    "SelectKBest": _selector,
    "SelectPercentile": _selector,
    "StandardScaler": _standard,
    "TruncatedSVD": _truncated_svd,
    "VarianceThreshold": _selector,
}
