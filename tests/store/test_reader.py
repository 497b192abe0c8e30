"""An open store gives the content of the file that was opened, and only for reading."""

from __future__ import annotations

import copy
import os
import pickle
import shutil

import h5py
import joblib
import numpy as np
import pytest
from helpers import assert_tells, class_folders, left_in, noise
from sklearn.base import clone
from test_take import written

import featx
from featx.errors import KeysError, LayerError, SourceError, StoreError
from featx.learn import StoredFeatures
from featx.store import FeatureStore


@pytest.fixture
def own_store(pixel_store, tmp_path) -> FeatureStore:
    """A copy that a test may damage."""
    return FeatureStore(shutil.copy(pixel_store.path, tmp_path / "own.h5"))


def refused(path, *words) -> None:
    with pytest.raises(StoreError) as caught:
        FeatureStore(path)
    assert_tells(caught.value, *words)


def test_the_attributes_of_a_store_are_consistent(pixel_store):
    n = len(pixel_store)
    assert n == 12 and repr(pixel_store).endswith("12 images, 1 layers")
    assert pixel_store.X.shape == (n, 1) and pixel_store.X.dtype == np.int64
    assert pixel_store.y.tolist() == [name.split("/")[0] for name in pixel_store.ids]
    assert pixel_store.classes.tolist() == ["ant", "bee", "cat"]
    assert pixel_store.digests.shape == (n, 16) and pixel_store.digests.dtype == np.uint8
    assert pixel_store.layers == ("flatten:none",) and pixel_store.columns == {} and pixel_store.failures == ()
    assert FeatureStore(str(pixel_store.path)).identity == pixel_store.identity


def test_a_layer_is_a_read_only_map_of_the_file(pixel_store):
    layer = pixel_store["penultimate"]
    assert isinstance(layer, np.memmap) and layer is pixel_store["flatten:none"] is pixel_store["flatten"]
    assert layer.shape == (12, 3072) and layer.dtype == np.float32 and not layer.flags.writeable
    assert layer.offset % 4096 == 0 and os.path.samefile(layer.filename, pixel_store.path)
    with pytest.raises(ValueError, match="read-only"):
        layer[0, 0] = 1
    with h5py.File(pixel_store.path) as file:
        assert np.array_equal(file["layers/flatten:none"][()], layer)


def test_reading_does_not_change_the_file(own_store):
    before = own_store.path.read_bytes(), own_store.path.stat().st_mtime_ns
    assert own_store["penultimate"].sum() > 0 and len(own_store.take([0], "penultimate")) == 1
    own_store.rows(own_store.X)
    assert (own_store.path.read_bytes(), own_store.path.stat().st_mtime_ns) == before
    os.chmod(own_store.path, 0o444)
    assert FeatureStore(own_store.path)["penultimate"].shape == (12, 3072)


def test_a_layer_that_is_not_stored_is_refused(pixel_store, subtests):
    for number, use in enumerate(
        [
            lambda store: store["flaten"],
            lambda store: store.take([0], "flaten"),
            lambda store: next(store.blocks("flaten")),
            lambda store: store.row_bytes("flaten"),
        ]
    ):
        with subtests.test(str(number)):
            with pytest.raises(LayerError) as caught:
                use(pixel_store)
            assert_tells(caught.value, "'flaten'", "close: 'flatten:none'")


def test_rows_finds_each_key_where_it_is(pixel_store):
    rng = np.random.default_rng(0)
    for chosen in (np.arange(12), rng.permutation(12), rng.integers(0, 12, 50), np.array([], int)):
        for keys in (pixel_store.X[chosen], pixel_store.X[chosen, 0], pixel_store.X[chosen].astype(float)):
            assert np.array_equal(pixel_store.rows(keys), chosen)
    assert pixel_store.rows(pixel_store.X.tolist()).tolist() == list(range(12))


def test_unknown_keys_are_refused(pixel_store, subtests):
    for foreign in [0, 5, -1, 2**52, 2**62]:
        with subtests.test(ascii(foreign)):
            keys = pixel_store.X[[1, 2, 3]].copy()
            keys[1] = foreign
            with pytest.raises(KeysError) as caught:
                pixel_store.rows(keys)
            assert_tells(caught.value, "1 of 3 keys", pixel_store.path.name, str(foreign), "store.X")


def test_row_numbers_and_keys_that_are_a_little_off_are_refused(pixel_store, subtests):
    for number, of in enumerate([lambda X: np.arange(12), lambda X: X + 1, lambda X: X - 1, lambda X: X[:, 0] + 0.5]):
        with subtests.test(str(number)):
            with pytest.raises(KeysError) as caught:
                pixel_store.rows(of(pixel_store.X))
            assert_tells(caught.value, "12 of 12 keys")


def test_keys_are_a_copy(pixel_store):
    keys = pixel_store.X
    keys[:] = 0
    assert pixel_store.X.all() and pixel_store.rows(pixel_store.X).tolist() == list(range(12))


def test_a_pickle_is_tiny_and_reopens_the_file(pixel_store):
    content = pickle.dumps(pixel_store)
    assert len(content) < 1000
    again = pickle.loads(content)
    assert again.identity == pixel_store.identity and np.array_equal(again.X, pixel_store.X)
    assert np.array_equal(again["penultimate"], pixel_store["penultimate"])


def test_a_pickle_in_another_process_reads_the_same_rows(pixel_store):
    def total(store, row):
        return float(store["penultimate"][row].sum())

    there = joblib.Parallel(n_jobs=2)(joblib.delayed(total)(pixel_store, row) for row in (0, 11))
    assert there == [total(pixel_store, row) for row in (0, 11)]


def test_a_pickle_of_a_store_that_is_gone_is_refused(own_store):
    content = pickle.dumps(own_store)
    own_store.path.unlink()
    with pytest.raises(StoreError) as caught:
        pickle.loads(content)
    assert_tells(caught.value, "there is no store")


def test_copies_are_the_store_itself(pixel_store):
    assert copy.deepcopy(pixel_store) is pixel_store
    assert copy.deepcopy({"a": [pixel_store]})["a"][0] is pixel_store
    assert clone(StoredFeatures(pixel_store)).store is pixel_store


def test_align_puts_labels_in_the_order_of_the_store(own_store, tmp_path):
    before = own_store.path.read_bytes()
    truth = {name: f"label of {name}" for name in own_store.ids.tolist()}
    order = np.random.default_rng(0).permutation(12)
    lines = [f"{own_store.ids[i]},{truth[own_store.ids[i]]},{i}.5" for i in order]
    (tmp_path / "l.csv").write_text("\n".join(["path,label,size", "ant/unknown.png,x,0", *lines]) + "\n")
    expected = [truth[name] for name in own_store.ids]
    assert own_store.align(tmp_path / "l.csv").tolist() == expected
    assert own_store.align(truth | {"other": "x"}).tolist() == expected
    sizes = own_store.align(tmp_path / "l.csv", "size", target="numeric")
    assert sizes.dtype == np.float64 and sizes.tolist() == [i + 0.5 for i in range(12)]
    assert own_store.path.read_bytes() == before and own_store.y.tolist() != expected


@pytest.mark.parametrize("header, options", [("id,label", {}), ("name,label", {"id_column": "name"})])
def test_align_takes_ids_from_the_column_that_is_named(pixel_store, tmp_path, header, options):
    lines = [f"{name},{i}" for i, name in enumerate(pixel_store.ids)]
    (tmp_path / "l.csv").write_text("\n".join([header, *lines]) + "\n")
    assert pixel_store.align(tmp_path / "l.csv", **options).tolist() == [str(i) for i in range(12)]


def test_align_refuses_labels_that_do_not_fit(pixel_store, tmp_path):
    ids = pixel_store.ids.tolist()

    def said(lines, error, *words, header="path,label", **options):
        (tmp_path / "l.csv").write_text("\n".join([header, *lines]) + "\n")
        with pytest.raises(error) as caught:
            pixel_store.align(tmp_path / "l.csv", **options)
        assert_tells(caught.value, *words)

    full = [f"{name},x" for name in ids]
    said(full[:-2], StoreError, "2 of 12 images have no label", ids[-1], "l.csv")
    said([*full, f"{ids[0]},y"], StoreError, "one row", ids[0])
    said(full, SourceError, "no column 'kind'", "label_column", label_column="kind")
    said(full, SourceError, "no column 'name'", "id_column", id_column="name")
    said(full, SourceError, "no column 'id'", "id_column", header="file,label")
    said([f"{name}," for name in ids], SourceError, "no label")
    said(full, SourceError, "finite number", "'x'", target="numeric")
    with pytest.raises(StoreError) as caught:
        pixel_store.align({name.removesuffix(".png"): "x" for name in ids})
    assert_tells(caught.value, "12 of 12", "the mapping", "close: 'ant/ant_0'")
    with pytest.raises(SourceError) as caught:
        pixel_store.align(tmp_path / "none.csv")
    assert_tells(caught.value, "none.csv")


def test_a_file_that_is_not_a_store_is_refused(tmp_path, pixel_store):
    refused(tmp_path / "none.h5", "there is no store")
    shutil.copy(pixel_store.path, tmp_path / "photos.h5")
    refused(tmp_path / "photo.h5", "there is no store", "close: 'photos.h5'")
    refused(tmp_path, "cannot open")
    for content in (b"", b"text\n", b"\x89HDF\r\n\x1a\n", np.random.default_rng(0).bytes(5000)):
        (tmp_path / "bad.h5").write_bytes(content)
        refused(tmp_path / "bad.h5", "not a featx store", "bad.h5")


def test_another_programs_hdf5_file_is_refused(tmp_path, subtests):
    for mark in [None, "other", b"other", "featx-stor", 3, [1, 2], np.float64(1.5), ["a", "b"]]:
        with subtests.test(ascii(mark)):
            with h5py.File(tmp_path / "other.h5", "w") as file:
                file["x"] = [1, 2, 3]
                if mark is not None:
                    file.attrs["format"] = mark
            refused(tmp_path / "other.h5", "not a featx store")


def test_a_store_of_another_version_is_refused(own_store):
    content = own_store.path.read_bytes()
    own_store.path.write_bytes(content.replace(b"featx-store 3\n", b"featx-store 4\n", 1))
    refused(own_store.path, "version 4", "reads 1, 2 and 3", "update")


def test_a_truncated_store_is_refused(own_store, subtests):
    content = own_store.path.read_bytes()
    for part in [0.0, 0.001, 0.01, 0.2, 0.5, 0.9, 0.999]:
        with subtests.test(ascii(part)):
            own_store.path.write_bytes(content[: int(len(content) * part)])
            refused(own_store.path, "own.h5")


def test_opening_leaves_nothing_beside_the_file(own_store, tmp_path):
    FeatureStore(own_store.path)["penultimate"]
    assert left_in(tmp_path) == ["own.h5"]


def test_a_moved_store_opens(own_store, tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    moved = shutil.move(own_store.path, tmp_path / "sub" / "moved.h5")
    monkeypatch.chdir(tmp_path / "sub")
    store = FeatureStore("moved.h5")
    monkeypatch.chdir(tmp_path)
    assert os.path.samefile(store.path, moved) and store.path.is_absolute() and store["penultimate"].shape == (12, 3072)
    assert pickle.loads(pickle.dumps(store)).identity == store.identity


def test_numeric_and_unlabelled_stores(tmp_path):
    images = [noise(i) for i in range(4)]
    y = [0.5, -1, 1e300, 3]
    numeric = featx.extract(
        images, tmp_path / "n.h5", "bundled:pixels", labels=y, target="numeric", ids=list("abcd"), progress=False
    )
    assert numeric.y.dtype == np.float64 and numeric.y.tolist() == y and numeric.classes is None
    assert numeric.ids.tolist() == list("abcd")
    plain = featx.extract(images, tmp_path / "u.h5", "bundled:pixels", progress=False)
    assert plain.y is None and plain.classes is None and plain.ids.tolist() == list("0123")
    flat = class_folders(tmp_path / "photos", ("one",), n=3) / "one"
    assert featx.extract(flat, tmp_path / "f.h5", "bundled:pixels", progress=False).y is None


def test_the_identity_covers_the_whole_file(tmp_path):
    rows = {"a:avg": np.random.default_rng(0).random((100, 3), np.float32)}
    other = {"a:avg": rows["a:avg"].copy()}
    other["a:avg"][70, 1] += 1
    stores = [
        written(tmp_path / "a.h5", rows),
        written(tmp_path / "b.h5", other),
        written(tmp_path / "c.h5", rows, y=np.array(["x", "y"] * 50)),
        written(tmp_path / "d.h5", rows, threads=3),
        written(tmp_path / "e.h5", rows, ids=[f"{i}" for i in range(100)]),
    ]
    assert len({store.identity for store in stores}) == len(stores)
    assert all(len(store.identity) == 32 and set(store.identity) <= set("0123456789abcdef") for store in stores)
    assert FeatureStore(shutil.copy(stores[0].path, tmp_path / "f.h5")).identity == stores[0].identity
    assert written(tmp_path / "g.h5", rows).identity == stores[0].identity


def test_verify_accepts_an_undamaged_store(pixel_store, tmp_path):
    assert pixel_store.verify() is None
    store = written(tmp_path / "a.h5", {"a:avg": np.ones((1, 1), np.float32), "b:none": np.ones((1, 3, 2), np.float32)})
    assert store.verify() is None and not store.is_archive


def test_duplicates_and_contradictions(tmp_path):
    rows = {"a:avg": np.arange(9, dtype=np.float32)[:, None]}
    digests = np.random.default_rng(0).integers(0, 256, (9, 16), np.uint8)
    digests[[1, 7, 8]], digests[5] = digests[0], digests[2]
    digests[6, :15] = digests[3, :15]  # all but one byte
    digests[6, 15] = digests[3, 15] ^ 1
    y = np.array(["x", "x", "y", "z", "z", "z", "z", "x", "x"])
    store = written(tmp_path / "a.h5", rows, digests=digests, y=y)
    assert [group.tolist() for group in store.duplicates] == [[0, 1, 7, 8], [2, 5]]
    assert [group.tolist() for group in store.contradictions] == [[2, 5]]
    assert len(np.unique(store.X)) == 9
    numbers = written(tmp_path / "b.h5", rows, digests=digests, y=np.array([1.0, 1, 2, 3, 4, 2, 5, 1, 1.5]))
    assert [group.tolist() for group in numbers.contradictions] == [[0, 1, 7, 8]]
    unlabelled = written(tmp_path / "c.h5", rows, digests=digests)
    assert len(unlabelled.duplicates) == 2 and unlabelled.contradictions == ()
    assert written(tmp_path / "d.h5", rows).duplicates == ()


def test_nan_and_inf_are_listed_with_image_and_layer(tmp_path):
    rows = {"a:avg": np.zeros((200, 3), np.float32), "b:none": np.zeros((200, 2, 2), np.float32)}
    rows["a:avg"][70, 2] = np.inf
    rows["b:none"][3, 1, 0] = -np.inf
    rows["b:none"][70, 0, 0], rows["b:none"][70, 1, 1] = np.nan, np.inf
    store = written(tmp_path / "a.h5", rows)
    assert [tuple(mark) for mark in store.nonfinite] == [
        ("image 3", "b:none", "inf"),
        ("image 70", "a:avg", "inf"),
        ("image 70", "b:none", "nan"),
    ]
    assert store.nonfinite[0].id == "image 3" and store.nonfinite[0].layer == "b:none"
    assert np.array_equal(store["b"], rows["b:none"], equal_nan=True)


def test_overflow_in_float16_is_listed_and_large_sums_are_not(tmp_path):
    rows = {"a:avg": np.full((70, 3), 3e4, np.float32)}
    rows["a:avg"][65, 1] = 1e5
    store = written(tmp_path / "a.h5", rows, dtype="float16")
    assert [tuple(mark) for mark in store.nonfinite] == [("image 65", "a:avg", "inf")] and np.isinf(store["a"][65, 1])
    large = {"a:avg": np.full((70, 3), 3e38, np.float32)}
    assert written(tmp_path / "b.h5", large).nonfinite == ()
