"""A model in; all objects that it holds out, and an error if one has attributes in place of its class's methods.

skops sets any attribute of a loaded object. One that is named after a method, `__getstate__` above all, would decide
what a pickler sees of the object, or take the place of a check that the class makes. So nothing here asks an object.
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
    """A model and all that it holds, each once: attributes, and what is in containers and arrays of objects."""
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
    """Raise ModelError unless every object that a model holds has what its class defines."""
    for held in objects_of(model):
        kind = type(held)
        if own := sorted(str(name) for name in _attributes(held) if _is_defined(kind, str(name))):
            raise ModelError(f"{kind.__name__} has the methods of its class; got its own {listed(own)}")


def _attributes(held: Any) -> dict[str, Any]:
    return getattr(held, "__dict__", {})


def _is_defined(kind: type, name: str) -> bool:
    """Whether a class defines a name; of others than estimators its methods alone: NumPy's arrays set such defaults."""
    if name.startswith("__") or issubclass(kind, BaseEstimator):
        return name.startswith("__") or hasattr(kind, name)
    found = getattr(kind, name, None)
    return callable(found) and not isinstance(found, type)
