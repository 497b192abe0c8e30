"""Cell "store" of benchmarks/search.py: a store of five layers, and a search of it in a process of its own.

    python benchmarks/search_store.py STORE

Prints a line of JSON: the time, the best of each estimator, and the proportional set size.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from solve_data import grid

from featx.learn import SVC, GridSearchCV, LinearSVC, LogisticRegression, StoredFeatures
from featx.store import FeatureStore, Recipe, StoreWriter

FOLDS = 5
WIDTHS = (1280, 320, 192, 112, 80)


def write_layers(path: Path, X: np.ndarray, y: np.ndarray, widths: Sequence[int] = WIDTHS) -> None:
    """A store of some layers: the rows, and seeded random projections of them."""
    rng = np.random.default_rng(3)
    layers = {f"layer{i}:avg": width for i, width in enumerate(widths)}
    taps = {
        name: {"node": name.split(":")[0], "pool": "avg", "layout": "bchw", "shape": [width]}
        for name, width in layers.items()
    }
    recipe = Recipe(
        "torchvision:resnet18", None, "0" * 64, {"crop": [32, 32], "resize": 32}, "none", taps, {}, "eager", "float32",
        None, 64, "float32", "cpu", 1, {}, None,
    )  # fmt: skip
    rows = {
        name: X if width == X.shape[1] else X @ rng.normal(size=(X.shape[1], width), scale=width**-0.5).astype("f4")
        for name, width in layers.items()
    }
    digests = np.arange(2 * len(X), dtype="<u8").view(np.uint8).reshape(len(X), 16)
    with StoreWriter(path, recipe, [f"image {i}" for i in range(len(X))], y.astype(str)) as writer:
        for start in range(0, len(X), 64):
            block = slice(start, start + 64)
            some = {name: matrix[block] for name, matrix in rows.items()}
            writer.write(np.arange(len(X))[block], some, digests[block])
        writer.finish()


def searched_store(path: Path) -> dict[str, Any]:
    """The search of cell "store", and how much memory it took: printed by a process of its own."""
    store = FeatureStore(path)
    model = Pipeline([("features", StoredFeatures(store)), ("scale", StandardScaler()), ("model", None)])
    grids = [
        {"features__layer": list(store.layers), "model": [estimator], "model__C": list(values)}
        for estimator, values in (
            (LogisticRegression(), grid(-5, 2, 8)),
            (LinearSVC(), grid(-5, 2, 8)),
            (SVC(), grid(-1, 2, 8)),
        )
    ]
    cv = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    search = GridSearchCV(model, grids, cv=cv, scoring="accuracy", refit=False)
    plan = search.plan(store.X, store.y)
    print(plan, file=sys.stderr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # who did not converge is scored all the same
        clone(search).set_params(cv=2).fit(store.X[:300], np.asarray(store.y)[:300])  # warm: torch is imported
        with Sampled() as memory:
            started = time.perf_counter()
            search.fit(store.X, store.y)
            seconds = time.perf_counter() - started
    scores, params = search.cv_results_["mean_test_score"], search.cv_results_["params"]
    best: dict[str, list[Any]] = {}
    for score, chosen in zip(scores, params, strict=True):
        name = type(chosen["model"]).__name__
        best[name] = max(best.get(name, [0.0]), [float(score), chosen["features__layer"], float(chosen["model__C"])])
    largest = max(store[layer].nbytes for layer in store.layers)
    return {
        "rows": len(store.X),
        "fits": len(scores) * FOLDS,
        "seconds": {"ours": [seconds]},
        "ours": seconds,
        "best": best,
        "failed": int(np.isnan(scores).sum()),
        "memory": {"before": memory.before, "peak": memory.peak, "largest_layer": largest, "budget": plan.budget_bytes},
    }


class Sampled:
    """Bytes of PSS before, and the most of 20 looks a second until the end."""

    def __enter__(self) -> Sampled:
        self.before = self.peak = _pss()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def _look(self) -> None:
        while not self.ended.wait(0.05):
            self.peak = max(self.peak, _pss())

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()


def _pss() -> int:
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) * 1024


if __name__ == "__main__":
    print(json.dumps(searched_store(Path(sys.argv[1]))))
