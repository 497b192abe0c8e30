"""The nearest centroid: scikit-learn's, alone and of all folds at once."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import sklearn.neighbors
from pairwise import pairwise
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featx
from featx.errors import FeatxError
from featx.learn import GridSearchCV, NearestCentroid
from featx.learn.estimators.batched import Fold, Job

SEED = 0


def data(k=4, n=300, d=10, dtype=np.float32):
    X, y = make_classification(n, d, n_informative=6, n_classes=k, class_sep=0.6, random_state=SEED)
    return X.astype(dtype), np.array([f"c{c}" for c in range(k)])[y]


@pytest.mark.parametrize("k, dtype", [(2, np.float32), (4, np.float64)])
def test_euclidean_centroids_are_scikit_learn_s(k, dtype):
    X, y = data(k, dtype=dtype)
    ours, theirs = NearestCentroid().fit(X, y), sklearn.neighbors.NearestCentroid().fit(X, y)
    np.testing.assert_allclose(ours.centroids_, theirs.centroids_, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))


PRIORS = ["uniform", "empirical", [0.1, 0.2, 0.3, 0.4], [0.0, 0.5, 0.25, 0.25], [0.4, 0.4, 0.4, 0.4]]


@pytest.mark.filterwarnings("ignore:The priors do not sum to 1", "ignore:divide by zero")
@pairwise(k=[2, 4], shrink_threshold=[None, 0.3, 50], priors={str(priors): priors for priors in PRIORS})
def test_shrinking_and_priors_are_scikit_learn_s(k, shrink_threshold, priors):
    X, y = data(k, dtype=np.float64)
    X, y = X[: 250 + k], y[: 250 + k]  # of classes that are not alike in size
    X[:, 3] += 1000
    params = {"shrink_threshold": shrink_threshold, "priors": priors if isinstance(priors, str) else priors[-k:]}
    ours, theirs = NearestCentroid(**params).fit(X, y), sklearn.neighbors.NearestCentroid(**params).fit(X, y)
    for name in ("centroids_", "deviations_", "within_class_std_dev_", "class_prior_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-10, atol=1e-10, err_msg=name)
    for method in ("decision_function", "predict_proba", "predict_log_proba"):
        a, b = getattr(ours, method)(X), getattr(theirs, method)(X)
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-8, err_msg=method)
    if shrink_threshold != 50:  # all are as near to centroids that are one
        np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))


def told_by(model, X, y):
    """(type, text) of the error or of the warnings of a fit."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model.fit(X, y)
        except Exception as error:
            return [(type(error), str(error))]
    return [(warning.category, str(warning.message)) for warning in caught]


@pytest.mark.parametrize(
    "params, change",
    [
        ({}, lambda X: np.where(np.arange(10) == 3, 7.0, X)),
        ({}, lambda X: np.ones_like(X)),
        ({"priors": [-0.5, 0.5, 0.5, 0.5]}, lambda X: X),
        ({"priors": [0.5, 0.5, 0.5, 0.5]}, lambda X: X),
        ({"priors": "equal"}, lambda X: X),
        ({"shrink_threshold": 0}, lambda X: X),
    ],
    ids=["a constant column", "constant columns", "negative priors", "priors of 2", "no priors", "no shrinking"],
)
def test_what_scikit_learn_says_is_said_in_its_words(params, change):
    X, y = data(dtype=np.float64)
    told = told_by(NearestCentroid(**params), change(X), y)
    for (kind, text), (expected, words) in zip(
        told, told_by(sklearn.neighbors.NearestCentroid(**params), change(X), y), strict=True
    ):
        assert kind is expected
        assert sorted(text) == sorted(words)  # names of a set stand in any order


def test_columns_without_deviation_do_not_spoil_the_others():
    """Where most columns are constant, scikit-learn's deviations are not numbers, and with them its centroids."""
    X, y = data(3, dtype=np.float64)
    X[:, 2:] = 0
    X[:, 4] = y == "c1"
    with pytest.warns(UserWarning, match="zero standard deviation"):
        model = NearestCentroid(shrink_threshold=0.5).fit(X, y)
    np.testing.assert_allclose(model.deviations_[:, [2, 3, 5]], 0, atol=1e-12)
    np.testing.assert_allclose(model.centroids_[:, 4], [0, 1, 0], atol=1e-12)
    assert np.isfinite(model.decision_function(X)).all() and model.score(X, y) > 0.5


def test_cosine_has_neither_shrinking_nor_priors():
    X, y = data()
    for params in ({"shrink_threshold": 0.1}, {"priors": "empirical"}, {"priors": [0.25] * 4}):
        with pytest.raises(FeatxError, match="need metric='euclidean'"):
            NearestCentroid("cosine", **params).fit(X, y)
    assert not hasattr(NearestCentroid("cosine"), "predict_proba")


def test_priors_are_of_the_classes_that_are_there():
    X, y = data(3)
    with pytest.raises(ValueError, match="one number for each of 3 classes; got shape"):
        NearestCentroid(priors=[0.5, 0.5]).fit(X, y)


def test_a_search_over_shrinking_is_scikit_learn_s():
    X, y = data(dtype=np.float64)
    grid = {"shrink_threshold": [None, 0.1, 2.0], "priors": ["uniform", "empirical", [0.1, 0.1, 0.4, 0.4]]}
    pipelines = (
        make_pipeline(StandardScaler(), kind()) for kind in (NearestCentroid, sklearn.neighbors.NearestCentroid)
    )
    grid = {f"nearestcentroid__{name}": values for name, values in grid.items()}
    ours, theirs = (GridSearchCV(one, grid, cv=3, scoring="neg_log_loss").fit(X, y) for one in pipelines)
    assert "in one solve" in str(ours.plan(X, y))
    np.testing.assert_allclose(ours.cv_results_["mean_test_score"], theirs.cv_results_["mean_test_score"], rtol=1e-10)


@pytest.mark.parametrize("k", [2, 4])
def test_a_model_saved_before_it_had_these_parameters_gives_the_numbers_it_gave(k):
    X, y = data(k)
    model = NearestCentroid().fit(X, y)
    old = NearestCentroid.__new__(NearestCentroid)
    later = ("shrink_threshold", "priors", "class_prior_", "within_class_std_dev_", "deviations_")
    old.__setstate__({name: value for name, value in model.__getstate__().items() if name not in later})
    assert old.get_params() == model.get_params()
    np.testing.assert_array_equal(old.predict(X), model.predict(X))
    distances = -((X[:, None] - model.centroids_) ** 2).sum(2)
    expected = distances[:, 1] - distances[:, 0] if k == 2 else distances
    np.testing.assert_allclose(old.decision_function(X), expected, rtol=1e-9, atol=1e-9)
    assert not hasattr(old, "predict_proba")


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
    if metric == "euclidean":
        np.testing.assert_allclose(ours.deviations_, repeated.deviations_, atol=1e-12)
        np.testing.assert_allclose(ours.within_class_std_dev_, repeated.within_class_std_dev_, atol=1e-12)
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
    for number, (train, test) in enumerate(StratifiedKFold(3).split(X, y)):
        shift, scale = (X[train].mean(0), X[train].std(0)) if scaled else (None, None)
        rows = (X - shift) / scale if scaled else X
        fold = Fold(number, train, None, test, np.linspace(0.1, 1, len(train)), shift, scale)
        jobs += [Job(NearestCentroid(metric), fold) for metric in ("euclidean", "cosine", "cosine")]
        jobs.append(Job(NearestCentroid(shrink_threshold=0.4, priors="empirical"), fold))
    jobs += [Job(NearestCentroid("manhattan"), fold), Job(NearestCentroid(), Fold(3, np.flatnonzero(y == "c0")))]
    answers = {number: (model, seconds) for number, model, seconds, _ in NearestCentroid.fit_each(X, y, jobs)}
    assert sorted(answers) == list(range(len(jobs)))
    assert isinstance(answers[len(jobs) - 2][0], ValueError) and isinstance(answers[len(jobs) - 1][0], ValueError)
    for number, (estimator, fold) in enumerate(jobs[:-2]):
        assert answers[number][0] is estimator and answers[number][1] > 0
        rows = X if fold.shift is None else (X - fold.shift) / fold.scale
        alone = clone(estimator).fit(rows[fold.train], y[fold.train], fold.sample_weight)
        np.testing.assert_allclose(estimator.centroids_, alone.centroids_, atol=1e-5)
        if estimator.metric == "euclidean":
            np.testing.assert_allclose(estimator.deviations_, alone.deviations_, atol=1e-4)
        np.testing.assert_allclose(estimator.decision_function(rows), alone.decision_function(rows), atol=1e-3)
        np.testing.assert_array_equal(estimator.predict(rows[fold.test]), alone.predict(rows[fold.test]))


@pytest.mark.filterwarnings("ignore:.* has no StoredFeatures or ImageFeatures")
def test_a_saved_model_predicts_the_same(tmp_path):
    X, y = data()
    np.save(tmp_path / "X.npy", X)
    model = NearestCentroid().fit(np.load(tmp_path / "X.npy", mmap_mode="r"), y)
    again = featx.load(featx.save(model, tmp_path / "m.skops"))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
