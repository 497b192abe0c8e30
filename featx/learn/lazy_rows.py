"""`LazyRows`: a matrix that is too large for memory, whose rows are read from a store's file when they are used.

`StoredFeatures` returns it; transformers and estimators of featx.learn take it in blocks; NumPy and scikit-learn, which
would copy it, are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn.utils import assert_all_finite
from sklearn.utils.validation import validate_data

from featx.errors import TooLargeError, readable
from featx.memory import memory_bytes

BLOCK_BYTES = 64 * 2**20
_LAZY_SHARE = 4  # a matrix of more than this part of the memory is not copied into it
_ARRAY_SHARE = 2  # one that another library needs may take this part


class LazyRows:
    """An (n, d) matrix that is never in memory as a whole; indexing its rows gives an array.

    Parameters
    ----------
    read : callable, positions (m,) -> (m, d) array
    positions : (n,) int64
        The place of each row, which `read` takes; it is fastest in ascending order.
    width : d
    dtype : of the rows
    origin : of the rows, as FeatureRows has it, or None if they are not those of a store any more

    Attributes
    ----------
    unscaled : (LazyRows, shift, scale) or None
        Where the matrix is (X - shift) / scale: X, and the vectors (d,) or None, for what shifts and scales by itself.
    """

    ndim = 2
    unscaled: tuple[LazyRows, np.ndarray | None, np.ndarray | None] | None = None

    def __init__(
        self,
        read: Callable[[np.ndarray], np.ndarray],
        positions: np.ndarray,
        width: int,
        dtype: Any,
        origin: Any = None,
    ) -> None:
        self._read, self.positions, self.origin = read, positions, origin
        self.shape, self.dtype = (len(positions), width), np.dtype(dtype)

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.size * self.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """Rows as an array: X[5], X[2:5], X[[7, 3]], X[mask]; and some of their columns, which are read in blocks."""
        if not isinstance(index, tuple):
            return self._read(self.positions[index]) if np.ndim(index) or isinstance(index, slice) else self[[index]][0]
        rows, columns = (part if isinstance(part, slice) else np.ravel(part) for part in index)
        part = self.take(rows)
        chosen = np.empty((len(part), len(np.arange(self.shape[1])[columns])), self.dtype)
        for block, values in part.blocks():
            chosen[block] = values[:, columns]
        return chosen

    def take(self, rows: Any) -> LazyRows:
        """The matrix of some of the rows: a slice, positions or a mask."""
        taken = LazyRows(self._read, self.positions[rows], self.shape[1], self.dtype, self.origin)
        if self.unscaled is not None:
            X, shift, scale = self.unscaled
            taken.unscaled = X.take(rows), shift, scale
        return taken

    def map(self, function: Callable[[np.ndarray], np.ndarray], width: int = 0, dtype: Any = None) -> LazyRows:
        """The matrix of function(rows), computed when rows are read; by default of as many columns and the same type.

        function : (m, d) -> (m, width), each row of which depends on one row
        """

        def read(positions: np.ndarray) -> np.ndarray:
            return function(self._read(positions)).astype(mapped.dtype, copy=False)

        mapped = LazyRows(read, self.positions, width or self.shape[1], dtype or self.dtype)
        return mapped

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """(rows, their values) in order, in blocks of 64 MB."""
        step = max(1, BLOCK_BYTES // (self.shape[1] * self.itemsize))
        for start in range(0, len(self), step):
            block = slice(start, min(start + step, len(self)))
            yield block, self[block]

    def in_file_order(self) -> np.ndarray | None:
        """(n,) the order of the rows in the file, or None if they are in this order."""
        if (np.diff(self.positions) >= 0).all():
            return None
        return np.argsort(self.positions, kind="stable")

    def __getstate__(self) -> Any:
        raise TypeError("its rows are too large for memory: they stay in the store's file, and are not saved with it")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.nbytes > memory_bytes() // _ARRAY_SHARE:
            raise too_large(f"X has {len(self):,} rows of {self.shape[1]:,} columns", self.nbytes)
        return np.asarray(self[:], dtype)


def checked(estimator: Any, X: Any, y: Any = None, *, dtype: Any, **options: Any) -> Any:
    """X, or X and y, checked by scikit-learn's `validate_data`; LazyRows are read in blocks and stay LazyRows.

    dtype : types of X that are not converted; the first one is that of others
    """
    if not isinstance(X, LazyRows):
        return validate_data(estimator, X, *([] if y is None else [y]), dtype=dtype, **options)
    if y is not None:
        _, y = validate_data(estimator, np.zeros((len(X), 1)), y, **options)
    validate_data(estimator, X, skip_check_array=True, reset=options.get("reset", True))
    if X.dtype not in dtype:
        X = X.map(lambda values: values, dtype=dtype[0])
    for _, values in X.blocks():
        assert_all_finite(values, input_name="X", estimator_name=type(estimator).__name__)
    return X if y is None else (X, y)


def is_lazy(nbytes: int) -> bool:
    """Whether a matrix of so many bytes is read when it is used, since a copy of it takes too much memory."""
    return nbytes > memory_bytes() // _LAZY_SHARE


def too_large(what: str, nbytes: int) -> TooLargeError:
    """The error of what would copy so many bytes of rows into memory; `what` says which rows, and who needs them."""
    return TooLargeError(
        f"{what}, {readable(nbytes)}: too much for the {readable(memory_bytes())} of memory that this process may use. "
        "LogisticRegression, LinearSVC, Ridge, RidgeClassifier, KNeighborsClassifier, StandardScaler and Nystroem of "
        "featx.learn read the rows in blocks; Nystroem with LinearSVC takes the place of SVC"
    )


def rows_at(X: Any, rows: Any) -> Any:
    """Rows of a matrix: of LazyRows as LazyRows, of an array as an array."""
    return X.take(rows) if isinstance(X, LazyRows) else X[rows]


def in_blocks(method: Callable[[Any], np.ndarray], X: Any) -> np.ndarray:
    """method(X), in blocks if X is LazyRows."""
    if not isinstance(X, LazyRows):
        return method(X)
    return np.concatenate([method(values) for _, values in X.blocks()] or [method(X[:])])
