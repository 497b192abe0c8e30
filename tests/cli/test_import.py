"""`featx import`, and the other commands on the store that it makes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import run
from helpers import class_folders, left_in

import featx

N = 60
CLASSES = ["ant", "bee", "cat"]


def done(*words: object) -> str:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*words: object) -> str:
    result = run(*words)
    assert result.exit_code == 2 and result.stdout == "" and result.stderr.count("\n") == 1, result.output
    return result.stderr


def save(folder: Path, name: str, n: int, seed: int) -> None:
    """NAME.npy, three classes in float64; NAME.csv of ids, labels and speakers."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(0).normal(size=(3, 8))
    np.save(folder / f"{name}.npy", means[np.arange(n) % 3] + rng.normal(size=(n, 8)))
    lines = [f"{name} {i},{CLASSES[i % 3]},{name}{i % 10}" for i in range(n)]
    (folder / f"{name}.csv").write_text("\n".join(["id,label,speaker", *lines]) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("import")
    save(root, "t", N, 1)
    save(root, "new", 30, 2)
    for name in ("t", "new"):
        done("import", f"lm={root / name}.npy", "--ids", root / f"{name}.csv", "-o", root / f"{name}.h5", "--name", "m")
    return root


@pytest.fixture(autouse=True)
def there(folder, monkeypatch) -> None:
    monkeypatch.chdir(folder)


def test_it_says_what_it_made_and_how_numbers_were_rounded(tmp_path):
    text = done("import", "lm=t.npy", "--ids", "t.csv", "-o", tmp_path / "a.h5", "--name", "m")
    first, second = text.splitlines()
    assert first == f"{tmp_path}/a.h5: 60 rows, 3 classes; layers lm:none (8 numbers)"
    assert second.startswith("lm: float64 was rounded to float32; the largest relative error (L2) of a row is ")
    assert (tmp_path / "a.h5").read_bytes() == Path("t.h5").read_bytes()
    store = featx.FeatureStore("t.h5")
    assert store.ids[1] == "t 1" and store.y[1] == "bee" and store.columns["speaker"][1] == "t1"
    np.testing.assert_array_equal(store["lm"], np.load("t.npy").astype("f4"))


def test_without_ids_rows_are_numbered(tmp_path):
    np.savez(tmp_path / "two.npz", a=np.eye(4, dtype="f4"), b=np.arange(8).reshape(4, 2))
    assert done("import", tmp_path / "two.npz", "-o", tmp_path / "a.h5").splitlines() == [
        f"{tmp_path}/a.h5: 4 rows, no labels; layers a:none (4 numbers), b:none (2 numbers)"
    ]
    assert featx.FeatureStore(tmp_path / "a.h5").ids.tolist() == ["0", "1", "2", "3"]


def test_labels_can_be_another_column_and_numbers(tmp_path):
    (tmp_path / "ids.csv").write_text("id,length\n" + "".join(f"{i},{i / 4}\n" for i in range(N)))
    words = ["import", "t.npy", "--ids", tmp_path / "ids.csv", "-o", tmp_path / "a.h5", "--labels", "length"]
    assert "60 rows, numbers as labels" in done(*words, "--target", "numeric")
    assert featx.FeatureStore(tmp_path / "a.h5").y[2] == 0.5


def test_rows_that_are_not_finite_and_copies_are_listed(tmp_path):
    X = np.eye(4, dtype="f4")
    X[1], X[3, 0] = X[0], np.nan
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "ids.csv").write_text("id,label\na,x\nb,y\nc,x\nd,y\n")
    text = done("import", tmp_path / "x.npy", "--ids", tmp_path / "ids.csv", "-o", tmp_path / "a.h5")
    assert "1 row with NaN or inf:\n  d, x:none: nan" in text and "a (x), b (y)" in text


@pytest.mark.parametrize(
    "words, expected",
    [
        ("t.npy -o t.h5", "t.h5 is there already; choose another output, or replace it with --replace"),
        ("t.npy new.npy -o x.h5", "all layers have one row for each id; 't' has 60, 'new' has 30"),
        ("t.npy --ids new.csv -o x.h5", "there are 60 rows and 30 ids; each row needs one"),
        ("t.npy --ids t.npy -o x.h5", "not a CSV file in UTF-8"),
        ("t.npy --labels label -o x.h5", "--labels is a column of the .csv file of ids; give that with --ids"),
        ("t.npy --ids t.csv --labels topic -o x.h5", "t.csv has no column 'topic'; choose one of id, label, speaker"),
        ("t.npy --ids t.csv --target numeric -o x.h5", "--target numeric needs a finite number as label"),
        ("t.npy --name unnamed -o x.h5", "--name says what made the rows"),
        ("t.csv -o x.h5", "arrays are read from .npy, .npz and .parquet files"),
        ("t.h5 -o x.h5", "name a dataset, t.h5:PATH"),
        ("-o x.h5", "featx import needs ARRAYS"),
        ("t.npy", "featx import needs -o/--output"),
    ],
)
def test_what_does_not_fit_costs_one_line(folder, words, expected):
    before = left_in(folder)
    assert expected in refused("import", *words.split())
    assert left_in(folder) == before


def test_a_layer_of_a_store_and_an_exported_table_come_back(tmp_path):
    done("export", "t.h5", "-o", tmp_path / "t.parquet")
    done("import", tmp_path / "t.parquet", "-o", tmp_path / "back.h5", "--name", "m")
    assert (tmp_path / "back.h5").read_bytes() == Path("t.h5").read_bytes()
    done("import", "t.h5:layers/lm:none", "-o", tmp_path / "b.h5")
    np.testing.assert_array_equal(featx.FeatureStore(tmp_path / "b.h5")["lm:none"], featx.FeatureStore("t.h5")["lm"])


def test_the_other_commands_work_on_it(tmp_path):
    assert "all checksums match" in done("verify", "t.h5")
    text = done("info", "t.h5")
    for words in ("rows", "made by", "imported:m", "fingerprint", "lm:none: 8 float32"):
        assert words in text
    for words in ("preprocessing", "batches", "decoding", "weights"):
        assert words not in text
    assert "they can be merged" in done("info", "t.h5", "new.h5")
    assert "90 images of 2 stores" in done("merge", "t.h5", "new.h5", "-o", tmp_path / "all.h5")
    done("export", "t.h5", "-o", tmp_path / "archive.h5")
    model = tmp_path / "m.skops"
    text = done("search", "t.h5", "--test-store", "new.h5", "-e", "logistic_regression", "--groups", "speaker",
                "-o", model, "--report", tmp_path / "r.html")  # fmt: skip
    assert f"featx predict {model} --store STORE uses it" in text and "held out: 0." in text
    rows = json.loads(done("predict", model, "--store", "new.h5", "--json"))
    assert [row["image"] for row in rows] == [f"new {i}" for i in range(30)]
    assert np.mean([row["label"] == CLASSES[i % 3] for i, row in enumerate(rows)]) > 0.6
    assert "rows (batch, 8) float32" in done("export", model, "-o", tmp_path / "m.onnx", "--input", "rows")
    error = refused("predict", model, "t.csv")
    assert "imported (imported:m)" in error
    assert "featx import ROWS -o STORE --name m and featx predict MODEL --store STORE" in error
    for words in (["-o", tmp_path / "n.onnx"], ["-o", tmp_path / "n.onnx", "--input", "image"]):
        assert "reads imported features (imported:m)" in (error := refused("export", model, *words))
        assert "export it with --input rows" in error
    assert "predicts rows of features, not images\n" in refused("predict", tmp_path / "m.onnx", "t.csv")


def test_predict_takes_images_or_a_store(tmp_path):
    for words in (["m.skops"], ["m.skops", "t.csv", "--store", "t.h5"]):
        (tmp_path / "m.skops").touch()
        assert "give images, or a store with --store" in refused("predict", tmp_path / words[0], *words[1:])
    (tmp_path / "m.onnx").touch()
    assert "--store is for a .skops model" in refused("predict", tmp_path / "m.onnx", "--store", "t.h5")
    assert "leave out --weights" in refused("predict", tmp_path / "m.skops", "--store", "t.h5", "--weights", "DEFAULT")


def test_extract_is_refused_by_name(tmp_path):
    photos = class_folders(tmp_path / "photos")
    content = Path("t.h5").read_bytes()
    pixels = ["-b", "bundled:pixels"]
    error = refused("extract", photos, "-o", "t.h5", *pixels)
    assert "t.h5 has imported rows (imported:m), which no network computes; choose another output" in error
    assert "t.h5 has imported rows" in refused("extract", photos, "-o", tmp_path / "x.h5", "--like", "t.h5")
    assert Path("t.h5").read_bytes() == content and not (tmp_path / "x.h5").exists()
