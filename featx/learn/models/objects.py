"""Find all objects that a model holds, and refuse those whose attributes replace methods of their class.

skops sets any attribute of a loaded object. An attribute with the name of a method, above all `__getstate__`, would
decide what a pickler sees of the object, or replace a check of the class. So no method of the objects is called here.
"""

from __future__ import annotations

from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, NoneType
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from featx.errors import ModelError, listed
from featx.learn.identity import Same

_LEAVES = (str, bytes, int, float, complex, type, NoneType, FunctionType, BuiltinFunctionType, np.ufunc, np.generic)


def objects_of(model: Any) -> list[Any]:
    """The model and every object in its attributes, containers and arrays of objects, each once."""
    seen: dict[Same, None] = {}  # in order
    left = [model]
    while left:
        held = left.pop()
        if isinstance(held, _LEAVES) or Same(held) in seen:
            continue
        seen[Same(held)] = None
        left += _attributes(held).values()
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
    return [same.held for same in seen]


def refuse_own_methods(model: Any) -> None:
    """Raise ModelError if an object of the model has an attribute in place of a method of its class."""
    for held in objects_of(model):
        kind = type(held)
        if own := sorted(str(name) for name in _attributes(held) if _is_defined(kind, str(name))):
            raise ModelError(f"an attribute of {kind.__name__} replaces a method of its class: {listed(own)}")


def _attributes(held: Any) -> dict[str, Any]:
    return getattr(held, "__dict__", {})


def _is_defined(kind: type, name: str) -> bool:
    """Whether a class defines a name; of classes other than estimators only methods count: NumPy sets defaults."""
    if name.startswith("__") or issubclass(kind, BaseEstimator):
        return name.startswith("__") or hasattr(kind, name)
    attribute = getattr(kind, name, None)
    return callable(attribute) and not isinstance(attribute, type)
