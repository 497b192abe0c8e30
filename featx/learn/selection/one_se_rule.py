"""What a search measured in; the simplest candidate that it cannot tell from the best out: a callable for `refit`.

`select_model`'s own is `ranking.cheapest_within_noise`; both mean the same by within one standard error and by simple.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from featx.errors import FeatxError
from featx.learn.scores import within_one_se
from featx.learn.selection.catalogue import ESTIMATORS

_SIMPLEST_FIRST = [type(spec.estimator).__name__ for spec in ESTIMATORS.values()]
_STRONGEST_FIRST = {"n_components": 1, "C": 1, "alpha": -1, "n_neighbors": -1, "gamma": 1}  # less is simpler, or more


def one_se(cv_results: Mapping[str, Any]) -> int:
    """The simplest candidate within one standard error of the best; a callable for GridSearchCV's `refit`.

    Within one standard error: its mean is at least the best mean less std / sqrt(J) of the best's J scores, std over
    J - 1. (L. Breiman et al., Classification and Regression Trees, 1984, section 3.4.3; T. Hastie et al., The Elements
    of Statistical Learning, section 7.10.)

    Simplest, in this order, as `select_model(one_se=True)` has it:

    - the fewest features: `cv_results["n_features"]`, which the searches of featx.learn add for a callable `refit`;
      without it, or where it is nan, an integer n_components; what is unknown comes last
    - the simplest estimator, `cv_results["estimators"]` of these searches, else those among the values of the grid: the
      order of `grids.ESTIMATORS` by name of the class, whosever it is; others after them, by their first place
    - the strongest penalty: the smallest n_components, the smallest C, the largest alpha, the most n_neighbors, the
      smallest gamma, in the grid or the estimator; what is no number comes last
    - the better mean, and at last the first in the grid

    Times decide nothing: the same scores, the same candidate. scikit-learn sets no `best_score_` where `refit` is a
    callable; it is `search.cv_results_["mean_test_score"][search.best_index_]`.

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
    told = cv_results.get("estimators", [None] * len(means))
    estimators = [
        [value for value in params.values() if hasattr(value, "predict")] if one is None else [one]
        for params, one in zip(all_params, told, strict=True)
    ]
    order = list(dict.fromkeys([*_SIMPLEST_FIRST, *(type(one).__name__ for those in estimators for one in those)]))

    def complexity(i: int) -> tuple[Any, ...]:
        given: dict[str, Any] = {}
        for one in estimators[i]:
            given |= one.get_params(deep=False) if hasattr(one, "get_params") else {}
        given |= {key.rsplit("__", 1)[-1]: value for key, value in all_params[i].items()}
        strengths = [_number(given[name], sign) if name in given else 0.0 for name, sign in _STRONGEST_FIRST.items()]
        components = _number(given.get("n_components"))
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
    """What is least where it is simplest; above all else where it is no number."""
    return sign * float(value) if isinstance(value, Real) else np.inf
