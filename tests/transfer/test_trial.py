"""`finetune` and its command: the network and its probe are scored on the same held-out images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import featx
from featx import Backbone, FeatureStore, Preprocessing
from featx.cli.application import app
from featx.errors import FeatxError
from featx.learn import HoldOut, Interrupted
from featx.learn.scores import METRICS, paired_interval
from featx.report import finetuning_json
from featx.transfer import FineTuner, finetune

QUICK = {"batch_size": 8, "device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("photos")
    for name, level in {"dark": 90, "light": 110}.items():
        (root / name).mkdir()
        for i in range(20):
            pixels = rng.normal(level, 80, (32, 32, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:02}.png")
    network = Backbone("resnet18", weights=None, preprocessing=Preprocessing((32, 32), 32))
    return featx.extract(root, root / "maps.h5", network, "layer4.0:none", device="cpu", progress=False)


def test_both_are_fitted_on_the_training_images_and_scored_on_the_others(store):
    held_out = np.arange(40) % 4 == 0
    result = finetune(store, "layer4.0", holdout=HoldOut(rows=held_out), epochs=2, **QUICK)
    learn = ~held_out
    options = {"batch_size": 8, "device": "cpu"}
    tuned = FineTuner(store, "layer4.0", epochs=2, **options).fit(store.X[learn], store.y[learn])
    probe = FineTuner(store, "layer4.0", epochs=0, **options).fit(store.X[learn], store.y[learn])
    assert result.score == tuned.score(store.X[held_out], store.y[held_out])
    assert result.probe_score == probe.score(store.X[held_out], store.y[held_out])
    assert result.difference == result.score - result.probe_score
    assert (result.n_train, result.n_test, result.n_classes, result.chance) == (30, 10, 2, 0.5)
    assert json.loads(finetuning_json(result))["difference"] == result.difference


def test_another_store_is_scored_on(store, tmp_path):
    test = featx.extract(Path(store.recipe.origin), tmp_path / "test.h5", store.backbone, "layer4.0:none",
                         device="cpu", progress=False)  # fmt: skip
    with pytest.raises(FeatxError, match="40 of the 40 test images are training images too"):
        finetune(store, "layer4.0", holdout=HoldOut(store=test), epochs=0, **QUICK)
    result = finetune(store, "layer4.0", holdout=HoldOut(store=test), allow_duplicates=True, epochs=1, **QUICK)
    assert result.n_train == result.n_test == 40
    assert result.score == (result.tuner.predict(store.X) == store.y).mean()


def test_an_interrupt_after_an_epoch_gives_the_best_so_far(store):
    def stop(progress: featx.TrainingProgress) -> None:
        if progress.epoch > 1.4:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as interrupt:
        finetune(store, "layer4.0", epochs=3, **(QUICK | {"progress": stop}))
    result = interrupt.value.result
    assert result.is_partial and result.tuner.n_iter_ == 1 and 0 <= result.score <= 1


def test_differences_of_accuracies_are_agresti_and_min():
    """Their example, table II: 54 pairs, 2 gained and 10 lost give (-0.270, -0.016)."""
    y = np.zeros(54, int)
    first, second = np.zeros(54, int), np.zeros(54, int)
    second[:10], first[10:12] = 1, 1
    low, high = paired_interval(METRICS["accuracy"], y, first, second)
    m = 56
    half = 1.959964 * np.sqrt(12 + 1 - 64 / m) / m
    np.testing.assert_allclose([low, high], [-8 / m - half, -8 / m + half], rtol=1e-6)
    swapped = paired_interval(METRICS["accuracy"], y, second, first)
    np.testing.assert_allclose(swapped, [-high, -low])


def test_differences_by_bootstrap_cover_the_difference_and_equal_models_have_none():
    rng = np.random.default_rng(0)
    y = rng.normal(size=200)
    first, second = y + rng.normal(size=200), y + 0.5 * rng.normal(size=200)
    low, high = paired_interval(METRICS["r2"], y, first, second)
    truth = METRICS["r2"].score(y, second) - METRICS["r2"].score(y, first)
    assert 0 < low < truth < high
    assert paired_interval(METRICS["r2"], y, first, first) == (0, 0)
    groups = np.repeat(np.arange(20), 10)
    assert paired_interval(METRICS["r2"], y, first, second, groups) != (low, high)


def test_the_command_prints_both_saves_the_network_and_says_what_is_wrong(store, tmp_path, monkeypatch):
    monkeypatch.setattr(FeatureStore, "backbone", store.backbone, raising=False)
    run = lambda *words: CliRunner().invoke(app, ["finetune", str(store.path), "-b", "layer4.0", *words])  # noqa: E731
    model = tmp_path / "m.skops"
    result = run("--epochs", "1", "--batch-size", "8", "-o", str(model))
    assert result.exit_code == 0, result.output
    words = result.output.split()
    assert "probe" in words and "fine-tuned" in words and model.exists() and list(tmp_path.iterdir()) == [model]
    assert "is there already" in run("-o", str(model)).output
    wrong = run("--lr", "0")
    assert wrong.exit_code == 2 and "The 'lr' parameter of FineTuner must be" in wrong.output
    missing = CliRunner().invoke(app, ["finetune", str(store.path), "-b", "layer3"])
    assert "featx extract IMAGES --backbone torchvision:resnet18 --layer layer3:none" in missing.output


def test_the_command_predicts_numbers(store, tmp_path):
    labels = tmp_path / "ages.csv"
    labels.write_text("path,age\n" + "\n".join(f"{name},{i * 0.5}" for i, name in enumerate(store.ids)))
    command = ["finetune", str(store.path), "-b", "layer4.0", "--labels", str(labels), "--label-column", "age",
               "--target", "numeric", "--epochs", "1", "--batch-size", "8", "--device", "cpu", "--json"]  # fmt: skip
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and json.loads(done.stdout)["scoring"] == "r2"
    refused = CliRunner().invoke(app, [*command, "--label-smoothing", "0.1"])
    assert refused.exit_code == 2
    assert "FineTunerRegressor, which predicts numbers, has no parameter --label-smoothing" in refused.stderr
