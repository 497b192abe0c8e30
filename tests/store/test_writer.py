"""Rows are read as written, in whatever order they arrived, and the file follows FORMAT.md."""

from __future__ import annotations

import os

import h5py
import numpy as np
import pytest
from helpers import TAPS, assert_tells, digests_of, left_in, recipe, rows_of, write_store

from featx.errors import ImageError, StoreError
from featx.store import FeatureStore, StoreWriter, collection_digest, compaction, layout, writer


def holds(store: FeatureStore, indices, dtype="float32") -> bool:
    store.verify()
    expected = rows_of(indices, dtype=dtype)
    return all(np.array_equal(store[name], expected[name]) for name in TAPS)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_come_back_as_they_were_written(tmp_path, dtype):
    store = write_store(tmp_path / "a.h5", dtype=dtype)
    assert holds(store, range(10), dtype=dtype)
    assert all(store[name].dtype == dtype for name in TAPS)
    assert np.array_equal(store.digests, digests_of(range(10)))
    assert left_in(tmp_path) == ["a.h5"]


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32])
def test_rows_of_any_number_type_are_stored_in_the_recipes_dtype(tmp_path, dtype):
    given = np.arange(12).reshape(4, 3).astype(dtype)
    with StoreWriter(tmp_path / "a.h5", recipe({"l:avg": [3]}), list("abcd")) as target:
        target.write(np.arange(4), {"l:avg": given[:, ::-1]}, digests_of(range(4)))  # not contiguous either
        target.finish()
    store = FeatureStore(tmp_path / "a.h5")
    assert store["l"].dtype == np.float32 and np.array_equal(store["l"], given[:, ::-1])


@pytest.mark.parametrize(
    "n, sync_bytes, block_bytes, order",
    [
        (10, 0, 2**20, "backwards"),
        (10, 2**30, 2**20, "one by one"),
        (200, 100_000, 2**14, "one by one"),
        (200, 0, 2**20, "even and odd"),
        (200, 2**30, 2**20, "random"),
        (200, 100_000, 2**14, "random"),
    ],
)
def test_the_order_of_writing_does_not_change_a_byte(tmp_path, monkeypatch, n, sync_bytes, block_bytes, order):
    """One block of checksums or several; synced after each write, never, or now and then; four orders."""
    monkeypatch.setattr(layout, "_BLOCK_BYTES", block_bytes)
    images = np.random.default_rng(n).permutation(n)
    blocks = {
        "backwards": [range(n // 2, n), range(n // 2)],
        "one by one": [[i] for i in range(n - 1, -1, -1)],
        "even and odd": [range(0, n, 2), range(1, n, 2)],
        "random": [sorted(images[start : start + 7].tolist()) for start in range(0, n, 7)],
    }[order]
    write_store(tmp_path / "straight.h5", n)
    monkeypatch.setattr(writer, "_SYNC_BYTES", sync_bytes)
    write_store(tmp_path / "mixed.h5", n, blocks)
    assert (tmp_path / "straight.h5").read_bytes() == (tmp_path / "mixed.h5").read_bytes()


def test_the_same_run_gives_the_same_bytes_at_another_time(tmp_path, monkeypatch):
    write_store(tmp_path / "a.h5", bad=[2], columns={"split": np.array(["a"] * 10)}, y=np.array(["x", "y"] * 5))
    monkeypatch.setattr("time.time", lambda: 2e9)
    write_store(tmp_path / "b.h5", bad=[2], columns={"split": np.array(["a"] * 10)}, y=np.array(["x", "y"] * 5))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@pytest.mark.parametrize(
    "bad, move_bytes", [([0], 1), ([9], 2**24), ([4, 5], 20_000), ([1, 3, 5, 7], 1), ([*range(9)], 20_000)], ids=str
)
def test_an_image_that_failed_has_no_row_and_an_entry(tmp_path, monkeypatch, bad, move_bytes):
    """The first, the last, neighbours, every second and all but one; rows moved one, a few or all at a time."""
    monkeypatch.setattr(compaction, "_MOVE_BYTES", move_bytes)
    y = np.array([f"class {i % 3}" for i in range(10)])
    columns = {"number": np.array([str(i) for i in range(10)])}
    store = write_store(tmp_path / "a.h5", blocks=[range(4), range(4, 10)], bad=bad, y=y, columns=columns)
    kept = [i for i in range(10) if i not in bad]
    assert holds(store, kept)
    assert store.ids.tolist() == [f"image {i}" for i in kept]
    assert store.y.tolist() == y[kept].tolist() and store.classes.tolist() == sorted(set(y[kept]))
    assert store.columns["number"].tolist() == [str(i) for i in kept]
    assert np.array_equal(store.digests, digests_of(kept))
    assert store.failures == tuple((f"image {i}", "damaged", f"image {i} is bad") for i in bad)
    assert left_in(tmp_path) == ["a.h5"]


def datasets(path) -> dict[str, bytes]:
    """{name: (offset, type, shape, bytes)} of every dataset, read with HDF5."""
    found: dict[str, bytes] = {}

    def see(name, item):
        if isinstance(item, h5py.Dataset):
            place = item.id.get_offset() if name.startswith("layers/") else None
            found[name] = repr((place, item.dtype, item.shape)).encode() + np.asarray(item[()]).tobytes()

    with h5py.File(path) as file:
        file.visititems(see)
    return found


@pytest.mark.parametrize("n, dtype", [(10, "float16"), (200, "float32")])
def test_a_run_with_failures_equals_one_without_those_images_except_for_the_ledger(tmp_path, monkeypatch, n, dtype):
    monkeypatch.setattr(compaction, "_MOVE_BYTES", 50_000)
    bad = [i for i in range(n) if i % 7 == 3 or 64 < i < 80]
    good = [i for i in range(n) if i not in bad]
    write_store(tmp_path / "a.h5", n, bad=bad, dtype=dtype)
    with StoreWriter(tmp_path / "b.h5", recipe(TAPS, dtype=dtype), [f"image {i}" for i in good]) as target:
        target.write(np.arange(len(good)), rows_of(good, dtype=dtype), digests_of(good))
        target.finish()
    one, other = datasets(tmp_path / "a.h5"), datasets(tmp_path / "b.h5")
    ledger = {"failures/id", "failures/code", "failures/reason", "recipe"}  # the recipe has the run's collection
    assert {name: one[name] for name in one if name not in ledger} == {
        name: other[name] for name in other if name not in ledger
    }
    contents = (tmp_path / "a.h5").read_bytes(), (tmp_path / "b.h5").read_bytes()
    end = layout.Seal.from_bytes(contents[0][:4096]).metadata
    assert contents[0][4096 + 48 : end] == contents[1][4096 + 48 : end]  # gaps too


@pytest.mark.parametrize("n, bad", [(1, []), (10, [3]), (130, [])])
def test_plain_h5py_reads_everything_contiguous_aligned_and_of_fixed_size(tmp_path, n, bad):
    columns = {"a/b": np.array(["ü" * (i % 4) for i in range(n)]), ".": np.array(["dot"] * n)}
    write_store(tmp_path / "a.h5", n=n, bad=bad, y=np.array(["x"] * n), columns=columns)
    kept = [i for i in range(n) if i not in bad]
    seen, times = [], set()

    def check(name, item):
        assert not item.attrs
        times.add(h5py.h5g.get_objinfo(item.id).mtime)
        if isinstance(item, h5py.Dataset):
            seen.append(name)
            string = h5py.check_string_dtype(item.dtype)
            assert item.dtype.kind in "fiu" or string is not None and string.length is not None
            assert item.id.get_type().get_class() in (h5py.h5t.FLOAT, h5py.h5t.INTEGER, h5py.h5t.STRING)
            assert not item.id.get_type().detect_class(h5py.h5t.VLEN)
            assert item.chunks is None and item.compression is None

    with h5py.File(tmp_path / "a.h5") as file:
        file.visititems(check)
        assert dict(file.attrs)["format"] == b"featx-store" and file.attrs["version"] == 1
        expected = rows_of(kept)
        for name in TAPS:
            dataset = file["layers"][name]
            assert np.array_equal(dataset[()], expected[name]) and dataset.dtype == np.dtype("<f4")
            assert dataset.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS
            assert dataset.id.get_offset() % 4096 == 0, name
            rows = layout.block_rows(dataset[0].nbytes)
            blocks = [dataset[start : start + rows] for start in range(0, len(kept), rows)]
            assert file["checksums"][name][()].tolist() == [layout.checksum(block.tobytes()) for block in blocks]
        assert [name.decode() for name in file["images/id"]] == [f"image {i}" for i in kept]
        assert sorted(file["columns"]) == ["%2E", "a%2Fb"]
    assert {"recipe", "images/key", "images/id", "images/digest", "labels/code", "failures/id"} <= set(seen)
    assert times == {0}


def test_columns_of_any_name_come_back(tmp_path):
    values = np.array(["", " two ", "dr\nei"])
    names = ["a b", "a/b", ".", "..", "%2F", "Größe", "x" * 300, "a:b", "", "path.to", "\\", "日本"]
    columns = {name: np.roll(values, i) for i, name in enumerate(names)}
    store = write_store(tmp_path / "a.h5", n=3, columns=columns)
    assert {name: column.tolist() for name, column in store.columns.items()} == {
        name: column.tolist() for name, column in columns.items()
    }


@pytest.mark.parametrize("y", [np.array([0.5, -1e300, 3.0]), np.array(["Größe", "a", "a"]), None])
def test_labels_of_each_kind_come_back(tmp_path, y):
    store = write_store(tmp_path / "a.h5", n=3, y=y)
    if y is None:
        assert store.y is None and store.classes is None
    else:
        assert store.y.dtype.kind == y.dtype.kind and store.y.tolist() == y.tolist()
        assert (store.classes is None) == (y.dtype.kind == "f")


def test_the_recipe_in_the_file_has_the_digest_of_the_collection(tmp_path):
    ids, y, columns = list("abc"), np.array(["x", "y", "x"]), {"site": np.array(["1", "2", "3"])}
    digest = collection_digest(ids, y, columns)
    with StoreWriter(tmp_path / "a.h5", recipe(TAPS), ids, y, columns) as target:
        assert target.recipe == recipe(TAPS, collection=digest)
        target.write(np.arange(3), rows_of(range(3)), digests_of(range(3)))
        target.finish()
    assert FeatureStore(tmp_path / "a.h5").recipe == recipe(TAPS, collection=digest)


def test_rows_written_twice_or_not_at_all_raise(tmp_path):
    def written(*calls):
        with pytest.raises(AssertionError), StoreWriter(tmp_path / "a.h5", recipe(TAPS), list("abcd")) as target:
            for call in calls:
                call(target)

    def write(*images):
        return lambda target: target.write(np.array(images), rows_of(images), digests_of(images))

    written(write(0, 1), write(1, 2))
    written(write(0, 1), lambda target: target.fail({2: ImageError("damaged", "")}), StoreWriter.finish)
    written(lambda target: target.fail({2: ImageError("damaged", "")}), write(1, 2))
    some = {"fc:flatten": rows_of([0])["fc:flatten"]}
    written(lambda target: target.write(np.array([0]), some, digests_of([0])))
    for names in (["layer1:avg"], [*TAPS], [*TAPS, "layer1:avg"]):  # of which one is lacking, or there twice
        written(lambda target, names=names: target.write(np.array([0]), some, digests_of([0]), in_file=names))
    every = {"in_file": [*TAPS]}
    written(write(0, 1), lambda target: target.write(np.array([1]), {}, digests_of([1]), **every))
    assert left_in(tmp_path) == []


def test_a_run_without_any_row_makes_no_store(tmp_path):
    with pytest.raises(StoreError) as caught:
        write_store(tmp_path / "a.h5", n=100, bad=range(100))
    assert_tells(caught.value, "none of the 100 images", "'image 0'", "image 0 is bad")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    "change", [{"batch_size": 0}, {"dtype": "int8"}, {"threads": "2"}, {"precision_error": np.nan}]
)
def test_a_recipe_that_could_not_be_read_again_is_not_written(tmp_path, change):
    with pytest.raises(StoreError) as caught:
        StoreWriter(tmp_path / "a.h5", recipe(TAPS, **change), ["a"])
    assert_tells(caught.value, "recipe")
    assert left_in(tmp_path) == []


def test_the_file_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc")
    steps: list[tuple[str, str]] = []

    def recorded(name, describe):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args: (steps.append((name, describe(*args))), call(*args))[1])

    recorded("fsync", lambda handle: os.readlink(f"/proc/self/fd/{handle}"))
    recorded("pwrite", lambda handle, data, offset: "seal" if offset == 0 else "rest")
    recorded("replace", lambda source, target: str(target))
    recorded("unlink", lambda path, **_: str(path))
    write_store(tmp_path / "a.h5")
    path = str(tmp_path / "a.h5")
    rest = steps.index(("pwrite", "seal"))
    assert steps[rest - 2 :] == [
        ("pwrite", "rest"),
        ("fsync", f"{path}.partial"),
        ("pwrite", "seal"),
        ("fsync", f"{path}.partial"),
        ("replace", path),
        ("fsync", str(tmp_path)),
        ("unlink", f"{path}.journal"),
    ]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_written_by_another_process_count_as_written(tmp_path, dtype):
    rows = rows_of(range(200))
    rows["fc:flatten"][[7, 101], 3] = np.nan, 1e30
    names, indices = [f"image {i}" for i in range(200)], np.flatnonzero(np.arange(200) % 3)
    for file in ("a.h5", "b.h5"):
        with StoreWriter(tmp_path / file, recipe(TAPS, dtype=dtype), names) as target:
            for part in (indices[:50], np.arange(0, 200, 3), indices[50:]):
                given, there = {name: values[part] for name, values in rows.items()}, []
                if file == "a.h5":
                    there = list(TAPS)[1:]
                    for name in there:
                        target.rows.write(name, part, given.pop(name))
                target.write(part, given, digests_of(part), in_file=there)
            target.finish()
    store = FeatureStore(tmp_path / "a.h5")
    store.verify()
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert [entry.what for entry in store.nonfinite] == ["nan", "inf"][: 2 if dtype == "float16" else 1]


def written_with(path, change, n=130, dtype="float32", bad=()) -> FeatureStore:
    """A store whose rows `change(rows, indices)` has changed, written in batches of 50."""
    with StoreWriter(path, recipe(TAPS, dtype=dtype), [f"image {i}" for i in range(n)]) as target:
        for start in range(0, n, 50):
            indices = np.array([i for i in range(start, min(start + 50, n)) if i not in bad])
            rows = rows_of(indices)
            change(rows, indices)
            target.write(indices, rows, digests_of(indices))
        target.fail({i: ImageError("damaged", "") for i in bad})
        target.finish()
    return FeatureStore(path)


def test_overflow_in_float16_is_stored_as_inf_and_listed(tmp_path):
    def change(rows, indices):
        rows["layer1:avg"][indices == 7, 1] = 65_520  # rounds to infinity; 65,519 does not
        rows["layer1:avg"][indices == 8, 1] = 65_519
        rows["fc:flatten"][indices == 101, 1999] = -1e30

    store = written_with(tmp_path / "a.h5", change, dtype="float16")
    assert store.nonfinite == (("image 7", "layer1:avg", "inf"), ("image 101", "fc:flatten", "inf"))
    assert store["layer1"][7, 1] == np.inf and store["layer1"][8, 1] == 65_504
    assert store["fc"][101, 1999] == -np.inf and np.isinf(store["fc"]).sum() == 1
    store.verify()
    full = written_with(tmp_path / "b.h5", change)
    assert full.nonfinite == () and full["layer1"][7, 1] == 65_520


@pytest.mark.parametrize("dtype, bad", [("float32", ()), ("float16", (0, 64, 101)), ("float32", (0, 64, 101))])
def test_nan_and_inf_are_listed_in_the_order_of_rows_and_layers(tmp_path, dtype, bad):
    def change(rows, indices):
        rows["fc:flatten"][indices == 0] = np.nan
        rows["fc:flatten"][indices == 129, 0] = np.inf
        rows["layer2:none"][indices == 129, 1, 4, 6] = np.nan
        rows["layer2:none"][indices == 129, 0, 0, 0] = np.inf  # NaN is the worse of the two
        rows["layer1:avg"][indices == 63, 2] = -np.nan

    store = written_with(tmp_path / "a.h5", change, dtype=dtype, bad=bad)
    expected = [("image 0", "fc:flatten", "nan"), ("image 63", "layer1:avg", "nan")]
    expected += [("image 129", "layer2:none", "nan"), ("image 129", "fc:flatten", "inf")]
    assert store.nonfinite == tuple(entry for entry in expected if int(entry[0].split()[1]) not in bad)
    store.verify()


def test_large_numbers_of_which_only_the_sum_overflows_are_not_listed(tmp_path):
    store = written_with(tmp_path / "a.h5", lambda rows, _: rows["fc:flatten"].__setitem__(slice(None), 3e38))
    assert store.nonfinite == ()
