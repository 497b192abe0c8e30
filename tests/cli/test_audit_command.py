"""`featx audit`: all options, the files it writes, hostile names, and what it refuses in a line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from audited import photo_store, scene
from commands import refused, run
from helpers import left_in

import featx

HOSTILE = ["<b>bold</b>", "=cmd|' /C calc'!A0", 'say "hi",\nnow', "a;b|c", "\x1b[31mred"]
N = 60
COLUMNS = ["kind", "rank", "score", "id", "other", "label", "suggestion", "reason"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Photos of two classes with hostile names, four of them copies; their store, and one of test photos."""
    root = tmp_path_factory.mktemp("audit")
    labels = [HOSTILE[i % 2] for i in range(N)]
    columns = {
        "split": ["test" if i % 4 == 3 else "train" for i in range(N)],
        "patient": [HOSTILE[i % 5] + str(i // 5) for i in range(N)],
        "other": [HOSTILE[2 + i // 2 % 2] for i in range(N)],
    }

    def picture(i):  # images 56 to 59 are copies of 0 to 3
        return scene(i % 56, 48)

    save = lambda i: {"quality": 60 if i >= 56 else 90}  # noqa: E731
    photo_store(root / "train", labels, N, save, columns, picture)
    photo_store(root / "test", labels[:20], 20, picture=lambda i: scene(50 + i, 48), columns={"patient": ["x"] * 20})
    return root


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_words_and_both_files(folder):
    store = folder / "train" / "photos.h5"
    done = run("audit", store, "-o", "a.csv", "--html", "a.html")
    assert done.exit_code == 0, done.output
    assert "4 pairs of copies: 0 of the same file, 4 of the same picture" in " ".join(done.stdout.split())
    assert "a.csv: all findings" in done.stdout and "a.html: the page" in done.stdout and "\x1b" not in done.stdout
    rows = read("a.csv")
    assert list(rows[0]) == COLUMNS and [row["kind"] for row in rows].count("duplicate") == 4
    pairs = {(row["id"], row["other"]) for row in rows if row["kind"] == "duplicate"}
    assert pairs == {(f"images/{i:03}.jpg", f"images/{56 + i:03}.jpg") for i in range(4)}
    assert Path("a.html").stat().st_size < 5_000_000


def test_labels_in_a_spreadsheet_are_text(folder):
    """A label like a formula gets an apostrophe; quotes and line breaks come back as they were."""
    store = featx.FeatureStore(folder / "train" / "photos.h5")
    with open("labels.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "odd"])
        writer.writerows([name, HOSTILE[1 + i % 2]] for i, name in enumerate(store.ids.tolist()))
    done = run(
        "audit", store.path, "--labels", "labels.csv", "--label-column", "odd", "-o", "a.csv", "--html", "a.html"
    )
    assert done.exit_code == 0, done.output
    labels = {row["label"] for row in read("a.csv") if row["kind"] == "duplicate"}
    assert labels == {"'" + HOSTILE[1], HOSTILE[2]}


def test_json_is_the_same_on_screen_and_in_a_file(folder):
    store = folder / "train" / "photos.h5"
    done = run("audit", store, "--json", "-o", "a.json", "--seed", 3)
    printed, written = json.loads(done.stdout), json.loads(Path("a.json").read_text())
    assert printed == written and set(printed["findings"][0]) == set(COLUMNS)
    assert {check["level"] for check in printed["checks"]} <= {"good", "note", "warning"}
    assert printed["wrong_labels"]["judged"] == N and len(printed["wrong_labels"]["interval"]) == 2


def test_all_options(folder):
    store, test = folder / "train" / "photos.h5", folder / "test" / "photos.h5"
    done = run("audit", store, "--split-column", "split", "--groups", "patient", "-l", "flatten", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["layers"] == ["flatten:none"] and not [each for each in result["findings"] if each["kind"] == "leak"]
    done = run("audit", store, "--split-column", "other", "--test-value", HOSTILE[2], "--json")
    leaks = [each for each in json.loads(done.stdout)["findings"] if each["kind"] == "leak"]
    assert len(leaks) == 0 and done.exit_code == 0, done.output
    done = run("audit", store, "--test-store", test, "--groups", "patient", "--label-column", "other", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    leaks = [each for each in result["findings"] if each["kind"] == "leak"]
    assert {each["other"] for each in leaks} == {f"images/{i:03}.jpg" for i in range(6)}
    assert Path(result["test"]) == test


def test_what_is_refused(folder, tmp_path):
    store, test = folder / "train" / "photos.h5", folder / "test" / "photos.h5"
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "few.csv").write_text("id,label\nimages/000.jpg,x\n")
    before = left_in(tmp_path)
    for words, expected in [
        (["-o", "there.csv"], "there.csv is there already; choose another name, or remove the file"),
        (["-o", "a.txt"], "findings are a .csv or .json file; got a.txt"),
        (["--html", "a.pdf"], "a page is a .html or .md file; got a.pdf"),
        (["-o", "no/a.csv"], "there is no such folder"),
        (["--split-column", "spilt"], "has no column 'spilt'; close: 'split'"),
        (["--split-column", "other"], "no image has other = 'test'; there are"),
        (["--split-column", "split", "--test-value", "val"], "no image has split = 'val'; there are 'test', 'train'"),
        (["--split-column", "split", "--test-store", test], "--test-store and --split-column both name test images"),
        (["--test-value", "val"], "--test-value is a value of --split-column; give that, too"),
        (["--groups", "patients"], "has no column 'patients'; close: 'patient'"),
        (["--label-column", "lable"], "has no column 'lable'"),
        (["--labels", "few.csv"], "few.csv"),
        (["--labels", "none.csv"], "cannot read the CSV file none.csv"),
        (["-l", "layer4"], "layer 'layer4' is not stored"),
        (["--test-store", tmp_path / "none.h5"], "none.h5"),
        (["--seed", -1], "--seed is an integer, 0 or more; got -1"),
    ]:
        assert expected in refused("audit", store, *words)
    assert left_in(tmp_path) == before


def test_no_labels_and_too_few_are_said(folder, tmp_path):
    plain = photo_store(tmp_path / "plain", n=12)
    done = run("audit", plain.path)
    text = " ".join(done.stdout.split())
    assert (
        done.exit_code == 0
        and "the store has no labels; give some, in the order of its images or as a CSV file by image id" in text
    )
    assert "outliers by features: they need 21 images; there are 12" in text
