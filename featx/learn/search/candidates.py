"""An estimator and candidates in; each candidate's parts out: its steps, with keys that are equal for equal steps.

Nothing is fitted, but that layers are looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags

from featx.errors import FeatxError, listed, nearest
from featx.learn.features import StoredFeatures
from featx.store import FeatureStore


@dataclass(frozen=True, eq=False)
class Step:
    """A transformer before the last estimator; those of equal key do the same to the same rows."""

    name: str
    transformer: Any
    key: Any


@dataclass(frozen=True, eq=False)
class Entry:
    """A candidate, its parameters set.

    estimator : unfitted, as scikit-learn would fit it
    steps, final_name, final : its parts; no steps and no name where it is no pipeline
    stock : why it is left to scikit-learn, or ""
    """

    index: int
    params: Mapping[str, Any]
    estimator: Any
    steps: tuple[Step, ...] = ()
    final_name: str = ""
    final: Any = None
    stock: str = ""

    @property
    def is_batched(self) -> bool:
        return not self.stock and _is_batched(self.final)

    @property
    def kind(self) -> Any:
        """Equal for candidates whose last estimators are fitted in one call: of one class, given the same of `fit`."""
        return type(self.final), self.final_name, repr(getattr(self.final, "_metadata_request", None))


def entries_of(base: Any, candidates: Iterable[Mapping[str, Any]], fit_params: Mapping[str, Any]) -> list[Entry]:
    """Candidates taken apart.

    Raises
    ------
    FeatxError
        A parameter that the estimator has not, by name, with those that resemble it; a layer that is not stored.
    """
    entries = []
    understood = type(base) is Pipeline or _is_batched(base)
    known = base.get_params() if hasattr(base, "get_params") else {}
    for index, params in enumerate(candidates):
        if not understood:
            ordinary = getattr(type(base), "set_params", None) is BaseEstimator.set_params
            for name in params if ordinary else ():
                if name.partition("__")[0] not in known:
                    raise _unknown(name, base, known)
            reason = f"{type(base).__name__} is neither a Pipeline nor solved together"
            entries.append(Entry(index, params, base, stock=reason))
            continue
        try:
            estimator = clone(base).set_params(**clone(params, safe=False))
        except ValueError as error:
            found = re.match("Invalid parameter '([^']+)'", str(error))
            if found is None:
                raise
            raise _unknown(
                next((name for name in params if found[1] in name.split("__")), found[1]), base, known
            ) from error
        entry = _taken_apart(index, params, estimator, fit_params)
        for step in entry.steps:
            if isinstance(step.transformer, StoredFeatures):
                step.transformer.fit()  # raises where a layer is not stored: nothing is learned
        entries.append(entry)
    return entries


def _is_batched(estimator: Any) -> bool:
    """Whether it is one of ours, not a subclass with a fit of its own."""
    cls = type(estimator)
    return hasattr(cls, "fit_each") and cls.fit.__module__.startswith("featx.learn.")


def _unknown(name: str, base: Any, known: Mapping[str, Any]) -> FeatxError:
    deeper = [long for long in known if long.endswith(f"__{name}")]
    close = f"; close: {listed(deeper)}" if deeper else nearest(name, known)
    return FeatxError(f"Invalid parameter {name!r} for {type(base).__name__}{close}; get_params() lists what it has")


def _taken_apart(index: int, params: Mapping[str, Any], estimator: Any, fit_params: Mapping[str, Any]) -> Entry:
    def left(reason: str) -> Entry:
        return Entry(index, params, estimator, stock=reason)

    if getattr(get_tags(estimator).input_tags, "pairwise", False):
        return left("X is a matrix of distances or a kernel")
    if type(estimator) is not Pipeline:
        if fit_params.keys() - {"sample_weight"}:
            return left("fit is given more than sample_weight")
        return Entry(index, params, estimator, final=estimator)
    if estimator.transform_input is not None or estimator.verbose:
        return left("its transform_input or verbose is set")
    try:
        estimator._validate_steps()
    except (TypeError, ValueError, AttributeError):
        return left("its steps do not fit together")
    final_name, final = estimator.steps[-1]
    if final is None or isinstance(final, str):
        return left("its last step passes everything through")
    steps = tuple(
        Step(name, transformer, (name, _key(transformer)))
        for name, transformer in estimator.steps[:-1]
        if transformer is not None and not isinstance(transformer, str)
    )
    if _is_batched(final) and any(
        name.startswith(f"{final_name}__") and name != f"{final_name}__sample_weight" for name in fit_params
    ):
        return left("fit is given more than sample_weight")
    return Entry(index, params, estimator, steps, final_name, final)


def _key(value: Any) -> Any:
    """Equal for what clone makes of the same value; of what is not understood, the object itself."""
    if isinstance(value, FeatureStore) or callable(value) and not isinstance(value, BaseEstimator):
        return id(value)  # clone copies neither
    if isinstance(value, BaseEstimator) and not hasattr(type(value), "__deepcopy__"):
        own_clone = type(value).__sklearn_clone__ is not BaseEstimator.__sklearn_clone__
        return (id(value),) if own_clone else (type(value), _key(vars(value)))
    if isinstance(value, dict):
        return (dict, *((_key(name), _key(item)) for name, item in value.items()))
    if isinstance(value, list | tuple):
        return (type(value), *map(_key, value))
    if value is None or isinstance(value, bool | int | float | str | np.number):
        return (type(value), repr(value))
    try:
        return (type(value), joblib.hash(value))
    except Exception:  # what cannot be pickled
        return (id(value),)
