"""What a solver takes and gives: problems on one shared matrix in, solutions with their certificates out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

# How the constant term is treated: a number is liblinear's, the coefficient of a column of that constant, penalised
# like all others.
FREE = "free"
NONE = "none"
Intercept = str | float


class Loss(Enum):
    """l(z, y) of one row's scores z; several columns of scores, one a class or a target.

    LOGISTIC : logsumexp(z) - z[y]; with two classes log(1 + exp(-z)) and log(1 + exp(z)) of one column
    SQUARED_HINGE : sum_c max(0, 1 - t_c z_c)^2, t_c = 1 where c is y and -1 elsewhere; two classes have one column
    SQUARED_ERROR : sum_c (z_c - y_c)^2 / 2
    """

    LOGISTIC = "logistic"
    SQUARED_HINGE = "squared hinge"
    SQUARED_ERROR = "squared error"


@dataclass(frozen=True, eq=False)
class Problem:
    """One optimisation over rows that others share.

        min_{W, b}  sum_i s_i l(z_i, y_i) + l2/2 |W|^2,    z_i = ((x_i - shift) / scale) W + b

    l2 : float, at least 0; (k,) for squared errors, one a target
    weights : (n,) s, at least 0, or None for ones; 0 removes the row. A class without a row of positive weight is as if
        absent. Problems that hold the same array object share it.
    shift, scale : (d,), or None for zeros and ones; scale is not 0
    intercept : FREE, NONE, or the value of a constant column whose coefficient is penalised
    class_factors : (k,) what else a class's rows weigh in the column that is for it; squared hinges of three or more
        classes only, as liblinear has it
    start : (coef, intercept) of the shapes of the solution, to begin from
    """

    l2: float | np.ndarray
    weights: np.ndarray | None = None
    shift: np.ndarray | None = None
    scale: np.ndarray | None = None
    intercept: Intercept = FREE
    class_factors: np.ndarray | None = None
    start: tuple[np.ndarray, np.ndarray] | None = None


class Status(Enum):
    """How a problem ended; the value is advice for who reads it."""

    CONVERGED = "converged"
    MAX_ITER = "the iterations ran out: raise max_iter, or standardise the columns (StandardScaler)"
    ROUNDING = "rounding hides any further descent: raise tol, or give float64"


@dataclass(frozen=True, eq=False)
class Solution:
    """What came of one problem.

    coef : (m, d), of the shifted and scaled columns; m is 1 for two classes, else one a class or target. Of X's type;
        float64 for squared hinges, as liblinear's are
    intercept : (m,)
    classes : (m,) or (2,) the classes that had rows, as they are numbered in y
    objective : the minimised sum at the solution
    gradient_norm : what `tol` bounds, the largest of these: the Euclidean norm of the gradient, relative to that at
        W = 0 with the best free intercept there; its norm in the problem's metric, relative likewise, times 0.01
        (logistic) or 1 (squared hinge); relative to the objective, the distance from the minimum that this norm
        suggests, divided by 0.1 (logistic; 10 if X has 2**20 elements or more) or 0.001 (squared hinge), an upper bound
        of this distance divided by 10 (squared hinge), and what the last step gained, divided by 30. Where Newton's
        method took over, the metric is the Hessian, and the last two have no part.
    n_iter : passes over the rows, a Newton step counted as one
    status : Status
    """

    coef: np.ndarray
    intercept: np.ndarray
    classes: np.ndarray
    objective: float
    gradient_norm: float
    n_iter: int
    status: Status
