"""Solvers of linear models: many problems on one matrix at once. The package imports torch and NumPy only."""

from featx.solvers.hardware import budget_of, device_of
from featx.solvers.interning import Interned
from featx.solvers.losses import Loss
from featx.solvers.matmul import full_precision, product
from featx.solvers.problems import FREE, NONE, Problem, Solution, Status
from featx.solvers.solve import solve
from featx.solvers.threads import threads_for

__all__ = [
    "FREE",
    "NONE",
    "Interned",
    "Loss",
    "Problem",
    "Solution",
    "Status",
    "budget_of",
    "device_of",
    "full_precision",
    "product",
    "solve",
    "threads_for",
]
