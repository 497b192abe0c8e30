"""The common part of SVC and SVR: fitting, alone or in a batch, and prediction by matrix products.

`svm_batch` fits them. They are subclasses of scikit-learn's, which do the rest.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
from scipy.sparse import issparse
from sklearn.utils.validation import check_is_fitted, validate_data

from featx.learn._sklearn import Interval, StrOptions, fit_context
from featx.learn.estimators.batched import Fitted, Fold, Job
from featx.learn.estimators.libsvm import Duals, decisions
from featx.learn.estimators.svm_batch import fit_machines

CONSTRAINTS: dict[str, list[Any]] = {
    "device": [StrOptions({"auto", "cpu", "cuda"})],
    "budget_bytes": [None, Interval(Integral, 0, None, closed="left")],
}


class KernelMachine:
    """Fits and predicts; a mixin that comes before scikit-learn's class."""

    kernel: Any
    verbose: bool
    device: str
    support_vectors_: np.ndarray
    n_support_: np.ndarray
    _sparse: bool
    _effective_probability: bool
    _gamma: float
    _dual_coef_: np.ndarray
    _intercept_: np.ndarray

    _type: ClassVar[int]  # libsvm's svm_type
    # the work of a fit that does not depend on the number of columns, in columns: the kernel is computed only once
    fixed_work_columns: ClassVar[int] = 1200

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit the model.

        Parameters
        ----------
        X : (n, d) float32 or float64; others become float64, and a memory map is not copied as a whole
            Also a sparse matrix, and (n, n) for kernel="precomputed".
        y : (n,)
        sample_weight : (n,), optional
            Multiplies the C of a row; rows of weight 0 or less are ignored.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            X or y cannot be used, or there are fewer than two classes.

        Warns
        -----
        UserWarning
            The kernel matrix exceeds the budget: falling back to scikit-learn, which is slower.
        ConvergenceWarning
            `max_iter` was reached.
        """
        return self._fitted(X, y, sample_weight)

    @fit_context(prefer_skip_nested_validation=True)
    def _fitted(self, X: Any, y: Any, sample_weight: Any) -> Self:
        if issparse(X) or self._needs_fallback():
            return self._fit_fallback(X, y, sample_weight)
        rows, y = validate_data(self, X, y, dtype=[np.float64, np.float32], order="C")
        names = getattr(self, "feature_names_in_", None)
        whole = Fold(0, np.arange(len(rows)), sample_weight=sample_weight)
        (fitted,) = fit_machines(rows, y, [Job(self, whole)])
        if isinstance(fitted.estimator, Exception):
            raise fitted.estimator
        if names is not None:
            self.feature_names_in_ = names  # `fit_each` saw an array
        return self

    @classmethod
    def fit_each(cls, X: Any, y: Any, jobs: Sequence[Job]) -> Iterator[Fitted]:
        """Fit the jobs of a search on the rows of one X; each distance is computed once. See `estimators.batched`."""
        return fit_machines(X, y, jobs)

    def _fit_fallback(self, X: Any, y: Any, sample_weight: Any) -> Self:
        return super().fit(X, y, sample_weight)  # type: ignore[misc]

    def _needs_fallback(self) -> bool:
        """Whether only scikit-learn can fit the model."""
        probability = getattr(self, "probability", False)
        return (
            callable(self.kernel)
            or self.kernel == "precomputed"
            or bool(self.verbose)
            or probability != "deprecated"
            and bool(probability)
        )

    def _settings(self) -> dict[str, Any]:
        names = ("C", "epsilon", "tol", "shrinking", "cache_size", "max_iter")
        return {"svm_type": self._type, **{name: getattr(self, name) for name in names}}

    def _predicts_itself(self) -> bool:
        return not (self._sparse or callable(self.kernel) or self.kernel == "precomputed")

    def _known(self, X: Any) -> np.ndarray | None:
        """Decisions that a scoring view has for its matrices; None for others."""
        return next((values for matrix, values in getattr(self, "_known_decisions", ()) if matrix is X), None)

    def _validate_for_predict(self, X: Any) -> Any:
        check_is_fitted(self)
        if self._known(X) is not None:
            return X
        if not self._predicts_itself() or issparse(X):
            return super()._validate_for_predict(X)  # type: ignore[misc]
        if len(self.support_vectors_) != self.n_support_.sum():
            raise ValueError(f"The internal representation of {type(self).__name__} was altered")
        dtype = np.float64 if self._effective_probability else [np.float64, np.float32]  # of libsvm's predict_proba
        return validate_data(self, X, dtype=dtype, order="C", reset=False)

    def _raw(self, X: np.ndarray) -> np.ndarray:
        """(n, k (k - 1) / 2) libsvm's decision values, from the same products as in `fit`."""
        if (known := self._known(X)) is not None:
            return known
        if not len(self.support_vectors_):
            return np.tile(self._intercept_, (len(X), 1))
        import torch

        from featx.learn.estimators.kernels import Kernel, Rows
        from featx.solvers import device_of

        kernel = Kernel.of_estimator(self)
        A = torch.from_numpy(self.support_vectors_.astype(np.float64)).to(device_of(self.device))
        ends = np.cumsum(self.n_support_)
        spans = [slice(int(end - size), int(end)) for end, size in zip(ends, self.n_support_, strict=True)]
        duals = Duals(self._dual_coef_, spans, self._intercept_)
        return decisions(Rows(A, kernel.squared).between(X), len(X), kernel, [duals])[0]

    def _dense_decision_function(self, X: Any) -> np.ndarray:
        return self._raw(X) if self._predicts_itself() else super()._dense_decision_function(X)  # type: ignore[misc]

    def _dense_predict(self, X: Any) -> np.ndarray:
        return self._labels_of(self._raw(X)) if self._predicts_itself() else super()._dense_predict(X)  # type: ignore[misc]

    @abstractmethod
    def _labels_of(self, values: np.ndarray) -> np.ndarray:
        """What scikit-learn's `_dense_predict` returns, from decision values."""
