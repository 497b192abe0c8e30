"""Fits many linear models on the same rows with one call of the solvers.

An estimator itself says which problem it stands for, and sets its attributes from the solution.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from featx.errors import FeatxError, warn
from featx.learn._sklearn import check_sample_weight
from featx.learn.estimators.linear_model import LinearModel, Targets, Weights
from featx.learn.lazy_rows import LazyRows

if TYPE_CHECKING:
    from featx.solvers import Interned, Problem, Solution


@dataclass(frozen=True, eq=False)
class Fit:
    """One of many fits on the same rows, for `fit_many`.

    Parameters
    ----------
    params : mapping, optional
        Parameters that replace those of the estimator.
    sample_weight : (n,), optional
        At least 0; ones by default. 0 removes a row, so a fold of a cross-validation is given by its weights.
    shift, scale : (d,), optional
        The model is fitted on (X - shift) / scale; for a StandardScaler these are its `mean_` and `scale_`.
    """

    params: Mapping[str, Any] = field(default_factory=dict)
    sample_weight: np.ndarray | None = None
    shift: np.ndarray | None = None
    scale: np.ndarray | None = None


def fit_all(
    estimators: Sequence[LinearModel],
    fits: Sequence[Fit],
    X: Any,
    y: Any,
    failed: dict[int, Exception] | None = None,
) -> None:
    """Fit each estimator as its fit says, all on the same rows, which are checked once.

    If anything is invalid, models that were fitted before stay as they are. With `failed`, an error that concerns one
    estimator alone is stored there by the estimator's number, and the others are fitted.
    """
    for number, estimator in enumerate(estimators):
        with _stored(failed, number):
            estimator._refuse()
    if isinstance(X, LazyRows) and X.unscaled and all(fit.shift is None and fit.scale is None for fit in fits):
        X, shift, scale = X.unscaled  # the solvers scale blocks faster
        fits = [replace(fit, shift=shift, scale=scale) for fit in fits]
    checked = copy(estimators[0])  # scikit-learn sets the number and names of columns before it checks the rows
    X, targets = checked._targets(X, y)
    order = X.in_file_order() if isinstance(X, LazyRows) else None
    if order is not None:
        X, targets = X.take(order), replace(targets, y=targets.y[order], original=targets.original[order])

    from featx.solvers import Interned  # torch, which takes seconds to import

    sample_weights = Interned()
    shared: dict[tuple[int, str], Weights] = {}
    problems: dict[int, Problem] = {}
    affine = _Affine(X.shape[1], {"shift": Interned(), "scale": Interned()}, {})
    for number, (estimator, fit) in enumerate(zip(estimators, fits, strict=True)):
        if failed and number in failed:
            continue
        with _stored(failed, number):
            weighting = repr(getattr(estimator, "class_weight", None))
            key = sample_weights.number(_array(fit.sample_weight)), weighting
            if key not in shared:
                weights = _checked_weights(fit.sample_weight, X)
                weights = weights if weights is None or order is None else weights[order]
                shared[key] = estimator._weights(targets, weights)
            problems[number] = _problem(estimator, fit, targets, shared[key], affine)

    solutions = _solve(estimators, problems, X, targets)
    for number, solution in solutions.items():
        estimator = estimators[number]
        estimator._keep_features(checked)
        estimator._keep(solution, targets, problems[number].weights)
    _warn(estimators, fits, solutions)


@contextmanager
def _stored(failed: dict[int, Exception] | None, number: int) -> Iterator[None]:
    """Store an exception in `failed`, if there is such a dictionary."""
    try:
        yield
    except Exception as error:
        if failed is None:
            raise
        failed[number] = error


def _array(sample_weight: Any) -> np.ndarray | None:
    return None if sample_weight is None else np.asarray(sample_weight)


def _checked_weights(sample_weight: Any, X: np.ndarray) -> np.ndarray | None:
    if sample_weight is None:
        return None
    checked = check_sample_weight(sample_weight, X, ensure_non_negative=True)
    if not np.isfinite(checked).all():
        raise FeatxError(f"sample_weight must be finite; got {checked[~np.isfinite(checked)][0]}")
    return checked


def _problem(estimator: LinearModel, fit: Fit, targets: Targets, weights: Weights, affine: _Affine) -> Problem:
    from featx.solvers import FREE, NONE, Problem

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
    """A solution for each problem. Problems with the same stopping rule and device go to the solvers in one call."""
    from featx.solvers import Loss, solve

    calls: dict[tuple[float, int, str], list[int]] = {}
    for number in problems:
        calls.setdefault((*estimators[number]._stopping(), estimators[number].device), []).append(number)
    solutions: dict[int, Solution] = {}
    for (tol, max_iter, device), members in calls.items():
        batch = [problems[number] for number in members]
        solved = solve(X, targets.y, batch, Loss[estimators[0]._loss], tol=tol, max_iter=max_iter, device=device)
        solutions |= zip(members, solved, strict=True)
    return solutions


@dataclass(frozen=True)
class _Affine:
    """Shifts and scales (d,), each checked once; equal ones become the same array."""

    d: int
    interned: dict[str, Interned]
    valid: dict[tuple[str, int], np.ndarray]

    def checked(self, array: np.ndarray | None, name: str) -> np.ndarray | None:
        if array is None:
            return None
        values = np.asarray(array, np.float64)
        key = name, self.interned[name].number(values)
        if key not in self.valid:
            bad = values[~np.isfinite(values) | (values == 0 if name == "scale" else False)]
            if values.shape != (self.d,) or len(bad):
                requirement = "finite and not 0" if name == "scale" else "finite"
                got = f"shape {values.shape}" if values.shape != (self.d,) else bad[0]
                raise FeatxError(
                    f"Fit.{name} must have a number for each of the {self.d} columns, {requirement}; got {got}"
                )
            self.valid[key] = values
        return self.valid[key]


def _warn(estimators: Sequence[LinearModel], fits: Sequence[Fit], solutions: Mapping[int, Solution]) -> None:
    """Issue one ConvergenceWarning that names the fits that did not converge, if there are any."""
    from featx.solvers import Status

    unfinished: dict[Status, dict[str, None]] = {}  # dictionaries as ordered sets of names
    for number, solution in solutions.items():
        estimator = estimators[number]
        values = {estimator._penalty: getattr(estimator, estimator._penalty), **fits[number].params}
        name = ", ".join(f"{parameter}={value}" for parameter, value in values.items())
        if solution.status is not Status.CONVERGED:
            unfinished.setdefault(solution.status, {})[name] = None
    if unfinished:
        reasons = "; ".join(f"{' and '.join(names)}: {status.value}" for status, names in unfinished.items())
        warn(f"{type(estimators[0]).__name__} did not converge for {reasons}", ConvergenceWarning)
