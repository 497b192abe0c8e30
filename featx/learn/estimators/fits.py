"""Estimators and how to fit each of them on the same rows in; one call of the solvers; all of them fitted.

Which problems an estimator stands for, and which attributes come of their solutions, is the estimator's own matter.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from featx.errors import FeatxError
from featx.learn._sklearn import check_sample_weight

if TYPE_CHECKING:
    from featx.learn.estimators.linear import LinearModel
    from featx.solvers import Problem, Solution


@dataclass(frozen=True, eq=False)
class Fit:
    """One of many fits on the same rows, for `fit_many`.

    Parameters
    ----------
    params : mapping, of the estimator, in place of its own
    sample_weight : (n,), at least 0, or None for ones; 0 removes a row, so folds are weights
    shift, scale : (d,), or None for zeros and ones
        The columns are (X - shift) / scale: a StandardScaler's `mean_` and `scale_`.
    """

    params: Mapping[str, Any] = field(default_factory=dict)
    sample_weight: np.ndarray | None = None
    shift: np.ndarray | None = None
    scale: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Targets:
    """y of all fits.

    y : what the solver takes
    given : y as it came, (n,) or (n, t), class labels as their numbers in `classes`
    classes : (k,) sorted labels, or the numbers of the targets
    """

    y: np.ndarray
    given: np.ndarray
    classes: np.ndarray


Weights = tuple[np.ndarray | None, np.ndarray | None]  # row weights, class factors: as of Problem


def fit_all(
    estimators: Sequence[LinearModel],
    fits: Sequence[Fit],
    X: Any,
    y: Any,
    stacklevel: int,
    failed: dict[int, Exception] | None = None,
) -> None:
    """Fit each estimator as its fit says, all on the same rows, which are checked once.

    Where anything is refused, a model that was fitted before stays as it is. With `failed`, what is refused of one
    estimator alone is kept there by its number, and the others are fitted.
    """
    for number, estimator in enumerate(estimators):
        with _noted(failed, number):
            estimator._refuse()
    seen = copy(estimators[0])  # scikit-learn's check sets the columns' number and names before it looks at the rows
    X, targets = seen._targets(X, y)

    shared: dict[tuple[int, str], Weights] = {}  # the same arrays for all that weigh rows alike
    problems: dict[int, Problem] = {}
    affine = _Affine(X.shape[1])
    for number, (estimator, fit) in enumerate(zip(estimators, fits, strict=True)):
        if failed and number in failed:
            continue
        with _noted(failed, number):
            key = id(fit.sample_weight), repr(getattr(estimator, "class_weight", None))
            if key not in shared:
                given = fit.sample_weight
                checked = None if given is None else check_sample_weight(given, X, ensure_non_negative=True)
                if checked is not None and not np.isfinite(checked).all():
                    raise FeatxError(f"sample_weight must be finite; got {checked[~np.isfinite(checked)][0]}")
                shared[key] = estimator._weights(targets, checked)
            problems[number] = _problem(estimator, fit, targets, shared[key], affine)

    solutions = _solve(estimators, problems, X, targets)
    for number, solution in solutions.items():
        estimator = estimators[number]
        estimator._keep_features(seen)
        estimator._keep(solution, targets, problems[number].weights)
    _warn(estimators, fits, solutions, stacklevel)


@contextmanager
def _noted(failed: dict[int, Exception] | None, number: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if failed is None:
            raise
        failed[number] = error


def _problem(estimator: LinearModel, fit: Fit, targets: Targets, weights: Weights, affine: _Affine) -> Problem:
    from featx.solvers import FREE, NONE, Problem  # torch, which takes seconds to import

    row_weights, class_factors = weights
    constant = estimator._constant()
    return Problem(
        l2=estimator._l2(targets),
        weights=row_weights,
        shift=affine.checked(fit.shift, "shift"),
        scale=affine.checked(fit.scale, "scale"),
        intercept=NONE if not estimator.fit_intercept else FREE if constant is None else constant,
        class_factors=class_factors,
        start=estimator._start(affine.d, targets, row_weights),
    )


def _solve(
    estimators: Sequence[LinearModel], problems: dict[int, Problem], X: np.ndarray, targets: Targets
) -> dict[int, Solution]:
    """A solution for each problem; those that stop alike come from one call of the solvers."""
    from featx.solvers import Loss, solve

    calls: dict[tuple[float, int, str], list[int]] = {}
    for number in problems:
        calls.setdefault((*estimators[number]._stopping(), estimators[number].device), []).append(number)
    solutions: dict[int, Solution] = {}
    for (tol, max_iter, device), members in calls.items():
        batch = [problems[number] for number in members]
        solved = solve(X, targets.y, batch, Loss(estimators[0]._loss), tol=tol, max_iter=max_iter, device=device)
        solutions |= zip(members, solved, strict=True)
    return solutions


class _Affine:
    """Shifts and scales, checked once each; the same array for the same object."""

    def __init__(self, d: int) -> None:
        self.d = d
        self.known: dict[tuple[int, str], np.ndarray] = {}

    def checked(self, given: np.ndarray | None, name: str) -> np.ndarray | None:
        if given is None:
            return None
        if (id(given), name) not in self.known:
            values = np.asarray(given, np.float64)
            bad = values[~np.isfinite(values) | (values == 0 if name == "scale" else False)]
            if values.shape != (self.d,) or len(bad):
                wanted = "finite and not 0" if name == "scale" else "finite"
                got = f"shape {values.shape}" if values.shape != (self.d,) else bad[0]
                raise FeatxError(f"Fit.{name} has a number for each of the {self.d} columns, {wanted}; got {got}")
            self.known[id(given), name] = values
        return self.known[id(given), name]


def _warn(
    estimators: Sequence[LinearModel], fits: Sequence[Fit], solutions: Mapping[int, Solution], level: int
) -> None:
    """One ConvergenceWarning that names the fits of problems that did not converge, if there are any."""
    from featx.solvers import Status

    unfinished: dict[Status, dict[str, None]] = {}  # -> names, each once
    for number, solution in solutions.items():
        estimator = estimators[number]
        values = {estimator._penalty: getattr(estimator, estimator._penalty), **fits[number].params}
        name = ", ".join(f"{parameter}={value}" for parameter, value in values.items())
        if solution.status is not Status.CONVERGED:
            unfinished.setdefault(solution.status, {})[name] = None
    if unfinished:
        reasons = "; ".join(f"{' and '.join(names)}: {status.value}" for status, names in unfinished.items())
        warnings.warn(
            f"{type(estimators[0]).__name__} did not converge for {reasons}", ConvergenceWarning, stacklevel=level
        )
