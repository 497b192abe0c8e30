"""`featx next`, `similar` and `map`: from a store without labels to a search, nearest images, and a map."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from commands import refused, run
from helpers import left_in, levelled_folders
from PIL import Image

import featx

N = 12  # of each class


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pictures of two classes in one folder, with names that a spreadsheet would compute, and their store."""
    root = tmp_path_factory.mktemp("next")
    levelled_folders(root / "classes", {"dark": 60, "light": 190}, N, (12, 12), spread=20)
    (root / "photos").mkdir()
    for path in sorted((root / "classes").rglob("*.png")):
        path.rename(root / "photos" / f"={path.parent.name}, {path.name}")
    assert run("extract", root / "photos", "-o", root / "photos.h5", "-b", "bundled:pixels", "-q").exit_code == 0
    return root


@pytest.fixture(autouse=True)
def inside(folder, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def fill_in(path: Path, most: int = 10**9) -> int:
    """Give the first images of a file of `featx next` the label in their name; how many had none before."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    empty = [row for row in rows if not row["label"]]
    for row in empty[:most]:
        row["label"] = "+dark" if "dark" in row["id"] else "light"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return len(empty)


def test_labels_come_in_rounds_and_a_search_takes_the_file(folder):
    store = folder / "photos.h5"
    done = run("next", store, "-n", 8, "-o", "one.csv")
    assert done.exit_code == 0 and "no labels so far" in done.stdout, done.output
    assert f"featx search {store} --labels one.csv" in done.stdout
    assert fill_in(Path("one.csv"), most=6) == 8
    done = run("next", store, "-n", 10, "--labels", "one.csv", "-o", "two.csv")
    assert done.exit_code == 0 and "10 images to label and the 6 labels so far" in done.stdout, done.output
    assert fill_in(Path("two.csv"), most=8) == 10
    words = ["--labels", "two.csv", "-e", "logistic_regression", "--folds", 2, "--jobs", 1]
    done = run("search", store, *words)
    assert done.exit_code == 0, done.output
    assert "note: 14 of 24 images have a label in two.csv; the others are left out" in done.stderr
    assert "held out: 1.000" in done.stdout
    labels = featx.FeatureStore(store).align("two.csv", partial=True)
    assert labels.count() == 14 and set(labels.compressed()) == {"+dark", "light"}


def test_next_suggests_labels_once_there_are_many(folder):
    store = folder / "photos.h5"
    assert run("next", store, "-n", 20, "-o", "one.csv").exit_code == 0
    fill_in(Path("one.csv"))
    done = run("next", store, "-n", 3, "--labels", "one.csv", "--strategy", "uncertain", "-o", "two.csv")
    assert done.exit_code == 0 and "a classifier is least sure" in done.stdout, done.output
    with open("two.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["suggestion"]) for row in rows] == [True] * 3 + [False] * 20
    assert all(row["suggestion"].strip("+") in row["id"] for row in rows[:3])


def test_next_refuses_in_a_line(folder, tmp_path):
    store = folder / "photos.h5"
    (tmp_path / "foreign.csv").write_text('id,label\n"\'=dark, 00.png",x\nother.png,y\n')
    (tmp_path / "empty.csv").write_text('id,label\n"\'=dark, 00.png",\n')
    lines = ["id,label", *(f'"\'{name}",x' for name in featx.FeatureStore(store).ids)]
    (tmp_path / "full.csv").write_text("\n".join(lines))
    before = left_in(tmp_path)
    for words, expected in [
        (["-n", 25], "24 images can be labelled next"),
        (["-n", 25], "got --number 25"),
        (["-n", 0], "--number is 1 or more; got 0"),
        (["--labels", "foreign.csv"], "1 of 2 labels in foreign.csv are of images that the store lacks: 'other.png'"),
        (["--labels", "empty.csv"], "no image has a label in empty.csv"),
        (["--labels", "full.csv"], "all 24 images have a label, and none is left to choose"),
        (["--labels", "full.csv"], "give the labels so far: --labels so-far.csv"),
        (["--labels", "none.csv"], "cannot read the CSV file none.csv"),
        (["--layer", "layer4"], "layer 'layer4' is not stored"),
        (["--strategy", "uncertain", "-n", 2], "--strategy uncertain needs labels of two classes or more"),
        (["-o", "full.csv"], "full.csv is there already"),
        (["-o", "next.txt"], "labels are written into a .csv file"),
    ]:
        assert expected in refused("next", store, *words)
    assert left_in(tmp_path) == before


def test_similar_images_of_ids_and_of_files(folder, tmp_path):
    store = folder / "photos.h5"
    opened = featx.FeatureStore(store)
    first = str(opened.ids[0])
    new = tmp_path / "new.png"
    Image.fromarray(np.asarray(Image.open(folder / "photos" / first)) // 8 * 8).save(new)
    done = run("similar", store, first, new, folder / "photos" / first, "-k", 3, "--json")
    assert done.exit_code == 0, done.output
    of_id, of_new, of_copy = json.loads(done.stdout)
    expected = opened.ids[opened.similar(first, 3).rows[0]].tolist()
    assert [each["id"] for each in of_id["similar"]] == expected
    assert of_copy["similar"] == of_id["similar"] and f"has the same content as {first}" in done.stderr
    assert of_new["similar"][0]["id"] == first and of_new["similar"][0]["distance"] < 0.01
    done = run("similar", store, first, "-k", 2, "--csv")
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [(row["rank"], row["id"], row["label"]) for row in rows] == [
        (str(rank), f"'{name}", "") for rank, name in enumerate(expected[:2], start=1)
    ]
    done = run("similar", store, first, new, "-k", 2, "-o", "sheet.png")
    assert "sheet.png: the sheet" in done.stdout
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 300


def test_similar_refuses_in_a_line(folder, tmp_path):
    store, photo = folder / "photos.h5", featx.FeatureStore(folder / "photos.h5").ids[0]
    (tmp_path / "text.png").write_text("text")
    for words, expected in [
        ([photo, "-k", 24], "photos.h5 has 23 other images"),
        ([photo, "-k", 24], "got --neighbors 24"),
        ([photo, "-k", 0], "--neighbors is 1 or more; got 0"),
        ([photo, "--layer", "layer4"], "layer 'layer4' is not stored"),
        ([*[photo] * 26, "-k", 23, "-o", "sheet.png"], "26 images with their similar ones are 624: give fewer"),
        ([*[photo] * 26, "-k", 23, "-o", "sheet.png"], "or less than --neighbors 23"),
        ([photo, "--json", "--csv"], "choose one of --json and --csv"),
        ([photo, "-o", "sheet.gif"], "a sheet is a .png, .pdf or .svg file"),
        (["=dark, 0.png"], "there is no file =dark, 0.png, and no image of this id in photos.h5; close:"),
        (["text.png"], "cannot be read"),
        ([folder / "photos"], "is a folder; give the files of images"),
    ]:
        assert expected in refused("similar", store, *words)


def test_a_map_is_one_page(folder):
    store = folder / "photos.h5"
    Path("labels.csv").write_text('id,label\n"\'=dark, 00.png",night\n')
    done = run("map", store, "-o", "map.html", "--labels", "labels.csv")
    assert done.exit_code == 0 and done.stdout == "map.html: the map\n", done.output
    assert '"night"' in Path("map.html").read_text()
    assert "map.html is there already" in refused("map", store, "-o", "map.html")
    assert "a map is a .html file" in refused("map", store, "-o", "map.png")
    assert "--label-column is a column of --labels" in refused("map", store, "-o", "b.html", "--label-column", "kind")


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_scikit_learn_does_not_take_is_refused(folder, seed):
    words = f"--seed is an integer from 0 to 4294967295; got {seed}"
    assert words in refused("map", folder / "photos.h5", "-o", "map.html", "--seed", seed)
    assert words in refused("next", folder / "photos.h5", "-n", 2, "--seed", seed)
    assert left_in(Path()) == []


@pytest.mark.parametrize("command", [["next"], ["map", "-o", "m.html"], ["audit"]])
def test_a_column_given_as_a_file_of_labels_is_told_from_one(folder, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    text = refused(command[0], folder / "photos.h5", *command[1:], "--labels", "species")
    assert (
        "--labels is a CSV file of labels by image id; species is no file" in text and "--label-column species" in text
    )
