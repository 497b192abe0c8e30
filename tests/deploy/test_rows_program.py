"""A model of imported features as a program of rows."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from sklearn.ensemble import VotingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featx import FeatureStore
from featx.deploy import export, export_web
from featx.errors import ModelError
from featx.learn import LogisticRegression, StoredFeatures


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FeatureStore:
    rng, y = np.random.default_rng(0), np.arange(60) % 3
    layers = {"a": rng.normal(size=(60, 5)) * 100 + y[:, None], "b": rng.normal(size=(60, 3)) + y[:, None]}
    return FeatureStore.from_arrays(tmp_path_factory.mktemp("a") / "t.h5", layers, y=[f"class {i}" for i in y])


def fitted(store: FeatureStore, layer: object):
    pipe = make_pipeline(StoredFeatures(store, layer), StandardScaler(), LogisticRegression(C=0.1))
    return pipe.fit(store.X, store.y)


@pytest.mark.parametrize("layer, d", [("a", 5), (["b", "a"], 8)])
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_the_program_takes_rows(store, tmp_path, layer, d, suffix):
    model = fitted(store, layer)
    rows = model[0].transform(store.X)
    exported = export(model, tmp_path / f"m{suffix}", input="rows", check=rows)
    assert exported.agreement.on == "row" and exported.agreement.n == 60 and not exported.agreement.is_seeded
    assert exported.input == f"rows (batch, {d}) float32" and exported.description.preprocessing is None
    assert exported.description.recipe["backbone"] == "imported:unnamed"
    assert export(model, tmp_path / f"n{suffix}", input="rows").agreement.is_seeded
    if suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(exported.path))
        labels = session.run(["label"], {"rows": np.asarray(rows, np.float32)})[0]
        np.testing.assert_array_equal(model.classes_[labels], model.predict(store.X))


def test_images_are_refused(store, tmp_path):
    model = fitted(store, "a")
    for name in ("pixels", "image"):
        with pytest.raises(ModelError, match="imported features .imported:unnamed.*export it with input='rows'"):
            export(model, tmp_path / "m.onnx", input=name)
    with pytest.raises(ModelError, match="export it with input='rows'"):
        export_web(model, tmp_path / "page")
    with pytest.raises(ModelError, match="rows are needed to compare on, not images"):
        export(model, tmp_path / "m.pt2", input="rows", check=["a.jpg"])
    assert not (tmp_path / "m.onnx").exists() and not (tmp_path / "m.pt2").exists()


def test_steps_that_read_different_layers_are_refused(store, tmp_path):
    voting = VotingClassifier([(name, fitted(store, name)) for name in "ab"], voting="soft").fit(store.X, store.y)
    with pytest.raises(ModelError, match="only if they read the same layers; give one step a list of layers"):
        export(voting, tmp_path / "m.pt2", input="rows")
