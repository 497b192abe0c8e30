"""What a shared search asks of an estimator: jobs on the rows of several folds in, fitted models out, one by one.

`search` makes the jobs; the linear models, the kernel machines and the neighbours each say how many of them are solved
together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self

import numpy as np


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
