"""Features of a store with several views of each image: the mean of the views, or one of them; new images alike."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
from helpers import digests_of, noise, recipe
from runs import extract
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featx
from featx.errors import LayerError, RecipeError
from featx.learn import HoldOut, LogisticRegression, StoredFeatures, select_model
from featx.learn.features import features
from featx.recipe import with_views
from featx.store import StoreWriter, export
from featx.transfer import Align, similarity

IMAGES = [noise(seed) for seed in range(24)]
LABELS = np.array(["ant", "bee", "cat"] * 8)
OPTIONS = {"layers": ["first:none", "last"], "batch_size": 4, "precision": "float32"}


@pytest.fixture(scope="module")
def store(small_network, tmp_path_factory) -> featx.FeatureStore:
    path = tmp_path_factory.mktemp("views") / "a.h5"
    return extract(IMAGES, path, small_network, labels=LABELS, views=["center", "flip", "crop:2"], **OPTIONS)


@pytest.fixture(scope="module")
def plain(small_network, tmp_path_factory) -> featx.FeatureStore:
    path = tmp_path_factory.mktemp("plain") / "plain.h5"
    return extract(IMAGES, path, small_network, labels=LABELS, **OPTIONS)


def test_rows_are_the_mean_of_the_views(store, monkeypatch):
    for layer, width in (("last", 5), ("first", 8 * 15 * 15)):
        step = StoredFeatures(store, layer).fit()
        expected = np.mean(np.asarray(store[layer], np.float64), axis=1).reshape(24, -1)
        assert step.n_features_out_ == width == len(step.get_feature_names_out())
        rows = step.transform(store.X)
        assert rows.dtype == np.float32 and rows.origin.width == width
        np.testing.assert_allclose(rows, expected, rtol=1e-6, atol=1e-6)
        monkeypatch.setattr(features, "_PART_BYTES", 3 * store.row_bytes(layer))
        np.testing.assert_array_equal(step.transform(store.X), rows)
        np.testing.assert_array_equal(step.transform(store.X[[7, 2, 2]]), rows[[7, 2, 2]])
    both = StoredFeatures(store, ["last", "first"]).fit()
    assert both.n_features_out_ == 5 + 1800
    np.testing.assert_array_equal(both.transform(store.X)[:, 5:], StoredFeatures(store, "first").fit_transform(store.X))


@pytest.mark.parametrize("view", ["mean", "center", "top-right"])
def test_new_images_are_seen_in_the_same_views(store, view, monkeypatch):
    step = StoredFeatures(store, "last", view=view).fit()
    calls = []
    forward = features._forward()
    stream = forward.stream

    def recorded(images, recipe, *args, **options):
        calls.append(recipe.views)
        return stream(images, recipe, *args, **options)

    monkeypatch.setattr(forward, "stream", recorded)
    np.testing.assert_allclose(step.transform(IMAGES), step.transform(store.X), rtol=1e-5, atol=1e-6)
    assert calls == [store.recipe.views if view == "mean" else [view]]
    each = step.transform_views(IMAGES)
    np.testing.assert_allclose(each, step.transform_views(store.X), rtol=1e-5, atol=1e-6)
    assert each.shape == (24, 4 if view == "mean" else 1, 5)


def test_one_view_can_be_chosen(store, plain):
    for number, view in enumerate(store.recipe.views):
        rows = StoredFeatures(store, "last", view=view).fit_transform(store.X)
        np.testing.assert_array_equal(rows, store["last"][:, number])
    for view in ("mean", "center"):
        np.testing.assert_array_equal(StoredFeatures(plain, "last", view=view).fit_transform(plain.X), plain["last"])
    for of, view, there in ((store, "bottom-left", "center, flip"), (plain, "flip", "center"), (store, None, "center")):
        with pytest.raises(LayerError, match=f"view {view!r} is not stored.*There are: {there}"):
            StoredFeatures(of, "last", view=view).fit()


def test_half_precision_and_archives_give_the_same_mean(small_network, store, tmp_path):
    half = extract(IMAGES, tmp_path / "half.h5", small_network, views=store.recipe.views, dtype="float16", **OPTIONS)
    rows = StoredFeatures(half, "last").fit_transform(half.X)
    expected = np.asarray(half["last"], np.float32).mean(axis=1)
    assert rows.dtype == np.float16
    np.testing.assert_array_equal(rows, expected.astype(np.float16))
    archive = featx.FeatureStore(export(store, tmp_path / "archive.h5"))
    for view in ("mean", "flip"):
        np.testing.assert_array_equal(
            StoredFeatures(archive, "last", view=view).fit_transform(store.X),
            StoredFeatures(store, "last", view=view).fit_transform(store.X),
        )


def test_copies_keep_the_view(store):
    step = StoredFeatures(store, "last", view="flip").fit()
    expected = step.transform(store.X)
    for copied in (clone(step).fit(), copy.deepcopy(step), pickle.loads(pickle.dumps(step))):
        np.testing.assert_array_equal(copied.transform(store.X), expected)
    old = {name: value for name, value in step.__getstate__().items() if name != "view"}
    made = StoredFeatures.__new__(StoredFeatures)
    made.__setstate__(old)  # of a model file from before there were views
    assert made.view == "mean"


def test_a_model_is_fitted_and_used_on_the_same_views(store, plain, tmp_path):
    model = make_pipeline(StoredFeatures(store, "last"), StandardScaler(), LogisticRegression()).fit(store.X, store.y)
    expected = model.predict_proba(store.X)
    np.testing.assert_allclose(model.predict_proba(IMAGES), expected, rtol=1e-4, atol=1e-5)
    featx.save(model, tmp_path / "m.skops")
    loaded = featx.load(tmp_path / "m.skops", backbone=store.backbone)
    np.testing.assert_allclose(loaded.predict_proba(IMAGES), expected, rtol=1e-4, atol=1e-5)
    for other in (plain, store):
        model.set_params(storedfeatures__store=other, storedfeatures__view="mean" if other is plain else "flip")
        with pytest.raises(
            RecipeError, match="fitted on a store made with other settings: views: .*, 'flip', .* there, "
        ):
            model.predict(other.X)


def test_searches_compare_and_average_views(store, plain, small_network, tmp_path):
    test = extract(
        IMAGES[:6], tmp_path / "test.h5", None, like=store, labels=LABELS[:6], ids=[f"t{i}" for i in range(6)]
    )
    options = {"estimators": "logistic_regression", "folds": 2, "allow_duplicates": True, "layers": "last"}
    found = select_model(store, holdout=HoldOut(store=test), **options)
    assert found.test.predicted.tolist() == found.best_estimator.predict(store.X[:6]).tolist()
    with pytest.raises(
        RecipeError, match=r"the test store was made with other settings: views: \[.* in a.h5, None in plain.h5"
    ):
        select_model(store, holdout=HoldOut(store=plain), **options)
    chosen = {"storedfeatures__view": ["mean", "flip"]}
    pipe = make_pipeline(StoredFeatures(store, "last"), LogisticRegression())
    search = featx.learn.GridSearchCV(pipe, chosen, cv=2, n_jobs=1).fit(store.X, store.y)
    for view, score in zip(chosen["storedfeatures__view"], search.cv_results_["mean_test_score"], strict=True):
        alone = featx.learn.GridSearchCV(pipe, {"storedfeatures__view": [view]}, cv=2, n_jobs=1).fit(store.X, store.y)
        assert alone.cv_results_["mean_test_score"][0] == score
    assert similarity(store, ["last", "first"]).values.shape == (2, 2)


def test_a_target_is_aligned_in_the_view_of_the_source(store, small_network, tmp_path):
    target = extract(IMAGES[12:], tmp_path / "target.h5", None, like=store, ids=[f"t{i}" for i in range(12)])
    for view in ("mean", "flip"):
        pipe = make_pipeline(StoredFeatures(store, "last", view=view), Align(target, "scaler")).fit(store.X)
        rows = StoredFeatures(target, "last", view=view).fit_transform(target.X)
        np.testing.assert_allclose(pipe[-1].target_mean_, rows.mean(axis=0, dtype=np.float64), rtol=1e-6)
        pipe.set_params(storedfeatures__store=target)
        np.testing.assert_allclose(pipe.transform(target.X).mean(axis=0), 0, atol=1e-6)


def test_rows_with_nan_and_inf_are_averaged_without_a_warning(tmp_path):
    rows = np.zeros((3, 2, 3), np.float32)
    rows[1] = [[np.inf, np.nan, 1], [-np.inf, 0, 2]]
    views, plain = ["center", "flip"], recipe({"a:avg": (3,)})
    made = replace(plain, views=views, taps=with_views(plain.taps, views))
    with StoreWriter(tmp_path / "a.h5", made, ["a", "b", "c"]) as writer:
        writer.write(np.arange(3), {"a:avg": rows}, digests_of(range(3)))
        writer.finish()
    store = featx.FeatureStore(tmp_path / "a.h5")
    assert [(row.id, row.layer) for row in store.nonfinite] == [("b", "a:avg")]
    np.testing.assert_array_equal(StoredFeatures(store).fit_transform(store.X)[1], [np.nan, np.nan, 1.5])
