"""Networks inside exported programs: several layers and pools, fine-tuned tails, aligned rows, ensembles of layers."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from helpers import class_folders, noise
from PIL import Image
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import VotingClassifier
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import featx
from featx.deploy import export
from featx.deploy.program import Program
from featx.errors import ModelError
from featx.learn import SVC, KNeighborsClassifier, LogisticRegression, NearestCentroid, StoredFeatures
from featx.transfer import Align, FineTuner, FineTunerRegressor


def network() -> featx.Backbone:
    parts = OrderedDict(
        first=nn.Conv2d(3, 6, 3, 2), norm=nn.BatchNorm2d(6), act=nn.ReLU(), second=nn.Conv2d(6, 8, 3, 2),
        pooled=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), last=nn.Linear(8, 3),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    module = nn.Sequential(parts)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return featx.Backbone(module, preprocessing=featx.Preprocessing((32, 40), 36))


LAYERS = ["act:none", "second:spp", "second:gem", "second:max", "act:flatten~20", "penultimate"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> featx.FeatureStore:
    folder = tmp_path_factory.mktemp("networks")
    photos = class_folders(folder / "photos", ("ant", "bee", "cat"), n=8)
    options: dict[str, Any] = {"precision": "float32", "engine": "eager", "device": "cpu", "progress": False}
    return featx.extract(photos, folder / "photos.h5", network(), LAYERS, **options)


def assert_agrees(model: Any, atol: float = 2e-5) -> None:
    """The module, on pixels of the crop's size, gives what the model predicts of images of that size."""
    program = Program(model, "pixels")
    assert program.layers.recipe is not None
    preprocessing = featx.Preprocessing.from_dict(program.layers.recipe.preprocessing)
    images = [noise(i, 36, 45) for i in range(8)]
    pixels = np.stack([preprocessing(Image.fromarray(image)) for image in images])
    with torch.inference_mode():
        got = dict(zip(program.outputs, program(torch.from_numpy(pixels)), strict=True))
    if "values" in got:
        np.testing.assert_allclose(got["values"].numpy(), model.predict(images), rtol=1e-4)
        return
    np.testing.assert_array_equal(model.classes_[got["label"].numpy()], model.predict(images))
    if "probabilities" in got:
        np.testing.assert_allclose(got["probabilities"].numpy(), model.predict_proba(images), atol=atol)


def test_layers_with_every_kind_of_pool_are_side_by_side(store):
    features = StoredFeatures(store, ["second:spp", "act:flatten~20", "second:gem", "penultimate"])
    assert_agrees(make_pipeline(features, StandardScaler(), LogisticRegression()).fit(store.X, store.y))


def test_features_in_the_members_of_an_ensemble_and_in_unions_share_one_network(store):
    members = [
        ("max", make_pipeline(StoredFeatures(store, "second:max"), StandardScaler(), LogisticRegression())),
        ("gem", make_pipeline(StoredFeatures(store, ["second:gem", "second:max"]), KNeighborsClassifier(3))),
    ]
    voting = VotingClassifier(members, voting="soft").fit(store.X, store.y)
    assert_agrees(voting)
    assert list(Program(voting, "rows").layers.spans) == ["second:max", "second:gem"]
    union = FeatureUnion([("spp", StoredFeatures(store, "second:spp")), ("max", StoredFeatures(store, "second:max"))])
    assert_agrees(make_pipeline(union, StandardScaler(), NearestCentroid()).fit(store.X, store.y))
    pipe = make_pipeline(StoredFeatures(store, "second:spp"), StandardScaler(), SVC())
    assert_agrees(CalibratedClassifierCV(pipe, ensemble=False, cv=3).fit(store.X, store.y))


@pytest.mark.parametrize("boundary", ["act", "input"])
def test_a_fine_tuned_network_is_one_with_its_front(store, boundary):
    tuner = FineTuner(store, boundary, epochs=1, lr=0.01, batch_size=8, device="cpu").fit(store.X, store.y)
    assert_agrees(tuner)
    if boundary == "input":
        with pytest.raises(ModelError, match="reads images: export it with input='pixels'"):
            Program(tuner, "rows")
    else:
        assert Program(tuner, "rows").d == 6 * 15 * 19


def test_a_fine_tuned_regression(store):
    values = np.arange(len(store.X)) * 10.0
    assert_agrees(FineTunerRegressor(store, "act", epochs=1, batch_size=8, device="cpu").fit(store.X, values))


@pytest.mark.parametrize("method", ["scaler", "coral"])
def test_aligned_images_are_of_the_target_domain(store, method, tmp_path):
    theirs = class_folders(tmp_path / "theirs", ("ant", "bee"), n=5)
    target = featx.extract(theirs, tmp_path / "t.h5", like=store, backbone=network(), progress=False)
    features = StoredFeatures(store, "second:spp")
    assert_agrees(make_pipeline(features, Align(target, method), LogisticRegression()).fit(store.X, store.y))


def test_several_networks_are_refused(store, tmp_path):
    photos = class_folders(tmp_path / "photos", ("ant", "bee", "cat"), n=8)
    other = featx.extract(photos, tmp_path / "p.h5", "bundled:pixels", progress=False)
    members = [
        (name, make_pipeline(StoredFeatures(each, layer), LogisticRegression(C=1e-4)).fit(each.X, each.y))
        for name, each, layer in (("a", store, "second:max"), ("b", other, None))
    ]
    voting = VotingClassifier(members, voting="soft")
    voting.estimators_, voting.classes_ = [member for _, member in members], store.classes
    with pytest.raises(ModelError, match=r"several networks \(module:Sequential and bundled:pixels\)"):
        Program(voting, "pixels")


@pytest.mark.slow
def test_every_pool_and_a_fine_tuned_network_in_onnxruntime(store, tmp_path):
    features = StoredFeatures(store, ["second:spp", "act:flatten~20", "second:gem", "penultimate"])
    pipe = make_pipeline(features, StandardScaler(), LogisticRegression()).fit(store.X, store.y)
    assert export(pipe, tmp_path / "a.onnx").agreement.difference < 2e-5
    tuner = FineTuner(store, "act", epochs=1, lr=0.01, batch_size=8, device="cpu").fit(store.X, store.y)
    assert export(tuner, tmp_path / "b.onnx").agreement.difference < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "timm:vit_tiny_patch16_224", "torchvision:swin_t", "timm:convnext_atto"])
def test_families_of_networks_in_onnxruntime(name, tmp_path):
    size = 224 if "vit" in name else 64
    backbone = featx.Backbone(name, weights=None, preprocessing=featx.Preprocessing((size, size), size))
    images = [noise(i, size, size + 9) for i in range(12)]
    options: dict[str, Any] = {"precision": "float32", "engine": "eager", "device": "cpu", "progress": False}
    made = featx.extract(images, tmp_path / "a.h5", backbone, "penultimate", labels=np.arange(12) % 2, **options)
    pipe = make_pipeline(StoredFeatures(made), StandardScaler(), LogisticRegression()).fit(made.X, made.y)
    assert export(pipe, tmp_path / "m.onnx", check=images).agreement.difference < 2e-5
