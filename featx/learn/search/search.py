"""scikit-learn's searches over parameters, with the work shared: estimator and candidates in, `cv_results_` out.

`entries` takes candidates apart, `plans` says what can be shared and `runs` does it; splitting, scoring, ranking and
all checks are scikit-learn's. Long, being mostly parameters.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, _fit_context, clone, is_classifier
from sklearn.metrics._scorer import _MultimetricScorer
from sklearn.model_selection import _search, check_cv
from sklearn.model_selection._search import BaseSearchCV
from sklearn.model_selection._validation import _insert_error_scores, _warn_or_raise_about_fit_failures
from sklearn.utils import indexable
from sklearn.utils.validation import _check_method_params

from featx.learn.search.candidates import entries_of
from featx.learn.search.context import Answer, Task
from featx.learn.search.executor import Run
from featx.learn.search.planner import Plan, all_stock, plan_of, widths_of
from featx.progress import SearchClock, SearchProgress, counted


class SharedSearch(BaseSearchCV):
    """What all four searches do otherwise than scikit-learn's: `fit` plans before it fits, and `plan` shows it."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {"progress": ["boolean", callable, SearchClock]}
    _only_planned: bool = False
    cv: Any

    def plan(self, X: Any, y: Any = None, **params: Any) -> Plan:
        """What `fit` would share and what memory it takes; nothing is fitted, but for layers being looked up.

        Parameters
        ----------
        X, y, **params : as of `fit`

        Returns
        -------
        Plan
            `print` it. Of successive halving, the first round's.
        """
        if isinstance(self.cv, Iterator):
            self.cv = list(self.cv)  # or there would be none left for `fit`
        planner, drawn = copy(self), np.random.get_state()
        planner._only_planned = True
        planner.__dict__.pop("_skl_callbacks", None)
        try:
            planner.fit(X, y, **params)
        except _Planned as planned:
            return all_stock(planned.plan, "callbacks are set") if _has_callbacks(self) else planned.plan
        finally:
            np.random.set_state(drawn)
        raise AssertionError("a search that asks for no candidates")

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any = None, **params: Any) -> Any:
        """Fit all candidates on all folds, and the best on all rows.

        Parameters
        ----------
        X : (n, d), or what the estimator takes: store.X
        y : (n,) or (n, t), optional
        **params : of the estimator's fit, the scorer and the splitter (`groups`), as scikit-learn has them

        Returns
        -------
        self

        Raises
        ------
        FeatxError
            A parameter that the estimator has not, or a layer that is not stored, by name; before anything is fitted.
        """
        if not self._only_planned and _has_callbacks(self):
            return super().fit(X, y, **params)
        scorers, refit_metric = self._get_scorers()
        X, y = indexable(X, y)
        routed = self._get_routed_params_for_fit(_check_method_params(X, params=params))
        context = self._init_callback_context(max_subtasks=1 + (self.refit is not False))
        self._checked_cv_orig = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
        self._check_input_parameters(X=X, y=y, split_params=routed.splitter.split)
        self.n_splits_ = self._checked_cv_orig.get_n_splits(X, y, **routed.splitter.split)
        self.__dict__.pop("partial_results_", None)
        rounds = _Rounds(self, clone(self.estimator), X, y, routed, scorers)
        try:
            outer = self.progress if isinstance(self.progress, SearchClock) else None
            with counted("searching", outer is None and self.progress) as show:
                rounds.clock, rounds.is_part = outer or SearchClock(show), outer is not None
                self._run_search(rounds.evaluate, callback_ctx=context)
            self._conclude(rounds, refit_metric)
        except KeyboardInterrupt:
            if (partial := rounds.partial()) is not None:
                self.partial_results_ = partial
            raise
        return self

    def _conclude(self, rounds: _Rounds, refit_metric: Any) -> None:
        """Choose, and fit the chosen on all rows."""
        scorers, X, y = rounds.scorer, rounds.X, rounds.y
        results, first = rounds.results, rounds.answers[0]["test_scores"]
        self.multimetric_ = isinstance(first, dict)
        if callable(self.scoring) and self.multimetric_:
            self._check_refit_for_multimetric(first)
            refit_metric = self.refit
        if self.refit or not self.multimetric_:
            more = {"n_features": np.array(rounds.widths), "estimators": rounds.finals}
            told = {**results, **more} if callable(self.refit) else results
            self.best_index_ = self._select_best_index(self.refit, refit_metric, told)
            if not callable(self.refit):
                self.best_score_ = results[f"mean_test_{refit_metric}"][self.best_index_]
            self.best_params_ = results["params"][self.best_index_]
        if self.refit:
            self.best_estimator_ = clone(rounds.base).set_params(**clone(self.best_params_, safe=False))
            start = time.perf_counter()
            given = (X,) if y is None else (X, y)
            self.best_estimator_.fit(*given, **rounds.routed.estimator.fit)
            self.refit_time_ = time.perf_counter() - start
            if hasattr(self.best_estimator_, "feature_names_in_"):
                self.feature_names_in_ = self.best_estimator_.feature_names_in_
        self.scorer_ = scorers._scorers if isinstance(scorers, _MultimetricScorer) else scorers
        self.cv_results_ = results


class _Planned(Exception):
    """Ends a fit that was only to be planned."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan


class _Rounds:
    """What `_run_search` calls: candidates in, the results of all so far out; successive halving calls it often."""

    def __init__(
        self,
        search: SharedSearch,
        base: Any,
        X: Any,
        y: Any,
        routed: Any,
        scorer: Any,
    ) -> None:
        self.search, self.base, self.X, self.y, self.routed, self.scorer = search, base, X, y, routed, scorer
        self.clock = SearchClock(lambda _: None)
        self.is_part = False  # of several searches on one clock, which expects all of them already
        self.current: tuple[Run, list[Mapping[str, Any]], Mapping[str, list[Any]]] | None = None
        self.candidates: list[Mapping[str, Any]] = []
        self.widths: list[float] = []  # features of each candidate
        self.finals: list[Any] = []  # and its last estimator
        self.answers: list[Answer] = []
        self.more: dict[str, list[Any]] = defaultdict(list)
        self.results: dict[str, Any] = {}

    def evaluate(
        self,
        candidate_params: Iterable[Mapping[str, Any]],
        cv: Any = None,
        more_results: Mapping[str, list[Any]] | None = None,
        callback_ctx: Any = None,
    ) -> dict[str, Any]:
        search, candidates = self.search, list(candidate_params)
        given = (cv or search._checked_cv_orig).split(self.X, self.y, **self.routed.splitter.split)
        splits = [(np.asarray(train), np.asarray(test)) for train, test in given]
        if len(splits) != search.n_splits_:
            raise ValueError(
                "cv.split and cv.get_n_splits return inconsistent results. "
                f"Expected {search.n_splits_} splits, got {len(splits)}"
            )
        n = len(candidates)
        if search.verbose > 0:
            print(f"Fitting {len(splits)} folds for each of {n} candidates, totalling {n * len(splits)} fits")
        task = Task(
            base=self.base,
            X=self.X,
            y=self.y,
            splits=splits,
            fit_params=self.routed.estimator.fit,
            score_params=self.routed.scorer.score,
            scorer=self.scorer,
            return_train_score=search.return_train_score,
            error_score=search.error_score,
            verbose=search.verbose,
            n_jobs=search.n_jobs,
            pre_dispatch=search.pre_dispatch,
        )
        entries = entries_of(self.base, candidates, task.fit_params)
        plan = plan_of(entries, self.X, splits, task.fit_params, task.return_train_score)
        if search._only_planned:
            raise _Planned(plan)
        if not self.is_part:
            self.clock.restart()
            self.clock.expect(plan.n_fits, plan.work)
        run = Run(task, plan, self.clock)
        self.current = run, candidates, more_results or {}
        answers = run.follow()
        if not answers:
            raise ValueError("No fits were performed. Was the CV iterator empty? Were there no candidates?")
        _warn_or_raise_about_fit_failures(answers, search.error_score)
        if callable(search.scoring):
            _insert_error_scores(answers, search.error_score)
        self.candidates += candidates
        self.widths += widths_of(entries, self.X).tolist()
        self.finals += [None if entry.final is None else clone(entry.final, safe=False) for entry in entries]
        self.answers += answers
        for name, values in (more_results or {}).items():
            self.more[name] += values
        self.current = None
        self.results = search._format_results(self.candidates, search.n_splits_, self.answers, self.more)
        return self.results

    def partial(self) -> dict[str, Any] | None:
        """Results of the candidates that have been through all folds, if there are any."""
        candidates, answers, more = list(self.candidates), list(self.answers), {**self.more}
        if self.current is not None:
            run, those, told = self.current
            splits = range(self.search.n_splits_)
            done = [i for i in range(len(those)) if all((i, split) in run.answers for split in splits)]
            candidates += [those[i] for i in done]
            answers += [run.answers[i, split] for i in done for split in splits]
            more = {name: [*more.get(name, []), *(values[i] for i in done)] for name, values in told.items()} or more
        if not answers:
            return None
        if callable(self.search.scoring):
            _insert_error_scores(answers, self.search.error_score)
        return self.search._format_results(candidates, self.search.n_splits_, answers, more)


def _has_callbacks(search: SharedSearch) -> bool:
    """Whether scikit-learn's callbacks are set, on the search or on what it fits: these need its own fits."""
    estimators = [search, search.estimator]
    if hasattr(search.estimator, "get_params"):
        estimators += [value for value in search.estimator.get_params().values() if isinstance(value, BaseEstimator)]
    return any(getattr(estimator, "_skl_callbacks", None) for estimator in estimators)


class GridSearchCV(_search.GridSearchCV, SharedSearch):
    """Exhaustive search over a grid of parameters, layers and stores among them.

    A drop-in for scikit-learn's class: parameters, attributes, `cv_results_`, scores, refit, error_score, scorers,
    splitters, groups, metadata routing and n_jobs are its own. What differs:

    - It plans before it fits (`plan` shows it). Candidates of an estimator of featx.learn that differ only in what is
      solved together (C, alpha, gamma, n_neighbors) become one solve, over all folds too where the steps before are
      fold-independent (StoredFeatures, Normalizer) or one StandardScaler, MinMaxScaler, MaxAbsScaler or RobustScaler.
      Other steps that several candidates begin with are fitted once a fold, not once a candidate. All else goes
      scikit-learn's way, in `n_jobs` processes; all of it where callbacks are set.
    - Times of shared work are apportioned: `mean_fit_time` is a share, and the shares add up to the whole.
    - A parameter or a layer that is not there is an error before anything is fitted, whatever `error_score` is.
    - A callable `refit` is given two keys more than `cv_results_` has: "estimators", each candidate's last one, not
      fitted, or None; and "n_features": (c,) float, the features that it is fitted on, as StoredFeatures and an integer
      n_components tell them; nan where only the rows would tell. Not where callbacks are set.
    - `progress`; after an interrupt `partial_results_`.

    Parameters
    ----------
    estimator, param_grid, scoring, n_jobs, refit, cv, verbose, pre_dispatch, error_score, return_train_score
        As of scikit-learn.
    progress : bool or callable(featx.SearchProgress)
        Show a bar on stderr, or call a function after each fit with `done`, `total`, `seconds` and `seconds_left`.

    Attributes
    ----------
    cv_results_, best_estimator_, best_score_, best_params_, best_index_, scorer_, n_splits_, refit_time_, multimetric_
        As of scikit-learn; so are classes_, n_features_in_ and feature_names_in_.
    partial_results_ : dict
        After a KeyboardInterrupt, what `cv_results_` would be of the candidates that had been through all folds.

    Examples
    --------
    >>> from featx.learn import GridSearchCV, LogisticRegression
    >>> from sklearn.datasets import load_iris
    >>> search = GridSearchCV(LogisticRegression(), {"C": [0.01, 1.0]}).fit(*load_iris(return_X_y=True))
    >>> search.best_params_
    {'C': 1.0}
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **_search.GridSearchCV._parameter_constraints,
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


class RandomizedSearchCV(_search.RandomizedSearchCV, SharedSearch):
    """Search over parameters drawn from distributions; the work is shared as by `GridSearchCV`.

    A drop-in for scikit-learn's class, except for what `GridSearchCV` says.

    Parameters
    ----------
    estimator, param_distributions, n_iter, scoring, n_jobs, refit, cv, verbose, pre_dispatch, random_state,
    error_score, return_train_score
        As of scikit-learn.
    progress : bool or callable(featx.SearchProgress)

    Attributes
    ----------
    As of `GridSearchCV`.

    Examples
    --------
    >>> from featx.learn import RandomizedSearchCV, Ridge
    >>> from scipy.stats import loguniform
    >>> search = RandomizedSearchCV(Ridge(), {"alpha": loguniform(1e-3, 1e3)}, n_iter=20)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **_search.RandomizedSearchCV._parameter_constraints,
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
