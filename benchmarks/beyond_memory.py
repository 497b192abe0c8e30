"""Fits on a store that is larger than the memory: how much they take, and how long a pass is beside a bare read.

    python benchmarks/beyond_memory.py [--gigabytes 12] [--limit-gigabytes 4] [--max-iter N] [--only logistic ...]

Makes a store of rows like those of efficientnet_lite0 (1,280 float32 columns, 10 classes) in --folder, unless it is
there, and fits each model on it in a process of its own that may use no more memory than the limit: a control group's,
which counts the file's cached pages too and drops them, or, where none can be made, RLIMIT_DATA. Prints a table and
adds lines to benchmarks/results/beyond_memory.jsonl. With --max-iter, fits stop after that many passes over the data.

A bare read sums the rows of the mapped layer in order. "A pass" is the time of the whole fit, with the passes before
the solver's first one, divided by the solver's passes. Memory is the process's largest anonymous memory (RssAnon): what
it holds beside the file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from solve import header
from solve_data import RESULTS, stand_in

GIGABYTE = 10**9
COLUMNS, CLASSES, BASE = 1280, 10, 20_000
GROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))  # of versions 1 and 2


class Generated:
    """(n, 1280) float32 rows that are computed when they are read: rows of `stand_in` with noise."""

    def __init__(self, n: int) -> None:
        self.base, self.y = stand_in(BASE, COLUMNS, CLASSES)
        self.deviations = 0.3 * self.base.std(0)
        self.shape, self.dtype = (n, COLUMNS), np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        positions = np.arange(*rows.indices(len(self)))
        noise = np.random.default_rng(rows.start).standard_normal((len(positions), COLUMNS), np.float32)
        return self.base[positions % BASE] + noise * self.deviations


def made(path: Path, n: int) -> Path:
    import featx

    if not path.exists():
        rows = Generated(n)
        featx.FeatureStore.from_arrays(path, {"features": rows}, y=rows.y[np.arange(n) % BASE])
    return path


def bare_read(store: Any, max_iter: int) -> dict[str, Any]:
    began = time.perf_counter()
    for _, rows in store.blocks("features"):
        rows.sum()
    return {"seconds": time.perf_counter() - began, "passes": 1}


def logistic(store: Any, max_iter: int) -> dict[str, Any]:
    """Five values of C, three folds, a scaler of each fold; then the best one on all rows."""
    from sklearn.pipeline import make_pipeline

    from featx.learn import GridSearchCV, LogisticRegression, StandardScaler, StoredFeatures

    pipeline = make_pipeline(StoredFeatures(store), StandardScaler(), LogisticRegression(max_iter=max_iter))
    search = GridSearchCV(pipeline, {"logisticregression__C": np.logspace(-7, -4, 5)}, cv=3)
    began = time.perf_counter()
    search.fit(store.X, store.y)
    seconds = time.perf_counter() - began
    last = search.best_estimator_["logisticregression"]
    return {
        "seconds": seconds - search.refit_time_,
        "refit_seconds": search.refit_time_,
        "refit_passes": int(last.n_iter_[0]),
        "best": search.best_params_,
        "scores": search.cv_results_["mean_test_score"].tolist(),
    }


def fitted(store: Any, estimator: Any) -> dict[str, Any]:
    """One fit behind a scaler."""
    from sklearn.pipeline import make_pipeline

    from featx.learn import StandardScaler, StoredFeatures

    pipeline = make_pipeline(StoredFeatures(store), StandardScaler(), estimator)
    began = time.perf_counter()
    pipeline.fit(store.X, store.y)
    seconds = time.perf_counter() - began
    few = store.X[:: max(1, len(store) // 2000)]
    accuracy = pipeline.score(few, store.y[:: max(1, len(store) // 2000)])
    return {"seconds": seconds, "passes": _passes(estimator), "accuracy": accuracy}


def _passes(estimator: Any) -> int:
    n_iter = getattr(estimator, "n_iter_", None)
    return 0 if n_iter is None else int(np.max(n_iter))


def linear_svc(store: Any, max_iter: int) -> dict[str, Any]:
    from featx.learn import LinearSVC

    return fitted(store, LinearSVC(C=1e-5, max_iter=max_iter))


def ridge(store: Any, max_iter: int) -> dict[str, Any]:
    from featx.learn import RidgeClassifier

    return fitted(store, RidgeClassifier())


def neighbors(store: Any, max_iter: int) -> dict[str, Any]:
    """1,000 images' neighbours among all."""
    from sklearn.pipeline import make_pipeline

    from featx.learn import KNeighborsClassifier, StoredFeatures

    pipeline = make_pipeline(StoredFeatures(store), KNeighborsClassifier(10)).fit(store.X, store.y)
    chosen = np.random.default_rng(0).choice(len(store), 1000, replace=False)
    began = time.perf_counter()
    distances, positions = pipeline[-1].kneighbors(np.asarray(store.take(chosen, "features")))
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "passes": 1, "found_themselves": float((positions[:, 0] == chosen).mean())}


def probe(store: Any, max_iter: int) -> dict[str, Any]:
    from featx.learn import linear_probe

    began = time.perf_counter()
    result = linear_probe(store, C=np.logspace(-8, -6, 5), allow_duplicates=True)
    return {"seconds": time.perf_counter() - began, "accuracy": result.curves[0].test}


PARTS: dict[str, Callable[[Any, int], dict[str, Any]]] = {
    "bare_read": bare_read,
    "ridge": ridge,
    "neighbors": neighbors,
    "linear_svc": linear_svc,
    "logistic": logistic,
    "probe": probe,
}


@contextlib.contextmanager
def limited(nbytes: int) -> Iterator[Path | None]:
    """A control group with this limit, or None where none can be made."""
    for root in GROUPS:
        limit = "memory.limit_in_bytes" if root.name == "memory" else "memory.max"
        group = root / f"featx-{os.getpid()}"
        try:
            group.mkdir()
            (group / limit).write_text(str(nbytes))
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        try:
            yield group
        finally:
            with contextlib.suppress(OSError):
                group.rmdir()
        return
    yield None


def child(name: str, path: Path, limit: int, group: str, max_iter: int) -> None:
    """Run a part under the limit, and print what it measured."""
    if group:
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    else:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    import featx

    most, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            anonymous = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
            most[0] = max(most[0], int(anonymous.split()[1]) * 1024)

    threading.Thread(target=watch, daemon=True).start()
    began = time.process_time()
    measured = PARTS[name](featx.FeatureStore(path), max_iter)
    ended.set()
    print(json.dumps({"cpu_seconds": time.process_time() - began, "anonymous_bytes": most[0], **measured}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=12)
    parser.add_argument("--limit-gigabytes", type=float, default=4)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--max-iter", type=int, default=1000)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        name, path, limit, group = chosen.child
        child(name, Path(path), int(limit), group, chosen.max_iter)
        return
    n, limit = int(chosen.gigabytes * GIGABYTE / 4 / COLUMNS), int(chosen.limit_gigabytes * GIGABYTE)
    path = made(chosen.folder / f"beyond-{n}.h5", n)
    print(header())
    print(
        f"{n:,} rows, {COLUMNS:,} columns, {path.stat().st_size / GIGABYTE:.1f} GB; {limit / GIGABYTE:.1f} GB allowed"
    )
    RESULTS.mkdir(exist_ok=True)
    with limited(limit) as group, (RESULTS / "beyond_memory.jsonl").open("a") as lines:
        print("limit:", "control group" if group else "RLIMIT_DATA", flush=True)
        for name in chosen.only:
            with path.open("rb") as file:  # so that pages are read by the process, and counted as its own
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            command = [sys.executable, __file__, "--max-iter", str(chosen.max_iter)]
            command += ["--child", name, str(path), str(limit), str(group or "")]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{name}: exit code {done.returncode}\n{done.stderr[-2000:]}", flush=True)
                continue
            measured = {
                "part": name,
                "n": n,
                "limit": limit,
                "max_iter": chosen.max_iter,
                **json.loads(done.stdout.splitlines()[-1]),
            }
            lines.write(json.dumps(measured) + "\n")
            lines.flush()
            per_pass = measured["seconds"] / measured["passes"] if measured.get("passes") else float("nan")
            print(
                f"{name:12} {measured['seconds']:8.0f} s  {per_pass:7.1f} s a pass  "
                f"{measured['anonymous_bytes'] / GIGABYTE:5.2f} GB  {json.dumps(measured)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
