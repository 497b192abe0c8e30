"""Statistics of images in a store: kept by every run, unchanged by how it ran, added to stores that lack them."""

from __future__ import annotations

import shutil

import h5py
import numpy as np
import pytest
from helpers import class_folders, noise
from make_version1 import FILE as VERSION1
from PIL import Image
from runs import extract, refused, same_file

import featx
from featx.errors import StoreError
from featx.image_statistics import IMAGE_STATISTICS
from featx.images import decode_and_describe
from featx.report import store_table
from featx.store import StoreWriter
from featx.store import writer as writer_module


def without_statistics(store: featx.FeatureStore, output) -> featx.FeatureStore:
    """The same store as an earlier version of featx wrote it."""
    with StoreWriter(output, store.recipe, store.ids.tolist(), store.y, store.columns) as writer:
        rows = {name: np.array(store[name]) for name in store.layers}
        writer.write(np.arange(len(store)), rows, store.digests)
        writer.finish()
    return featx.FeatureStore(output)


def records(store: featx.FeatureStore) -> np.ndarray:
    made = store.image_records(np.arange(len(store)))
    assert made is not None
    return made


def test_a_run_keeps_the_statistics_of_its_images(tmp_path):
    folder = class_folders(tmp_path / "in", n=4)
    (folder / "ant" / "bad.png").write_bytes(b"no picture")
    with pytest.warns(featx.UnreadableImagesWarning):
        store = extract(folder, tmp_path / "a.h5")
    assert tuple(store.statistics) == IMAGE_STATISTICS.names
    expected = [decode_and_describe(folder / name)[2] for name in store.ids.tolist()]
    assert records(store).tobytes() == b"".join(expected)
    assert store.statistics["taken"].dtype == "<M8[s]" and store.statistics["camera"].tolist() == [""] * 8
    with h5py.File(store.path) as file:
        assert file.attrs["version"] == 3 and list(file["statistics"]) == sorted(IMAGE_STATISTICS.names)
        assert file["statistics/width"][:].tolist() == [32] * 8
    store.verify()


def test_statistics_do_not_depend_on_the_network_or_the_run(tmp_path):
    images = [noise(i) for i in range(150)]
    one = extract(images, tmp_path / "a.h5", layers="flatten:none", workers=1)
    other = extract(images, tmp_path / "b.h5", batch_size=7, workers=3)
    assert records(one).tobytes() == records(other).tobytes()


def test_an_interrupted_run_keeps_them(tmp_path, monkeypatch):
    images = [noise(i) for i in range(200)]
    whole = extract(images, tmp_path / "whole.h5", batch_size=8)
    monkeypatch.setattr(writer_module, "_SYNC_BYTES", 1)

    def stopping(now):
        if now.done > 150:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(images, tmp_path / "a.h5", batch_size=8, progress=stopping)
    assert (tmp_path / "a.h5.journal").exists()
    assert same_file(extract(images, tmp_path / "a.h5", batch_size=8), whole)


@pytest.mark.parametrize("grows", [False, True])
def test_extracting_again_adds_them_and_computes_no_row(tmp_path, monkeypatch, grows):
    folder = class_folders(tmp_path / "in", n=5)
    whole = extract(folder, tmp_path / "whole.h5")
    without_statistics(whole, tmp_path / "a.h5")
    assert featx.FeatureStore(tmp_path / "a.h5").statistics == {}
    if grows:
        class_folders(folder, n=6)
        whole = extract(folder, tmp_path / "more.h5")
    else:
        monkeypatch.setattr("featx.forward.streaming.network_of", None)  # nothing may go through a network
    again = extract(folder, tmp_path / "a.h5")
    assert same_file(again, whole)
    assert extract(folder, tmp_path / "a.h5").identity == again.identity


def test_new_layers_add_them_too(tmp_path):
    images = [noise(i) for i in range(20)]
    whole = extract(images, tmp_path / "whole.h5", layers=["flatten:flatten"])
    without_statistics(whole, tmp_path / "a.h5")
    assert same_file(extract(images, tmp_path / "a.h5", layers=["flatten:flatten"]), whole)


def test_an_image_that_changes_meanwhile_is_refused(tmp_path, monkeypatch):
    folder = class_folders(tmp_path / "in", n=3)
    without_statistics(extract(folder, tmp_path / "whole.h5"), tmp_path / "a.h5")
    described = featx.extraction.existing._described

    def changing(image):
        Image.fromarray(noise(99)).save(folder / "bee" / "bee_1.png")
        return described(image)

    monkeypatch.setattr("featx.extraction.existing._described", changing)
    with pytest.raises(StoreError, match=r"'bee/bee_1.png' changed while the run was on; run it again"):
        extract(folder, tmp_path / "a.h5")
    assert featx.FeatureStore(tmp_path / "a.h5").statistics == {}  # the old store is still there


def test_interrupted_while_statistics_are_read_it_goes_on_where_it_was(tmp_path, monkeypatch):
    images = [noise(i) for i in range(200)]
    whole = extract(images, tmp_path / "whole.h5")
    without_statistics(whole, tmp_path / "a.h5")
    monkeypatch.setattr("featx.store.merging._DESCRIBED", 64)
    described, seen, phases = featx.extraction.existing._described, [], []
    monkeypatch.setattr("featx.extraction.existing._described", lambda image: seen.append(0) or described(image))

    def stopping(now):
        phases.append((now.phase, now.done))
        if now.done == 128:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(images, tmp_path / "a.h5", progress=stopping)
    assert phases[-3:] == [("reading the images' statistics", done) for done in (0, 64, 128)]
    assert len(seen) == 128 and featx.FeatureStore(tmp_path / "a.h5").statistics == {}
    assert same_file(extract(images, tmp_path / "a.h5"), whole)
    assert len(seen) == 200


def test_merging_keeps_them_if_all_stores_have_them(tmp_path):
    one = extract([noise(i) for i in range(5)], tmp_path / "a.h5", ids=list("abcde"))
    other = extract([noise(i) for i in range(9, 12)], tmp_path / "b.h5", ids=list("xyz"))
    merged = featx.merge([one, other], tmp_path / "ab.h5")
    assert records(merged).tobytes() == records(one).tobytes() + records(other).tobytes()
    old = without_statistics(other, tmp_path / "old.h5")
    assert featx.merge([one, old], tmp_path / "mixed.h5").statistics == {}


def test_a_merge_without_them_is_made_again_once_all_stores_have_them(tmp_path):
    one = extract([noise(i) for i in range(5)], tmp_path / "a.h5", ids=list("abcde"))
    other = extract([noise(i) for i in range(9, 12)], tmp_path / "b.h5", ids=list("xyz"))
    old = without_statistics(other, tmp_path / "old.h5")
    mixed = featx.merge([one, old], tmp_path / "ab.h5")
    assert featx.merge([one, old], tmp_path / "ab.h5").identity == mixed.identity
    with pytest.raises(StoreError, match="ab.h5 is there already"):
        featx.merge([one, other], tmp_path / "ab.h5")
    assert len(records(featx.merge([one, other], tmp_path / "ab.h5", replace=True))) == 8


def test_an_archive_has_them(tmp_path):
    store = extract([noise(i) for i in range(5)], tmp_path / "a.h5")
    archive = featx.FeatureStore(featx.export(store, tmp_path / "archive.h5"))
    assert records(archive).tobytes() == records(store).tobytes()
    assert featx.export(archive, tmp_path / "b.h5", compression="none").read_bytes() == store.path.read_bytes()


def test_a_store_of_version_1_has_none_and_its_table_says_how_to_get_them(tmp_path):
    shutil.copy(VERSION1, tmp_path / "a.h5")
    store = featx.FeatureStore(tmp_path / "a.h5")
    assert store.statistics == {} and store.image_records(np.arange(3)) is None
    tables = [store_table(each).columns[0]._cells for each in (store, extract([noise(0)], tmp_path / "b.h5"))]
    assert ["statistics" in cells for cells in tables] == [True, False]


def test_a_run_that_an_earlier_version_began_is_refused(tmp_path, monkeypatch):
    images = [noise(i) for i in range(200)]
    monkeypatch.setattr(writer_module, "_SYNC_BYTES", 1)
    monkeypatch.setattr("featx.store.journal._FORMAT", "featx-journal 1")

    def stopping(now):
        if now.done > 150:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(images, tmp_path / "a.h5", batch_size=8, progress=stopping)
    monkeypatch.setattr("featx.store.journal._FORMAT", "featx-journal 2")
    words = "another version of featx began"
    refused(lambda: extract(images, tmp_path / "a.h5", batch_size=8), tmp_path / "a.h5", words, error=StoreError)


def test_fewer_layers_of_a_store_without_them_return_it_as_it_is(tmp_path, small_network):
    images, options = [noise(i) for i in range(6)], {"backbone": small_network, "precision": "float32"}
    whole = extract(images, tmp_path / "whole.h5", layers=["first", "second"], **options)
    old = without_statistics(whole, tmp_path / "a.h5")
    assert extract(images, tmp_path / "a.h5", layers="first", **options).identity == old.identity
    assert same_file(extract(images, tmp_path / "a.h5", layers=["first", "second"], **options), whole)
