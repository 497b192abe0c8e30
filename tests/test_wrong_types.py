"""Parameters of another type are refused in one line that names them."""

from __future__ import annotations

import pytest
from helpers import noise

import featx
from featx.errors import BackboneError, LayerError, SourceError, StoreError

IMAGES = [noise(0), noise(1)]

CALLS = {
    "extract's output": (lambda store: featx.extract(IMAGES, 3), StoreError, "output must be a path; got int"),
    "extract's like": (lambda store: featx.extract(IMAGES, "o.h5", like=3), StoreError, "like must be a path; got int"),
    "extract's source": (lambda store: featx.extract(3, "o.h5"), SourceError, "a list or an array; got int"),
    "extract's backbone": (lambda store: featx.extract(IMAGES, "o.h5", 3), BackboneError, "a backbone is a name"),
    "extract's ids": (
        lambda store: featx.extract(IMAGES, "o.h5", ids=3),
        SourceError,
        "ids is a list of one name per image; got 3",
    ),
    "a path in ids": (lambda store: featx.extract(IMAGES, "o.h5", ids="ab"), SourceError, "per image; got 'ab'"),
    "preprocessing": (
        lambda store: featx.Backbone("resnet18", preprocessing=3),
        BackboneError,
        "preprocessing is a featx.Preprocessing; got int",
    ),
    "FeatureStore's path": (lambda store: featx.FeatureStore(None), StoreError, "path must be a path; got NoneType"),
    "a layer": (lambda store: store[["penultimate"]], LayerError, "a layer is a name, such as '.*'; got list"),
    "align's labels": (lambda store: store.align(3), SourceError, "labels must be a path; got int"),
    "export's output": (lambda store: featx.export(store, None), StoreError, "output must be a path; got NoneType"),
    "export's store": (lambda store: featx.export(3, "a.npy"), StoreError, "path must be a path; got int"),
    "merge's stores": (lambda store: featx.merge("a.h5", "b.h5"), StoreError, "two or more stores .* got str"),
    "merge's output": (lambda store: featx.merge([store, store], 3), StoreError, "output must be a path; got int"),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_value_of_another_type_is_refused_in_a_line(pixel_store, monkeypatch, tmp_path, call):
    monkeypatch.chdir(tmp_path)
    run, error, text = CALLS[call]
    with pytest.raises(error, match=text) as caught:
        run(pixel_store)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
