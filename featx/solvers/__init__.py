"""Solvers of linear models, many problems on one matrix at once, and of multilayer perceptrons.

The package imports torch and NumPy only.
"""

from featx.solvers.hardware import budget_of, device_of, low_type
from featx.solvers.interning import Interned
from featx.solvers.losses import Loss
from featx.solvers.matmul import eigenvectors, full_precision, product
from featx.solvers.mlp import MLPProblem, MLPRun, Outcome, TrainedMLP, train_mlps
from featx.solvers.problems import FREE, NONE, Problem, Solution, Status
from featx.solvers.solve import solve
from featx.solvers.threads import threads_for

__all__ = [
    "FREE",
    "NONE",
    "Outcome",
    "Interned",
    "Loss",
    "MLPProblem",
    "MLPRun",
    "Problem",
    "Solution",
    "Status",
    "TrainedMLP",
    "budget_of",
    "device_of",
    "eigenvectors",
    "full_precision",
    "low_type",
    "product",
    "solve",
    "threads_for",
    "train_mlps",
]
