"""Plan which fits candidates share, before anything is fitted; `executor` follows the plan.

There are three ways. Candidates of a batched estimator (`estimators.batched`) are one solve over all folds, where the
steps before it are fold-independent or one affine scaler. Steps that several candidates begin with are fitted once per
fold. Everything else falls back to scikit-learn's search.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, takewhile
from numbers import Integral
from typing import Any

import numpy as np
from sklearn import get_config
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, Normalizer, PowerTransformer, RobustScaler
from sklearn.preprocessing import StandardScaler as SklearnStandardScaler

from featx.errors import readable
from featx.learn._sklearn import num_samples
from featx.learn.estimators import Nystroem, StandardScaler
from featx.learn.features import StoredFeatures
from featx.learn.lazy_rows import BLOCK_BYTES, LazyRows, is_lazy, too_large
from featx.learn.search.candidates import SearchCandidate, Step
from featx.store import Recipe


@dataclass(eq=False)
class SharedPrefix:
    """Candidates whose fold-independent steps are the same: these transform all rows once.

    solves : candidates solved over all folds at once, with the affine scaler before the estimator (or None)
    by_fold : the other candidates, fitted fold by fold; steps that they begin with are fitted once per fold
    """

    steps: tuple[Step, ...]
    solves: list[tuple[Step | None, list[SearchCandidate]]] = field(default_factory=list)
    by_fold: list[SearchCandidate] = field(default_factory=list)

    @property
    def candidates(self) -> list[SearchCandidate]:
        return [candidate for _, candidates in self.solves for candidate in candidates] + self.by_fold

    def add_to_solve(self, candidate: SearchCandidate, affine: Step | None) -> None:
        """Solve the candidate together with those of its kind that have the same scaler."""
        for scaler, together in self.solves:
            is_same_scaler = (scaler and scaler.key) == (affine and affine.key)
            if is_same_scaler and together[0].kind == candidate.kind:
                together.append(candidate)
                return
        self.solves.append((affine, [candidate]))

    def rest(self, candidate: SearchCandidate) -> tuple[Step, ...]:
        return candidate.steps[len(self.steps) :]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a search will share; its str is a readable summary.

    prefixes : candidates that share steps or solves
    fallback : candidates that scikit-learn fits, each with the reason
    n_splits : number of folds
    nbytes : most bytes of rows held at once, beside X and the solvers' budget
    budget_bytes : most bytes that the solvers take
    amounts : {index of a candidate: work of one of its fits, relative to the others}
    """

    prefixes: list[SharedPrefix]
    fallback: list[SearchCandidate]
    n_splits: int
    nbytes: int
    budget_bytes: int
    amounts: Mapping[int, float]

    @property
    def n_fits(self) -> int:
        return self.n_splits * len(self.amounts)

    @property
    def work(self) -> dict[str, float]:
        """{kind: amount} of all fits."""
        work: dict[str, float] = {}
        groups = [(candidates, self.n_splits) for prefix in self.prefixes for _, candidates in prefix.solves]
        groups += [(prefix.by_fold, self.n_splits) for prefix in self.prefixes if prefix.by_fold]
        groups += [([candidate], self.n_splits) for candidate in self.fallback]
        for candidates, n_splits in groups:
            kind, amount = self.piece(candidates, n_splits)
            work[kind] = work.get(kind, 0) + amount
        return work

    def piece(self, candidates: Sequence[SearchCandidate], n_splits: int) -> tuple[str, float]:
        """(kind, amount) of the work on candidates in some folds; seconds a unit are estimated for each kind."""
        parts = {type(step.transformer).__name__ for candidate in candidates for step in candidate.steps}
        finals = (candidate.estimator if candidate.final is None else candidate.final for candidate in candidates)
        parts |= {type(final).__name__ for final in finals}
        return " ".join(sorted(parts)), n_splits * sum(self.amounts[candidate.index] for candidate in candidates)

    def __str__(self) -> str:
        lines = []
        for prefix in self.prefixes:
            rows = " -> ".join(map(_named, prefix.steps)) or "X"
            for affine, candidates in prefix.solves:
                before = rows if affine is None else f"{rows} -> {_named(affine)} of each fold"
                lines.append(f"{_fits(candidates, self.n_splits)} of {_class(candidates)} in one solve: {before}")
            for steps, candidates in _by_beginning(prefix):
                before = " -> ".join([rows, *map(_named, steps)])
                how = "one solve a fold" if candidates[0].is_batched else "the estimator alone is fitted each time"
                lines.append(
                    f"{_fits(candidates, self.n_splits)} of {_class(candidates)}, {how}: {before}, once in each of "
                    f"{self.n_splits} folds"
                )
        by_reason: dict[str, list[SearchCandidate]] = {}
        for candidate in self.fallback:
            by_reason.setdefault(candidate.fallback, []).append(candidate)
        for reason, candidates in by_reason.items():
            lines.append(f"{_fits(candidates, self.n_splits)} by scikit-learn's search, which shares no work: {reason}")
        most = readable(self.budget_bytes)
        memory = f"memory: {readable(self.nbytes)} of rows at once; for solving what it needs, at most {most}"
        return "\n".join([*lines, memory])


def plan_of(
    candidates: Sequence[SearchCandidate],
    X: Any,
    splits: Sequence[tuple[np.ndarray, np.ndarray]],
    fit_params: Mapping[str, Any],
    scores_train: bool,
) -> Plan:
    """Group candidates by what they share.

    scores_train : whether candidates are scored on their training rows too
    """
    from featx.solvers import budget_of, device_of  # torch, which takes seconds to import

    every = np.arange(num_samples(X))
    if any(not len(every[part]) for split in splits for part in split):
        candidates = [each if each.fallback else each.without_sharing("a fold has no rows") for each in candidates]
    first_steps = Counter(candidate.steps[0].key for candidate in candidates if candidate.steps)
    are_distinct = all(len(np.unique(train)) == len(train) for train, _ in splits)
    prefixes: dict[Any, SharedPrefix] = {}
    fallback = []
    for candidate in candidates:
        shares = candidate.is_batched or (candidate.steps and first_steps[candidate.steps[0].key] > 1)
        if candidate.fallback or not shares:
            reason = candidate.fallback or "it shares no step with another candidate"
            fallback.append(candidate.without_sharing(reason))
            continue
        steps = _independent(candidate, fit_params)
        _refuse_large(candidate, X)
        prefix = prefixes.setdefault(tuple(step.key for step in steps), SharedPrefix(steps))
        rest = prefix.rest(candidate)
        affine = rest[0] if len(rest) == 1 and _is_affine(rest[0].transformer) else None
        if are_distinct and candidate.is_batched and (affine is not None or not rest) and _is_matrix(X, steps):
            prefix.add_to_solve(candidate, affine)
        else:
            prefix.by_fold.append(candidate)
    n = max(1, len(every))
    n_train, n_test = (max((len(every[split[part]]) for split in splits), default=0) for part in (0, 1))
    of_fold = n_train / n, n_test / n, scores_train * n_train / n
    nbytes = max((_prefix_bytes(prefix, X, of_fold) for prefix in prefixes.values()), default=0)
    widths = widths_of(candidates, X).tolist()
    amounts = {each.index: n_train * _amount(each, width) for each, width in zip(candidates, widths, strict=True)}
    return Plan(list(prefixes.values()), fallback, len(splits), nbytes, budget_of(device_of("auto"), None), amounts)


def without_sharing(plan: Plan, reason: str) -> Plan:
    """The plan in which scikit-learn fits all candidates."""
    candidates = [*plan.fallback, *(each for prefix in plan.prefixes for each in prefix.candidates)]
    return replace(plan, prefixes=[], fallback=[each.without_sharing(reason) for each in candidates], nbytes=0)


def widths_of(candidates: Sequence[SearchCandidate], X: Any) -> np.ndarray:
    """(c,) number of features that each candidate's last estimator is fitted on; nan where only fitting would tell."""
    return np.array([_width(candidate, X) for candidate in candidates], float)


def _width(candidate: SearchCandidate, X: Any) -> float:
    shape: tuple[int, ...] = getattr(X, "shape", ())
    if candidate.final is None or isinstance(candidate.final, Pipeline):
        return float("nan")
    width = float(shape[1]) if len(shape) == 2 else float("nan")
    for step in candidate.steps:
        n_components = getattr(step.transformer, "n_components", None)
        is_decomposition = type(step.transformer).__module__.startswith(_DECOMPOSITIONS)
        if isinstance(step.transformer, StoredFeatures):
            width = step.transformer.n_features_out_
        elif isinstance(n_components, Integral) and is_decomposition:
            width = int(n_components)
        elif type(step.transformer) not in (*_AFFINE, Normalizer, PowerTransformer):
            width = float("nan")
    return width


def _amount(candidate: SearchCandidate, width: float) -> float:
    """The work of a fit for each row, in columns."""
    constant = getattr(candidate.final, "fixed_work_columns", _FIXED_WORK_COLUMNS)
    return (0.0 if math.isnan(width) else width) + constant


_LONGEST_NAME = 60
# The part of a fit that does not depend on the number of columns, in columns, of estimators that have no other
# `fixed_work_columns`. Measured on 2,000 rows of 16 to 1,280 columns.
_FIXED_WORK_COLUMNS = 100
_DECOMPOSITIONS = ("sklearn.decomposition.", Nystroem.__module__, "sklearn.kernel_approximation")
_AFFINE = (StandardScaler, SklearnStandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler)


def _is_affine(transformer: Any) -> bool:
    """Whether a transformer only shifts and scales columns, and returns a plain array."""
    return type(transformer) in _AFFINE and _returns_arrays(transformer) and not getattr(transformer, "clip", False)


def _is_independent(transformer: Any) -> bool:
    """Whether a transformer's output for a row does not depend on the rows it was fitted on, and X is not changed."""
    if not _returns_arrays(transformer):
        return False
    return type(transformer) is StoredFeatures or type(transformer) is Normalizer and transformer.copy


def _returns_arrays(transformer: Any) -> bool:
    return not hasattr(transformer, "_sklearn_output_config") and get_config()["transform_output"] == "default"


def _independent(candidate: SearchCandidate, fit_params: Mapping[str, Any]) -> tuple[Step, ...]:
    """The fold-independent steps at the beginning of the candidate."""

    def is_independent(step: Step) -> bool:
        has_params = any(name.startswith(f"{step.name}__") for name in fit_params)
        return not has_params and _is_independent(step.transformer)

    return tuple(takewhile(is_independent, candidate.steps))


def _is_matrix(X: Any, steps: Sequence[Step]) -> bool:
    """Whether the fold-independent steps make a dense array of X; then a fold is rows of weight 0."""
    if steps and type(steps[0].transformer) is StoredFeatures:
        dtype = np.dtype(_recipe(steps[0].transformer).dtype)
    elif isinstance(X, np.ndarray | LazyRows) and X.ndim == 2 and X.dtype.kind in "fiub":
        dtype = X.dtype
    else:
        return False
    return dtype.kind != "f" or dtype.itemsize >= 4  # scalers round to float16 where X is


def _refuse_large(candidate: SearchCandidate, X: Any) -> None:
    """Raise if rows of a store are too large for a later step, which would copy them; before they are read."""
    features = candidate.steps[0].transformer if candidate.steps else None
    if type(features) is not StoredFeatures or not is_lazy(nbytes := _stored_bytes(features, num_samples(X))):
        return
    for step in [*(step.transformer for step in candidate.steps[1:]), candidate.final]:
        if not getattr(step, "reads_blocks", False):
            raise too_large(
                f"{type(step).__name__} needs a copy of {num_samples(X):,} rows of {features.layer_}", nbytes
            )


def _stored_bytes(features: StoredFeatures, n: int) -> int:
    return n * features.n_features_out_ * np.dtype(_recipe(features).dtype).itemsize


def _recipe(features: StoredFeatures) -> Recipe:
    return features.store if isinstance(features.store, Recipe) else features.store.recipe


def _prefix_bytes(prefix: SharedPrefix, X: Any, shares: tuple[float, float, float]) -> int:
    """Most bytes of rows held at once: all rows, if the steps copy them, and those of a fold.

    shares : of all rows, those that a fold trains on, holds out, and scores beside them
    """
    n = num_samples(X)
    if prefix.steps and type(prefix.steps[0].transformer) is StoredFeatures:
        whole = _stored_bytes(prefix.steps[0].transformer, n)
        if is_lazy(whole):
            return BLOCK_BYTES
        own = whole
    else:
        shape = getattr(X, "shape", (n, 1))
        dtype = getattr(X, "dtype", np.dtype(float))
        itemsize = dtype.itemsize if getattr(dtype, "kind", "") == "f" else 8  # of float64, which estimators convert to
        whole = math.prod(shape) * itemsize
        own = whole if prefix.steps or itemsize != getattr(dtype, "itemsize", 8) else 0
    of_fold = [shares[1] + shares[2]] if prefix.solves else []
    if prefix.by_fold:  # a fold's rows before each step after which candidates differ, and after the last step
        rests = [tuple(step.key for step in prefix.rest(candidate)) for candidate in prefix.by_fold]
        begun = [len({rest[:depth] for rest in rests}) for depth in range(1 + max(map(len, rests)))]
        branchings = sum(few < many for few, many in pairwise(begun))
        of_fold.append(sum(shares) * (2 + branchings))
    return own + int(whole * max(of_fold))


def _by_beginning(prefix: SharedPrefix) -> list[tuple[tuple[Step, ...], list[SearchCandidate]]]:
    """Candidates that are fitted fold by fold, grouped by their steps after the prefix and the estimator's class."""
    groups: dict[Any, tuple[tuple[Step, ...], list[SearchCandidate]]] = {}
    for candidate in prefix.by_fold:
        rest = prefix.rest(candidate)
        key = (*(step.key for step in rest), type(candidate.final))
        groups.setdefault(key, (rest, []))[1].append(candidate)
    return list(groups.values())


def _fits(candidates: Sequence[SearchCandidate], n_splits: int) -> str:
    n = len(candidates) * n_splits
    return f"{n:,} fit{'s' if n > 1 else ''}"


def _class(candidates: Sequence[SearchCandidate]) -> str:
    return type(candidates[0].final).__name__


def _named(step: Step) -> str:
    if isinstance(step.transformer, StoredFeatures):
        return step.transformer.layer_
    text = " ".join(repr(step.transformer).split()).removesuffix("()")  # repr has parameters that are not defaults
    return text if len(text) <= _LONGEST_NAME else f"{type(step.transformer).__name__}(...)"
