"""The web page: a whole folder that names no other address, or nothing; its code, run by Node.

RUNTIME names the folder "dist" of the npm package onnxruntime-web, with which Node runs the model too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from helpers import class_folders, noise
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from typer.testing import CliRunner

import featx
from featx.cli import app
from featx.deploy import RUNTIME_FILES, export_web, web_page, writing
from featx.errors import ModelError
from featx.learn import LogisticRegression, StoredFeatures

CLASSES = ["ant", '<b>"bee"']
MODULE = Path(featx.__file__).parent / "deploy/web/model.mjs"
RUNTIME = "FEATX_ONNXRUNTIME_WEB"
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
needs_runtime = pytest.mark.skipif(RUNTIME not in os.environ, reason=f"{RUNTIME} does not name onnxruntime-web's dist")


def in_node(code: str, folder: Path = MODULE.parent) -> Any:
    """What JavaScript writes to `out`; `page` is the module of a folder."""
    module = f"""
import {{ readFileSync }} from "node:fs";
const folder = {json.dumps(str(folder))}, read = async (name) => new Uint8Array(readFileSync(`${{folder}}/${{name}}`));
const page = await import(`${{folder}}/model.mjs`);
let out;
{code}
console.log(JSON.stringify(out));
"""
    done = subprocess.run(["node", "--input-type=module", "-e", module], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


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
        *("index.html", "app.css", "app.js", "model.mjs", "model.json", "model.onnx"),
        *RUNTIME_FILES,
    }
    about = json.loads((site / "model.json").read_text())
    assert about["classes"] == sorted(CLASSES) and about["outputs"] == list(exported.outputs)
    session = onnxruntime.InferenceSession(site / "model.onnx")
    picture = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    label, shares = session.run(None, {"image": picture})
    np.testing.assert_allclose(shares[0], model.predict_proba([picture])[0], atol=5e-5)
    assert about["classes"][int(label[0])] == model.predict([picture])[0]
    for path in (site / "index.html", site / "app.js", site / "model.mjs", site / "app.css"):
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


def test_a_model_that_a_browser_cannot_load_is_refused(model: Any, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(web_page, "_MOST_BYTES", 10_000)
    with pytest.raises(ModelError, match="kB, and a browser loads 10 kB at most; run it on a server as a .onnx"):
        export_web(model, tmp_path / "site")
    assert not list((tmp_path / "site").iterdir())


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


@needs_node
def test_a_canvas_gives_three_channels_and_refuses_transparent_pixels() -> None:
    assert in_node("out = [...page.rgbOf(Uint8ClampedArray.of(1, 2, 3, 255, 4, 5, 6, 255))];") == [1, 2, 3, 4, 5, 6]
    code = "try { page.rgbOf(Uint8Array.of(1, 2, 3, 254)); } catch (error) { out = error.message; }"
    assert in_node(code) == "it has transparent pixels; save it without transparency"


@needs_node
@pytest.mark.parametrize(
    "classes, outputs, values, label, lines",
    [
        pytest.param(
            ["ant", "bee", "cat"],
            ["label", "probabilities"],
            [0.25, 0.5, 0.25],
            "bee",
            [("bee", "50.0 %", 0.5), ("ant", "25.0 %", 0.25), ("cat", "25.0 %", 0.25)],
            id="probabilities",
        ),
        pytest.param(
            ["ant", "bee", "cat"],
            ["label", "scores"],
            [-1.0, 4.0, 2.0],
            "bee",
            [("bee", "4.00", 1), ("cat", "2.00", 0.5), ("ant", "-1.00", 0)],
            id="scores",
        ),
        pytest.param(
            ["ant", "bee"], ["label", "scores"], [2.5], "bee", [("bee", "2.50", 1), ("ant", "-2.50", 0)], id="one score"
        ),
        pytest.param(None, ["values"], [12.3456], "12.35", [], id="regression"),
    ],
)
def test_results_are_labels_and_the_likeliest_classes(classes, outputs, values, label, lines) -> None:
    about = json.dumps({"classes": classes, "outputs": outputs})
    got = in_node(f"""
const result = page.resultOf({about}, {{
  label: {{ data: BigInt64Array.of(1n) }},
  {outputs[-1]}: {{ data: Float64Array.of(...{json.dumps(values)}) }},
}});
out = [result, page.linesOf({about}, result)];
""")
    expected = [{"name": name, "text": text, "share": share} for name, text, share in lines]
    assert got == [{"label": label, "values": values}, expected]


@needs_node
def test_only_the_five_likeliest_classes_are_shown() -> None:
    about = json.dumps({"classes": [str(i) for i in range(9)], "outputs": ["label", "scores"]})
    got = in_node(f"out = page.linesOf({about}, {{ values: [0, 10, 20, 30, 40, 50, 60, 70, 80] }});")
    assert [line["name"] for line in got] == ["8", "7", "6", "5", "4"]


@needs_node
@needs_runtime
@pytest.mark.parametrize("limit", [2**30, 0], ids=["one file", "weights in a file of their own"])
def test_the_page_predicts_what_the_model_predicts(model: Any, limit: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(writing, "_MOST_INSIDE", limit)
    export_web(model, tmp_path / "site", runtime=os.environ[RUNTIME])
    images = [noise(seed, 40, 50 + seed) for seed in range(4)]
    for seed, image in enumerate(images):
        (tmp_path / f"site/{seed}.rgba").write_bytes(
            np.dstack([image, np.full(image.shape[:2], 255, np.uint8)]).tobytes()
        )
    got = in_node(
        """
const ort = await import(`${folder}/ort.wasm.min.mjs`);
ort.env.wasm.numThreads = 1;
const model = await page.open(ort, read);
out = [];
for (let i = 0; i < 4; i++) out.push(await page.predict(model, page.rgbOf(await read(`${i}.rgba`)), [40, 50 + i, 3]));
""",
        tmp_path / "site",
    )
    assert [one["label"] for one in got] == list(model.predict(images))
    np.testing.assert_allclose([one["values"] for one in got], model.predict_proba(images), atol=5e-6)
