"""scikit-learn's own tests of its searches, run on ours: with its estimators, and once more with ours in their place.

With its own estimators a search goes scikit-learn's way; with ours the candidates are solved together.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import wraps
from types import ModuleType
from typing import Any

import pytest
import sklearn_own
from helpers import fresh_python
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection._search import BaseSearchCV

from featx import learn
from featx.learn.estimators import linear

pytestmark = pytest.mark.sklearn

SEARCHES: dict[str, type] = {
    name: getattr(learn, name)
    for name in ("GridSearchCV", "RandomizedSearchCV", "HalvingGridSearchCV", "HalvingRandomSearchCV")
}
ESTIMATORS: dict[str, type] = {
    name: getattr(learn, name) for name in ("LinearSVC", "LogisticRegression", "Ridge", "SVC", "KNeighborsClassifier")
}
_NAMES = {"Search": "test_search", "Halving": "test_successive_halving"}


def _module(name: str, classes: dict[str, type]) -> ModuleType:
    return sklearn_own.copy_of(f"model_selection.tests.{_NAMES[name]}", classes, dense=classes is not SEARCHES)


THEIRS = {name: _module(name, SEARCHES) for name in _NAMES}
OURS = {name: _module(name, SEARCHES | ESTIMATORS) for name in _NAMES}

# By module: a test, or a test and a part of "argument=value" of the parameters that cannot apply: what it is about.
Reasons = dict[str, dict[str | tuple[str, str], str]]
CANNOT_APPLY: Reasons = {
    "Search": {
        "test_array_api_search_cv_classifier": (
            "asks for SCIPY_ARRAY_API=1 before SciPy is imported, and is skipped; test_arrays_of_torch has it"
        ),
    },
    "Halving": {},
}
# The same for the second time, when scikit-learn's estimators are ours too.
_SPARSE = "sparse X, which our estimators refuse"
CANNOT_APPLY_TO_OURS: Reasons = {
    "Search": {
        "test_grid_search_sparse": _SPARSE,
        "test_grid_search_sparse_scoring": _SPARSE,
        "test_search_cv_pairwise_property_equivalence_of_precomputed": (
            "metric='precomputed', which our KNeighborsClassifier refuses"
        ),
    },
    "Halving": {},
}
# Compared to more digits than the default tol gives: theirs with itself, ours with ours.
TIGHTER = {"test_search_cv_sample_weight_equivalence": 1e-11}
# Of a static method alone.
MAKES_NONE = {"test_select_best_index"}

# Of scikit-learn, and not errors in scikit-learn's own runs.
_WARNINGS = [
    "ignore:Liblinear failed to converge:sklearn.exceptions.ConvergenceWarning",
    r"ignore:R\^2 score is not well-defined:sklearn.exceptions.UndefinedMetricWarning",
    "ignore:One or more of the test scores are non-finite:UserWarning",
    "ignore:The total space of parameters:UserWarning",
    "ignore:Scoring failed:UserWarning",
    "ignore:The estimator NoCallbackEstimator does not support callbacks:UserWarning",
    "ignore:callbacks are set. falling back to scikit-learn:UserWarning",
    "ignore:The least populated class in y has only 2 members:UserWarning",
    "ignore:divide by zero encountered in log:RuntimeWarning",
]


class Borrowed:
    """The tests of a module that can apply."""

    modules: dict[str, ModuleType]

    @pytest.fixture(autouse=True)
    def _ours_take_part(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """A search of ours is made at least, and what the copy defines is found where pickles look for it."""
        made: list[type] = []
        init = BaseSearchCV.__init__

        @wraps(init)
        def counted(search: BaseSearchCV, *args: Any, **parameters: Any) -> None:
            made.append(type(search))
            init(search, *args, **parameters)

        monkeypatch.setattr(BaseSearchCV, "__init__", counted)
        for module in self.modules.values():
            monkeypatch.setitem(sys.modules, module.__name__, module)
        if tol := TIGHTER.get(request.node.originalname):
            monkeypatch.setattr(linear.LinearModel, "_stopping", lambda model: (tol, model.max_iter))
        yield
        ours = tuple(SEARCHES.values())
        assert request.node.originalname in MAKES_NONE or any(issubclass(search, ours) for search in made), (
            "none of ours"
        )


def _applying(
    modules: dict[str, ModuleType], name: str, without: Reasons, classes: dict[str, type]
) -> dict[str, sklearn_own.Test]:
    """The tests of a module that use a search and one of these classes, and can apply."""
    searching = sklearn_own.tests_of(modules[name], SEARCHES)
    found = {}
    for test_name in searching.keys() & sklearn_own.tests_of(modules[name], classes).keys():
        if test_name not in without[name]:
            rows = [key[1] for key in without[name] if isinstance(key, tuple) and key[0] == test_name]
            sklearn_own.leave_out(searching[test_name], rows)
            found[test_name] = searching[test_name]
    return dict(sorted(found.items()))


def _borrowed(
    modules: dict[str, ModuleType], name: str, without: Reasons, classes: dict[str, type], *more: pytest.MarkDecorator
) -> type:
    tests = {name: staticmethod(test) for name, test in _applying(modules, name, without, classes).items()}
    marks = [*(pytest.mark.filterwarnings(warning) for warning in _WARNINGS), *more]
    return type(f"Test{name}", (Borrowed,), {**tests, "modules": modules, "pytestmark": marks})


TestSearch, TestHalving = (_borrowed(THEIRS, name, CANNOT_APPLY, SEARCHES) for name in _NAMES)
# Whether candidates solved together score as those of scikit-learn's search is what test_learn_search_equality asks.
TestSearchOfOurs, TestHalvingOfOurs = (
    _borrowed(OURS, name, CANNOT_APPLY_TO_OURS, ESTIMATORS, pytest.mark.slow) for name in _NAMES
)


@pytest.mark.parametrize(
    ("modules", "reasons", "classes"),
    [(THEIRS, CANNOT_APPLY, SEARCHES), (OURS, CANNOT_APPLY_TO_OURS, ESTIMATORS)],
    ids=["theirs", "ours"],
)
@pytest.mark.parametrize("name", _NAMES)
def test_what_cannot_apply_is_there(name, modules, reasons, classes):
    copy = _module(name, SEARCHES if modules is THEIRS else SEARCHES | ESTIMATORS)
    tests = sklearn_own.tests_of(copy, classes)
    for key in reasons[name]:
        test, text = key if isinstance(key, tuple) else (key, "")
        assert test in tests, f"no {test} of scikit-learn uses ours"
        assert not text or any(text in row for row in sklearn_own.texts_of(tests[test])), f"{test} has no {text}"


def test_what_changes_a_test_is_there():
    every = {test for module in THEIRS.values() for test in vars(module)}
    assert TIGHTER.keys() | MAKES_NONE <= every


@pytest.mark.parametrize(
    ("borrowed", "least", "classes"),
    [
        (TestSearch, 80, SEARCHES),
        (TestHalving, 14, SEARCHES),
        (TestSearchOfOurs, 30, SEARCHES | ESTIMATORS),
        (TestHalvingOfOurs, 1, SEARCHES | ESTIMATORS),
    ],
)
def test_tests_are_left_and_their_names_mean_ours(borrowed, least, classes):
    tests = [test for name, test in vars(borrowed).items() if name.startswith("test_")]
    assert len(tests) >= least
    for test in tests:
        for name, ours in classes.items():
            assert test.__func__.__globals__.get(name, ours) is ours


def test_arrays_of_torch():
    done = fresh_python(
        """
import os
os.environ["SCIPY_ARRAY_API"] = "1"
import json, warnings
import sklearn, torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from featx.learn import GridSearchCV
X, y = torch.arange(100.0).reshape(10, 10), torch.arange(10) // 5
with sklearn.config_context(array_api_dispatch=True):
    search = GridSearchCV(LinearDiscriminantAnalysis(), {"tol": [1e-2, 1e-7]}, cv=2, error_score="raise").fit(X, y)
    score = search.score(X, y)
print(json.dumps([float(score), type(search.best_estimator_.means_).__module__]))
"""
    )
    assert done == [1.0, "torch"]
