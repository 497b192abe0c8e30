"""`compare`: a probe ranks backbones on a sample that keeps classes and groups; what was extracted is used again."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import digests_of, recipe, save_noise, store_of
from PIL import Image
from rich.console import Console

from featx import Backbone, FeatureStore, Preprocessing
from featx.errors import FeatxError, KeysError, StoreError
from featx.learn import HoldOut, StoredFeatures, select_model
from featx.report import comparison_figure, comparison_json, comparison_table
from featx.report.columns import FittedTable
from featx.store import StoreWriter
from featx.transfer import compare, log_me, similarity

LEVELS = {"dark": 40, "grey": 120, "light": 200}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty images of three classes that differ in brightness."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("photos")
    for name, level in LEVELS.items():
        (root / name).mkdir()
        for i in range(10):
            pixels = rng.normal(level, 30, (20, 24, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def random_network() -> Backbone:
    return Backbone("squeezenet1_1", weights=None, preprocessing=Preprocessing((32, 32), 32))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[FeatureStore]:
    """Two backbones: the first one's second layer tells the classes, the other one's layers tell less."""
    rng = np.random.default_rng(0)
    codes = np.arange(120) % 3
    rows = {f"layer{apart}:avg": rng.normal(size=(120, 6)) + apart * np.eye(6)[codes] for apart in range(5)}
    y = np.array(["a", "b", "c"])[codes]
    root = tmp_path_factory.mktemp("stores")
    good = store_of(root / "good.h5", {name: rows[name] for name in ("layer0:avg", "layer4:avg")}, y)
    middling = store_of(
        root / "middling.h5", {name: rows[name] for name in list(rows)[:4]}, y, backbone="torchvision:resnet34"
    )
    return [middling, good]


def test_the_probe_ranks_and_differences_are_paired(stores):
    comparison = compare(stores, folds=4, progress=False)
    best, second = comparison.backbones
    assert [each.store.path.name for each in comparison.backbones] == ["good.h5", "middling.h5"]
    assert best.layers[0].layer == "layer4:avg" and second.layers[0].layer == "layer3:avg"
    alone = select_model(stores[1], layers="layer4:avg", estimators="logistic_regression", folds=4, holdout=HoldOut(0))
    assert best.best.scores == alone.candidates[0].scores
    assert second.behind == pytest.approx(np.mean(np.subtract(second.best.scores, best.best.scores)))
    assert second.behind < 0
    assert second.behind_interval.low < second.behind < second.behind_interval.high
    assert comparison.chance == pytest.approx(1 / 3) and comparison.n == 120


def test_only_the_layers_whose_nearest_neighbours_predict_best_are_probed(stores):
    layers = compare(stores, folds=4, progress=False).backbones[1].layers
    assert [layer.probe is not None for layer in layers] == [True, True, True, False]
    probed, left = layers[:3], layers[3]
    assert all(layer.nearest >= left.nearest for layer in probed)


def test_metrics_are_those_of_the_rows_compared_on(stores):
    layer = compare(stores, folds=4, metrics=["log_me"], progress=False).best.layers[0]
    rows = StoredFeatures(stores[1], layer.layer).fit_transform(stores[1].X)
    assert layer.scores == {"log_me": log_me(rows, stores[1].y)}


def test_a_sample_keeps_the_share_of_each_class_and_whole_groups(stores):
    groups = np.repeat(np.arange(40), 3)
    comparison = compare(stores, sample=60, groups=groups, folds=3, progress=False)
    assert abs(comparison.n - 60) <= 3 and comparison.n_classes == 3
    assert comparison.n % 3 == 0  # whole groups of three
    assert comparison.chance == pytest.approx(1 / 3, abs=0.04)


def test_stores_are_matched_by_image(stores, tmp_path):
    good, order = stores[1], np.random.default_rng(0).permutation(120)
    rows = {name: np.asarray(good[name])[order] for name in good.layers}
    with StoreWriter(
        tmp_path / "shuffled.h5",
        recipe({name: X.shape[1:] for name, X in rows.items()}),
        good.ids[order],
        good.y[order],
    ) as writer:
        writer.write(np.arange(120), rows, digests_of(order))
        writer.finish()
    one, other = compare([good, FeatureStore(tmp_path / "shuffled.h5")], sample=60, folds=3, progress=False).backbones
    assert one.best.scores == other.best.scores and other.behind == 0
    few = store_of(tmp_path / "few.h5", {"layer4:avg": np.ones((60, 6))}, good.y[:60])
    with pytest.raises(KeysError, match="hold the same images; few.h5 lacks"):
        compare([good, few], folds=3, progress=False)


def test_nothing_is_predicted_for_images_outside_the_sample(stores, monkeypatch):
    transformed = []
    transform = StoredFeatures.transform
    monkeypatch.setattr(StoredFeatures, "transform", lambda self, X: transformed.append(X) or transform(self, X))
    comparison = compare(stores, sample=60, folds=3, progress=False)
    assert len(np.unique(np.concatenate(transformed))) == comparison.n == 60


def test_of_numbers_ridge_is_the_probe(stores):
    comparison = compare(stores, labels=np.arange(120.0) % 3, folds=4, progress=False)
    assert comparison.scoring == "r2" and comparison.best.best.estimator == "ridge"
    assert comparison.best.store.path.name == "good.h5" and comparison.best.layers[0].nearest is None


def test_images_are_extracted_once_and_costs_measured(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"sample": 24, "folds": 3, "device": "cpu", "progress": False}
    first = compare(photos, ["bundled:pixels", random_network()], "penultimate", **options)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "compared").iterdir()}
    assert len(written) == 2
    again = compare(photos, ["bundled:pixels", random_network()], "penultimate", **options)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "compared").iterdir()} == written
    assert [each.best.scores for each in first.backbones] == [each.best.scores for each in again.backbones]
    assert {each.name: each.n_parameters for each in first.backbones} == {
        "bundled:pixels": 0,
        "torchvision:squeezenet1_1": 1_235_496,
    }
    assert all(each.milliseconds > 0 for each in first.backbones)
    front = first.pareto
    for one in first.backbones:
        beaten = any(
            other.best.mean >= one.best.mean and other.milliseconds < one.milliseconds for other in first.backbones
        )
        assert beaten != (one in front)
    store = first.best.store
    assert len(store) == 24 and sorted(np.unique(store.y, return_counts=True)[1]) == [8, 8, 8]


def test_groups_given_as_values_are_those_of_the_sample(photos, tmp_path):
    groups = np.repeat(np.arange(15), 2)
    comparison = compare(
        photos, "bundled:pixels", sample=20, groups=groups, folds=3, folder=tmp_path / "kept", progress=False
    )
    everything = [f"{name}/{i}.png" for name in LEVELS for i in range(10)]
    drawn = {everything.index(name) // 2 for name in comparison.best.store.ids}
    assert abs(comparison.n - 20) <= 2 and len(drawn) * 2 == comparison.n


def test_near_duplicates_are_those_of_the_sample(photos, tmp_path):
    options = {"sample": 20, "groups": "near-duplicates", "folds": 3, "folder": tmp_path / "kept", "progress": False}
    assert compare(photos, "bundled:pixels", **options).n == 20


def test_table_figure_and_json_say_all_of_it(stores, tmp_path):
    comparison = compare(stores, folds=4, metrics=["h_score"], progress=False)
    lines = [line.replace("│", " ").split() for line in text_of(comparison_table(comparison)).splitlines()]
    assert ["1", "resnet18"] in [line[:2] for line in lines] and ["2", "resnet34"] in [line[:2] for line in lines]
    read = json.loads(comparison_json(comparison))
    assert [each["backbone"] for each in read["backbones"]] == ["torchvision:resnet18", "torchvision:resnet34"]
    assert read["backbones"][0]["milliseconds"] is None  # its weights are not on this disk
    assert len(read["backbones"][1]["layers"]) == 4
    pytest.importorskip("matplotlib")
    comparison_figure(comparison, similarity(stores)).savefig(tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 10_000


def text_of(table: FittedTable) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_bad_input(photos, stores, tmp_path):
    def refused(match, source=photos, *args, **options):
        with pytest.raises(FeatxError, match=match):
            compare(source, *args, folder=tmp_path / "none", progress=False, **options)

    refused("name the backbones to compare")
    refused("name the backbones to compare", photos, [])
    refused("backbones are those of the stores; leave it out", stores, ["resnet18"])
    refused("there is no backbone 'resnet81'.*resnet18", photos, ["resnet81"])
    refused("every backbone is compared once; repeated: bundled-pixels", photos, ["bundled:pixels"] * 2)
    refused("there is no metric 'logme'.*log_me", stores, metrics="logme")
    refused("sample is a number of images, 2 or more; got 1", stores, sample=1)
    refused("2 of 120 images cannot have some of each class and leave some; change sample", stores, sample=2)
    refused("the images have no column 'patient'", photos, ["bundled:pixels"], sample=20, groups="patient")
    refused(
        "groups has one value an image: 30; got", photos, ["bundled:pixels"], sample=20, groups=np.arange(7)
    )  # fmt: skip
    save_noise(tmp_path / "1.png", 1)
    with pytest.raises(StoreError, match="these have no labels"):
        compare([tmp_path / "1.png"], ["bundled:pixels"], progress=False)
    assert not (tmp_path / "none").exists()
