"""A map of a store alone: every image once, its label or none, columns that colour it; a page that loads nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import store_of
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

import featx
from featx.errors import FeatxError, LayerError, StoreError
from featx.report import store_map
from featx.report.page import maps

N = 40
HOSTILE = "</script><b>x</b>"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> featx.FeatureStore:
    X = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
    columns = {
        HOSTILE: np.array([HOSTILE, "b"] * (N // 2)),
        "age": np.array([f"{i / 8}" for i in range(N - 1)] + [""]),
        "camera": np.array(["one"] * N),
    }
    y = np.array([HOSTILE, "cat"] * (N // 2))
    ids = [f"{HOSTILE} {i}" for i in range(N)]
    return store_of(tmp_path_factory.mktemp("map") / "s.h5", {"a:avg": X, "b:avg": X * X}, y, ids, columns)


def data_of(page: Path) -> dict:
    return json.loads(re.search(r'id="page-data">(.*?)</script>', page.read_text())[1])  # type: ignore[index]


def test_every_image_is_on_the_map_with_its_label_and_its_cells(store, tmp_path):
    data = data_of(store_map(store, tmp_path / "m.html", layer="a"))
    assert data["ids"] == store.ids.tolist() and data["y"] == store.y.tolist() and data["predicted"] is None
    assert data["slices"] == {
        HOSTILE: store.columns[HOSTILE].tolist(),
        "age": [i / 8 for i in range(N - 1)] + [None],
    }
    expected = PCA(2).fit_transform(StandardScaler().fit_transform(store["a"]))
    got = np.array(data["maps"]["PCA"])
    assert set(data["maps"]) >= {"PCA", "t-SNE"} and got.min() >= 0 and got.max() <= 1
    assert all(abs(np.corrcoef(got[:, i], expected[:, i])[0, 1]) > 0.9999 for i in range(2))


def test_the_page_loads_nothing_and_names_are_text(store, tmp_path):
    page = store_map(store, tmp_path / "m.html").read_text()
    assert HOSTILE not in page and "<b>x" not in page and page.count("<script") == 2
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page) and "default-src 'none'" in page
    assert 'href="#map"' in page and "camera" in re.search(r'<section id="map">.*?</p>', page, re.S)[0]


@pytest.mark.parametrize("labels", ["none", "some", "numbers"])
def test_labels_may_be_missing_or_numbers(store, tmp_path, labels):
    rows = np.asarray(store["a"])
    bare = store_of(tmp_path / "bare.h5", {"a:avg": rows})
    some = np.ma.masked_array(np.arange(N) * 1.0 if labels == "numbers" else store.y, np.arange(N) % 2 == 0)
    y = data_of(store_map(bare, tmp_path / "m.html", None if labels == "none" else some))["y"]
    assert y == ([None] * N if labels == "none" else some.tolist())


def test_a_large_store_is_sampled_and_nan_is_left_out(store, tmp_path, monkeypatch):
    monkeypatch.setattr(maps, "MOST_POINTS", 20)
    path = store_map(store, tmp_path / "m.html")
    assert len(set(data_of(path)["ids"])) == 20 and "20 of 40 images" in path.read_text()
    monkeypatch.setattr(maps, "MOST_POINTS", 5000)
    X = np.array(store["a"])
    X[3, 1] = np.nan
    assert len(data_of(store_map(store_of(tmp_path / "nan.h5", {"a:avg": X}), tmp_path / "n.html"))["ids"]) == N - 1


def test_what_cannot_be_drawn_is_refused(store, tmp_path):
    with pytest.raises(FeatxError, match="a map is a .html file; got .*m.md"):
        store_map(store, tmp_path / "m.md")
    with pytest.raises(LayerError, match="layer 'c' is not stored"):
        store_map(store, tmp_path / "m.html", layer="c")
    few = store_of(tmp_path / "few.h5", {"a:avg": np.eye(4)})
    with pytest.raises(StoreError, match="a map needs 5 images without NaN or inf; few.h5 has 4"):
        store_map(few, tmp_path / "m.html")
    same = store_of(tmp_path / "same.h5", {"a:avg": np.ones((9, 2))})
    with pytest.raises(StoreError, match="rows that differ; those of 'a:avg' in same.h5 are all equal"):
        store_map(same, tmp_path / "m.html")
    assert not (tmp_path / "m.html").exists()
