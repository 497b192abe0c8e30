"""Models as files: what they predict, what they say about themselves, what is refused."""

from __future__ import annotations

import ast
import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from helpers import class_folders, fresh_python, noise
from PIL import Image
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from typer.testing import CliRunner

import featx
from featx.cli import app
from featx.deploy import Agreement, export, predict_onnx, verification, writing
from featx.deploy.description import Description
from featx.deploy.program import Program
from featx.deploy.resize import ResizedAndCropped
from featx.deploy.verification import verify
from featx.errors import BackboneError, ModelError
from featx.learn import ImageFeatures, LogisticRegression, Ridge, StoredFeatures, load, predict_images, save

CLASSES = ["ant", "bee", 'it\'s {"x"}']


def run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(*words: object) -> str:
    done = run(*words)
    assert done.exit_code == 2, done.output
    return done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of three classes, their store and a model, and the program that the command line made of it."""
    root = tmp_path_factory.mktemp("deploy")
    photos = class_folders(root / "photos", CLASSES, n=5)
    Image.fromarray(noise(7, 90, 30)).save(photos / "ant" / "tall.png")
    store = featx.extract(photos, root / "photos.h5", "bundled:pixels", progress=False)
    pipe = make_pipeline(StoredFeatures(store), StandardScaler(), LogisticRegression(C=0.001))
    save(pipe.fit(store.X, store.y), root / "m.skops")
    done = run("export", root / "m.skops", "-o", root / "m.onnx", "--check", photos)
    assert done.exit_code == 0, done.output
    (root / "said.txt").write_text(done.stdout)
    return root


def test_an_exported_model_predicts_what_the_model_predicts(folder: Path) -> None:
    said = (folder / "said.txt").read_text()
    assert "pixels (batch, 32, 32, 3) uint8 -> label, probabilities" in said
    assert "on 16 images: all labels are equal, probabilities within" in said
    (folder / "new").mkdir()
    shutil.copy(folder / "photos/bee/bee_1.png", folder / "new/a.png")
    (folder / "new/b.png").write_text("not a picture")
    for words in (["--json"], ["--csv"], []):
        ours, theirs = (run("predict", folder / name, folder / "new", *words) for name in ("m.onnx", "m.skops"))
        assert ours.exit_code == theirs.exit_code == 1 and ours.stderr == theirs.stderr
        if words != ["--json"]:
            assert ours.stdout.splitlines()[0] == theirs.stdout.splitlines()[0]
            continue
        for one, other in zip(json.loads(ours.stdout), json.loads(theirs.stdout), strict=True):
            confidence = other.pop("confidence")
            assert one.pop("confidence") == (confidence if confidence is None else pytest.approx(confidence, abs=5e-5))
            assert one == other


def test_predicting_loads_neither_torch_nor_scikit_learn(folder: Path) -> None:
    code = f"""
import json, sys
from featx.cli import app
try:
    app(["predict", {str(folder / "m.onnx")!r}, {str(folder / "photos/bee/bee_0.png")!r}])
except SystemExit as end:
    heavy = [name for name in ("torch", "sklearn", "scipy", "skops", "onnx") if name in sys.modules]
    print(json.dumps([end.code, heavy]))
"""
    assert fresh_python(code) == [0, []]


def test_the_file_says_what_it_is(folder: Path) -> None:
    session = onnxruntime.InferenceSession(folder / "m.onnx")
    (taken,), outputs = session.get_inputs(), session.get_outputs()
    assert taken.name == "pixels" and taken.type == "tensor(uint8)" and taken.shape[1:] == [32, 32, 3]
    assert isinstance(taken.shape[0], str)
    assert [(output.name, output.type) for output in outputs] == [
        ("label", "tensor(int64)"),
        ("probabilities", "tensor(double)"),
    ]
    texts = session.get_modelmeta().custom_metadata_map
    assert ast.literal_eval(texts["names"]) == dict(enumerate(CLASSES))
    recipe = load(folder / "m.skops")[0].recipe_
    assert featx.store.Recipe.from_json(texts["recipe"]) == recipe
    assert json.loads(texts["preprocessing"]) == recipe.preprocessing
    assert texts["weights_sha256"] == recipe.weights_sha256 and texts["featx"] == featx.__version__
    assert Description.of_texts(texts).layers == {recipe.layers[0]: [0, 3072]}


@pytest.mark.parametrize("n", [1, 3, 9])
def test_a_batch_has_any_number_of_images(folder: Path, n: int) -> None:
    images = [noise(i) for i in range(n)]
    got = list(predict_onnx(folder / "m.onnx", images))
    expected = list(predict_images(load(folder / "m.skops"), images))
    assert [(one.image, one.label, one.kind) for one in got] == [(one.image, one.label, one.kind) for one in expected]


def test_what_is_no_exported_model_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"nothing")
    photo = folder / "photos/ant/ant_0.png"
    assert "cannot be opened by onnxruntime" in refused("predict", tmp_path / "a.onnx", photo)
    assert "there is no model file" in refused("predict", tmp_path / "b.onnx", photo)
    assert "holds its weights; leave out --weights" in refused(
        "predict", folder / "m.onnx", photo, "--weights", "DEFAULT"
    )
    for texts, words in (({}, "no model that featx export made"), ({"featx": "1"}, "its metadata is damaged")):
        with pytest.raises(ModelError, match=words):
            Description.of_texts(texts)


@pytest.mark.filterwarnings("ignore:.*has no StoredFeatures")
def test_options_that_do_not_go_together_are_refused(folder: Path) -> None:
    model, store = folder / "m.skops", folder / "photos.h5"
    assert "exported as a .onnx or .pt2 file; got" in refused("export", model, "-o", folder / "m.npy")
    assert "is made of a model, a .skops file" in refused("export", store, "-o", folder / "x.onnx")
    assert "--layer is for stores" in refused("export", model, "-o", folder / "x.onnx", "-l", "a")
    assert "--input is for models" in refused("export", store, "-o", folder / "x.npy", "--input", "rows")
    assert "m.onnx is there already; choose another name, or replace it with --replace" in refused(
        "export", model, "-o", folder / "m.onnx"
    )
    (folder / "w.onnx.data").write_text("of somebody else")
    assert "w.onnx.data is there already" in refused("export", model, "-o", folder / "w.onnx")
    save(LogisticRegression().fit(np.eye(4), [0, 0, 1, 1]), folder / "rows.skops")
    assert "export it with --input rows" in refused("export", folder / "rows.skops", "-o", folder / "rows.pt2")


class _Small(nn.Module):
    """Convolutions, a batch norm and an activation; `sign` changes its rows."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.norm, self.second = nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, 2)
        self.last, self.sign = nn.Linear(8, 3), sign
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0, 0.3, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.norm(self.first(x)).relu())
        return self.last(self.sign * x.mean((2, 3)))


def small(interpolation: str = "bilinear") -> featx.Backbone:
    return featx.Backbone(_Small(), preprocessing=featx.Preprocessing((24, 32), 28, interpolation))


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [noise(i, *size) for i, size in enumerate([(30, 40), (100, 31), (28, 28), (20, 300)] * 4)]


@pytest.fixture(scope="module")
def pipe(images: list[np.ndarray]) -> Any:
    y = np.arange(len(images)) % 2
    features = ImageFeatures(small(), "second", precision="float32")
    return make_pipeline(features, StandardScaler(), LogisticRegression()).fit(images, y)


@pytest.mark.parametrize(
    "input", ["pixels", pytest.param("image", marks=pytest.mark.slow), pytest.param("rows", marks=pytest.mark.slow)]
)
def test_a_torch_program_agrees_and_says_what_it_is(pipe: Any, images: list, input: Any, tmp_path: Path) -> None:
    exported = export(pipe, tmp_path / "m.pt2", input=input, check=images)
    assert exported.agreement.n == 16 and exported.agreement.difference < 5e-6
    assert exported.path == tmp_path / "m.pt2" and exported.outputs == ("label", "probabilities")
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt2"]
    files = {"featx.json": ""}
    torch.export.load(exported.path, extra_files=files)
    assert Description.of_texts(json.loads(files["featx.json"])).classes == ["0", "1"]


def eager(program: Program, change: float = 0.0) -> Any:
    """Runs a program without writing it; its probabilities are off by `change`."""

    def run(x: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            label, probabilities = program(torch.from_numpy(x))
        return {"label": label.numpy(), "probabilities": probabilities.numpy() + change}

    return run


def test_a_program_that_disagrees_is_refused(pipe: Any, images: list, monkeypatch) -> None:
    program = Program(pipe, "pixels")
    assert verify(eager(program, 4e-5), program, pipe, images).difference == pytest.approx(4e-5, abs=2e-6)
    with pytest.raises(ModelError, match="its probabilities differ from the model's by up to 6e-05"):
        verify(eager(program, 6e-5), program, pipe, images)
    predict = LogisticRegression.predict
    monkeypatch.setattr(LogisticRegression, "predict", lambda self, X: 1 - predict(self, X))
    with pytest.raises(ModelError, match="16 of 16 labels differ from the model's"):
        verify(eager(program), program, pipe, images)


def test_a_refused_program_leaves_no_file(pipe: Any, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(verification, "TOLERANCE", -1.0)
    with pytest.raises(ModelError, match="is refused"):
        export(pipe, tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


def test_a_model_whose_features_are_bfloat16_is_compared_in_both_types(pipe: Any, images: list, monkeypatch) -> None:
    model = copy.deepcopy(pipe)
    model[0].recipe_ = replace(pipe[0].recipe_, precision="bfloat16")
    program = Program(model, "pixels")
    predicted = []
    predict = LogisticRegression.predict
    monkeypatch.setattr(LogisticRegression, "predict", lambda self, X: predicted.append(X) or predict(self, X))
    confident = [image for image, p in zip(images, pipe.predict_proba(images), strict=True) if max(p) > 0.55]
    agreement = verify(eager(program), program, model, confident)
    assert agreement.precision == "bfloat16" and agreement.difference < 5e-6
    fast, exact = predicted
    assert 1e-4 < np.abs(fast - exact).max() < 1
    model[0].recipe_ = replace(pipe[0].recipe_, precision="bfloat16")
    monkeypatch.setattr(LogisticRegression, "predict", lambda self, X: 1 - predict(self, X))
    with pytest.raises(ModelError, match="computed in bfloat16, the program's in float32; fit it on a store that was"):
        verify(eager(program), program, model, images)


def test_images_and_rows_to_compare_on_are_checked(pipe: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not a picture")
    program = Program(pipe, "pixels")
    for check, words in (([tmp_path / "a.png"], "cannot be read: .*a.png: not a picture"), ([], "X is empty")):
        with pytest.raises(featx.FeatxError, match=words):
            verify(eager(program), program, pipe, check)
    model = Ridge().fit(np.eye(3), np.arange(3))
    with pytest.raises(ModelError, match=r"\(n, 3\); got shape \(2, 4\)"):
        verify(eager(program), Program(model, "rows"), model, np.zeros((2, 4)))


def test_a_model_of_rows(tmp_path: Path) -> None:
    X = np.random.default_rng(0).normal(50, 9, (40, 6)).astype(np.float32)
    model = make_pipeline(StandardScaler(), Ridge()).fit(X, X[:, 0] - X[:, 1])
    agreement = export(model, tmp_path / "m.pt2", input="rows").agreement
    assert agreement == Agreement(64, "row", agreement.difference, "values", True, "float32")
    with pytest.raises(ModelError, match="so it predicts rows of features: export it with input='rows'"):
        export(model, tmp_path / "n.pt2")


def test_a_network_that_runs_with_hooks_is_refused(images: list, tmp_path: Path) -> None:
    class Branching(_Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x if x.sum() > -1e9 else -x)

    network = featx.Backbone(Branching(), preprocessing=featx.Preprocessing((24, 32), 28))
    model = make_pipeline(ImageFeatures(network, "second"), LogisticRegression()).fit(images, np.arange(16) % 2)
    with pytest.raises(BackboneError, match="featx runs it with hooks"):
        export(model, tmp_path / "m.pt2")


def test_a_name_that_is_no_program_and_a_model_that_is_not_fitted_are_refused(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a .onnx or .pt2 file; got"):
        export(pipe, tmp_path / "m.skops")
    with pytest.raises(featx.FeatxError, match="input is one of pixels, image, rows; got 'photo'"):
        export(pipe, tmp_path / "m.pt2", input="photo")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="is not fitted"):
        export(make_pipeline(ImageFeatures(), Ridge()), tmp_path / "m.pt2")


@pytest.mark.parametrize(
    "interpolation",
    ["bilinear", "bicubic", *(pytest.param(name, marks=pytest.mark.slow) for name in ("box", "hamming", "lanczos"))],
)
def test_an_image_is_resized_to_the_bit(interpolation: str) -> None:
    """Larger and smaller, both orders of the passes, odd and equal sizes, crops beyond the picture."""
    sizes = [(50, 70), (71, 51), (20, 333), (333, 20), (31, 31), (17, 5), (1, 9), (57, 56), (301, 140)]
    for resize in (64, 40, (48, 71), (90, 31)):
        preprocessing = featx.Preprocessing((56, 57), resize, interpolation)
        resized = ResizedAndCropped(preprocessing)
        for seed, (height, width) in enumerate(sizes):
            image = noise(seed, height, width)
            got = resized(torch.from_numpy(image))[0].numpy()
            np.testing.assert_array_equal(got, preprocessing(Image.fromarray(image)), f"{resize} {image.shape}")


def test_nearest_neighbour_resizing_is_refused_inside_a_program() -> None:
    with pytest.raises(ModelError, match="resized by 'nearest-exact': export it with input='pixels'"):
        ResizedAndCropped(featx.Preprocessing((32, 32), 32, "nearest-exact"))


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_the_image_form_resizes_to_the_bit_in_onnxruntime(interpolation: str, tmp_path: Path, images: list) -> None:
    y = np.arange(len(images)) % 2
    features = ImageFeatures(small(interpolation), "second", precision="float32")
    pipe = make_pipeline(features, StandardScaler(), LogisticRegression()).fit(images, y)
    exported = export(pipe, tmp_path / "m.onnx", input="image", check=images)
    assert exported.agreement.n == 16 and exported.agreement.difference < 5e-6
    got, expected = list(predict_onnx(exported.path, images)), list(predict_images(pipe, images))
    assert [one.label for one in got] == [one.label for one in expected]
    np.testing.assert_allclose([a.confidence for a in got], [b.confidence for b in expected], atol=5e-6)


@pytest.mark.slow
def test_large_weights_are_a_file_of_their_own(pipe: Any, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(writing, "_MOST_INSIDE", 0)
    export(pipe, tmp_path / "m.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert len(list(predict_onnx(tmp_path / "m.onnx", [noise(0)]))) == 1


@pytest.mark.slow
def test_a_model_of_rows_in_onnxruntime(tmp_path: Path) -> None:
    X = np.random.default_rng(0).normal(50, 9, (40, 6)).astype(np.float32)
    model = make_pipeline(StandardScaler(), Ridge()).fit(X, X[:, 0] - X[:, 1])
    assert export(model, tmp_path / "m.onnx", input="rows", check=X).agreement.n == 40
    with pytest.raises(ModelError, match="predicts rows of features, not images"):
        list(predict_onnx(tmp_path / "m.onnx", [noise(0)]))
