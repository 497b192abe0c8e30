"""The losses that the solvers minimise. A new one is a file beside these and a line in `Loss`."""

from __future__ import annotations

from enum import Enum

from featx.solvers.losses.logistic import Logistic
from featx.solvers.losses.squared_error import SquaredError
from featx.solvers.losses.squared_hinge import SquaredHinge

__all__ = ["Loss"]


class Loss(Enum):
    """l(z, y), the loss of one row with scores z: one score for two classes, else one a class or a target.

    LOGISTIC : logsumexp(z) - z[y]; with two classes log(1 + exp(-t z)), t = 1 where y is the second and -1 elsewhere
    SQUARED_HINGE : sum_c max(0, 1 - t_c z_c)^2, t_c = 1 where y is class c and -1 elsewhere
    SQUARED_ERROR : sum_c (z_c - y_c)^2 / 2
    """

    LOGISTIC = Logistic()
    SQUARED_HINGE = SquaredHinge()
    SQUARED_ERROR = SquaredError()
