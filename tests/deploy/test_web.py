"""The web page: a whole folder that names no other address, or nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from helpers import class_folders
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from typer.testing import CliRunner

import featx
from featx.cli import app
from featx.deploy import RUNTIME_FILES, export_web
from featx.errors import ModelError
from featx.learn import LogisticRegression, StoredFeatures

CLASSES = ["ant", '<b>"bee"']


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("web")
    store = featx.extract(class_folders(root / "photos", CLASSES, n=4), root / "s.h5", "bundled:pixels", progress=False)
    return make_pipeline(StoredFeatures(store), StandardScaler(), LogisticRegression()).fit(store.X, store.y)


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    (tmp_path / "dist").mkdir()
    for name in RUNTIME_FILES:
        (tmp_path / "dist" / name).write_text(name)
    return tmp_path / "dist"


def test_the_folder_has_the_page_the_model_and_the_runtime(model: Any, runtime: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    exported = export_web(model, site, runtime=runtime)
    assert {path.name for path in site.iterdir()} == {
        *("index.html", "app.css", "app.js", "model.json", "model.onnx"),
        *RUNTIME_FILES,
    }
    about = json.loads((site / "model.json").read_text())
    assert about["classes"] == sorted(CLASSES) and about["outputs"] == list(exported.outputs)
    session = onnxruntime.InferenceSession(site / "model.onnx")
    picture = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    label, shares = session.run(None, {"image": picture})
    np.testing.assert_allclose(shares[0], model.predict_proba([picture])[0], atol=5e-5)
    assert about["classes"][int(label[0])] == model.predict([picture])[0]
    for path in (site / "index.html", site / "app.js", site / "app.css"):
        assert not re.search(r"https?:|//cdn|innerHTML|eval\(", path.read_text())
    named = re.findall(r'(?:src|href)="([^"]+)"', (site / "index.html").read_text())
    assert all((site / name).is_file() for name in named if name != "data:,")
    assert "default-src 'none'" in (site / "index.html").read_text()


def test_what_is_missing_or_in_the_way_is_said_before_anything_is_written(
    model: Any, runtime: Path, tmp_path: Path
) -> None:
    (runtime / RUNTIME_FILES[1]).unlink()
    with pytest.raises(ModelError, match=rf"{RUNTIME_FILES[1]} is not in .*npm pack onnxruntime-web"):
        export_web(model, tmp_path / "site", runtime=runtime)
    with pytest.raises(ModelError, match="not empty"):
        export_web(model, runtime)
    assert not (tmp_path / "site").exists() and len(list(runtime.iterdir())) == 2


def test_the_command_writes_the_page_and_says_what_is_missing(model: Any, runtime: Path, tmp_path: Path) -> None:
    saved, site = featx.save(model, tmp_path / "m.skops"), tmp_path / "site"
    done = CliRunner().invoke(app, ["export", str(saved), "--web", str(site)])
    assert done.exit_code == 0, done.output
    assert all(name in done.stdout for name in RUNTIME_FILES) and "python -m http.server" in done.stdout
    for words, said in (
        (["--web", str(site)], "not empty"),
        ([], "give --output or --web"),
        (["--web", "s", "-o", "m.onnx"], "not both"),
        (["-o", "m.onnx", "--runtime", str(runtime)], "--runtime is for --web"),
        (["--web", "s", "--input", "rows"], "--web has no --input"),
        (["--web", "s", "--replace"], "--web has no --replace"),
    ):
        done = CliRunner().invoke(app, ["export", str(saved), *words])
        assert done.exit_code == 2 and said in done.stderr, done.output
