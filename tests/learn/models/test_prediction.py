"""A label and a confidence for each image, in order; a reason for the one that cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import empty_cache
from PIL import Image
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

import featx
from featx import FeatureStore
from featx.errors import SourceError
from featx.learn import Prediction, StoredFeatures, predict_images
from featx.learn.models import prediction

LEVELS = {"dark": 50, "grey": 120, "light": 200}


def picture(level: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(level, 15, (24, 20, 3)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name, level in LEVELS.items():
        (root / "photos" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(picture(level, i)).save(root / "photos" / name / f"{i}.png")
    (root / "new").mkdir()
    for i, name in enumerate(["light", "dark", "grey", "light", "grey", "dark", "light"]):
        Image.fromarray(picture(LEVELS[name], 100 + i)).save(root / "new" / f"{i}-{name}.png")
    return root


@pytest.fixture(scope="module")
def store(root) -> FeatureStore:
    return featx.extract(root / "photos", root / "photos.h5", "bundled:pixels", device="cpu", progress=False)


@pytest.fixture
def new(root) -> list[Path]:
    return sorted((root / "new").iterdir())


def name_of(path: Path) -> str:
    return path.stem.partition("-")[2]


def fitted(store, estimator, y=None):
    pipe = make_pipeline(StoredFeatures(store, device="cpu"), StandardScaler(), estimator)
    return pipe.fit(store.X, store.y if y is None else y)


@pytest.mark.parametrize("estimator", [LogisticRegression(), SVC(), KNeighborsClassifier(3)])
def test_labels_come_in_the_order_of_the_images(store, new, estimator):
    found = list(predict_images(fitted(store, estimator), new))
    assert [p.image for p in found] == list(map(str, new))
    assert [p.label for p in found] == [name_of(path) for path in new]
    assert all(p.error == "" and isinstance(p, Prediction) for p in found)


def test_the_confidence_is_the_highest_probability_where_there_are_probabilities(store, new):
    calibrated = CalibratedClassifierCV(LinearSVC(C=0.001), cv=3)
    for model in (fitted(store, LogisticRegression(C=0.01)), fitted(store, calibrated)):
        found = list(predict_images(model, new))
        expected = model.predict_proba(new)
        np.testing.assert_allclose([p.confidence for p in found], expected.max(1), rtol=1e-6)
        assert {p.kind for p in found} == {"probability"}
        assert [p.label for p in found] == model.classes_[expected.argmax(1)].tolist()


def test_the_confidence_is_the_highest_score_where_there_are_no_probabilities(store, new):
    model = fitted(store, SVC())
    found = list(predict_images(model, new))
    np.testing.assert_allclose([p.confidence for p in found], model.decision_function(new).max(1), rtol=1e-6)
    assert {p.kind for p in found} == {"score"}


def test_of_two_classes_the_score_is_the_distance_to_either_side(store, new):
    model = fitted(store, LinearSVC(C=0.001), np.where(store.y == "light", "light", "other"))
    found = list(predict_images(model, new))
    scores = model.decision_function(new)
    assert (scores < 0).any() and (scores > 0).any()
    np.testing.assert_allclose([p.confidence for p in found], np.abs(scores), rtol=1e-6)
    assert [p.label for p in found] == ["light" if "light" in path.name else "other" for path in new]


def test_a_regressor_gives_its_value_and_no_confidence(store, new):
    model = fitted(store, Ridge(), np.array([LEVELS[name] for name in store.y], float))
    found = list(predict_images(model, new))
    np.testing.assert_allclose([p.label for p in found], model.predict(new), rtol=1e-6)
    for p, path in zip(found, new, strict=True):
        assert isinstance(p.label, float) and abs(p.label - LEVELS[name_of(path)]) < 20
        assert p.confidence is None and p.kind == "value"


@pytest.mark.parametrize(
    "chunk, bad",
    [(1, [0]), (1, [1, 2, 6]), (2, []), (2, [8]), (2, [1, 2, 6]), (3, [3]), (3, [1, 2, 6]), (3, range(9)), (256, [0])]
    + [(256, range(9))],
)
def test_an_unreadable_image_gets_its_reason_and_the_others_keep_theirs(store, new, root, monkeypatch, chunk, bad):
    monkeypatch.setattr(prediction, "_CHUNK", chunk)
    given = [*new, new[0], new[1]]
    text, gone = root / "text.png", root / "gone.png"
    text.write_text("no picture")
    for i in bad:
        given[i] = text if i % 2 else gone
    found = list(predict_images(fitted(store, SVC()), given))
    assert [p.image for p in found] == list(map(str, given))
    for i, (p, path) in enumerate(zip(found, given, strict=True)):
        if i in bad:
            assert p[1:4] == (None, None, "")
            assert ("not a picture" if i % 2 else "no such file") in p.error
        else:
            assert p.label == name_of(path) and p.error == "" and p.confidence is not None


def test_images_without_a_path_are_numbered_through(store, monkeypatch):
    monkeypatch.setattr(prediction, "_CHUNK", 2)
    images = [picture(50, 0), Image.fromarray(picture(200, 1)), np.zeros((3, 3), float), picture(120, 2)]
    found = list(predict_images(fitted(store, SVC()), images))
    assert [p.image for p in found] == ["0", "1", "2", "3"]
    assert [p.label for p in found] == ["dark", "light", None, "grey"]
    assert "an array must be uint8" in found[2].error


def test_a_prediction_does_not_depend_on_the_others(store, new):
    model = fitted(store, LogisticRegression(C=0.01))
    together = list(predict_images(model, new))
    alone = [next(predict_images(model, [path])) for path in new]
    assert [p.label for p in alone] == [p.label for p in together]
    np.testing.assert_allclose([p.confidence for p in alone], [p.confidence for p in together], rtol=1e-5)


def test_features_of_a_chunk_are_computed_once(store, new, monkeypatch):
    from featx import forward

    calls = []
    stream = forward.stream
    monkeypatch.setattr(forward, "stream", lambda *a, **k: calls.append(len(a[0])) or stream(*a, **k))
    empty_cache()
    list(predict_images(fitted(store, LogisticRegression()), new))
    assert calls == [len(new)]


def test_a_bare_path_is_told_to_be_put_in_a_list(store, new):
    with pytest.raises(SourceError, match="put the path in one"):
        next(predict_images(fitted(store, SVC()), str(new[0])))
