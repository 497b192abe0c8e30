"""The command line on real files: its output, its exit codes, and one line for each mistake of a user."""

from __future__ import annotations

import csv
import errno
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

import featx
import featx.learn
from featx.cli import app

PIXELS = ["-b", "bundled:pixels", "-q"]
CLASSES = {"dark": 60, "light": 190}


def _picture(path: Path, level: int, rng: np.random.Generator) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = rng.normal(level, 25, (24, 30, 3)).clip(0, 255)
    Image.fromarray(noise.astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two class folders of 15 pictures, which differ in brightness, their store and a model; tests work on copies."""
    folder = tmp_path_factory.mktemp("originals")
    rng = np.random.default_rng(0)
    for name, level in CLASSES.items():
        for i in range(15):
            _picture(folder / "photos" / name / f"{i:02}.png", level, rng)
    assert _run("extract", folder / "photos", "-o", folder / "photos.h5", *PIXELS).exit_code == 0
    words = ["-o", folder / "m.skops", "-e", "logistic_regression", "--jobs", 1]
    done = _run("search", folder / "photos.h5", *words)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def photos(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals / "photos", tmp_path / "photos"))


@pytest.fixture
def store(photos: Path, originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(originals / "photos.h5", tmp_path))


@pytest.fixture
def model(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(originals / "m.skops", tmp_path))


def _run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def _refused(*words: object) -> str:
    """The one line that a refused command prints."""
    done = _run(*words)
    assert done.exit_code == 2, done.output
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("featx: "), done.output
    return lines[0]


def test_folder_to_predictions(photos: Path, store: Path, model: Path) -> None:
    rng = np.random.default_rng(1)
    new = {name: _picture(photos.parent / "new" / f"{name}.png", level, rng) for name, level in CLASSES.items()}
    done = _run("predict", model, photos.parent / "new", "--json")
    assert done.exit_code == 0
    rows = {Path(row["image"]).stem: row for row in json.loads(done.stdout)}
    assert {name: row["label"] for name, row in rows.items()} == {name: name for name in new}
    assert all(0.5 < row["confidence"] <= 1 and row["kind"] == "probability" for row in rows.values())
    as_csv = list(csv.DictReader(io.StringIO(_run("predict", model, *new.values(), "--csv").stdout)))
    assert [row["label"] for row in as_csv] == list(new)
    archive = shutil.make_archive(str(photos.parent / "new"), "zip", photos.parent / "new")
    zipped = json.loads(_run("predict", model, archive, "--json").stdout)
    assert [row | {"image": f"{archive}/{Path(row['image']).name}"} for row in rows.values()] == zipped
    table = _run("predict", model, *new.values()).stdout
    assert all(name in table for name in new)


def test_search_prints_a_held_out_score_and_saves_what_it_scored(store: Path, tmp_path: Path) -> None:
    done = _run("search", store, "-o", tmp_path / "m.skops", "--figure", tmp_path / "m.png", "--jobs", 1)
    assert done.exit_code == 0, done.output
    assert "held out: 1.000" in done.stdout and "on 6 images" in done.stdout and "biased upwards" in done.stdout
    assert all(name in done.stdout for name in ("logistic_regression", "linear_svm", "rbf_svm"))
    with Image.open(tmp_path / "m.png") as picture:
        assert picture.width > 1000
    opened = featx.load(tmp_path / "m.skops")
    assert list(opened.classes_) == list(CLASSES)


def test_the_report_of_a_search_is_written_with_it_or_later(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["featx", "search", "a b.h5"])
    now, later = tmp_path / "now.md", tmp_path / "later.md"
    words = ["--estimator", "knn", "--layer", "penultimate", "--jobs", 1]
    done = _run("search", store, *words, "-o", tmp_path / "m.skops", "--report", now)
    assert done.exit_code == 0 and f"{now}: the report" in done.stdout, done.output
    done = _run("report", tmp_path / "m.skops", "--store", store, "-o", later)
    assert done.exit_code == 0, done.output
    with_command, without = now.read_text(), later.read_text()
    assert "## The result" in without and without.partition("## How")[0] == with_command.partition("## How")[0]
    assert "featx search 'a b.h5'" in with_command and "a b.h5" not in without
    assert "later.md is there already" in _refused("report", tmp_path / "m.skops", "--store", store, "-o", later)
    assert "--store photos.h5" in _refused("report", tmp_path / "m.skops", "-o", tmp_path / "r.md")


def test_unreadable_images_are_listed_and_end_in_exit_code_1(photos: Path, model: Path, tmp_path: Path) -> None:
    (photos / "dark" / "broken.jpg").write_text("not a picture")
    done = _run("extract", photos, "-o", tmp_path / "again.h5", *PIXELS)
    assert done.exit_code == 1
    assert "30 images" in done.stdout and "dark/broken.jpg" in done.stdout
    assert "dark/broken.jpg" in _run("info", tmp_path / "again.h5").stdout
    done = _run("predict", model, photos / "dark", "--csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert done.exit_code == 1 and "1 of 16" in done.stderr
    assert [row["label"] for row in rows if "broken" not in row["image"]] == ["dark"] * 15
    assert [bool(row["error"]) for row in rows] == ["broken" in row["image"] for row in rows]


def test_info_says_what_a_store_holds(store: Path) -> None:
    text = _run("info", store).stdout
    for words in ("30", "dark 15, light 15", "flatten:none = penultimate", "3,072 float32", "bundled:pixels"):
        assert words in text


def test_layers_lists_nodes_with_sizes() -> None:
    text = _run("layers", "resnet18").stdout
    for words in ("layer3.0.conv1", "256 x 14 x 14", "25,088", "stage", "penultimate"):
        assert words in text


def test_hold_out_by_a_column_or_by_a_second_store(photos: Path, tmp_path: Path) -> None:
    names = sorted(path.relative_to(tmp_path).as_posix() for path in photos.rglob("*.png"))
    table = [f"{name},{name.split('/')[1]},{'test' if i % 5 == 0 else 'train'}" for i, name in enumerate(names)]
    manifest = tmp_path / "all.csv"
    manifest.write_text("\n".join(["path,label,split", *table]))
    _run("extract", manifest, "-o", tmp_path / "all.h5", *PIXELS)
    quick = ["-e", "logistic_regression", "--jobs", 1]
    assert "on 6 images" in _run("search", tmp_path / "all.h5", "--split-column", "split", *quick).stdout
    assert "'split'" in _refused("search", tmp_path / "all.h5", "--split-column", "splt")
    assert "'train'" in _refused("search", tmp_path / "all.h5", "--split-column", "split", "--test-value", "no")
    rng = np.random.default_rng(2)
    for name, level in CLASSES.items():
        _picture(tmp_path / "other" / name / "x.png", level, rng)
    _run("extract", tmp_path / "other", "-o", tmp_path / "other.h5", *PIXELS)
    done = _run("search", tmp_path / "all.h5", "--test-store", tmp_path / "other.h5", *quick)
    assert "on 2 images" in done.stdout and "30 training images" in done.stdout


@pytest.fixture
def described(photos: Path, tmp_path: Path) -> Path:
    """The store of a manifest with the columns split (train, val, test) and patient (three pictures each)."""
    names = sorted(path.relative_to(tmp_path).as_posix() for path in photos.rglob("*.png"))
    parts = ["train", "train", "train", "val", "test"]
    table = [f"{name},{name.split('/')[1]},{parts[i // 3 % 5]},p{i // 3}" for i, name in enumerate(names)]
    (tmp_path / "all.csv").write_text("\n".join(["path,label,split,patient", *table]))
    assert _run("extract", tmp_path / "all.csv", "-o", tmp_path / "all.h5", *PIXELS).exit_code == 0
    return tmp_path / "all.h5"


def test_search_is_honest_nested_and_keeps_every_score(described: Path, tmp_path: Path) -> None:
    words = ["--groups", "patient", "--nested", "--one-se", "--repeats", 2, "--folds", 2, "--pca", 8, "--l2"]
    words += ["-e", "ridge_classifier", "-e", "nearest_centroid", "--scoring", "balanced_accuracy", "--jobs", 1]
    done = _run("search", described, *words, "--results", tmp_path / "r.csv")
    assert done.exit_code == 0, done.output
    for text in ("10 groups", "nested cross-validation", "2-fold balanced accuracy, 2 times", "l2, pca 8"):
        assert text in done.stdout
    rows = list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))
    assert [row["kind"] for row in rows] == ["cross-validation"] * 7 + ["nested"] * 2
    assert {row["estimator"] for row in rows[:7]} == {"ridge_classifier", "nearest_centroid"}
    assert all(0 <= float(row["score_4"]) <= 1 for row in rows[:7])
    assert _run("search", described, *words, "--results", tmp_path / "r.json").exit_code == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["folds"], result["repeats"], result["n_groups"]) == (2, 2, 10) and len(result["results"]) == 9


@pytest.mark.parametrize("protocol", ["linear-probe", "knn", "few-shot", "learning-curve"])
def test_protocols_print_a_table_draw_and_write(described: Path, tmp_path: Path, protocol: str) -> None:
    words = ["--protocol", protocol, "--results", tmp_path / "r.json", "--figure", tmp_path / "p.png"]
    if protocol in ("linear-probe", "knn"):
        words += ["--split-column", "split", "--validation-value", "val"]
    if protocol == "linear-probe":
        words += ["-o", tmp_path / "m.skops"]
    done = _run("search", described, *words)
    assert done.exit_code == 0, done.output
    assert "flatten:none" in done.stdout and "r.json" in done.stdout and "p.png" in done.stdout
    assert json.loads((tmp_path / "r.json").read_text())["kind"] == protocol
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width > 500
    if protocol == "linear-probe":
        assert list(featx.load(tmp_path / "m.skops").classes_) == list(CLASSES)


def test_layers_side_by_side(store: Path) -> None:
    assert "close: 'flatten:none'" in _refused("search", store, "-l", "flatten:none+flaten:none")


def test_numbers_are_predicted_as_numbers(photos: Path, tmp_path: Path) -> None:
    lines = [f"{path.relative_to(photos)},{np.asarray(Image.open(path)).mean()}" for path in photos.rglob("*.png")]
    (tmp_path / "ages.csv").write_text("\n".join(["id,age", *lines]))
    assert _run("extract", photos, "-o", tmp_path / "a.h5", *PIXELS).exit_code == 0
    words = ["--labels", tmp_path / "ages.csv", "--label-column", "age", "--target", "numeric", "--jobs", 1]
    done = _run("search", tmp_path / "a.h5", *words, "-o", tmp_path / "m.skops", "--figure", tmp_path / "m.png")
    assert done.exit_code == 0, done.output
    assert "ridge" in done.stdout and "svr" in done.stdout and "MAE" in done.stdout
    done = _run("predict", tmp_path / "m.skops", photos / "dark", "--json")
    assert all(40 < row["label"] < 90 for row in json.loads(done.stdout))


@pytest.mark.parametrize("nested", [False, True])
def test_an_interrupted_search_shows_and_writes_what_was_done(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nested: bool
) -> None:
    from featx.learn.selection import selection

    fit, calls = selection.GridSearchCV.fit, iter(range(9))

    def stopped(self, X, y=None, **params):  # type: ignore[no-untyped-def]
        fit(self, X, y, **params)
        if next(calls) == nested:
            self.partial_results_ = self.cv_results_
            raise KeyboardInterrupt
        return self

    monkeypatch.setattr(selection.GridSearchCV, "fit", stopped)
    words = ["-e", "nearest_centroid", "--jobs", 1, "-o", tmp_path / "m.skops", "--results", tmp_path / "r.csv"]
    done = _run("search", store, *words, *(["--nested"] if nested else []))
    assert done.exit_code == 130 and "interrupted" in done.stderr, done.output
    assert "nearest_centroid" in done.stdout and len((tmp_path / "r.csv").read_text().splitlines()) == 2
    assert (tmp_path / "m.skops").exists() == nested == ("held out: " in done.stdout)
    assert ("m.skops was not written" in done.stderr) != nested


@pytest.mark.parametrize("protocol", ["grid", "linear-probe", "few-shot"])
def test_what_was_interrupted_before_the_first_layer_says_so(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    def stopped(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    for name in ("select_model", "linear_probe", "few_shot"):
        monkeypatch.setattr(featx.learn, name, stopped)
    before = sorted(tmp_path.iterdir())
    words = ["-o", tmp_path / "m.skops"] if protocol != "few-shot" else []
    done = _run("search", store, "--protocol", protocol, *words, "--results", tmp_path / "r.csv")
    assert done.exit_code == 130 and sorted(tmp_path.iterdir()) == before
    assert done.stderr.strip() == "featx: interrupted before the first layer was done; nothing was written"


def test_an_interrupted_protocol_shows_and_writes_what_was_done_and_saves_no_model(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = featx.learn.linear_probe(featx.FeatureStore(store), C=[0.1, 1.0])

    def stopped(*args: object, **kwargs: object) -> None:
        raise featx.learn.Interrupted(replace(done, is_partial=True))

    monkeypatch.setattr(featx.learn, "linear_probe", stopped)
    words = ["--protocol", "linear-probe", "-o", tmp_path / "m.skops", "--results", tmp_path / "r.csv"]
    interrupted = _run("search", store, *words)
    assert interrupted.exit_code == 130 and "interrupted" in interrupted.stdout
    assert "m.skops was not written" in interrupted.stderr
    assert {row["partial"] for row in csv.DictReader((tmp_path / "r.csv").read_text().splitlines())} == {"1"}
    assert not (tmp_path / "m.skops").exists()


def test_labels_can_come_later(photos: Path, tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    lines = ["id,kind"]
    for path in photos.rglob("*.png"):
        path.rename(loose / f"{path.parent.name}{path.name}")
        lines.append(f"{path.parent.name}{path.name},{path.parent.name}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    _run("extract", loose, "-o", tmp_path / "loose.h5", *PIXELS)
    assert "no labels" in _refused("search", tmp_path / "loose.h5")
    words = ["--labels", tmp_path / "labels.csv", "--label-column", "kind", "-e", "logistic_regression", "--jobs", 1]
    assert "held out: 1.000" in _run("search", tmp_path / "loose.h5", *words).stdout


def test_every_mistake_costs_one_line_and_leaves_nothing(photos: Path, store: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "labels.csv"
    manifest.write_text("id,kind\na.png,x\n")
    before = sorted(tmp_path.iterdir())
    out = tmp_path / "out.h5"
    text = tmp_path / "photos" / "notes.txt"
    text.write_text("text")
    empty = tmp_path / "photos" / "empty"
    empty.mkdir()
    for words, expected in [
        (("extract", empty, "-o", out), "holds no images"),
        (("extract", tmp_path / "photo", "-o", out), "close: 'photos'"),
        (("extract", photos, "-o", tmp_path), "is a folder"),
        (("extract", photos, "-o", tmp_path / "no" / "out.h5"), "there is no folder"),
        (("extract", photos, "-o", out, "-b", "resnet5O"), "close: 'resnet50'"),
        (("extract", photos, "-o", out, "-b", "resnet18", "--weights", "random", "-l", "layer9"), "'layer4'"),
        (("extract", photos, "-o", out, *PIXELS, "--pool", "average"), "avg"),
        (("extract", photos, "-o", out, *PIXELS, "--precision", "half"), "bfloat16"),
        (("extract", photos, "-o", out, *PIXELS, "--device", "tpu"), "cuda"),
        (("extract", photos, "-o", out, *PIXELS, "--batch-size", 0), "--batch-size is auto or"),
        (("extract", photos, "-o", store, *PIXELS, "--dtype", "float16"), "dtype: 'float32' there, 'float16' here"),
        (("info", tmp_path / "photo.h5"), "close: 'photos.h5'"),
        (("info", text), "not a featx store"),
        (("layers", "nothing"), "no backbone"),
        (("search", store, "-l", "layer3"), "There are: flatten:none"),
        (("search", store, "--test-size", 1.5), "--test-size is the share"),
        (("search", store, "--seed", -1), "(--seed) is an integer from 0"),
        (("search", store, "--seed", 2**31), "(--seed) is an integer from 0"),
        (("search", store, "--jobs", 0), "--jobs is 1 or more, or -1"),
        (("search", store, "--top", 0), "--top is 1 or more"),
        (("search", store, "--folds", 1), "--folds is 2 or more"),
        (("search", store, "--repeats", 0), "--repeats is 1 or more"),
        (("search", store, "--pca", 0), "--pca is 1 or more"),
        (("search", text), "not a featx store"),
        (("search", photos), "it is a folder; featx extract makes a store"),
        (("search", store, "--labels", tmp_path / "no.csv"), "cannot read the CSV file"),
        (("search", store, "--labels", manifest), "with --label-column"),
        (("search", store, "--label-column", "age"), "photos.h5 has no column 'age'"),
        (("search", store, "--label-column", "age", "--target", "numeric"), "has no column 'age'"),
        (("search", store, "--target", "numeric"), "--labels or --label-column"),
        (("search", store, "--figure", tmp_path / "x.foo"), ".png, .pdf or .svg"),
        (("search", store, "--figure", tmp_path / "no" / "x.png"), "no such folder"),
        (("search", store, "--protocol", "knn", "--test-size", 0), "give --test-size 0.2, or another share above 0"),
        (("search", store, "--groups", "patient"), "no column 'patient', and no others"),
        (("search", store, "--scoring", "acuracy"), "close: 'accuracy'"),
        (("search", store, "-e", "ridge"), "ridge (--estimator) predicts numbers"),
        (("search", store, "--results", tmp_path / "r.txt"), "a .csv or .json file"),
        (("search", store, "--results", tmp_path / "no" / "r.csv"), "no such folder"),
        (("search", store, "--protocol", "knn", "--nested", "-o", tmp_path / "m.skops"), "has no --nested, --output"),
        (("search", store, "-o", tmp_path / "m.pkl"), "a model is a .skops file; got"),
        (("search", store, "--protocol", "knn", "--validation-value", "val"), "--split-column"),
        (("search", store, "--folds", 20), "20 training images of each class"),
        (("search", store, "-o", tmp_path / "no" / "m.skops"), "no such folder"),
        (("predict", text, photos), "not a featx model"),
        (("predict", store, photos), "not a featx model"),
        (("predict", tmp_path / "m.skops", photos), "there is no model file"),
    ]:
        assert expected in _refused(*words), words
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("option", ["--output", "--figure", "--results", "--report"])
def test_search_writes_over_nothing_that_it_reads(store: Path, option: str) -> None:
    before = store.read_bytes()
    assert "would be written over" in _refused(
        "search", store, option, store.parent / ".." / store.parent.name / store.name
    )
    assert store.read_bytes() == before


def test_search_replaces_no_model_and_says_so_before_it_searches(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(featx.learn, "select_model", None)  # which would not go well
    (tmp_path / "m.skops").write_bytes(b"an hour's work")
    refused = _refused("search", store, "-o", tmp_path / "m.skops")
    assert "m.skops is there already; choose another name, or remove the file" in refused
    assert (tmp_path / "m.skops").read_bytes() == b"an hour's work"


@pytest.mark.parametrize(
    "option, name", [("--results", "r.csv"), ("--results", "r.json"), ("--figure", "f.PDF"), ("--report", "r.html")]
)
def test_what_search_writes_is_whole_or_as_it_was(
    searched: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, name: str
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / name
    monkeypatch.setattr(featx.learn, "select_model", lambda *args, **kwargs: searched[1]["select_model"])
    words = ["search", searched[0] / "all.h5", option, path]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert f"cannot write {path}: No space left on device" in _refused(*words)
    assert not list(tmp_path.iterdir())
    assert _run(*words).exit_code == 0
    assert list(tmp_path.iterdir()) == [path]
    written = path.read_bytes()
    assert f"{path} is there already; choose another name" in _refused(*words)
    assert path.read_bytes() == written
    if name.endswith("PDF"):
        assert path.read_bytes().startswith(b"%PDF")


PROTOCOLS = ("grid", "linear-probe", "knn", "few-shot", "learning-curve")
VALUES = {  # of every option a value that is not its default, and the options that it needs
    "--output": "m.skops",
    "--protocol": "",
    "--layer": "penultimate",
    "--estimator": "knn",
    "--l2": "",
    "--power": "",
    "--pca": "3",
    "--scoring": "f1_macro",
    "--one-se": "",
    "--nested": "",
    "--labels": "labels.csv",
    "--label-column": "patient",
    "--target": "numeric --label-column age",
    "--groups": "patient",
    "--allow-duplicates": "",
    "--test-size": "0.4",
    "--split-column": "split",
    "--test-value": "val --split-column split",
    "--validation-value": "val --split-column split",
    "--test-store": "other.h5",
    "--folds": "3",
    "--repeats": "2",
    "--seed": "1",
    "--jobs": "1",
    "--results": "r.csv",
    "--figure": "f.png",
    "--report": "f.md",
    "--top": "1",
}
GRID_ONLY = ("--estimator", "--l2", "--power", "--pca", "--scoring", "--one-se", "--nested", "--folds", "--jobs")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with what VALUES name, and the result of each protocol."""
    folder = tmp_path_factory.mktemp("searched")
    rng = np.random.default_rng(0)
    lines, labels = ["path,label,split,patient,age"], ["id,label"]
    for i in range(60):
        name = list(CLASSES)[i % 2]
        _picture(folder / f"{i}.png", CLASSES[name], rng)
        lines.append(f"{i}.png,{name},{['train', 'train', 'val', 'test'][i // 2 % 4]},p{i // 3},{i}")
        labels.append(f"{i}.png,{'ab'[i // 2 % 2]}")
    _picture(folder / "other" / "dark" / "x.png", 60, rng)
    _picture(folder / "other" / "light" / "x.png", 190, rng)
    (folder / "all.csv").write_text("\n".join(lines))
    (folder / "labels.csv").write_text("\n".join(labels))
    store = featx.extract(folder / "all.csv", folder / "all.h5", "bundled:pixels", progress=False)
    featx.extract(folder / "other", folder / "other.h5", "bundled:pixels", progress=False)
    done = {
        "select_model": featx.learn.select_model(store, estimators=["nearest_centroid", "ridge_classifier"], n_jobs=1),
        "linear_probe": featx.learn.linear_probe(store, C=[0.1, 1.0]),
        "knn_probe": featx.learn.knn_probe(store),
        "few_shot": featx.learn.few_shot(store, repeats=2),
        "learning_curves": featx.learn.learning_curves(store, C=0.1, repeats=2),
    }
    for name in list(done)[1:]:  # two rows of every table, for --top
        done[name] = replace(done[name], curves=done[name].curves * 2)
    return folder, done


@pytest.fixture(scope="module")
def without_option() -> dict[tuple[str, ...], tuple[int, list[str]]]:
    """What a protocol does with the options that another one needs; filled by the tests."""
    return {}


def test_every_option_of_search_has_a_value_to_try() -> None:
    options = {max(p.opts, key=len) for p in get_command(app).commands["search"].params if p.name != "stores"}  # type: ignore
    assert options - {"--help", "--audit"} == set(VALUES)  # --audit needs a report: tests/report/test_audit_page.py


@pytest.mark.parametrize("option", [option for option in VALUES if option != "--protocol"])
def test_every_option_has_an_effect_or_is_refused(
    searched: tuple[Path, dict[str, Any]],
    without_option: dict[tuple[str, ...], tuple[int, list[str]]],
    option: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """With each of the protocols."""
    folder, results = searched

    def run(protocol: str, *words: str) -> tuple[int, list[str]]:
        """Exit code, and all that it does: calls of the library, what is printed, files written."""
        calls: list[str] = []
        for name, result in results.items():

            def answer(*args: Any, name: str = name, result: Any = result, **kwargs: Any) -> Any:
                del kwargs["on_progress"]
                calls.append(f"{name} {sorted((key, str(value)) for key, value in kwargs.items())}")
                return result

            monkeypatch.setattr(featx.learn, name, answer)
        (tmp_path / "run").mkdir()
        written = {name: str(tmp_path / "run" / name) for name in ("m.skops", "r.csv", "f.png", "f.md")}
        read = {name: str(folder / name) for name in ("labels.csv", "other.h5")}
        all_words = [(written | read).get(word, word) for word in words]
        done = _run("search", folder / "all.h5", "--protocol", protocol, *all_words)
        files = sorted(path.name for path in (tmp_path / "run").iterdir())
        (tmp_path / "run").rename(tmp_path / f"run{len(list(tmp_path.iterdir()))}")
        return done.exit_code, [*calls, done.output, *files]

    words = VALUES[option].split()
    has_none = {
        **dict.fromkeys(GRID_ONLY, PROTOCOLS[1:]),
        "--output": PROTOCOLS[2:],
        "--repeats": ("linear-probe", "knn"),
        "--validation-value": ("grid", "few-shot", "learning-curve"),
    }
    for protocol in PROTOCOLS:
        code, did = run(protocol, option, *words)
        if protocol in has_none.get(option, ()):
            assert code == 2 and f"--protocol {protocol} has no {option}; leave it out" in did[0]
            continue
        others = (protocol, *words[1:])
        if others not in without_option:
            without_option[others] = run(*others)
        plain_code, plain = without_option[others]
        assert plain_code == 0 and len(plain) == 2, protocol
        assert code == 0 and did != plain, protocol


def test_images_are_held_out_in_one_way(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = searched
    ways = [("--test-size", "0.4"), ("--split-column", "split"), ("--test-store", folder / "other.h5")]
    for one, other in itertools.combinations(ways, 2):
        assert f"which images are held out; got {one[0]} and {other[0]}" in _refused(
            "search", folder / "all.h5", *one, *other
        )
    for name in ("--test-value", "--validation-value"):
        words = ["--protocol", "knn", name, "val"]
        assert f"{name} is a value of --split-column" in _refused("search", folder / "all.h5", *words)
    by_column = ["--split-column", "split", "--validation-value", "val", "--test-store", folder / "other.h5"]
    done = _run("search", folder / "all.h5", "--protocol", "knn", *by_column)
    assert done.exit_code == 0 and "46 training, 14 validation and 2 test images" in done.stdout
    numbers = ["--label-column", "age", "--target", "numeric", "--test-store", folder / "other.h5"]
    assert "gives the searched store numeric labels, but not the test store" in _refused(
        "search", folder / "all.h5", *numbers
    )


def test_files_are_written_though_nobody_reads_what_is_printed(
    searched: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*things: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("featx.cli.search.print_all", gone)
    words = ["-e", "nearest_centroid", "--jobs", 1, "-o", tmp_path / "m.skops", "--results", tmp_path / "r.csv"]
    done = _run("search", searched[0] / "all.h5", *words, "--figure", tmp_path / "f.png")
    assert isinstance(done.exception, BrokenPipeError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.png", "m.skops", "r.csv"]


def test_a_column_of_the_store_holds_the_labels(searched: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = searched
    words = ["-e", "nearest_centroid", "--jobs", 1, "--results", tmp_path / "r.json", "--label-column"]
    assert _run("search", folder / "all.h5", *words, "split").exit_code == 0
    assert json.loads((tmp_path / "r.json").read_text())["classes"] == ["test", "train", "val"]
    words[1], words[5] = "ridge", tmp_path / "numbers.json"
    assert _run("search", folder / "all.h5", *words, "age", "--target", "numeric").exit_code == 0
    result = json.loads((tmp_path / "numbers.json").read_text())
    assert result["classes"] is None and result["scoring"] == "r2"
    assert "--target numeric needs a finite number as label; image 0.png has 'p0'" in _refused(
        "search", folder / "all.h5", "--label-column", "patient", "--target", "numeric"
    )
    assert "--target numeric" in _refused("search", folder / "all.h5", "--label-column", "age")
    done = _run(
        "search", folder / "all.h5", "--protocol", "learning-curve", "--label-column", "age", "--target", "numeric"
    )
    assert done.exit_code == 0 and "R² by training images" in done.stdout


def test_layers_side_by_side_are_named_with_spaces_or_without(photos: Path, tmp_path: Path) -> None:
    words = ["-b", "resnet18", "--weights", "random", "-l", "layer1", "-l", "layer2", "-q", "--precision", "float32"]
    assert _run("extract", photos, "-o", tmp_path / "r.h5", *words).exit_code == 0
    runs = [
        _run(
            "search",
            tmp_path / "r.h5",
            "-e",
            "nearest_centroid",
            "--jobs",
            1,
            "-l",
            name,
            "--results",
            tmp_path / f"{number}.csv",
        )
        for number, name in enumerate(("layer1+layer2", "layer1 + layer2"))
    ]
    assert [done.exit_code for done in runs] == [0, 0], runs[1].output
    for number in range(2):
        assert "layer1:avg+layer2:avg" in (tmp_path / f"{number}.csv").read_text()


def test_one_class_and_one_image_of_a_class_are_refused_by_search(photos: Path, tmp_path: Path) -> None:
    _run("extract", photos / "dark", "-o", tmp_path / "loose.h5", *PIXELS)
    for path in sorted((photos / "light").iterdir())[1:]:
        path.unlink()
    _run("extract", photos, "-o", tmp_path / "rare.h5", *PIXELS)
    assert "'light' has 1" in _refused("search", tmp_path / "rare.h5")
    (photos / "light" / "00.png").unlink()
    (photos / "light").rmdir()
    _run("extract", photos, "-o", tmp_path / "one.h5", *PIXELS)
    assert "two classes" in _refused("search", tmp_path / "one.h5")


def test_ctrl_c_before_64_images_leaves_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(3):
        Image.fromarray(rng.integers(0, 255, (400, 400, 3), np.uint8)).save(picture := io.BytesIO(), "png")
        pictures.append(picture.getvalue())
    (tmp_path / "photos").mkdir()
    for i in range(150):
        (tmp_path / "photos" / f"{i}.png").write_bytes(pictures[i % 3])
    words = ["extract", "photos", "-o", "out.h5", "-b", "resnet18", "--weights", "random", "--precision", "float32"]
    words += ["--engine", "eager"]
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a background job ignores it
    running = subprocess.Popen(
        [sys.executable, "-c", f"{heard}; from featx.cli import main; main()", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "out.h5.partial").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130, stderr
    assert "Traceback" not in stderr and "interrupted" in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_the_shell_completes_commands_and_options() -> None:
    for words, expected in (("featx rep", "report"), ("featx search --one", "--one-se")):
        place = {"_FEATX_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        assert CliRunner().invoke(app, [], prog_name="featx", env=place).stdout.split() == [expected]


def test_a_paragraph_of_help_is_one_line() -> None:
    first, second = get_command(app).commands["extract"].help.split("\n\n")  # type: ignore[attr-defined]
    assert (
        first.startswith("Run images") and "or grows by new images and layers" in second and "\n" not in first + second
    )


def test_help_and_version_load_no_torch() -> None:
    script = "import sys; from featx.cli import app; app(['--version'], standalone_mode=False); assert 'torch' not in "
    script += "sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == featx.__version__, done.stderr
