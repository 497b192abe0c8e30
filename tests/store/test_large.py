"""Large layers are cheap to read: workers share pages, and opening reads no rows."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from helpers import fresh_python, recipe
from joblib.externals.loky import get_reusable_executor

from featx.store import FeatureStore, StoreWriter, collection_digest, layout
from featx.store.metadata import datasets

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for memory")


def large_store(path: Path, nbytes: int) -> FeatureStore:
    """A store with one layer of `nbytes` bytes."""
    d = 4096
    n = nbytes // (4 * d)
    rows = np.random.default_rng(0).random((64, d), np.float32)
    with StoreWriter(path, recipe({"large:avg": (d,)}), [f"{i}" for i in range(n)]) as writer:
        for start in range(0, n, 64):
            indices = np.arange(start, min(start + 64, n))
            writer.write(indices, {"large:avg": rows[: len(indices)]}, np.zeros((len(indices), 16), np.uint8))
        writer.finish()
    return FeatureStore(path)


def private_bytes() -> int:
    """Memory that this process does not share."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))


def with_all(folder: Path, what: str, workers: int) -> None:
    """Wait for all workers, so that each of them has one task."""
    (folder / f"{what} {os.getpid()}").touch()
    until = time.monotonic() + 100
    while len(list(folder.glob(f"{what} *"))) < workers:
        assert time.monotonic() < until, "the other workers did not come"
        time.sleep(0.01)


def at_rest(folder: Path, workers: int) -> tuple[int, int]:
    with_all(folder, "here", workers)
    return os.getpid(), private_bytes()


def passed_over(thing: Any, folder: Path, workers: int) -> tuple[int, float, int]:
    """Read a whole layer; measure when all workers have read it and still hold it."""
    parts: Iterator[tuple[int, np.ndarray]]
    if isinstance(thing, FeatureStore):
        parts = thing.blocks("large", check=True)
    else:
        parts = ((start, thing[start : start + 4096]) for start in range(0, len(thing), 4096))
    total = sum(float(rows.sum(dtype=np.float64)) for _, rows in parts)
    with_all(folder, "read", workers)
    held = private_bytes()
    with_all(folder, "measured", workers)
    return os.getpid(), total, held


@on_linux
@pytest.mark.parametrize(
    ("nbytes", "workers"),
    [pytest.param(200 * 10**6, 2, id="200MB"), pytest.param(2 * 10**9, 4, id="2GB", marks=pytest.mark.slow)],
)
def test_workers_share_the_pages_of_a_layer(tmp_path, nbytes, workers):
    large = large_store(tmp_path / "large.h5", nbytes)
    layer = large["large"]
    expected = float(layer.sum(dtype=np.float64))
    assert layer.nbytes > 0.99 * nbytes
    try:
        for i, thing in enumerate((large, layer[64:], np.asarray(layer))):
            (folder := tmp_path / str(i)).mkdir()
            get_reusable_executor().shutdown(wait=True)  # new workers, which have nothing mapped
            parallel = joblib.Parallel(n_jobs=workers, batch_size=1, pre_dispatch="all")
            before = dict(parallel([joblib.delayed(at_rest)(folder, workers)] * workers))
            found = parallel([joblib.delayed(passed_over)(thing, folder, workers)] * workers)
            added = [held - before[pid] for pid, _, held in found]
            assert len(added) == len(before) == workers and max(added) < 0.05 * layer.nbytes, added
            part = float(layer[:64].sum(dtype=np.float64)) if i == 1 else 0.0
            assert all(abs(total - (expected - part)) < 1e-6 * expected for _, total, _ in found)
    finally:
        large.path.unlink()  # pytest keeps the folders of its last runs


def sparse_store(path: Path, n: int, d: int) -> None:
    """A complete, sparse store of zeros."""
    ids = [f"class/{i:08d}.jpg" for i in range(n)]
    digests = np.random.default_rng(0).integers(0, 256, (n, 16), np.uint8)
    made_by = replace(recipe({"large:avg": (d,)}), collection=collection_digest(ids, None, {}))
    layers = layout.place_layers(made_by, n)
    rows, row_bytes = layout.block_rows(4 * d), 4 * d
    sums = np.full(-(-n // rows), layout.checksum(bytes(rows * row_bytes)), np.uint64)
    if n % rows:
        sums[-1] = layout.checksum(bytes(n % rows * row_bytes))
    metadata = datasets(made_by, ids, digests, None, {}, [], {}, {"large:avg": sums})
    page, rest, seal = layout.assemble(layers, metadata)
    with open(path, "wb") as file:
        for content, offset in ((seal.to_bytes(), 0), (page, layout.PAGE), (rest, seal.metadata)):
            file.seek(offset)
            file.write(content)


def test_a_store_that_is_sparse_is_a_store(tmp_path):
    sparse_store(tmp_path / "a.h5", 1000, 300)
    store = FeatureStore(tmp_path / "a.h5")
    store.verify()
    assert store["large"].shape == (1000, 300) and not store["large"].any()


_READ = """
import json, time
from pathlib import Path
import numpy as np
from featx.store import FeatureStore
chosen = np.random.default_rng(0).integers(0, {n}, 1000)
before = time.perf_counter()
store = FeatureStore({path!r})
n, rows = len(store), store.take(chosen, "large")
seconds = time.perf_counter() - before
lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
private = sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))
print(json.dumps([n, rows.shape, seconds, private]))
"""


@on_linux
@pytest.mark.slow
def test_a_store_of_8_gb_is_opened_and_read_from_in_a_moment_and_little_memory(tmp_path):
    path, n, d = tmp_path / "large.h5", 1_000_000, 2048
    sparse_store(path, n, d)
    try:
        assert path.stat().st_size > 8e9
        found = [fresh_python(_READ.format(path=str(path), n=n)) for _ in range(3)]
    finally:
        path.unlink()
    for counted, shape, _, private in found:
        assert counted == n and shape == [1000, d] and private < 100e6, private
    assert min(seconds for *_, seconds, _ in found) < 0.2  # the quickest: others use this machine too
