"""The whole way: a folder of images, a store, a search, a saved model; then a new process that has only the model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import featx
from featx.learn import predict_images, select_model

PREDICT = """
import json, sys
import featx
from featx.learn import predict_images
for path, images in json.loads(sys.argv[1]):
    model = featx.load(path)
    print(json.dumps([[p.image, p.label, p.confidence, p.error] for p in predict_images(model, images)]))
"""

# backbone, weights, layers
FLOWS = {
    "resnet18": ("resnet18", None, ["layer1", "layer2:max", "penultimate"]),
    "efficientnet": ("bundled:efficientnet_lite0", "DEFAULT", ["blocks.3", "penultimate"]),
}
KINDS = ("checks", "plain", "stripes")


def picture(kind: str, rng: np.random.Generator) -> Image.Image:
    """Textures that differ in structure and not in colour: a network has something to see."""
    size = int(rng.integers(48, 72))
    y, x = np.mgrid[:size, :size]
    period = int(rng.integers(5, 8))
    pattern = {"plain": 0 * x, "stripes": (x // period) % 2, "checks": (x // period + y // period) % 2}[kind]
    base = 128 + (pattern - pattern.mean()) * 120
    return Image.fromarray((base[..., None] + rng.normal(0, 12, (size, size, 3))).clip(0, 255).astype(np.uint8))


def make_images(root: Path, n: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for kind in KINDS:
        (root / kind).mkdir(parents=True)
        for i in range(n):
            picture(kind, rng).save(root / kind / f"{kind}{i}.jpg", quality=95)
    return root


def fitted(folder: Path, backbone: str, weights: str | None, layers: list[str]) -> tuple[Path, list[Path], list]:
    """A model file with nothing that it was made of, new images, and what was predicted of them here."""
    photos = make_images(folder / "photos", 8, seed=0)
    new = sorted(make_images(folder / "new", 3, seed=1).rglob("*.jpg"))
    (photos / "plain" / "broken.jpg").write_text("no picture")
    made = featx.Backbone(backbone, weights, preprocessing=featx.Preprocessing((64, 64), 64))

    with pytest.warns(featx.UnreadableImagesWarning, match="1 of 25 images"):
        store = featx.extract(photos, folder / "photos.h5", made, layers, device="cpu", progress=False)
    assert len(store) == 24 and [failure.id for failure in store.failures] == ["plain/broken.jpg"]
    assert store.classes.tolist() == list(KINDS)
    assert store.y.tolist() == [name.split("/")[0] for name in store.ids]

    options = {"logistic_regression": [1e-3, 1e-2], "rbf_svm": [1.0]}
    chosen = select_model(store, estimators=list(options), param_grid=options, folds=3, n_jobs=1)
    assert len(chosen.candidates) == 3 * len(layers)
    assert chosen.best.mean > 0.8 and chosen.held_out > 0.6

    model = featx.save(chosen.best_estimator, folder / "model.skops")
    here = list(predict_images(chosen.best_estimator, new))
    assert np.mean([p.label == path.parent.name for p, path in zip(here, new, strict=True)]) > 0.8

    store.path.unlink()
    shutil.rmtree(photos)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    return model.rename(elsewhere / model.name), new, here


@pytest.mark.parametrize("names", [["efficientnet"], pytest.param([*FLOWS], marks=pytest.mark.slow)])
def test_from_a_folder_to_predictions_in_a_new_process(tmp_path, names):
    done = {}
    for name in names:
        (tmp_path / name).mkdir()
        done[name] = fitted(tmp_path / name, *FLOWS[name])
    tasks = [[str(model), [*map(str, new), str(tmp_path / "gone.jpg")]] for model, new, _ in done.values()]
    run = subprocess.run(
        [sys.executable, "-c", PREDICT, json.dumps(tasks)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    for line, (_, _, here) in zip(run.stdout.splitlines(), done.values(), strict=True):
        *there, gone = json.loads(line)
        assert [(image, label) for image, label, _, _ in there] == [(p.image, p.label) for p in here]
        np.testing.assert_allclose([c for _, _, c, _ in there], [p.confidence for p in here], rtol=1e-4, atol=1e-5)
        assert gone[1] is None and "no such file" in gone[3]
