"""Long texts take space for their own length only, on the disk and in memory; short ones are padded as before."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from forged import changed_values, good_store, no_text_is_padded, refused, tree_of, values_of, with_tree, written
from helpers import digests_of, left_in, recipe, rows_of

from featx.errors import ImageError, SourceError, StoreError
from featx.images import collect
from featx.manifest import is_padded, text_array
from featx.store import FeatureStore, StoreWriter, export, merge

TAPS = {"l:avg": [2]}
LONG = "a long note: žluťoučký " * 5_000  # 115,000 characters, 135,000 bytes


def write(path: Path, ids: list[str], y=None, columns=None, bad: tuple[int, ...] = ()) -> FeatureStore:
    with StoreWriter(path, recipe(TAPS), ids, y, columns) as writer:
        good = np.setdiff1d(np.arange(len(ids)), bad)
        writer.write(good, rows_of(good, TAPS), digests_of(good))
        writer.fail({i: ImageError("damaged", "cut off " * 100) for i in bad})
        writer.finish()
    return FeatureStore(path)


def plain_texts(file: h5py.File, name: str) -> list[str]:
    """As FORMAT.md says."""
    if f"{name}@offsets" not in file:
        return [text.decode() for text in file[name]]
    content, offsets = file[name][:].tobytes(), file[f"{name}@offsets"][:].tolist()
    return [content[start:stop].decode() for start, stop in zip(offsets, offsets[1:], strict=False)]


def test_one_long_cell_of_a_manifest_takes_only_its_own_space(tmp_path):
    n = 5_000
    notes = [LONG if i == n // 2 else f"note {i}" for i in range(n)]
    rows = [f"{i}.jpg,{'ab'[i % 2]},{note},{i % 7}" for i, note in enumerate(notes)]
    (tmp_path / "0.jpg").touch()
    (tmp_path / "images.csv").write_text("\n".join(["path,label,notes,site", *rows]), encoding="utf-8")
    tracemalloc.start()
    try:
        images = collect(tmp_path / "images.csv")
        with StoreWriter(tmp_path / "a.h5", recipe(TAPS), images.ids, images.y, images.columns) as writer:
            writer.write(np.arange(n), {"l:avg": np.zeros((n, 2), "f4")}, np.zeros((n, 16), np.uint8))
            writer.finish()
        store = FeatureStore(tmp_path / "a.h5")
        assert store.columns["notes"].tolist() == notes and store.columns["site"].tolist()[:3] == ["0", "1", "2"]
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert (tmp_path / "a.h5").stat().st_size < 1e6
    assert (tmp_path / "a.h5").read_bytes().startswith(b"featx-store 2\n")
    assert store.columns["notes"].dtype == object and store.columns["site"].dtype.kind == "U"
    with h5py.File(tmp_path / "a.h5") as file:
        assert plain_texts(file, "columns/notes") == notes and file.attrs["version"] == 2
        assert plain_texts(file, "images/id") == images.ids


def test_a_cell_over_the_limit_of_csv_is_refused_in_one_line(tmp_path):
    (tmp_path / "images.csv").write_text(f"path,notes\na.jpg,{'x' * 200_000}\n")
    with pytest.raises(SourceError, match="a cell has at most 131,072 characters"):
        collect(tmp_path / "images.csv")


def test_the_form_follows_from_number_and_length(subtests):
    for n, longest in [(1, 10**9), (10**9, 256), (2**12, 257), (4096, 256), (4081, 257), (0, 0)]:
        with subtests.test(ascii((n, longest))):
            assert is_padded(n, longest) == (longest <= 256 or n * longest <= 2**20)


@pytest.mark.parametrize("length", [255, 256, 257])
def test_short_texts_are_padded_and_long_ones_are_not(tmp_path, length):
    ids = [f"{i}" for i in range(4081)]
    store = write(tmp_path / "a.h5", ids, columns={"x": np.array(["ü" * (length // 2) + "x" * (length % 2), *ids[1:]])})
    padded = length < 257
    assert (tmp_path / "a.h5").read_bytes().startswith(b"featx-store 1\n" if padded else b"featx-store 2\n")
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["columns/x"].dtype == np.dtype(f"S{length}" if padded else np.uint8)
        assert plain_texts(file, "columns/x") == store.columns["x"].tolist()


@pytest.fixture
def all_long() -> Any:
    with no_text_is_padded():
        yield


IDS = [f"ä {i}" for i in range(200)]


def parts(start: int = 0, stop: int = 200) -> dict[str, Any]:
    ids = IDS[start:stop]
    columns = {"": np.array(ids), "@offsets": np.array(["", LONG[:50]] * 100)[start:stop], "b@offsets": np.array(ids)}
    return {"ids": ids, "y": np.array(["bee", "ant", "čmelák", "ant"] * 50)[start:stop], "columns": columns}


def test_every_text_may_be_long(tmp_path, all_long):
    store = write(tmp_path / "a.h5", **parts(), bad=(5, 150))
    good = np.setdiff1d(np.arange(200), (5, 150))
    assert store.ids.tolist() == [IDS[i] for i in good] and store.classes.tolist() == ["ant", "bee", "čmelák"]
    assert store.y.tolist() == parts()["y"][good].tolist() and store.y.dtype == object
    assert {name: store.columns[name].tolist() for name in store.columns} == {
        name: values[good].tolist() for name, values in parts()["columns"].items()
    }
    assert [failure.id for failure in store.failures] == ["ä 5", "ä 150"]
    assert store.failures[0].reason == "cut off " * 100
    store.verify()
    again = pickle.loads(pickle.dumps(store))
    assert again.ids.tolist() == store.ids.tolist() and np.array_equal(again.y, store.y)
    with h5py.File(tmp_path / "a.h5") as file:
        for name, values in {
            "images/id": store.ids,
            "labels/classes": store.classes,
            "columns/%40offsets": store.columns["@offsets"],
            "columns/%": store.columns[""],
            "failures/reason": np.array([failure.reason for failure in store.failures]),
        }.items():
            assert plain_texts(file, name) == values.tolist()


def test_archives_merges_and_one_run_give_the_same_bytes(tmp_path, all_long):
    whole = write(tmp_path / "whole.h5", **parts())
    halves = [write(tmp_path / f"{k}.h5", **parts(100 * k, 100 * k + 100)) for k in range(2)]
    for half, start in zip(halves, (0, 100), strict=True):  # rows and digests are those of the image in the whole
        assert half.ids.tolist() == IDS[start : start + 100]
    merge(halves[:1] + [write(tmp_path / "2.h5", **parts(100, 200))], tmp_path / "merged.h5")
    merged = FeatureStore(tmp_path / "merged.h5")
    assert merged.ids.tolist() == IDS and merged.recipe.collection == whole.recipe.collection
    assert merged.columns["@offsets"].tolist() == whole.columns["@offsets"].tolist()
    export(whole, tmp_path / "archive.h5")
    assert FeatureStore(tmp_path / "archive.h5").columns[""].tolist() == IDS
    export(tmp_path / "archive.h5", tmp_path / "back.h5", compression="none")
    assert (tmp_path / "back.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_short_and_long_stores_merge_and_nothing_grows_with_the_longest(tmp_path):
    n = 5_000
    short = write(tmp_path / "s.h5", [f"{i}" for i in range(n)], columns={"x": np.array(["a"] * n)})
    long = write(tmp_path / "l.h5", ["x", "y"], columns={"x": np.array([LONG, "b"])})
    assert short.columns["x"].dtype.kind == long.columns["x"].dtype.kind == "U"
    tracemalloc.start()
    try:
        merged = merge([short, long], tmp_path / "m.h5")
        assert merged.columns["x"].tolist() == ["a"] * n + [LONG, "b"]
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()
    assert merge([short, long], tmp_path / "m.h5").identity == merged.identity


def test_padded_and_object_text_arrays_behave_alike():
    short, long = text_array(["b", "a", "b"]), np.array(["b", "a", "b"], object)
    for array in (short, long):
        assert array.tolist() == ["b", "a", "b"] and (array == "b").tolist() == [True, False, True]
        assert [values.tolist() for values in np.unique(array, return_inverse=True)] == [["a", "b"], [1, 0, 1]]
    assert np.array_equal(short, long) and text_array([]).shape == (0,)
    assert text_array([LONG] + ["x"] * 20).dtype == object and text_array([LONG]).dtype.kind == "U"


# --- forged: behind a right identity and seal

GOOD = good_store(padded=False)
ID, OFFSETS = "id", "id@offsets"


def _offsets(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict], None]:
    def changed(values: dict[str, Any]) -> None:
        values["images"][OFFSETS] = change(values["images"][OFFSETS].copy())

    return changed


def _set(at: int, value: int) -> Callable[[np.ndarray], np.ndarray]:
    def changed(offsets: np.ndarray) -> np.ndarray:
        offsets[at] = value
        return offsets

    return changed


def _in_order(group: str, *names: str) -> Callable[[dict], None]:
    def changed(values: dict[str, Any]) -> None:
        values[group] = {name: values[group][name] for name in names}

    return changed


def _replaced(group: str, name: str, array: np.ndarray) -> Callable[[dict], None]:
    return lambda values: values[group].__setitem__(name, array)


N = len(values_of(GOOD)["images"]["key"])
FORGED: dict[str, Callable[[dict[str, Any]], None]] = {
    "do not begin with 0": _offsets(_set(0, 1)),
    "decrease": _offsets(_set(5, 2)),
    "do not end where the bytes end": _offsets(_set(-1, 2**20)),
    "end before the bytes do": _offsets(_set(-1, 3)),
    "are huge": _offsets(_set(7, 2**64 - 1)),
    "are signed": _offsets(lambda offsets: offsets.astype("<i8")),
    "are short": _offsets(lambda offsets: offsets.astype("<u4")),
    "are one too few": _offsets(lambda offsets: np.delete(offsets, 3)),
    "are one too many": _offsets(lambda offsets: np.insert(offsets, 3, offsets[3])),
    "are none": _offsets(lambda offsets: offsets[:0]),
    "are a table": _offsets(lambda offsets: offsets[:, None]),
    "cut a character": _offsets(_set(1, 1)),  # every id begins with two bytes
    "come before the bytes": _in_order("images", "key", OFFSETS, ID, "digest"),
    "stand elsewhere": _in_order("images", "key", ID, "digest", OFFSETS),
    "are those of nothing": _in_order("images", "key", OFFSETS, "digest"),
    "are not there": _in_order("images", "key", ID, "digest"),
    "are those of keys": lambda values: values["images"].update(
        {"key": values["images"]["key"].view("<u1"), "key@offsets": np.arange(N + 1, dtype="<u8") * 8}
    ),
    "are those of offsets": lambda values: values["columns"].update({"a@offsets@offsets": np.zeros(1, "<u8")}),
    "are those of padded texts": _replaced("images", ID, np.array([b"x"] * N)),
    "are of bytes of another type": _replaced("failures", "id", np.zeros(3, "<i8")),
    "bytes are no text": _replaced("columns", "site%2F1", np.full(2 * N, 255, np.uint8)),
    "there are no bytes": _replaced("columns", "site%2F1", np.zeros(0, np.uint8)),
    "the ids are alike": lambda values: values["images"].update(
        {ID: np.full(N, 65, np.uint8), OFFSETS: np.arange(N + 1, dtype="<u8")}
    ),
    "the classes are not sorted": lambda values: values["labels"].update(
        {"classes": np.frombuffer(b"cba", np.uint8), "classes@offsets": np.arange(4, dtype="<u8")}
    ),
}


def test_wrong_offsets_are_refused(tmp_path, subtests):
    for name in FORGED:
        with subtests.test(name):
            refused(written(tmp_path / "a.h5", changed_values(GOOD, FORGED[name])), "not a whole featx store")


def test_the_version_is_that_of_the_texts(tmp_path):
    for content, version in ((GOOD, 1), (good_store(), 2)):
        forged = with_tree(content, tree_of(content), version=version)
        refused(written(tmp_path / "a.h5", forged), "its parts are those of another format version")


def test_an_unchanged_file_opens(tmp_path):
    store = FeatureStore(written(tmp_path / "a.h5", changed_values(GOOD, lambda values: None)))
    assert store.ids.tolist()[:2] == ["ä 0", "ä 1"] and left_in(tmp_path) == ["a.h5"]
    with pytest.raises(StoreError, match="null character"):
        write(tmp_path / "b.h5", ["a"], columns={"x": np.array([LONG + "\0b"], object)})
