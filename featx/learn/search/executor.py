"""Follow a plan: fit and score all candidates on all folds, sharing what the plan says.

What cannot be shared after all (a row that is not finite, a transformer that fails) falls back to scikit-learn, which
reports for each candidate what is wrong with it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from joblib.parallel import get_active_backend
from sklearn.base import clone
from sklearn.utils.parallel import Parallel, delayed

from featx.learn._sklearn import num_samples, sklearn_fit_and_score
from featx.learn.estimators import Fold, Job, ScoredRows, affine_of, scaled, scaler_of
from featx.learn.features import FeatureRows
from featx.learn.lazy_rows import LazyRows, rows_at
from featx.learn.search.candidates import SearchCandidate, Step
from featx.learn.search.context import (
    FoldResult,
    Scores,
    SearchContext,
    copied,
    fit_and_score,
    may_write,
    scores_of,
    with_final,
    with_fitted_steps,
)
from featx.learn.search.planner import Plan, SharedPrefix
from featx.progress import SearchClock


class FoldRows(NamedTuple):
    """A fold's rows after some steps: to fit on, held out, and transformed again for the training score (or None)."""

    train: Any
    test: Any
    again: Any

    @property
    def scored(self) -> tuple[Any, ...]:
        return (self.test,) if self.again is None else (self.test, self.again)


class Times(NamedTuple):
    """A candidate's share of the seconds that its steps took."""

    fit: float = 0.0
    score: float = 0.0


class Executor:
    """Fits and scores the candidates of a plan; `results` fills as it proceeds and survives an interrupt.

    results : {(index of the candidate, number of the fold): its scores and times}
    clock : expects the plan's work, and is told of each fit
    on_fit : called with each line that `verbose` asks for
    """

    def __init__(self, context: SearchContext, plan: Plan, clock: SearchClock, on_fit: Callable[[str], None]) -> None:
        self.context, self.plan, self.clock, self.on_fit = context, plan, clock, on_fit
        self.results: dict[tuple[int, int], FoldResult] = {}
        self.n_candidates = len(plan.fallback) + sum(len(prefix.candidates) for prefix in plan.prefixes)
        # the candidates that scikit-learn fits, by index, and the error that kept them from sharing
        self._fallback: dict[int, tuple[SearchCandidate, str]] = {each.index: (each, "") for each in plan.fallback}

    def run(self) -> list[FoldResult]:
        """Results of all candidates, the folds of each side by side."""
        self.clock.show()
        for prefix in self.plan.prefixes:
            self._fit_prefix(prefix)
        self._fit_fallback()
        n_splits = len(self.context.splits)
        return [self.results[index, split] for index in range(self.n_candidates) for split in range(n_splits)]

    def _fit_prefix(self, prefix: SharedPrefix) -> None:
        context, candidates = self.context, prefix.candidates
        start, rows, fitted = time.perf_counter(), context.X, {}
        try:
            for step in prefix.steps:
                fitted[step.name] = clone(step.transformer)
                rows = fitted[step.name].fit_transform(rows, context.y)
        except Exception as error:
            self._fall_back(candidates, error)
            return
        seconds = (time.perf_counter() - start) / (len(candidates) * max(1, len(context.splits)))
        for affine, together in prefix.solves:
            with self.clock.piece(*self.plan.piece(together, len(context.splits))):
                try:
                    self._solve(rows, affine, together, fitted, seconds)
                except Exception as error:
                    self._fall_back(together, error)
        for split, (train, test) in enumerate(context.splits if prefix.by_fold else ()):
            of_train = context.rows(rows, train)
            again = of_train if context.return_train_score else None
            last_reference = [FoldRows(of_train, context.rows(rows, test), again)]
            del of_train, again
            with self.clock.piece(*self.plan.piece(prefix.by_fold, 1)):
                self._descend(prefix.by_fold, len(prefix.steps), split, last_reference, fitted, Times(seconds))

    def _solve(
        self, rows: Any, affine: Step | None, candidates: list[SearchCandidate], fitted: dict[str, Any], seconds: float
    ) -> None:
        """One solve over all folds; the scaler of each fold is a shift and a scale of its columns."""
        context = self.context
        if not isinstance(rows, np.ndarray | LazyRows) or rows.ndim != 2:
            raise TypeError(f"rows of all folds are an array of two dimensions; got {type(rows).__name__}")
        positions = [tuple(np.arange(len(rows))[part] for part in split) for split in context.splits]
        is_used = np.zeros(len(rows), bool)
        for train, test in positions:
            is_used[train] = is_used[test] = True
        y, place = context.y, np.arange(len(rows))
        if 2 * is_used.sum() < len(rows):  # successive halving, a few images a class
            place = is_used.cumsum() - 1
            rows, y = rows_at(rows, is_used), context.rows(y, is_used.nonzero()[0])
        jobs, of_job, scalers, folds, scaler_seconds = [], [], [], [], []
        for split, (train, test) in enumerate(positions):
            start = time.perf_counter()
            params = context.step_params(candidates[0], context.splits[split][0])
            scaler, shift, scale = None, None, None
            if affine is not None:
                scaler_params = params.get(affine.name, {}).get("fit", {})
                scaler = scaler_of(affine.transformer, rows, place[train], context.rows(y, place[train]), scaler_params)
                shift, scale = affine_of(scaler)
            parts = [place[test], place[train]] if context.return_train_score else [place[test]]
            scored = ScoredRows(_transformed(rows, scaler, parts))
            weights = _weights(candidates[0], params, len(train))
            folds.append(Fold(split, place[train], scored, place[test], weights, shift, scale))
            scalers.append(scaler)
            scaler_seconds.append((time.perf_counter() - start) / len(candidates))
            for candidate in candidates:
                jobs.append(Job(clone(candidate.final), folds[-1]))
                of_job.append((candidate, split))
        last = None
        for number, model, fit_seconds, view in type(candidates[0].final).fit_each(rows, y, jobs):
            candidate, split = of_job[number]
            if last is not None and last is not folds[split].scored:
                last.release()
            last = folds[split].scored
            steps = fitted if affine is None else {**fitted, affine.name: scalers[split]}
            times = Times(fit_seconds + scaler_seconds[split] + seconds)
            self._score(candidate, split, model, view, steps, folds[split], times)
            jobs[number] = jobs[number]._replace(estimator=None)  # a fitted network is large

    def _descend(
        self,
        candidates: list[SearchCandidate],
        depth: int,
        split: int,
        last_reference: list[FoldRows],
        fitted: dict[str, Any],
        times: Times,
    ) -> None:
        """Fit the steps that candidates share on one fold's rows, then those in which they differ.

        last_reference : the rows, in a list from which they are removed for their last use, so that they can be freed
        """
        groups: dict[Any, list[SearchCandidate]] = {}
        for candidate in candidates:
            is_last = len(candidate.steps) == depth
            groups.setdefault(candidate.kind if is_last else candidate.steps[depth].key, []).append(candidate)
        for number, group in enumerate(groups.values()):
            rows = last_reference.pop() if number == len(groups) - 1 else last_reference[0]
            try:
                if len(group[0].steps) == depth:
                    self._fit_finals(group, split, rows, fitted, times)
                    continue
                step = group[0].steps[depth]
                transformer, transformed, seconds = self._fit_step(group[0], step, split, rows)
                inner = [transformed]
                del rows, transformed
                own = Times(*(sum_ + part / len(group) for sum_, part in zip(times, seconds, strict=True)))
                self._descend(group, depth + 1, split, inner, {**fitted, step.name: transformer}, own)
            except Exception as error:
                self._fall_back(group, error)

    def _fit_step(
        self, candidate: SearchCandidate, step: Step, split: int, rows: FoldRows
    ) -> tuple[Any, FoldRows, Times]:
        """(fitted transformer, the rows that it transformed, seconds for fitting and for the held-out rows)."""
        train, _ = self.context.splits[split]
        params = self.context.step_params(candidate, train).get(step.name, {})
        transformer, y = clone(step.transformer), self.context.rows(self.context.y, train)
        if may_write(transformer):
            rows = FoldRows(*map(copied, rows))
        start = time.perf_counter()
        if hasattr(transformer, "fit_transform"):
            of_train = transformer.fit_transform(rows.train, y, **params.get("fit_transform", {}))
        else:
            fitted = transformer.fit(rows.train, y, **params.get("fit", {}))
            of_train = fitted.transform(rows.train, **params.get("transform", {}))
        middle = time.perf_counter()
        test = transformer.transform(rows.test)
        end = time.perf_counter()
        again = None if rows.again is None else transformer.transform(rows.again)
        return transformer, FoldRows(of_train, test, again), Times(middle - start, end - middle)

    def _fit_finals(
        self, candidates: list[SearchCandidate], split: int, rows: FoldRows, fitted: dict[str, Any], times: Times
    ) -> None:
        """Fit the last estimators, all of one class, on a fold's rows."""
        context, (train, _) = self.context, self.context.splits[split]
        y = context.rows(context.y, train)
        params = context.step_params(candidates[0], train)
        rows = FoldRows(*map(_plain, rows))
        if candidates[0].is_batched:
            n = num_samples(rows.train)
            weights = _weights(candidates[0], params, n)
            fold = Fold(split, np.arange(n), ScoredRows(lambda: rows.scored), sample_weight=weights)
            jobs = [Job(clone(candidate.final), fold) for candidate in candidates]
            for number, model, seconds, view in type(candidates[0].final).fit_each(rows.train, y, jobs):
                own = times._replace(fit=times.fit + seconds)
                self._score(candidates[number], split, model, view, fitted, fold, own)
                jobs[number] = jobs[number]._replace(estimator=None)
            return
        outcomes = _parallel(context)(
            delayed(fit_and_score)(
                clone(candidate.final),
                rows.train,
                y,
                params.get(candidate.final_name, {}).get("fit", {}),
                with_fitted_steps(candidate, fitted) if context.scores_whole else None,
                context.scoring_sets(split, rows.scored),
                context.scorer,
                context.error_score,
            )
            for candidate in candidates
        )
        for candidate, (seconds, outcome) in zip(candidates, outcomes, strict=True):
            self._record(candidate, split, outcome, times._replace(fit=times.fit + seconds))

    def _score(
        self,
        candidate: SearchCandidate,
        split: int,
        model: Any,
        view: Any,
        fitted: dict[str, Any],
        fold: Fold,
        times: Times,
    ) -> None:
        """Score a fitted model, or record the exception in place of it; `view` and the rest are of `Fitted`."""
        context, outcome = self.context, model
        if not isinstance(model, Exception):
            is_whole = context.scores_whole
            scored = model if view is None else view
            if is_whole and candidate.final_name:
                scored = with_final(with_fitted_steps(candidate, fitted), model)
            scoring_sets = context.scoring_sets(split, () if is_whole else fold.matrices)
            outcome = scores_of(scored, scoring_sets, context.scorer, context.error_score)
        self._record(candidate, split, outcome, times)

    def _record(self, candidate: SearchCandidate, split: int, outcome: Scores | Exception, times: Times) -> None:
        n_test = num_samples(self.context.splits[split][1])
        result: FoldResult = {"fit_error": None, "n_test_samples": n_test, "fit_time": times.fit}
        if isinstance(outcome, Exception):
            result |= self.context.failure(outcome)
        else:
            result |= {"test_scores": outcome.scores[0], "score_time": outcome.seconds + times.score}
            if self.context.return_train_score:
                result["train_scores"] = outcome.scores[1]
        self._keep(candidate, split, result)

    def _keep(self, candidate: SearchCandidate, split: int, result: FoldResult) -> None:
        self.results[candidate.index, split] = result
        self.clock.fitted()
        if self.context.verbose > 1 and not candidate.fallback:
            self.on_fit(self.context.fit_message(candidate, split, result))

    def _fall_back(self, candidates: Iterable[SearchCandidate], error: Exception) -> None:
        """Let scikit-learn fit and score what has no result yet."""
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"  # the error itself would keep rows alive
        for candidate in candidates:
            self._fallback.setdefault(candidate.index, (candidate, reason))

    def _fit_fallback(self) -> None:
        context = self.context
        n_splits = len(context.splits)
        fits = [
            (candidate, split, error)
            for index, (candidate, error) in sorted(self._fallback.items())
            for split in range(n_splits)
            if (index, split) not in self.results
        ]
        results = _parallel(context)(
            delayed(sklearn_fit_and_score)(
                clone(context.base),
                context.X,
                context.y,
                train=context.splits[split][0],
                test=context.splits[split][1],
                parameters=candidate.params,
                split_progress=(split, n_splits),
                candidate_progress=(candidate.index, self.n_candidates),
                scorer=context.scorer,
                fit_params=context.fit_params,
                score_params=context.score_params,
                return_train_score=context.return_train_score,
                return_n_test_samples=True,
                return_times=True,
                return_parameters=False,
                error_score=context.error_score,
                verbose=context.verbose,
            )
            for candidate, split, _ in fits
        )
        unshared = {}
        for candidate, split, error in fits:
            with self.clock.piece(*self.plan.piece([candidate], 1)):
                result = next(results)
            self._keep(candidate, split, result)
            if error and result["fit_error"] is None:
                unshared[candidate.index] = error
        next(results, None)  # ends the generator
        if unshared:
            warnings.warn(
                f"{len(unshared):,} of {self.n_candidates:,} candidates could not share their work and were left to "
                f"scikit-learn's search, which is slower: {next(iter(unshared.values()))}",
                RuntimeWarning,
                stacklevel=4,
            )


def _parallel(context: SearchContext) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """joblib's Parallel, which gives results as they come if the user's backend can."""
    backend, _ = get_active_backend()
    return_as = "generator" if backend.supports_return_generator else "list"
    parallel = Parallel(n_jobs=context.n_jobs, pre_dispatch=context.pre_dispatch, return_as=return_as)
    return lambda tasks: iter(parallel(tasks))


def _transformed(rows: Any, scaler: Any, parts: list[np.ndarray]) -> Callable[[], tuple[Any, ...]]:
    """A function that takes these parts of the rows and scales them."""
    return lambda: tuple(scaled(rows_at(rows, part), scaler) for part in parts)


def _plain(rows: Any) -> Any:
    """Rows without their origin; joblib shares memory for plain arrays only."""
    return np.asarray(rows) if isinstance(rows, FeatureRows) else rows


def _weights(candidate: SearchCandidate, step_params: Mapping[str, Mapping[str, Any]], n: int) -> np.ndarray | None:
    """(n,) sample weights of the last estimator."""
    params = step_params.get(candidate.final_name, {}).get("fit", {})
    if params.keys() - {"sample_weight"}:
        raise ValueError(f"{type(candidate.final).__name__} is given {', '.join(params)}")
    sample_weight = params.get("sample_weight")
    if sample_weight is None:
        return None
    weights = np.asarray(sample_weight, np.float64)
    if weights.ndim and weights.shape != (n,):
        raise ValueError(f"sample_weight.shape == {weights.shape}, expected {(n,)}!")
    return np.broadcast_to(weights, n)
