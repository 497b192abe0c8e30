"""What is written is read back, the file is what FORMAT.md says, and after any error there is no file."""

from __future__ import annotations

import errno
import gc
import os

import h5py
import numpy as np
import pytest
from helpers import assert_tells, fresh_python, left_in, recipe

from featx.errors import ImageError, StoreError
from featx.store import FeatureStore, StoreWriter, image_keys, layout, writer

TAPS = {"layer1:avg": [3], "layer2:none": [2, 5, 7], "fc:flatten": [2000]}


def rows_of(indices, taps=TAPS, seed=0, dtype=np.float32) -> dict[str, np.ndarray]:
    """Rows that depend on the image and the layer alone, not on how they are written."""
    return {
        name: np.array([np.random.default_rng([seed, k, i]).normal(size=shape) for i in indices]).astype(dtype)
        for k, (name, shape) in enumerate(taps.items())
    }


def digests_of(indices) -> dict[int, bytes]:
    return {int(i): int(i).to_bytes(16, "little") for i in indices}


def write_store(path, n=10, blocks=None, bad=(), taps=TAPS, y=None, columns=None, **changes) -> FeatureStore:
    blocks = [range(n)] if blocks is None else blocks
    with StoreWriter(path, recipe(taps, **changes), n) as target:
        for block in blocks:
            good = [i for i in block if i not in bad]
            if good:
                target.write(np.array(good), rows_of(good, taps))
        failures = {i: ImageError("damaged", f"image {i} is bad") for i in bad}
        kept = [i for i in range(n) if i not in bad]
        target.finish([f"image {i}" for i in range(n)], digests_of(kept), y, columns or {}, failures)
    return FeatureStore(path)


def holds(store: FeatureStore, indices, taps=TAPS, dtype=np.float32) -> bool:
    expected = rows_of(indices, taps)
    return all(np.array_equal(store[name], expected[name].astype(dtype)) for name in taps)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_come_back_as_they_were_written(tmp_path, dtype):
    store = write_store(tmp_path / "a.h5", dtype=dtype)
    assert holds(store, range(10), dtype=dtype)
    assert all(store[name].dtype == dtype for name in TAPS)
    assert left_in(tmp_path) == ["a.h5"]


@pytest.mark.parametrize(
    "blocks", [[range(5, 10), range(5)], [[9, 3], [0, 1, 2]], [[i] for i in range(9, -1, -1)], [range(0, 10, 2)]]
)
def test_the_order_of_writing_does_not_change_a_byte(tmp_path, blocks):
    blocks = [sorted(block) for block in blocks]
    rest = sorted(set(range(10)) - {i for block in blocks for i in block})
    write_store(tmp_path / "straight.h5")
    write_store(tmp_path / "mixed.h5", blocks=[*blocks, rest])
    assert (tmp_path / "straight.h5").read_bytes() == (tmp_path / "mixed.h5").read_bytes()


def test_the_same_run_gives_the_same_bytes_at_another_time(tmp_path, monkeypatch):
    write_store(tmp_path / "a.h5", bad=[2], columns={"split": np.array(["a"] * 10)}, y=np.array(["x", "y"] * 5))
    monkeypatch.setattr("time.time", lambda: 2e9)
    write_store(tmp_path / "b.h5", bad=[2], columns={"split": np.array(["a"] * 10)}, y=np.array(["x", "y"] * 5))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    with h5py.File(tmp_path / "a.h5") as file:
        times = []
        file.visititems(lambda _, item: times.append(h5py.h5g.get_objinfo(item.id).mtime))
    assert set(times) == {0}


@pytest.mark.parametrize("bad", [[0], [9], [4, 5], [1, 3, 5, 7], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
@pytest.mark.parametrize("copy_rows", [1, 3, 1024])
def test_an_image_that_failed_has_no_row_and_an_entry(tmp_path, monkeypatch, bad, copy_rows):
    monkeypatch.setattr(writer, "_COPY_ROWS", copy_rows)
    y = np.array([f"class {i % 3}" for i in range(10)])
    columns = {"number": np.array([str(i) for i in range(10)])}
    store = write_store(tmp_path / "a.h5", blocks=[range(4), range(4, 10)], bad=bad, y=y, columns=columns)
    kept = [i for i in range(10) if i not in bad]
    assert holds(store, kept)
    assert store.ids.tolist() == [f"image {i}" for i in kept]
    assert store.y.tolist() == y[kept].tolist() and store.classes.tolist() == sorted(set(y[kept]))
    assert store.columns["number"].tolist() == [str(i) for i in kept]
    assert [row.tobytes() for row in store.digests] == list(digests_of(kept).values())
    assert store.failures == tuple((f"image {i}", "damaged", f"image {i} is bad") for i in bad)
    assert left_in(tmp_path) == ["a.h5"]


def test_a_store_of_what_remains_is_that_of_a_run_without_failures_but_for_the_ledger(tmp_path):
    write_store(tmp_path / "a.h5", n=10, bad=[8, 9])
    write_store(tmp_path / "b.h5", n=8)
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("*.h5"))]
    assert abs(sizes[0] - sizes[1]) < 4096  # the failed images' rows take no room


@pytest.mark.parametrize("n, bad", [(1, []), (2, []), (10, [3]), (40, [])])
def test_plain_h5py_reads_everything_contiguous_aligned_and_of_fixed_size(tmp_path, n, bad):
    columns = {"a/b": np.array(["ü" * (i % 4) for i in range(n)]), ".": np.array(["dot"] * n)}
    write_store(tmp_path / "a.h5", n=n, bad=bad, y=np.array(["x"] * n), columns=columns)
    kept = [i for i in range(n) if i not in bad]
    seen = []

    def check(name, item):
        assert not item.attrs
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
        assert [name.decode() for name in file["images/id"]] == [f"image {i}" for i in kept]
        assert sorted(file["columns"]) == ["%2E", "a%2Fb"]
    assert {"recipe", "images/key", "images/id", "images/digest", "labels/code", "failures/id"} <= set(seen)


@pytest.mark.parametrize(
    "name", ["a b", "a/b", ".", "..", "%2F", "Größe", "x" * 300, "a:b", "", "path.to", "\\", "日本"]
)
def test_columns_of_any_name_come_back(tmp_path, name):
    values = np.array(["", " two ", "dr\nei"])
    store = write_store(tmp_path / "a.h5", n=3, columns={name: values, "other": values[::-1]})
    assert {key: column.tolist() for key, column in store.columns.items()} == {
        name: values.tolist(),
        "other": values[::-1].tolist(),
    }


@pytest.mark.parametrize("y", [np.array([0.5, -1e300, 3.0]), np.array(["Größe", "a", "a"]), None])
def test_labels_of_each_kind_come_back(tmp_path, y):
    store = write_store(tmp_path / "a.h5", n=3, y=y)
    if y is None:
        assert store.y is None and store.classes is None
    else:
        assert store.y.dtype.kind == y.dtype.kind and store.y.tolist() == y.tolist()
        assert (store.classes is None) == (y.dtype.kind == "f")


def test_rows_written_twice_or_not_at_all_are_a_fault(tmp_path):
    with pytest.raises(AssertionError), StoreWriter(tmp_path / "a.h5", recipe(TAPS), 4) as target:
        target.write(np.array([0, 1]), rows_of([0, 1]))
        target.write(np.array([1, 2]), rows_of([1, 2]))
    with pytest.raises(AssertionError), StoreWriter(tmp_path / "a.h5", recipe(TAPS), 4) as target:
        target.write(np.array([0, 1]), rows_of([0, 1]))
        target.finish(list("abcd"), digests_of([0, 1]), None, {}, {2: ImageError("damaged", "")})
    with pytest.raises(AssertionError), StoreWriter(tmp_path / "a.h5", recipe(TAPS), 4) as target:
        target.write(np.array([0]), {"fc:flatten": rows_of([0])["fc:flatten"]})
    assert left_in(tmp_path) == []


def test_no_readable_image_makes_no_store(tmp_path):
    with pytest.raises(StoreError) as caught:
        write_store(tmp_path / "a.h5", n=2, bad=[0, 1])
    assert_tells(caught.value, "none of the 2 images", "'image 0'", "image 0 is bad")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), RuntimeError("in between")])
def test_an_error_while_rows_come_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)), StoreWriter(tmp_path / "a.h5", recipe(TAPS), 4) as target:
        target.write(np.array([0]), rows_of([0]))
        assert left_in(tmp_path) == ["a.h5.partial"]
        raise error
    assert left_in(tmp_path) == []


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
OF_THE_DISK = ["open", "ftruncate", "pwrite", "fsync", "replace"]
STEPS = [(os, name) for name in OF_THE_DISK] + [(layout, name) for name in ("add_rows", "add_array", "add_strings")]


def write_spoiled(path, monkeypatch, place, name, error, spared) -> BaseException | None:
    """Write a store with failures while a function works `spared` times and then raises; what came of it."""
    original, calls = getattr(place, name), []

    def call(*args, **kwargs):
        calls.append(1)
        if len(calls) > spared:
            raise type(error)(*error.args)
        return original(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(place, name, call)
        try:
            write_store(path, bad=[3, 9])
        except (KeyboardInterrupt, OSError, StoreError) as caught:
            return caught.with_traceback(None)
    return None


@pytest.mark.parametrize("place, name", STEPS, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()], ids=["full", "interrupted"])
def test_an_error_at_any_step_leaves_the_old_store_or_a_whole_new_one(tmp_path, monkeypatch, place, name, error):
    path = tmp_path / "a.h5"
    whole = write_store(path, bad=[3, 9]).path.read_bytes()
    path.write_bytes(b"the old store")
    for spared in range(1000):
        caught = write_spoiled(path, monkeypatch, place, name, error, spared)
        assert left_in(tmp_path) == ["a.h5"]
        assert path.read_bytes() == (whole if caught is None else b"the old store") or name in ("fsync", "open")
        assert path.read_bytes() in (whole, b"the old store")
        if caught is None:
            break
        path.write_bytes(b"the old store")
        if error is FULL and place is os:
            assert isinstance(caught, StoreError)
            assert_tells(caught, "cannot write", os.strerror(errno.ENOSPC))
    assert caught is None and spared > 0  # every call was spoiled once


def test_no_handle_stays_open_after_an_error(tmp_path, monkeypatch):
    handles = "/proc/self/fd"
    gc.collect()  # what other tests left must not go in between
    before = len(os.listdir(handles)) if os.path.isdir(handles) else pytest.skip("no /proc")
    for place, name in STEPS:
        for spared in range(3):
            write_spoiled(tmp_path / "a.h5", monkeypatch, place, name, FULL, spared)
    gc.collect()
    assert len(os.listdir(handles)) == before


FILL_THE_DISK = """
import json, os, resource, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import numpy as np
from featx.errors import StoreError
from test_store_writer import write_store

folder, columns = Path({folder!r}), {{"long": np.array(["x" * 500] * 10)}}
size = write_store(folder / "whole", columns=columns).path.stat().st_size
outcomes = []
for part in {parts}:
    child = os.fork()
    if not child:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(size * part), limits[1]))
        said = ""
        try:
            write_store(folder / f"{{part}}.h5", columns=columns)
        except StoreError as error:
            said = str(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        (folder / f"{{part}}.said").write_text(said)
        os._exit(0)
    outcomes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(outcomes))
"""


def test_a_disk_that_is_full_at_any_point_gives_a_whole_store_or_none(tmp_path):
    # in processes of their own: HDF5 itself does not survive every write that fails
    parts = [0.01, 0.1, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0]
    tests = os.path.dirname(__file__)
    outcomes = fresh_python(FILL_THE_DISK.format(tests=tests, folder=str(tmp_path), parts=parts))
    assert dict(zip(parts, outcomes, strict=True)) == dict.fromkeys(parts, 0)
    assert left_in(tmp_path) == sorted(["1.0.h5", "whole", *(f"{part}.said" for part in parts)])
    assert (tmp_path / "1.0.h5").read_bytes() == (tmp_path / "whole").read_bytes()
    for part in parts[:-1]:
        assert_tells(StoreError((tmp_path / f"{part}.said").read_text()), "cannot write")


def test_short_writes_are_continued(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: pwrite(file, data[: min(len(data), 1000)], offset))
    assert holds(write_store(tmp_path / "a.h5", bad=[2]), [0, 1, *range(3, 10)])


def test_what_a_killed_run_left_is_no_hindrance(tmp_path):
    (tmp_path / "a.h5.partial").write_bytes(b"half a store" * 10_000)
    assert holds(write_store(tmp_path / "a.h5", bad=[2]), [0, 1, *range(3, 10)])
    assert left_in(tmp_path) == ["a.h5"]
    write_store(tmp_path / "b.h5", bad=[2])
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_two_runs_onto_one_output_do_not_mix_their_rows(tmp_path):
    path, taps = tmp_path / "a.h5", {"fc:flatten": [2000]}
    first = StoreWriter(path, recipe(taps), 3)
    try:
        second = StoreWriter(path, recipe(taps, precision="bfloat16"), 3)
    except StoreError as error:
        assert_tells(error, str(path))  # refusing the second is as good
        second = None
    with first:
        first.write(np.arange(3), rows_of(range(3), taps, seed=0))
        first.finish(list("abc"), digests_of(range(3)), None, {}, {})
        expected = rows_of(range(3), taps, seed=0)["fc:flatten"]
        if second is not None:
            with second:
                second.write(np.arange(3), rows_of(range(3), taps, seed=1))
        store = FeatureStore(path)
        assert store.recipe.precision == "float32" and np.array_equal(store["fc:flatten"], expected)


@pytest.mark.parametrize("where", ["no/folder/a.h5", "file/a.h5", "x" * 300 + ".h5"])
def test_an_output_that_cannot_be_made_is_refused_at_once(tmp_path, where):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError) as caught:
        StoreWriter(tmp_path / where, recipe(TAPS), 2)
    assert_tells(caught.value, "cannot write")
    assert left_in(tmp_path) == ["file"]


def test_the_disk_has_it_before_the_name_is_there(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (steps.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (steps.append((str(a), str(b))), replace(a, b)))
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc")
    write_store(tmp_path / "a.h5")
    path = str(tmp_path / "a.h5")
    assert steps == [f"{path}.partial", (f"{path}.partial", path), str(tmp_path)]


IDS = [f"class{i // 50}/{i:04}.jpg" for i in range(1000)]
DIGESTS = [i.to_bytes(16, "little") for i in range(1000)]


def test_keys_are_different_52_bit_numbers_that_a_float_holds():
    keys = image_keys(IDS, DIGESTS)
    assert keys.dtype == np.int64 and keys.shape == (1000,) and len(set(keys.tolist())) == 1000
    assert keys.min() >= 0 and keys.max() < 2**52 and keys.max() > 2**50
    assert np.array_equal(keys.astype(float).astype(np.int64), keys)
    bits = (keys[:, None] >> np.arange(52)) & 1
    assert np.all(np.abs(bits.mean(0) - 0.5) < 0.1)  # all 52 bits carry something


def test_a_key_is_the_images_own_whatever_its_neighbours_and_their_order():
    keys = dict(zip(IDS, image_keys(IDS, DIGESTS).tolist(), strict=True))
    chosen = np.random.default_rng(0).permutation(1000)[:300]
    some = image_keys([IDS[i] for i in chosen], [DIGESTS[i] for i in chosen])
    assert some.tolist() == [keys[IDS[i]] for i in chosen]


def test_a_key_depends_on_name_and_content():
    names, digests = ["a", "a", "b", "b"], [DIGESTS[0], DIGESTS[1], DIGESTS[0], DIGESTS[1]]
    assert len(set(image_keys(names, digests).tolist())) == 4


def test_keys_are_the_same_for_ever():
    assert image_keys(["a.jpg", "b.jpg"], [bytes(16), bytes(range(16))]).tolist() == [3445601658184792, 251190563925855]


def test_keys_that_collide_are_hashed_again(monkeypatch):
    monkeypatch.setattr(writer, "_KEY_BITS", 8)
    keys = image_keys(IDS[:200], DIGESTS[:200])
    assert len(keys) == len(set(keys.tolist())) == 200 and keys.max() < 256
    assert image_keys(IDS[:100], DIGESTS[:100]).tolist() == keys[:100].tolist()


def test_keys_tell_nothing_of_order():
    keys = image_keys(IDS, DIGESTS)
    assert abs(np.corrcoef(np.argsort(np.argsort(keys)), np.arange(1000))[0, 1]) < 0.1
