"""What the solvers must find: one problem at a time, in float64, by Newton's method with the whole Hessian.

Slow, and as plain as the formulas of `featx.solvers.problems`, which it takes word for word:

    min_theta  f(theta) = sum_i s_i l(A_i theta, y_i) + 1/2 sum_j p_j |theta_j|^2

A has a row [(x_i - shift) / scale, constant] for each row of positive weight; p is l2 for every column but that of a
free intercept, where it is 0. With a free intercept the columns are centred first, which changes nothing else. Where
many theta are equally good, the answer is the one of the smallest |W|, its intercepts summing to 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from scipy.special import expit, log_softmax, softmax

from featx.errors import FeatxError
from featx.solvers import FREE, NONE, Loss, Problem, Solution, Status

_MOST_STEPS = 500
Evaluate = Callable[[np.ndarray], tuple[float, np.ndarray, np.ndarray]]  # theta -> f, its gradient and Hessian


def solve(
    X: np.ndarray,
    y: np.ndarray,
    problems: Sequence[Problem],
    loss: Loss,
    *,
    tol: float,
    max_iter: int,
    device: str = "auto",
    budget_bytes: int | None = None,
) -> list[Solution]:
    """`featx.solvers.solve`, to the last digits: tol, max_iter, device and budget_bytes have no effect."""
    return [_solved(X, y, problem, loss) for problem in problems]


@dataclass(frozen=True)
class Rows:
    """The rows of positive weight: what they are multiplied by, their targets, weights and penalties.

    A : (n, p), y : (n, m), s : (n,), penalties : (p,) or (p, m)
    """

    A: np.ndarray
    y: np.ndarray
    s: np.ndarray
    penalties: np.ndarray

    def column(self, c: int) -> Rows:
        return Rows(self.A, self.y[:, c], self.s, self.penalties[:, c])


def rows_of(X: np.ndarray, y: np.ndarray, problem: Problem, loss: Loss) -> tuple[Rows, np.ndarray, np.ndarray]:
    """The problem's rows, the classes among them, and the (d,) means that were subtracted from the columns.

    Their targets are columns: those of y for squared errors; 1 in the column of the row's class and 0, for two classes
    and for squared hinges -1, elsewhere. Two classes have one column, of the second.
    """
    weights = np.ones(len(X)) if problem.weights is None else np.asarray(problem.weights, np.float64)
    kept = weights > 0
    A, s, means = X[kept].astype(np.float64), weights[kept], np.zeros(X.shape[1])
    if problem.shift is not None:
        A = A - problem.shift
    if problem.scale is not None:
        A = A / problem.scale
    if problem.intercept == FREE:
        means = s @ A / s.sum()
        A = A - means
    if problem.intercept != NONE:
        A = np.column_stack([A, np.full(len(A), 1.0 if problem.intercept == FREE else float(problem.intercept))])
    if loss is Loss.SQUARED_ERROR:
        classes, targets = np.arange(y.shape[1]), y[kept].astype(np.float64)
    else:
        classes = np.unique(y[kept])
        if len(classes) < 2:
            raise FeatxError(f"two classes with rows of positive weight are needed; got {len(classes)}")
        targets = (y[kept][:, None] == (classes[1:] if len(classes) == 2 else classes)).astype(np.float64)
        if loss is Loss.SQUARED_HINGE or len(classes) == 2:
            targets = 2 * targets - 1
    penalties = np.zeros((A.shape[1], targets.shape[1])) + problem.l2
    if problem.intercept == FREE:
        penalties[-1] = 0
    return Rows(A, targets, s, penalties), classes, means


def _solved(X: np.ndarray, y: np.ndarray, problem: Problem, loss: Loss) -> Solution:
    rows, classes, means = rows_of(X, y, problem, loss)
    (p, m), d = rows.penalties.shape, X.shape[1]
    theta, gradient, first, objective = np.zeros((p, m)), np.zeros((p, m)), np.zeros((p, m)), 0.0
    if loss is Loss.LOGISTIC and m > 1:
        parts = [(slice(None), _multinomial(rows))]
    else:  # the columns do not know one another
        one = {Loss.LOGISTIC: _binary, Loss.SQUARED_HINGE: _squared_hinge, Loss.SQUARED_ERROR: _squared_error}[loss]
        parts = [(slice(c, c + 1), one(rows.column(c))) for c in range(m)]
    for columns, evaluate in parts:
        intercept = np.zeros_like(theta[:, columns], bool)
        if problem.intercept == FREE:
            intercept[-1] = True
        start = _newton(evaluate, np.zeros(intercept.size), intercept.ravel())  # the best intercept at W = 0
        best = _newton(evaluate, start, np.ones(intercept.size, bool))
        first[:, columns] = evaluate(start)[1].reshape(p, -1)
        value, slope, _ = evaluate(best)
        theta[:, columns], gradient[:, columns] = best.reshape(p, -1), slope.reshape(p, -1)
        objective += value
    intercepts = np.zeros(m)
    if problem.intercept != NONE:
        intercepts = theta[-1] - means @ theta[:d] if problem.intercept == FREE else problem.intercept * theta[-1]
    at_zero = np.linalg.norm(first)
    return Solution(
        coef=theta[:d].T.astype(X.dtype),
        intercept=intercepts.astype(X.dtype),
        classes=classes,
        objective=objective,
        gradient_norm=float(np.linalg.norm(gradient) / at_zero) if at_zero else 0.0,
        n_iter=1,
        status=Status.CONVERGED,
    )


def _newton(evaluate: Evaluate, theta: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Minimise over the free coordinates until rounding lets neither f nor its gradient shrink any more.

    A step is halved until f falls by a ten-thousandth of what its slope promises (Nocedal and Wright, Numerical
    Optimization, 2006, algorithm 3.1).
    """
    value, gradient, hessian = evaluate(theta)
    best, best_norm, in_vain = theta, np.linalg.norm(gradient[free]), 0
    for _ in range(_MOST_STEPS):
        if not best_norm or in_vain == 3:
            break
        step = np.zeros_like(theta)
        step[free] = -_least_squares(hessian[np.ix_(free, free)], gradient[free])
        before, slope, rounding = value, gradient @ step, 1e-14 * abs(value)
        for halvings in range(50):
            value, gradient, hessian = evaluate(theta + step / 2**halvings)
            if value <= before + 1e-4 * slope / 2**halvings + rounding:
                break
        theta = theta + step / 2**halvings
        norm = np.linalg.norm(gradient[free])
        if norm < best_norm or value < before - rounding:
            best, best_norm, in_vain = theta, norm, 0
        else:
            in_vain += 1
    return best


def _least_squares(hessian: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """x of H x = g; the smallest one where there are many, as between equal columns."""
    units = np.sqrt(np.diag(hessian))  # columns may differ by many magnitudes
    units[units == 0] = 1
    for scale in (units, np.ones_like(units)):
        values, vectors = eigh(hessian / np.outer(scale, scale))
        kept = values > 1e-14 * len(values) * values[-1]
        if kept.all():
            break
    return vectors[:, kept] @ ((vectors[:, kept].T @ (gradient / scale)) / values[kept]) / scale


def _penalised(rows: Rows, theta: np.ndarray, value: float, slope: np.ndarray, curvature: np.ndarray) -> tuple:
    """f, gradient and Hessian of one column, from the sum of its l and the (n,) l' and l'' of its scores."""
    return (
        value + 0.5 * rows.penalties @ theta**2,
        rows.A.T @ (rows.s * slope) + rows.penalties * theta,
        (rows.A * (rows.s * curvature)[:, None]).T @ rows.A + np.diag(rows.penalties),
    )


def _binary(rows: Rows) -> Evaluate:
    """l = log(1 + exp(-t z)), t = 1 or -1."""

    def evaluate(theta: np.ndarray) -> tuple:
        margin = rows.y * (rows.A @ theta)
        wrong = expit(-margin)
        value = rows.s @ np.logaddexp(0, -margin)
        return _penalised(rows, theta, value, -rows.y * wrong, wrong * expit(margin))

    return evaluate


def _squared_hinge(rows: Rows) -> Evaluate:
    """l = max(0, 1 - t z)^2; of its second derivatives at the kink, that from within."""

    def evaluate(theta: np.ndarray) -> tuple:
        short = np.maximum(0, 1 - rows.y * (rows.A @ theta))
        return _penalised(rows, theta, rows.s @ short**2, -2 * rows.y * short, 2.0 * (short > 0))

    return evaluate


def _squared_error(rows: Rows) -> Evaluate:
    """l = (z - y)^2 / 2."""

    def evaluate(theta: np.ndarray) -> tuple:
        error = rows.A @ theta - rows.y
        return _penalised(rows, theta, 0.5 * rows.s @ error**2, error, np.ones_like(error))

    return evaluate


def _multinomial(rows: Rows) -> Evaluate:
    """l = logsumexp(z) - z[y]; theta is (p, m), flat."""
    p, m = rows.penalties.shape

    def evaluate(theta: np.ndarray) -> tuple:
        W = theta.reshape(p, m)
        scores = rows.A @ W  # (n, m)
        P = softmax(scores, axis=1)
        value = -rows.s @ (rows.y * log_softmax(scores, axis=1)).sum(axis=1) + 0.5 * (rows.penalties * W**2).sum()
        gradient = rows.A.T @ (rows.s[:, None] * (P - rows.y)) + rows.penalties * W
        hessian = np.empty((p, m, p, m))
        for a in range(m):
            for b in range(m):
                curvature = rows.s * P[:, a] * ((a == b) - P[:, b])  # (n,)
                hessian[:, a, :, b] = (rows.A * curvature[:, None]).T @ rows.A
        for j in range(p):
            # the same added to all classes changes no probability, and from 0 on no gradient has such a part: the
            # curvature that is added there keeps the Hessian regular, and no step feels it
            hessian[j, :, j] += np.diag(rows.penalties[j]) + rows.s @ rows.A[:, j] ** 2
        return value, gradient.ravel(), hessian.reshape(p * m, p * m)

    return evaluate
