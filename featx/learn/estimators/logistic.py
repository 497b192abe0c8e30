"""scikit-learn's LogisticRegression on the batched solvers."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy.sparse import issparse
from scipy.special import expit, log_expit, log_softmax, softmax

from featx.errors import FeatxError
from featx.learn._sklearn import Interval, SparseCoefMixin, StrOptions
from featx.learn.estimators.linear import LinearClassifier
from featx.learn.estimators.linear_model import Targets

if TYPE_CHECKING:
    from featx.solvers import Solution


class LogisticRegression(SparseCoefMixin, LinearClassifier):
    """Logistic regression with an L2 penalty: two classes, or the multinomial model for more::

        min_{W, b}  |W|^2 / 2 + C sum_i s_i l(x_i W + b, y_i)

    Equivalent to scikit-learn's class with any solver but "liblinear", which penalises the intercept, except:

    - `tol` bounds a norm of the gradient relative to that at W = 0, whatever the units of X; `max_iter` is 1000. At the
      default, the objective is estimated to be within 1e-5 of its minimum, relative to it; within 1e-4 if X has 2**20
      elements or more.
    - Rows of weight 0 are ignored, and so are classes that have no other rows; weights must not be negative.
    - A row of weight 2 has the same objective as two copies of the row, but the two fits stop at different points
      within `tol`. scikit-learn's check_sample_weight_equivalence, which compares seven digits, passes with tol=1e-10.
    - X must be dense and `l1_ratio` 0; the deprecated `penalty` and `n_jobs` are left out.

    Parameters
    ----------
    C : float, above 0
        Inverse of the penalty's strength; np.inf for no penalty.
    l1_ratio : 0
    tol : float, default 1e-4
        Stopping tolerance. Below about 1e-5, rounding may stop a fit on float32 earlier, with a ConvergenceWarning.
    fit_intercept : bool, default True
    class_weight : dict {label: weight} or "balanced", optional
        Row weights are multiplied by it. "balanced": sum_i s_i / (k sum_{i of the class} s_i).
    max_iter : int, default 1000
        Maximum number of passes over the data.
    warm_start : bool, default False
        Whether `fit` starts from the coefficients of the previous fit.
    device : "auto", "cpu" or "cuda"
    dual, intercept_scaling, random_state, solver, verbose : as in scikit-learn
        No effect.

    Attributes
    ----------
    classes_ : (k,) labels
    coef_ : (1, d) for two classes, else (k, d), of X's type
    intercept_ : (1,) or (k,)
    n_iter_ : (1,) int32, passes over the data
    n_features_in_ : int, d
    feature_names_in_ : (d,) str, if X has column names

    Examples
    --------
    >>> from featx.learn import LogisticRegression
    >>> LogisticRegression().fit([[0.0], [1.0], [2.0], [3.0]], ["ant", "ant", "bee", "bee"]).predict([[5.0]])
    array(['bee'], dtype='<U3')
    """

    _loss = "LOGISTIC"
    _counterpart = "sklearn.linear_model.LogisticRegression"
    _only = {"l1_ratio": 0}
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "C": [Interval(Real, 0, None, closed="right")],
        "l1_ratio": [Interval(Real, 0, 1, closed="both")],
        "dual": ["boolean"],
        "tol": [Interval(Real, 0, None, closed="left")],
        "fit_intercept": ["boolean"],
        "intercept_scaling": [Interval(Real, 0, None, closed="neither")],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "random_state": ["random_state"],
        "solver": [StrOptions({"lbfgs", "liblinear", "newton-cg", "newton-cholesky", "sag", "saga"})],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "verbose": ["verbose"],
        "warm_start": ["boolean"],
        "device": [StrOptions({"auto", "cpu", "cuda"})],
    }

    def __init__(
        self,
        *,
        C: float = 1.0,
        l1_ratio: float = 0.0,
        dual: bool = False,
        tol: float = 1e-4,
        fit_intercept: bool = True,
        intercept_scaling: float = 1,
        class_weight: dict | str | None = None,
        random_state: Any = None,
        solver: str = "lbfgs",
        max_iter: int = 1000,
        verbose: int = 0,
        warm_start: bool = False,
        device: str = "auto",
    ) -> None:
        self.C = C
        self.l1_ratio = l1_ratio
        self.dual = dual
        self.tol = tol
        self.fit_intercept = fit_intercept
        self.intercept_scaling = intercept_scaling
        self.class_weight = class_weight
        self.random_state = random_state
        self.solver = solver
        self.max_iter = max_iter
        self.verbose = verbose
        self.warm_start = warm_start
        self.device = device

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes.

        Parameters
        ----------
        X : (n, d)

        Returns
        -------
        (n, k), columns as `classes_`
        """
        scores = self.decision_function(X)
        return expit(np.column_stack([-scores, scores])) if scores.ndim == 1 else softmax(scores, axis=1)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of the probabilities, finite also where probabilities round to 0.

        Parameters
        ----------
        X : (n, d)

        Returns
        -------
        (n, k), columns as `classes_`
        """
        scores = self.decision_function(X)
        return log_expit(np.column_stack([-scores, scores])) if scores.ndim == 1 else log_softmax(scores, axis=1)

    def _start(self, d: int, targets: Targets, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
        if not (self.warm_start and hasattr(self, "coef_")):
            return None
        k = len(self._present(targets, weights))
        shape = (1 if k == 2 else k, d)
        if self.coef_.shape != shape:
            raise FeatxError(
                f"warm_start needs the classes and columns of the fit before: coef_ has shape {self.coef_.shape}, "
                f"these rows need {shape}; clone the estimator"
            )
        coef: Any = self.coef_
        # copies, since torch warns of read-only arrays, which those of a loaded model may be
        return coef.toarray() if issparse(coef) else np.array(coef), np.array(self.intercept_)

    def _keep(self, solution: Solution, targets: Targets, weights: np.ndarray | None) -> None:
        super()._keep(solution, targets, weights)
        self.n_iter_ = np.array([solution.n_iter], np.int32)
