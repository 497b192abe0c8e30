"""LogME, H-score and N-LEEP against their definitions, computed another way."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf

from featx.errors import FeatxError
from featx.transfer import h_score, log_me, n_leep


def clusters(n: int, d: int, k: int, apart: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) rows around k centres, and their labels."""
    generator = np.random.default_rng(seed)
    codes = np.arange(n) % k
    X = generator.normal(size=(n, d)) + apart * generator.normal(size=(k, d))[codes]
    return X, np.array([f"c{code}" for code in codes])


def evidence_by_search(X: np.ndarray, y: np.ndarray) -> float:
    """max over a, b of log N(y; 0, I / b + X X^T / a) / n, by a search over the density itself."""

    def negative(logs: np.ndarray) -> float:
        a, b = np.exp(logs)
        return -multivariate_normal.logpdf(y, np.zeros(len(y)), np.eye(len(y)) / b + X @ X.T / a) / len(y)

    starts = [(0.0, 0.0), (4.0, 2.0), (-2.0, 1.0)]
    options = {"xatol": 1e-9, "fatol": 1e-13, "maxiter": 4000}
    return max(-minimize(negative, start, method="Nelder-Mead", options=options).fun for start in starts)


@pytest.mark.parametrize("n, d", [(40, 6), (30, 50)], ids=["n > d", "n < d"])
def test_log_me_is_the_maximum_evidence(n, d):
    X, y = clusters(n, d, 3, apart=0.7)
    expected = np.mean([evidence_by_search(X, (y == name).astype(float)) for name in np.unique(y)])
    np.testing.assert_allclose(log_me(X, y), expected, rtol=1e-6)


def test_log_me_of_numbers():
    X, _ = clusters(40, 6, 3, apart=0.7)
    y = X @ np.arange(6.0) + np.random.default_rng(1).normal(size=40)
    np.testing.assert_allclose(log_me(X, y), evidence_by_search(X, y), rtol=1e-6)


@pytest.mark.parametrize("n, d", [(60, 8), (30, 50)], ids=["n > d", "n < d"])
def test_h_score_is_the_trace_of_its_definition(n, d):
    X, y = clusters(n, d, 3, apart=1.0)
    shrunk, shrinkage = ledoit_wolf(X)
    means = {name: X[y == name].mean(axis=0) - X.mean(axis=0) for name in np.unique(y)}
    between = np.mean([np.outer(means[name], means[name]) for name in y], axis=0)
    expected = (1 - shrinkage) * np.trace(np.linalg.solve(shrunk, between))
    np.testing.assert_allclose(h_score(X, y), expected, rtol=1e-6)


def test_n_leep_of_components_that_are_classes_is_zero_and_of_noise_minus_the_entropy():
    X, y = clusters(200, 5, 2, apart=100.0)
    assert n_leep(X, y) == pytest.approx(0, abs=1e-6)
    noise = np.random.default_rng(0).normal(size=(2000, 5))
    assert n_leep(noise, np.array(["a", "b"] * 1000)) == pytest.approx(-np.log(2), abs=0.02)


@pytest.mark.parametrize("score", [log_me, h_score, n_leep])
def test_scores_rise_with_the_distance_of_classes_and_ignore_the_order_of_images(score):
    near, far = clusters(150, 10, 3, apart=0.3), clusters(150, 10, 3, apart=2.0)
    assert score(*near) < score(*far)
    order = np.random.default_rng(0).permutation(150)
    if score is not n_leep:  # its mixture starts at random rows
        np.testing.assert_allclose(score(far[0][order], far[1][order]), score(*far), rtol=1e-9)
    np.testing.assert_allclose(score(far[0].astype(np.float32), far[1]), score(*far), rtol=1e-4)


@pytest.mark.parametrize("score", [log_me, h_score, n_leep])
def test_bad_input_is_refused(score):
    X, y = clusters(30, 4, 2, apart=1.0)
    with pytest.raises(FeatxError, match="only 'c0'"):
        score(X, np.full(30, "c0"))
    with pytest.raises(ValueError, match="NaN"):
        score(np.full_like(X, np.nan), y)
    if score is not log_me:
        with pytest.raises(FeatxError, match="the labels are numbers. Use 'log_me'"):
            score(X, np.arange(30.0))
