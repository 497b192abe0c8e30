"""The command line on names that would steer a terminal or a spreadsheet: of images, classes, columns and layers."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import unicodedata
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from commands import run
from helpers import save_noise

import featx
from featx.store import StoreWriter

PIXELS = ["-b", "bundled:pixels"]
RED, BIDI, LINE, FORMULA = "\x1b[31mred\x1b[0m", "photo\u202egnp", "a\nfeatx: b", "=1+1"
CLASSES = [f"ant {RED}", f"bee {BIDI}$a_{{$", "[red]cat[bold]"]


def shown(done: SimpleNamespace, code: int = 0) -> str:
    """All that a command printed, of which nothing steers a terminal."""
    assert done.exit_code == code, done.output
    for text in (done.stdout, done.stderr):
        kinds = {unicodedata.category(character) for character in text if character != "\n"}
        assert not kinds & {"Cc", "Cf", "Cs", "Zl", "Zp"}, repr(text)
    return done.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Class folders and images with hostile names, one of them unreadable, two the same with different labels."""
    root = tmp_path_factory.mktemp("names")
    for k, name in enumerate(CLASSES):
        for i, image in enumerate([RED, BIDI, LINE, FORMULA, *"abcd"]):
            save_noise(root / "photos" / name / f"{image}.png", seed=100 * k + i)
    (root / "photos" / CLASSES[0] / f"{RED}{LINE}.png").write_text("no picture")
    save_noise(root / "photos" / CLASSES[1] / "again.png", seed=0)
    done = run("extract", root / "photos", "-o", root / f"{RED}.h5", *PIXELS)
    text = shown(done, 1)
    assert r"\x1b[31mred\x1b[0ma\nfeatx: b.png: not a picture" in text and "different labels" in text
    return root


def test_a_store_is_described_and_compared(folder):
    path = folder / f"{RED}.h5"
    for words in (["info", path], ["info", path, path], ["verify", path]):
        shown(run(*words))
    text = shown(run("info", path))
    assert r"\x1b[31mred" in text and r"\u202e" in text and "[red]cat[bold]" in text
    assert set(featx.FeatureStore(path).classes.tolist()) == set(CLASSES)  # in the file they are what they were


def test_an_error_is_one_line(folder):
    for words in (["info", folder / f"{RED}{LINE}.h5"], ["extract", folder / LINE, "-o", folder / "x.h5"]):
        assert shown(run(*words), 2).count("\n") == 1


def test_the_plan_is_shown_and_its_json_is_exact(folder):
    words = ["extract", folder / "photos", "-o", folder / f"{BIDI}.h5", *PIXELS]
    shown(run(*words, "--dry-run"))
    done = run(*words, "--json")
    shown(done, 1)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert next(event for event in events if event["event"] == "plan")["output"] == str(folder / f"{BIDI}.h5")
    assert [failure["id"] for failure in events[-1]["failures"]] == [f"{CLASSES[0]}/{RED}{LINE}.png"]


def test_a_search_and_its_model_show_no_name_raw(folder):
    model, results = folder / f"{BIDI}.skops", folder / f"{RED}.json"
    words = ["search", folder / f"{RED}.h5", "-e", "nearest_centroid", "--folds", 2, "--test-size", 0.3, "--jobs", 1]
    shown(run(*words, "-o", model, "--results", results, "--figure", folder / "a.png"))
    assert set(json.loads(results.read_text())["classes"]) == set(CLASSES)
    images = folder / "photos" / CLASSES[0]
    shown(run("predict", model, images), 1)
    names = {str(images / f"{name}.png") for name in (RED, BIDI, LINE, FORMULA, f"{RED}{LINE}", *"abcd")}
    done = run("predict", model, images, "--json")
    shown(done, 1)
    assert {row["image"] for row in json.loads(done.stdout)} == names
    done = run("predict", model, images, "--csv")
    assert {row["image"] for row in csv.DictReader(io.StringIO(done.stdout, newline=""))} == names  # exact in a pipe


@pytest.fixture(scope="module")
def model(folder) -> Path:
    path = folder / "plain.skops"
    search = ["search", folder / f"{RED}.h5", "-e", "nearest_centroid", "--folds", 2, "--test-size", 0, "--jobs", 1]
    shown(run(*search, "-o", path))
    return path


def test_csv_is_escaped_on_a_terminal_and_quoted_where_it_begins_a_formula(folder, model, monkeypatch):
    monkeypatch.chdir(folder / "photos" / CLASSES[0])
    names = [f"{FORMULA}.png", f"{RED}.png", f"{BIDI}.png", f"{LINE}.png"]
    done = run("predict", model, *names, "--csv")
    (header, *rows) = csv.reader(io.StringIO(done.stdout, newline=""))
    assert header[0] == "image" and [row[0] for row in rows] == [f"'{FORMULA}.png", *names[1:]]
    assert all(float(row[2]) is not None for row in rows)
    monkeypatch.setattr("featx.cli.printing.sys", SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: True)))
    text = shown(run("predict", model, *names, "--csv"))
    assert r"\x1b[31mred\x1b[0m.png" in text and r"photo\u202egnp.png" in text


@pytest.mark.skipif(os.name != "posix", reason="file names are text")
def test_a_name_that_is_not_utf_8_is_shown_and_handed_over(model, tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    save_noise(tmp_path / "a.png", seed=1).rename(path)
    shown(run("predict", model, tmp_path))
    assert json.loads(run("predict", model, tmp_path, "--json").stdout)[0]["image"] == str(path)
    assert os.fsencode(path) in run("predict", model, tmp_path, "--csv").stdout_bytes


def test_recorded_strings_are_escaped_wherever_they_end(folder, tmp_path):
    """Of a store that somebody else made: ids, classes, columns, origin. No other text of a recipe may hold these."""
    path = tmp_path / "forged.h5"
    recipe = replace(featx.FeatureStore(folder / f"{RED}.h5").recipe, origin=LINE + RED + BIDI)
    shape = recipe.taps[recipe.layers[0]]["shape"]
    columns = {RED: np.array([LINE, BIDI] * 10), LINE: np.array(["x", FORMULA] * 10)}
    with StoreWriter(path, recipe, [f"{i}{RED}" for i in range(20)], np.array(CLASSES[:2] * 10), columns) as writer:
        rows = np.random.default_rng(0).normal(size=(20, *shape)).astype(recipe.dtype)
        writer.write(np.arange(20), {recipe.layers[0]: rows}, np.arange(320, dtype=np.uint8).reshape(20, 16))
        writer.finish()
    text = shown(run("info", path)) + shown(run("info", path, folder / f"{RED}.h5"))
    assert r"\u202e" in text and not re.search(r"^featx: b", text, re.MULTILINE)
    for words in (["--groups", "nothing"], ["--split-column", LINE, "--test-value", "no"], ["--label-column", "no"]):
        assert shown(run("search", path, *words), 2).count("\n") == 1
