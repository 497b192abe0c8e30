"""scikit-learn's Ridge and RidgeClassifier, in the closed form of the solvers."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.utils import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from featx.errors import FeatxError
from featx.learn._sklearn import Interval, StrOptions
from featx.learn.estimators.linear import LinearClassifier, LinearEstimator
from featx.learn.estimators.linear_model import Targets, Weights
from featx.learn.lazy_rows import in_blocks

if TYPE_CHECKING:
    from featx.solvers import Solution

_CONSTRAINTS: dict[str, list[Any]] = {
    "alpha": [Interval(Real, 0, None, closed="left")],
    "fit_intercept": ["boolean"],
    "copy_X": ["boolean"],
    "max_iter": [Interval(Integral, 1, None, closed="left"), None],
    "tol": [Interval(Real, 0, None, closed="left")],
    "solver": [StrOptions({"auto", "svd", "cholesky", "lsqr", "sparse_cg", "sag", "saga", "lbfgs"})],
    "positive": ["boolean"],
    "random_state": ["random_state"],
    "device": [StrOptions({"auto", "cpu", "cuda"})],
}


class _Ridge(LinearEstimator):
    """Base of both estimators: targets as columns, solved in closed form; attributes with scikit-learn's shapes."""

    _loss = "SQUARED_ERROR"
    _penalty = "alpha"
    _only = {"positive": False}

    def _l2(self, targets: Targets) -> float | np.ndarray:
        return self.alpha  # sum_i s_i |y_i - z_i|^2 + alpha |W|^2, halved

    def _stopping(self) -> tuple[float, int]:
        return 0.0, 1  # no effect on a closed form, but equal, so that all fits go in one call

    def _keep_columns(self, coef: np.ndarray, intercept: np.ndarray, n_iter: int, one_dimensional: bool) -> None:
        self.coef_ = coef[0] if len(coef) == 1 else coef
        self.n_iter_ = np.full(len(coef), n_iter, np.int32)
        self.intercept_ = (intercept[0] if one_dimensional else intercept) if self.fit_intercept else 0.0


class Ridge(MultiOutputMixin, RegressorMixin, _Ridge):
    """Least squares with an L2 penalty, for one target or several::

        min_{W, b}  sum_i s_i |y_i - (x_i W + b)|^2 + alpha |W|^2

    Equivalent to scikit-learn's class, except:

    - Rows of weight 0 are ignored; weights must not be negative.
    - X must be dense and `positive` False; there is no `solver_`.

    Parameters
    ----------
    alpha : float or (t,), at least 0
        Strength of the penalty, one for all targets or one per target.
    fit_intercept : bool, default True
    positive : False
    device : "auto", "cpu" or "cuda"
    copy_X, max_iter, tol, solver, random_state : as in scikit-learn
        No effect: the solution is computed in closed form, and X is never written to.

    Attributes
    ----------
    coef_ : (d,) for one target, else (t, d), of X's type
    intercept_ : float for y of shape (n,), else (t,); 0.0 without an intercept
    n_iter_ : (t,) int32, passes over the data
    n_features_in_ : int, d
    feature_names_in_ : (d,) str, if X has column names

    Examples
    --------
    >>> from featx.learn import Ridge
    >>> Ridge(alpha=0.0).fit([[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0]).predict([[3.0]]).round(6)
    array([7.])
    """

    _counterpart = "sklearn.linear_model.Ridge"
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **_CONSTRAINTS,
        "alpha": [*_CONSTRAINTS["alpha"], "array-like"],
    }

    def __init__(
        self,
        alpha: Any = 1.0,
        *,
        fit_intercept: bool = True,
        copy_X: bool = True,
        max_iter: int | None = None,
        tol: float = 1e-4,
        solver: str = "auto",
        positive: bool = False,
        random_state: Any = None,
        device: str = "auto",
    ) -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.copy_X = copy_X
        self.max_iter = max_iter
        self.tol = tol
        self.solver = solver
        self.positive = positive
        self.random_state = random_state
        self.device = device

    def predict(self, X: Any) -> np.ndarray:
        """Predicted targets.

        Parameters
        ----------
        X : (n, d)

        Returns
        -------
        (n,) or (n, t)
        """
        check_is_fitted(self)
        return in_blocks(lambda rows: validate_data(self, rows, reset=False) @ self.coef_.T + self.intercept_, X)

    def _targets(self, X: Any, y: Any) -> tuple[np.ndarray, Targets]:
        X, y = self._checked(X, y, multi_output=True, y_numeric=True)
        with np.errstate(over="ignore"):
            columns = y.reshape(len(y), -1).astype(X.dtype, copy=False)
        if not np.isfinite(columns).all():
            raise FeatxError(f"y is too large for {X.dtype}; give X as float64")
        return X, Targets(columns, y, np.arange(columns.shape[1]))

    def _l2(self, targets: Targets) -> float | np.ndarray:
        alpha = np.ravel(self.alpha).astype(np.float64)
        t = targets.y.shape[1]
        if len(alpha) not in (1, t):
            raise FeatxError(f"Number of targets and number of penalties do not correspond: {len(alpha)} != {t}")
        if not (alpha >= 0).all():
            raise FeatxError(f"every alpha must be at least 0; got {alpha[~(alpha >= 0)][0]:g}")
        return float(alpha[0]) if len(alpha) == 1 else alpha

    def _keep(self, solution: Solution, targets: Targets, weights: np.ndarray | None) -> None:
        self._keep_columns(solution.coef, solution.intercept, solution.n_iter, targets.original.ndim == 1)


class RidgeClassifier(_Ridge, LinearClassifier):
    """Classifier by ridge regression on targets of -1 and 1, one for each class (or label, if rows have several)::

        min_{W, b}  sum_i s_i |t_i - (x_i W + b)|^2 + alpha |W|^2,    t_ic = 1 if row i is of class c, else -1

    The class of the largest score is predicted. Equivalent to scikit-learn's class, except:

    - Rows of weight 0 are ignored, and so are classes that have no other rows; weights must not be negative.
    - X and y must be dense, `alpha` one number and `positive` False; there is no `solver_`.
    - Fitting a single class raises an error, as for the other classifiers.

    Parameters
    ----------
    alpha : float, at least 0
        Strength of the penalty.
    fit_intercept : bool, default True
    class_weight : dict {label: weight} or "balanced", optional
        Row weights are multiplied by it. "balanced": n / (k times the number of the class's rows).
    positive : False
    device : "auto", "cpu" or "cuda"
    copy_X, max_iter, tol, solver, random_state : as in scikit-learn
        No effect: the solution is computed in closed form, and X is never written to.

    Attributes
    ----------
    classes_ : (k,) labels; for y (n, k) of 0 and 1, with several labels per row, the numbers of its columns
    coef_ : (d,) for two classes, else (k, d), of X's type
    intercept_ : (1,) or (k,); 0.0 without an intercept
    n_iter_ : (1,) or (k,) int32, passes over the data
    n_features_in_ : int, d
    feature_names_in_ : (d,) str, if X has column names

    Examples
    --------
    >>> from featx.learn import RidgeClassifier
    >>> RidgeClassifier().fit([[0.0], [1.0], [2.0], [3.0]], ["ant", "ant", "bee", "bee"]).predict([[5.0]])
    array(['bee'], dtype='<U3')
    """

    _counterpart = "sklearn.linear_model.RidgeClassifier"
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **_CONSTRAINTS,
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        fit_intercept: bool = True,
        copy_X: bool = True,
        max_iter: int | None = None,
        tol: float = 1e-4,
        class_weight: dict | str | None = None,
        solver: str = "auto",
        positive: bool = False,
        random_state: Any = None,
        device: str = "auto",
    ) -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.copy_X = copy_X
        self.max_iter = max_iter
        self.tol = tol
        self.class_weight = class_weight
        self.solver = solver
        self.positive = positive
        self.random_state = random_state
        self.device = device

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def predict(self, X: Any) -> np.ndarray:
        """Predicted labels.

        Parameters
        ----------
        X : (n, d)

        Returns
        -------
        (n,) labels, or (n, k) of 0 and 1 if y had several labels per row
        """
        check_is_fitted(self)
        return (self.decision_function(X) > 0).astype(int) if self._multilabel else super().predict(X)

    def _targets(self, X: Any, y: Any) -> tuple[np.ndarray, Targets]:
        X, y = self._checked(X, y, multi_output=True)
        check_classification_targets(y)
        if type_of_target(y) == "multilabel-indicator":
            return X, Targets(_signs(y != 0, X.dtype), y, np.arange(y.shape[1]))
        classes, codes = np.unique(column_or_1d(y, warn=True), return_inverse=True)
        columns = np.arange(len(classes))[1 if len(classes) == 2 else 0 :]
        return X, Targets(_signs(codes[:, None] == columns, X.dtype), codes, classes)

    def _weights(self, targets: Targets, weights: np.ndarray | None) -> Weights:
        if targets.original.ndim == 1:
            return super()._weights(targets, weights)
        if self.class_weight is None:
            return weights, None
        kept = np.full(len(targets.original), True) if weights is None else weights > 0
        factors = kept.astype(np.float64)
        factors[kept] = compute_sample_weight(self.class_weight, targets.original[kept])
        return factors if weights is None else weights * factors, None

    def _class_counts(self, targets: Targets, weights: np.ndarray | None) -> np.ndarray:
        return super()._class_counts(targets, None if weights is None else weights > 0)

    def _keep(self, solution: Solution, targets: Targets, weights: np.ndarray | None) -> None:
        self._multilabel = targets.original.ndim == 2
        present = np.arange(len(targets.classes)) if self._multilabel else self._present(targets, weights)
        self.classes_ = targets.classes[present]
        columns = np.arange(len(solution.coef))
        if not self._multilabel and len(columns) > 1:  # one a class; for two classes, the second suffices
            columns = present[1:] if len(present) == 2 else present
        self._keep_columns(solution.coef[columns], solution.intercept[columns], solution.n_iter, one_dimensional=False)


def _signs(positive: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """1 where `positive` is true, -1 elsewhere."""
    return np.where(positive, dtype.type(1), dtype.type(-1))
