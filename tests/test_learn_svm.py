"""SVC and SVR: scikit-learn's models, by matrix products, alone and many at once."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import sklearn.svm
from sklearn.datasets import make_classification

from featx.learn import SVC

SEED = 0


def data(k=3, n=240, d=12, dtype=np.float32, seed=SEED):
    X, y = make_classification(
        n, d, n_informative=d - 4, n_redundant=2, n_classes=k, n_clusters_per_class=1, class_sep=0.7, random_state=seed
    )
    return X.astype(dtype), np.array([f"c{c}" for c in range(k)])[y]


def numbers(n=200, d=8, dtype=np.float32):
    rng = np.random.default_rng(SEED)
    X = rng.standard_normal((n, d)).astype(dtype)
    return X, np.sin(X[:, 0]) + X[:, 1] ** 2 + 0.1 * rng.standard_normal(n)


def agree(ours, theirs, X, tol=1e-3):
    """Decision values within 1e-3 of theirs, and (all but one in 1,000 of) the predictions."""
    assert len(ours.support_) == len(ours.support_vectors_) == ours.dual_coef_.shape[1]
    if hasattr(ours, "classes_"):
        a, b = ours._decision_function(X), theirs._decision_function(X)
        assert np.mean(ours.predict(X) == theirs.predict(X)) >= 0.999
    else:
        a, b = ours.predict(X), theirs.predict(X)
    assert a.shape == b.shape and a.dtype == b.dtype == np.float64
    assert np.abs(a - b).max() <= tol


KERNELS = (
    {"kernel": "rbf"},
    {"kernel": "rbf", "gamma": 0.02},
    {"kernel": "linear"},
    {"kernel": "poly", "coef0": 1.0, "degree": 2},
    {"kernel": "sigmoid", "gamma": "auto"},
)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: "-".join(map(str, kernel.values())))
def test_a_classifier_decides_as_scikit_learn_s(kernel, k, dtype):
    X, y = data(k, dtype=dtype)
    weights = np.random.default_rng(SEED).uniform(0.2, 2, 180)
    for C, class_weight, sample_weight in product((0.1, 10.0), (None, "balanced", {"c1": 3.0}), (None, weights)):
        # two orders of adding up end in two optima, as far apart as tol lets them
        params = {"C": C, "class_weight": class_weight, "tol": 1e-5, **kernel}
        ours = SVC(**params).fit(X[:180], y[:180], sample_weight)
        theirs = sklearn.svm.SVC(**params).fit(X[:180].astype(np.float64), y[:180], sample_weight)
        agree(ours, theirs, X)
