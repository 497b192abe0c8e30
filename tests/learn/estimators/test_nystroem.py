"""Nystroem: scikit-learn's answers with scikit-learn's landmarks, in float32 and in blocks, of folds and of stores."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.kernel_approximation
from helpers import store_of
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_matrix
from searched import assert_same_results
from sklearn.metrics.pairwise import pairwise_kernels
from sklearn.model_selection import GridSearchCV as SklearnGridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featx
from featx.learn import SVC, GridSearchCV, LinearSVC, Nystroem, StoredFeatures
from featx.learn.estimators import kernels

PARAMETERS = [
    {},
    {"gamma": 0.02},
    {"kernel": "linear"},
    {"kernel": "poly", "gamma": 0.1, "degree": 2},
    {"kernel": "polynomial", "coef0": 2.0},
    {"kernel": "sigmoid", "gamma": 0.001, "coef0": 0.1},
    {"kernel": "rbf", "kernel_params": {"gamma": 0.1}},
    {"kernel": "laplacian"},  # scikit-learn's
    {"kernel": lambda a, b: a @ b + 1.0},
]


def rows_of(n: int = 300, d: int = 40, dtype: type = np.float64) -> np.ndarray:
    return (np.random.default_rng([n, d]).normal(size=(n, d)) + 3.0).astype(dtype)


def both(X: np.ndarray, **params: object) -> tuple[Nystroem, sklearn.kernel_approximation.Nystroem]:
    params = {"n_components": 30, "random_state": 0, **params}
    return Nystroem(**params).fit(X), sklearn.kernel_approximation.Nystroem(**params).fit(X)


@pytest.mark.parametrize("params", PARAMETERS, ids=lambda params: "-".join(map(str, params.values()))[:20])
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-9), (np.float32, 2e-3)])
def test_it_equals_scikit_learn_s(params, dtype, tolerance, monkeypatch):
    X = rows_of(dtype=dtype)
    ours, theirs = both(X, **params)
    assert_array_equal(ours.component_indices_, theirs.component_indices_)
    assert_array_equal(ours.components_, theirs.components_)
    expected = theirs.transform(X)
    scale = np.abs(expected).max()
    monkeypatch.setattr(kernels, "BLOCK", 1000)  # several blocks
    actual = ours.transform(X)
    assert actual.dtype == expected.dtype and ours.normalization_.dtype == theirs.normalization_.dtype
    assert_allclose(actual / scale, expected / scale, atol=tolerance)
    assert list(ours.get_feature_names_out()) == list(theirs.get_feature_names_out())


def test_all_rows_as_landmarks_give_the_kernel():
    X = rows_of(60)
    with pytest.warns(UserWarning, match="n_components=100 > n_samples=60: all rows are landmarks"):
        model = Nystroem(gamma=0.01, random_state=1).fit(X)
    phi = model.transform(X)
    assert_allclose(phi @ phi.T, pairwise_kernels(X, metric="rbf", gamma=0.01), atol=1e-9)


def test_equal_landmarks_do_not_amplify_rounding_in_float32():
    X = np.repeat(rows_of(20, dtype=np.float32), 5, axis=0)
    phi = Nystroem(gamma=0.01, n_components=100, random_state=0).fit_transform(X)
    exact = pairwise_kernels(X.astype(np.float64), metric="rbf", gamma=0.01)
    assert_allclose(phi @ phi.T, exact, atol=1e-3)


def test_float16_is_computed_in_float32():
    X = rows_of(dtype=np.float16)
    half, single = (Nystroem(n_components=20, random_state=0).fit(rows) for rows in (X, X.astype(np.float32)))
    assert half.transform(X).dtype == np.float32
    assert_array_equal(half.transform(X), single.transform(X.astype(np.float32)))


def test_of_a_memory_map_landmarks_alone_are_copied(tmp_path):
    X = rows_of(dtype=np.float32)
    np.save(tmp_path / "rows.npy", X)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    model = Nystroem(n_components=20, random_state=0).fit(mapped)
    assert type(model.components_) is np.ndarray and model.components_.base is None
    assert_array_equal(model.transform(mapped), Nystroem(n_components=20, random_state=0).fit_transform(X))


def test_sparse_rows_are_scikit_learn_s():
    ours, theirs = both(csr_matrix(rows_of()))
    assert_allclose(ours.transform(rows_of()), theirs.transform(rows_of()))
    assert_allclose(ours.transform(csr_matrix(rows_of())), theirs.transform(rows_of()))


def test_kernels_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="the kernel of the landmarks has NaN or inf; scale the columns"):
        Nystroem("poly", degree=400, gamma=1.0).fit(rows_of(100))


@pytest.mark.parametrize("wrong", [{"n_components": 0}, {"device": "tpu"}, {"kernel": "rbff"}, {"gamma": -1.0}])
def test_parameters_are_checked(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"The '{name}' parameter of Nystroem must be"):
        Nystroem(**wrong).fit(rows_of(10))


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    centres = rng.normal(size=(3, 12))
    rows = {"a:avg": (centres[y] + rng.normal(size=(120, 12))).astype(np.float32)}
    return store_of(tmp_path / "rows.h5", rows, np.array(["ant", "bee", "cat"])[y])


def pipeline(store: featx.FeatureStore) -> object:
    return make_pipeline(
        StoredFeatures(store), StandardScaler(), Nystroem(n_components=40, random_state=0), LinearSVC()
    )


def test_in_a_search_over_a_store_landmarks_are_of_training_images(store):
    grid = {"nystroem__gamma": [0.01, 0.1], "linearsvc__C": [0.1, 1.0]}
    ours = GridSearchCV(pipeline(store), grid, cv=3).fit(store.X, store.y)
    theirs = SklearnGridSearchCV(pipeline(store), grid, cv=3).fit(store.X, store.y)
    assert "one solve a fold" in str(ours.plan(store.X, store.y))
    assert_same_results(ours.cv_results_, theirs.cv_results_)
    held_out = np.arange(80, 120)
    model = pipeline(store).fit(store.X[:80], store.y[:80])
    nystroem = model.named_steps["nystroem"]
    assert nystroem.component_indices_.max() < 80
    changed = store.take(held_out, "a:avg")
    assert not (nystroem.components_[:, None] == changed).all(axis=2).any()


def test_it_is_saved_and_loaded(store, tmp_path):
    model = pipeline(store).fit(store.X, store.y)
    loaded = featx.load(featx.save(model, tmp_path / "model.skops"))
    rows = store.take(np.arange(20), "a:avg")
    assert_array_equal(loaded[1:].decision_function(rows), model[1:].decision_function(rows))


def test_it_approximates_svc(store):
    X = StandardScaler().fit_transform(store["a:avg"])
    exact = SVC(gamma=1 / 12).fit(X[:90], store.y[:90])
    model = make_pipeline(Nystroem(n_components=90, random_state=0), LinearSVC()).fit(X[:90], store.y[:90])
    assert abs(exact.score(X[90:], store.y[90:]) - model.score(X[90:], store.y[90:])) <= 0.1
    with pytest.warns(UserWarning, match="fewer rows; Nystroem -> LinearSVC approximates it"):
        SVC(budget_bytes=1000).fit(X, store.y)
