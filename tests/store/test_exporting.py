"""Exported files have the same numbers and are whole or absent; an archive restores the store."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  (registers zstd with h5py)
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from helpers import assert_tells, left_in, recipe

from featx.errors import DamageError, ImageError, LayerError, StoreError
from featx.store import FeatureStore, StoreWriter, export, files, merge

N = 150  # three blocks, the last not full
TAPS = {"layer3:avg": (5,), "layer4:none": (2, 3, 4), "wide:flatten": (5_000,)}


def _write(path: Path, dtype: str = "float32", y: np.ndarray | None = None, taps: dict | None = None) -> FeatureStore:
    rng = np.random.default_rng(0)
    columns = {"site": np.array([f"ward {i % 4}" for i in range(N)]), "label": np.array(["ä"] * N)}
    with StoreWriter(path, recipe(taps or TAPS, dtype=dtype), [f"{i}.jpg" for i in range(N)], y, columns) as writer:
        good = np.delete(np.arange(N), 3)
        rows = {name: rng.normal(size=(N - 1, *shape)).round(1).astype("f4") for name, shape in (taps or TAPS).items()}
        writer.write(good, rows, rng.integers(0, 256, (N - 1, 16), np.uint8))
        writer.fail({3: ImageError("damaged", "cut off")})
        writer.finish()
    return FeatureStore(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Three layers of different shapes and block sizes, class labels, columns, a failure; tests must not change it."""
    return _write(tmp_path_factory.mktemp("store") / "s.h5", y=np.array([f"class {i % 3}" for i in range(N)]))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_npy_holds_a_layer(tmp_path: Path, dtype: str) -> None:
    store = _write(tmp_path / "s.h5", dtype)
    for layer in store.layers:
        found = np.load(export(store, tmp_path / "rows.npy", [layer], replace=True), mmap_mode="r")
        assert found.dtype == dtype and np.array_equal(found, store[layer])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_parquet_holds_images_and_layers(tmp_path: Path, dtype: str) -> None:
    store = _write(tmp_path / "s.h5", dtype, y=np.array([f"class {i % 3}" for i in range(N)]))
    export(store.path, tmp_path / "rows.parquet")
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table.column_names == ["key", "id", "label", "site", "column:label", *store.layers]
    frame = pd.read_parquet(tmp_path / "rows.parquet")
    assert frame["key"].tolist() == store.X[:, 0].tolist() and frame["id"].tolist() == store.ids.tolist()
    assert frame["label"].tolist() == store.y.tolist()
    assert frame["site"].tolist() == store.columns["site"].tolist()
    assert frame["column:label"].tolist() == store.columns["label"].tolist()
    for layer in store.layers:
        shape = json.loads(table.schema.field(layer).metadata[b"shape"])
        assert np.array_equal(np.stack(frame[layer]).reshape(-1, *shape), store[layer])
    assert json.loads(table.schema.metadata[b"featx.recipe"])["backbone"] == store.recipe.backbone


def test_parquet_of_numbers_as_labels_and_of_some_layers(tmp_path: Path) -> None:
    store = _write(tmp_path / "s.h5", y=np.linspace(0, 1, N))
    frame = pd.read_parquet(export(store, tmp_path / "rows.parquet", ["layer3"]))
    assert frame["label"].tolist() == store.y.tolist() and list(frame.columns)[-1] == "layer3:avg"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("method", ["gzip", "zstd"])
def test_an_archive_reads_the_same_and_restores_the_store(tmp_path, dtype: str, method: str) -> None:
    store = _write(tmp_path / "s.h5", dtype, y=np.array([f"class {i % 3}" for i in range(N)]))
    archive = FeatureStore(export(store, tmp_path / "a.h5", compression=method))
    archive.verify()
    assert archive.is_archive and not store.is_archive
    assert archive.path.stat().st_size < 0.7 * store.path.stat().st_size
    assert np.array_equal(archive.X, store.X) and np.array_equal(archive.y, store.y)
    assert archive.recipe == store.recipe and archive.failures == store.failures
    rng = np.random.default_rng(1)
    for layer in store.layers:
        assert np.array_equal(archive[layer], store[layer])
        rows = rng.integers(-len(store), len(store), 20)
        for check in (False, True):
            assert np.array_equal(archive.take(rows, layer, check=check), store[layer][rows])
        pieces = list(archive.blocks(layer, budget_bytes=3000))
        assert np.array_equal(np.concatenate([rows for _, rows in pieces]), store[layer])
        with h5py.File(archive.path) as file:
            assert np.array_equal(file["layers"][layer][:], store[layer])
    back = export(archive, tmp_path / "back.h5", compression="none")
    assert back.read_bytes() == store.path.read_bytes()


def test_archives_are_the_same_bytes_each_time_and_can_be_made_of_one_another(store, tmp_path: Path) -> None:
    first = export(store, tmp_path / "1.h5")
    zstd = export(first, tmp_path / "z.h5", compression="zstd")
    assert export(zstd, tmp_path / "2.h5").read_bytes() == first.read_bytes()


def test_archives_merge_into_a_store(store, tmp_path: Path) -> None:
    other = recipe(TAPS)
    with StoreWriter(
        tmp_path / "o.h5", other, ["x"], np.array(["class 9"]), {"site": np.array(["a"]), "label": np.array(["b"])}
    ) as writer:
        writer.write(
            np.array([0]),
            {name: np.ones((1, *shape), "f4") for name, shape in TAPS.items()},
            np.ones((1, 16), np.uint8),
        )
        writer.finish()
    archive = export(store, tmp_path / "a.h5")
    merged = merge([archive, tmp_path / "o.h5"], tmp_path / "m.h5")
    assert not merged.is_archive
    assert np.array_equal(merged["layer3"][:-1], store["layer3"])


def test_options_that_do_not_fit_are_refused_and_leave_nothing(store, tmp_path, subtests):
    for output, options, kind, word in [
        ("x.csv", {}, StoreError, ".parquet"),
        ("there.npy", dict(layers=["layer3"]), StoreError, "is there already"),
        ("no/x.npy", dict(layers=["layer3"]), StoreError, "no folder"),
        ("x.npy", {}, LayerError, "a .npy file has one layer; choose it with layers=...: "),
        ("x.npy", dict(layers=["layer3", "layer4"]), LayerError, "choose it with layers=...: "),
        ("x.npy", dict(layers=[]), LayerError, "layers is one or more names of "),
        ("x.parquet", dict(layers=[]), LayerError, "layers is one or more names of "),
        ("x.parquet", dict(layers=[None]), LayerError, "got [None]"),
        ("x.parquet", dict(layers=5), LayerError, "layers is one or more names of "),
        ("x.h5", dict(compression=["gzip"]), StoreError, "compression is one of gzip, zstd, none"),
        ("x.npy", dict(layers=["layer9"]), LayerError, "layer3:avg"),
        ("x.h5", dict(compression="lz4"), StoreError, "gzip, zstd"),
        ("x.npy", dict(layers=["layer3"], compression="gzip"), StoreError, "archives"),
        ("x.h5", dict(layers=["layer3"]), StoreError, "always contains every layer"),
    ]:
        with subtests.test(ascii((output, options))):
            (tmp_path / "there.npy").write_bytes(b"user's")
            with pytest.raises(kind) as caught:
                export(store, tmp_path / output, **options)
            assert_tells(caught.value, word)
            assert left_in(tmp_path) == ["there.npy"] and (tmp_path / "there.npy").read_bytes() == b"user's"


@pytest.mark.parametrize("name", ["rows.npy", "rows.parquet", "archive.h5", "plain.h5"])
def test_a_disk_that_fails_or_damage_leaves_the_old_file_whole(store, tmp_path: Path, monkeypatch, name: str) -> None:
    given = dict(layers=["layer3"] if name.endswith("npy") else None, replace=True)
    given["compression"] = "none" if name == "plain.h5" else None
    (tmp_path / name).write_bytes(b"old")

    def failing(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        with pytest.raises(StoreError) as caught:
            export(store, tmp_path / name, **given)
        assert_tells(caught.value, name, "Input/output error")
    assert left_in(tmp_path) == [name] and (tmp_path / name).read_bytes() == b"old"
    with monkeypatch.context() as patched:
        patched.setattr(files, "fsync_folder", failing)  # the last step: the file has its name already
        with pytest.raises(StoreError, match="the file is complete"):
            export(store, tmp_path / name, **given)
    assert left_in(tmp_path) == [name] and (tmp_path / name).read_bytes() != b"old"
    (tmp_path / name).write_bytes(b"old")
    content = bytearray(store.path.read_bytes())
    content[8192 + 100] ^= 1
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(DamageError):
        export(tmp_path / "bad", tmp_path / name, **given)
    assert left_in(tmp_path) == sorted(["bad", name]) and (tmp_path / name).read_bytes() == b"old"


@pytest.mark.parametrize(("name", "compression"), [("x.parquet", None), ("x.h5", "zstd")])
def test_a_missing_package_is_named_before_anything_is_written(
    store, tmp_path: Path, monkeypatch, name: str, compression: str | None
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(StoreError) as caught:
        export(store, tmp_path / name, compression=compression)
    assert_tells(caught.value, "pip install 'featx[export]'")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("name", ["a.npy", "a.parquet", "a.h5"])
def test_a_file_that_is_this_export_already_is_left_and_any_other_is_refused(tmp_path: Path, name: str) -> None:
    first = _write(tmp_path / "0.h5")
    second = _write(tmp_path / "1.h5", y=np.arange(N) / 2, taps={"layer3:avg": (6,)})
    output = tmp_path / name
    layers = ["layer3"] if name == "a.npy" else None
    export(first, output, layers)
    content = output.read_bytes()
    before = output.stat()
    assert export(first, output, layers) == output and output.read_bytes() == content
    assert (output.stat().st_ino, output.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    with pytest.raises(StoreError, match="is there already"):
        export(second, output, layers)
    output.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StoreError, match="is there already"):
        export(first, output, layers)
    assert left_in(tmp_path) == ["0.h5", "1.h5", name]
