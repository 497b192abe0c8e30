"""Take candidates apart: a candidate's steps, with keys that are equal for equal steps, and its last estimator.

Nothing is fitted; layers are looked up in their store.
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
from featx.learn.identity import Same
from featx.store import FeatureStore


@dataclass(frozen=True, eq=False)
class Step:
    """A transformer before the last estimator; steps of equal key transform the same rows alike."""

    name: str
    transformer: Any
    key: Any


@dataclass(frozen=True, eq=False)
class SearchCandidate:
    """A candidate with its parameters set.

    index : its place in `cv_results_`
    estimator : unfitted, as scikit-learn would fit it
    steps, final_name, final : its parts; an estimator that is no pipeline has no steps and no name
    fallback : why scikit-learn fits it, without sharing; "" if it can share
    """

    index: int
    params: Mapping[str, Any]
    estimator: Any
    steps: tuple[Step, ...] = ()
    final_name: str = ""
    final: Any = None
    fallback: str = ""

    @property
    def is_batched(self) -> bool:
        return not self.fallback and _is_batched(self.final)

    @property
    def kind(self) -> Any:
        """A key that is equal if one call can fit the last estimators: same class, same metadata requests."""
        return type(self.final), self.final_name, repr(getattr(self.final, "_metadata_request", None))

    def without_sharing(self, reason: str) -> SearchCandidate:
        return SearchCandidate(self.index, self.params, self.estimator, fallback=reason)


def take_apart(
    base: Any, all_params: Iterable[Mapping[str, Any]], fit_params: Mapping[str, Any]
) -> list[SearchCandidate]:
    """Make a candidate of each set of parameters.

    Raises
    ------
    FeatxError
        The estimator does not have a parameter (those that resemble it are named), or a layer is not stored.
    """
    candidates = []
    is_understood = type(base) is Pipeline or _is_batched(base)
    known = base.get_params() if hasattr(base, "get_params") else {}
    for index, params in enumerate(all_params):
        if not is_understood:
            if getattr(type(base), "set_params", None) is BaseEstimator.set_params:
                for name in params:
                    if name.partition("__")[0] not in known:
                        raise _unknown(name, base, known)
            reason = f"{type(base).__name__} is neither a Pipeline nor solved together"
            candidates.append(SearchCandidate(index, params, base, fallback=reason))
            continue
        try:
            estimator = clone(base).set_params(**clone(params, safe=False))
        except ValueError as error:
            match = re.match("Invalid parameter '([^']+)'", str(error))
            if match is None:
                raise
            name = next((name for name in params if match[1] in name.split("__")), match[1])
            raise _unknown(name, base, known) from error
        candidate = _candidate(index, params, estimator, fit_params)
        for step in candidate.steps:
            if isinstance(step.transformer, StoredFeatures):
                step.transformer.fit()  # learns nothing, and raises where a layer is not stored
        candidates.append(candidate)
    return candidates


def _is_batched(estimator: Any) -> bool:
    """Whether an estimator has `fit_each` and a `fit` of featx.learn, unlike a user's subclass with its own `fit`."""
    cls = type(estimator)
    return hasattr(cls, "fit_each") and cls.fit.__module__.startswith("featx.learn.")


def _unknown(name: str, base: Any, known: Mapping[str, Any]) -> FeatxError:
    deeper = [long for long in known if long.endswith(f"__{name}")]
    close = f"; close: {listed(deeper)}" if deeper else nearest(name, known)
    return FeatxError(f"Invalid parameter {name!r} for {type(base).__name__}{close}; get_params() lists what it has")


def _candidate(index: int, params: Mapping[str, Any], estimator: Any, fit_params: Mapping[str, Any]) -> SearchCandidate:
    alone = SearchCandidate(index, params, estimator, final=estimator)
    if getattr(get_tags(estimator).input_tags, "pairwise", False):
        return alone.without_sharing("X is a matrix of distances or a kernel")
    if type(estimator) is not Pipeline:
        if fit_params.keys() - {"sample_weight"}:
            return alone.without_sharing("fit is given more than sample_weight")
        return alone
    if estimator.transform_input is not None or estimator.verbose:
        return alone.without_sharing("its transform_input or verbose is set")
    try:
        estimator._validate_steps()
    except (TypeError, ValueError, AttributeError):
        return alone.without_sharing("its steps do not fit together")
    final_name, final = estimator.steps[-1]
    if final is None or isinstance(final, str):
        return alone.without_sharing("its last step passes everything through")
    steps = tuple(
        Step(name, transformer, (name, _key(transformer)))
        for name, transformer in estimator.steps[:-1]
        if transformer is not None and not isinstance(transformer, str)
    )
    if _is_batched(final) and any(
        name.startswith(f"{final_name}__") and name != f"{final_name}__sample_weight" for name in fit_params
    ):
        return alone.without_sharing("fit is given more than sample_weight")
    return SearchCandidate(index, params, estimator, steps, final_name, final)


def _key(value: Any) -> Any:
    """A key that is equal for copies that clone makes of one value; for unknown types, equal to no other key."""
    if isinstance(value, FeatureStore):
        return FeatureStore, str(value.path), value.identity
    if callable(value) and not isinstance(value, BaseEstimator):
        return Same(value)  # clone does not copy it
    if isinstance(value, BaseEstimator) and not hasattr(type(value), "__deepcopy__"):
        is_cloned_as_usual = type(value).__sklearn_clone__ is BaseEstimator.__sklearn_clone__
        if not is_cloned_as_usual and not isinstance(value, StoredFeatures):  # whose clone keeps the network besides
            return object()
        return type(value), _key(vars(value))
    if isinstance(value, dict):
        return dict, *((_key(name), _key(item)) for name, item in value.items())
    if isinstance(value, list | tuple):
        return type(value), *map(_key, value)
    if value is None or isinstance(value, bool | int | float | str | np.number):
        return type(value), repr(value)
    try:
        return type(value), joblib.hash(value)
    except Exception:  # it cannot be pickled
        return object()
