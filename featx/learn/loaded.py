"""A model from a file in; an error out if an object in it has attributes that stand in for the methods of its class.

skops sets any attribute of a loaded object. One that is named after a method, `__getstate__` above all, would decide
what a pickler sees of the object, and so hide what is beneath it from the checks that follow.
"""

from __future__ import annotations

from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, NoneType
from typing import Any

import numpy as np

from featx.errors import ModelError, listed

_LEAVES = (str, bytes, int, float, complex, type, NoneType, FunctionType, BuiltinFunctionType, np.ufunc, np.generic)


def refuse_own_methods(model: Any) -> None:
    """Raise ModelError unless every object that a model holds has the methods of its class."""
    seen: dict[int, Any] = {}  # also keeps them alive, so that no number is used twice
    left = [model]
    while left:
        held = left.pop()
        if id(held) in seen or isinstance(held, _LEAVES):
            continue
        seen[id(held)] = held
        attributes = getattr(held, "__dict__", None)
        if isinstance(attributes, dict):
            own = [name for name in attributes if str(name).startswith("__") or _is_method(type(held), name)]
            if own:
                raise ModelError(f"{type(held).__name__} has the methods of its class; got its own {listed(own)}")
            left += attributes.values()
        if isinstance(held, dict):
            left += [*held.keys(), *held.values()]
        elif isinstance(held, list | tuple | set | frozenset):
            left += held
        elif isinstance(held, np.ndarray) and held.dtype.hasobject:
            left += held.ravel().tolist()
        elif isinstance(held, partial):
            left += [held.func, held.args, held.keywords]
        elif isinstance(held, MethodType):
            left.append(held.__self__)


def _is_method(kind: type, name: str) -> bool:
    found = getattr(kind, name, None)
    return callable(found) and not isinstance(found, type)
