"""`FeatureRows`: a matrix of features that knows which layers it holds and from which store its rows are."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from featx.store import Recipe


class Origin(NamedTuple):
    """Where rows are from.

    recipe : of their layers, in the order of the columns, and of the views that they are the mean of
    store : identity of the store, or None if they were computed of images
    """

    recipe: Recipe
    store: str | None

    @property
    def width(self) -> int:
        """Number of columns."""
        return sum(math.prod(tap["shape"]) for tap in self.recipe.view_taps.values())


class FeatureRows(np.ndarray):
    """An array with an `origin`, which rows taken from it share.

    What is computed from it, and what scikit-learn checks and converts, are plain arrays: an origin is that of
    unchanged rows.

    Attributes
    ----------
    origin : Origin or None
    """

    origin: Origin | None = None

    @classmethod
    def of(cls, matrix: np.ndarray, origin: Origin) -> FeatureRows:
        """A view of the matrix."""
        rows = matrix.view(cls)
        rows.origin = origin
        return rows

    def __array_finalize__(self, parent: Any) -> None:
        self.origin = getattr(parent, "origin", None)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return array[()] if return_scalar else np.asarray(array)
