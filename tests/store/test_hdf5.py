"""Stores are HDF5: h5py and h5dump find in them exactly what featx reads."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - registers zstd with h5py
import numpy as np
import pytest
from helpers import recipe
from test_take import written

from featx.errors import ImageError
from featx.store import FeatureStore, StoreWriter, export, layout

TAPS = {"layer1:avg": (3,), "layer2:none": (2, 5, 7), "Mixed_5b.branch/1:max": (4_100,), "é 漢:avg": (1,)}


def full_store(path: Path, labels: str = "classes", n: int = 150, **changes: Any) -> FeatureStore:
    """A store with columns, failures, NaN and inf."""
    rng = np.random.default_rng(0)
    ids = [f"fotos/ä {i}.png" for i in range(n)]
    y = {"classes": np.array(["ant", "bee", "čmelák"])[np.arange(n) % 3], "values": rng.normal(size=n), "none": None}
    columns = {
        "patient": np.array([f"p{i % 7}" for i in range(n)]),
        "": np.array(["x"] * n),
        "a/b.": np.array([""] * n),
    }
    rows = {name: rng.normal(size=(n, *shape)).astype(np.float32) for name, shape in TAPS.items()}
    rows["layer1:avg"][5, 1], rows["layer2:none"][9, 1, 2, 3] = np.nan, np.inf
    good = np.delete(np.arange(n), [3, 77])
    with StoreWriter(path, recipe(TAPS, **changes), ids, y[labels], columns) as writer:
        writer.fail({i: ImageError("damaged", f"broken « {i}") for i in (3, 77)})
        writer.write(
            good, {name: values[good] for name, values in rows.items()}, rng.integers(0, 256, (len(good), 16), np.uint8)
        )
        writer.finish()
    return FeatureStore(path)


@pytest.fixture(scope="module", params=["classes", "values", "none"])
def store(request, tmp_path_factory) -> FeatureStore:
    changes = {"dtype": "float16"} if request.param == "values" else {}
    return full_store(tmp_path_factory.mktemp("hdf5") / "a.h5", request.param, **changes)


def texts(dataset: h5py.Dataset) -> list[str]:
    return [value.decode() for value in dataset[()]]


def test_h5py_reads_what_featx_reads(store):
    with h5py.File(store.path) as file:
        assert [*file.attrs] == ["format", "version"]
        assert file.attrs["format"] == b"featx-store" and file.attrs["version"] == 1
        assert file["recipe"][0].decode() == store.recipe.to_json()
        assert {layout.member_name(name) for name in file["layers"]} == {*store.layers}
        for name in store.layers:
            dataset = file["layers"][layout.member(name)]
            assert np.array_equal(dataset[()], store[name], equal_nan=True) and dataset.dtype == store[name].dtype
            rows = layout.block_rows(store.row_bytes(name))
            sums = [layout.checksum(dataset[i : i + rows].tobytes()) for i in range(0, len(store), rows)]
            assert file["checksums"][layout.member(name)][()].tolist() == sums
        images = file["images"]
        assert np.array_equal(images["key"][()][:, None], store.X) and texts(images["id"]) == store.ids.tolist()
        assert np.array_equal(images["digest"][()], store.digests)
        assert {layout.member_name(name): texts(file["columns"][name]) for name in file["columns"]} == {
            name: values.tolist() for name, values in store.columns.items()
        }
        failures = file["failures"]
        assert [*zip(*map(texts, (failures["id"], failures["code"], failures["reason"])), strict=True)] == [
            *map(tuple, store.failures)
        ]
        marks = file["nonfinite"]
        assert [
            (store.ids[row], store.layers[layer], what.decode())
            for row, layer, what in zip(marks["row"][()], marks["layer"][()], marks["what"][()], strict=True)
        ] == [*map(tuple, store.nonfinite)]
        assert len(store.failures) == len(store.nonfinite) == 2
        if store.classes is not None:
            assert [texts(file["labels/classes"])[code] for code in file["labels/code"][()]] == store.y.tolist()
        elif store.y is not None:
            assert np.array_equal(file["labels/value"][()], store.y)
        else:
            assert "labels" not in file


def every_dataset(file: h5py.File) -> dict[str, h5py.Dataset]:
    found: dict[str, h5py.Dataset] = {}
    file.visititems(lambda name, node: found.update({name: node}) if isinstance(node, h5py.Dataset) else None)
    return found


def test_there_is_nothing_in_the_file_but_plain_datasets_and_hard_links(store):
    def check(group: h5py.Group) -> None:
        assert group.name == "/" or not group.attrs
        for name, node in group.items():
            link = group.get(name, getlink=True)
            assert type(link) is h5py.HardLink and group.id.links.get_info(name.encode()).type == h5py.h5l.TYPE_HARD
            if isinstance(node, h5py.Group):
                check(node)

    with h5py.File(store.path) as file:
        check(file)
        assert file.userblock_size == layout.PAGE
        for name, dataset in every_dataset(file).items():
            assert not dataset.attrs and dataset.external is None and not dataset.is_virtual, name
            assert dataset.chunks is None and dataset.compression is None and dataset.maxshape == dataset.shape
            of_file = dataset.id.get_type()
            assert of_file.get_class() in (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING)
            if of_file.get_class() == h5py.h5t.STRING:
                assert not of_file.is_variable_str() and of_file.get_cset() == h5py.h5t.CSET_UTF8
                assert of_file.get_strpad() == h5py.h5t.STR_NULLPAD
            else:
                assert of_file.get_order() == h5py.h5t.ORDER_LE
            made = dataset.id.get_create_plist()
            assert made.get_layout() == h5py.h5d.CONTIGUOUS and made.get_alloc_time() == h5py.h5d.ALLOC_TIME_EARLY


def test_datasets_have_the_offsets_of_the_layout(store):
    with h5py.File(store.path) as file:
        places = {
            name: (dataset.id.get_offset(), dataset.id.get_storage_size())
            for name, dataset in every_dataset(file).items()
            if dataset.size
        }
    content = store.path.read_bytes()
    seal = layout.Seal.from_bytes(content[: layout.PAGE])
    at = layout.FIRST_LAYER
    for name in store.layers:  # in the recipe's order, each on a page of its own
        offset, nbytes = places.pop(f"layers/{layout.member(name)}")
        assert offset == at == store[name].offset and offset % layout.PAGE == 0
        at = layout.aligned(offset + nbytes, layout.PAGE)
        assert not any(content[offset + nbytes : at])
    assert at == seal.metadata and content[layout.PAGE + 48 : layout.FIRST_LAYER] == bytes(layout.PAGE - 48)
    for offset, nbytes in sorted(places.values()):
        assert offset == at and offset % 64 == 0
        at = layout.aligned(offset + nbytes, 64)
        assert not any(content[offset + nbytes : at])
    assert at == seal.structure < seal.size == len(content)


def test_a_layer_is_memory_mapped_with_h5py_and_numpy(store):
    with h5py.File(store.path) as file:
        layer = file["layers/layer2:none"]
        rows = np.memmap(store.path, layer.dtype, "r", layer.id.get_offset(), layer.shape)
    assert np.array_equal(rows, store["layer2:none"], equal_nan=True)


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="h5dump is not installed")
def test_h5dump_reads_all_of_it(store, tmp_path):
    said = subprocess.run(["h5dump", "-p", "-H", store.path], capture_output=True, text=True, timeout=60)
    assert said.returncode == 0 and not said.stderr
    with h5py.File(store.path) as file:
        n = len(every_dataset(file))
    assert said.stdout.count("DATASET") == said.stdout.count("CONTIGUOUS") == n
    assert said.stdout.count("H5D_ALLOC_TIME_EARLY") == n and "EXTERNAL" not in said.stdout
    data = subprocess.run(["h5dump", "-d", "/images/key", "-y", store.path], capture_output=True, text=True, timeout=60)
    assert data.returncode == 0 and all(str(key) in data.stdout for key in store.X[:, 0].tolist())
    assert subprocess.run(["h5dump", store.path], capture_output=True, timeout=60).returncode == 0
    archive = export(store, tmp_path / "b.h5")
    said = subprocess.run(["h5dump", "-p", "-H", archive], capture_output=True, text=True, timeout=60)
    assert said.returncode == 0 and not said.stderr and said.stdout.count("CHUNKED") == len(store.layers)


def test_the_bytes_are_a_function_of_what_is_stored(store, tmp_path):
    labels = "none" if store.y is None else "values" if store.classes is None else "classes"
    again = full_store(tmp_path / "b.h5", labels, dtype=store.recipe.dtype)
    assert again.path.read_bytes() == store.path.read_bytes()


@pytest.mark.parametrize("method", ["gzip", "zstd"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_h5py_reads_archives(tmp_path, method, dtype):
    plain = full_store(tmp_path / "a.h5", dtype=dtype)
    path = export(plain, tmp_path / "b.h5", compression=method)
    with h5py.File(path) as file, h5py.File(plain.path) as original:
        assert {**file.attrs} == {**original.attrs}
        assert every_dataset(file).keys() == every_dataset(original).keys()
        for name, dataset in every_dataset(file).items():
            expected = original[name]
            assert dataset.dtype == expected.dtype and dataset.shape == expected.shape
            if name.startswith("checksums/"):  # of the pieces, as they are in the file
                layer = file["layers" + name.removeprefix("checksums")]
                pieces = [
                    layer.id.read_direct_chunk(layer.id.get_chunk_info(i).chunk_offset) for i in range(len(dataset))
                ]
                assert dataset[()].tolist() == [layout.checksum(piece) for _, piece in pieces]
                continue
            assert dataset[()].tobytes() == expected[()].tobytes()
            if name.startswith("layers/"):
                filters = dataset.id.get_create_plist()
                numbers = [filters.get_filter(i)[0] for i in range(filters.get_nfilters())]
                assert numbers == [h5py.h5z.FILTER_SHUFFLE, {"gzip": h5py.h5z.FILTER_DEFLATE, "zstd": 32015}[method]]
                rows = layout.block_rows(expected.dtype.itemsize * int(np.prod(expected.shape[1:])))
                assert dataset.chunks == (rows, *expected.shape[1:])
            else:
                assert dataset.chunks is None
    assert export(FeatureStore(path), tmp_path / "c.h5", compression="none").read_bytes() == plain.path.read_bytes()


@pytest.mark.parametrize(
    "blocks, method", [*((blocks, "gzip") for blocks in (1, 2, 3, 1023, 1024, 1025, 2500)), (1025, "zstd")]
)
def test_h5py_finds_every_chunk_of_archives_of_many_lengths(tmp_path, blocks, method):
    n = 64 * (blocks - 1) + 3
    rows = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    ids, digests = [str(i) for i in range(n)], np.arange(16 * n).astype(np.uint8).reshape(n, 16)
    plain = written(tmp_path / "a.h5", {"a:avg": rows}, ids, digests)
    path = export(plain, tmp_path / "b.h5", compression=method)
    assert np.array_equal(FeatureStore(path)["a"], rows)
    with h5py.File(path) as file:
        assert np.array_equal(file["layers/a:avg"][()], rows)
        assert file["layers/a:avg"].id.get_num_chunks() == blocks
