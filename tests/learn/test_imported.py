"""Searches, protocols and models on imported features; new inputs are refused, keys and rows are not."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import assert_tells, class_folders, left_in
from sklearn.ensemble import VotingClassifier
from sklearn.linear_model import LogisticRegression as TheirLogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featx
from featx import FeatureStore
from featx.audit import audit
from featx.errors import BackboneError, KeysError, LayerError, ModelError, RecipeError, StoreError
from featx.learn import (
    GridSearchCV,
    HoldOut,
    LogisticRegression,
    NearestCentroid,
    StoredFeatures,
    few_shot,
    knn_probe,
    learning_curves,
    linear_probe,
    load,
    load_selection,
    predict_store,
    save,
    select_model,
)
from featx.report import html
from featx.transfer import FineTuner, adapt, compare

D = {"a": 12, "b": 4}
MEANS = np.random.default_rng(0).normal(size=(3, sum(D.values())))


def layers_of(n: int, seed: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Rows of three classes that overlap, and their labels."""
    rows = MEANS[np.arange(n) % 3] + np.random.default_rng(seed).normal(0, 1.3, (n, sum(D.values())))
    X = rows.astype(np.float32)
    return {"a": X[:, : D["a"]], "b": X[:, D["a"] :]}, [("ant", "bee", "cat")[i % 3] for i in range(n)]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("imported")


@pytest.fixture(scope="module")
def store(root) -> FeatureStore:
    layers, y = layers_of(90, 1)
    columns = {"speaker": [i % 9 for i in range(90)]}
    return FeatureStore.from_arrays(root / "t.h5", layers, y=y, columns=columns, name="demo")


@pytest.fixture(scope="module")
def other(root) -> FeatureStore:
    layers, y = layers_of(45, 2)
    ids = [f"new {i}" for i in range(45)]
    columns = {"speaker": [f"n{i % 5}" for i in range(45)]}
    return FeatureStore.from_arrays(root / "new.h5", layers, ids=ids, y=y, columns=columns, name="demo")


@pytest.fixture(scope="module")
def unnamed(root) -> FeatureStore:
    layers, y = layers_of(45, 2)
    return FeatureStore.from_arrays(root / "unnamed.h5", layers, ids=[f"new {i}" for i in range(45)], y=y)


@pytest.fixture(scope="module")
def pipe(store):
    return make_pipeline(StoredFeatures(store, ["b", "a"]), StandardScaler(), LogisticRegression(C=0.1)).fit(
        store.X, store.y
    )


def test_a_search_on_an_imported_copy_of_extracted_layers_gives_the_same_scores(tmp_path, small_network):
    photos = class_folders(tmp_path / "photos", ("ant", "bee"), n=15)
    layers = ["first:avg", "second:avg", "last"]
    extracted = featx.extract(photos, tmp_path / "a.h5", small_network, layers, progress=False)
    arrays = {layer.replace(":", "."): extracted[layer] for layer in extracted.layers}
    imported = FeatureStore.from_arrays(tmp_path / "b.h5", arrays, ids=extracted.ids, y=extracted.y)
    searched = [
        select_model(store, estimators=["logistic_regression", "knn"], folds=3, n_jobs=1)
        for store in (extracted, imported)
    ]
    scores = [[(c.estimator, c.value, c.scores) for c in selection.candidates] for selection in searched]
    assert scores[0] == scores[1]
    assert searched[0].held_out == searched[1].held_out
    assert [f"{c.layer.replace(':', '.')}:none" for c in searched[0].candidates] == [
        c.layer for c in searched[1].candidates
    ]
    grids = []
    for store in (extracted, imported):
        pipe = make_pipeline(StoredFeatures(store), StandardScaler(), LogisticRegression())
        grid = {"storedfeatures__layer": store.layers, "logisticregression__C": [0.01, 1]}
        grids.append(GridSearchCV(pipe, grid, cv=3).fit(store.X, store.y).cv_results_["mean_test_score"])
    np.testing.assert_array_equal(*grids)


def test_protocols_and_reports_work(store, other, tmp_path):
    selection = select_model(
        store, estimators="logistic_regression", groups="speaker", folds=3, holdout=HoldOut(store=other), n_jobs=1
    )
    assert selection.chosen.backbone == "imported:demo" and selection.held_out > 0.6
    for protocol in (linear_probe, knn_probe, few_shot, learning_curves):
        result = protocol(store, random_state=0)
        assert {curve.layer for curve in result.curves} == set(store.layers)
    page = html(selection, tmp_path / "r.html").read_text()
    assert "imported:demo" in page and "data:image/jpeg" not in page
    save(selection, tmp_path / "m.skops")
    again = load_selection(tmp_path / "m.skops", store, other)
    assert again.held_out == selection.held_out
    assert compare(store, folds=3, progress=False).best.name == "imported:demo"
    assert adapt(store, other, layer="a", methods="coral", draws=2, shots=[2], progress=False).rows


def test_it_is_audited_but_for_what_only_images_have(store):
    found = audit(store)
    assert found.labels is not None and any(
        "imported rows have no statistics of images" in text for text in found.missing
    )
    with pytest.raises(StoreError, match="t.h5 keeps no statistics of its images, .*; its rows were imported$"):
        select_model(store, estimators="knn", groups="near-duplicates")


def test_rows_are_predicted_like_their_keys(store, other, unnamed, pipe):
    rows = np.hstack([other["b"], other["a"]])
    features = pipe[0]
    for X in (rows, rows.astype(np.float64), pd.DataFrame(rows)):
        np.testing.assert_array_equal(pipe.predict(X), copy_reading(pipe, other).predict(other.X))
    assert features.transform(rows).origin.recipe == features.recipe_
    for wrong in (rows[:, 1:], np.hstack([rows, rows]), rows[:, 1:].astype(np.uint8)):
        with pytest.raises(KeysError, match=f"with 16 columns; got {wrong.shape[1]}"):
            pipe.predict(wrong)


def copy_reading(pipe, store):
    """The fitted pipeline, reading from another store."""
    reading = copy.deepcopy(pipe)
    reading[0].store = store
    return reading


def test_images_are_refused_with_what_works_instead(store, pipe, unnamed, tmp_path, pixel_store):
    path = Path(pixel_store.recipe.origin, str(pixel_store.ids[0]))
    save(pipe, tmp_path / "m.skops")
    for model in (pipe, load(tmp_path / "m.skops")):
        for X in ([path], ["a sentence"], [np.zeros((4, 4, 3), np.uint8)]):
            with pytest.raises(BackboneError) as caught:
                model.predict(X)
            assert_tells(caught.value, "imported (imported:demo)", "the rows, (n, d), as X",
                         "FeatureStore.from_arrays(path, layers, name='demo') and model.predict(store.X)")  # fmt: skip
    alone = make_pipeline(StoredFeatures(unnamed, "a"), NearestCentroid()).fit(unnamed.X, unnamed.y)
    with pytest.raises(BackboneError, match="imported:unnamed.*as X in Python$"):
        alone.predict(["a sentence"])
    with pytest.raises(BackboneError, match="imported:demo"):
        load(tmp_path / "m.skops", backbone=featx.Backbone("bundled:pixels"))
    with pytest.raises(BackboneError, match="imported:demo"):
        load(tmp_path / "m.skops", weights="DEFAULT")


def test_a_loaded_model_predicts_the_rows_of_a_store(store, other, unnamed, pipe, tmp_path):
    model = load(save(pipe, tmp_path / "m.skops"))
    rows = list(predict_store(model, other))
    assert [row.image for row in rows] == other.ids.tolist()
    assert [row.label for row in rows] == copy_reading(pipe, other).predict(other.X).tolist()
    assert all(row.kind == "probability" and row.error == "" for row in rows)
    with pytest.raises(RecipeError, match="imported:unnamed.*same name"):
        list(predict_store(model, unnamed))
    with pytest.raises(ModelError, match="does not begin with StoredFeatures"):
        list(predict_store(TheirLogisticRegression().fit(store["a"], store.y), other))
    with pytest.raises(
        KeysError, match="pass rows of features, or set_params"
    ):  # the loaded model itself has no store still
        model.predict(other.X)
    several = VotingClassifier(
        [(n, make_pipeline(StoredFeatures(store, n), NearestCentroid())) for n in "ab"], voting="soft"
    )
    several.fit(store.X, store.y)
    assert len([*predict_store(several, other)]) == len(other)


def test_predict_store_reads_extracted_stores_without_a_network(pixel_store, tmp_path, monkeypatch):
    pipe = make_pipeline(StoredFeatures(pixel_store), NearestCentroid()).fit(pixel_store.X, pixel_store.y)
    model = load(save(pipe, tmp_path / "m.skops"))
    monkeypatch.setattr("featx.learn.features.features._forward", lambda: pytest.fail("it computes"))
    labels = [row.label for row in predict_store(model, pixel_store)]
    assert labels == pipe.predict(pixel_store.X).tolist()
    layers, _ = layers_of(9, 3)
    with pytest.raises(LayerError, match="is not stored"):
        list(predict_store(model, FeatureStore.from_arrays(tmp_path / "x.h5", layers)))


def test_features_of_the_same_ids_are_searched_as_layers_of_one_store(store, root, tmp_path):
    layers, y = layers_of(90, 4)
    other = FeatureStore.from_arrays(tmp_path / "b.h5", {"c": layers["a"]}, y=y)
    with pytest.raises(KeysError, match="b.h5 has other rows for the same ids.*as layers of one store"):
        select_model([store, other], estimators="knn")


def test_a_test_store_needs_the_same_name(store, unnamed):
    with pytest.raises(RecipeError) as caught:
        select_model(store, estimators="knn", holdout=HoldOut(store=unnamed), n_jobs=1)
    assert_tells(caught.value, "imported:unnamed", "imported with the same name")
    assert "like" not in str(caught.value)
    with pytest.raises(RecipeError, match="imported with the same name") as caught:
        adapt(store, unnamed, layer="a", progress=False)
    assert "like" not in str(caught.value)


def test_no_network_is_extracted_or_trained_on_it(store, pixel_store, tmp_path):
    folder = Path(pixel_store.recipe.origin)
    before = store.path.read_bytes()
    for options in ({}, {"replace": True}, {"backbone": "bundled:pixels"}):
        with pytest.raises(RecipeError, match=r"t.h5 has imported rows \(imported:demo\), which no network computes"):
            featx.extract(folder, store.path, progress=False, **({"backbone": "bundled:pixels"} | options))
    with pytest.raises(RecipeError, match="t.h5 has imported rows .*cannot be extracted like it"):
        featx.extract(folder, tmp_path / "a.h5", like=store, progress=False)
    assert store.path.read_bytes() == before and left_in(tmp_path) == []
    for boundary in ("a", "input"):
        with pytest.raises(BackboneError, match="fine-tuning needs the network, and t.h5 has imported features"):
            FineTuner(store, boundary).fit(store.X, store.y)
