"""Linear models, many at once: problems on one matrix in, solutions with their certificates out. Torch only."""

from featx.solvers.hardware import budget_of, device_of
from featx.solvers.matmul import full_precision, product
from featx.solvers.problems import FREE, NONE, Loss, Problem, Solution, Status
from featx.solvers.solve import solve
from featx.solvers.threads import threads_for

__all__ = [
    "FREE",
    "NONE",
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
