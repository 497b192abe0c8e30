"""Arrays by value: equal ones get the same number, by which the solvers then know what problems share."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from featx.solvers.problems import Problem


@dataclass(eq=False)
class Interned:
    """Different arrays, numbered from 0 in the order of their arrival; None is a value of its own."""

    values: list[np.ndarray | None] = field(default_factory=list)
    _numbers: dict[Hashable, int] = field(default_factory=dict)

    def number(self, array: np.ndarray | None) -> int:
        """The number of an array; arrays of Python objects are equal if they hold the same objects."""
        for number, value in enumerate(self.values):  # a shortcut: the same object has the same value
            if value is array:
                return number
        key = None if array is None else (array.shape, array.dtype.str, array.tobytes())
        number = self._numbers.setdefault(key, len(self.values))
        if number == len(self.values):
            self.values.append(array)
        return number


@dataclass(frozen=True)
class ArrayNumbers:
    """Numbers that identify the arrays of a problem; equal numbers mean equal arrays."""

    weights: int
    shift: int
    scale: int

    @property
    def affine(self) -> tuple[int, int]:
        return self.shift, self.scale


def array_numbers(problems: Sequence[Problem]) -> list[ArrayNumbers]:
    weights, shifts, scales = Interned(), Interned(), Interned()
    return [ArrayNumbers(weights.number(p.weights), shifts.number(p.shift), scales.number(p.scale)) for p in problems]
