"""Base classes of the linear estimators: `fit`, alone or many at once, and the labels and weights of classifiers.

`logistic`, `linear_svc` and `ridge` derive from them; `fits` calls the solvers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from sklearn.base import clone
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets

from featx.errors import FeatxError
from featx.learn._sklearn import LinearClassifierMixin, fit_context
from featx.learn.estimators.batched import Fitted, Fold, Job
from featx.learn.estimators.fits import Fit, fit_all
from featx.learn.estimators.linear_model import LinearModel, Targets, Weights
from featx.learn.lazy_rows import in_blocks

if TYPE_CHECKING:
    from featx.solvers import Solution


class LinearEstimator(LinearModel):
    """A linear model that is fitted alone, or many at once."""

    reads_blocks: ClassVar[bool] = True  # of LazyRows

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit the model.

        Parameters
        ----------
        X : (n, d)
            A C-ordered array or memory map of float32 or float64 is not copied; other types are converted to float64.
        y : (n,)
            Labels; for Ridge, numbers. Ridge and RidgeClassifier also take (n, t).
        sample_weight : (n,) or float, at least 0, optional
            Rows of weight 0 are ignored.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            X or y is invalid, or y has fewer than two classes. The error is a FeatxError if scikit-learn's class
            supports the input.

        Warns
        -----
        ConvergenceWarning
            `max_iter` was reached, or rounding prevents further descent.
        """
        fit_all([self], [Fit(sample_weight=sample_weight)], X, y)
        return self

    def fit_many(self, X: Any, y: Any, fits: Sequence[Fit]) -> list[Self]:
        """Fit many clones on the same rows at once: a grid, the folds of a cross-validation, or both.

        Each is fitted as by `clone(self).set_params(**params).fit` on the rows of (X - shift) / scale with positive
        weight. Fits with equal arrays share the work on them.

        Parameters
        ----------
        X, y : as in `fit`
        fits : sequence of Fit

        Returns
        -------
        list of fitted estimators, one for each fit

        Examples
        --------
        >>> folds = [np.arange(len(y)) % 5 != fold for fold in range(5)]              # doctest: +SKIP
        >>> fits = [Fit({"C": C}, weights) for C in (0.01, 1, 100) for weights in folds]    # doctest: +SKIP
        >>> models = LogisticRegression().fit_many(X, y, fits)                        # doctest: +SKIP
        """
        fits = list(fits)
        estimators = [clone(self).set_params(**fit.params) for fit in fits]
        for estimator in estimators:
            estimator._validate_params()
        if estimators:
            fit_all(estimators, fits, X, y)
        return estimators

    @classmethod
    def fit_each(cls, X: Any, y: Any, jobs: Sequence[Job]) -> Iterator[Fitted]:
        """As in `Batched`: all jobs are solved together, then yielded fold by fold."""
        start = time.perf_counter()
        failed: dict[int, Exception] = {}
        fits: list[Fit] = []
        weights: dict[int, np.ndarray | None] = {}
        for number, (estimator, fold) in enumerate(jobs):
            try:
                estimator._validate_params()
            except ValueError as error:
                failed[number] = error
            if fold.number not in weights:
                weights[fold.number] = _row_weights(fold, len(y))
            fits.append(Fit({}, weights[fold.number], fold.shift, fold.scale))
        good = [number for number in range(len(jobs)) if number not in failed]
        if good:
            refused: dict[int, Exception] = {}
            fit_all([jobs[i].estimator for i in good], [fits[i] for i in good], X, y, refused)
            failed |= {good[number]: error for number, error in refused.items()}
        seconds = (time.perf_counter() - start) / len(jobs)
        turns = {fold: turn for turn, fold in enumerate(weights)}
        for number in sorted(range(len(jobs)), key=lambda number: turns[jobs[number].fold.number]):
            yield Fitted(number, failed.get(number, jobs[number].estimator), seconds)


class LinearClassifier(LinearClassifierMixin, LinearEstimator):
    """Base of the classifiers: encodes labels, and turns class weights into row weights.

    Classes without rows of positive weight are ignored.
    """

    _penalty = "C"

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores of the classes.

        Parameters
        ----------
        X : (n, d)

        Returns
        -------
        (n, k), columns as `classes_`; (n,) for two classes, positive for `classes_[1]`
        """
        return in_blocks(super().decision_function, X)

    def _targets(self, X: Any, y: Any) -> tuple[np.ndarray, Targets]:
        X, y = self._checked(X, y)
        check_classification_targets(y)
        classes, codes = np.unique(y, return_inverse=True)
        return X, Targets(codes, codes, classes)

    def _l2(self, targets: Targets) -> float | np.ndarray:
        return 1 / self.C  # |W|^2 / 2 + C sum_i s_i l_i, divided by C; 0 for C=inf

    def _weights(self, targets: Targets, weights: np.ndarray | None) -> Weights:
        factors = self._class_factors(targets, weights)
        if factors is not None:
            weights, factors = self._weighed(targets, weights, factors)
        if len(present := self._present(targets, weights)) < 2:
            raise ValueError(
                "This solver needs samples of at least 2 classes in the data, but the data contains only one class: "
                f"{targets.classes[present[0]]!r}"
            )
        return weights, factors

    def _weighed(self, targets: Targets, weights: np.ndarray | None, factors: np.ndarray) -> Weights:
        """Row weights times class weights (k,)."""
        return factors[targets.original] * (1 if weights is None else weights), None

    def _class_factors(self, targets: Targets, weights: np.ndarray | None) -> np.ndarray | None:
        """(k,) class weights, 0 for classes without rows; None for ones."""
        if self.class_weight is None:
            return None
        counts = self._class_counts(targets, weights)
        (present,) = counts.nonzero()
        labels, factors = targets.classes[present], np.zeros(len(counts))
        # one row for each class, with the total weight of its rows, has the same class weights
        factors[present] = compute_class_weight(
            self.class_weight, classes=labels, y=labels, sample_weight=counts[present]
        )
        if not 0 <= factors.min() <= factors.max() < np.inf or not factors.any():
            raise FeatxError(
                f"class weights must be finite, at least 0 and not all 0; got class_weight={self.class_weight!r}"
            )
        return factors

    def _class_counts(self, targets: Targets, weights: np.ndarray | None) -> np.ndarray:
        """(k,) the weights of the classes, which "balanced" makes equal."""
        return np.bincount(targets.original, weights, minlength=len(targets.classes))

    def _present(self, targets: Targets, weights: np.ndarray | None) -> np.ndarray:
        """Numbers of the classes that have rows of positive weight."""
        return np.bincount(targets.original, weights, minlength=len(targets.classes)).nonzero()[0]

    def _keep(self, solution: Solution, targets: Targets, weights: np.ndarray | None) -> None:
        self.classes_ = targets.classes[solution.classes]
        self.coef_, self.intercept_ = solution.coef, solution.intercept


def _row_weights(fold: Fold, n: int) -> np.ndarray | None:
    """(n,) weights of all rows, 0 for those that are not in the fold's training set."""
    if len(fold.train) == n and fold.sample_weight is None:
        return None
    weights = np.zeros(n)
    weights[fold.train] = 1.0 if fold.sample_weight is None else fold.sample_weight
    return weights
