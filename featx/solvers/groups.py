"""Problems are split into subproblems, and these put in groups that share one basis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from featx.errors import FeatxError
from featx.solvers.affine import MAX_SCALE_RATIO, values_or
from featx.solvers.interning import ArrayNumbers
from featx.solvers.losses.base import ClassificationLoss
from featx.solvers.problems import FREE, NONE, Problem

_ODD = 0.02  # the part of the columns whose scales may be far apart in problems that share rows


@dataclass(frozen=True, eq=False)
class Subproblem:
    """A whole problem, or one class against the rest.

    number : number of the problem
    live : the classes that have rows of positive weight
    positive : the class of the single column of scores; -1 if there are several columns
    arrays : which subproblems have equal weights, or equal shift and scale
    """

    number: int
    problem: Problem
    live: tuple[int, ...]
    positive: int
    arrays: ArrayNumbers

    @property
    def k(self) -> int:
        return 1 if self.positive >= 0 else len(self.live)

    @property
    def factor(self) -> float:
        """Factor of the weights of the positive class."""
        factors = self.problem.class_factors
        return 1.0 if factors is None or len(self.live) == 2 else float(factors[self.positive])


def subproblems_of(
    number: int, problem: Problem, arrays: ArrayNumbers, y: np.ndarray, loss: ClassificationLoss, dtype: np.dtype
) -> Iterator[Subproblem]:
    shares = None if problem.weights is None else problem.weights / problem.weights.sum()
    live = tuple(np.unique(y if shares is None else y[shares.astype(dtype) > 0]).tolist())
    if len(live) < 2:
        raise FeatxError(f"a classifier needs rows of two classes or more; problem {number} has {len(live)}")
    if len(live) == 2:
        columns: tuple[int, ...] = (live[1],)
    else:
        columns = (-1,) if loss.joint else live
    return (Subproblem(number, problem, live, positive, arrays) for positive in columns)


def groups_of(subproblems: list[Subproblem], shape: tuple[int, ...], most_affine: int) -> list[list[Subproblem]]:
    """Subproblems of the same columns of scores that one basis suits, with at most `most_affine` shifts and scales."""
    groups: list[list[Subproblem]] = []
    for subproblem in subproblems:
        for group in groups:
            first = group[0]
            same_columns = subproblem.k == first.k and (subproblem.k == 1 or subproblem.live == first.live)
            if same_columns and _share_rows(subproblem, first, shape) and _has_room(group, subproblem, most_affine):
                group.append(subproblem)
                break
        else:
            groups.append([subproblem])
    return groups


def _has_room(group: list[Subproblem], subproblem: Subproblem, most_affine: int) -> bool:
    affine = {other.arrays.affine for other in group}
    return len(affine) < most_affine or subproblem.arrays.affine in affine


def _share_rows(a: Subproblem, b: Subproblem, shape: tuple[int, ...]) -> bool:
    """Whether two problems can work on the same shifted and scaled rows."""
    n, d = shape
    one, other, intercept = a.problem, b.problem, a.problem.intercept
    if intercept != other.intercept:
        return False
    if a.arrays.affine == b.arrays.affine:
        return True
    if n < d:  # the span of the rows depends on the scale, and on the shift unless a free intercept makes up for it
        return intercept == FREE and a.arrays.scale == b.arrays.scale
    ratio = values_or(one.scale, 1.0, d) / values_or(other.scale, 1.0, d)
    if ratio.min() <= 0 or (np.abs(np.log(ratio)) > np.log(MAX_SCALE_RATIO)).mean() > _ODD:
        return False
    if intercept == FREE or a.arrays.shift == b.arrays.shift:
        return True
    moved = (values_or(one.shift, 0.0, d) - values_or(other.shift, 0.0, d)) / values_or(other.scale, 1.0, d)
    return intercept != NONE and bool(np.abs(moved).max() <= 1)


def by_weights(group: list[Subproblem]) -> list[Subproblem]:
    """The same subproblems, those of equal weights next to one another."""
    order = {subproblem.arrays.weights: position for position, subproblem in reversed(list(enumerate(group)))}
    return sorted(group, key=lambda subproblem: order[subproblem.arrays.weights])


def weights_of(group: list[Subproblem]) -> dict[int, np.ndarray | None]:
    """The different weights of a group, by their numbers."""
    return {subproblem.arrays.weights: subproblem.problem.weights for subproblem in group}


def row_order(group: list[Subproblem], kept: np.ndarray | None) -> np.ndarray | None:
    """Positions of the kept rows, ordered so that each problem's rows of weight 0 are next to one another.

    A pass can leave such a run of rows out for the problem.
    """
    weights = [s if kept is None else s[kept] for s in weights_of(group).values() if s is not None]
    if all(s.all() for s in weights):
        return kept
    order = np.lexsort([s > 0 for s in weights])
    return order if kept is None else kept[order]


def mean_weights(group: list[Subproblem], n: int) -> np.ndarray:
    """(n,) row weights summed over all subproblems, for the shared shift and second moments."""
    counts = Counter(subproblem.arrays.weights for subproblem in group)
    total = np.zeros(n)
    for number, weights in weights_of(group).items():
        count = counts[number]
        total += count / n if weights is None else count * np.asarray(weights, np.float64) / weights.sum()
    return total
