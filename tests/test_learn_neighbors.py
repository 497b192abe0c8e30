"""The nearest neighbours: scikit-learn's, alone and for all numbers of neighbours at once."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import sklearn.neighbors
from scipy.sparse import csr_matrix
from sklearn.datasets import make_classification
from sklearn.model_selection import ShuffleSplit, StratifiedKFold

import featx
from featx.errors import FeatxError
from featx.learn import KNeighborsClassifier
from featx.learn.folds import Fold, Job

SEED = 0


def data(n=300, d=10, dtype=np.float32):
    X, y = make_classification(n, d, n_informative=6, n_classes=4, class_sep=0.6, random_state=SEED)
    return X.astype(dtype), np.array(["ant", "bee", "cat", "dog"])[y]


def peer(**params):
    params = {key: value for key, value in params.items() if key != "device"}
    return sklearn.neighbors.KNeighborsClassifier(**params, algorithm="brute")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_neighbours_are_scikit_learn_s(metric, dtype):
    X, y = data(dtype=dtype)
    X += 30  # products of rows far from 0 lose digits
    for k, weights in product((1, 3, 16), ("uniform", "distance")):
        params = {"n_neighbors": k, "weights": weights, "metric": metric}
        ours = KNeighborsClassifier(**params).fit(X[:200], y[:200])
        theirs = peer(**params).fit(X[:200].astype(float), y[:200])
        for given in (X[200:], X[:200], None):
            as_float = None if given is None else given.astype(float)
            (a, b), (c, d) = ours.kneighbors(given), theirs.kneighbors(as_float)
            np.testing.assert_allclose(
                a, c, rtol=1e-4, atol=3e-4 if metric == "cosine" else 1e-5
            )  # a row at 0 of itself
            if metric == "euclidean":
                np.testing.assert_array_equal(b, d)
                np.testing.assert_allclose(ours.predict_proba(given), theirs.predict_proba(as_float), atol=1e-5)
                np.testing.assert_array_equal(ours.predict(given), theirs.predict(as_float))


def test_cosine_predictions_are_scikit_learn_s():
    X, y = data()
    X[[3, 250]] = 0  # of no direction
    for k, weights in product((1, 7), ("uniform", "distance")):
        params = {"n_neighbors": k, "weights": weights, "metric": "cosine"}
        ours, theirs = (model.fit(X[:200], y[:200]) for model in (KNeighborsClassifier(**params), peer(**params)))
        kept = np.arange(200, 300) != 250  # all are as far from it
        np.testing.assert_array_equal(ours.predict(X[200:])[kept], theirs.predict(X[200:])[kept])
        np.testing.assert_allclose(ours.kneighbors(X[[250]])[0], 1)


def test_of_rows_at_the_same_distance_the_first_count():
    X = np.repeat([[0.0], [1.0], [2.0]], 40, axis=0).astype(np.float32)
    y = np.arange(120) % 2
    distances, positions = KNeighborsClassifier(6).fit(X, y).kneighbors([[0.1], [1.9]])
    np.testing.assert_array_equal(positions, [np.arange(6), np.arange(80, 86)])
    np.testing.assert_allclose(distances, 0.1, rtol=1e-6)
    near = KNeighborsClassifier(40, weights="distance").fit(X, y).predict_proba(np.float32([[1.0]]))
    np.testing.assert_array_equal(near, [[0.5, 0.5]])
    _, others = KNeighborsClassifier(3).fit(X, y).kneighbors()
    assert others.shape == (120, 3) and not (others == np.arange(120)[:, None]).any()


def test_more_neighbours_than_rows_are_refused_as_by_scikit_learn():
    X, y = data()
    with pytest.raises(ValueError, match="Expected n_neighbors <= n_samples_fit, but n_neighbors = 9, n_samples_fit"):
        KNeighborsClassifier(9).fit(X[:8], y[:8]).predict(X)
    with pytest.raises(ValueError, match="n_neighbors > 0"):
        KNeighborsClassifier().fit(X, y).kneighbors(X, 0)
    with pytest.raises(FeatxError, match="X is sparse; give X.toarray"):
        KNeighborsClassifier().fit(csr_matrix(X), y)


@pytest.mark.parametrize("scaled", [False, True], ids=["as-is", "scaled"])
def test_all_numbers_of_neighbours_at_once_are_those_one_by_one(scaled):
    X, y = data()
    jobs = []
    splits = [*StratifiedKFold(2).split(X, y), *ShuffleSplit(1, train_size=20, random_state=SEED).split(X)]
    for train, test in splits:
        shift, scale = (X[train].mean(0), X[train].std(0)) if scaled else (None, None)
        rows = (X - shift) / scale if scaled else X
        fold = Fold(train, rows[test], test, shift=shift, scale=scale, also=(rows[train],))
        grid = product((1, 5, 30), ("uniform", "distance"), ("euclidean", "cosine"))
        jobs += [Job(KNeighborsClassifier(k, weights=w, metric=m), fold) for k, w, m in grid]
    jobs.append(Job(KNeighborsClassifier(0), jobs[0].fold))
    seen = []
    for number, model, _ in KNeighborsClassifier.fit_each(X, y, jobs):
        seen.append(number)
        if number == len(jobs) - 1:
            assert isinstance(model, ValueError)
            continue
        estimator, fold = jobs[number]
        assert model is estimator
        rows = X if fold.shift is None else (X - fold.shift) / fold.scale
        alone = KNeighborsClassifier(**model.get_params()).fit(rows[fold.train], y[fold.train])
        for given in (fold.X_test, *fold.also):
            if model.n_neighbors > len(fold.train):
                with pytest.raises(ValueError, match="Expected n_neighbors"):
                    model.predict(given)
            else:
                np.testing.assert_array_equal(model.predict(given), alone.predict(given))
                np.testing.assert_allclose(model.kneighbors(given)[0], alone.kneighbors(given)[0], rtol=1e-5, atol=1e-6)
    assert sorted(seen) == list(range(len(jobs)))
    assert not any("_at_hand" in vars(job.estimator) for job in jobs)


def test_a_model_of_a_memory_map_keeps_a_copy_and_is_saved(tmp_path):
    X, y = data()
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    model = KNeighborsClassifier().fit(mapped, y)
    assert not np.shares_memory(model._fit_X, mapped)
    again = featx.load(featx.save(model, tmp_path / "m.skops"))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
