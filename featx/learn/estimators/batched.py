"""The contract by which a search fits many estimators on the rows of one X: `Batched.fit_each`.

The search makes a job for each candidate and fold; each estimator decides how many of them it solves together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from sklearn.base import clone
from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler

from featx.learn.lazy_rows import LazyRows, rows_at


class ScoredRows:
    """The matrices that a fold's models predict: held-out rows, then training rows if these are scored too.

    They are made at the first use and freed by `release`; models that share a fold share them.
    """

    def __init__(self, make: Callable[[], tuple[Any, ...]]) -> None:
        self._make = make
        self._matrices: tuple[Any, ...] | None = None

    @property
    def matrices(self) -> tuple[Any, ...]:
        if self._matrices is None:
            self._matrices = self._make()
        return self._matrices

    def release(self) -> None:
        self._matrices = None


@dataclass(frozen=True, eq=False)
class Fold:
    """Which rows of X a model is fitted on, and which rows it predicts for its scores.

    number : unique among the folds of one call of `fit_each`; what is computed once per fold is kept under it
    train : (n_train,) positions in X, each once
    scored : what fitted models will be scored on, shifted and scaled already; None if they are not scored
    test : (n_test,) positions in X of the first scored matrix, or None where its rows are not among X's
    sample_weight : (n_train,), or None for ones
    shift, scale : (d,), or None; the model's columns are (X - shift) / scale
    """

    number: int
    train: np.ndarray
    scored: ScoredRows | None = None
    test: np.ndarray | None = None
    sample_weight: np.ndarray | None = None
    shift: np.ndarray | None = None
    scale: np.ndarray | None = None

    @property
    def columns(self) -> int | None:
        """A key that is equal for folds with the same columns: None for those of X itself, else the fold's number."""
        return None if self.shift is None and self.scale is None else self.number

    @property
    def matrices(self) -> tuple[Any, ...]:
        """The matrices on which fitted models will be scored; none if they are not scored."""
        return () if self.scored is None else self.scored.matrices


class Job(NamedTuple):
    """One estimator, a clone with its parameters set, and the fold to fit it on; estimators are never shared."""

    estimator: Any
    fold: Fold


class Fitted(NamedTuple):
    """The result of a job.

    number : number of the job
    estimator : the job's own, fitted, or why it cannot be
    seconds : its share of the time; the shares of all jobs add up to the whole
    view : what to score in place of the estimator, or None: a copy that has its answers for `Fold.matrices` at hand
    """

    number: int
    estimator: Any  # or Exception
    seconds: float
    view: Any = None


class Batched(Protocol):
    """An estimator of which a search fits many at once."""

    @classmethod
    def fit_each(cls, X: Any, y: Any, jobs: Sequence[Job]) -> Iterator[Fitted]:
        """Fit each job's estimator on its fold's rows of X, in the order that shares most.

        Each predicts as `estimator.fit(((X - shift) / scale)[train], y[train], sample_weight)` would. A job that cannot
        be fitted (a parameter out of range, one class only) yields its exception; the others continue.
        """
        ...

    def fit(self, X: Any, y: Any) -> Self: ...


_SCALER_ROWS = 2048  # of the blocks that a scaler is fitted on


def scaler_of(unfitted: Any, rows: Any, train: np.ndarray, y: Any, params: Mapping[str, Any]) -> Any:
    """A scaler fitted on a fold's rows: if possible in blocks, to avoid a copy of all rows."""
    scaler = clone(unfitted)
    if not hasattr(scaler, "partial_fit") or params or not len(train):
        return scaler.fit(rows_at(rows, train), y, **params)
    scaler._validate_params()
    for start in range(0, len(train), _SCALER_ROWS):
        scaler.partial_fit(rows[train[start : start + _SCALER_ROWS]])
    return scaler


def scaled(rows: Any, scaler: Any) -> Any:
    """Rows transformed by a fitted scaler, or by None; LazyRows when they are read."""
    if scaler is None:
        return rows
    return rows.map(scaler.transform) if isinstance(rows, LazyRows) else scaler.transform(rows)


def affine_of(scaler: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(shift, scale), each (d,) or None, of a fitted scaler: it makes (X - shift) / scale of X."""
    if isinstance(scaler, StandardScaler):
        return (scaler.mean_ if scaler.with_mean else None), scaler.scale_
    if isinstance(scaler, MinMaxScaler):
        return -scaler.min_ / scaler.scale_, 1 / scaler.scale_
    if isinstance(scaler, RobustScaler):
        return scaler.center_, scaler.scale_
    return None, scaler.scale_
