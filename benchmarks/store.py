"""Is the store as fast as the bare file? Against np.memmap, h5py and zarr on the same rows, in one run.

    python benchmarks/store.py [--folder DIR] [--gigabytes 1.6] [--width 2048] [--repeats 5] [--large 8]

Writing ends with fsync everywhere and counts in batches of 64 rows, as a forward pass gives them; reading finds the
file in the page cache, each side twice over before its time counts. Sides take turns, medians count. h5py reads in two
ways, `dataset[:]` and into one buffer block by block; zarr holds the rows uncompressed, its fastest. All answers are
compared. Prints a table and writes benchmarks/results/store.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import zarr

from featx.store import FeatureStore, Recipe, StoreWriter

LAYER = "penultimate:avg"
BATCH = 64
BUFFER_ROWS = 4096


def batches(n: int, width: int) -> Iterator[tuple[int, np.ndarray]]:
    """Rows that differ, made for next to nothing: a window that slides over noise."""
    noise = np.random.default_rng(0).normal(size=(BATCH * 8 + 1) * width).astype("<f4")
    for start in range(0, n, BATCH):
        at = start * 31 % (BATCH * 7 * width)
        yield start, noise[at : at + min(BATCH, n - start) * width].reshape(-1, width)


def recipe(width: int) -> Recipe:
    tap = {"node": "penultimate", "pool": "avg", "layout": "bchw", "shape": [width]}
    return Recipe(
        "benchmark", None, "0" * 64, {}, "none", {LAYER: tap}, {}, "none", "float32", None, BATCH, "float32", "cpu", 1,
        {}, None,
    )  # fmt: skip


def write_featx(path: Path, n: int, width: int) -> float:
    ids = [f"class_{i % 100:03d}/image_{i:07d}.jpg" for i in range(n)]
    y = np.array([f"class_{i % 100:03d}" for i in range(n)])
    digests = np.arange(2 * n, dtype="<u8").view(np.uint8).reshape(n, 16)
    started = time.perf_counter()
    with StoreWriter(path, recipe(width), ids, y) as writer:
        for start, rows in batches(n, width):
            indices = np.arange(start, start + len(rows))
            writer.write(indices, {LAYER: rows}, digests[indices])
        writer.finish()
    return time.perf_counter() - started


def write_plain(path: Path, n: int, width: int, preallocated: bool = False) -> float:
    started = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        if preallocated:
            os.posix_fallocate(file.fileno(), 0, n * width * 4)
        for _, rows in batches(n, width):
            file.write(rows.data)
        os.fsync(file.fileno())
    return time.perf_counter() - started


def write_h5py(path: Path, n: int, width: int) -> float:
    started = time.perf_counter()
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("rows", (n, width), "<f4")
        for start, rows in batches(n, width):
            dataset[start : start + len(rows)] = rows
        file.flush()
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    return time.perf_counter() - started


def write_zarr(path: Path, n: int, width: int) -> float:
    started = time.perf_counter()
    array = zarr.create_array(str(path), shape=(n, width), chunks=(BUFFER_ROWS, width), dtype="<f4", compressors=None)
    waiting = np.empty((BUFFER_ROWS, width), "<f4")  # whole chunks only: its best
    for start, rows in batches(n, width):
        at = start % BUFFER_ROWS
        waiting[at : at + len(rows)] = rows
        if at + len(rows) == BUFFER_ROWS or start + len(rows) == n:
            array[start - at : start + len(rows)] = waiting[: at + len(rows)]
    for part in path.rglob("*"):
        handle = os.open(part, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    return time.perf_counter() - started


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def in_turn(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Medians; every side runs once for nothing, then all take turns."""
    for run in sides.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            found[name].append(seconds(run))
    return {name: statistics.median(values) for name, values in found.items()}


def full_pass(store: FeatureStore, plain: np.memmap, h5: h5py.Dataset, array: zarr.Array, repeats: int) -> dict:
    n, width = plain.shape
    buffer = np.empty((BUFFER_ROWS, width), "<f4")
    weights = np.ones(width, "<f4")

    def scored(parts: Iterator[np.ndarray]) -> float:
        return float(sum((part @ weights).sum() for part in parts))

    def slices(rows: np.ndarray) -> Iterator[np.ndarray]:
        return (rows[start : start + BUFFER_ROWS] for start in range(0, n, BUFFER_ROWS))

    def into_buffer() -> Iterator[np.ndarray]:
        for start in range(0, n, BUFFER_ROWS):
            stop = min(n, start + BUFFER_ROWS)
            h5.read_direct(buffer, np.s_[start:stop], np.s_[: stop - start])
            yield buffer[: stop - start]

    sides = {
        "np.memmap": lambda: scored(slices(plain)),
        "featx": lambda: scored(slices(store[LAYER])),
        "featx, blocks, checked": lambda: scored(rows for _, rows in store.blocks(LAYER, check=True)),
        "h5py, [:]": lambda: scored(slices(h5[:])),
        "h5py, [:], read only": lambda: h5[:],
        "h5py, blocks": lambda: scored(into_buffer()),
        "zarr, [:]": lambda: scored(slices(array[:])),
    }
    answers = [run() for name, run in sides.items() if "read only" not in name]
    assert np.allclose(answers, answers[0], rtol=1e-4), answers
    return in_turn(sides, repeats)


def random_rows(store: FeatureStore, plain: np.memmap, h5: h5py.Dataset, array: zarr.Array, repeats: int) -> dict:
    rng = np.random.default_rng(1)
    rows = rng.choice(len(plain), 5000, replace=False)
    keys = store.X[rows]
    in_order = np.sort(rows)
    back = np.argsort(np.argsort(rows))
    sides = {
        "np.memmap": lambda: plain[rows],
        "featx": lambda: store.take(store.rows(keys), LAYER),
        "featx, checked": lambda: store.take(store.rows(keys), LAYER, check=True),
        "h5py": lambda: h5[in_order][back],
        "zarr": lambda: array.oindex[rows],
    }
    for name, run in sides.items():
        assert np.array_equal(run(), sides["np.memmap"]()), name
    slow = in_turn({name: sides[name] for name in ("h5py", "zarr")}, 1)
    return in_turn({name: run for name, run in sides.items() if name not in slow}, 3 * repeats) | slow


def first_batch(folder: Path, shape: tuple[int, int], repeats: int) -> dict:
    """From a path to the first 256 rows that a training asks for."""
    rows = np.random.default_rng(2).choice(shape[0], 256, replace=False)
    keys = FeatureStore(folder / "rows.h5").X[rows]

    def ours() -> np.ndarray:
        store = FeatureStore(folder / "rows.h5")
        return store.take(store.rows(keys), LAYER)

    def by_h5py() -> np.ndarray:
        with h5py.File(folder / "h5py.h5") as file:
            return file["rows"][np.sort(rows)]

    sides = {
        "np.memmap": lambda: np.memmap(folder / "plain.bin", "<f4", "r", shape=shape)[rows],
        "featx, all metadata checked": ours,
        "h5py": by_h5py,
        "zarr": lambda: zarr.open_array(folder / "rows.zarr", mode="r").oindex[rows],
    }
    return in_turn(sides, repeats)


_LARGE = """
import json, sys, time
import numpy as np
from featx.store import FeatureStore

def private_MB():
    with open("/proc/self/smaps_rollup") as file:
        return {line.split(":")[0]: int(line.split()[1]) / 1e3 for line in file if line.startswith("Private_")}

before, started = private_MB(), time.perf_counter()
store = FeatureStore(sys.argv[1])
n = len(store)
rows = store.take(np.random.default_rng(3).integers(0, n, 1000), sys.argv[2])
seconds, after = time.perf_counter() - started, private_MB()
print(json.dumps([seconds, *(after[kind] - before[kind] for kind in ("Private_Dirty", "Private_Clean")), n]))
"""


def large(path: Path, repeats: int) -> dict:
    """In a new process: open, count, 1,000 random rows. Its own memory beyond the imports is "private"; "page cache" is
    the file's pages that it looks at, which every reader shares and the system takes back. "cold": none is there yet.
    """

    def run() -> list[float]:
        done = subprocess.run([sys.executable, "-c", _LARGE, path, LAYER], capture_output=True, check=True)
        return json.loads(done.stdout)

    def cold() -> list[float]:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
        return run()

    run()
    warm, colds = [run() for _ in range(repeats)], [cold() for _ in range(repeats)]
    return {
        "GB": path.stat().st_size / 1e9,
        "images": warm[0][3],
        "seconds": statistics.median(found[0] for found in warm),
        "private MB": max(found[1] for found in warm),
        "page cache MB": max(found[2] for found in warm),
        "cold, seconds": statistics.median(found[0] for found in colds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the files go; by default a temporary one")
    parser.add_argument("--gigabytes", type=float, default=1.6)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--large", type=float, default=8, help="gigabytes; 0 for none")
    options = parser.parse_args()
    width = options.width
    n = int(options.gigabytes * 1e9 / 4 / width)
    results: dict[str, dict] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        writers = {
            "plain write": (write_plain, folder / "plain.bin"),
            "plain write, preallocated": (partial(write_plain, preallocated=True), folder / "preallocated.bin"),
            "featx": (write_featx, folder / "rows.h5"),
            "h5py": (write_h5py, folder / "h5py.h5"),
            "zarr": (write_zarr, folder / "rows.zarr"),
        }
        taken: dict[str, list[float]] = {side: [] for side in writers}
        order = list(writers)
        for _ in range(options.repeats):
            order.append(order.pop(0))  # who comes first finds another disk than who comes after the others
            for side in order:
                write, path = writers[side]
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
                os.sync()
                time.sleep(1)
                taken[side].append(write(path, n, width))
        results["write, fsync"] = {side: statistics.median(values) for side, values in taken.items()}
        store = FeatureStore(folder / "rows.h5")
        store.verify()
        plain = np.memmap(folder / "plain.bin", "<f4", "r", shape=(n, width))
        array = zarr.open_array(folder / "rows.zarr", mode="r")
        with h5py.File(folder / "h5py.h5") as file:
            for start in range(0, n, BUFFER_ROWS):
                part = np.s_[start : start + BUFFER_ROWS]
                assert np.array_equal(store[LAYER][part], plain[part]) and np.array_equal(
                    file["rows"][part], plain[part]
                )
            results["full pass"] = full_pass(store, plain, file["rows"], array, options.repeats)
            results["5,000 random rows"] = random_rows(store, plain, file["rows"], array, options.repeats)
        results["path to first 256 rows"] = first_batch(folder, (n, width), options.repeats)
        del store, plain
        if options.large:
            for path in list(folder.iterdir()):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            write_featx(folder / "large.h5", int(options.large * 1e9 / 4 / width), width)
            results["large store"] = large(folder / "large.h5", options.repeats)
    for question, found in results.items():
        if question == "large store":
            print(f"{question}: " + ", ".join(f"{name} {value:,.3g}" for name, value in found.items()))
            continue
        base = next(iter(found.values()))
        print(f"\n{question} ({n:,} x {width:,} float32, {n * width * 4 / 1e9:.2f} GB)")
        for side, value in found.items():
            print(f"| {side} | {value:.4f} s | {base / value:.2f} |")
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "versions": {module.__name__: module.__version__ for module in (np, h5py, zarr)},
        "n": n,
        "width": width,
        "results": results,
    }
    output = Path(__file__).parent / "results" / "store.jsonl"
    output.parent.mkdir(exist_ok=True)
    with output.open("a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
