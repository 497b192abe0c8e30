"""Copy a fitted estimator so that the copy needs no other file: stores become their recipes."""

from __future__ import annotations

import io
import pickle
import sys
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import numpy as np

from featx.store import FeatureStore, Recipe


class _Detacher(pickle.Pickler):
    """The pickler of `detached`."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, FeatureStore):
            return Recipe.from_json, (replace(obj.recipe, origin=None).to_json(),)
        if isinstance(obj, np.memmap):
            return np.array, (np.array(obj),)
        if isinstance(obj, PurePath):
            return str, (str(obj),)
        if _is_network(obj):  # the recipe names it; a module of the user is passed to `load` again
            return str, (getattr(obj, "name", f"module:{type(obj).__name__}"),)
        return NotImplemented


def _is_network(obj: Any) -> bool:
    if "torch" not in sys.modules:
        return False
    from torch import nn

    from featx.backbones import Backbone

    return isinstance(obj, Backbone | nn.Module)


def detached(estimator: Any) -> Any:
    """A deep copy with recipes in place of stores, arrays in place of memory maps, names in place of networks."""
    file = io.BytesIO()
    _Detacher(file, protocol=5).dump(estimator)
    return pickle.loads(file.getvalue())  # bytes that were written above
