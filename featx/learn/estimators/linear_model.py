"""How a linear model becomes a problem of the solvers, and its attributes follow from the solution.

`fits` reads it, `linear` has the estimators' `fit`, and `logistic`, `linear_svc` and `ridge` fill it in.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator

from featx.errors import FeatxError
from featx.learn.lazy_rows import checked

if TYPE_CHECKING:
    from featx.solvers import Solution


@dataclass(frozen=True, eq=False)
class Targets:
    """y of all fits.

    y : for the solver: class numbers (n,), or targets (n, t)
    original : the user's y, (n,) or (n, t), class labels as their numbers in `classes`
    classes : (k,) sorted labels, or the numbers of the targets
    """

    y: np.ndarray
    original: np.ndarray
    classes: np.ndarray


Weights = tuple[np.ndarray | None, np.ndarray | None]  # Problem.weights and Problem.class_factors


class LinearModel(BaseEstimator):
    """A model with scores X @ coef_.T + intercept_; see `featx.solvers.Problem` for the objective."""

    coef_: np.ndarray
    intercept_: Any  # (m,), or a number
    n_features_in_: int
    feature_names_in_: np.ndarray  # where X has column names

    _loss: ClassVar[str]  # the name of a featx.solvers.Loss
    _penalty: ClassVar[str]  # the penalty's parameter, which names a fit in warnings
    _counterpart: ClassVar[str]  # scikit-learn's class
    _only: ClassVar[dict[str, object]] = {}  # the only supported value of parameters for which scikit-learn has several

    def _refuse(self) -> None:
        """Raise if a parameter has a value that only scikit-learn's class supports."""
        for name, only in self._only.items():
            if getattr(self, name) != only:
                raise FeatxError(
                    f"{type(self).__name__} has no {name}={getattr(self, name)!r}, only {only!r}; "
                    f"{self._counterpart} has it"
                )

    def _checked(self, X: Any, y: Any, **options: Any) -> tuple[Any, np.ndarray]:
        """X and y, checked by scikit-learn; a C-ordered float array or memory map is not copied, nor are LazyRows."""
        for name, array in (("X", X), ("y", y)):
            if issparse(array):
                raise FeatxError(
                    f"{type(self).__name__} takes dense arrays, and {name} is sparse; give {name}.toarray(), or use "
                    f"{self._counterpart}"
                )
        return checked(self, X, y, dtype=[np.float64, np.float32], order="C", **options)

    @abstractmethod
    def _targets(self, X: Any, y: Any) -> tuple[np.ndarray, Targets]:
        """X and y, checked and encoded; sets `n_features_in_` and `feature_names_in_`."""

    def _weights(self, targets: Targets, weights: np.ndarray | None) -> Weights:
        """The weights of the rows and class factors."""
        return weights, None

    @abstractmethod
    def _l2(self, targets: Targets) -> float | np.ndarray:
        """The penalty in the sum form of `Problem`."""

    def _constant(self) -> float | None:
        """Value of the constant column whose penalised coefficient is the intercept; None if it is not penalised."""
        return None

    def _start(self, d: int, targets: Targets, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
        """The coefficients and intercepts to start from, or None."""
        return None

    def _stopping(self) -> tuple[float, int]:
        """tol and max_iter of the solvers."""
        return self.tol, self.max_iter

    def _keep_features(self, checked: LinearModel) -> None:
        """Copy what `_targets` has set on another estimator."""
        self.n_features_in_ = checked.n_features_in_
        if hasattr(checked, "feature_names_in_"):
            self.feature_names_in_ = checked.feature_names_in_
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    @abstractmethod
    def _keep(self, solution: Solution, targets: Targets, weights: np.ndarray | None) -> None:
        """Set the attributes of a fitted estimator from its solution."""
