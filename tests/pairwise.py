"""Tables of tests in which any two levels of two axes meet, in place of the product of all axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

import pytest


def pairwise(**axes: Mapping[str, Any] | Sequence[Any]) -> Callable[..., Any]:
    """Parametrise a test by axes, {id: value} or values: one axis, or combinations in which any two levels meet."""
    levels = [list(axis) for axis in axes.values()]
    values = [axis if isinstance(axis, Mapping) else {level: level for level in axis} for axis in axes.values()]
    table = [
        pytest.param(*(value[level] for value, level in zip(values, row, strict=True)), id="-".join(map(_id, row)))
        for row in _covering(levels)
    ]
    return pytest.mark.parametrize(list(axes), table)


def _covering(levels: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Rows of the product, each the first of those with the most pairs of levels that no earlier row has."""
    size = min(2, len(levels))
    pairs = {row: set(combinations(enumerate(row), size)) for row in product(*levels)}
    left, rows = set().union(*pairs.values()), []
    while left:
        rows.append(max(pairs, key=lambda row: len(pairs[row] & left)))
        left -= pairs[rows[-1]]
    return rows


def _id(level: Any) -> str:
    return getattr(level, "__name__", str(level))
