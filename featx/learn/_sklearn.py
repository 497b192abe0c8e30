"""Every private name of scikit-learn that featx uses, with what breaks if it is renamed or changed.

`tests/learn/test_sklearn_names.py` looks each of them up. scikit-learn is pinned to versions in which they were tried.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Checks of parameters, in `_parameter_constraints`: constructors would accept anything.
from sklearn.base import _fit_context as fit_context

# Methods of linear models: `decision_function`, `predict` and `sparsify` would be missing.
from sklearn.linear_model._base import LinearClassifierMixin, SparseCoefMixin

# Types of scorers: decide whether a scorer needs the whole pipeline (`SearchContext.scores_whole`), and multimetric.
from sklearn.metrics._scorer import _BaseScorer as BaseScorer
from sklearn.metrics._scorer import _MultimetricScorer as MultimetricScorer
from sklearn.metrics._scorer import _PassthroughScorer as PassthroughScorer

# The base of the four searches; `fit` is ours, splitting, ranking and `cv_results_` are its methods.
from sklearn.model_selection._search import BaseSearchCV

# Halving in rounds, without scikit-learn's switch for experimental classes.
from sklearn.model_selection._search_successive_halving import HalvingGridSearchCV, HalvingRandomSearchCV

# Fitting and scoring of one candidate on one fold, and what a search reports of failed fits.
from sklearn.model_selection._validation import (
    _fit_and_score as sklearn_fit_and_score,
)
from sklearn.model_selection._validation import (
    _insert_error_scores as insert_error_scores,
)
from sklearn.model_selection._validation import (
    _score as score_estimator,
)
from sklearn.model_selection._validation import (
    _warn_or_raise_about_fit_failures as warn_or_raise_about_fit_failures,
)

# libsvm on a kernel matrix: SVC and SVR would have to be fitted by scikit-learn, one at a time.
from sklearn.svm import _libsvm as libsvm

# Rows of X and y of any type: folds of lists and data frames.
from sklearn.utils import _safe_indexing as safe_indexing

# Whether metadata routing is enabled: then scorers may need more than rows.
from sklearn.utils._metadata_requests import _routing_enabled as routing_enabled

# Types in `_parameter_constraints`.
from sklearn.utils._param_validation import Interval, StrOptions

# Checks and slices of X, `sample_weight` and the parameters of `fit`.
from sklearn.utils.validation import _check_method_params as check_method_params
from sklearn.utils.validation import _check_sample_weight as check_sample_weight
from sklearn.utils.validation import _num_samples as num_samples

if TYPE_CHECKING:
    from sklearn.ensemble._gb import BaseGradientBoosting
    from sklearn.ensemble._gb import _init_raw_predictions as init_raw_predictions
    from sklearn.ensemble._hist_gradient_boosting.common import PREDICTOR_RECORD_DTYPE
    from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor
    from sklearn.tree._tree import Tree

__all__ = [
    "BaseGradientBoosting",
    "BaseSearchCV",
    "HalvingGridSearchCV",
    "HalvingRandomSearchCV",
    "Interval",
    "LinearClassifierMixin",
    "METHODS",
    "PREDICTOR_RECORD_DTYPE",
    "SparseCoefMixin",
    "StrOptions",
    "Tree",
    "TreePredictor",
    "BaseScorer",
    "MultimetricScorer",
    "PassthroughScorer",
    "check_method_params",
    "check_parameters",
    "check_sample_weight",
    "sklearn_fit_and_score",
    "fit_context",
    "init_raw_predictions",
    "insert_error_scores",
    "libsvm",
    "num_samples",
    "routing_enabled",
    "safe_indexing",
    "score_estimator",
    "warn_or_raise_about_fit_failures",
]

# What saved forests and boostings consist of: `check_trees` would not know which files are safe to load. Imported when
# first used, since only saved models need all of sklearn.ensemble.
_OF_TREES = {
    "BaseGradientBoosting": "sklearn.ensemble._gb.BaseGradientBoosting",
    "PREDICTOR_RECORD_DTYPE": "sklearn.ensemble._hist_gradient_boosting.common.PREDICTOR_RECORD_DTYPE",
    "Tree": "sklearn.tree._tree.Tree",
    "TreePredictor": "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "init_raw_predictions": "sklearn.ensemble._gb._init_raw_predictions",
}


def __getattr__(name: str) -> Any:
    if name not in _OF_TREES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, private = _OF_TREES[name].rpartition(".")
    return getattr(importlib.import_module(module), private)


def check_parameters(estimator: object) -> None:
    """Raise InvalidParameterError, a ValueError, unless the parameters have the types and ranges that it declares."""
    if getattr(estimator, "_parameter_constraints", None):
        estimator._validate_params()  # type: ignore[attr-defined]


# Private methods and attributes that are used of objects, by the class that has them.
METHODS = {
    "sklearn.model_selection._search.BaseSearchCV": (
        "_check_input_parameters",
        "_check_refit_for_multimetric",
        "_format_results",
        "_get_routed_params_for_fit",
        "_get_scorers",
        "_init_callback_context",
        "_run_search",
        "_select_best_index",
    ),
    "sklearn.pipeline.Pipeline": ("_check_method_params", "_validate_steps"),
    "sklearn.base.BaseEstimator": ("_validate_params", "__sklearn_clone__"),
    "sklearn.svm.SVC": (
        "_dense_decision_function",
        "_dense_predict",
        "_validate_for_predict",
        "_validate_targets",
        "n_support_",
    ),
    "sklearn.discriminant_analysis.QuadraticDiscriminantAnalysis": ("_decision_function",),
}
