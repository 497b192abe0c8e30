"""The time left of a search: what is planned, at the pace of what is done."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

import featx
from featx.errors import FeatxError
from featx.learn import SVC, GridSearchCV, LogisticRegression
from featx.progress import SearchClock, SearchProgress, left_text

PACE = {"linear": 2.0, "kernel": 0.5}  # seconds an amount
PIECES = [("linear", 3), ("kernel", 10), ("linear", 5), ("kernel", 40), ("linear", 20)]


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def clock_of(pieces=PIECES) -> tuple[SearchClock, Time, list[SearchProgress]]:
    shown: list[SearchProgress] = []
    time = Time()
    clock = SearchClock(shown.append, time)
    for kind, amount in pieces:
        clock.expect(1, {kind: amount})
    return clock, time, shown


def test_at_a_steady_pace_the_time_left_is_right_once_each_kind_was_met():
    clock, time, shown = clock_of()
    whole = sum(PACE[kind] * amount for kind, amount in PIECES)
    for number, (kind, amount) in enumerate(PIECES):
        with clock.piece(kind, amount):
            time.now += PACE[kind] * amount / 2
            clock.show()
            if number > 1:
                assert shown[-1].seconds_left == pytest.approx(whole - (time.now - 100))
            time.now += PACE[kind] * amount / 2
        clock.fitted()
        assert shown[-1][:3] == (number + 1, 5, time.now - 100)
        if number:
            assert shown[-1].seconds_left == pytest.approx(whole - (time.now - 100))
    assert shown[-1].seconds_left == 0


def test_nothing_is_said_before_anything_is_done():
    clock, time, shown = clock_of()
    clock.show()
    with clock.piece("linear", 3):
        time.now += 5
        clock.show()
    assert [now.seconds_left for now in shown] == [None] * 3


def test_a_kind_that_was_not_met_yet_takes_as_long_as_the_others():
    clock, time, shown = clock_of()
    with clock.piece("linear", 3):
        time.now += 6
    clock.fitted()
    assert shown[-1].seconds_left == pytest.approx(2.0 * (10 + 5 + 40 + 20))


def test_a_piece_that_takes_longer_than_thought_slows_what_is_left_of_its_kind():
    clock, time, shown = clock_of([("linear", 1), ("linear", 1), ("linear", 2)])
    with clock.piece("linear", 1):
        time.now += 1
    with clock.piece("linear", 1):
        for seconds in (0.5, 0.5, 4.0):
            time.now += seconds
            clock.show()
    assert [now.seconds_left for now in shown[-3:]] == pytest.approx([2.5, 2.0, 10.0])


def test_more_work_than_planned_leaves_no_less_than_none():
    clock, time, shown = clock_of([("linear", 1), ("kernel", 1)])
    for _ in range(3):
        with clock.piece("linear", 1):
            time.now += 1
        clock.fitted()
        assert shown[-1].seconds_left is not None and shown[-1].seconds_left >= 0


def test_a_new_round_keeps_the_pace():
    clock, time, shown = clock_of([("linear", 1)])
    with clock.piece("linear", 1):
        time.now += 3
    clock.fitted()
    clock.restart()
    clock.expect(4, {"linear": 2})
    clock.show()
    assert (shown[-1].done, shown[-1].total, shown[-1].seconds_left) == (0, 4, 6.0)


@pytest.mark.parametrize("seconds, text", [(None, ""), (3.4, "0:03 left"), (125, "2:05 left"), (3725, "1:02:05 left")])
def test_the_time_left_in_words(seconds, text):
    assert left_text(SearchProgress(1, 3, 1.0, seconds)) == text


def test_the_time_left_counts_down_to_a_second():
    now = SearchProgress(1, 3, 1.0, 65.0)
    assert [left_text(now, since) for since in (0, 10.2, 64, 500)] == [
        "1:05 left",
        "0:55 left",
        "0:01 left",
        "0:01 left",
    ]


def test_all_that_is_planned_is_done_in_pieces(monkeypatch):
    """One solve, steps fitted once a fold, and scikit-learn's way."""
    done: dict[str, float] = {}
    piece = SearchClock.piece

    def counted(clock, kind, amount):
        done[kind] = done.get(kind, 0) + amount
        return piece(clock, kind, amount)

    monkeypatch.setattr(SearchClock, "piece", counted)
    X, y = load_iris(return_X_y=True)
    pipe = Pipeline([("scale", StandardScaler()), ("model", SVC())])
    grid = [
        {"model": [LogisticRegression()], "model__C": [0.1, 1.0]},
        {"model": [SVC()], "model__C": [0.1, 1.0]},
        {"scale": [PCA(2)], "model": [SVC()], "model__C": [0.1, 1.0]},
        {"scale": ["passthrough"], "model": [ExtraTreesClassifier(2)]},
    ]
    shown: list[SearchProgress] = []
    search = GridSearchCV(pipe, grid, cv=3, progress=shown.append)
    plan = search.plan(X, y)
    search.fit(X, y)
    assert done.keys() == plan.work.keys() and len(done) == 4
    np.testing.assert_allclose([done[kind] for kind in plan.work], [*plan.work.values()])
    assert plan.n_fits == 21 == shown[-1].total
    assert shown[0].seconds_left is None and shown[-1].seconds_left == 0
    assert all(now.seconds_left is not None and now.seconds_left >= 0 for now in shown if 6 < now.done)
    assert [now.seconds for now in shown] == sorted(now.seconds for now in shown)


@pytest.mark.parametrize("progress", ["bar", 5, []])
def test_progress_is_a_flag_or_a_function(progress, tmp_path):
    images = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(FeatxError, match="progress is True, False or a function; got"):
        featx.extract(images, tmp_path / "a.h5", "bundled:pixels", progress=progress)
    with pytest.raises(FeatxError, match="progress is a function; got"):
        featx.plan(images, tmp_path / "a.h5", "bundled:pixels", progress=progress)
