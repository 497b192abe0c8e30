"""Problems in, groups of them out that one design serves, and the order of members and rows in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from featx.errors import FeatxError
from featx.solvers.affine import MOST_APART, equal, values_of
from featx.solvers.problems import FREE, NONE, Loss, Problem

_ODD = 0.02  # of the columns may be scaled far apart in problems that share rows


@dataclass(frozen=True, eq=False)
class Member:
    """A problem of the batch: a whole one, or one class of a problem that is solved one against the rest."""

    number: int
    problem: Problem
    live: tuple[int, ...]  # the classes that have rows
    positive: int  # of one column

    @property
    def k(self) -> int:
        return 1 if self.positive >= 0 else len(self.live)


def members_of(number: int, problem: Problem, y: np.ndarray, loss: Loss, dtype: np.dtype) -> Iterator[Member]:
    held = None if problem.weights is None else problem.weights / problem.weights.sum()
    live = tuple(np.unique(y if held is None else y[held.astype(dtype) > 0]).tolist())
    if len(live) < 2:
        raise FeatxError(f"a classifier needs rows of two classes or more; problem {number} has {len(live)}")
    if len(live) == 2:
        yield Member(number, problem, live, live[1])
    elif loss is Loss.LOGISTIC:
        yield Member(number, problem, live, -1)
    else:
        yield from (Member(number, problem, live, positive) for positive in live)


def families_of(members: list[Member], shape: tuple[int, ...], most_scales: int) -> list[list[Member]]:
    """Members that one design serves well, and that have the same form; `most_scales` different shifts and scales."""
    families: list[list[Member]] = []
    for member in members:
        for family in families:
            first = family[0]
            same_form = member.k == first.k and (member.k == 1 or member.live == first.live)
            if same_form and _share(member.problem, first.problem, shape) and _has_room(family, member, most_scales):
                family.append(member)
                break
        else:
            families.append([member])
    return families


def _has_room(family: list[Member], member: Member, most_scales: int) -> bool:
    scales = {(id(other.problem.shift), id(other.problem.scale)) for other in family}
    return len(scales) < most_scales or (id(member.problem.shift), id(member.problem.scale)) in scales


def _share(a: Problem, b: Problem, shape: tuple[int, ...]) -> bool:
    """Whether two problems can work on the same rows."""
    n, d = shape
    if a.intercept != b.intercept:
        return False
    if equal(a.shift, b.shift) and equal(a.scale, b.scale):
        return True
    if n < d:  # the span of the rows is only exact for one shift and scale
        return a.intercept == FREE and equal(a.scale, b.scale)
    ratio = values_of(a.scale, 1.0, d) / values_of(b.scale, 1.0, d)
    if ratio.min() <= 0 or (np.abs(np.log(ratio)) > np.log(MOST_APART)).mean() > _ODD:
        return False
    if a.intercept == FREE or equal(a.shift, b.shift):
        return True
    moved = (values_of(a.shift, 0.0, d) - values_of(b.shift, 0.0, d)) / values_of(b.scale, 1.0, d)
    return a.intercept != NONE and bool(np.abs(moved).max() <= 1)


def by_weights(family: list[Member]) -> list[Member]:
    """Those that have the same weights next to one another."""
    order = {id(member.problem.weights): number for number, member in reversed(list(enumerate(family)))}
    return sorted(family, key=lambda member: order[id(member.problem.weights)])


def together(family: list[Member], kept: np.ndarray | None, n: int) -> np.ndarray | None:
    """Positions of the rows, those that matter to the same problems next to one another: they can be left out then."""
    weights = {id(member.problem.weights): member.problem.weights for member in family}
    given = [held if kept is None else held[kept] for held in weights.values() if held is not None]
    if all(held.all() for held in given):
        return kept
    order = np.lexsort([held > 0 for held in given])
    return order if kept is None else kept[order]


def mean_weights(family: list[Member], n: int) -> np.ndarray:
    """(n,) what rows weigh over all members, for the shared shift and second moments."""
    counted: dict[int, tuple[np.ndarray | None, int]] = {}
    for member in family:
        weights = member.problem.weights
        counted[id(weights)] = (weights, counted.get(id(weights), (None, 0))[1] + 1)
    total = np.zeros(n)
    for weights, count in counted.values():
        total += count / n if weights is None else count * np.asarray(weights, np.float64) / weights.sum()
    return total


def factor_of(member: Member) -> float:
    factors = member.problem.class_factors
    return 1.0 if factors is None or len(member.live) == 2 else float(factors[member.positive])
