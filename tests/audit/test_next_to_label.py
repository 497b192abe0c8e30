"""Which images to label next: typical ones of every cluster at first, then those that a classifier confuses."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import store_of
from sklearn.datasets import make_blobs

import featx
from featx.audit import next_to_label
from featx.audit.typiclust import typical_rows
from featx.audit.uncertain import margins, uncertain_rows
from featx.errors import FeatxError, LayerError, StoreError

N, CENTRES = 240, 6
NONE = np.ma.masked_all(N, "<U5")


@pytest.fixture(scope="module")
def blobs() -> tuple[np.ndarray, np.ndarray]:
    """Rows of six clusters, of which the first three are of one size and the others of a third of it."""
    sizes = [60, 60, 60, 20, 20, 20]
    centres = 10 * np.eye(CENTRES, 8)
    X, c = make_blobs(sizes, 8, centers=centres, cluster_std=0.7, random_state=0)
    return X.astype(np.float32), c


@pytest.fixture(scope="module")
def store(blobs, tmp_path_factory) -> featx.FeatureStore:
    X, c = blobs
    y = np.array([f"class {i % 3}" for i in c])
    columns = {"so far": np.where(np.arange(N) % 4 == 0, y, "")}
    return store_of(tmp_path_factory.mktemp("blobs") / "blobs.h5", {"a:avg": X[:, :2], "b:avg": X}, y, columns=columns)


def partly(store, has_label) -> np.ma.MaskedArray:
    return np.ma.masked_array(store.y, ~np.asarray(has_label))


def test_one_typical_image_of_each_cluster_comes_first(store, blobs):
    chosen = next_to_label(store, CENTRES, NONE)
    clusters = blobs[1][chosen.rows]
    assert chosen.strategy == "typical" and sorted(clusters) == list(range(CENTRES))
    assert set(clusters[:3]) == {0, 1, 2}  # the largest
    X, c = blobs
    for row in chosen.rows:  # nearer to the middle of its cluster than most
        far = np.linalg.norm(X[c == c[row]] - X[c == c[row]].mean(axis=0), axis=1)
        assert np.linalg.norm(X[row] - X[c == c[row]].mean(axis=0)) < np.median(far)
    assert chosen.ids.tolist() == [f"image {row}" for row in chosen.rows]
    assert "no labels so far; from 20 labels a class on" in chosen.why and set(chosen.suggestions) == {""}


def test_clusters_with_labels_are_left_for_later(store, blobs):
    labelled = np.isin(np.arange(N), [np.flatnonzero(blobs[1] == i)[0] for i in (0, 1, 4)])
    chosen = next_to_label(store, 3, partly(store, labelled), random_state=3)
    assert sorted(blobs[1][chosen.rows]) == [2, 3, 5]


def test_the_same_seed_chooses_the_same_images_and_none_twice(store):
    first, again = (next_to_label(store, 40, NONE, random_state=1).rows for _ in range(2))
    assert first.tolist() == again.tolist() and len(set(first)) == 40
    rest = next_to_label(store, N - 40, partly(store, np.isin(np.arange(N), first)), strategy="typical").rows
    assert sorted([*first, *rest]) == list(range(N))


def test_from_twenty_labels_a_class_on_unsure_images_are_chosen(store):
    few, many = (next_to_label(store, 8, partly(store, np.arange(N) % 4 < part)) for part in (1, 2))
    assert few.strategy == "uncertain" and "60 labels so far, of 3 classes, 20 or more a class" in few.why
    assert many.strategy == "uncertain" and set(many.suggestions) <= set(store.classes)
    assert all(reason.count("class") == 2 and " or " in reason for reason in many.reasons)
    below = next_to_label(store, 8, partly(store, (np.arange(N) % 4 == 0) & (np.arange(N) > 0)))
    assert below.strategy == "typical" and "59 labels so far, of 3 classes; from 20 labels a class on, 60," in below.why
    assert next_to_label(store, 8, "so far").rows.tolist() == few.rows.tolist()  # the same labels, of a column


def test_unsure_images_are_those_between_the_classes(tmp_path):
    X = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    store = store_of(tmp_path / "s.h5", {"a:avg": X}, np.where(X[:, 0] > 0, "up", "down"))
    chosen = next_to_label(store, 10, partly(store, np.arange(300) < 100))
    assert np.abs(X[chosen.rows, 0]).max() < 0.6 < np.abs(X[100:, 0]).mean()
    assert chosen.rows.min() >= 100


@pytest.mark.parametrize("y", [np.arange(N) * 1.0, np.where(np.arange(N) < 99, "x", "y")])
def test_numbers_and_one_class_are_no_reason_to_be_unsure(store, y):
    y = np.ma.masked_array(y, np.arange(N) >= 99)
    assert next_to_label(store, 5, y).strategy == "typical"
    with pytest.raises(FeatxError, match="'uncertain'.* needs labels of two classes or more; .* of (numbers|1 class)"):
        next_to_label(store, 5, y, strategy="uncertain")


def test_copies_are_chosen_once_and_not_at_all_if_one_is_labelled(blobs, tmp_path):
    X = blobs[0][:50]
    paths = [store_of(tmp_path / f"{i}.h5", {"a:avg": X}, ids=[f"{i} {j}" for j in range(50)]).path for i in range(2)]
    both = featx.merge(paths, tmp_path / "both.h5")
    labelled = np.isin(np.arange(100), [3, 4])
    y = np.ma.masked_array(np.full(100, "x"), ~labelled)
    chosen = next_to_label(both, 48, y).rows
    assert len(set(chosen % 50)) == 48 and not set(chosen % 50) & {3, 4}
    with pytest.raises(FeatxError, match="48 images can be labelled next, of different content .* got n=49"):
        next_to_label(both, 49, y)


def test_rows_with_nan_are_left_out_and_counted(blobs, tmp_path):
    X = blobs[0].copy()
    X[[0, 7], [1, 2]] = np.nan, np.inf
    store = store_of(tmp_path / "nan.h5", {"a:avg": X}, np.array([f"class {i % 3}" for i in blobs[1]]))
    everyone = next_to_label(store, N - 2, NONE)
    assert not {0, 7} & set(everyone.rows) and everyone.n_nonfinite == 2
    labelled = next_to_label(store, 5, partly(store, np.arange(N) % 3 == 0))  # row 0 has a label
    assert labelled.n_nonfinite == 1 and labelled.strategy == "uncertain"
    store = store_of(tmp_path / "none.h5", {"a:avg": np.full((5, 2), np.nan)})
    with pytest.raises(StoreError, match="every row of layer 'a:avg' contains NaN or inf"):
        next_to_label(store, 1)


def test_equal_rows_and_rare_classes_do_not_stop_it(tmp_path):
    store = store_of(tmp_path / "same.h5", {"a:avg": np.ones((30, 4))})
    assert len(next_to_label(store, 7).rows) == 7
    X = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32)
    y = np.array(["once", *["up" if x > 0 else "down" for x in X[1:, 0]]])
    store = store_of(tmp_path / "rare.h5", {"a:avg": X}, y)
    assert next_to_label(store, 5, partly(store, np.arange(90) < 70)).strategy == "uncertain"


def test_the_layer_is_the_penultimate_or_the_last_one(store):
    assert next_to_label(store, 1, NONE).layer == "b:avg" and next_to_label(store, 1, NONE, layer="a").layer == "a:avg"


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"y": None}, FeatxError, r"all 240 images have a label, .*: y=store.align\('so-far.csv', partial=True\)"),
        ({"n": 241}, FeatxError, "240 images can be labelled next, .* got n=241"),
        ({"n": 0}, FeatxError, "n is an integer, 1 or more; got 0"),
        ({"n": 2.0}, FeatxError, "n is an integer"),
        ({"layer": "c"}, LayerError, "layer 'c' is not stored"),
        ({"strategy": "margin"}, FeatxError, "strategy is auto, typical or uncertain; got 'margin'"),
        ({"random_state": -1}, FeatxError, "random_state is an integer from 0 to 4294967295; got -1"),
        ({"y": "so near"}, StoreError, "has no column 'so near'; close: 'so far'"),
        ({"y": np.ma.masked_all(3, str)}, StoreError, "all labels .* are masked"),
        (
            {"y": np.ma.masked_array(["a", "b"], [True, False])},
            StoreError,
            "one label per image: blobs.h5 has 240, got 2",
        ),
    ],
)
def test_what_does_not_fit_is_refused(store, options, error, text):
    with pytest.raises(error, match=text):
        next_to_label(store, **{"n": 5, "y": NONE} | options)
    with pytest.raises(FeatxError, match="store is a featx.FeatureStore"):
        next_to_label("blobs.h5")


def test_arrays():
    X = np.r_[np.zeros((9, 2)), np.ones((3, 2))].astype(np.float32) + np.arange(12)[:, None] * 1e-3
    candidates = np.arange(12) != 4
    rows, sizes = typical_rows(X, np.zeros(12, bool), candidates, 11, random_state=0)
    assert sorted(rows) == np.flatnonzero(candidates).tolist() and len(sizes) == 11
    assert margins(np.array([[0.5, 0.2, 0.3], [0.1, 0.8, 0.1]])).round(6).tolist() == [0.2, 0.7]
    margin = np.linspace(0, 1, 12)
    rows = uncertain_rows(X, margin, 2, random_state=0)
    assert len(set(rows)) == 2 and rows.max() < 10 and rows[0] < rows[1]
    assert sorted(uncertain_rows(np.zeros((4, 2), np.float32), margin[:4], 4, random_state=0)) == [0, 1, 2, 3]
