"""scikit-learn's StandardScaler for rows that are too large for memory."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import sklearn.preprocessing
from sklearn.utils.validation import check_is_fitted, validate_data

from featx.learn._sklearn import fit_context
from featx.learn.estimators.batched import affine_of
from featx.learn.lazy_rows import LazyRows


class StandardScaler(sklearn.preprocessing.StandardScaler):
    """Shift columns to mean 0 and scale them to variance 1.

    scikit-learn's class, except that rows of `StoredFeatures` which are too large for memory are read in blocks: `fit`
    reads them once, and `transform` scales each block when it is read.

    Parameters
    ----------
    copy, with_mean, with_std : bool, default True
        As in scikit-learn; so are the attributes.

    Examples
    --------
    >>> from featx.learn import StandardScaler
    >>> StandardScaler().fit_transform([[1.0], [3.0]]).tolist()
    [[-1.0], [1.0]]
    """

    reads_blocks: ClassVar[bool] = True  # of LazyRows

    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Update means and variances with more rows.

        Parameters
        ----------
        X : (n, d)
        y : ignored
        sample_weight : (n,), optional

        Returns
        -------
        self
        """
        if not isinstance(X, LazyRows):
            return super().partial_fit(X, y, sample_weight)
        for block, values in X.blocks():
            super().partial_fit(values, sample_weight=None if sample_weight is None else sample_weight[block])
        return self

    def transform(self, X: Any, copy: bool | None = None) -> Any:
        """Shift and scale rows.

        Parameters
        ----------
        X : (n, d)
        copy : bool, optional
            By default the scaler's.

        Returns
        -------
        (n, d); of LazyRows, LazyRows
        """
        if not isinstance(X, LazyRows):
            return super().transform(X, copy)
        check_is_fitted(self)
        validate_data(self, X, skip_check_array=True, reset=False)
        scaled = X.map(super().transform)
        scaled.unscaled = X, *affine_of(self)
        return scaled
