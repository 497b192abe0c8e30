"""Fine-tuning on several views of each image: one is drawn in each epoch, and predictions average all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import levelled_folders
from PIL import Image

import featx
from featx import Backbone, FeatureStore, Preprocessing
from featx.backbones import Tail
from featx.errors import FeatxError
from featx.store import export
from featx.transfer import FineTuner, FineTunerRegressor
from featx.transfer.rows import stored_rows

QUICK = {"batch_size": 8, "device": "cpu"}
VIEWS = ["center", "flip", "top-left"]


def network() -> Backbone:
    return Backbone("resnet18", weights=None, preprocessing=Preprocessing((32, 32), 36))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    levels = {"dark": 60, "dim": 100, "light": 160}
    return levelled_folders(tmp_path_factory.mktemp("photos"), levels, 6, (36, 40), spread=60)


def extracted(folder: Path, output: Path, **options: object) -> FeatureStore:
    options = {"device": "cpu", "precision": "float32", "progress": False} | options
    return featx.extract(folder, output, network(), "layer4.0:none", **options)


@pytest.fixture(scope="module")
def store(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return extracted(folder, tmp_path_factory.mktemp("views") / "views.h5", views=VIEWS)


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return extracted(folder, tmp_path_factory.mktemp("plain") / "plain.h5")


def test_predictions_average_the_outputs_of_the_tail(store, folder):
    tuned = FineTuner(store, "layer4.0", epochs=1, **QUICK).fit(store.X, store.y)
    each = torch.from_numpy(np.array(store["layer4.0"]))  # (n, v, c, h, w)
    with torch.no_grad():
        scores = tuned._network(each.flatten(0, 1)).unflatten(0, each.shape[:2]).mean(1)
    expected = scores.softmax(1).numpy()
    np.testing.assert_allclose(tuned.predict_proba(store.X), expected, atol=1e-5)
    paths = [folder / name for name in store.ids]
    np.testing.assert_allclose(tuned.predict_proba(paths), expected, atol=1e-4)
    one = store.X[[4, 2]]
    np.testing.assert_allclose(tuned.predict_proba(one), expected[[4, 2]], atol=1e-5)


def test_the_probe_is_fitted_on_the_mean_penultimate_layer(store):
    from featx.transfer.heads import fit_probe

    tuned = FineTuner(store, "layer4.0", epochs=0, **QUICK).fit(store.X, store.y)
    each = torch.from_numpy(np.array(store["layer4.0"]))
    with torch.no_grad():
        X = Tail(network(), "layer4.0")(each.flatten(0, 1)).unflatten(0, each.shape[:2]).mean(1).numpy()
    probe = fit_probe(X, store.y, None, None, 0)
    np.testing.assert_allclose(tuned.predict_proba(store.X), probe.predict_proba(X), atol=1e-4)


def test_each_image_is_trained_on_in_one_view_drawn_at_random(store, tmp_path):
    features = FineTuner(store, "layer4.0")._features()
    archive = FineTuner(FeatureStore(export(store, tmp_path / "b.h5")), "layer4.0")._features()
    where = np.array([5, 0, 5, 17, 3, 9])
    drawn = {}
    for name, each in (("store", features), ("archive", archive)):
        _, rows, _ = stored_rows(each, store.X, torch.Generator().manual_seed(1))
        drawn[name] = torch.stack([rows(where) for _ in range(8)]).numpy()  # (8, m, ...)
    np.testing.assert_array_equal(drawn["store"], drawn["archive"])
    stored = np.asarray(store["layer4.0"])[where]  # (m, v, ...)
    is_view = (drawn["store"][:, :, None] == stored).all(axis=(3, 4, 5))  # (8, m, v)
    assert (is_view.sum(axis=2) == 1).all() and (is_view.any(axis=0).sum() >= 15)


def test_one_view_is_a_store_without_views(plain, folder, tmp_path):
    one = extracted(folder, tmp_path / "one.h5", views="center")
    options = {"epochs": 2, "mixup": 0.2, "augment": "posterize", **QUICK}
    first, second = (FineTuner(each, "layer4.0", **options).fit(each.X, each.y) for each in (plain, one))
    assert first.weights_ == second.weights_
    np.testing.assert_array_equal(first.predict_proba(plain.X), second.predict_proba(one.X))


def test_two_fits_are_equal_and_a_stopped_one_goes_on(store, plain, tmp_path):
    options = {"epochs": 3, "early_stopping": True, "validation_fraction": 0.4, **QUICK}
    whole, again = (FineTuner(store, "layer4.0", **options).fit(store.X, store.y) for _ in range(2))
    assert whole.weights_ == again.weights_
    assert (
        FineTuner(store, "layer4.0", **{**options, "random_state": 1}).fit(store.X, store.y).weights_ != whole.weights_
    )

    def stop(progress: featx.TrainingProgress) -> None:
        if progress.epoch > 1.5:
            raise KeyboardInterrupt

    kept = tmp_path / "kept.safetensors"
    with pytest.raises(KeyboardInterrupt):
        FineTuner(store, "layer4.0", checkpoint=kept, progress=stop, **options).fit(store.X, store.y)
    with pytest.raises(FeatxError, match=r"other settings: .views was \['center', 'flip', 'top-left'\], now None"):
        FineTuner(plain, "layer4.0", checkpoint=kept, **options).fit(plain.X, plain.y)
    resumed = FineTuner(store, "layer4.0", checkpoint=kept, **options).fit(store.X, store.y)
    assert resumed.weights_ == whole.weights_
    np.testing.assert_array_equal(resumed.history_["loss"], whole.history_["loss"])


def test_the_model_is_saved_with_its_views(store, folder, tmp_path):
    tuned = FineTuner(store, "layer4.0", epochs=1, **QUICK).fit(store.X, store.y)
    featx.save(tuned, tmp_path / "m.skops")
    loaded, paths = featx.load(tmp_path / "m.skops"), [folder / name for name in store.ids]
    np.testing.assert_array_equal(loaded.predict_proba(paths), tuned.predict_proba(paths))
    np.testing.assert_array_equal(loaded.set_params(store=store).predict_proba(store.X), tuned.predict_proba(store.X))


def test_the_whole_network_is_trained_on_views_of_the_images(store, plain, folder):
    options = {"boundary": "input", "epochs": 1, **QUICK}
    tuned = FineTuner(store, **options).fit(store.X, store.y)
    assert tuned.weights_ == FineTuner(store, **options).fit(store.X, store.y).weights_
    assert tuned.weights_ != FineTuner(plain, **options).fit(plain.X, plain.y).weights_
    preprocessing = network().preprocessing
    images = [Image.open(folder / name) for name in store.ids]
    pixels = np.stack([preprocessing.views(image, VIEWS) for image in images])
    with torch.no_grad():
        scores = tuned._network(preprocessing.normalise(torch.from_numpy(pixels).flatten(0, 1)))
    expected = scores.unflatten(0, (-1, 3)).mean(1).softmax(1).numpy()
    np.testing.assert_allclose(tuned.predict_proba(store.X), expected, atol=1e-5)
    options |= {"augment": "crop", "head": "zeros"}  # a random crop stands for all views
    cropped = [FineTuner(each, **options).fit(each.X, each.y).weights_ for each in (store, plain)]
    assert cropped[0] == cropped[1]


def test_numbers_are_predicted_from_all_views(store):
    y = np.linspace(10.0, 20.0, len(store))
    tuned = FineTunerRegressor(store, "layer4.0", epochs=1, **QUICK).fit(store.X, y)
    each = torch.from_numpy(np.array(store["layer4.0"]))
    with torch.no_grad():
        scores = tuned._network(each.flatten(0, 1)).unflatten(0, each.shape[:2]).mean(1)[:, 0].numpy()
    np.testing.assert_allclose(tuned.predict(store.X), scores * tuned.scale_ + tuned.mean_, rtol=1e-4)
