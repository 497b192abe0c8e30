"""Fine-tuning from a stored layer: what is trained, what is kept, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import levelled_folders, store_of
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from torch import nn

import featx
from featx import Backbone, FeatureStore, Preprocessing
from featx.backbones import Tail
from featx.errors import FeatxError, KeysError, LayerError, ModelError, StoreError
from featx.images import decode
from featx.learn import GridSearchCV, StoredFeatures
from featx.transfer import FineTuner, FineTunerRegressor, finetuning, training
from featx.transfer.augmentation import posterize
from featx.transfer.heads import fit_probe, start_head

QUICK = {"batch_size": 8, "device": "cpu"}


def network() -> Backbone:
    return Backbone("resnet18", weights=None, preprocessing=Preprocessing((32, 32), 32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 12 images: noise around a level."""
    levels = {"dark": 60, "dim": 100, "light": 160}
    return levelled_folders(tmp_path_factory.mktemp("photos"), levels, 12, (32, 32), spread=60)


@pytest.fixture(scope="module")
def store(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    layers = ["layer3:none", "layer4.0:none", "penultimate"]
    path = tmp_path_factory.mktemp("store") / "maps.h5"
    return featx.extract(folder, path, network(), layers, device="cpu", precision="float32", progress=False)


def plain_losses(store: FeatureStore, y: np.ndarray, start: FineTuner, epochs: int) -> list[float]:
    """Losses of the usual loop: the whole network on pixels, its front frozen, AdamW, batches in the same order."""
    whole = Tail(network(), "input")
    front = {name for name, _ in whole.network.named_parameters()} - {
        name for name, _ in Tail(network(), "layer3").network.named_parameters()
    }
    head = nn.Linear(512, 3)
    weights = start._network.weights()
    with torch.no_grad():
        head.weight.copy_(weights["head.weight"])
        head.bias.copy_(weights["head.bias"])
    for name, value in whole.network.named_parameters():
        value.requires_grad_(name not in front)
    trained = [value for value in [*whole.parameters(), *head.parameters()] if value.requires_grad]
    groups = [
        {"params": [value for value in trained if value.ndim > 1], "weight_decay": 0.05},
        {"params": [value for value in trained if value.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    steps = epochs * 5
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + np.cos(np.pi * step / steps)))
    preprocessing = network().preprocessing
    images = [decode(Path(store.recipe.origin) / name)[0] for name in store.ids]
    pixels = preprocessing.normalise(torch.from_numpy(np.stack([preprocessing(image) for image in images])))
    codes = torch.from_numpy(np.unique(y, return_inverse=True)[1])
    generator = torch.Generator().manual_seed(0)
    means = []
    for _ in range(epochs):
        losses = []
        for batch in torch.randperm(len(y), generator=generator).split(8):
            loss = nn.functional.cross_entropy(head(whole(pixels[batch])), codes[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            rate.step()
            losses.append(loss.item())
        means.append(float(np.mean(losses)))
    return means


def test_losses_are_those_of_a_plain_loop_with_a_frozen_front(store):
    options = {"head": "random", "lr": 1e-3, "warmup": 0.0, **QUICK}
    start = FineTuner(store, "layer3", epochs=0, **options).fit(store.X, store.y)
    tuned = FineTuner(store, "layer3", epochs=3, **options).fit(store.X, store.y)
    expected = plain_losses(store, store.y, start, 3)
    np.testing.assert_allclose(tuned.history_["loss"][1:], expected, rtol=0, atol=1e-5)
    assert expected[-1] < expected[0] - 0.1


def test_without_epochs_it_is_the_probe(store):
    tuned = FineTuner(store, "layer3", epochs=0, **QUICK).fit(store.X, store.y)
    tail = Tail(network(), "layer3")
    with torch.no_grad():
        X = tail(torch.from_numpy(np.array(store["layer3:none"]))).numpy()
    np.testing.assert_allclose(X, store["penultimate"], rtol=1e-3, atol=1e-4)
    probe = fit_probe(X, store.y, None, None, 0)
    np.testing.assert_allclose(tuned.predict_proba(store.X), probe.predict_proba(X), atol=1e-4)
    two = store.y != "dim"
    tuned = FineTuner(store, "layer3", epochs=0, **QUICK).fit(store.X[two], store.y[two])
    probe = fit_probe(X[two], store.y[two], None, None, 0)
    np.testing.assert_allclose(tuned.decision_function(store.X), probe.decision_function(X), atol=1e-3)


def test_the_head_of_a_probe_bears_other_values_of_a_feature_that_hardly_varies():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 8)), np.arange(60) % 2
    X[:, 0] = 1e-4 * (X[:, 0] + 3 * y)
    head = nn.Linear(8, 2)
    start_head(head, fit_probe(X, y, None, None, 0), "probe", 0)
    assert head.weight.abs().max() < 100
    shifted = head(torch.tensor(X + 0.1 * np.eye(8)[0]).float()) - head(torch.tensor(X).float())
    assert shifted.abs().max() < 10


def test_two_fits_give_equal_weights_and_another_seed_does_not(store):
    options = {"epochs": 2, "mixup": 0.4, "augment": "brightness", "label_smoothing": 0.1, **QUICK}
    first, second = (FineTuner(store, "layer4.0", **options).fit(store.X, store.y) for _ in range(2))
    assert first.weights_ == second.weights_
    assert FineTuner(store, "layer4.0", random_state=1, **options).fit(store.X, store.y).weights_ != first.weights_


def test_posterized_channels_have_a_few_levels_of_their_range():
    rows = torch.randn(40, 6, 9, 9, generator=torch.Generator().manual_seed(0))
    rows[:, 5] = 3.0
    changed = posterize(rows, places=(2, 3), generator=torch.Generator().manual_seed(1))
    assert torch.equal(changed[:, 5], rows[:, 5])  # a constant channel stays
    low, high = rows.amin((2, 3), keepdim=True), rows.amax((2, 3), keepdim=True)
    before, after = (((each - low) / (high - low).clamp_min(1e-9) * 255)[:, :5] for each in (rows, changed))
    drawn = set()
    for numbers, levels in zip(before.flatten(0, 1).floor().int(), after.flatten(0, 1).round().int(), strict=True):
        bits = min(bits for bits in range(1, 9) if not (levels % 2 ** (8 - bits)).any())
        assert torch.equal(levels, numbers // 2 ** (8 - bits) * 2 ** (8 - bits))
        drawn.add(bits)
    assert drawn == set(range(1, 9))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_layer_decay_slows_earlier_parts_and_norms_are_not_decayed(store, optimizer):
    options = {"epochs": 1, "lr": 1e-4, "warmup": 0.0, "head": "zeros", "optimizer": optimizer, **QUICK}
    moves = {}
    for decay in (1.0, 0.1):
        tuned = FineTuner(store, "layer3", layer_decay=decay, **options).fit(store.X, store.y)
        before = dict(Tail(network(), "layer3").network.named_parameters())
        after = dict(tuned._network.tail.network.named_parameters())
        moves[decay] = {name: float((after[name] - before[name]).abs().mean().detach()) for name in before}
    first, second = "layer4.0.conv1.weight", "layer4.1.conv1.weight"
    assert moves[0.1][first] < 0.05 * moves[1.0][first] and 0.05 < moves[0.1][second] / moves[1.0][second] < 0.2


def test_images_and_their_keys_are_predicted_alike_also_after_saving(store, folder, tmp_path):
    tuned = FineTuner(store, "layer3", epochs=1, **QUICK).fit(store.X, store.y)
    expected = tuned.predict_proba(store.X)
    paths = [folder / name for name in store.ids]
    np.testing.assert_allclose(tuned.predict_proba(paths), expected, atol=1e-4)
    featx.save(tuned.set_params(checkpoint=str(tmp_path / "precious")), tmp_path / "m.skops")
    loaded = featx.load(tmp_path / "m.skops")
    assert loaded.checkpoint is None  # a file names no other that a fit would read or remove
    np.testing.assert_allclose(loaded.predict_proba(paths), expected, atol=1e-4)
    assert (loaded.predict(paths) == tuned.predict(store.X)).all()
    with pytest.raises(KeysError, match="has no store to read their rows from"):
        loaded.predict(store.X)
    np.testing.assert_array_equal(loaded.set_params(store=store).predict_proba(store.X), expected)
    np.testing.assert_array_equal(
        clone(tuned).set_params(checkpoint=None).fit(store.X, store.y).predict_proba(store.X), expected
    )


def test_weights_of_another_size_are_refused_when_a_model_is_loaded(store, tmp_path, subtests):
    tuned = FineTuner(store, "layer4.0", epochs=0, head="zeros", **QUICK).fit(store.X, store.y)
    good = safetensors.torch.load(tuned.weights_)
    head = good["head.weight"]
    forged = {
        "a head of 2 rows": good | {"head.weight": head[:2].clone(), "head.bias": good["head.bias"][:2].clone()},
        "a bias of another length": good | {"head.bias": torch.zeros(4)},
        "a head that is a vector": good | {"head.weight": head[:, 0].clone()},
        "no head": {name: value for name, value in good.items() if not name.startswith("head.")},
        "float64": {name: value.double() for name, value in good.items()},
    }
    contents = {name: safetensors.torch.save(weights) for name, weights in forged.items()}
    contents |= {"cut short": tuned.weights_[:-4], "no safetensors": b"{}", "text": "weights"}
    for name, content in contents.items():
        with subtests.test(name):
            tuned.weights_ = content
            featx.save(tuned, tmp_path / "m.skops")
            with pytest.raises(ModelError, match="m.skops is refused: the weights of FineTuner are (not|dam)"):
                featx.load(tmp_path / "m.skops")


def test_a_killed_training_goes_on_and_equals_one_that_was_not(store, tmp_path):
    options = {"epochs": 3, "mixup": 0.2, **QUICK}
    whole = FineTuner(store, "layer4.0", **options).fit(store.X, store.y)

    class Killed(Exception):
        pass

    def kill(progress: featx.TrainingProgress) -> None:
        if progress.epoch > 1.5:
            raise Killed

    kept = tmp_path / "kept.safetensors"
    with pytest.raises(Killed):
        FineTuner(store, "layer4.0", checkpoint=kept, progress=kill, **options).fit(store.X, store.y)
    assert kept.exists()
    with pytest.raises(
        FeatxError, match="kept.safetensors is a training with other settings: 'lr was 0.0001, now 0.1'"
    ):
        FineTuner(store, "layer4.0", checkpoint=kept, lr=0.1, **options).fit(store.X, store.y)
    with pytest.raises(FeatxError, match="other settings: .boundary was"):
        FineTuner(store, "layer3", checkpoint=kept, **options).fit(store.X, store.y)
    with pytest.raises(FeatxError, match='other settings: "images was'):
        FineTuner(store, "layer4.0", checkpoint=kept, **options).fit(store.X[1:], store.y[1:])
    half = featx.extract(Path(store.recipe.origin), tmp_path / "half.h5", network(), "layer4.0:none", device="cpu",
                         dtype="float16", progress=False)  # fmt: skip
    with pytest.raises(FeatxError, match="other settings: .dtype was 'float32', now 'float16'"):
        FineTuner(half, "layer4.0", checkpoint=kept, **options).fit(half.X, half.y)
    seen = []
    again = FineTuner(store, "layer4.0", checkpoint=kept, progress=seen.append, **options).fit(store.X, store.y)
    assert seen[0].epoch == pytest.approx(1.2)  # it went on after the first epoch of five minibatches
    assert again.weights_ == whole.weights_
    np.testing.assert_array_equal(again.history_["loss"], whole.history_["loss"])
    assert not kept.exists()
    kept.write_bytes(b"no such thing")
    with pytest.raises(FeatxError, match="kept.safetensors is not a stored training"):
        FineTuner(store, "layer4.0", checkpoint=kept, **options).fit(store.X, store.y)


def test_a_training_with_weights_of_numbered_classes_goes_on(store, tmp_path):
    """Keys of a mapping are text in the file."""
    y = np.unique(store.y, return_inverse=True)[1]
    options = {"epochs": 2, "class_weight": {0: 1.0, 1: 2.0, 2: 1.0}, "checkpoint": tmp_path / "kept", **QUICK}

    def stop(progress: featx.TrainingProgress) -> None:
        if progress.epoch > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FineTuner(store, "layer4.0", progress=stop, **options).fit(store.X, y)
    assert FineTuner(store, "layer4.0", **options).fit(store.X, y).n_iter_ == 2


def test_an_interrupt_keeps_the_best_epoch(store):
    def stop(progress: featx.TrainingProgress) -> None:
        if progress.epoch > 1.5:
            raise KeyboardInterrupt

    tuned = FineTuner(store, "layer4.0", epochs=3, progress=stop, **QUICK)
    with pytest.raises(KeyboardInterrupt):
        tuned.fit(store.X, store.y)
    expected = FineTuner(store, "layer4.0", epochs=3, **QUICK).fit(store.X, store.y)
    assert tuned.n_iter_ == tuned.best_epoch_ == 1
    np.testing.assert_allclose(tuned.history_["loss"][1], expected.history_["loss"][1])
    assert len(tuned.predict(store.X)) == len(store)


def test_early_stopping_keeps_the_epoch_that_scores_best(store):
    tuned = FineTuner(store, "layer4.0", epochs=30, lr=1e-2, early_stopping=True, validation_fraction=0.25,
                      n_iter_no_change=2, **QUICK).fit(store.X, store.y)  # fmt: skip
    scores = tuned.history_["score"]
    assert tuned.best_epoch_ == np.argmax(scores) and tuned.n_iter_ <= tuned.best_epoch_ + 2


def test_maps_are_read_a_minibatch_at_a_time(store, monkeypatch):
    """So maps may be larger than memory."""
    sizes = {"take": [], "transform": []}
    take, transform = FeatureStore.take, StoredFeatures.transform_views
    monkeypatch.setattr(
        FeatureStore, "take", lambda self, rows, *a: sizes["take"].append(len(rows)) or take(self, rows, *a)
    )
    monkeypatch.setattr(
        StoredFeatures, "transform_views", lambda self, X: sizes["transform"].append(len(X)) or transform(self, X)
    )
    monkeypatch.setattr(training, "_SCORED_ROWS", 5)
    tuned = FineTuner(store, "layer3", epochs=1, batch_size=7, device="cpu").fit(store.X, store.y)
    tuned.predict(store.X)
    assert max(sizes["take"]) == 7 and sum(sizes["take"]) >= 2 * len(store)  # the probe, and an epoch
    assert max(sizes["transform"]) == 5 and sum(sizes["transform"]) == len(store)


def test_a_loss_of_nan_ends_training_with_the_best_epoch(store):
    with pytest.warns(
        ConvergenceWarning, match=r"the loss became (nan|inf) in epoch 1 at a rate of .*epoch 0; lower lr"
    ):
        tuned = FineTuner(store, "layer3", epochs=2, lr=1e30, optimizer="sgd", warmup=0.0, max_norm=None, **QUICK).fit(
            store.X, store.y
        )
    probe = FineTuner(store, "layer3", epochs=0, **QUICK).fit(store.X, store.y)
    np.testing.assert_array_equal(tuned.predict_proba(store.X), probe.predict_proba(store.X))


@pytest.mark.parametrize("early_stopping", [False, True])
def test_an_epoch_that_ends_with_useless_weights_is_not_kept(store, early_stopping):
    """The last minibatch of an epoch shows it in no loss: here the only one."""
    options = {"epochs": 1, "lr": 1e20, "optimizer": "sgd", "warmup": 0.0, "max_norm": None, "device": "cpu",
               "batch_size": 64, "early_stopping": early_stopping}  # fmt: skip
    for kind, y in ((FineTuner, store.y), (FineTunerRegressor, np.arange(len(store), dtype=float))):
        with pytest.warns(ConvergenceWarning, match="outputs became infinite or nan in epoch 1 at a rate of 1e.20"):
            tuned = kind(store, "layer3", **options).fit(store.X, y)
        probe = kind(store, "layer3", **(options | {"epochs": 0})).fit(store.X, y)
        assert tuned.best_epoch_ == tuned.n_iter_ == 0
        np.testing.assert_array_equal(tuned.predict(store.X), probe.predict(store.X))


def test_classes_may_be_floats(store):
    codes = np.unique(store.y, return_inverse=True)[1]
    options = {"epochs": 1, "early_stopping": True, "class_weight": {0: 1.0, 1: 2.0, 2: 1.0}, **QUICK}
    of_integers = FineTuner(store, "layer4.0", **options).fit(store.X, codes)
    of_floats = FineTuner(store, "layer4.0", **options).fit(store.X, codes.astype(float))
    assert of_floats.weights_ == of_integers.weights_ and of_floats.predict(store.X).dtype == float


def test_an_image_that_is_drawn_twice_is_not_both_trained_on_and_held_out(store, monkeypatch):
    seen = []

    def kept(*arguments, **options):
        split = hold_out(*arguments, **options)
        seen.append(split)
        return split

    hold_out = finetuning.hold_out
    monkeypatch.setattr(finetuning, "hold_out", kept)
    twice = np.arange(2 * len(store)) % len(store)
    FineTuner(store, "layer4.0", epochs=0, early_stopping=True, **QUICK).fit(store.X[twice], store.y[twice])
    ((train, held_out),) = seen
    assert not set(twice[train]) & set(twice[held_out])


def test_boundary_and_rates_are_hyperparameters(store):
    tuner = FineTuner(store, "layer3", epochs=1, **QUICK)
    grid = {"boundary": ["layer3", "layer4.0"], "lr": [1e-4, 1e-3]}
    search = GridSearchCV(tuner, grid, cv=2, n_jobs=1).fit(store.X[::3], store.y[::3])
    assert len(search.cv_results_["params"]) == 4 and np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_numbers_are_predicted_in_their_own_unit(store):
    y = np.array([{"dark": 1000.0, "dim": 2000.0, "light": 3000.0}[name] for name in store.y])
    probe = FineTunerRegressor(store, "layer3", epochs=0, **QUICK).fit(store.X, y)
    tuned = FineTunerRegressor(store, "layer3", head="zeros", epochs=4, lr=1e-3, **QUICK).fit(store.X, y)
    assert probe.score(store.X, y) > 0.9 and tuned.score(store.X, y) > 0.7
    assert abs(tuned.predict(store.X).mean() - 2000) < 200


def test_class_weights_favour_their_class(store):
    y = np.where(store.y == "light", "light", "other")
    options = {"head": "zeros", "epochs": 2, "lr": 1e-3, **QUICK}
    heavy = FineTuner(store, "layer4.0", class_weight={"light": 50, "other": 1}, **options).fit(store.X, y)
    light = FineTuner(store, "layer4.0", class_weight={"light": 1, "other": 50}, **options).fit(store.X, y)
    assert (heavy.predict(store.X) == "light").sum() > (light.predict(store.X) == "light").sum()


def test_the_input_is_a_boundary(store, folder):
    options = {"epochs": 1, "boundary": "input", **QUICK}
    X, y, paths = store.X[::3], store.y[::3], [folder / name for name in store.ids[::3]]
    tuned = FineTuner(store, **options).fit(X, y)
    of_images = FineTuner(store, **options).fit(paths, y)
    assert tuned.weights_ == of_images.weights_
    np.testing.assert_array_equal(tuned.predict_proba(X), of_images.predict_proba(paths))
    names = dict(tuned._network.tail.network.named_parameters())
    before = dict(Tail(network(), "input").network.named_parameters())
    assert not torch.equal(names["conv1.weight"], before["conv1.weight"])
    torch.manual_seed(5)
    cropped = [FineTuner(store, augment="crop", **options).fit(X, y) for _ in range(2)]
    assert cropped[0].weights_ == cropped[1].weights_ != tuned.weights_


def test_the_input_of_a_store_of_paths_is_their_files(folder, tmp_path):
    files = sorted(folder.rglob("*.png"))[::4]
    labels = [file.parent.name for file in files]
    options = {"labels": labels, "device": "cpu", "progress": False}
    store = featx.extract(files, tmp_path / "paths.h5", network(), **options)
    tuned = FineTuner(store, "input", epochs=1, **QUICK).fit(store.X, store.y)
    of_images = FineTuner(store, "input", epochs=1, **QUICK).fit(files, labels)
    assert tuned.weights_ == of_images.weights_
    arrays = [np.array(Image.open(file)) for file in files]
    others = featx.extract(arrays, tmp_path / "arrays.h5", network(), ids=list(map(str, files)), **options)
    with pytest.raises(KeysError, match="9 of 9 images of arrays.h5 are not files of their names, or have "):
        FineTuner(others, "input", **QUICK).fit(others.X, others.y)  # files of these names hold something else


def test_bad_input(store, folder, tmp_path):
    def refused(kind, match, boundary="layer3", X=store.X, y=store.y, of=store, **options):
        with pytest.raises(kind, match=match):
            FineTuner(of, boundary, epochs=1, **QUICK, **options).fit(X, y)

    refused(
        LayerError,
        r"layer 'layer2' is not stored.*to add it: featx.extract\(backbone='torchvision:resnet18', lay",
        "layer2",
    )
    pooled = featx.extract(folder, tmp_path / "pooled.h5", network(), "layer3", device="cpu", progress=False)
    refused(LayerError, "pooled.h5 holds 'layer3:avg'.*extract 'layer3:none'", of=pooled, X=pooled.X)
    refused(LayerError, "there is nothing to train between", "penultimate")
    refused(FeatxError, "two or more classes; all labels are 'a'", y=np.full(len(store), "a"))
    refused(KeysError, "X holds keys, store.X for example; got images", X=[folder / name for name in store.ids])
    refused(KeysError, "keys are not in maps.h5", X=store.X + 1)
    refused(FeatxError, "one entry for each image; got 36 and 35", y=store.y[1:])
    refused(FeatxError, "augment='crop' crops images, which only boundary='input' reads", augment="crop")
    refused(StoreError, "has no column 'patient'", groups="patient")
    images = [folder / name for name in store.ids]
    refused(KeysError, "groups='patient' is a column of the store, and X holds ima", "input", images, groups="patient")
    refused(FeatxError, "X and y have no entries", X=store.X[:0], y=store.y[:0])
    refused(ValueError, r"^The classes, \['dim', 'light'\], are not in class_weight", class_weight={"dark": 1, "x": 2})
    refused(FeatxError, "'dark' has 2: hold out more, or add images$", X=store.X[::6], y=store.y[::6],
            early_stopping=True)  # fmt: skip
    refused(ValueError, "The 'lr' parameter of FineTuner must be a float", lr=-1.0)
    spoilt = np.array(store["layer3:none"])
    spoilt[3] = np.inf
    recipe = {"weights_sha256": network().weights_sha256, "preprocessing": network().preprocessing.to_dict()}
    infinite = store_of(tmp_path / "inf.h5", {"layer3:none": spoilt}, y=store.y, **recipe)
    reason = "inf.h5 has rows of 'layer3:none' that are infinite or NaN: extract it with dtype float32"
    refused(StoreError, reason, of=infinite, X=infinite.X)
