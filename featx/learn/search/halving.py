"""Successive halving with the work of each round shared; `search` explains how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from featx.learn._sklearn import HalvingGridSearchCV as SklearnHalvingGridSearchCV
from featx.learn._sklearn import HalvingRandomSearchCV as SklearnHalvingRandomSearchCV
from featx.learn._sklearn import num_samples
from featx.learn.search.search import SharedSearch
from featx.progress import SearchProgress


class SharedHalving(SharedSearch):
    """Mixin: `SharedSearch` in rounds; must precede scikit-learn's class among the bases."""

    def _begin(self, X: Any, y: Any, params: dict[str, Any]) -> Any:
        self._n_samples_orig = num_samples(X)
        return super()._begin(X, y, params)

    def _conclude(self, rounds: Any) -> None:
        super()._conclude(rounds)
        self.best_score_ = self.cv_results_["mean_test_score"][self.best_index_]


class HalvingGridSearchCV(SharedHalving, SklearnHalvingGridSearchCV):
    """Search over a grid in rounds: all candidates on few rows, the better ones on more.

    A drop-in for scikit-learn's class, except as described in `GridSearchCV`; no experimental import is needed.

    Parameters
    ----------
    estimator, param_grid, factor, resource, max_resources, min_resources, aggressive_elimination, cv, scoring, refit,
    error_score, return_train_score, random_state, n_jobs, verbose
        As in scikit-learn.
    progress : bool or callable(featx.SearchProgress)
        As in `GridSearchCV`, for each round.

    Attributes
    ----------
    n_resources_, n_candidates_, n_remaining_candidates_, n_iterations_, ...
        As in scikit-learn and `GridSearchCV`.

    Examples
    --------
    >>> from featx.learn import HalvingGridSearchCV, LogisticRegression
    >>> search = HalvingGridSearchCV(LogisticRegression(), {"C": [1e-4, 1e-2, 1.0]}, random_state=0)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **SklearnHalvingGridSearchCV._parameter_constraints,
        **SharedSearch._parameter_constraints,
    }

    def __init__(
        self,
        estimator: Any,
        param_grid: Any,
        *,
        factor: float = 3,
        resource: str = "n_samples",
        max_resources: Any = "auto",
        min_resources: Any = "exhaust",
        aggressive_elimination: bool = False,
        cv: Any = 5,
        scoring: Any = None,
        refit: Any = True,
        error_score: Any = np.nan,
        return_train_score: bool = True,
        random_state: Any = None,
        n_jobs: int | None = None,
        verbose: int = 0,
        progress: bool | Callable[[SearchProgress], None] = False,
    ) -> None:
        super().__init__(
            estimator,
            param_grid,
            factor=factor,
            resource=resource,
            max_resources=max_resources,
            min_resources=min_resources,
            aggressive_elimination=aggressive_elimination,
            cv=cv,
            scoring=scoring,
            refit=refit,
            error_score=error_score,
            return_train_score=return_train_score,
            random_state=random_state,
            n_jobs=n_jobs,
            verbose=verbose,
        )
        self.progress = progress


class HalvingRandomSearchCV(SharedHalving, SklearnHalvingRandomSearchCV):
    """Search over drawn parameters in rounds: all candidates on few rows, the better ones on more.

    A drop-in for scikit-learn's class, except as described in `GridSearchCV`; no experimental import is needed.

    Parameters
    ----------
    estimator, param_distributions, n_candidates, factor, resource, max_resources, min_resources,
    aggressive_elimination, cv, scoring, refit, error_score, return_train_score, random_state, n_jobs, verbose
        As in scikit-learn.
    progress : bool or callable(featx.SearchProgress)
        As in `GridSearchCV`, for each round.

    Attributes
    ----------
    n_resources_, n_candidates_, n_remaining_candidates_, n_iterations_, ...
        As in scikit-learn and `GridSearchCV`.

    Examples
    --------
    >>> from featx.learn import HalvingRandomSearchCV, Ridge
    >>> from scipy.stats import loguniform
    >>> search = HalvingRandomSearchCV(Ridge(), {"alpha": loguniform(1e-3, 1e3)}, random_state=0)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **SklearnHalvingRandomSearchCV._parameter_constraints,
        **SharedSearch._parameter_constraints,
    }

    def __init__(
        self,
        estimator: Any,
        param_distributions: Any,
        *,
        n_candidates: Any = "exhaust",
        factor: float = 3,
        resource: str = "n_samples",
        max_resources: Any = "auto",
        min_resources: Any = "smallest",
        aggressive_elimination: bool = False,
        cv: Any = 5,
        scoring: Any = None,
        refit: Any = True,
        error_score: Any = np.nan,
        return_train_score: bool = True,
        random_state: Any = None,
        n_jobs: int | None = None,
        verbose: int = 0,
        progress: bool | Callable[[SearchProgress], None] = False,
    ) -> None:
        super().__init__(
            estimator,
            param_distributions,
            n_candidates=n_candidates,
            factor=factor,
            resource=resource,
            max_resources=max_resources,
            min_resources=min_resources,
            aggressive_elimination=aggressive_elimination,
            cv=cv,
            scoring=scoring,
            refit=refit,
            error_score=error_score,
            return_train_score=return_train_score,
            random_state=random_state,
            n_jobs=n_jobs,
            verbose=verbose,
        )
        self.progress = progress
