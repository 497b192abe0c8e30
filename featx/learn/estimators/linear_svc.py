"""scikit-learn's LinearSVC on the batched solvers."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from sklearn.utils import gen_batches
from sklearn.utils.extmath import safe_sparse_dot
from sklearn.utils.validation import check_is_fitted, validate_data

from featx.learn._sklearn import Interval, SparseCoefMixin, StrOptions
from featx.learn.estimators.linear import LinearClassifier
from featx.learn.estimators.linear_model import Targets, Weights
from featx.learn.lazy_rows import LazyRows, in_blocks

if TYPE_CHECKING:
    from featx.solvers import Solution

_BLOCK = 2**18  # elements of X that are converted to float64 at once: more are no faster


class LinearSVC(SparseCoefMixin, LinearClassifier):
    """Linear support vector classifier with the squared hinge loss, one against the rest::

        min_{w, b}  (|w|^2 + b^2) / 2 + C sum_i s_i max(0, 1 - t_i (x_i w + intercept_scaling b))^2

    for each class, t_i = 1 on its rows and -1 elsewhere; `intercept_` is intercept_scaling b. Equivalent to
    scikit-learn's class (liblinear), except:

    - `tol` bounds a norm of each class's gradient relative to that at W = 0, whatever the units of X. At the default, a
      fit without a ConvergenceWarning is within a thousandth of its minimum.
    - Rows of weight 0 are ignored, and so are classes that have no other rows; weights must not be negative.
    - A row of weight 2 has the same objective as two copies of the row, but the two fits stop at different points
      within `tol`. scikit-learn's check_sample_weight_equivalence, which compares seven digits, passes with tol=1e-10.
    - X must be dense. Coefficients are always float64; if X is float32, most passes over the data compute in float32.
    - `penalty` must be "l2", `loss` "squared_hinge" and `multi_class` "ovr".

    Parameters
    ----------
    penalty, loss, multi_class : "l2", "squared_hinge", "ovr"
    tol : float, default 1e-4
        Stopping tolerance. Below about 1e-5, rounding may stop a fit on float32 earlier, with a ConvergenceWarning.
    C : float, above 0
        Inverse of the penalty's strength.
    fit_intercept : bool, default True
    intercept_scaling : float, above 0
        Larger values penalise the intercept less.
    class_weight : dict {label: weight} or "balanced", optional
        Row weights are multiplied by it; with more than two classes, only in the problem of the row's own class.
        "balanced": sum_i s_i / (k sum_{i of the class} s_i).
    max_iter : int, default 1000
        Maximum number of passes over the data.
    device : "auto", "cpu" or "cuda"
    dual, random_state, verbose : as in scikit-learn
        No effect.

    Attributes
    ----------
    classes_ : (k,) labels
    coef_ : (1, d) for two classes, else (k, d); float64, as liblinear's
    intercept_ : (1,) or (k,); 0.0 without an intercept
    n_iter_ : int, passes over the data
    n_features_in_ : int, d
    feature_names_in_ : (d,) str, if X has column names

    Examples
    --------
    >>> from featx.learn import LinearSVC
    >>> LinearSVC().fit([[0.0], [1.0], [2.0], [3.0]], ["ant", "ant", "bee", "bee"]).predict([[5.0]])
    array(['bee'], dtype='<U3')
    """

    _loss = "SQUARED_HINGE"
    _counterpart = "sklearn.svm.LinearSVC"
    _only = {"penalty": "l2", "loss": "squared_hinge", "multi_class": "ovr"}
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "penalty": [StrOptions({"l1", "l2"})],
        "loss": [StrOptions({"hinge", "squared_hinge"})],
        "dual": ["boolean", StrOptions({"auto"})],
        "tol": [Interval(Real, 0.0, None, closed="neither")],
        "C": [Interval(Real, 0.0, None, closed="neither")],
        "multi_class": [StrOptions({"ovr", "crammer_singer"})],
        "fit_intercept": ["boolean"],
        "intercept_scaling": [Interval(Real, 0, None, closed="neither")],
        "class_weight": [None, dict, StrOptions({"balanced"})],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "device": [StrOptions({"auto", "cpu", "cuda"})],
    }

    def __init__(
        self,
        penalty: str = "l2",
        loss: str = "squared_hinge",
        *,
        dual: bool | str = "auto",
        tol: float = 1e-4,
        C: float = 1.0,
        multi_class: str = "ovr",
        fit_intercept: bool = True,
        intercept_scaling: float = 1,
        class_weight: dict | str | None = None,
        verbose: int = 0,
        random_state: Any = None,
        max_iter: int = 1000,
        device: str = "auto",
    ) -> None:
        self.penalty = penalty
        self.loss = loss
        self.dual = dual
        self.tol = tol
        self.C = C
        self.multi_class = multi_class
        self.fit_intercept = fit_intercept
        self.intercept_scaling = intercept_scaling
        self.class_weight = class_weight
        self.verbose = verbose
        self.random_state = random_state
        self.max_iter = max_iter
        self.device = device

    def decision_function(self, X: Any) -> np.ndarray:
        """Decision scores, in float64.

        Parameters
        ----------
        X : (m, d)
            float32 rows are converted to float64 in blocks.

        Returns
        -------
        (m,) for two classes, positive for the second; else (m, k), columns as `classes_`
        """
        check_is_fitted(self)
        if isinstance(X, LazyRows):
            return in_blocks(self.decision_function, X)
        X = validate_data(self, X, accept_sparse="csr", reset=False)
        parts = gen_batches(X.shape[0], max(64, _BLOCK // X.shape[1]))
        scores = np.concatenate([safe_sparse_dot(X[part], self.coef_.T, dense_output=True) for part in parts])
        scores += self.intercept_
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def _constant(self) -> float:
        return float(self.intercept_scaling)

    def _weighed(self, targets: Targets, weights: np.ndarray | None, factors: np.ndarray) -> Weights:
        """With three classes or more, liblinear applies a class's weight only in the problem of that class."""
        if np.count_nonzero(factors) <= 2:
            return super()._weighed(targets, weights, factors)
        return (factors[targets.original] > 0) * (1.0 if weights is None else weights), factors

    def _keep(self, solution: Solution, targets: Targets, weights: np.ndarray | None) -> None:
        super()._keep(solution, targets, weights)
        self.n_iter_ = solution.n_iter
        if not self.fit_intercept:
            self.intercept_ = 0.0
