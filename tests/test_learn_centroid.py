"""The nearest centroid: scikit-learn's, alone and of all folds at once."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.neighbors
from scipy.sparse import csr_matrix
from sklearn.datasets import make_classification
from sklearn.model_selection import StratifiedKFold

import featx
from featx.errors import FeatxError
from featx.learn import NearestCentroid
from featx.learn.folds import Fold, Job

SEED = 0


def data(k=4, n=300, d=10, dtype=np.float32):
    X, y = make_classification(n, d, n_informative=6, n_classes=k, class_sep=0.6, random_state=SEED)
    return X.astype(dtype), np.array([f"c{c}" for c in range(k)])[y]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [2, 4])
def test_euclidean_centroids_are_scikit_learn_s(k, dtype):
    X, y = data(k, dtype=dtype)
    ours, theirs = NearestCentroid().fit(X, y), sklearn.neighbors.NearestCentroid().fit(X, y)
    np.testing.assert_allclose(ours.centroids_, theirs.centroids_, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    squares = ((X[:, None].astype(float) - ours.centroids_) ** 2).sum(2)
    scores = squares[:, 0] - squares[:, 1] if k == 2 else -squares
    np.testing.assert_allclose(ours.decision_function(X), scores, atol=1e-9)


@pytest.mark.parametrize("k", [2, 4])
def test_cosine_centroids_are_means_of_directions(k):
    X, y = data(k)
    X[5] = 0
    model = NearestCentroid("cosine").fit(X, y)
    lengths = np.linalg.norm(X.astype(float), axis=1, keepdims=True)
    units = X / np.where(lengths > 0, lengths, 1)
    means = np.stack([units[y == label].mean(0) for label in model.classes_])
    np.testing.assert_allclose(model.centroids_, means, atol=1e-12)
    cosines = units @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    np.testing.assert_allclose(
        model.decision_function(X), cosines[:, 1] - cosines[:, 0] if k == 2 else cosines, atol=1e-9
    )
    np.testing.assert_array_equal(model.predict(3 * X), model.classes_[cosines.argmax(1)])


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_weights_are_repetitions_and_0_is_absence(metric):
    X, y = data(3)
    weights = np.random.default_rng(SEED).integers(0, 3, len(y)) * (y != "c1")
    ours = NearestCentroid(metric).fit(X, y, weights)
    repeated = NearestCentroid(metric).fit(np.repeat(X, weights, axis=0), np.repeat(y, weights))
    np.testing.assert_array_equal(ours.classes_, ["c0", "c2"])
    np.testing.assert_allclose(ours.centroids_, repeated.centroids_, atol=1e-12)
    with pytest.raises(ValueError, match="Negative"):
        NearestCentroid().fit(X, y, -weights - 1.0)
    with pytest.raises(ValueError, match="greater than one; got 1 class"):
        NearestCentroid().fit(X, y, y == "c1")
    with pytest.raises(FeatxError, match="X is sparse"):
        NearestCentroid().fit(csr_matrix(X), y)


@pytest.mark.parametrize("scaled", [False, True], ids=["as-is", "scaled"])
def test_all_folds_at_once_are_the_folds_one_by_one(scaled):
    X, y = data()
    jobs = []
    for train, test in StratifiedKFold(3).split(X, y):
        shift, scale = (X[train].mean(0), X[train].std(0)) if scaled else (None, None)
        rows = (X - shift) / scale if scaled else X
        fold = Fold(train, rows[test], test, np.linspace(0.1, 1, len(train)), shift, scale)
        jobs += [Job(NearestCentroid(metric), fold) for metric in ("euclidean", "cosine", "cosine")]
    jobs += [Job(NearestCentroid("manhattan"), fold), Job(NearestCentroid(), Fold(np.flatnonzero(y == "c0"), X))]
    answers = {number: (model, seconds) for number, model, seconds in NearestCentroid.fit_each(X, y, jobs)}
    assert sorted(answers) == list(range(len(jobs)))
    assert isinstance(answers[len(jobs) - 2][0], ValueError) and isinstance(answers[len(jobs) - 1][0], ValueError)
    for number, (estimator, fold) in enumerate(jobs[:-2]):
        assert answers[number][0] is estimator and answers[number][1] > 0
        rows = X if fold.shift is None else (X - fold.shift) / fold.scale
        alone = NearestCentroid(estimator.metric).fit(rows[fold.train], y[fold.train], fold.sample_weight)
        np.testing.assert_allclose(estimator.centroids_, alone.centroids_, atol=1e-5)
        np.testing.assert_array_equal(estimator.predict(fold.X_test), alone.predict(fold.X_test))


def test_a_saved_model_predicts_the_same(tmp_path):
    X, y = data()
    np.save(tmp_path / "X.npy", X)
    model = NearestCentroid().fit(np.load(tmp_path / "X.npy", mmap_mode="r"), y)
    again = featx.load(featx.save(model, tmp_path / "m.skops"))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
