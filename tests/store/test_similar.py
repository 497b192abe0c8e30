"""FeatureStore.similar: the neighbours of scikit-learn's exact search, by id, key or row, in parts."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from helpers import fresh_python, store_of
from sklearn.neighbors import NearestNeighbors

import featx
from featx.errors import FeatxError, KeysError, LayerError, StoreError
from featx.store import reader


@pytest.fixture(scope="module")
def X() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(70, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def store(X, tmp_path_factory) -> featx.FeatureStore:
    layers = {"a:avg": X[:, :2], "b:none": X.reshape(70, 1, 5, 1)}
    return store_of(tmp_path_factory.mktemp("similar") / "s.h5", layers)


@pytest.mark.parametrize("budget_bytes", [2**24, 400])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_are_those_of_an_exact_search(store, X, metric, budget_bytes, monkeypatch):
    monkeypatch.setattr(reader, "_QUERIED_BYTES", budget_bytes)
    search = NearestNeighbors(metric=metric, algorithm="brute").fit(X.astype(float))
    distances, rows = search.kneighbors(n_neighbors=69)
    found = store.similar(store.X, 69, metric=metric)
    assert np.array_equal(found.rows, rows) and np.allclose(found.distances, distances, atol=1e-7)
    few = store.similar([str(store.ids[8]), "image 3"], 2, metric=metric)
    assert few.rows.tolist() == rows[[8, 3], :2].tolist()


def test_memory_does_not_grow_with_the_number_of_queries(tmp_path):
    X = np.random.default_rng(0).normal(size=(4000, 2)).astype(np.float32)
    store = store_of(tmp_path / "s.h5", {"a:avg": X})
    tracemalloc.start()
    found = store.similar(store.X, 3)
    assert tracemalloc.get_traced_memory()[1] < 300e6  # all distances alone have 128 MB, their order as many
    tracemalloc.stop()
    assert found.rows[[5, 3999]].tolist() == store.similar(store.X[[5, 3999]], 3).rows.tolist()


def test_a_row_from_elsewhere_may_be_near_any_image(store, X):
    found = store.similar(X[[4]] * 2.0, 3)
    assert found.rows[0, 0] == 4 and found.distances[0, 0] < 1e-12
    assert store.similar("image 4", 2).rows[0].tolist() == found.rows[0, 1:].tolist()
    assert store.similar(X[[4], :2], 1, layer="a").rows.tolist() == [[4]]


def test_equal_rows_come_in_their_order_and_zeros_are_far(tmp_path):
    X = np.array([[1, 0], [0, 0], [2, 0], [3, 0], [-1, 0]], np.float32)
    found = store_of(tmp_path / "s.h5", {"a:avg": X}).similar("image 2", 4)
    assert found.rows.tolist() == [[0, 3, 1, 4]] and found.distances.tolist() == [[0, 0, 1, 2]]


def test_rows_with_nan_are_no_neighbours(X, tmp_path):
    broken = X[:6].copy()
    broken[2, 1] = np.nan
    store = store_of(tmp_path / "nan.h5", {"a:avg": broken})
    assert sorted(store.similar("image 0", 4).rows[0]) == [1, 3, 4, 5]
    with pytest.raises(FeatxError, match="nan.h5 has 4 other images without NaN or inf; .* got k=5"):
        store.similar("image 0", 5)
    with pytest.raises(StoreError, match="query 'image 2' has NaN or inf in layer 'a:avg'"):
        store.similar("image 2", 1)
    with pytest.raises(StoreError, match="query number 1 has NaN"):
        store.similar(broken[[0, 2]], 1)


@pytest.mark.parametrize(
    "query, options, error, text",
    [
        ("image 0", {"k": 70}, FeatxError, "s.h5 has 69 other images"),
        ("image 0", {"k": 0}, FeatxError, "k is an integer, 1 or more; got 0"),
        ("image 0", {"k": 1.5}, FeatxError, "k is an integer"),
        ("image 0", {"layer": "c"}, LayerError, "layer 'c' is not stored"),
        ("image 0", {"metric": "manhattan"}, FeatxError, "metric is cosine or euclidean; got 'manhattan'"),
        ("imag 0", {}, KeysError, "s.h5 has no image 'imag 0'; close: 'image 0'"),
        (np.array([5]), {}, KeysError, "are not in s.h5"),
        ([], {}, FeatxError, "shape"),
        (np.zeros(5), {}, FeatxError, r"query has rows of layer 'b:none', shape \(m, 5\); got \(5,\)"),
        (np.zeros((2, 4)), {}, FeatxError, r"shape \(m, 5\); got \(2, 4\)"),
        (np.array([True]), {}, FeatxError, "query has ids or keys of images, or rows"),
    ],
)
def test_what_does_not_fit_is_refused(store, query, options, error, text):
    with pytest.raises(error, match=text):
        store.similar(query, **options)


def test_neither_torch_nor_scikit_learn_is_needed(store):
    code = f"""
import json, sys
from featx.store import FeatureStore
rows = FeatureStore({str(store.path)!r}).similar("image 1", 2).rows.tolist()
print(json.dumps([rows, sorted({{"torch", "sklearn", "scipy"}} & set(sys.modules))]))
"""
    assert fresh_python(code) == [store.similar("image 1", 2).rows.tolist(), []]
