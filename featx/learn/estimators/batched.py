"""What a shared search asks of an estimator: jobs on the rows of several folds in, fitted models out, one by one.

`search` makes the jobs; the linear models, the kernel machines and the neighbours each say how many of them are solved
together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from sklearn.base import clone
from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler


@dataclass(frozen=True, eq=False)
class Fold:
    """Which rows of X a model is fitted on, and those it is then asked about.

    train : (n_train,) positions in X, each once
    X_test : what the fitted model will be given: the held-out rows, already shifted and scaled
    test : (n_test,) positions in X of these rows, or None where they are not among its rows
    sample_weight : (n_train,), or None for ones
    shift, scale : (d,), or None; the model's columns are (X - shift) / scale
    also : other matrices that it will be given, such as the training rows, for their own score
    """

    train: np.ndarray
    X_test: Any
    test: np.ndarray | None = None
    sample_weight: np.ndarray | None = None
    shift: np.ndarray | None = None
    scale: np.ndarray | None = None
    also: tuple[Any, ...] = field(default=())


class Job(NamedTuple):
    """One estimator, a clone with its parameters set, and the fold to fit it on; estimators are never shared."""

    estimator: Any
    fold: Fold


class Fitted(NamedTuple):
    """One job done.

    number : of the job
    estimator : the job's own, fitted, or why it cannot be
    seconds : its share of the time; the shares of all jobs are the time of all
    """

    number: int
    estimator: Any  # or Exception
    seconds: float


class Batched(Protocol):
    """An estimator of which a search fits many at once."""

    @classmethod
    def fit_each(cls, X: Any, y: Any, jobs: Sequence[Job]) -> Iterator[Fitted]:
        """Fit each job's estimator on its fold's rows of X, in the order that shares most.

        Each answers as `estimator.fit(((X - shift) / scale)[train], y[train], sample_weight)` would. What is yielded is
        scored before the next is asked for: until then what the fold shares (a kernel, neighbours) may be kept at
        hand for the very object `fold.X_test`, and it is let go afterwards. A job that cannot be fitted (a parameter
        out of range, one class only) yields its exception; the others go on.
        """
        ...

    def fit(self, X: Any, y: Any) -> Self: ...


_SCALER_ROWS = 2048  # of the blocks that a scaler is fitted on


class Held(Fold):
    """A fold of a matrix whose held-out rows are made when they are asked for, and let go afterwards."""

    scaler: Any
    _rows: np.ndarray
    _scores_train: bool

    def __init__(
        self,
        rows: np.ndarray,
        scaler: Any,
        train: np.ndarray,
        test: np.ndarray,
        sample_weight: np.ndarray | None,
        scores_train: bool,
    ) -> None:
        shift, scale = (None, None) if scaler is None else affine_of(scaler)
        known = {"train": train, "test": test, "sample_weight": sample_weight, "shift": shift, "scale": scale}
        self.__dict__.update(known, scaler=scaler, _rows=rows, _scores_train=scores_train)

    @cached_property
    def X_test(self) -> Any:
        return self._made(self.test)

    @cached_property
    def also(self) -> tuple[Any, ...]:
        return (self._made(self.train),) if self._scores_train else ()

    def forget(self) -> None:
        for name in ("X_test", "also"):
            self.__dict__.pop(name, None)

    def _made(self, positions: np.ndarray | None) -> np.ndarray:
        taken = self._rows[positions]
        return taken if self.scaler is None else self.scaler.transform(taken)


def scaler_of(unfitted: Any, rows: np.ndarray, train: np.ndarray, y: Any, params: Mapping[str, Any]) -> Any:
    """Fitted on a fold's rows: in blocks, where it can be, so that no copy of them all is made."""
    scaler = clone(unfitted)
    if not hasattr(scaler, "partial_fit") or params or not len(train):
        return scaler.fit(rows[train], y, **params)
    scaler._validate_params()
    for start in range(0, len(train), _SCALER_ROWS):
        scaler.partial_fit(rows[train[start : start + _SCALER_ROWS]])
    return scaler


def affine_of(scaler: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(shift, scale), each (d,) or None, of a fitted scaler: it makes (X - shift) / scale of X."""
    if isinstance(scaler, StandardScaler):
        return (scaler.mean_ if scaler.with_mean else None), scaler.scale_
    if isinstance(scaler, MinMaxScaler):
        return -scaler.min_ / scaler.scale_, 1 / scaler.scale_
    if isinstance(scaler, RobustScaler):
        return scaler.center_, scaler.scale_
    return None, scaler.scale_
