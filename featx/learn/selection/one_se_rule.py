"""The one-standard-error rule as a callable for `refit`; `results.simplest_within_one_se` is that of `select_model`."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from featx.catalogue import ESTIMATORS
from featx.errors import FeatxError
from featx.learn.scores import within_one_se

_SIMPLEST_FIRST = [spec.class_name for spec in ESTIMATORS.values()]
_SIGNS = {"n_components": 1}  # 1: a smaller value is simpler, -1: a larger one is
for _spec in ESTIMATORS.values():
    _SIGNS |= dict.fromkeys(_spec.simpler_if_small, 1) | dict.fromkeys(_spec.simpler_if_large, -1)


def one_se(cv_results: Mapping[str, Any]) -> int:
    """The simplest candidate within one standard error of the best; a callable for GridSearchCV's `refit`::

        mean >= best mean - s / sqrt(J),    s the standard deviation (J - 1) of the best candidate's J scores

    (L. Breiman et al., Classification and Regression Trees, 1984, section 3.4.3; T. Hastie et al., The Elements of
    Statistical Learning, section 7.10.)

    The simplest candidate has, in this order:

    - the fewest features: `cv_results["n_features"]`, which the searches of featx.learn add for a callable `refit`; if
      it is missing or nan, an integer n_components; candidates of unknown width are last
    - the simplest estimator: `cv_results["estimators"]` of these searches, otherwise the estimators in the grid, in the
      order of `ESTIMATORS` by class name; other estimators are last, in the order of the grid
    - the strongest regularization: the smallest n_components, the largest alpha, the smallest C, the largest
      n_neighbors, the smallest gamma, in the grid or the estimator; values that are not numbers are last
    - the better mean; then the first place in the grid

    scikit-learn sets no `best_score_` if `refit` is a callable; it is
    `search.cv_results_["mean_test_score"][search.best_index_]`.

    Parameters
    ----------
    cv_results : mapping, GridSearchCV's `cv_results_` of one metric

    Returns
    -------
    index of the candidate

    Raises
    ------
    FeatxError
        There are several metrics, or no candidate has a score.

    Examples
    --------
    >>> GridSearchCV(pipe, grid, refit=one_se).fit(store.X, store.y)    # doctest: +SKIP
    """
    if "mean_test_score" not in cv_results:
        raise FeatxError("one_se compares one score, 'mean_test_score'; this search has several: give scoring one name")
    means = np.asarray(cv_results["mean_test_score"], float)
    if not np.isfinite(means).any():
        raise FeatxError("one_se needs a candidate that has a score, and every fit failed; see error_score='raise'")
    splits = sum(key.startswith("split") and key.endswith("_test_score") for key in cv_results)
    scores = np.array([cv_results[f"split{i}_test_score"] for i in range(splits)]).T  # (c, J)
    all_params = cv_results["params"]
    widths = cv_results.get("n_features", np.full(len(means), np.nan))
    finals = cv_results.get("estimators", [None] * len(means))
    estimators = [
        [value for value in params.values() if hasattr(value, "predict")] if one is None else [one]
        for params, one in zip(all_params, finals, strict=True)
    ]
    names = [type(one).__name__ for of_candidate in estimators for one in of_candidate]
    order = list(dict.fromkeys([*_SIMPLEST_FIRST, *names]))

    def complexity(i: int) -> tuple[Any, ...]:
        values: dict[str, Any] = {}
        for one in estimators[i]:
            values |= one.get_params(deep=False) if hasattr(one, "get_params") else {}
        values |= {key.rsplit("__", 1)[-1]: value for key, value in all_params[i].items()}
        strengths = [_number(values[name], sign) if name in values else 0.0 for name, sign in _SIGNS.items()]
        components = _number(values.get("n_components"))
        width = widths[i] if np.isfinite(widths[i]) else components if components >= 1 else np.inf
        return (
            width,
            max((order.index(type(one).__name__) for one in estimators[i]), default=len(order)),
            strengths,
            -means[i],
            i,
        )

    return min(np.flatnonzero(within_one_se(means, scores)).tolist(), key=complexity)


def _number(value: object, sign: int = 1) -> float:
    """A number that is least for the simplest value; infinity if the value is not a number."""
    return sign * float(value) if isinstance(value, Real) else np.inf
