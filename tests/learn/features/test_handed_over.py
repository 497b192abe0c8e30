"""A module of the user's belongs to whoever holds it: the store of a run, a fitted step, its copies and pickles."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from helpers import assert_tells, empty_cache, fresh_python, noise
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from torch import nn

import featx
from featx.backbones import Backbone, Preprocessing
from featx.errors import BackboneError
from featx.learn import GridSearchCV, ImageFeatures, LinearSVC, StoredFeatures, load, save

SMALL = Preprocessing(crop=(32, 32), resize=32)
IMAGES = [noise(seed) for seed in range(8)]
LABELS = ["ant", "bee"] * 4


def own(seed: int = 0) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Backbone(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(2)), preprocessing=SMALL)


@pytest.fixture
def store(tmp_path):
    options = {"layers": "1", "labels": LABELS, "ids": list(map(str, range(8))), "device": "cpu", "progress": False}
    return featx.extract(IMAGES, tmp_path / "own.h5", own(), **options)


@pytest.fixture
def model(store):
    return make_pipeline(StoredFeatures(store, device="cpu"), LinearSVC()).fit(store.X, store.y)


@pytest.fixture
def scores(model):
    return model.decision_function(IMAGES)


def by_the_saved_model(model, tmp_path):
    save(model, tmp_path / "model.skops")
    return load(tmp_path / "model.skops", backbone=own())


HOLDERS = {
    "the model": lambda model, store, tmp_path: model,
    "its deep copy": lambda model, store, tmp_path: copy.deepcopy(model),
    "its copy": lambda model, store, tmp_path: copy.copy(model),
    "its pickle": lambda model, store, tmp_path: pickle.loads(pickle.dumps(model)),
    "its clone, fitted": lambda model, store, tmp_path: clone(model).fit(store.X, store.y),
    "its frozen copy": lambda model, store, tmp_path: clone(FrozenEstimator(model)),
    "loaded": lambda model, store, tmp_path: by_the_saved_model(model, tmp_path),
    "loaded, its deep copy": lambda model, store, tmp_path: copy.deepcopy(by_the_saved_model(model, tmp_path)),
    "loaded, its pickle": lambda model, store, tmp_path: pickle.loads(
        pickle.dumps(by_the_saved_model(model, tmp_path))
    ),
    "loaded, its clone fitted on images": lambda model, store, tmp_path: clone(by_the_saved_model(model, tmp_path)).fit(
        IMAGES, LABELS
    ),
    "fitted on an image step": lambda model, store, tmp_path: make_pipeline(
        ImageFeatures(own(), "1", device="cpu"), LinearSVC()
    ).fit(IMAGES, LABELS),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_who_holds_a_module_predicts_images_whatever_else_was_used(model, store, scores, tmp_path, holder):
    held = HOLDERS[holder](model, store, tmp_path)
    empty_cache()
    np.testing.assert_allclose(held.decision_function(IMAGES), scores, rtol=1e-5)


def test_a_store_that_is_opened_by_its_path_says_how_it_takes_the_module(store, scores):
    opened = featx.FeatureStore(store.path)
    model = make_pipeline(StoredFeatures(opened, device="cpu"), LinearSVC()).fit(opened.X, opened.y)
    with pytest.raises(BackboneError) as caught:
        model.predict(IMAGES)
    assert_tells(caught.value, "a module of yours, Sequential; set the store's attribute `backbone`", "featx.Backbone(")
    opened.backbone = own(seed=1)
    with pytest.raises(BackboneError, match="the recorded network is module:Sequential with weights sha256"):
        model.predict(IMAGES)
    opened.backbone = own()
    np.testing.assert_allclose(model.decision_function(IMAGES), scores, rtol=1e-5)


def test_a_step_of_another_store_takes_that_stores_network(store, model, tmp_path):
    options = {"layers": "1", "labels": LABELS, "ids": list(map(str, range(8))), "device": "cpu", "progress": False}
    other = featx.extract(IMAGES, tmp_path / "other.h5", own(seed=1), **options)
    model.set_params(storedfeatures__store=other).fit(other.X, other.y)
    np.testing.assert_allclose(model[0].transform(IMAGES), other["1:avg"], rtol=1e-4, atol=1e-6)
    model.set_params(storedfeatures__store=featx.FeatureStore(store.path)).fit(store.X, store.y)
    with pytest.raises(BackboneError, match="set the store's attribute"):
        model.predict(IMAGES)


def test_a_store_that_is_returned_or_grown_or_merged_keeps_the_module(store, tmp_path):
    options = {"device": "cpu", "progress": False, "layers": "1", "labels": LABELS, "ids": list(map(str, range(8)))}
    assert featx.extract(IMAGES, store.path, own(), **options).backbone.weights_sha256 == own().weights_sha256
    other = [noise(seed) for seed in range(8, 16)]
    options["ids"] = list(map(str, range(8, 16)))
    more = featx.extract(other, tmp_path / "more.h5", like=store, progress=False, labels=LABELS, ids=options["ids"])
    merged = featx.merge([store, more], tmp_path / "both.h5")
    step = StoredFeatures(merged, device="cpu").fit()
    np.testing.assert_allclose(step.transform(IMAGES), store["1:avg"], rtol=1e-4, atol=1e-6)
    assert featx.merge([store, more], tmp_path / "both.h5").backbone is merged.backbone is store.backbone


def test_a_search_shares_its_fits_and_its_best_model_keeps_the_module(store):
    search = GridSearchCV(
        make_pipeline(StoredFeatures(store, device="cpu"), LinearSVC()), {"linearsvc__C": [0.1, 1.0, 10.0]}, cv=2
    )
    assert str(search.plan(store.X, store.y)).startswith("6 fits of LinearSVC in one solve")
    search.fit(store.X, store.y)
    empty_cache()
    expected = search.best_estimator_[1].decision_function(np.asarray(store["1:avg"]))
    np.testing.assert_allclose(search.decision_function(IMAGES), expected, rtol=1e-4, atol=1e-6)


def test_a_fitted_image_step_takes_its_module_to_another_process(tmp_path):
    step = ImageFeatures(own(), "1", device="cpu").fit(IMAGES)
    expected = step.transform(IMAGES)
    (tmp_path / "step.pickle").write_bytes(pickle.dumps((step, IMAGES)))
    code = f"""
import json, pickle, numpy as np
step, images = pickle.load(open({str(tmp_path / "step.pickle")!r}, "rb"))
print(json.dumps(step.transform(images).tolist()))
"""
    np.testing.assert_allclose(fresh_python(code), expected, rtol=1e-5)


def test_a_pickle_without_a_module_of_the_users_own_holds_no_weights():
    named = Backbone("squeezenet1_1", None, preprocessing=SMALL)
    step = ImageFeatures(named, device="cpu").fit(IMAGES)
    content = pickle.dumps(step)
    assert len(content) < 20_000
    np.testing.assert_array_equal(pickle.loads(content).transform(IMAGES), step.transform(IMAGES))


def test_a_program_in_memory_says_how_it_could_be_sent():
    exported = torch.export.export(
        own().module, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim("b")},)
    )
    program = Backbone(exported, preprocessing=SMALL)
    step = ImageFeatures(program, "penultimate", device="cpu").fit(IMAGES)
    np.testing.assert_array_equal(copy.deepcopy(step).transform(IMAGES), step.transform(IMAGES))
    with pytest.raises(BackboneError) as caught:
        pickle.dumps(step)
    assert_tells(caught.value, "a program in memory, which cannot be sent to another process", ".pt2 file")
