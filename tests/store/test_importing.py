"""A store of arrays: every row as it was, whole or absent, and only what is no matrix of numbers is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import tracemalloc
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from forged import refused, tree_of, values_of, with_tree, with_values, written
from helpers import assert_tells, left_in, recipe, rows_of, write_store
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.errors import ContradictionWarning, NonFiniteWarning, RecipeError, SourceError, StoreError
from featx.image_statistics import IMAGE_STATISTICS
from featx.store import FeatureStore, Recipe, StoreWriter, export, importing, merge

N = 70  # a block of 64 rows and one of 6
Y = ["ant", "bee"] * (N // 2)


def numbers(n: int = N, d: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


@given(st.sampled_from("f2 f4 f8 >f4 >f8 i1 i4 i8 u1 u8 ?".split()), st.integers(1, 130), st.integers(1, 9),
       st.sampled_from(["C", "F", "reversed", "every second"]), st.sampled_from(["float32", "float16"]))  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_rows_are_those_of_the_arrays(tmp_path_factory, kind, n, d, order, dtype):
    X = (20 * np.abs(numbers(n, d))).astype(kind)
    orders = {"C": X, "F": np.asfortranarray(X), "reversed": X[::-1, ::-1], "every second": np.repeat(X, 2, 1)[:, ::2]}
    X = orders[order]
    path = tmp_path_factory.mktemp("a") / "a.h5"
    store = FeatureStore.from_arrays(path, {"a": X, "b/c": X[:, :1]}, dtype=dtype)
    store.verify()
    assert store.layers == ("a:none", "b/c:none") and store.ids.tolist() == [str(row) for row in range(n)]
    for layer, rows in (("a", X), ("b/c", X[:, :1])):
        np.testing.assert_array_equal(store[layer], rows.astype(dtype))
        assert store[layer].dtype == dtype


def test_labels_columns_and_ids_are_kept_and_the_bytes_are_a_function_of_them(tmp_path):
    columns = {"speaker": [i % 3 for i in range(N)], "note": pd.Series([None, "x"] * (N // 2))}
    made = {"ids": [f"s{i}" for i in range(N)], "y": Y, "columns": columns, "name": "mini/lm"}
    store = FeatureStore.from_arrays(tmp_path / "a.h5", {"mini": numbers()}, **made)
    assert store.ids[3] == "s3" and store.y.tolist() == Y and store.classes.tolist() == ["ant", "bee"]
    assert store.columns["speaker"][4] == "1" and store.columns["note"].tolist()[:2] == ["", "x"]
    FeatureStore.from_arrays(tmp_path / "b.h5", {"mini:none": numbers().astype("f4")}, **made)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    values = np.arange(N) / 4
    assert FeatureStore.from_arrays(tmp_path / "c.h5", {"a": numbers()}, y=values, target="numeric").y[3] == 0.75
    assert left_in(tmp_path) == ["a.h5", "b.h5", "c.h5"]


def test_everything_like_an_array_is_one(tmp_path):
    X = numbers().astype(np.float32)
    np.save(tmp_path / "x.npy", X)
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["x"] = X
        layers = {
            "list": X.tolist(),
            "frame": pd.DataFrame(X),
            "tensor": torch.from_numpy(X),
            "memmap": np.load(tmp_path / "x.npy", mmap_mode="r"),
            "dataset": file["x"],
        }
        store = FeatureStore.from_arrays(tmp_path / "a.h5", layers)
    for layer in layers:
        np.testing.assert_array_equal(store[layer], X, layer)


def test_arrays_on_disk_are_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "_PART_BYTES", 2**20)
    n, d = 20_000, 256  # 20 MB
    X = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (n, d))
    X[-1] = 1
    X.flush()
    tracemalloc.start()
    try:
        with pytest.warns(ContradictionWarning):
            FeatureStore.from_arrays(
                tmp_path / "a.h5", {"x": np.load(tmp_path / "x.npy", mmap_mode="r")}, y=["a", "b"] * (n // 2)
            )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16e6  # the texts, digests and keys of 20,000 rows
    assert FeatureStore(tmp_path / "a.h5")["x"][-1].tolist() == [1.0] * d


def test_the_digest_is_of_the_row_over_all_layers_and_equal_rows_are_copies(tmp_path):
    X, Z = numbers().astype(np.float32), numbers(d=2, seed=1).astype(np.float32)
    X[9], Z[9] = X[4], Z[4]
    X[11] = X[4]
    with pytest.warns(ContradictionWarning, match="'4' \\(ant\\) and '9' \\(bee\\)"):
        store = FeatureStore.from_arrays(tmp_path / "a.h5", {"x": X, "z": Z}, y=Y)
    assert [group.tolist() for group in store.duplicates] == [[4, 9]]
    expected = hashlib.blake2b(X[7].tobytes() + Z[7].tobytes(), digest_size=16).digest()
    assert store.digests[7].tobytes() == expected


def test_rows_that_are_not_finite_are_listed(tmp_path):
    X = numbers()
    X[3, 1], X[5, 0], X[6, 2] = np.nan, 1e300, 1e5
    with pytest.warns(NonFiniteWarning, match="2 rows contain NaN or inf.*'3' in 'x:none' \\(nan\\)"):
        store = FeatureStore.from_arrays(tmp_path / "a.h5", {"x": X})
    assert [tuple(entry) for entry in store.nonfinite] == [("3", "x:none", "nan"), ("5", "x:none", "inf")]
    with pytest.warns(NonFiniteWarning, match="3 rows.*float32 may hold what float16 cannot"):
        FeatureStore.from_arrays(tmp_path / "b.h5", {"x": X}, dtype="float16")


def test_the_largest_error_of_rounding_is_measured(tmp_path):
    X = numbers()
    X[0] = 0
    rounding = importing.import_arrays(tmp_path / "a.h5", {"x": X, "y": X.astype("f4"), "z": (X * 9).astype("i8")})
    exact = np.linalg.norm(X - X.astype("f4"), axis=1)[1:] / np.linalg.norm(X, axis=1)[1:]
    assert rounding == {"x": pytest.approx(exact.max(), rel=1e-6), "z": 0.0} and rounding["x"] < 2**-24
    assert importing.import_arrays(tmp_path / "b.h5", {"y": X.astype("f4")}, dtype="float16")["y"] < 2**-11


WRONG: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "an array alone": ({"layers": numbers()}, ("layers are named arrays", "ndarray")),
    "no layer": ({"layers": {}}, ("layers are named arrays",)),
    "objects": ({"layers": {"a": np.array([[{}]] * N)}}, ("layer 'a' has type object",)),
    "texts": ({"layers": {"a": [["x"]] * N}}, ("layer 'a' has type <U1",)),
    "complex numbers": ({"layers": {"a": numbers() * 1j}}, ("layer 'a' has type complex128", "floats, integers")),
    "dates": ({"layers": {"a": np.zeros((N, 2), "M8[s]")}}, ("layer 'a' has type datetime64",)),
    "records": ({"layers": {"a": np.zeros((N, 2), "f4,f4")}}, ("layer 'a' has type [",)),
    "one dimension": ({"layers": {"a": np.zeros(N)}}, (f"shape ({N},)", "(n, d)", "X[:, None]")),
    "three dimensions": ({"layers": {"a": np.zeros((N, 2, 3))}}, ("X.reshape(len(X), -1)",)),
    "a number": ({"layers": {"a": np.float64(3)}}, ("shape ()",)),
    "lists of different lengths": ({"layers": {"a": [[1], [1, 2]]}}, ("layer 'a' is no (n, d) array",)),
    "no rows": ({"layers": {"a": np.zeros((0, 3))}}, ("layer 'a' has 0 rows and 3 columns",)),
    "no columns": ({"layers": {"a": np.zeros((N, 0))}}, (f"has {N} rows and 0 columns",)),
    "a sparse matrix": ({"layers": {"a": scipy.sparse.eye_array(N, format="csr")}}, ("csr_array", "toarray()")),
    "a masked array": ({"layers": {"a": np.ma.masked_less(numbers(), 0)}}, ("MaskedArray", "filled")),
    "layers of different lengths": ({"layers": {"a": numbers(), "b": numbers(9)}}, (f"'a' has {N}", "'b' has 9")),
    "a layer twice": ({"layers": {"a": numbers(), "a:none": numbers()}}, ("'a' is there twice",)),
    "a layer without a name": ({"layers": {"": numbers()}}, ("a layer's name is one line", "got ''")),
    "a control character": ({"layers": {"a\x1b[2J": numbers()}}, ("name is one line of at most 1,000 characters",)),
    "fewer ids": ({"ids": ["a"]}, (f"{N} rows and 1 ids",)),
    "a text for ids": ({"ids": "a" * N}, ("ids are a list", "str")),
    "ids without a length": ({"ids": iter("a" * N)}, ("ids are a list",)),
    "an id twice": ({"ids": [str(i % 69) for i in range(N)]}, ("these have several: '0'",)),
    "an empty id": ({"ids": ["a", "", *map(str, range(N - 2))]}, ("every row needs an id; there is none in row 1",)),
    "an id that is missing": ({"ids": [*map(str, range(N - 1)), None]}, ("there is none in row 69",)),
    "an id that is not Unicode": ({"ids": ["\ud800", *map(str, range(N - 1))]}, ("not Unicode",)),
    "fewer labels": ({"y": ["a"]}, (f"{N} rows and 1 labels",)),
    "a label that is missing": ({"y": [None, *Y[1:]]}, ("image 0 has no label",)),
    "a label that pandas misses": ({"y": pd.Series([*Y[1:], pd.NA])}, ("image 69 has no label",)),
    "a label that is no number": ({"y": Y, "target": "numeric"}, ("needs a finite number",)),
    "a short column": ({"columns": {"c": [1]}}, (f"{N} rows and 1 values of column 'c'",)),
    "columns without names": ({"columns": [["a"] * N]}, ("columns are named lists", "got list")),
    "another type": ({"dtype": "float64"}, ("float32 or float16", "'float64'")),
    "an empty name": ({"name": ""}, ("name says what made the rows", "''")),
    "the name of none": ({"name": "unnamed"}, ("name says what made the rows",)),
    "a name of two lines": ({"name": "a\nb"}, ("name says what", "in one line of at most 200", r"'a\nb'")),
    "a folder that is not there": ({"path": "b/a.h5"}, ("there is no folder",)),
    "the name of an array": ({"path": "a.npy"}, ("a store is an HDF5 file", "a.h5")),
    "a number for the path": ({"path": 3}, ("path must be a path; got int",)),
}  # fmt: skip


def test_what_is_no_matrix_of_numbers_is_refused_by_name(tmp_path, subtests):
    for name, (changes, words) in WRONG.items():
        with subtests.test(name):
            arguments = {"layers": {"a": numbers()}, "path": "a.h5"} | changes
            path = arguments.pop("path")
            with pytest.raises((StoreError, SourceError)) as caught:
                FeatureStore.from_arrays(
                    tmp_path / path if isinstance(path, str) else path, arguments.pop("layers"), **arguments
                )
            assert_tells(caught.value, *words)
            assert left_in(tmp_path) == []


def test_an_existing_file_is_replaced_only_on_request_and_by_a_whole_one(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    path.write_text("something else")
    with pytest.raises(StoreError, match="there already.*replace=True"):
        FeatureStore.from_arrays(path, {"a": numbers()})
    with pytest.raises(StoreError, match="rows and 1 ids"):
        FeatureStore.from_arrays(path, {"a": numbers()}, ids=["a"], replace=True)
    monkeypatch.setattr(importing, "_PART_BYTES", 1)  # a part has one block
    with pytest.raises(RuntimeError, match="the disk is gone"):
        FeatureStore.from_arrays(path, {"a": Failing(numbers())}, replace=True)
    assert path.read_text() == "something else" and left_in(tmp_path) == ["a.h5"]
    assert len(FeatureStore.from_arrays(path, {"a": numbers()}, replace=True)) == N


class Failing:
    """An array whose second part cannot be read the second time."""

    def __init__(self, values: np.ndarray) -> None:
        self._values, self.shape, self.dtype, self._times = values, values.shape, values.dtype, 0

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, rows: slice) -> np.ndarray:
        self._times += bool(rows.start)
        if self._times == 2:
            raise RuntimeError("the disk is gone")
        return self._values[rows]


def test_an_unfinished_import_gives_way_and_an_unfinished_extraction_does_not(tmp_path):
    X, path = numbers(), tmp_path / "a.h5"
    store = FeatureStore.from_arrays(tmp_path / "b.h5", {"a": X}, name="x")
    left = StoreWriter(path, store.recipe, ["1"])
    with left:
        left.write(np.arange(1), {"a:none": X[:1]}, store.digests[:1])
    assert left_in(tmp_path) == ["a.h5.journal", "a.h5.partial", "b.h5"]
    assert len(FeatureStore.from_arrays(path, {"a": X})) == N and left_in(tmp_path) == ["a.h5", "b.h5"]
    taps = {"layer1:avg": [3]}
    with StoreWriter(path, recipe(taps), ["1"]) as extraction:
        extraction.write(np.arange(1), rows_of([0], taps), store.digests[:1])
    before = left_in(tmp_path)
    with pytest.raises(StoreError, match="an extraction for .*a.h5 is unfinished"):
        FeatureStore.from_arrays(path, {"a": X}, replace=True)
    assert left_in(tmp_path) == before


def test_stores_of_one_name_go_together_and_others_do_not(tmp_path):
    X, Z = numbers(), numbers(seed=1)
    ids = [f"z{i}" for i in range(N)]

    def made(file: str, rows: np.ndarray, ids: list[str] | None = None, **options: Any) -> FeatureStore:
        return FeatureStore.from_arrays(tmp_path / file, {"a": rows}, ids=ids, **options)

    first, second = made("1.h5", X, name="lm"), made("2.h5", Z, ids, name="lm")
    assert not first.recipe.differences(second.recipe)
    merged = merge([first, second], tmp_path / "m.h5")
    np.testing.assert_array_equal(merged["a"], np.concatenate([X, Z]).astype("f4"))
    assert (tmp_path / "m.h5").read_bytes().startswith(b"featx-store 3\n") and merged.recipe.is_imported
    alone, other = made("3.h5", X), made("4.h5", Z, ids)
    for one, two in ((first, other), (alone, other), (first, made("5.h5", Z, ids, name="another"))):
        with pytest.raises(RecipeError) as caught:
            merge([one, two], tmp_path / "n.h5")
        assert_tells(caught.value, "weights_sha256", "imported with the same name")
        assert "like" not in str(caught.value)
    assert alone.recipe.weights_sha256 == made("6.h5", X).recipe.weights_sha256  # of the same rows
    half = made("7.h5", Z, ids, name="lm", dtype="float16")
    assert not first.recipe.other_meaning(half.recipe) and first.recipe.differences(half.recipe)
    with pytest.raises(RecipeError, match="dtype: 'float32' in 1.h5, 'float16' in 7.h5"):
        merge([first, half], tmp_path / "n.h5")


def test_it_is_archived_and_exported_and_read_by_the_hdf5_library(tmp_path):
    X = numbers().astype("f4")
    store = FeatureStore.from_arrays(tmp_path / "a.h5", {"a": X}, y=Y)
    with h5py.File(store.path) as file:
        assert file.attrs["version"] == 3
        np.testing.assert_array_equal(file["layers/a:none"][:], X)
    archive = export(store, tmp_path / "b.h5")
    assert archive.read_bytes().startswith(b"featx-store 3\n")
    np.testing.assert_array_equal(FeatureStore(archive)["a"], X)
    assert export(archive, tmp_path / "c.h5", compression="none").read_bytes() == store.path.read_bytes()
    np.testing.assert_array_equal(np.load(export(store, tmp_path / "a.npy")), X)


def test_the_version_is_3_and_that_of_no_store_without_new_parts(tmp_path):
    imported = FeatureStore.from_arrays(tmp_path / "a.h5", {"a": numbers()}).path.read_bytes()
    extracted = write_store(tmp_path / "b.h5").path.read_bytes()
    for content, versions in ((imported, (1, 2)), (extracted, (2, 3))):
        for version in versions:
            forged = with_tree(content, tree_of(content), version=version)
            refused(written(tmp_path / "c.h5", forged), "its parts are those of another format version")


def test_the_recipe_says_what_is_known_and_nothing_else(tmp_path):
    store = FeatureStore.from_arrays(tmp_path / "a.h5", {"a": numbers()}, name="lm")
    made = store.recipe
    fields = ["backbone", "weights_sha256", "taps", "aliases", "dtype", "versions", "collection"]
    assert [*json.loads(made.to_json())] == fields and made.backbone == "imported:lm"
    assert Recipe.from_json(made.to_json()) == made == pickle.loads(pickle.dumps(made)) == copy.deepcopy(made)
    assert made.weights_sha256 == hashlib.sha256(b"imported:lm").hexdigest()


def test_statistics_of_images_are_refused(tmp_path):
    content = FeatureStore.from_arrays(tmp_path / "a.h5", {"a": numbers()}).path.read_bytes()
    statistics = {name: np.zeros(N, IMAGE_STATISTICS[name]) for name in IMAGE_STATISTICS.names if name != "camera"}
    metadata: dict[str, Any] = {}
    for name, values in values_of(content).items():
        metadata[name] = values
        if name == "images":
            metadata["statistics"] = statistics | {"camera": np.zeros(N, "S1")}
    refused(written(tmp_path / "b.h5", with_values(content, metadata)), "statistics of images are not those of a store")


FORGED = {
    "a batch": {"batch_size": 4},
    "weights": {"weights": "DEFAULT"},
    "a weights file": {"weights": "/evil.pth", "weights_file_sha256": "0" * 64},
    "preprocessing": {"preprocessing": {"crop": [32, 32], "resize": 32}},
    "a truth for a number": {"threads": False},
    "a folder": {"origin": "/etc"},
    "views": {"views": ["center"]},
    "no name": {"backbone": "imported:"},
    "a name of two lines": {"backbone": "imported:a\nb"},
    "a pool": {"taps": {"a:avg": {"node": "a", "pool": "avg", "layout": "bd", "shape": [5]}}},
    "maps": {"taps": {"a:none": {"node": "a", "pool": "none", "layout": "bchw", "shape": [5, 1, 1]}}},
    "a network": {"backbone": "torchvision:resnet18"},
}  # fmt: skip


def test_another_recipe_is_refused(tmp_path, subtests):
    content = FeatureStore.from_arrays(tmp_path / "a.h5", {"a": numbers()}).path.read_bytes()
    values = json.loads(values_of(content)["recipe"][0])
    for name, changes in FORGED.items():
        with subtests.test(name):
            text = json.dumps(values | changes, ensure_ascii=False)
            with pytest.raises(StoreError):
                Recipe.from_json(text)
            metadata = values_of(content) | {"recipe": np.array([text.encode()])}
            forged = with_values(content, metadata, is_imported=name != "a network")
            refused(written(tmp_path / "b.h5", forged), "not a whole")
    assert with_values(content, values_of(content), is_imported=True) == content
    for name in values:
        with pytest.raises(StoreError, match="damaged"):
            Recipe.from_json(json.dumps({key: value for key, value in values.items() if key != name}))
