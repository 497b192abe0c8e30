"""What a search asks of all candidates alike, and how a fitted one is scored; a leaf of `runs`."""

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
from sklearn.metrics._scorer import _BaseScorer, _MultimetricScorer, _PassthroughScorer
from sklearn.model_selection._validation import _score
from sklearn.utils import _safe_indexing
from sklearn.utils._metadata_requests import _routing_enabled
from sklearn.utils.validation import _check_method_params

from featx.learn.search.candidates import Entry

Answer = dict[str, Any]  # as of `_fit_and_score`


@dataclass(frozen=True, eq=False)
class Task:
    """What a search asks of all candidates alike; fields as of scikit-learn's search and of `_fit_and_score`."""

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
        """Whether scorers must see the whole pipeline and X as it came.

        Else the last estimator will do, with what the steps before it made of the rows.
        """
        scorers = self.scorer._scorers.values() if isinstance(self.scorer, _MultimetricScorer) else [self.scorer]
        known = all(isinstance(scorer, _BaseScorer | _PassthroughScorer) for scorer in scorers)
        return not known or _routing_enabled()

    def taken(self, values: Any, rows: Any) -> Any:
        return None if values is None else _safe_indexing(values, rows)

    def routed(self, entry: Entry, train: Any) -> dict[str, dict[str, dict[str, Any]]]:
        """What the methods of steps ("" for an estimator alone) are given when a fold is fitted, by their names."""
        params = _check_method_params(self.X, params=self.fit_params, indices=train)
        if not entry.steps and not entry.final_name:
            return {"": {"fit": params}}
        routed = entry.estimator._check_method_params(method="fit", props=params) if params else {}
        found = {}
        for name, told in routed.items():
            found[name] = {method: dict(given) for method, given in told.items()}
            found[name].setdefault("fit", found[name].get("fit_transform", {}))  # of scalers, which are only fitted
        return found

    def sides(self, entry: Entry, split: int, held_out: Any, again: Any) -> list[Side]:
        """What a model is scored on: rows held out, as steps made them or as they came; those trained on too."""
        sides = []
        whole = self.scores_whole
        train, test = self.splits[split]
        for rows, indices in ((held_out, test), (again, train))[: 1 + self.return_train_score]:
            params = _check_method_params(self.X, params=self.score_params, indices=indices)
            sides.append(Side(self.taken(self.X, indices) if whole else rows, self.taken(self.y, indices), params))
        return sides

    def said(self, entry: Entry, split: int, answer: Answer) -> str:
        """What `_fit_and_score` prints at the end of a fit."""
        said = ", ".join(f"{name}={entry.params[name]}" for name in sorted(entry.params)) + (
            ";" if entry.params else ""
        )
        test, train = answer["test_scores"], answer.get("train_scores")
        if self.verbose > 2 and isinstance(test, dict):
            for name in sorted(test):
                said += f" {name}: ({'' if train is None else f'train={train[name]:.3f}, '}test={test[name]:.3f})"
        elif self.verbose > 2:
            said += f" score={f'{test:.3f}' if train is None else f'(train={train:.3f}, test={test:.3f})'}"
        said += f" total time={short_format_time(answer['fit_time'] + answer['score_time'])}"
        begun = "[CV" + (f" {split + 1}/{len(self.splits)}" if self.verbose > 2 else "") + "] END "
        return begun + "." * (80 - len(begun) - len(said)) + said

    def failed(self, error: Exception) -> Answer:
        """What is answered for a fit that ended with an error."""
        if self.error_score == "raise":
            raise error
        scores: Any = self.error_score
        if isinstance(self.scorer, _MultimetricScorer):
            scores = dict.fromkeys(self.scorer._scorers, self.error_score)
        answer = {"fit_error": "".join(traceback.format_exception(error)), "test_scores": scores, "score_time": 0.0}
        if self.return_train_score:
            answer["train_scores"] = scores.copy() if isinstance(scores, dict) else scores
        return answer


class Side(NamedTuple):
    """Rows to score on, their y, and what the scorer is told of them."""

    rows: Any
    y: Any
    params: Mapping[str, Any]


class Scores(NamedTuple):
    """A model's, of each side; the seconds for those held out."""

    scores: list[Any]
    seconds: float


def fitted_and_scored(
    estimator: Any,
    X: Any,
    y: Any,
    params: Mapping[str, Any],
    pipeline: Any,
    sides: Sequence[Side],
    scorer: Any,
    error_score: Any,
) -> tuple[float, Scores | Exception]:
    """(seconds for the fit, scores of the estimator or of the pipeline that it ends; or why it cannot be fitted)."""
    if may_write(estimator):  # others are fitted on the same rows, and in other processes they cannot be written to
        X, y = copied(X), copied(y)
        sides = [side._replace(rows=copied(side.rows)) for side in sides]
    start = time.perf_counter()
    try:
        estimator.fit(X, **params) if y is None else estimator.fit(X, y, **params)
    except Exception as error:
        return time.perf_counter() - start, error
    seconds = time.perf_counter() - start
    scored = estimator if pipeline is None else ended(pipeline, estimator)
    return seconds, scores_of(scored, sides, scorer, error_score)


def may_write(estimator: Any) -> bool:
    """Whether it might change the rows that it is given: of scikit-learn and our own, where it is told that it may."""
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
    return rows.copy() if hasattr(rows, "copy") else deepcopy(rows)


def scores_of(estimator: Any, sides: Sequence[Side], scorer: Any, error_score: Any) -> Scores:
    scores, seconds = [], 0.0
    for side in sides:
        start = time.perf_counter()
        scores.append(_score(estimator, side.rows, side.y, scorer, side.params, error_score))
        seconds = seconds or time.perf_counter() - start
    return Scores(scores, seconds)


def pipeline_of(entry: Entry, fitted: Mapping[str, Any]) -> Any:
    """The candidate's pipeline with its steps fitted, but for the last."""
    pipeline = copy(entry.estimator)
    pipeline.steps = [(name, fitted.get(name, step)) for name, step in entry.estimator.steps]
    return pipeline


def ended(pipeline: Any, final: Any) -> Any:
    """The same with its last step."""
    pipeline.steps[-1] = (pipeline.steps[-1][0], final)
    return pipeline
