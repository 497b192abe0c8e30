"""Checks of the parameters of searches and protocols; each raises FeatxError with the parameter's name.

Parameters that are looked up in a store, layers and labels for example, are checked where that is done.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import TypeGuard

import numpy as np

from featx.errors import FeatxError, Parameter

_MOST_SHOWN = 80  # characters of a value in a message


def check_integer(name: str, value: object, least: int) -> None:
    if not _is_integer(value) or value < least:
        raise FeatxError(Parameter(name), f" is an integer, {least} or more; got {brief(value)}")


def check_seed(name: str, value: object) -> None:
    """Raise FeatxError unless scikit-learn takes the value as a seed."""
    if counts([value], 0, 2**32 - 1) is None:
        raise FeatxError(Parameter(name), f" is an integer from 0 to {2**32 - 1}; got {brief(value)}")


def check_positive(name: str, value: object) -> None:
    if not _is_number(value) or not value > 0:
        raise FeatxError(Parameter(name), f" is a positive number; got {brief(value)}")


def check_share(name: str, value: object, images: str, may_be_zero: bool = False) -> None:
    if not _is_number(value) or not (0 < value < 1 or (may_be_zero and value == 0)):
        least = "from 0 to" if may_be_zero else "above 0 and"
        raise FeatxError(Parameter(name), f" is the share of {images}, {least} below 1; got {brief(value)}")


def check_flags(**flags: object) -> None:
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise FeatxError(Parameter(name), f" is True or False; got {brief(value)}")


def check_n_jobs(n_jobs: object) -> None:
    if n_jobs is not None and (not _is_integer(n_jobs) or n_jobs == 0):
        raise FeatxError(Parameter("n_jobs"), f" is a number of processes, or -1 for one per core; got {brief(n_jobs)}")


def check_callback(name: str, function: object) -> None:
    if function is not None and not callable(function):
        raise FeatxError(Parameter(name), f" is a function; got {brief(function)}")


def check_rows(name: Parameter, rows: object, n: int | None = None) -> np.ndarray:
    """(n,) bool; without `n`, of any length."""
    try:
        mask = np.asarray(rows)
    except ValueError:  # lists of different lengths
        mask = np.empty(())
    if mask.dtype != bool or mask.ndim != 1:
        got = f"an array of {mask.dtype}" if mask.ndim == 1 else brief(rows)
        raise FeatxError(name, f" is True or False for each image; got {got}")
    if n is not None and len(mask) != n:
        raise FeatxError(name, f" is True or False for each of the {n:,} images; got {len(mask):,} values")
    return mask


def positive_numbers(values: object) -> list[float] | None:
    """The values, or None if they are not one or more positive numbers."""
    every = sequence(values)
    return every if every and all(_is_number(value) and value > 0 for value in every) else None


def counts(values: object, least: int, most: float = math.inf) -> list[int] | None:
    """The values, or None if they are not one or more integers from `least` to `most`."""
    every = sequence(values)
    return every if every and all(_is_integer(value) and least <= value <= most for value in every) else None


def sequence(values: object) -> list | None:
    """The values of a list, tuple, array or iterator; None for a text, a dict and a single value."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        return None
    return None if isinstance(values, np.ndarray) and not values.ndim else list(values)


def brief(value: object) -> str:
    """One line of a value's repr, for a message."""
    text = " ".join(repr(value.item() if isinstance(value, np.generic) else value).split())
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
