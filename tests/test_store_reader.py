"""A store opened gives what is in its file, and only what is in that very file, to read and not to write."""

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

import featx
from featx.errors import KeysError, LayerError, SourceError, StoreError
from featx.learn import StoredFeatures
from featx.store import FeatureStore


@pytest.fixture
def own_store(pixel_store, tmp_path) -> FeatureStore:
    """A copy that a test may spoil."""
    return FeatureStore(shutil.copy(pixel_store.path, tmp_path / "own.h5"))


def refused(path, *words) -> None:
    with pytest.raises(StoreError) as caught:
        FeatureStore(path)
    assert_tells(caught.value, *words)


def test_what_a_store_says_of_itself_fits_together(pixel_store):
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


def test_a_layer_that_is_not_stored_is_refused(pixel_store):
    for use in (lambda: pixel_store["flaten"], lambda: pixel_store.take([0], "flaten")):
        with pytest.raises(LayerError) as caught:
            use()
        assert_tells(caught.value, "'flaten'", "close: 'flatten:none'")


@pytest.mark.parametrize("rows", [[3, 0, 3], np.array([11, -1]), np.arange(12) % 2 == 0, [], slice(2, 5)])
def test_take_is_numpys_indexing_into_memory(pixel_store, rows):
    rows = np.arange(12)[rows] if isinstance(rows, slice) else np.asarray(rows, None if len(rows) else int)
    taken = pixel_store.take(rows, "penultimate")
    assert type(taken) is np.ndarray and taken.flags.writeable and taken.base is None
    assert np.array_equal(taken, np.asarray(pixel_store["penultimate"])[rows])
    with pytest.raises(IndexError):
        pixel_store.take([12], "penultimate")


def test_rows_finds_each_key_where_it_is(pixel_store):
    rng = np.random.default_rng(0)
    for chosen in (np.arange(12), rng.permutation(12), rng.integers(0, 12, 50), np.array([], int)):
        for keys in (pixel_store.X[chosen], pixel_store.X[chosen, 0], pixel_store.X[chosen].astype(float)):
            assert np.array_equal(pixel_store.rows(keys), chosen)
    assert pixel_store.rows(pixel_store.X.tolist()).tolist() == list(range(12))


@pytest.mark.parametrize("foreign", [0, 5, -1, 2**52, 2**62])
def test_keys_of_no_image_here_are_refused(pixel_store, foreign):
    keys = pixel_store.X[[1, 2, 3]].copy()
    keys[1] = foreign
    with pytest.raises(KeysError) as caught:
        pixel_store.rows(keys)
    assert_tells(caught.value, "1 of 3 keys", pixel_store.path.name, str(foreign), "store.X")


def test_row_numbers_and_the_neighbours_of_keys_are_no_keys(pixel_store):
    for keys in (np.arange(12), pixel_store.X + 1, pixel_store.X - 1, pixel_store.X[:, 0] + 0.5):
        with pytest.raises(KeysError) as caught:
            pixel_store.rows(keys)
        assert_tells(caught.value, "12 of 12 keys")


def test_keys_given_out_are_a_copy(pixel_store):
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


def another(path, n=12) -> FeatureStore:
    """A store of the same shape with other images."""
    return featx.extract([noise(500 + i) for i in range(n)], path, "bundled:pixels", progress=False)


def test_a_pickle_of_a_store_that_was_replaced_or_is_gone_is_refused(own_store, tmp_path):
    content = pickle.dumps(own_store)
    os.replace(another(tmp_path / "other.h5").path, own_store.path)
    with pytest.raises(StoreError) as caught:
        pickle.loads(content)
    assert_tells(caught.value, "own.h5", "replaced", "open it again")
    own_store.path.unlink()
    with pytest.raises(StoreError) as caught:
        pickle.loads(content)
    assert_tells(caught.value, "there is no store")


def test_a_store_whose_file_was_replaced_never_gives_rows_of_the_other(own_store, tmp_path):
    mapped_before = FeatureStore(own_store.path)
    expected = np.array(mapped_before["penultimate"])
    os.replace(another(tmp_path / "other.h5").path, own_store.path)
    assert np.array_equal(mapped_before["penultimate"], expected)
    try:
        late = own_store["penultimate"]
    except StoreError as error:
        assert_tells(error, "replaced")
    else:
        assert np.array_equal(late, expected)


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


def test_align_refuses_what_does_not_fit(pixel_store, tmp_path):
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


def test_a_file_that_is_no_store_is_refused(tmp_path, pixel_store):
    refused(tmp_path / "none.h5", "there is no store")
    shutil.copy(pixel_store.path, tmp_path / "photos.h5")
    refused(tmp_path / "photo.h5", "there is no store", "close: 'photos.h5'")
    refused(tmp_path, "cannot open")
    for content in (b"", b"text\n", b"\x89HDF\r\n\x1a\n", os.urandom(5000)):
        (tmp_path / "bad.h5").write_bytes(content)
        refused(tmp_path / "bad.h5", "cannot open", "bad.h5")


@pytest.mark.parametrize("mark", [None, "other", b"other", "featx-stor", 3, [1, 2], np.float64(1.5), ["a", "b"]])
def test_another_programs_hdf5_file_is_refused(tmp_path, mark):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1, 2, 3]
        if mark is not None:
            file.attrs["format"] = mark
    refused(tmp_path / "other.h5", "not a featx store")


def test_a_store_of_another_version_is_refused(own_store):
    with h5py.File(own_store.path, "r+") as file:
        file.attrs["version"] = 2
    refused(own_store.path, "version 2", "reads 1", "update")


@pytest.mark.parametrize("part", [0.0, 0.001, 0.01, 0.2, 0.5, 0.9, 0.999])
def test_a_store_cut_short_is_refused(own_store, part):
    content = own_store.path.read_bytes()
    own_store.path.write_bytes(content[: int(len(content) * part)])
    refused(own_store.path, "own.h5")


def members() -> list[str]:
    images = [f"images/{name}" for name in ("key", "id", "digest")]
    failures = [f"failures/{name}" for name in ("id", "code", "reason")]
    labels = ["labels/classes", "labels/code"]
    return ["recipe", "layers", "layers/flatten:none", "images", "failures", "columns", *images, *failures, *labels]


@pytest.mark.parametrize("name", members())
def test_a_store_that_lacks_a_part_is_refused(own_store, name):
    with h5py.File(own_store.path, "r+") as file:
        del file[name]
    refused(own_store.path, "not a whole featx store", "extract it again")


@pytest.mark.parametrize("shape", [(11, 3072), (12, 3071), (12, 3072, 1)])
def test_a_layer_whose_shape_is_not_the_recipes_is_refused(own_store, shape):
    with h5py.File(own_store.path, "r+") as file:
        del file["layers/flatten:none"]
        file["layers"].create_dataset("flatten:none", data=np.zeros(shape, np.float32))
    refused(own_store.path, "flatten:none", "(12, 3072)", "extract it again")


def test_a_layer_that_cannot_be_mapped_is_refused(own_store):
    with h5py.File(own_store.path, "r+") as file:
        rows = file["layers/flatten:none"][()]
        del file["layers/flatten:none"]
        file["layers"].create_dataset("flatten:none", data=rows, chunks=(1, 3072), compression="gzip")
    refused(own_store.path, "contiguous", "extract it again")


def test_opening_leaves_nothing_beside_the_file(own_store, tmp_path):
    FeatureStore(own_store.path)["penultimate"]
    assert left_in(tmp_path) == ["own.h5"]


def test_a_store_that_moved_is_opened_where_it_is_now(own_store, tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    moved = shutil.move(own_store.path, tmp_path / "sub" / "moved.h5")
    monkeypatch.chdir(tmp_path / "sub")
    store = FeatureStore("moved.h5")
    monkeypatch.chdir(tmp_path)
    assert store.path == moved and store["penultimate"].shape == (12, 3072)
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
