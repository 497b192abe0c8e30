"""`adapt`: every way on the same held-out target images, which nothing but their predictions depends on."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import store_of
from rich.console import Console
from sklearn.metrics import accuracy_score
from sklearn.pipeline import make_pipeline
from typer.testing import CliRunner

import featx
from featx import FeatureStore
from featx.cli import app
from featx.errors import FeatxError, LayerError, RecipeError, RowsDifferWarning, StoreError
from featx.learn import HoldOut, StoredFeatures, select_model
from featx.report import adaptation_json, adaptation_table
from featx.transfer import Adaptation, Align, adapt

LAYER = "layer4:avg"
NAMES = np.array(["a", "b", "c"])
SILENT: dict[str, Any] = {"progress": False, "folds": 3, "draws": 3}


def domain(
    path: Path, first: int, n: int = 120, shift: float = 0.0, far: int = 0, y: np.ndarray | None = None, **changes: Any
) -> FeatureStore:
    """Three classes in 6 columns, the images of groups of 4; rows from `far` on are elsewhere, where it is not 0."""
    rng = np.random.default_rng(first)
    codes = np.arange(n) % 3
    rows = 1.5 * np.eye(6)[codes] + rng.normal(size=(n, 6))
    rows = rows * (1 + shift) + shift * np.arange(6)
    if far:
        rows[far:] = rng.normal(size=(n - far, 6)) * 50
    columns = {"patient": np.array([f"{first}-{i // 4}" for i in range(n)]), "kind": NAMES[codes]}
    ids = [f"image {first + i}" for i in range(n)]
    y = NAMES[codes] if y is None else y
    return store_of(path, {LAYER: rows, "layer3:avg": rows[:, :2]}, y, ids, columns, first, **changes)


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> tuple[FeatureStore, FeatureStore]:
    folder = tmp_path_factory.mktemp("domains")
    return domain(folder / "ours.h5", 0), domain(folder / "theirs.h5", 1000, 150, shift=2.0)


@pytest.fixture(scope="module")
def adaptation(stores) -> Adaptation:
    return adapt(*stores, layer=LAYER, **SILENT)


def test_numbers_of_labels_that_a_class_has_not_are_said_to_be_left_out(stores, adaptation, tmp_path):
    assert adaptation.omitted_shots == () and "not tried" not in str(adaptation_table(adaptation).caption)
    few = domain(tmp_path / "few.h5", 2000, 60, shift=1.0)  # 10 images of each class are not held out
    result = adapt(stores[0], few, layer=LAYER, methods="scaler", **SILENT)
    assert (result.omitted_shots, result.fewest) == ((25,), ("a", 10))
    assert "not tried: 25 labels a class; a has 10 target images to draw from" in str(adaptation_table(result).caption)
    assert json.loads(adaptation_json(result))["omitted_shots"] == [25]


def ways(adaptation: Adaptation) -> list[tuple[str, str, int]]:
    return [(row.training, row.method, row.shots) for row in adaptation.rows]


def test_every_way_has_a_row_in_a_fixed_order(adaptation):
    assert ways(adaptation) == [
        *(("source", method, 0) for method in ("", "scaler", "coral", "linear_ot")),
        *(("target", "", shots) for shots in (5, 10, 25)),
        *(("source and target", "", shots) for shots in (5, 10, 25)),
    ]
    assert (adaptation.n_source, adaptation.n_target, adaptation.n_test) == (120, 75, 75)
    assert adaptation.chance == pytest.approx(1 / 3)
    for row in adaptation.rows:
        assert row.interval.low <= row.score <= row.interval.high
    alone, *others = adaptation.rows
    assert alone.gain == 0 and np.isnan(alone.gain_interval.low)
    for row in others:
        assert row.gain == pytest.approx(row.score - alone.score)
        assert row.gain_interval.low <= row.gain <= row.gain_interval.high


def test_what_moves_a_domain_is_undone(adaptation):
    alone, *aligned = adaptation.rows[:4]
    assert all(row.gain > 0.1 and row.gain_interval.low > 0 for row in aligned), adaptation
    assert alone.source_score == pytest.approx(aligned[1].source_score, abs=0.05)


def test_a_row_is_what_its_pipeline_scores_on_the_held_out_images(stores, adaptation):
    source, target = stores
    held_out = select_model(target, layers=LAYER, holdout=HoldOut(0.5), estimators="nearest_centroid", folds=2).test
    for row in adaptation.rows[:4]:
        pipeline = adaptation.pipelines[row.method]
        reading = make_pipeline(StoredFeatures(target, LAYER).fit(), *[step for _, step in pipeline.steps[1:]])
        assert accuracy_score(held_out.y, reading.predict(held_out.X)) == pytest.approx(row.score)
    selection = select_model(
        source,
        layers=LAYER,
        estimators="logistic_regression",
        steps=[Align(target, target_keys=np.setdiff1d(target.X, held_out.X))],
        holdout=HoldOut(0),
        folds=3,
        n_jobs=1,
    )
    assert selection.chosen.mean == pytest.approx(adaptation.rows[2].source_score)


def test_held_out_images_change_nothing_but_the_scores(tmp_path):
    """Their rows are changed, and every model stays the same."""
    source = domain(tmp_path / "ours.h5", 0)
    held_out = np.arange(150) >= 80
    options = {**SILENT, "layer": LAYER, "holdout": HoldOut(rows=held_out), "shots": [5]}
    near = adapt(source, domain(tmp_path / "near.h5", 1000, 150, 2.0), **options)
    far = adapt(source, domain(tmp_path / "far.h5", 1000, 150, 2.0, far=80), **options)
    for method, pipeline in near.pipelines.items():
        np.testing.assert_array_equal(pipeline[-1].coef_, far.pipelines[method][-1].coef_)
        np.testing.assert_array_equal(pipeline[-1].intercept_, far.pipelines[method][-1].intercept_)
    assert [row.source_score for row in near.rows] == [row.source_score for row in far.rows]
    assert [row.score for row in near.rows] != [row.score for row in far.rows]


def test_it_is_seeded_and_groups_stay_together(stores, adaptation):
    source, target = stores
    assert adapt(*stores, layer=LAYER, **SILENT).rows == adaptation.rows
    grouped = adapt(*stores, layer=LAYER, groups="patient", shots=[], methods="scaler", **SILENT)
    assert ways(grouped) == [("source", "", 0), ("source", "scaler", 0)]
    used = target.rows(grouped.pipelines["scaler"]["align"].target_keys)
    patients = target.columns["patient"]
    assert not set(patients[used]) & set(np.delete(patients, used))


def test_labels_may_be_columns_or_given(stores):
    source, target = stores
    options = {**SILENT, "layer": LAYER, "methods": "scaler", "shots": []}
    own = adapt(*stores, **options).rows
    assert adapt(*stores, labels="kind", **options).rows == own
    assert adapt(*stores, labels=source.y.tolist(), target_labels=target.columns["kind"], **options).rows == own


def test_layers_side_by_side_and_other_scores(stores):
    both = adapt(*stores, layer=["layer3", "layer4"], methods="coral", shots=[4], scoring="f1_macro", **SILENT)
    assert both.layer == f"layer3:avg+{LAYER}" and both.scoring == "f1_macro" and len(both.rows) == 4


def test_rounding_is_told_once(stores, tmp_path):
    rounded = domain(tmp_path / "rounded.h5", 1000, 150, batch_size=7)
    with pytest.warns(RowsDifferWarning, match="rounded.h5 was made with batch_size 7") as caught:
        adapt(stores[0], rounded, layer=LAYER, methods="scaler", shots=[], **SILENT)
    assert len(caught) == 1


def test_what_does_not_fit_is_refused_in_a_line(stores, tmp_path):
    source, target = stores

    def refused(kind: type[FeatxError], *words: str, to: FeatureStore = target, **options: Any) -> None:
        with pytest.raises(kind) as raised:
            adapt(source, to, **{**SILENT, "layer": LAYER, **options})
        for word in words:
            assert word in str(raised.value), raised.value
        assert "\n" not in str(raised.value)

    def other(name: str, n: int = 90, first: int = 3000, **options: Any) -> FeatureStore:
        return domain(tmp_path / f"{name}.h5", first, n, **options)

    rows = np.zeros((9, 6))
    unlabelled = store_of(tmp_path / "unlabelled.h5", {LAYER: rows}, ids=[f"x{i}" for i in range(9)], first=500)
    refused(StoreError, "unlabelled.h5 has no labels", "Align in a pipeline still predicts", to=unlabelled)
    refused(FeatxError, "classes that ours.h5 has not", "'z'", to=other("z", y=np.repeat(["a", "z"], 45)))
    refused(FeatxError, "there is only 'a'", to=other("one", y=np.repeat("a", 90)))
    refused(FeatxError, "labels are numbers", to=other("numbers", y=np.arange(90.0)))
    refused(FeatxError, "60 of the 90 images of shared.h5 are in ours.h5 too", to=other("shared", first=60))
    refused(RecipeError, "resnet34' in net.h5", to=other("net", backbone="torchvision:resnet34"))
    refused(LayerError, "there are 2 layers; choose one with layer=...", layer=None)
    lacking = store_of(tmp_path / "lacking.h5", {"layer3:avg": rows[:, :2]}, np.repeat(["a", "b", "c"], 3), first=500)
    refused(LayerError, "lacking.h5 needs the layers of the source", to=lacking)
    refused(FeatxError, "a domain is a featx.FeatureStore; got 'theirs.h5'", to="theirs.h5")
    refused(FeatxError, "'cora'; close: 'coral'", methods="cora")
    refused(FeatxError, "shots is a list of numbers of images per class, from 1 to the 25", shots=[30])
    refused(FeatxError, "scoring is one of accuracy", scoring="r2")
    refused(FeatxError, "has no column 'hospital'", groups="hospital")
    refused(FeatxError, "images held out", holdout=HoldOut(0))
    with pytest.raises(FeatxError, match="rows of the target store itself|are in ours.h5 too"):
        adapt(source, source, layer=LAYER, allow_duplicates=True, **SILENT)
    groups = other("groups", first=0, n=60)
    refused(FeatxError, "15 are in both stores", to=groups, groups="patient", allow_duplicates=True)


def text_of(thing: Any, width: int = 140) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(thing)
    return console.file.getvalue()


def test_the_table_and_json_say_everything_and_choose_nothing(adaptation):
    text = text_of(adaptation_table(adaptation))
    assert "120 labelled images of ours.h5; accuracy on 75 held-out images of theirs.h5 (chance 0.333)" in text
    assert "source, linear OT" in text and "took part in nothing, in no alignment either" in text
    assert "mean of 3 random draws" in text
    assert text_of(adaptation_table(adaptation), 60)
    written = json.loads(adaptation_json(adaptation))
    assert [each["score"] for each in written["ways"]] == [row.score for row in adaptation.rows]
    assert written["ways"][0]["gain_interval"] is None and written["held_out_images"] == 75
    assert "source, coral: " in repr(adaptation)


def test_the_command_compares_and_saves_the_method_that_is_named(stores, tmp_path):
    source, target = map(str, (store.path for store in stores))
    model = tmp_path / "model.skops"
    words = ["adapt", source, target, "-l", LAYER, "--folds", "3", "--shots", "5", "--draws", "2"]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["ways"]) == 6
    done = CliRunner().invoke(app, [*words, "-o", str(model)])
    assert done.exit_code == 2 and "name the one --method whose model is saved" in done.stderr and not model.exists()
    done = CliRunner().invoke(app, [*words, "--method", "coral", "--shots", "0", "-o", str(model)])
    assert done.exit_code == 0 and "the source aligned by coral" in done.stdout, done.output
    assert type(featx.load(model)[1]).__name__ == "Align"
    done = CliRunner().invoke(app, ["adapt", source, target, "--method", "cora"])
    assert done.exit_code == 2 and "close: 'coral'; --method are scaler" in done.stderr
    done = CliRunner().invoke(app, ["adapt", source, target, "-l", LAYER, "--test-size", "0"])
    assert done.exit_code == 2 and "give --test-size 0.5, or another share" in done.stderr
