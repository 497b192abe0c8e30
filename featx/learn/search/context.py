"""The data and settings that all candidates of a search share, and how a fitted candidate is scored."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from joblib.logger import short_format_time
from sklearn.base import BaseEstimator

from featx.learn._sklearn import (
    BaseScorer,
    MultimetricScorer,
    PassthroughScorer,
    check_method_params,
    routing_enabled,
    safe_indexing,
    score_estimator,
)
from featx.learn.lazy_rows import LazyRows
from featx.learn.search.candidates import SearchCandidate

FoldResult = dict[str, Any]  # of one candidate on one fold, with the keys of scikit-learn's `_fit_and_score`


@dataclass(frozen=True, eq=False)
class SearchContext:
    """The data, folds and settings of a search; fields are those of scikit-learn's search and `_fit_and_score`."""

    base: Any
    X: Any
    y: Any
    splits: Sequence[tuple[Any, Any]]
    fit_params: Mapping[str, Any]
    score_params: Mapping[str, Any]
    scorer: Any
    return_train_score: bool
    error_score: Any
    verbose: int
    n_jobs: int | None
    pre_dispatch: Any

    @cached_property
    def scores_whole(self) -> bool:
        """Whether scorers must see the whole pipeline and X itself.

        If not, they get the last estimator and the rows that the steps before it make.
        """
        scorers = self.scorer._scorers.values() if isinstance(self.scorer, MultimetricScorer) else [self.scorer]
        are_known = all(isinstance(scorer, BaseScorer | PassthroughScorer) for scorer in scorers)
        return not are_known or routing_enabled()

    def rows(self, values: Any, indices: Any) -> Any:
        return None if values is None else safe_indexing(values, indices)

    def step_params(self, candidate: SearchCandidate, train: Any) -> dict[str, dict[str, dict[str, Any]]]:
        """{step: {method: parameters}} for fitting on a fold; "" is the step of an estimator that is no pipeline."""
        params = check_method_params(self.X, params=self.fit_params, indices=train)
        if not candidate.steps and not candidate.final_name:
            return {"": {"fit": params}}
        routed = candidate.estimator._check_method_params(method="fit", props=params) if params else {}
        by_step = {name: {method: dict(of) for method, of in methods.items()} for name, methods in routed.items()}
        for methods in by_step.values():
            methods.setdefault("fit", methods.get("fit_transform", {}))  # of scalers, which are only fitted
        return by_step

    def scoring_sets(self, split: int, matrices: Sequence[Any]) -> list[ScoringSet]:
        """The rows on which a candidate is scored: held-out rows, and training rows if `return_train_score`.

        matrices : the rows of each as the last estimator takes them; not used where scorers must see X itself
        """
        train, test = self.splits[split]
        sets = []
        for number, indices in enumerate((test, train)[: 1 + self.return_train_score]):
            params = check_method_params(self.X, params=self.score_params, indices=indices)
            rows = self.rows(self.X, indices) if self.scores_whole else matrices[number]
            sets.append(ScoringSet(rows, self.rows(self.y, indices), params))
        return sets

    def fit_message(self, candidate: SearchCandidate, split: int, result: FoldResult) -> str:
        """What scikit-learn prints at the end of a fit."""
        params = ", ".join(f"{name}={candidate.params[name]}" for name in sorted(candidate.params))
        text = params + (";" if params else "")
        test, train = result["test_scores"], result.get("train_scores")
        if self.verbose > 2 and isinstance(test, dict):
            for name in sorted(test):
                text += f" {name}: ({'' if train is None else f'train={train[name]:.3f}, '}test={test[name]:.3f})"
        elif self.verbose > 2:
            text += f" score={f'{test:.3f}' if train is None else f'(train={train:.3f}, test={test:.3f})'}"
        text += f" total time={short_format_time(result['fit_time'] + result['score_time'])}"
        begin = "[CV" + (f" {split + 1}/{len(self.splits)}" if self.verbose > 2 else "") + "] END "
        return begin + "." * (80 - len(begin) - len(text)) + text

    def failure(self, error: Exception) -> FoldResult:
        """The scores of a fit that raised an error; raises it if `error_score` is "raise"."""
        if self.error_score == "raise":
            raise error
        scores: Any = self.error_score
        if isinstance(self.scorer, MultimetricScorer):
            scores = dict.fromkeys(self.scorer._scorers, self.error_score)
        result = {"fit_error": "".join(traceback.format_exception(error)), "test_scores": scores, "score_time": 0.0}
        if self.return_train_score:
            result["train_scores"] = scores.copy() if isinstance(scores, dict) else scores
        return result


class ScoringSet(NamedTuple):
    """Rows to score on, their y, and the scorer's parameters."""

    rows: Any
    y: Any
    params: Mapping[str, Any]


class Scores(NamedTuple):
    """A candidate's score on each scoring set, and the seconds of the first."""

    scores: list[Any]
    seconds: float


def fit_and_score(
    estimator: Any,
    X: Any,
    y: Any,
    params: Mapping[str, Any],
    pipeline: Any,
    scoring_sets: Sequence[ScoringSet],
    scorer: Any,
    error_score: Any,
) -> tuple[float, Scores | Exception]:
    """(seconds of the fit, scores or the error that the fit raised).

    pipeline : what is scored, once the estimator is its last step; None for the estimator itself
    """
    if may_write(estimator):  # other candidates are fitted on the same rows, which other processes cannot write to
        X, y = copied(X), copied(y)
        scoring_sets = [scoring_set._replace(rows=copied(scoring_set.rows)) for scoring_set in scoring_sets]
    start = time.perf_counter()
    try:
        estimator.fit(X, **params) if y is None else estimator.fit(X, y, **params)
    except Exception as error:
        return time.perf_counter() - start, error
    seconds = time.perf_counter() - start
    scored = estimator if pipeline is None else with_final(pipeline, estimator)
    return seconds, scores_of(scored, scoring_sets, scorer, error_score)


def may_write(estimator: Any) -> bool:
    """Whether an estimator might change its input in place: another library's, or one whose parameters allow it."""
    if not type(estimator).__module__.startswith(("sklearn.", "featx.")):
        return True
    for name, value in estimator.get_params().items():
        last = name.rpartition("__")[2].lower()
        if value is False and last in ("copy", "copy_x", "copy_x_train") or value is True and "overwrite" in last:
            return True
        if isinstance(value, BaseEstimator) and not type(value).__module__.startswith(("sklearn.", "featx.")):
            return True
    return False


def copied(rows: Any) -> Any:
    if isinstance(rows, LazyRows):  # which nothing can change
        return rows
    return rows.copy() if hasattr(rows, "copy") else deepcopy(rows)


def scores_of(estimator: Any, scoring_sets: Sequence[ScoringSet], scorer: Any, error_score: Any) -> Scores:
    scores, seconds = [], 0.0
    for scoring_set in scoring_sets:
        start = time.perf_counter()
        scores.append(
            score_estimator(estimator, scoring_set.rows, scoring_set.y, scorer, scoring_set.params, error_score)
        )
        seconds = seconds or time.perf_counter() - start
    return Scores(scores, seconds)


def with_fitted_steps(candidate: SearchCandidate, fitted: Mapping[str, Any]) -> Any:
    """The candidate's pipeline with all steps but the last one fitted."""
    pipeline = copy(candidate.estimator)
    pipeline.steps = [(name, fitted.get(name, step)) for name, step in candidate.estimator.steps]
    return pipeline


def with_final(pipeline: Any, final: Any) -> Any:
    """The same pipeline, its last step replaced."""
    pipeline.steps[-1] = (pipeline.steps[-1][0], final)
    return pipeline
