"""Image keys, or a list of images, from what scikit-learn passes as X."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from featx.errors import KeysError, SourceError


def as_images(X: object) -> list[Any]:
    """X, (n,) or (n, 1), as a list of n images.

    Raises
    ------
    SourceError
        X is one image instead of a list, or contains something other than images.
    """
    items = items_of(X)
    if isinstance(items, np.ndarray):
        raise SourceError("X holds numbers; images are needed: paths, PIL images or uint8 arrays")
    for item in items:
        if not isinstance(item, str | os.PathLike | np.ndarray) and not hasattr(item, "convert"):
            raise SourceError(f"an image is a path, a PIL image or a uint8 array; X holds {type(item).__name__}")
    return items


def items_of(X: object) -> np.ndarray | list[Any]:
    """X as an array of numbers (keys), or as a list of n images."""
    if isinstance(X, str | os.PathLike):
        raise SourceError(f"X is a list of images; put the path in one: [{str(X)!r}]")
    X = X.to_numpy() if hasattr(X, "to_numpy") else X  # a pandas or polars table or column
    if not isinstance(X, np.ndarray | Sequence):
        raise SourceError(f"X is store.X, or a list of images; got {type(X).__name__}")
    if not len(X):
        raise SourceError("X is empty; at least one image is needed")
    if isinstance(X, np.ndarray) and X.dtype == np.uint8:
        if X.ndim < 3 or X.ndim == 3 and X.shape[2] == 3:
            raise SourceError(f"X is a list of images; got one array of shape {X.shape}: put it in a list")
        return list(X)
    if isinstance(X, np.ndarray) and X.dtype.kind in "iuf":
        return X
    one = (list, tuple, np.ndarray)  # (n, 1): each item is itself a list of one
    items = [x[0] if isinstance(x, one) and len(x) == 1 and getattr(x, "ndim", 1) == 1 else x for x in X]
    return np.array(items) if all(isinstance(item, int | np.integer) for item in items) else items


def keys_of(X: np.ndarray) -> np.ndarray:
    """(n,) int64 from one column of whole numbers."""
    if X.ndim > 2 or X.ndim == 2 and X.shape[1] != 1:
        raise KeysError(f"X is one column of keys, shape (n, 1), as store.X is; got shape {X.shape}")
    X = X.reshape(-1)
    keys = np.where(np.isfinite(X), X, 0).astype(np.int64)
    if (keys != X).any():
        raise KeysError("X holds numbers that are not whole: keys must come unscaled; put StoredFeatures first")
    return keys
