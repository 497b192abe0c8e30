"""An estimator and candidates in; what of their fits can be shared out, before anything is fitted.

Three ways: candidates of a batched estimator (`folds.Batched`) in one solve over all folds, where the steps before it
are fold-independent or one affine scaler; steps that several candidates begin with, fitted once a fold; and the stock
way, scikit-learn's, for what is not understood. `runs` follows a plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np
from sklearn import get_config
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    PowerTransformer,
    RobustScaler,
    StandardScaler,
)
from sklearn.utils.validation import _num_samples

from featx.errors import readable
from featx.learn.features import StoredFeatures
from featx.learn.search.candidates import Entry, Step
from featx.store import Recipe


@dataclass(eq=False)
class Root:
    """Candidates on the same rows: what their fold-independent steps make of all rows, once.

    solves : solved over all folds at once, by the affine scaler before the estimator (or None) and its class
    folded : what is left, fold by fold; what they begin with alike is fitted once a fold
    """

    steps: tuple[Step, ...]
    solves: list[tuple[Step | None, list[Entry]]] = field(default_factory=list)
    folded: list[Entry] = field(default_factory=list)

    @property
    def entries(self) -> list[Entry]:
        return [entry for _, entries in self.solves for entry in entries] + self.folded

    def rest(self, entry: Entry) -> tuple[Step, ...]:
        return entry.steps[len(self.steps) :]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a search will share; `str` of it is a table.

    roots : candidates that share
    stock : those left to scikit-learn, with the reason
    n_splits : folds
    nbytes : largest amount of rows held at once, beside X and what the solvers take of their budget
    budget_bytes : which the solvers may take
    amounts : {index of a candidate: how much work one of its fits is, relative to the others}
    """

    roots: list[Root]
    stock: list[Entry]
    n_splits: int
    nbytes: int
    budget_bytes: int
    amounts: Mapping[int, float]

    @property
    def n_fits(self) -> int:
        return self.n_splits * len(self.amounts)

    @property
    def work(self) -> dict[str, float]:
        """{kind: amount} of all that is to do."""
        work: dict[str, float] = {}
        groups = [(entries, self.n_splits) for root in self.roots for _, entries in root.solves]
        groups += [(root.folded, self.n_splits) for root in self.roots if root.folded]
        groups += [([entry], self.n_splits) for entry in self.stock]
        for entries, n_splits in groups:
            kind, amount = self.piece(entries, n_splits)
            work[kind] = work.get(kind, 0) + amount
        return work

    def piece(self, entries: Sequence[Entry], n_splits: int) -> tuple[str, float]:
        """(kind, amount) of the work on candidates in some folds; of a kind is what takes a time of its own."""
        parts = {type(step.transformer).__name__ for entry in entries for step in entry.steps}
        parts |= {type(entry.final if entry.final is not None else entry.estimator).__name__ for entry in entries}
        return " ".join(sorted(parts)), n_splits * sum(self.amounts[entry.index] for entry in entries)

    def __str__(self) -> str:
        lines = []
        for root in self.roots:
            rows = " -> ".join(map(_named, root.steps)) or "X"
            for affine, entries in root.solves:
                before = rows if affine is None else f"{rows} -> {_named(affine)} of each fold"
                lines.append(f"{_fits(entries, self.n_splits)} of {_class(entries)} in one solve: {before}")
            for steps, entries in _beginnings(root):
                before = " -> ".join([rows, *map(_named, steps)])
                how = "one solve a fold" if entries[0].is_batched else "the estimator alone is fitted each time"
                lines.append(
                    f"{_fits(entries, self.n_splits)} of {_class(entries)}, {how}: {before}, once in each of "
                    f"{self.n_splits} folds"
                )
        by_reason: dict[str, list[Entry]] = {}
        for entry in self.stock:
            by_reason.setdefault(entry.stock, []).append(entry)
        for reason, entries in by_reason.items():
            lines.append(f"{_fits(entries, self.n_splits)} by scikit-learn's search, which shares no work: {reason}")
        most = readable(self.budget_bytes)
        memory = f"memory: {readable(self.nbytes)} of rows at once; for solving what it needs, at most {most}"
        return "\n".join([*lines, memory])


def plan_of(
    entries: Sequence[Entry],
    X: Any,
    splits: Sequence[tuple[np.ndarray, np.ndarray]],
    fit_params: Mapping[str, Any],
    scores_train: bool,
) -> Plan:
    """Entries put together by what they share.

    scores_train : whether models are asked about the rows that they were fitted on, too
    """
    from featx.solvers import budget_of, device_of  # torch, which takes seconds to import

    every = np.arange(_num_samples(X))
    starts: dict[Any, int] = {}
    for entry in entries:
        if entry.steps:
            starts[entry.steps[0].key] = starts.get(entry.steps[0].key, 0) + 1
    roots: dict[Any, Root] = {}
    stock = []
    n_train, n_test = (max((len(every[split[side]]) for split in splits), default=0) for side in (0, 1))
    if any(not len(every[part]) for split in splits for part in split):
        entries = [entry if entry.stock else _left(entry, "a fold has no rows") for entry in entries]
    once = all(len(np.unique(train)) == len(train) for train, _ in splits)
    for entry in entries:
        shares = entry.is_batched or (entry.steps and starts[entry.steps[0].key] > 1)
        if entry.stock or not shares:
            stock.append(entry if entry.stock else _left(entry, "it shares no step with another candidate"))
            continue
        steps = _independent(entry, fit_params)
        root = roots.setdefault(tuple(step.key for step in steps), Root(steps))
        rest = root.rest(entry)
        affine = rest[0] if len(rest) == 1 and _is_affine(rest[0].transformer) else None
        if once and entry.is_batched and (affine is not None or not rest) and _is_matrix(X, steps):
            for scaler, together in root.solves:
                same_scaler = (scaler and scaler.key) == (affine and affine.key)
                if same_scaler and together[0].kind == entry.kind:
                    together.append(entry)
                    break
            else:
                root.solves.append((affine, [entry]))
        else:
            root.folded.append(entry)
    n = max(1, len(every))
    of_fold = n_train / n, n_test / n, scores_train * n_train / n
    nbytes = max((_root_bytes(root, X, of_fold) for root in roots.values()), default=0)
    widths = widths_of(entries, X)
    amounts = {
        entry.index: n_train * _amount(entry, width) for entry, width in zip(entries, widths.tolist(), strict=True)
    }
    return Plan(list(roots.values()), stock, len(splits), nbytes, budget_of(device_of("auto"), None), amounts)


def all_stock(plan: Plan, reason: str) -> Plan:
    """The plan with nothing shared."""
    entries = [*plan.stock, *(entry for root in plan.roots for entry in root.entries)]
    return replace(plan, roots=[], stock=[_left(entry, reason) for entry in entries], nbytes=0)


def widths_of(entries: Sequence[Entry], X: Any) -> np.ndarray:
    """(c,) features that the last estimator of each candidate is fitted on; nan where only the rows would tell."""
    return np.array([_width(entry, X) for entry in entries], float)


def _width(entry: Entry, X: Any) -> float:
    shape: tuple[int, ...] = getattr(X, "shape", ())
    if entry.final is None or isinstance(entry.final, Pipeline):
        return float("nan")
    width = float(shape[1]) if len(shape) == 2 else float("nan")
    for step in entry.steps:
        kept = getattr(step.transformer, "n_components", None)
        if isinstance(step.transformer, StoredFeatures):
            width = step.transformer.n_features_out_
        elif isinstance(kept, Integral) and type(step.transformer).__module__.startswith("sklearn.decomposition."):
            width = int(kept)
        elif type(step.transformer) not in (*_AFFINE, Normalizer, PowerTransformer):
            width = float("nan")
    return width


def _amount(entry: Entry, width: float) -> float:
    """What a fit takes a row, in columns."""
    return (0.0 if math.isnan(width) else width) + _FLAT.get(type(entry.final).__name__, 100)


_LONGEST_NAME = 60
# How many columns take as long as what does not depend on their number, where that is not about 100: a kernel is
# computed once, and then solved for. Measured on 2,000 rows of 16 to 1,280 columns.
_FLAT = {"SVC": 1200, "SVR": 1200}
_AFFINE = (StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler)


def _is_affine(transformer: Any) -> bool:
    """Whether it is of one of the types, does nothing else, and gives a plain array."""
    return type(transformer) in _AFFINE and _gives_arrays(transformer) and not getattr(transformer, "clip", False)


def _is_independent(transformer: Any) -> bool:
    """Whether it makes of a row the same whatever it was fitted on, and leaves X as it is."""
    if not _gives_arrays(transformer):
        return False
    return type(transformer) is StoredFeatures or type(transformer) is Normalizer and transformer.copy


def _gives_arrays(transformer: Any) -> bool:
    return not hasattr(transformer, "_sklearn_output_config") and get_config()["transform_output"] == "default"


def _independent(entry: Entry, fit_params: Mapping[str, Any]) -> tuple[Step, ...]:
    """The fold-independent steps it begins with."""
    found: list[Step] = []
    for step in entry.steps:
        told = any(name.startswith(f"{step.name}__") for name in fit_params)
        if told or not _is_independent(step.transformer):
            break
        found.append(step)
    return tuple(found)


def _is_matrix(X: Any, steps: Sequence[Step]) -> bool:
    """Whether the fold-independent steps make a dense array of X, in which folds can be rows of weight 0."""
    if steps and type(steps[0].transformer) is StoredFeatures:
        dtype = np.dtype(_recipe(steps[0].transformer).dtype)
    elif isinstance(X, np.ndarray) and X.ndim == 2 and X.dtype.kind in "fiub":
        dtype = X.dtype
    else:
        return False
    return dtype.kind != "f" or dtype.itemsize >= 4  # scalers round to float16 where X is


def _left(entry: Entry, reason: str) -> Entry:
    return Entry(entry.index, entry.params, entry.estimator, stock=reason)


def _recipe(features: StoredFeatures) -> Recipe:
    return features.store if isinstance(features.store, Recipe) else features.store.recipe


def _root_bytes(root: Root, X: Any, shares: tuple[float, float, float]) -> int:
    """Bytes of the rows that are held at once: all of them, if the steps copy them, and a fold's.

    shares : of all rows, those a fold trains on, holds out, and is scored on besides
    """
    n = _num_samples(X)
    if root.steps and type(root.steps[0].transformer) is StoredFeatures:
        features = root.steps[0].transformer
        whole = n * features.n_features_out_ * np.dtype(_recipe(features).dtype).itemsize
        own = whole
    else:
        shape = getattr(X, "shape", (n, 1))
        dtype = getattr(X, "dtype", np.dtype(float))
        itemsize = dtype.itemsize if getattr(dtype, "kind", "") == "f" else 8  # what estimators make of other numbers
        whole = math.prod(shape) * itemsize
        own = whole if root.steps or itemsize != getattr(dtype, "itemsize", 8) else 0
    held = [shares[1] + shares[2]] if root.solves else []
    if root.folded:  # what a fold's rows are before each step that several ways lead on from, and after the last
        rests = [tuple(step.key for step in root.rest(entry)) for entry in root.folded]
        begun = [len({rest[:depth] for rest in rests}) for depth in range(1 + max(map(len, rests)))]
        ways = sum(few < many for few, many in pairwise(begun))
        held.append(sum(shares) * (2 + ways))
    return own + int(whole * max(held))


def _beginnings(root: Root) -> list[tuple[tuple[Step, ...], list[Entry]]]:
    """Folded entries by the steps after the root's and the estimator's class."""
    found: dict[Any, tuple[tuple[Step, ...], list[Entry]]] = {}
    for entry in root.folded:
        rest = root.rest(entry)
        key = (*(step.key for step in rest), type(entry.final))
        found.setdefault(key, (rest, []))[1].append(entry)
    return list(found.values())


def _fits(entries: Sequence[Entry], n_splits: int) -> str:
    n = len(entries) * n_splits
    return f"{n:,} fit{'s' if n > 1 else ''}"


def _class(entries: Sequence[Entry]) -> str:
    return type(entries[0].final).__name__


def _named(step: Step) -> str:
    if isinstance(step.transformer, StoredFeatures):
        return step.transformer.layer_
    text = " ".join(repr(step.transformer).split()).removesuffix("()")  # with what is not its default
    return text if len(text) <= _LONGEST_NAME else f"{type(step.transformer).__name__}(...)"
