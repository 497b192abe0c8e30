"""Fit the SVC or SVR of many jobs, in the order that shares most; each is fitted as scikit-learn would.

`libsvm` solves jobs that share distances or products of rows; other jobs fall back to scikit-learn.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import issparse
from sklearn.utils import check_array, column_or_1d
from sklearn.utils.validation import validate_data

from featx.learn.estimators.batched import Fitted, Fold, Job
from featx.learn.estimators.libsvm import BYTES, Duals, Machine, decisions, solve, together, workers_within

if TYPE_CHECKING:
    from featx.learn.estimators.kernels import Kernel


@dataclass(eq=False)
class _Request:
    """A job that has passed the checks.

    y : (n_train,) the fold's y after `_validate_targets`
    weights : (n_train,)
    kernel : set once gamma is known
    """

    index: int
    estimator: Any
    fold: Fold
    y: np.ndarray
    weights: np.ndarray
    seconds: float
    kernel: Kernel | None = None


def fit_machines(X: Any, y: Any, jobs: Sequence[Job]) -> Iterator[Fitted]:
    """Fit each job's SVC or SVR; see `Batched.fit_each`."""
    original, X = (
        X,
        X if issparse(X) else check_array(X, dtype=[np.float64, np.float32], order="C", ensure_min_samples=0),
    )
    y = column_or_1d(y, warn=True)
    groups: dict[tuple, list[_Request]] = {}
    for index, job in enumerate(jobs):
        began = perf_counter()
        try:
            job.estimator._validate_params()
            if issparse(X) or job.estimator._needs_fallback():
                fitted: Any = _fitted_by_sklearn(X, y, job)
            else:
                validate_data(job.estimator, original, skip_check_array=True)  # sets number and names of columns
                request = _requested(index, job, X, y, began)
                squared = job.estimator.kernel == "rbf"
                key = job.fold.columns, squared, job.estimator.device, job.estimator.budget_bytes
                groups.setdefault(key, []).append(request)
                continue
        except Exception as error:
            fitted = error
        yield Fitted(index, fitted, perf_counter() - began)
    announced = False
    for requests in groups.values():
        began = perf_counter()
        group = _Group(X, y, requests)
        if group.workers:
            group.prepare()
            spent = (perf_counter() - began) / len(requests)
            for request in requests:
                request.seconds += spent
            yield from group.fitted()
            continue
        if not announced:
            announced = True
            warnings.warn(group.refusal(), UserWarning, stacklevel=3)
        for request in requests:
            began = perf_counter()
            try:
                fitted = _fitted_by_sklearn(X, y, jobs[request.index])
            except Exception as error:
                fitted = error
            yield Fitted(request.index, fitted, request.seconds + perf_counter() - began)


def _requested(index: int, job: Job, X: np.ndarray, y: np.ndarray, began: float) -> _Request:
    estimator, fold = job
    targets = estimator._validate_targets(y[fold.train])
    weights = np.ones(len(fold.train)) if fold.sample_weight is None else np.asarray(fold.sample_weight, np.float64)
    if weights.shape != (len(fold.train),):
        shape = len(fold.train), X.shape[1]
        raise ValueError(f"sample_weight and X have incompatible shapes: {weights.shape} vs {shape}")
    present = weights > 0
    if not present.any():
        raise ValueError("Invalid input - all samples have zero or negative weights.")
    if hasattr(estimator, "classes_"):
        (there,) = np.bincount(targets.astype(np.intp), present, len(estimator.classes_)).nonzero()
        if len(there) < 2:
            raise ValueError("Invalid input - all samples with positive weights belong to the same class.")
        estimator.classes_, estimator.class_weight_ = estimator.classes_[there], estimator.class_weight_[there]
    return _Request(index, estimator, fold, targets, weights, perf_counter() - began)


def _fitted_by_sklearn(X: Any, y: np.ndarray, job: Job) -> Any:
    from featx.learn.estimators.kernels import rows_of

    estimator, fold = job
    if estimator.kernel == "precomputed":
        rows = X[np.ix_(fold.train, fold.train)]
    else:
        rows = X[fold.train] if issparse(X) else rows_of(X, fold.train, fold)
    return estimator._fit_fallback(rows, y[fold.train], fold.sample_weight)


class _Group:
    """Requests on the same rows with the same shift and scale, all for kernels of distances or all of products."""

    def __init__(self, X: np.ndarray, y: np.ndarray, requests: list[_Request]) -> None:
        from featx.solvers import budget_of, device_of

        self.X, self.requests = X, requests
        self.first = requests[0].estimator
        self.device = device_of(self.first.device)
        self.budget = budget_of(self.device, self.first.budget_bytes)
        involved = [
            part for request in requests for part in (request.fold.train, request.fold.test) if part is not None
        ]
        self.rows = np.unique(np.concatenate(involved))
        self.classifies = hasattr(self.first, "classes_")
        self.bounds, self.codes = np.array([0, len(self.rows)]), np.zeros(len(self.rows), np.intp)
        if self.classifies:  # sorted by class
            self.classes, codes = np.unique(y[self.rows], return_inverse=True)
            order = np.argsort(codes, kind="stable")
            self.rows, self.codes = self.rows[order], codes[order]
            self.bounds = np.searchsorted(self.codes, np.arange(len(self.classes) + 1))
            self.y = self.codes.astype(np.float64)
        else:
            self.y = np.asarray(y[self.rows], np.float64)
        sizes = np.sort(np.diff(self.bounds))
        self.pair = int(sizes[-2:].sum())
        self.ranks: dict[int, np.ndarray | None] = {}
        self.at = np.full(len(X), -1)  # position of a row of X among these rows
        self.at[self.rows] = np.arange(len(self.rows))
        self.own = 8 * len(self.rows) * X.shape[1]  # the rows in float64
        self.kept, self.workers = workers_within(self.budget - self.own, len(self.rows), self.pair)

    def refusal(self) -> str:
        needed = BYTES * self.pair**2 + self.own
        linear = "LinearSVC" if self.classifies else "Ridge"
        return (
            f"{type(self.first).__name__}: the kernel matrix of {self.pair} rows takes {needed / 2**30:.3g} GiB, and "
            f"the budget is {self.budget / 2**30:.3g} GiB: falling back to scikit-learn, which is slower; give "
            f"budget_bytes={needed} where there is the memory, or fewer rows; Nystroem -> {linear} approximates it"
        )

    def prepare(self) -> None:
        """Compute distances or products, and the kernel of each request."""
        import torch

        from featx.learn.estimators.kernels import Gram, Kernel, Moments, Rows, rows_of

        fold = self.requests[0].fold
        # in float64: rounded kernels lead libsvm to another solution, which is only within `tol` of scikit-learn's
        Z = torch.from_numpy(rows_of(self.X, self.rows, fold)).double()
        sums = Moments(Z) if any(request.estimator.gamma == "scale" for request in self.requests) else None
        for request in self.requests:
            gamma, d = request.estimator.gamma, self.X.shape[1]
            if sums is not None and gamma == "scale":
                variance = sums.variance(self.at[request.fold.train])
                gamma = 1 / (d * variance) if variance else 1.0
            request.estimator._gamma = 1 / d if gamma == "auto" else float(gamma)
            request.kernel = Kernel.of_estimator(request.estimator)
        self.gram = Gram(Rows(Z.to(self.device), self.first.kernel == "rbf"), self.kept)

    def fitted(self) -> Iterator[Fitted]:
        """Fit all, those of the same fold and kernel consecutively."""
        requests = sorted(self.requests, key=lambda request: (str(request.kernel), request.fold.number))
        one = 16 * len(self.rows) * max(1, len(self.bounds) - 2)  # most bytes of one model's coefficients
        at_once = max(1, self.budget // 8 // max(1, one))
        for start in range(0, len(requests), at_once):
            yield from self._solved(requests[start : start + at_once])

    def _solved(self, requests: list[_Request]) -> Iterator[Fitted]:
        began = perf_counter()
        machines = [self._machine(request) for request in requests]
        bounds = self.bounds if self.classifies else None
        solved = solve(self.gram, self.y, bounds, machines, self.workers)
        whole, shares = perf_counter() - began, np.array([one.seconds for one in solved])
        for request, share in zip(requests, shares / max(shares.sum(), 1e-300), strict=True):
            request.seconds += whole * share
        alike: dict[tuple, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault((request.fold.number, request.kernel), []).append(number)
        turns = {fold: turn for turn, fold in enumerate(dict.fromkeys(fold for fold, _ in alike))}
        for _, numbers in sorted(alike.items(), key=lambda item: turns[item[0][0]]):
            began = perf_counter()
            duals = []
            for number in numbers:
                estimator = requests[number].estimator
                classes = list(np.searchsorted(self.classes, estimator.classes_)) if self.classifies else [0]
                spans = [slice(int(self.bounds[c]), int(self.bounds[c + 1])) for c in classes]
                duals.append(together(solved[number], len(self.rows), classes, spans))
            known = self._decisions_of(requests[numbers[0]], duals)
            spent = (perf_counter() - began) / len(numbers)
            for position, number in enumerate(numbers):
                began = perf_counter()
                request = requests[number]
                view = None
                try:
                    fitted = self._finished(request, duals[position])
                    view = copy(fitted)
                    view._known_decisions = [(matrix, values[position]) for matrix, values in known]
                except Exception as error:
                    fitted = error
                yield Fitted(request.index, fitted, request.seconds + spent + perf_counter() - began, view)

    def _machine(self, request: _Request) -> Machine:
        estimator = request.estimator
        weights = np.zeros(len(self.rows))
        weights[self.at[request.fold.train]] = request.weights
        factors = None
        if self.classifies:
            factors = np.ones(len(self.classes))
            factors[np.searchsorted(self.classes, estimator.classes_)] = estimator.class_weight_
        assert request.kernel is not None
        return Machine(
            request.kernel, estimator._settings(), weights, factors, request.fold.number, self._rank(request.fold)
        )

    def _rank(self, fold: Fold) -> np.ndarray | None:
        """(n,) position of each row in the fold, one array per fold; None if the fold has them in order."""
        if fold.number not in self.ranks:
            rank = np.zeros(len(self.rows), np.int64)
            rank[self.at[fold.train]] = np.arange(len(fold.train))
            self.ranks[fold.number] = None if (np.diff(fold.train) > 0).all() else rank
        return self.ranks[fold.number]

    def _decisions_of(self, request: _Request, duals: list[Duals]) -> list[tuple[Any, list[np.ndarray]]]:
        """(matrix, decision values of every model) for each matrix that the models are scored on."""
        fold, known = request.fold, []
        assert request.kernel is not None
        for number, matrix in enumerate(fold.matrices):
            positions = fold.test if number == 0 else None
            if (
                positions is None
                and np.shape(matrix) == (len(fold.train), self.X.shape[1])
                and self._is_train(matrix, fold)
            ):
                positions = fold.train
            if positions is not None:
                blocks = self.gram.of(self.at[positions])
            else:
                blocks = self.gram.rows.between(check_array(matrix, dtype=[np.float64, np.float32]))
            rows = len(matrix) if positions is None else len(positions)
            known.append((matrix, decisions(blocks, rows, request.kernel, duals)))
        return known

    def _is_train(self, matrix: Any, fold: Fold) -> bool:
        from featx.learn.estimators.kernels import rows_of

        if np.shape(matrix) != (len(fold.train), self.X.shape[1]):
            return False
        tolerance = 0.0 if fold.shift is None and fold.scale is None else 16 * np.finfo(self.X.dtype).eps
        for start in range(0, len(matrix), 1024):
            rows = rows_of(self.X, fold.train[start : start + 1024], fold)
            if not np.allclose(matrix[start : start + 1024], rows, rtol=tolerance, atol=tolerance):
                return False
        return True

    def _finished(self, request: _Request, duals: Duals) -> Any:
        """Set the attributes that scikit-learn's `fit` sets."""
        from featx.learn.estimators.kernels import rows_of

        estimator, fold = request.estimator, request.fold
        if not np.isfinite(duals.dual).all() or not np.isfinite(duals.intercept).all():
            raise ValueError(
                "The dual coefficients or intercepts are not finite. The input data may contain large values and need "
                "to be preprocessed."
            )
        rank = np.empty(len(self.rows), np.int32)
        rank[self.at[fold.train]] = np.arange(len(fold.train))
        support = np.flatnonzero(duals.dual.any(axis=0))
        support = support[np.lexsort((rank[support], self.codes[support]))]
        counts = np.array([np.count_nonzero((span.start <= support) & (support < span.stop)) for span in duals.spans])
        estimator.support_ = rank[support]
        estimator.support_vectors_ = rows_of(self.X, self.rows[support], fold)
        estimator._n_support = (counts if self.classifies else np.repeat(counts, 2)).astype(np.int32)
        estimator.dual_coef_ = np.ascontiguousarray(duals.dual[:, support])
        estimator.intercept_ = duals.intercept
        estimator._probA, estimator._probB = np.empty(0), np.empty(0)
        estimator.fit_status_, estimator._num_iter = duals.status, duals.n_iter
        estimator._sparse, estimator._effective_probability = False, False
        estimator.shape_fit_ = len(fold.train), self.X.shape[1]
        estimator._intercept_, estimator._dual_coef_ = estimator.intercept_.copy(), estimator.dual_coef_
        estimator.n_iter_ = duals.n_iter
        if not self.classifies:
            estimator.n_iter_ = int(estimator.n_iter_[0])
        elif len(estimator.classes_) == 2:  # scikit-learn's sign: the second class is the positive one
            estimator.intercept_, estimator.dual_coef_ = -estimator.intercept_, -estimator.dual_coef_
        estimator._warn_from_fit_status()
        return estimator
