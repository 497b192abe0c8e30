"""What SVC and SVR share: how they are fitted, alone or with others, and how they answer, by products of matrices.

`machines` fits them; scikit-learn's own classes, which they are too, do what is not done here.
"""

from __future__ import annotations

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
    """How both are fitted, alone or with others, and how they answer; comes before scikit-learn's class."""

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

    _type: ClassVar[int]  # number of libsvm's svm_type

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit the model.

        Parameters
        ----------
        X : (n, d) float32 or float64, of which a memory map is not copied as a whole; others become float64
            Also a sparse matrix, and (n, n) for kernel="precomputed".
        y : (n,)
        sample_weight : (n,), optional
            By which the C of a row is multiplied; a row of weight 0 (or less) is as if absent.

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
            `max_iter` ended it.
        """
        return self._fitted(X, y, sample_weight)

    @fit_context(prefer_skip_nested_validation=True)
    def _fitted(self, X: Any, y: Any, sample_weight: Any) -> Self:
        if issparse(X) or self._stock_only():
            return self._fit_stock(X, y, sample_weight)
        rows, y = validate_data(self, X, y, dtype=[np.float64, np.float32], order="C")
        names = {"feature_names_in_": self.feature_names_in_} if hasattr(self, "feature_names_in_") else {}
        whole = Fold(0, np.arange(len(rows)), sample_weight=sample_weight)
        (fitted,) = fit_machines(rows, y, [Job(self, whole)])
        if isinstance(fitted.estimator, Exception):
            raise fitted.estimator
        self.__dict__.update(names)
        return self

    @classmethod
    def fit_each(cls, X: Any, y: Any, jobs: Sequence[Job]) -> Iterator[Fitted]:
        """Fit many on the rows of one X, each distance computed once; see `estimators.batched`."""
        return fit_machines(X, y, jobs)

    def _fit_stock(self, X: Any, y: Any, sample_weight: Any) -> Self:
        return super().fit(X, y, sample_weight)  # type: ignore[misc]

    def _stock_only(self) -> bool:
        """Whether only scikit-learn's own way leads there."""
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

    def _answers_itself(self) -> bool:
        return not (self._sparse or callable(self.kernel) or self.kernel == "precomputed")

    def _known(self, X: Any) -> np.ndarray | None:
        """Decisions on a matrix that a search scores its view of this estimator on."""
        return next((values for matrix, values in getattr(self, "_known_decisions", ()) if matrix is X), None)

    def _validate_for_predict(self, X: Any) -> Any:
        check_is_fitted(self)
        if self._known(X) is not None:
            return X
        if not self._answers_itself() or issparse(X):
            return super()._validate_for_predict(X)  # type: ignore[misc]
        if len(self.support_vectors_) != self.n_support_.sum():
            raise ValueError(f"The internal representation of {type(self).__name__} was altered")
        dtype = np.float64 if self._effective_probability else [np.float64, np.float32]  # of libsvm's predict_proba
        return validate_data(self, X, dtype=dtype, order="C", reset=False)

    def _raw(self, X: np.ndarray) -> np.ndarray:
        """(n, k (k - 1) / 2) libsvm's decision values, from the same products as in fit."""
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
        return self._raw(X) if self._answers_itself() else super()._dense_decision_function(X)  # type: ignore[misc]

    def _dense_predict(self, X: Any) -> np.ndarray:
        return self._answer(self._raw(X)) if self._answers_itself() else super()._dense_predict(X)  # type: ignore[misc]

    def _answer(self, values: np.ndarray) -> np.ndarray:
        raise NotImplementedError
