"""The nearest neighbours: scikit-learn's, alone and for all numbers of neighbours at once."""

from __future__ import annotations

import re
import warnings
from itertools import product

import numpy as np
import pytest
import sklearn.neighbors
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import ShuffleSplit, StratifiedKFold

import featx
from featx.errors import FeatxError
from featx.learn import GridSearchCV, KNeighborsClassifier
from featx.learn.estimators.batched import Fold, Job, ScoredRows

SEED = 0


def data(n=300, d=10, dtype=np.float32):
    X, y = make_classification(n, d, n_informative=6, n_classes=4, class_sep=0.6, random_state=SEED)
    return X.astype(dtype), np.array(["ant", "bee", "cat", "dog"])[y]


def peer(**params):
    return sklearn.neighbors.KNeighborsClassifier(**({"algorithm": "brute"} | params))


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


NORMS = [
    {"p": 1}, {"p": 3}, {"p": np.inf}, {"p": 2.5, "algorithm": "ball_tree"},
    {"metric": "l1"}, {"metric": "cityblock"}, {"metric": "manhattan"}, {"metric": "l2"}, {"metric": "chebyshev"},
    {"p": None, "metric_params": {"p": 1}, "algorithm": "kd_tree"}, {"metric": "euclidean", "p": 7},
]  # fmt: skip


def _id(params: dict) -> str:
    """Alike in every process: without the address of a function."""
    return re.sub(" at 0x[0-9a-f]+", "", str(params))


@pytest.mark.filterwarnings("ignore:p=7 has no effect")
@pytest.mark.parametrize("params", NORMS, ids=_id)
def test_distances_of_other_norms_are_scikit_learn_s(params):
    X, y = data(150, dtype=np.float64)
    ours, theirs = (model.fit(X[:100], y[:100]) for model in (KNeighborsClassifier(7, **params), peer(**params)))
    theirs.set_params(n_neighbors=7)
    for a, b in zip(ours.kneighbors(X[100:]), theirs.kneighbors(X[100:]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(ours.predict(X[100:]), theirs.predict(X[100:]))
    assert ours.effective_metric_ == theirs.effective_metric_
    assert ours.effective_metric_params_ == theirs.effective_metric_params_
    graph = ours.kneighbors_graph(X[100:], mode="distance")
    np.testing.assert_allclose(graph.toarray(), theirs.kneighbors_graph(X[100:], mode="distance").toarray())


def told_by(model, X, y):
    """(type, text) of the error or of the warnings of a fit and a prediction."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model.fit(X, y).predict(X)
        except Exception as error:
            return [(type(error), str(error))]
    return [(warning.category, str(warning.message)) for warning in caught]


WRONG = [
    *({"p": 0.1, "algorithm": algorithm} for algorithm in ("brute", "kd_tree")),
    {"n_neighbors": 9}, {"n_neighbors": 9, "weights": "distance"}, {"metric": "cosine", "algorithm": "kd_tree"},
    {"metric_params": {"p": 1}}, {"weights": lambda distances: 0 * distances},
    {"algorithm": "none"}, {"leaf_size": 0}, {"p": 0}, {"n_jobs": "all"}, {"metric_params": [1]},
]  # fmt: skip


@pytest.mark.parametrize("params", WRONG, ids=_id)
def test_what_scikit_learn_says_is_said_in_its_words(params):
    X, y = data(8, dtype=np.float64)
    expected = told_by(sklearn.neighbors.KNeighborsClassifier(**params), X, y)
    assert expected and told_by(KNeighborsClassifier(**params), X, y) == expected


@pytest.mark.parametrize(
    "params",
    [
        {"metric": "haversine"},
        {"metric": "canberra"},
        {"metric": "precomputed"},
        {"metric": lambda a, b: 0.0},
        {"metric_params": {"w": np.ones(100)}},
    ],
    ids=_id,
)
def test_metrics_that_are_not_there_are_refused_by_name(params):
    X, y = data(20)
    with pytest.raises(FeatxError, match="KNeighborsClassifier has no metric=.*, only euclidean") as error:
        KNeighborsClassifier(**params).fit(X, y)
    assert "\n" not in str(error.value) and "sklearn.neighbors.KNeighborsClassifier has others" in str(error.value)


def test_a_search_over_all_parameters_is_scikit_learn_s():
    X, y = data(120, dtype=np.float64)
    grid = [
        {"n_neighbors": [1, 5], "algorithm": ["auto", "kd_tree"], "p": [1, 2], "weights": ["uniform", "distance"]},
        {"leaf_size": [5], "n_jobs": [2], "metric": ["euclidean", "chebyshev"]},
    ]
    ours = GridSearchCV(KNeighborsClassifier(), grid, cv=3).fit(X, y)
    theirs = GridSearchCV(sklearn.neighbors.KNeighborsClassifier(), grid, cv=3).fit(X, y)
    assert "in one solve" in str(ours.plan(X, y))
    np.testing.assert_allclose(ours.cv_results_["mean_test_score"], theirs.cv_results_["mean_test_score"], rtol=1e-12)
    assert clone(ours.best_estimator_).get_params() == ours.best_estimator_.get_params()


def test_a_model_saved_before_it_had_these_parameters_predicts_the_same():
    X, y = data()
    model = KNeighborsClassifier(3, metric="euclidean").fit(X, y)
    old = KNeighborsClassifier.__new__(KNeighborsClassifier)
    later = ("algorithm", "leaf_size", "p", "metric_params", "n_jobs", "effective_metric_params_", "outputs_2d_")
    old.__setstate__({name: value for name, value in model.__getstate__().items() if name not in later})
    assert old.get_params() == model.get_params()
    np.testing.assert_array_equal(old.predict(X), model.predict(X))
    unfitted = KNeighborsClassifier.__new__(KNeighborsClassifier)
    unfitted.__setstate__({"n_neighbors": 3, "weights": "uniform", "metric": "euclidean", "device": "auto"})
    with pytest.raises(NotFittedError):
        unfitted.predict(X)


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
    for number, (train, test) in enumerate(splits):
        shift, scale = (X[train].mean(0), X[train].std(0)) if scaled else (None, None)
        rows = (X - shift) / scale if scaled else X
        scored = ScoredRows(lambda rows=rows, train=train, test=test: (rows[test], rows[train]))
        fold = Fold(number, train, scored, test, shift=shift, scale=scale)
        grid = product((1, 5, 30), ("uniform", "distance"), ("euclidean", "cosine"))
        jobs += [Job(KNeighborsClassifier(k, weights=w, metric=m), fold) for k, w, m in grid]
    jobs.append(Job(KNeighborsClassifier(0), jobs[0].fold))
    seen = []
    for number, model, _, view in KNeighborsClassifier.fit_each(X, y, jobs):
        seen.append(number)
        if number == len(jobs) - 1:
            assert isinstance(model, ValueError)
            continue
        estimator, fold = jobs[number]
        assert model is estimator
        rows = X if fold.shift is None else (X - fold.shift) / fold.scale
        alone = KNeighborsClassifier(**model.get_params()).fit(rows[fold.train], y[fold.train])
        for matrix in fold.matrices:
            if model.n_neighbors > len(fold.train):
                with pytest.raises(ValueError, match="Expected n_neighbors"):
                    view.predict(matrix)
            else:
                np.testing.assert_array_equal(view.predict(matrix), alone.predict(matrix))
                np.testing.assert_array_equal(model.predict(matrix), alone.predict(matrix))
                distances = alone.kneighbors(matrix)[0]
                np.testing.assert_allclose(view.kneighbors(matrix)[0], distances, rtol=1e-5, atol=1e-6)
    assert sorted(seen) == list(range(len(jobs)))
    assert not any("_known" in vars(job.estimator) for job in jobs)


@pytest.mark.filterwarnings("ignore:.* has no StoredFeatures or ImageFeatures")
def test_a_model_of_a_memory_map_keeps_a_copy_and_is_saved(tmp_path):
    X, y = data()
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    model = KNeighborsClassifier().fit(mapped, y)
    assert not np.shares_memory(model._fit_X, mapped)
    again = featx.load(featx.save(model, tmp_path / "m.skops"))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))


def test_a_p_that_the_metric_has_no_use_for_is_said_to_have_no_effect():
    X, y = np.arange(12.0).reshape(6, 2), np.arange(6) % 2
    for metric, p in (("euclidean", 1), ("cosine", 3), ("chebyshev", 1)):
        with pytest.warns(UserWarning, match=f"^p={p} has no effect with metric='{metric}': p belongs") as warned:
            KNeighborsClassifier(2, metric=metric, p=p).fit(X, y)
        assert warned[0].filename == __file__
    for metric, p in (("minkowski", 3), ("manhattan", 1), ("chebyshev", np.inf), ("cosine", None), ("cosine", 2)):
        KNeighborsClassifier(2, metric=metric, p=p).fit(X, y)
