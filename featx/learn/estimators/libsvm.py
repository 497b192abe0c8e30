"""Solve many support vector machines on rows of one matrix with libsvm.

Libsvm solves one problem per pair of classes. The kernel matrix of a pair is computed once for all problems that share
it, whatever their fold and C: rows outside the fold have weight 0, which libsvm ignores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from featx.learn._sklearn import libsvm

if TYPE_CHECKING:
    from torch import Tensor

    from featx.learn.estimators.kernels import Gram, Kernel


BYTES = 20  # per pair of rows: their distance or product, the kernel, and libsvm's cache of it


@dataclass(frozen=True, eq=False)
class Machine:
    """One model to fit.

    settings : libsvm's C, tol, epsilon, shrinking, max_iter, cache_size, svm_type
    weights : (n,) row weights; rows of weight 0 or less are ignored
    class_weight : (k,) factors of C, or None
    order : number of the order of its rows; machines with the same number have the same `rank`
    rank : (n,) position of each row in that order, or None for the order as it is
        Another order ends at another solution, within `tol`.
    """

    kernel: Kernel
    settings: dict[str, Any]
    weights: np.ndarray
    class_weight: np.ndarray | None = None
    order: int = 0
    rank: np.ndarray | None = None


@dataclass(eq=False)
class Solved:
    """The solutions of one machine: `pairs` maps each pair of classes to its problem, (0, 0) for a regression."""

    pairs: dict[tuple[int, int], Problem] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return sum(problem.seconds for problem in self.pairs.values())


@dataclass(frozen=True, eq=False)
class Problem:
    """The solution of one problem.

    support : (s,) positions of the support vectors
    coef : (s,) their coefficients
    """

    support: np.ndarray
    coef: np.ndarray
    intercept: float
    status: int
    n_iter: int
    seconds: float


def workers_within(budget: int, rows: int, pair: int) -> tuple[bool, int]:
    """(whether all distances are kept, number of kernel matrices that fit the budget at a time).

    rows : number of rows that have distances
    pair : largest number of rows of two classes
    """
    one = BYTES * pair * pair
    for kept in (True, False):
        rest = budget - kept * 8 * rows * rows
        if rest >= one:
            return kept, rest // max(1, one)
    return False, 0


def solve(
    gram: Gram, y: np.ndarray, bounds: np.ndarray | None, machines: Sequence[Machine], most_workers: int
) -> list[Solved]:
    """Solve all machines, `most_workers` problems (or kernel matrices) at a time.

    gram : Gram of (n, d) rows, sorted by class
    y : (n,) float64 targets of a regression
    bounds : (k + 1,) position where each class begins, and where the last one ends; None for a regression
    """
    libsvm.set_verbosity_wrap(0)
    solved = [Solved() for _ in machines]
    alike: dict[tuple[Kernel, int | None], list[int]] = {}
    for number, machine in enumerate(machines):
        alike.setdefault((machine.kernel, None if machine.rank is None else machine.order), []).append(number)
    pairs = [(0, 0)] if bounds is None else list(combinations(range(len(bounds) - 1), 2))
    units = [_Unit(gram, y, bounds, pair, kernel, members) for pair in pairs for (kernel, _), members in alike.items()]
    from torch import get_num_threads

    workers = min(most_workers, get_num_threads())

    def whole(unit: _Unit) -> list[Problem | None]:
        return list(map(unit.solver(machines), unit.members))

    with ThreadPoolExecutor(workers) as pool:
        if len(units) >= 2 * workers and len(pairs) > 1:
            solutions: Any = pool.map(whole, units)
        else:  # few, and each is large
            solutions = (list(pool.map(unit.solver(machines), unit.members)) for unit in units)
        for unit, problems in zip(units, solutions, strict=True):
            for number, problem in zip(unit.members, problems, strict=True):
                if problem is not None:
                    solved[number].pairs[unit.pair] = problem
    return solved


@dataclass(frozen=True, eq=False)
class _Unit:
    """Problems that share a kernel matrix: one pair of classes, one kernel."""

    gram: Gram
    y: np.ndarray
    bounds: np.ndarray | None
    pair: tuple[int, int]
    kernel: Kernel
    members: list[int]

    def solver(self, machines: Sequence[Machine]) -> Callable[[int], Problem | None]:
        """Compute the kernel matrix; returns a function that solves a machine's problem with it."""
        from featx.learn.estimators.kernels import fill

        began = perf_counter()
        bounds = np.array([0, len(self.y)]) if self.bounds is None else self.bounds
        slices = [slice(int(bounds[c]), int(bounds[c + 1])) for c in dict.fromkeys(self.pair)]
        wanted = np.zeros(len(self.y), bool)
        for number in self.members:
            wanted |= machines[number].weights > 0
        # if most rows have weight 0 they are left out, which is faster; otherwise libsvm skips them
        rank = machines[self.members[0]].rank
        few = rank is not None or np.concatenate([wanted[part] for part in slices]).mean() < 0.5
        keep = [np.flatnonzero(wanted[part]) if few else np.arange(part.stop - part.start) for part in slices]
        if rank is not None:
            keep = [kept[rank[part][kept].argsort()] for part, kept in zip(slices, keep, strict=True)]
        at = np.concatenate([part.start + kept for part, kept in zip(slices, keep, strict=True)])
        K = np.empty((len(at), len(at)))
        parts = [[self.gram.among(a, b) for b in slices] for a in slices]
        fill(K, self.kernel, parts, [kept if few else None for kept in keep])
        share = (perf_counter() - began) / len(self.members)
        target = self.y[at] if self.bounds is None else np.repeat([0.0, 1.0], [len(kept) for kept in keep])

        def problem(number: int) -> Problem | None:
            began = perf_counter()
            machine = machines[number]
            weights = machine.weights[at]
            (rows,) = (weights > 0).nonzero()
            if self.bounds is not None and not 0 < np.count_nonzero(target[rows]) < len(rows):
                return None  # the machine does not have one of the classes
            factors = None if machine.class_weight is None else machine.class_weight[list(self.pair)]
            settings = dict(machine.settings)
            room = 4 * len(rows) * (len(rows) + 16) / 2**20 + 1  # MiB, for the whole matrix
            settings["cache_size"] = max(settings["cache_size"], room)
            support, _, _, coef, intercept, _, _, status, n_iter = libsvm.fit(
                K,
                target,
                kernel="precomputed",
                gamma=0.0,
                sample_weight=weights,
                **({} if factors is None else {"class_weight": factors}),
                **settings,
            )
            return Problem(
                support=at[rows[support]],  # libsvm indexes the rows that have weight
                coef=coef[0],
                intercept=float(intercept[0]),
                status=status,
                n_iter=int(n_iter[0]),
                seconds=share + perf_counter() - began,
            )

        return problem


@dataclass(frozen=True, eq=False)
class Duals:
    """The coefficients of a machine, in libsvm's layout.

    dual : (k - 1, n), one against one; (1, n) for a regression
    spans : k slices, the rows of each class, which may be empty; one slice for a regression
    intercept : (k (k - 1) / 2,)
    """

    dual: np.ndarray
    spans: list[slice]
    intercept: np.ndarray
    n_iter: np.ndarray | None = None
    status: int = 0


def together(solved: Solved, n: int, classes: Sequence[int], spans: list[slice]) -> Duals:
    """Put the problems of a machine with these classes together; n is the number of rows."""
    number = {c: i for i, c in enumerate(classes)}
    problems = [solved.pairs[pair] for pair in sorted(solved.pairs)]
    dual = np.zeros((max(1, len(classes) - 1), n))
    for pair, problem in zip(sorted(solved.pairs), problems, strict=True):
        if len(classes) == 1:
            dual[0, problem.support] = problem.coef
            continue
        first, second = number[pair[0]], number[pair[1]]
        split = int(np.count_nonzero(problem.coef > 0))  # those of the first class are first, and positive
        dual[second - 1, problem.support[:split]] = problem.coef[:split]
        dual[first, problem.support[split:]] = problem.coef[split:]
    return Duals(
        dual,
        spans,
        np.array([problem.intercept for problem in problems]),
        np.array([problem.n_iter for problem in problems], np.int32),
        max(problem.status for problem in problems),
    )


def decisions(blocks: Iterator[tuple[slice, Tensor]], rows: int, kernel: Kernel, machines: list[Duals]) -> list[Any]:
    """(rows, k (k - 1) / 2) decisions of each machine, from blocks of distances or products."""
    import torch

    from featx.solvers import full_precision, threads_for

    decided = [np.empty((rows, len(machine.intercept))) for machine in machines]
    stacked: Tensor | None = None
    offsets = np.cumsum([0, *(len(machine.dual) for machine in machines)])
    for part, block in blocks:
        # numpy's exp takes a third of torch's time
        K = torch.from_numpy(kernel.apply_(block.numpy())) if block.device.type == "cpu" else kernel.apply_(block)
        if stacked is None:
            stacked = torch.from_numpy(np.concatenate([machine.dual for machine in machines])).to(K)  # (R, n)
        sums: dict[tuple[int, int], np.ndarray] = {}
        for answer, machine, offset in zip(decided, machines, offsets, strict=False):
            for span in machine.spans:
                if (span.start, span.stop) not in sums:  # once for all machines that have these rows as a class
                    left, right = K[:, span], stacked[:, span]
                    with full_precision(), threads_for(2 * len(left) * right.numel()):
                        sums[span.start, span.stop] = (left @ right.T).double().cpu().numpy()
            of = [sums[span.start, span.stop][:, offset : offset + len(machine.dual)] for span in machine.spans]
            if len(of) == 1:
                answer[part] = of[0] + machine.intercept
                continue
            for p, (i, j) in enumerate(combinations(range(len(of)), 2)):
                answer[part, p] = of[i][:, j - 1] + of[j][:, i] + machine.intercept[p]
    return decided
