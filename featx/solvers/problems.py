"""Problems on one shared matrix, and the solutions that a solver returns for them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

# The intercept is free (not penalised), absent, or, given a number, liblinear's: the coefficient of a column of that
# constant, penalised like all others.
FREE = "free"
NONE = "none"
Intercept = str | float


@dataclass(frozen=True, eq=False)
class Problem:
    """One optimisation over rows that it shares with other problems::

        min_{W, b}  sum_i s_i l(z_i, y_i) + l2/2 |W|^2,    z_i = ((x_i - shift) / scale) W + b

    Problems with equal weights, or equal shift and scale, share the work on them.

    Parameters
    ----------
    l2 : float or (k,), at least 0
        An array, with a penalty for each target, for squared errors only.
    weights : (n,), optional
        s, at least 0; ones by default. 0 removes the row, and a class without rows of positive weight is ignored.
    shift, scale : (d,), optional
        Zeros and ones by default; scale is not 0.
    intercept : FREE, NONE or float
        A float is the value of a constant column whose coefficient is penalised.
    class_factors : (k,), optional
        For squared hinges of three or more classes: factors of the weights of each class's rows, in the problem of that
        class against the rest only, as in liblinear.
    start : tuple of (m, d) and (m,), optional
        The coefficients and intercepts to begin from, shaped as in `Solution`.
    """

    l2: float | np.ndarray
    weights: np.ndarray | None = None
    shift: np.ndarray | None = None
    scale: np.ndarray | None = None
    intercept: Intercept = FREE
    class_factors: np.ndarray | None = None
    start: tuple[np.ndarray, np.ndarray] | None = None


class Status(Enum):
    """How a problem ended; the value is the text of a warning."""

    CONVERGED = "converged"
    MAX_ITER = "the iterations ran out: raise max_iter, or standardise the columns (StandardScaler)"
    ROUNDING = "rounding hides any further descent: raise tol, or give float64"


@dataclass(frozen=True, eq=False)
class Solution:
    """The solution of one problem.

    Attributes
    ----------
    coef : (m, d)
        Coefficients of the shifted and scaled columns; m is 1 for two classes, else the number of classes or targets.
        Of X's type; float64 for squared hinges, as in liblinear.
    intercept : (m,)
    classes : (2,) or (m,)
        Numbers in y of the classes with rows of positive weight.
    objective : float
        The minimised sum, at the solution.
    gradient_norm : float
        What `tol` bounds, the largest of

        - the Euclidean norm of the gradient, relative to that at W = 0 with the best free intercept;
        - its preconditioned norm, relative in the same way, times 0.01 (logistic) or 1 (squared hinge);
        - relative to the objective: the distance from the minimum estimated from this norm, divided by 0.1 (logistic;
          1 if X has 2**20 elements or more) or 0.001 (squared hinge); an upper bound of this distance, divided by 10
          (squared hinge); and the decrease of the last step, divided by 30.

        Where Newton's method finished the problem, the Hessian preconditions, and the last two are left out.
    n_iter : int
        Passes over the data; a Newton step counts as one.
    status : Status
    """

    coef: np.ndarray
    intercept: np.ndarray
    classes: np.ndarray
    objective: float
    gradient_norm: float
    n_iter: int
    status: Status
