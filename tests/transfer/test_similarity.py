"""Unbiased minibatch CKA against its definition."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from helpers import store_of

from featx.errors import FeatxError, KeysError
from featx.transfer import similarity


def hsic(K: np.ndarray, L: np.ndarray) -> float:
    """The U-statistic of HSIC: the mean of its kernel over all ordered quadruples of distinct images."""
    terms = [
        K[i, j] * (L[i, j] + L[q, r] - 2 * L[i, q])
        for i, j, q, r in permutations(range(len(K)), 4)
    ]  # fmt: skip
    return float(np.mean(terms))


def test_cka_is_the_ratio_of_unbiased_hsics(tmp_path: Path):
    rng = np.random.default_rng(0)
    rows = {"a:avg": rng.normal(size=(8, 3)), "b:avg": rng.normal(size=(8, 5))}
    store = store_of(tmp_path / "s.h5", rows)
    found = similarity(store, batch_rows=8)
    K, L = (X.astype(np.float32) @ X.T.astype(np.float32) for X in rows.values())
    expected = hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L))
    np.testing.assert_allclose(found.values[0, 1], expected, rtol=1e-5)
    np.testing.assert_allclose(found.values.diagonal(), 1)
    assert [layer for _, layer in found.names] == ["a:avg", "b:avg"] and found.n == 8


def test_cka_does_not_see_rotation_scale_or_shift_and_is_about_zero_for_unrelated_layers(tmp_path: Path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 6))
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    layers = {"x:avg": X, "rotated:avg": 7 * X @ rotation + 3, "other:avg": rng.normal(size=(400, 200))}
    store = store_of(tmp_path / "s.h5", layers)
    for batch_rows in (64, 400):
        values = similarity(store, batch_rows=batch_rows).values
        np.testing.assert_allclose(values[0, 1], 1, atol=1e-5)
        assert abs(values[0, 2]) < 0.05  # the biased estimator gives 0.3 or more with 200 columns


def test_bad_input(tmp_path: Path):
    store = store_of(tmp_path / "s.h5", {"a:avg": np.eye(8)})
    with pytest.raises(FeatxError, match="batch_rows is 4 images or more; got 3"):
        similarity(store, batch_rows=3)
    few = store_of(tmp_path / "few.h5", {"a:avg": np.eye(3)})
    with pytest.raises(FeatxError, match="CKA needs 4 images or more; few.h5 has 3"):
        similarity(few)
    with pytest.raises(KeysError):
        similarity([store, few])
