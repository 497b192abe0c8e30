"""A plan and the folds in; what scikit-learn's `_fit_and_score` answers for each candidate and fold out.

What cannot be shared after all (a row that is not finite, a transformer that fails) falls back to scikit-learn, which
says of each candidate what is wrong with it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.model_selection._validation import _fit_and_score
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import _num_samples

from featx.learn.estimators import Fold, Held, Job, scaler_of
from featx.learn.search.candidates import Entry, Step
from featx.learn.search.context import (
    Answer,
    Scores,
    Task,
    copied,
    ended,
    fitted_and_scored,
    may_write,
    pipeline_of,
    scores_of,
)
from featx.learn.search.planner import Plan, Root
from featx.progress import SearchClock


class Rows(NamedTuple):
    """A fold's rows after some steps: to fit on, held out, and as transformed again for their own score (or None)."""

    train: Any
    test: Any
    again: Any


class Run:
    """Follows a plan; `answers` fill as it goes on, so that they are there when it is interrupted.

    clock : expects the plan's work, and is told of it
    """

    def __init__(self, task: Task, plan: Plan, clock: SearchClock) -> None:
        self.task, self.plan, self.clock = task, plan, clock
        self.answers: dict[tuple[int, int], Answer] = {}
        self.n_candidates = len(plan.stock) + sum(len(root.entries) for root in plan.roots)
        self._left: list[tuple[Entry, str]] = [(entry, "") for entry in plan.stock]

    def follow(self) -> list[Answer]:
        """Answers, those of a candidate side by side."""
        self.clock.show()
        for root in self.plan.roots:
            self._follow(root)
        self._follow_stock()
        n_splits = len(self.task.splits)
        return [self.answers[index, split] for index in range(self.n_candidates) for split in range(n_splits)]

    def _follow(self, root: Root) -> None:
        task, entries = self.task, root.entries
        start, rows, fitted = time.perf_counter(), task.X, {}
        try:
            for step in root.steps:
                fitted[step.name] = clone(step.transformer)
                rows = fitted[step.name].fit_transform(rows, task.y)
        except Exception as error:
            self._leave(entries, error)
            return
        share = (time.perf_counter() - start) / (len(entries) * max(1, len(task.splits)))
        for affine, together in root.solves:
            with self.clock.piece(*self.plan.piece(together, len(task.splits))):
                try:
                    self._solve(rows, affine, together, fitted, share)
                except Exception as error:
                    self._leave(together, error)
        for number, (train, test) in enumerate(task.splits if root.folded else ()):
            mine = task.taken(rows, train)
            held = [Rows(mine, task.taken(rows, test), mine if task.return_train_score else None)]
            del mine  # only `held` holds them now
            with self.clock.piece(*self.plan.piece(root.folded, 1)):
                self._descend(root, root.folded, len(root.steps), number, held, fitted, (share, 0.0))

    def _solve(
        self, rows: Any, affine: Step | None, entries: list[Entry], fitted: dict[str, Any], share: float
    ) -> None:
        """One solve over all folds; the scaler of each fold is a shift and a scale of its columns."""
        task = self.task
        if not isinstance(rows, np.ndarray) or rows.ndim != 2:
            raise TypeError(f"rows of all folds are an array of two dimensions; got {type(rows).__name__}")
        positions = [tuple(np.arange(len(rows))[part] for part in split) for split in task.splits]
        used = np.zeros(len(rows), bool)
        for train, test in positions:
            used[train] = used[test] = True
        y, place = task.y, np.arange(len(rows))
        if 2 * used.sum() < len(rows):  # successive halving, a few images a class
            place = used.cumsum() - 1
            rows, y = rows[used], task.taken(y, used.nonzero()[0])
        jobs, of, scaler_shares, folds = [], [], [], []
        for number, (train, test) in enumerate(positions):
            start = time.perf_counter()
            routed = task.routed(entries[0], task.splits[number][0])
            scaler = None
            if affine is not None:
                scaler = scaler_of(
                    affine.transformer,
                    rows,
                    place[train],
                    task.taken(y, place[train]),
                    routed[affine.name].get("fit", {}) if affine.name in routed else {},
                )
            folds.append(
                Held(
                    rows,
                    scaler,
                    place[train],
                    place[test],
                    _weights(entries[0], routed, len(train)),
                    task.return_train_score,
                )
            )
            scaler_shares.append((time.perf_counter() - start) / len(entries))
            for entry in entries:
                jobs.append(Job(clone(entry.final), folds[-1]))
                of.append((entry, number))
        current = None
        for index, model, seconds in type(entries[0].final).fit_each(rows, y, jobs):
            entry, number = of[index]
            if current is not None and current is not folds[number]:
                current.forget()
            current = folds[number]
            fit_time = seconds + scaler_shares[number] + share
            steps = fitted if affine is None else {**fitted, affine.name: current.scaler}
            self._score(entry, number, model, steps, current, fit_time, 0.0)

    def _descend(
        self,
        root: Root,
        entries: list[Entry],
        depth: int,
        split: int,
        held: list[Rows],
        fitted: dict[str, Any],
        shares: tuple[float, float],
    ) -> None:
        """Fit what entries have in common on one fold's rows, then what differs; `held` is let go with its last use."""
        groups: dict[Any, list[Entry]] = {}
        for entry in entries:
            ends = len(entry.steps) == depth
            groups.setdefault(entry.kind if ends else entry.steps[depth].key, []).append(entry)
        for number, group in enumerate(groups.values()):
            rows = held.pop() if number == len(groups) - 1 else held[0]
            try:
                if len(group[0].steps) == depth:
                    self._finish(group, split, rows, fitted, shares)
                else:
                    step = group[0].steps[depth]
                    transformer, moved, seconds = self._moved(group[0], step, split, rows)
                    inner = [moved]
                    del rows, moved
                    taken = tuple(share + part / len(group) for share, part in zip(shares, seconds, strict=True))
                    self._descend(root, group, depth + 1, split, inner, {**fitted, step.name: transformer}, taken)  # type: ignore[arg-type]
            except Exception as error:
                self._leave(group, error)

    def _moved(self, entry: Entry, step: Step, split: int, rows: Rows) -> tuple[Any, Rows, tuple[float, float]]:
        """(fitted transformer, what it makes of the rows, seconds for fitting and for the held-out rows)."""
        train, _ = self.task.splits[split]
        told = self.task.routed(entry, train).get(step.name, {})
        transformer, y = clone(step.transformer), self.task.taken(self.task.y, train)
        if may_write(transformer):
            rows = Rows(*map(copied, rows))
        start = time.perf_counter()
        if hasattr(transformer, "fit_transform"):
            moved = transformer.fit_transform(rows.train, y, **told.get("fit_transform", {}))
        else:
            fitted = transformer.fit(rows.train, y, **told.get("fit", {}))
            moved = fitted.transform(rows.train, **told.get("transform", {}))
        middle = time.perf_counter()
        test = transformer.transform(rows.test)
        end = time.perf_counter()
        again = None if rows.again is None else transformer.transform(rows.again)
        return transformer, Rows(moved, test, again), (middle - start, end - middle)

    def _finish(
        self, entries: list[Entry], split: int, rows: Rows, fitted: dict[str, Any], shares: tuple[float, float]
    ) -> None:
        """The last estimators of one class, on a fold's rows."""
        task, (train, _) = self.task, self.task.splits[split]
        y = task.taken(task.y, train)
        routed = task.routed(entries[0], train)
        fit_share, score_share = shares
        if entries[0].is_batched:
            n = _num_samples(rows.train)
            also = () if rows.again is None else (rows.again,)
            fold = Fold(np.arange(n), rows.test, sample_weight=_weights(entries[0], routed, n), also=also)
            jobs = [Job(clone(entry.final), fold) for entry in entries]
            for index, model, seconds in type(entries[0].final).fit_each(rows.train, y, jobs):
                self._score(entries[index], split, model, fitted, fold, seconds + fit_share, score_share)
            return
        scored = Parallel(n_jobs=task.n_jobs, pre_dispatch=task.pre_dispatch, return_as="generator")(
            delayed(fitted_and_scored)(
                clone(entry.final),
                rows.train,
                y,
                routed.get(entry.final_name, {}).get("fit", {}),
                pipeline_of(entry, fitted) if task.scores_whole else None,
                self.task.sides(entry, split, rows.test, rows.again),
                task.scorer,
                task.error_score,
            )
            for entry in entries
        )
        for entry, (fit_time, found) in zip(entries, scored, strict=True):
            self._answer(entry, split, found, fit_time + fit_share, score_share)

    def _score(
        self,
        entry: Entry,
        split: int,
        model: Any,
        fitted: dict[str, Any],
        fold: Fold,
        fit_time: float,
        score_time: float,
    ) -> None:
        """The answer for a fitted model, or for the exception that it ended with."""
        found = model
        if not isinstance(model, Exception):
            whole = self.task.scores_whole
            scored = ended(pipeline_of(entry, fitted), model) if whole and entry.final_name else model
            again = fold.also[0] if self.task.return_train_score and not whole else None
            sides = self.task.sides(entry, split, None if whole else fold.X_test, again)
            found = scores_of(scored, sides, self.task.scorer, self.task.error_score)
        self._answer(entry, split, found, fit_time, score_time)

    def _answer(self, entry: Entry, split: int, found: Scores | Exception, fit_time: float, score_time: float) -> None:
        n_test = _num_samples(self.task.splits[split][1])
        answer: Answer = {"fit_error": None, "n_test_samples": n_test, "fit_time": fit_time}
        if isinstance(found, Exception):
            answer |= self.task.failed(found)
        else:
            answer |= {"test_scores": found.scores[0], "score_time": found.seconds + score_time}
            if self.task.return_train_score:
                answer["train_scores"] = found.scores[1]
        self._keep(entry, split, answer)

    def _keep(self, entry: Entry, split: int, answer: Answer) -> None:
        self.answers[entry.index, split] = answer
        self.clock.fitted()
        if self.task.verbose > 1 and not entry.stock:
            print(self.task.said(entry, split, answer))

    def _leave(self, entries: Iterable[Entry], error: Exception) -> None:
        """Have scikit-learn fit and score what has no score yet."""
        known = {id(entry) for entry, _ in self._left}
        reason = (
            f"{type(error).__name__}: {' '.join(str(error).split())}"  # not the error, which would hold on to the rows
        )
        self._left += [(entry, reason) for entry in entries if id(entry) not in known]

    def _follow_stock(self) -> None:
        task = self.task
        n_splits = len(task.splits)
        todo = [
            (entry, split, error)
            for entry, error in sorted(self._left, key=lambda left: left[0].index)
            for split in range(n_splits)
            if (entry.index, split) not in self.answers
        ]
        answers = Parallel(n_jobs=task.n_jobs, pre_dispatch=task.pre_dispatch, return_as="generator")(
            delayed(_fit_and_score)(
                clone(task.base),
                task.X,
                task.y,
                train=task.splits[split][0],
                test=task.splits[split][1],
                parameters=entry.params,
                split_progress=(split, n_splits),
                candidate_progress=(entry.index, self.n_candidates),
                scorer=task.scorer,
                fit_params=task.fit_params,
                score_params=task.score_params,
                return_train_score=task.return_train_score,
                return_n_test_samples=True,
                return_times=True,
                return_parameters=False,
                error_score=task.error_score,
                verbose=task.verbose,
            )
            for entry, split, _ in todo
        )
        unshared = {}
        for entry, split, error in todo:
            with self.clock.piece(*self.plan.piece([entry], 1)):
                answer = next(answers)
            self._keep(entry, split, answer)
            if error and answer["fit_error"] is None:
                unshared[entry.index] = error
        next(answers, None)  # which ends the generator
        if unshared:
            warnings.warn(
                f"{len(unshared):,} of {self.n_candidates:,} candidates could not share their work and were left to "
                f"scikit-learn's search, which is slower: "
                f"{next(iter(unshared.values()))}",
                RuntimeWarning,
                stacklevel=4,
            )


def _weights(entry: Entry, routed: Mapping[str, Mapping[str, Any]], n: int) -> np.ndarray | None:
    """(n,) sample weights of the last estimator."""
    params = routed.get(entry.final_name, {}).get("fit", {})
    if params.keys() - {"sample_weight"}:
        raise ValueError(f"{type(entry.final).__name__} is given {', '.join(params)}")
    given = params.get("sample_weight")
    if given is None:
        return None
    weights = np.asarray(given, np.float64)
    if weights.ndim and weights.shape != (n,):
        raise ValueError(f"sample_weight.shape == {weights.shape}, expected {(n,)}!")
    return np.broadcast_to(weights, n)
