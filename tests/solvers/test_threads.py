"""Short work has one thread, long work is shared, and the caller's number comes back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from classified import assert_same, cases, labelled, solved
from test_objective import low, several  # noqa: F401

from featx.learn import (
    SVC,
    GridSearchCV,
    KNeighborsClassifier,
    LogisticRegression,
    MLPClassifier,
    NearestCentroid,
    Ridge,
)
from featx.solvers import lbfgs, objective, threads
from featx.solvers.threads import Team, threads_for


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every pass is long enough to be shared; the number of shares of each."""
    monkeypatch.setattr(threads, "_LEAST_FLOP", 0)
    shares: list[int] = []
    method = Team.map

    def counted(self, work, given):
        shares.append(len(given))
        return method(self, work, given)

    monkeypatch.setattr(Team, "map", counted)
    return shares


def test_short_work_has_one_thread_and_long_work_all(three_threads):
    with threads_for(1e3):
        assert torch.get_num_threads() == 1
        with threads_for(1e15):  # inside of short work nothing is long
            assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    with threads_for(1e15):
        assert torch.get_num_threads() == 3


def test_the_number_comes_back_after_an_exception(three_threads):
    with pytest.raises(ZeroDivisionError), threads_for(0):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 3


def test_a_team_answers_in_order_and_its_threads_have_one_each(three_threads):
    with threads_for(0), Team(3) as team:
        assert team.map(lambda number, share: (number, share, torch.get_num_threads()), "abc") == [
            (0, "a", 1),
            (1, "b", 1),
            (2, "c", 1),
        ]
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("who", [0, 1, 2])
def test_what_a_share_raises_is_raised(who, three_threads):
    with pytest.raises(ZeroDivisionError), threads_for(0), Team(3) as team:
        team.map(lambda number, share: 1 / (number - who), [None] * 3)
    assert torch.get_num_threads() == 3


@cases("shape", "loss", "k", rounded=[False, True])
def test_shared_passes_find_what_one_thread_finds(k, loss, shape, rounded, shared, three_threads, request):
    if rounded:
        request.getfixturevalue("low")
    X, y = labelled(shape, k, np.float64)
    problems = several(X, y)
    found = solved(X, y, problems, loss, tol=1e-9)
    assert set(shared) == {3}
    torch.set_num_threads(1)
    for ours, alone in zip(found, solved(X, y, problems, loss, tol=1e-9), strict=True):
        assert_same(ours, alone, 1e-5)


def test_a_small_solve_runs_in_one_thread(three_threads, monkeypatch):
    """Both the passes and what L-BFGS does between them."""
    seen = set()
    for place, name in ((objective.Objective, "_add_loss"), (lbfgs, "_judge")):
        method = getattr(place, name)
        monkeypatch.setattr(
            place, name, lambda *given, method=method: (seen.add(torch.get_num_threads()), method(*given))[1]
        )
    LogisticRegression().fit(*labelled((60, 6), 3))
    assert seen == {1}
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(),
        Ridge(),
        SVC(),
        KNeighborsClassifier(),
        NearestCentroid(),
        MLPClassifier((3,), tol=0.5, n_iter_no_change=1, random_state=0),
    ],
    ids=repr,
)
def test_a_search_gives_the_number_back(estimator, three_threads):
    X, y = labelled((60, 6), 2)
    name = next(name for name in ("C", "alpha", "n_neighbors", "metric") if name in estimator.get_params())
    values = {"metric": ["euclidean", "cosine"], "n_neighbors": [1, 3]}.get(name, [0.1, 1.0])
    GridSearchCV(estimator, {name: values}, cv=2).fit(X, y).predict(X)
    assert torch.get_num_threads() == 3
