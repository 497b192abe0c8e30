"""Linear models, many at once: problems on one matrix in, solutions with their certificates out. Torch only."""

from featx.solvers.problems import FREE, NONE, Loss, Problem, Solution, Status
from featx.solvers.solve import solve

__all__ = ["FREE", "NONE", "Loss", "Problem", "Solution", "Status", "solve"]
