"""Arrays by value: what is equal has one number, however it came."""

from __future__ import annotations

import numpy as np
import pytest
from classified import cases, labelled, solved
from numpy.testing import assert_array_equal

from featx.solvers import Loss, Problem
from featx.solvers.interning import ArrayNumbers, Interned, array_numbers


@pytest.mark.parametrize(
    "same",
    [np.arange(6.0).copy(), np.arange(12.0)[:6], np.repeat(np.arange(6.0), 2)[::2], np.asfortranarray(np.arange(6.0))],
    ids=["copy", "view", "strided", "fortran"],
)
def test_equal_arrays_have_one_number(same):
    interned, first = Interned(), np.arange(6.0)
    assert interned.number(first) == interned.number(same) == interned.number(first) == 0
    assert interned.values[0] is first


@pytest.mark.parametrize(
    "other",
    [None, np.arange(5.0), np.arange(6.0)[::-1], np.arange(6.0).reshape(2, 3), np.arange(6.0, dtype=np.float32)],
    ids=["none", "shorter", "reversed", "reshaped", "float32"],
)
def test_different_arrays_have_different_numbers(other):
    interned = Interned()
    assert interned.number(np.arange(6.0)) == 0
    assert interned.number(other) == interned.number(other) == 1


def test_the_arrays_of_problems_are_numbered_each_on_their_own():
    weights = np.ones(4)
    numbers = array_numbers([Problem(1.0, weights), Problem(1.0, weights.copy()), Problem(1.0)])
    assert numbers == [ArrayNumbers(0, 0, 0), ArrayNumbers(0, 0, 0), ArrayNumbers(1, 0, 0)]


@cases("loss")
def test_copies_of_arrays_change_no_byte_of_the_solutions(loss):
    X, y = labelled((60, 6), 3)
    s, shift, scale = (np.arange(60) % 3 > 0).astype(float), X.mean(axis=0), X.std(axis=0)
    shared = [Problem(l2, s, shift, scale) for l2 in (0.1, 10.0)]
    copied = [Problem(l2, s.copy(), shift.copy(), scale.copy()) for l2 in (0.1, 10.0)]
    for one, other in zip(solved(X, y, shared, loss), solved(X, y, copied, loss), strict=True):
        assert_array_equal(one.coef, other.coef)
        assert one.n_iter == other.n_iter


@pytest.mark.parametrize("shape", [(60, 6), (12, 30)], ids=["tall", "wide"])
def test_copies_of_arrays_change_no_byte_of_ridge_regressions(shape):
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=shape), rng.normal(size=(shape[0], 2))
    s, shift, scale = rng.uniform(0.1, 1, shape[0]), X.mean(axis=0), X.std(axis=0)
    shared = [Problem(l2, s, shift, scale) for l2 in (0.1, 10.0)]
    copied = [Problem(l2, s.copy(), shift.copy(), scale.copy()) for l2 in (0.1, 10.0)]
    found = (solved(X, Y, problems, Loss.SQUARED_ERROR) for problems in (shared, copied))
    for one, other in zip(*found, strict=True):
        assert_array_equal(one.coef, other.coef)
