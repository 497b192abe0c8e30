"""A search of ours in; scikit-learn's of the same name on the same rows beside it, and that both say the same."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
import sklearn.model_selection
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_halving_search_cv  # noqa: F401

Results = Mapping[str, Any]  # cv_results_

TIMES = ("mean_fit_time", "std_fit_time", "mean_score_time", "std_score_time")
TIGHT = {"tol": 1e-9, "max_iter": 5000}


def theirs_of(search: Any) -> Any:
    """scikit-learn's search of the same name and parameters."""
    cls = getattr(sklearn.model_selection, type(search).__name__)
    known = cls(search.estimator, {}).get_params(deep=False)
    made = cls(**{name: value for name, value in search.get_params(deep=False).items() if name in known})
    return made.set_params(estimator=clone(search.estimator))


def assert_same(search: Any, X: Any, y: Any = None, atol: float = 1e-6, **fit_params: Any) -> tuple[Any, Any]:
    """Ours and scikit-learn's, fitted, or the errors both raised; everything they say is the same within `atol`."""
    theirs = theirs_of(search)
    ours_told, ours_raised, seconds = _heard(lambda: search.fit(X, y, **fit_params))
    theirs_told, theirs_raised, _ = _heard(lambda: theirs.fit(X, y, **fit_params))
    if theirs_raised or ours_raised:
        assert ours_raised, f"scikit-learn's raises {theirs_raised!r}"
        assert theirs_raised, f"ours alone raises {ours_raised!r}"
        assert without_traces(str(ours_raised)) == without_traces(str(theirs_raised))
        assert isinstance(ours_raised, type(theirs_raised))
        return ours_raised, theirs_raised
    assert ours_told == theirs_told, f"ours warns {ours_told}, theirs {theirs_told}"
    assert_same_results(search.cv_results_, theirs.cv_results_, atol)
    assert_times(search, seconds)
    assert _fitted(search) == _fitted(theirs)
    assert search.n_splits_ == theirs.n_splits_ and search.multimetric_ == theirs.multimetric_
    assert search.refit == theirs.refit or callable(search.refit)
    metric = f"mean_test_{search.refit if search.multimetric_ else 'score'}"
    scores = theirs.cv_results_.get(metric)
    if hasattr(theirs, "n_iterations_"):  # the best of the last round
        assert search.best_index_ == theirs.best_index_
        assert search.n_candidates_ == theirs.n_candidates_ and search.n_resources_ == theirs.n_resources_
    elif hasattr(theirs, "best_index_") and not callable(search.refit) and scores is not None:
        scores = np.nan_to_num(scores, nan=-1e9)
        best = np.sort(scores)[::-1]
        assert_allclose(scores[search.best_index_], best[0], rtol=0, atol=2 * atol)
        if len(best) == 1 or best[0] - best[1] > 2 * atol:
            assert search.best_index_ == theirs.best_index_
            assert repr(search.best_params_) == repr(theirs.best_params_)
            assert_allclose(search.best_score_, theirs.best_score_, rtol=0, atol=atol)
    return search, theirs


def assert_same_results(ours: Results, theirs: Results, atol: float = 1e-6) -> None:
    """Two cv_results_: the same columns, in the same order, of the same types, and scores within `atol`."""
    assert list(ours) == list(theirs)
    assert repr(ours["params"]) == repr(theirs["params"])
    for name, column in theirs.items():
        if name == "params":
            continue
        assert type(ours[name]) is type(column), name
        assert ours[name].dtype == column.dtype and ours[name].shape == column.shape, name
        if name.startswith("param_"):
            assert_array_equal(np.ma.getmaskarray(ours[name]), np.ma.getmaskarray(column), name)
            assert repr(list(ours[name])) == repr(list(column)), name
        elif name.startswith("rank_"):
            _assert_same_ranks(ours[name], column, theirs[name.replace("rank", "mean")], atol)
        elif name not in TIMES:
            assert_allclose(ours[name], column, rtol=0, atol=atol, err_msg=name)


def _assert_same_ranks(ours: np.ndarray, theirs: np.ndarray, scores: np.ndarray, atol: float) -> None:
    """Of candidates whose scores are apart."""
    for i, j in combinations(range(len(scores)), 2):
        if np.isnan(scores[[i, j]]).any() or abs(scores[i] - scores[j]) > 2 * atol:
            assert np.sign(ours[i] - ours[j]) == np.sign(theirs[i] - theirs[j])


def assert_times(search: Any, seconds: float) -> None:
    """Finite, of fits and of scores, and together not more than the search took (in one process)."""
    results = search.cv_results_
    for name in TIMES:
        assert np.isfinite(results[name]).all() and (results[name] >= 0).all(), name
    spent = [results[f"mean_{what}_time"].sum() * search.n_splits_ for what in ("fit", "score")]
    assert spent[0] > 0
    if search.n_jobs is None:
        assert sum(spent) <= seconds, f"{spent} s of fits and scores in {seconds} s"


def _heard(run: Callable[[], Any]) -> tuple[list[tuple[str, str]], Exception | None, float]:
    """Warnings, but for those of solvers that stop early; the error, if any; and the time."""
    raised = None
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            run()
        except Exception as error:
            raised = error
    seconds = time.perf_counter() - started
    told = [
        warning
        for warning in heard
        if not issubclass(warning.category, ConvergenceWarning)
        and not str(warning.message).startswith("A worker stopped")  # joblib's, of busy machines
    ]
    return (
        sorted({(warning.category.__name__, without_traces(str(warning.message))) for warning in told}),
        raised,
        seconds,
    )


def without_traces(text: str) -> str:
    """A warning or an error without the lines of tracebacks; failed fits are counted by their error alone."""
    lines = [line for line in text.splitlines() if not line.startswith("  ") and "Traceback" not in line]
    head, *sections = re.split(r"\n?-{20,}\n", "\n".join(lines))
    counts: dict[str, int] = {}
    for section in sections:
        count, error = section.split(" ", 1)
        counts[error.strip()] = counts.get(error.strip(), 0) + int(count)
    text = head + "".join(f"; {count} {error}" for error, count in sorted(counts.items()))
    return re.sub(r" at 0x[0-9a-f]+", "", text).replace("progress=False, ", "").replace(", progress=False", "")


def _fitted(search: Any) -> set[str]:
    """Names of what fit has set."""
    return {name for name in vars(search) if name.endswith("_") and not name.startswith("_")}


def covering(levels: Mapping[str, Sequence[str]], seed: int = 0, tries: int = 40) -> Iterator[dict[str, str]]:
    """Combinations of levels in which any two levels of two factors meet; the greedy choice among random ones."""
    rng = np.random.default_rng(seed)
    names = list(levels)
    left = {(one, a, other, b) for one, other in combinations(names, 2) for a, b in product(levels[one], levels[other])}
    while left:
        first = sorted(left)[int(rng.integers(len(left)))]
        best: tuple[set[tuple[str, str, str, str]], dict[str, str]] = set(), {}
        for _ in range(tries):
            chosen = {name: values[int(rng.integers(len(values)))] for name, values in levels.items()}
            chosen |= {first[0]: first[1], first[2]: first[3]}
            met = {(one, chosen[one], other, chosen[other]) for one, other in combinations(names, 2)} & left
            if len(met) > len(best[0]):
                best = met, chosen
        left -= best[0]
        yield best[1]


class Recorded:
    """What estimators of a test have done: they are cloned, and all clones write into the list of their name."""

    lists: dict[str, list[Any]] = {}

    @classmethod
    def of(cls, name: str) -> list[Any]:
        return cls.lists.setdefault(name, [])


class RowsSeen(TransformerMixin, BaseEstimator):
    """Remembers the ids of the rows it is fitted on, which X has in its first column, and leaves that column out."""

    def __init__(self, name: str = "", keep_ids: bool = False, factor: float = 1.0) -> None:
        self.name, self.keep_ids, self.factor = name, keep_ids, factor

    def fit(self, X: Any, y: Any = None) -> RowsSeen:
        X = np.asarray(X)
        Recorded.of(self.name).append(frozenset(X[:, 0].astype(int).tolist()))
        self.mean_ = X[:, 1:].mean(0)
        return self

    def transform(self, X: Any) -> np.ndarray:
        X = np.asarray(X)
        rows = (X[:, 1:] - self.mean_) * self.factor
        return np.column_stack([X[:, :1], rows]) if self.keep_ids else rows


class CountedClassifier(ClassifierMixin, BaseEstimator):
    """Nearest class mean of the columns after the first; remembers the ids in the first; raises what it is told to."""

    raises: dict[str, tuple[int, BaseException]] = {}  # by name: on which fit, and what

    def __init__(self, name: str = "", power: float = 1.0, bad: bool = False) -> None:
        self.name, self.power, self.bad = name, power, bad

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> CountedClassifier:
        seen = Recorded.of(self.name)
        seen.append(frozenset(np.asarray(X)[:, 0].astype(int).tolist()))
        number, error = self.raises.get(self.name, (-1, KeyboardInterrupt()))
        if len(seen) == number:
            raise error
        if self.bad:
            raise ValueError("bad as told")
        self.classes_ = np.unique(y)
        self.means_ = np.array([np.asarray(X)[:, 1:][np.asarray(y) == c].mean(0) for c in self.classes_])
        return self

    def predict(self, X: Any) -> np.ndarray:
        apart = np.abs(np.asarray(X)[:, None, 1:] - self.means_) ** self.power
        return self.classes_[apart.sum(2).argmin(1)]
