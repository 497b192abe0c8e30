"""scikit-learn's test modules in, copies in which its linear models, or other classes, are ours out.

A copy is imported while the names of scikit-learn's classes mean ours, so that parametrisations hold ours too. What is
left of each test is what concerns ours:

- Where parameters hold estimators, those that are ours.
- One of the solvers: to ours all names mean the same. One value of what only theirs are told.
- Dense arrays where sparse ones are made: ours refuse them, and a comparison of both stays a comparison.

Tests of searches are left as they are, but for the rows that `leave_out` is told of.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import pytest
import sklearn.linear_model
import sklearn.model_selection
import sklearn.neighbors
import sklearn.svm
import sklearn.utils.fixes
from sklearn.model_selection._search import BaseSearchCV

from featx import learn

Test = Callable[..., None]


def _substitute(ours: type, theirs: type) -> type:
    """Our class; a call with what ours refuse makes an estimator of theirs, as the refusal advises."""

    def new(cls: type, *args: Any, **parameters: Any) -> Any:
        refused = any(parameters.get(name, only) != only for name, only in ours._only.items())
        return theirs(*args, **parameters) if refused else object.__new__(cls)

    return type(ours.__name__, (ours,), {"__new__": new, "__doc__": ours.__doc__})


OURS: dict[str, type] = {
    "LinearSVC": _substitute(learn.LinearSVC, sklearn.svm.LinearSVC),
    "LogisticRegression": _substitute(learn.LogisticRegression, sklearn.linear_model.LogisticRegression),
    "Ridge": _substitute(learn.Ridge, sklearn.linear_model.Ridge),
    "RidgeClassifier": _substitute(learn.RidgeClassifier, sklearn.linear_model.RidgeClassifier),
}
# A test of much more asks for it in its last line.
OURS["Ridge"].solver_ = property(lambda ridge: ridge.solver)
_HOMES = (sklearn.linear_model, sklearn.model_selection, sklearn.neighbors, sklearn.svm)
# Of those a test is parametrised over, the first one here: scikit-learn's tests ask most of it.
_SOLVERS = ("newton-cg", "svd", "cholesky", "sparse_cg", "auto", "lbfgs", "saga")
# What only RidgeCV and LogisticRegressionCV are told, which stay scikit-learn's.
_OF_THEIRS = {"gcv_mode", "use_legacy_attributes"}
_CONTAINERS = {"csr_container", "coo_container", "sparse_container", "X_container"}


@contextmanager
def ours_in_place_of_theirs(classes: Mapping[str, type] = OURS) -> Iterator[None]:
    """Within, the public names of scikit-learn's classes are ours."""
    with pytest.MonkeyPatch.context() as patched:
        for home in _HOMES:
            for name in [name for name in classes if hasattr(home, name)]:
                patched.setattr(home, name, classes[name])
        yield


def copy_of(name: str, classes: Mapping[str, type] = OURS, dense: bool = True) -> ModuleType:
    """A test module of scikit-learn, "linear_model.tests.test_ridge", imported with ours and dense containers."""
    spec = importlib.util.find_spec(f"sklearn.{name}")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with ours_in_place_of_theirs(classes), pytest.MonkeyPatch.context() as patched:
        if dense:
            patched.setattr(sklearn.utils.fixes, "COO_CONTAINERS", [np.array])
            patched.setattr(sklearn.utils.fixes, "CSR_CONTAINERS", [np.array])
        patched.setattr(pytest, "mark", type(pytest.mark)(_ispytest=True))  # scikit-learn has markers of its own
        spec.loader.exec_module(module)
    return module


def tests_of(module: ModuleType, classes: Mapping[str, type] = OURS) -> dict[str, Test]:
    """The tests of a copy that use ours, by name."""
    tests = {name: test for name, test in vars(module).items() if name.startswith("test_") and callable(test)}
    for test in tests.values():  # rows of a generator can be read once
        test.pytestmark = [_keeping(mark, lambda _: True) for mark in getattr(test, "pytestmark", ())]
    return {
        name: test
        for name, test in tests.items()
        if _uses_ours(test, classes) or any(_uses_ours(row, classes) for row in rows_of(test))
    }


def narrow(test: Test, without: Iterable[str], classes: Mapping[str, type] = OURS) -> None:
    """Leave out the rows of parameters with one of the texts, "solver='sag'" or a part of it; then, as said above."""
    leave_out(test, without)
    test.pytestmark = [_narrowed(mark, classes) for mark in test.pytestmark]


def leave_out(test: Test, without: Iterable[str]) -> None:
    """The rows of parameters with one of the texts; and marks that are scikit-learn's own."""
    marks = []
    for mark in test.pytestmark:
        names = names_of(mark)
        marks.append(_keeping(mark, lambda row, names=names: not any(text in text_of(names, row) for text in without)))
    test.pytestmark = [mark for mark in marks if mark.name != "thread_unsafe"]


def names_of(mark: pytest.Mark) -> list[str]:
    """What a mark parametrises; nothing if it is another mark."""
    if mark.name != "parametrize":
        return []
    names = mark.args[0]
    return [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)


def rows_of(test: Test) -> list[Any]:
    """Of all its parametrisations."""
    return [row for mark in test.pytestmark if mark.name == "parametrize" for row in mark.args[1]]


def texts_of(test: Test) -> list[str]:
    return [
        text_of(names_of(mark), row) for mark in test.pytestmark if mark.name == "parametrize" for row in mark.args[1]
    ]


def text_of(names: list[str], row: Any) -> str:
    """ "solver='sag', alpha=1.0" """
    return ", ".join(f"{name}={value!r}" for name, value in zip(names, _values(names, row), strict=True))


def _values(names: list[str], row: Any) -> tuple[Any, ...]:
    if hasattr(row, "marks"):  # pytest.param
        return row.values
    return (row,) if len(names) == 1 else tuple(row)


def _keeping(mark: pytest.Mark, keep: Callable[[Any], bool]) -> pytest.Mark:
    if mark.name != "parametrize":
        return mark
    rows = [row for row in mark.args[1] if keep(row)]
    options = {name: value for name, value in mark.kwargs.items() if name != "ids" or callable(value)}
    return pytest.Mark(mark.name, (mark.args[0], rows), options, _ispytest=True)


def _narrowed(mark: pytest.Mark, classes: Mapping[str, type]) -> pytest.Mark:
    if mark.name == "parametrize" and any(_uses_ours(row, classes) for row in mark.args[1]):
        mark = _keeping(mark, lambda row: _uses_ours(row, classes))
    for i, name in enumerate(names := names_of(mark)):
        values = [_values(names, row)[i] for row in mark.args[1]]
        if name in _CONTAINERS | _OF_THEIRS:
            mark = _keeping(mark, lambda row, i=i, values=values: _values(names, row)[i] is values[0])
        elif name == "solver":
            kept = next((solver for solver in _SOLVERS if solver in values), None)
            mark = _keeping(mark, lambda row, i=i, kept=kept: _values(names, row)[i] == kept)
    return mark


def _uses_ours(value: Any, classes: Mapping[str, type] = OURS) -> bool:
    """Whether it is one of our classes or estimators, holds one, or is a function that names one."""
    ours = tuple(classes.values())
    if isinstance(value, FunctionType):
        return bool(classes.keys() & _names_in(value.__code__)) or _uses_ours(value.__defaults__ or (), classes)
    if isinstance(value, BaseSearchCV) and _uses_ours(value.estimator, classes):
        return True
    if isinstance(value, tuple | list):  # a pytest.param is one too
        return any(_uses_ours(item, classes) for item in value)
    return isinstance(value, ours) or (isinstance(value, type) and issubclass(value, ours))


def _names_in(code: CodeType) -> set[str]:
    return {
        *code.co_names,
        *(name for inner in code.co_consts if isinstance(inner, CodeType) for name in _names_in(inner)),
    }
