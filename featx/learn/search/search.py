"""scikit-learn's searches over parameters, with the work of candidates shared.

`candidates` takes candidates apart, `planner` plans what they share and `executor` follows the plan; splitting,
scoring, ranking and all checks are scikit-learn's.
"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy, deepcopy
from typing import Any, ClassVar

import numpy as np
import sklearn.model_selection
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.model_selection import check_cv
from sklearn.utils import check_random_state, indexable

from featx.learn._sklearn import (
    BaseSearchCV,
    MultimetricScorer,
    check_method_params,
    fit_context,
    insert_error_scores,
    warn_or_raise_about_fit_failures,
)
from featx.learn.search.candidates import SearchCandidate, take_apart
from featx.learn.search.context import FoldResult, SearchContext
from featx.learn.search.executor import Executor
from featx.learn.search.planner import Plan, plan_of, widths_of, without_sharing
from featx.progress import SearchClock, SearchProgress, counted

_CALLBACKS = "callbacks are set"
_NO_FITS = "No fits were performed. Was the CV iterator empty? Were there no candidates?"  # as scikit-learn says


class SharedSearch(BaseSearchCV):
    """Mixin with a `fit` that plans before it fits, and `plan`; must precede scikit-learn's class among the bases."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {"progress": ["boolean", callable, SearchClock]}
    cv: Any

    def plan(self, X: Any, y: Any = None, **params: Any) -> Plan:
        """Plan what `fit` would share and what memory it takes; nothing is fitted, and layers are looked up.

        Parameters
        ----------
        X, y, **params : as `fit` takes them

        Returns
        -------
        Plan
            Print it to read it. For successive halving it is the plan of the first round.
        """
        if isinstance(self.cv, Iterator):
            self.cv = list(self.cv)  # or nothing would be left for `fit`
        search = _independent_copy(self)
        search._validate_params()
        rounds = search._begin(X, y, params)
        plans: list[Plan] = []

        def record(all_params: Iterable, cv: Any = None, more_results: Any = None, callback_ctx: Any = None) -> dict:
            planned = rounds.plan_round(list(all_params), cv)
            plans.append(planned.plan)
            rounds.add(planned, _unfitted_results(planned), more_results)
            return rounds.results

        search._run_search(record, callback_ctx=rounds.callback_ctx)
        return without_sharing(plans[0], _CALLBACKS) if _has_callbacks(self) else plans[0]

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any = None, **params: Any) -> Any:
        """Fit all candidates on all folds, and the best one on all rows.

        Parameters
        ----------
        X : (n, d), or what the estimator takes: store.X
        y : (n,) or (n, t), optional
        **params : parameters of the estimator's fit, the scorer and the splitter (`groups`), as in scikit-learn

        Returns
        -------
        self

        Raises
        ------
        FeatxError
            The estimator does not have a parameter, or a layer is not stored; before anything is fitted.

        Warns
        -----
        UserWarning
            Callbacks are set: falling back to scikit-learn's search, which shares no work.
        """
        if _has_callbacks(self):
            warnings.warn(
                f"{_CALLBACKS}: falling back to scikit-learn's search, which shares no work and is slower",
                UserWarning,
                stacklevel=3,
            )
            return super().fit(X, y, **params)
        rounds = self._begin(X, y, params)
        try:
            clock = self.progress if isinstance(self.progress, SearchClock) else None
            with counted("searching", clock is None and self.progress) as show:
                rounds.clock, rounds.is_part = clock or SearchClock(show), clock is not None
                self._run_search(rounds.evaluate, callback_ctx=rounds.callback_ctx)
            self._conclude(rounds)
        except KeyboardInterrupt:
            if (partial := rounds.partial()) is not None:
                self.partial_results_ = partial
            raise
        return self

    def _begin(self, X: Any, y: Any, params: dict[str, Any]) -> _Rounds:
        """Check and route the arguments of `fit`."""
        X, y = indexable(X, y)
        rounds = _Rounds(self, X, y, self._get_routed_params_for_fit(check_method_params(X, params=params)))
        self._checked_cv_orig = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
        split_params = rounds.routed.splitter.split
        self._check_input_parameters(X=X, y=y, split_params=split_params)
        self.n_splits_ = self._checked_cv_orig.get_n_splits(X, y, **split_params)
        if hasattr(self, "partial_results_"):
            del self.partial_results_
        return rounds

    def _conclude(self, rounds: _Rounds) -> None:
        """Choose the best candidate and fit it on all rows."""
        scorers, X, y, refit_metric = rounds.scorers, rounds.X, rounds.y, rounds.refit_metric
        results, first = rounds.results, rounds.fold_results[0]["test_scores"]
        self.multimetric_ = isinstance(first, dict)
        if callable(self.scoring) and self.multimetric_:
            self._check_refit_for_multimetric(first)
            refit_metric = self.refit
        if self.refit or not self.multimetric_:
            more = {"n_features": np.array(rounds.widths), "estimators": rounds.finals}
            rankable = {**results, **more} if callable(self.refit) else results
            self.best_index_ = self._select_best_index(self.refit, refit_metric, rankable)
            if not callable(self.refit):
                self.best_score_ = results[f"mean_test_{refit_metric}"][self.best_index_]
            self.best_params_ = results["params"][self.best_index_]
        if self.refit:
            self.best_estimator_ = clone(rounds.base).set_params(**clone(self.best_params_, safe=False))
            start = time.perf_counter()
            data = (X,) if y is None else (X, y)
            self.best_estimator_.fit(*data, **rounds.routed.estimator.fit)
            self.refit_time_ = time.perf_counter() - start
            if hasattr(self.best_estimator_, "feature_names_in_"):
                self.feature_names_in_ = self.best_estimator_.feature_names_in_
        self.scorer_ = scorers._scorers if isinstance(scorers, MultimetricScorer) else scorers
        self.cv_results_ = results


class _Round:
    """Candidates with the folds they are evaluated on, and the plan of their fits."""

    def __init__(self, params: list[Mapping[str, Any]], context: SearchContext) -> None:
        self.params, self.context = params, context
        self.candidates: list[SearchCandidate] = take_apart(context.base, params, context.fit_params)
        self.plan = plan_of(self.candidates, context.X, context.splits, context.fit_params, context.return_train_score)


class _Rounds:
    """Evaluates candidates for scikit-learn's `_run_search`, and collects the results of all rounds.

    Successive halving has several rounds, the other searches one.
    """

    def __init__(self, search: SharedSearch, X: Any, y: Any, routed: Any) -> None:
        self.search, self.X, self.y, self.routed = search, X, y, routed
        self.base = clone(search.estimator)
        self.scorers, self.refit_metric = search._get_scorers()
        self.callback_ctx = search._init_callback_context(max_subtasks=1 + (search.refit is not False))
        self.clock = SearchClock(lambda _: None)
        self.is_part = False  # whether the search is one of several on a clock that expects all of them already
        self.running: tuple[_Round, Executor, Mapping[str, list[Any]]] | None = None
        self.params: list[Mapping[str, Any]] = []
        self.widths: list[float] = []  # features of each candidate
        self.finals: list[Any] = []  # each candidate's last estimator
        self.fold_results: list[FoldResult] = []
        self.more: dict[str, list[Any]] = defaultdict(list)
        self.results: dict[str, Any] = {}

    def plan_round(self, params: list[Mapping[str, Any]], cv: Any) -> _Round:
        search = self.search
        indices = (cv or search._checked_cv_orig).split(self.X, self.y, **self.routed.splitter.split)
        splits = [(np.asarray(train), np.asarray(test)) for train, test in indices]
        if not splits or not params:
            raise ValueError(_NO_FITS)
        if len(splits) != search.n_splits_:
            raise ValueError(
                "cv.split and cv.get_n_splits return inconsistent results. "
                f"Expected {search.n_splits_} splits, got {len(splits)}"
            )
        context = SearchContext(
            base=self.base,
            X=self.X,
            y=self.y,
            splits=splits,
            fit_params=self.routed.estimator.fit,
            score_params=self.routed.scorer.score,
            scorer=self.scorers,
            return_train_score=search.return_train_score,
            error_score=search.error_score,
            verbose=search.verbose,
            n_jobs=search.n_jobs,
            pre_dispatch=search.pre_dispatch,
        )
        return _Round(params, context)

    def evaluate(
        self,
        candidate_params: Iterable[Mapping[str, Any]],
        cv: Any = None,
        more_results: Mapping[str, list[Any]] | None = None,
        callback_ctx: Any = None,
    ) -> dict[str, Any]:
        """Fit and score candidates; returns the results of all rounds so far."""
        search, params = self.search, list(candidate_params)
        n, n_splits = len(params), search.n_splits_
        current = self.plan_round(params, cv)
        if search.verbose > 0:
            print(f"Fitting {n_splits} folds for each of {n} candidates, totalling {n * n_splits} fits")
        if not self.is_part:
            self.clock.restart()
            self.clock.expect(current.plan.n_fits, current.plan.work)
        executor = Executor(current.context, current.plan, self.clock, on_fit=print)
        self.running = current, executor, more_results or {}
        fold_results = executor.run()
        warn_or_raise_about_fit_failures(fold_results, search.error_score)
        self.add(current, fold_results, more_results)
        self.running = None
        return self.results

    def add(self, of: _Round, fold_results: list[FoldResult], more_results: Mapping[str, list[Any]] | None) -> None:
        """Append the results of a round."""
        if callable(self.search.scoring):
            insert_error_scores(fold_results, self.search.error_score)
        self.params += of.params
        self.widths += widths_of(of.candidates, self.X).tolist()
        self.finals += [None if each.final is None else clone(each.final, safe=False) for each in of.candidates]
        self.fold_results += fold_results
        for name, values in (more_results or {}).items():
            self.more[name] += values
        self.results = self.search._format_results(self.params, self.search.n_splits_, self.fold_results, self.more)

    def partial(self) -> dict[str, Any] | None:
        """Results of the candidates that have been fitted on all folds, if there are any."""
        params, fold_results, more = list(self.params), list(self.fold_results), {**self.more}
        if self.running is not None:
            current, executor, more_results = self.running
            splits = range(self.search.n_splits_)
            done = [i for i in range(len(current.params)) if all((i, split) in executor.results for split in splits)]
            params += [current.params[i] for i in done]
            fold_results += [executor.results[i, split] for i in done for split in splits]
            if more_results:
                more = {name: [*more.get(name, []), *(of[i] for i in done)] for name, of in more_results.items()}
        if not fold_results:
            return None
        if callable(self.search.scoring):
            insert_error_scores(fold_results, self.search.error_score)
        return self.search._format_results(params, self.search.n_splits_, fold_results, more)


def _independent_copy(search: SharedSearch) -> SharedSearch:
    """A copy that can plan: silent, without callbacks, and drawing from copies of the random states."""
    planner = copy(search)
    if hasattr(planner, "_skl_callbacks"):
        del planner._skl_callbacks
    planner.verbose = 0
    if hasattr(planner, "random_state"):
        planner.random_state = _copied_state(planner.random_state)
    if hasattr(planner.cv, "random_state"):
        planner.cv = deepcopy(planner.cv)
        if planner.cv.random_state is None:
            planner.cv.random_state = _copied_state(None)
    return planner


def _copied_state(random_state: Any) -> Any:
    """A random state that draws the same numbers, independently; an int stays, which splitters must be able to see."""
    return deepcopy(check_random_state(None) if random_state is None else random_state)


def _unfitted_results(of: _Round) -> list[FoldResult]:
    """Scores of 0 for a round that is only planned; how many candidates later rounds have does not depend on them."""
    context = of.context
    score: Any = 0.0
    if isinstance(context.scorer, MultimetricScorer):
        score = dict.fromkeys(context.scorer._scorers, 0.0)
    result = {"fit_error": None, "n_test_samples": 1, "fit_time": 0.0, "score_time": 0.0, "test_scores": score}
    if context.return_train_score:
        result["train_scores"] = score
    return [dict(result) for _ in of.params for _ in context.splits]


def _has_callbacks(search: SharedSearch) -> bool:
    """Whether scikit-learn's callbacks are set, on the search or on what it fits: they need scikit-learn's own fits."""
    estimators = [search, search.estimator]
    if hasattr(search.estimator, "get_params"):
        estimators += [value for value in search.estimator.get_params().values() if isinstance(value, BaseEstimator)]
    return any(getattr(estimator, "_skl_callbacks", None) for estimator in estimators)


class GridSearchCV(SharedSearch, sklearn.model_selection.GridSearchCV):
    """Exhaustive search over a grid of parameters, layers and stores among them.

    A drop-in for scikit-learn's class: parameters, attributes, `cv_results_`, scores, refit, error_score, scorers,
    splitters, groups, metadata routing and n_jobs are scikit-learn's. What differs:

    - The search plans before it fits (`plan` returns the plan). Candidates of an estimator of featx.learn that differ
      only in parameters that are solved together (C, alpha, gamma, n_neighbors) become one solve: over all folds if the
      steps before are fold-independent (StoredFeatures, Normalizer) or one StandardScaler, MinMaxScaler, MaxAbsScaler
      or RobustScaler. Other steps that several candidates begin with are fitted once per fold, not once per candidate.
      Everything else falls back to scikit-learn's search, in `n_jobs` processes; so does the whole search, with a
      warning, if callbacks are set.
    - The time of shared work is divided among the candidates: the sum of their times is the time of the whole.
    - A missing parameter or layer raises an error before anything is fitted, whatever `error_score` is.
    - The dict that a callable `refit` takes has two more keys than `cv_results_`: "estimators", each candidate's
      unfitted last estimator, or None; and "n_features", (c,) float, the number of features that it is fitted on, from
      StoredFeatures and integer n_components; nan where only fitting would tell. Both are absent if callbacks are set.
    - It has `progress` and, after an interrupt, `partial_results_`.

    Parameters
    ----------
    estimator, param_grid, scoring, n_jobs, refit, cv, verbose, pre_dispatch, error_score, return_train_score
        As in scikit-learn.
    progress : bool or callable(featx.SearchProgress)
        Show a progress bar on stderr, or call this function after each fit; an update has `done`, `total`, `seconds`
        and `seconds_left`.

    Attributes
    ----------
    cv_results_, best_estimator_, best_score_, best_params_, best_index_, scorer_, n_splits_, refit_time_, multimetric_
        As in scikit-learn; so are `classes_`, `n_features_in_` and `feature_names_in_`.
    partial_results_ : dict
        After a KeyboardInterrupt, the `cv_results_` of the candidates that had been fitted on all folds.

    Examples
    --------
    >>> from featx.learn import GridSearchCV, LogisticRegression
    >>> from sklearn.datasets import load_iris
    >>> search = GridSearchCV(LogisticRegression(), {"C": [0.01, 1.0]}).fit(*load_iris(return_X_y=True))
    >>> search.best_params_
    {'C': 1.0}
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **sklearn.model_selection.GridSearchCV._parameter_constraints,
        **SharedSearch._parameter_constraints,
    }

    def __init__(
        self,
        estimator: Any,
        param_grid: Any,
        *,
        scoring: Any = None,
        n_jobs: int | None = None,
        refit: Any = True,
        cv: Any = None,
        verbose: int = 0,
        pre_dispatch: Any = "2*n_jobs",
        error_score: Any = np.nan,
        return_train_score: bool = False,
        progress: bool | Callable[[SearchProgress], None] = False,
    ) -> None:
        super().__init__(
            estimator,
            param_grid,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.progress = progress


class RandomizedSearchCV(SharedSearch, sklearn.model_selection.RandomizedSearchCV):
    """Search over parameters drawn from distributions; the work is shared as by `GridSearchCV`.

    A drop-in for scikit-learn's class, except as described in `GridSearchCV`.

    Parameters
    ----------
    estimator, param_distributions, n_iter, scoring, n_jobs, refit, cv, verbose, pre_dispatch, random_state,
    error_score, return_train_score
        As in scikit-learn.
    progress : bool or callable(featx.SearchProgress)
        As in `GridSearchCV`.

    Attributes
    ----------
    cv_results_, best_estimator_, best_score_, best_params_, ...
        As in `GridSearchCV`.

    Examples
    --------
    >>> from featx.learn import RandomizedSearchCV, Ridge
    >>> from scipy.stats import loguniform
    >>> search = RandomizedSearchCV(Ridge(), {"alpha": loguniform(1e-3, 1e3)}, n_iter=20)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **sklearn.model_selection.RandomizedSearchCV._parameter_constraints,
        **SharedSearch._parameter_constraints,
    }

    def __init__(
        self,
        estimator: Any,
        param_distributions: Any,
        *,
        n_iter: int = 10,
        scoring: Any = None,
        n_jobs: int | None = None,
        refit: Any = True,
        cv: Any = None,
        verbose: int = 0,
        pre_dispatch: Any = "2*n_jobs",
        random_state: Any = None,
        error_score: Any = np.nan,
        return_train_score: bool = False,
        progress: bool | Callable[[SearchProgress], None] = False,
    ) -> None:
        super().__init__(
            estimator,
            param_distributions,
            n_iter=n_iter,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            random_state=random_state,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.progress = progress
