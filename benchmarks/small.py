"""Are small problems ever slower than scikit-learn's, on a machine of one's own or beside other work?

    python benchmarks/small.py [--rows 200 500 1000 2000] [--columns 24 192 1280] [--sections quiet busy] [--quick]

logistic, linear_svc : make_pipeline(StandardScaler(), model), 8 C x 5 folds, 10 classes
search : `featx search` as it is, on 1,000 images x 8 layers, in a process of its own, imports and all; the peer's same
    pipelines, grids and folds of 800 images are searched by scikit-learn's GridSearchCV in this process

The busy section has two processes beside it that count without end. The peer has the better of two settings in each
section, found by trying both: a process a core with one thread each (workers already started), and one process with one
thread. Both sides have their defaults. They get the same float32 rows and folds, in turns; medians of three runs, or
one where a run takes more than 10 s. Before any time counts, mean accuracies are compared, and the objectives of one
fold's models, computed anew in float64. `--quick` has two sizes only. Prints a table and adds lines to
benchmarks/results/small.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import sklearn.linear_model
import sklearn.model_selection
import sklearn.svm
from search_store import write_layers
from sklearn.base import clone
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from solve import Fitted, header, logistic, squared_hinge
from solve_data import RESULTS, grid, stand_in
from threadpoolctl import threadpool_limits

import featx
from featx.learn import GridSearchCV, LinearSVC, LogisticRegression

SLOW_SECONDS = 10
WIDTHS = (16, 24, 40, 80, 112, 192, 320, 1280)
MODELS = {
    "logistic": (LogisticRegression(), sklearn.linear_model.LogisticRegression(), grid(-5, 2, 8), logistic),
    "linear_svc": (LinearSVC(), sklearn.svm.LinearSVC(), grid(-5, -2, 8), squared_hinge),
}
Timed = Callable[[], Any]


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def seconds_of(run: Timed) -> tuple[float, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # who did not converge is scored all the same
        started = time.perf_counter()
        found = run()
        return time.perf_counter() - started, found


def alone(run: Timed) -> Any:
    with threadpool_limits(1):
        return run()


def spread(run: Timed) -> Any:
    with joblib.parallel_config("loky", n_jobs=len(os.sched_getaffinity(0)), inner_max_num_threads=1):
        return run()


SETTINGS = {"one process": alone, "a process a core": spread}


def timed(mine: Timed, theirs: Timed) -> dict[str, Any]:
    """Seconds of both in turns, the peer at the better of its settings, and what they found."""
    tried = {name: seconds_of(partial(setting, theirs)) for name, setting in SETTINGS.items()}
    setting = min(tried, key=lambda name: tried[name][0])
    runs: dict[str, list[float]] = {"ours": [], "peer": [tried[setting][0]]}
    first, found = seconds_of(mine)
    runs["ours"].append(first)
    for _ in range(2):
        if max(runs["ours"][0], runs["peer"][0]) <= SLOW_SECONDS:
            runs["ours"].append(seconds_of(mine)[0])
            runs["peer"].append(seconds_of(partial(SETTINGS[setting], theirs))[0])
    return {"seconds": runs, "setting": setting, "found": found, "peer_found": tried[setting][1]}


def grid_cell(name: str, X: np.ndarray, y: np.ndarray, compared: bool) -> dict[str, Any]:
    """A grid of C: scores within 0.03 and, with `compared`, objectives of the first fold's models."""
    ours, theirs, Cs, formula = MODELS[name]
    cv = list(StratifiedKFold(5, shuffle=True, random_state=0).split(X, y))
    sides = {}
    for search, model in ((GridSearchCV, ours), (sklearn.model_selection.GridSearchCV, theirs)):
        pipe = Pipeline([("scale", StandardScaler()), ("model", model)])
        sides[model] = search(pipe, {"model__C": Cs}, cv=cv, scoring="accuracy", refit=False)
    line = timed(*(partial(search.fit, X, y) for search in sides.values()))
    tables = [line.pop(side).cv_results_["mean_test_score"] for side in ("found", "peer_found")]
    line |= {"cell": name, "rows": len(X), "columns": X.shape[1], "apart": float(np.abs(tables[0] - tables[1]).max())}
    if compared:
        train = cv[0][0]
        Z = StandardScaler().fit_transform(X[train])
        values = np.array([[objective(model, C, Z, y[train], formula) for model in (ours, theirs)] for C in Cs])
        line["above"] = float((values[:, 0] / values[:, 1] - 1).max())
    return line


def objective(model: Any, C: float, Z: np.ndarray, y: np.ndarray, formula: Callable[..., float]) -> float:
    _, fitted = seconds_of(partial(clone(model).set_params(C=C).fit, Z, y))
    found = Fitted(fitted.coef_, fitted.intercept_, int(np.max(fitted.n_iter_)))
    return formula(Z.astype(float) @ found.coef.T + found.intercept, y, found, C)


def search_cell(store: featx.FeatureStore, path: Path) -> dict[str, Any]:
    """The command, and scikit-learn's own search of what it searches."""
    from featx.catalogue import ESTIMATORS

    y = np.asarray(store.y)
    train = np.random.default_rng(0).permutation(len(y))[: 4 * len(y) // 5]
    peers = {"logistic_regression": sklearn.linear_model.LogisticRegression(max_iter=1000)}
    peers |= {"linear_svm": sklearn.svm.LinearSVC(), "rbf_svm": sklearn.svm.SVC()}
    grids = [{"model": [peer], "model__C": ESTIMATORS[name].values} for name, peer in peers.items()]
    pipe = Pipeline([("scale", StandardScaler()), ("model", None)])
    cv = StratifiedKFold(5, shuffle=True, random_state=0)
    theirs = sklearn.model_selection.GridSearchCV(pipe, grids, cv=cv, scoring="accuracy", refit=False)

    def peer() -> float:
        rows = (np.asarray(store[layer])[train] for layer in store.layers)
        return max(float(clone(theirs).fit(X, y[train]).cv_results_["mean_test_score"].max()) for X in rows)

    def command() -> float:
        results = path.with_suffix(".json")
        program = "from featx.cli import main; main()"
        asked = [sys.executable, "-c", program, "search", str(path), "--results", str(results)]
        subprocess.run(asked, check=True, capture_output=True)
        return max(candidate["mean"] for candidate in json.loads(results.read_text())["results"])

    line = timed(command, peer)
    line |= {"cell": "search", "rows": len(y), "columns": len(store.layers)}
    return line | {"apart": abs(line.pop("found") - line.pop("peer_found"))}  # of the best, on other 800 images


COLUMNS = ("section", "cell", "rows", "columns", "ours, s", "peer, s", "ratio", "peer's setting", "apart", "above")


def line_of(found: dict[str, Any]) -> dict[str, str]:
    ours, peer = (statistics.median(found["seconds"][side]) for side in ("ours", "peer"))
    return {
        **{name: f"{found[name]:,}" if name in ("rows", "columns") else found[name] for name in COLUMNS[:4]},
        "ours, s": f"{ours:.2f}",
        "peer, s": f"{peer:.2f}",
        "ratio": f"{peer / ours:.2f}",
        "peer's setting": found["setting"],
        "apart": f"{found['apart']:.3f}",
        "above": f"{found['above']:+.1e}" if "above" in found else "",
    }


def cells(options: argparse.Namespace, section: str, path: Path) -> Iterator[Callable[[], dict[str, Any]]]:
    for d in options.columns:
        X, y = stand_in(max(options.rows), d, 10)
        for n in options.rows:
            for name in MODELS:
                yield partial(grid_cell, name, X[:n], y[:n], compared=section == options.sections[0])
    if not path.exists():
        write_layers(path, *stand_in(1000, max(WIDTHS), 10), widths=WIDTHS)
    yield partial(search_cell, featx.FeatureStore(path), path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=[200, 500, 1000, 2000])
    parser.add_argument("--columns", nargs="+", type=int, default=[24, 192, 1280])
    parser.add_argument("--sections", nargs="+", choices=("quiet", "busy"), default=["quiet", "busy"])
    parser.add_argument("--store", type=Path, help="search this one instead of a stand-in of 1,000 images x 8 layers")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rows, options.columns = [200, 1000], [24, 192]
    RESULTS.mkdir(exist_ok=True)
    head = header() | {"featx": featx.__version__, "load": os.getloadavg()[0]}
    warm = stand_in(200, 24, 10)
    for name in MODELS:
        grid_cell(name, *warm, compared=False)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        path = options.store or Path(folder) / "layers.h5"
        for section in options.sections:
            with busy(2 if section == "busy" else 0):
                for cell in cells(options, section, path):
                    lines.append({"section": section} | cell())
                    print({name: value for name, value in lines[-1].items() if name != "peer_found"}, file=sys.stderr)
                    with (RESULTS / "small.jsonl").open("a") as file:
                        file.write(json.dumps(head | lines[-1]) + "\n")
    versions = ", ".join(f"{module} {version}" for module, version in head["versions"].items())
    print(f"{head['date']}, {head['cpu']}, {head['cores']} cores, load {head['load']:.1f} before; {versions}\n")
    table = [line_of(found) for found in lines]
    widths = {name: max(len(name), *(len(values[name]) for values in table)) for name in COLUMNS}
    for values in [{name: name for name in COLUMNS}, {name: "-" * widths[name] for name in COLUMNS}, *table]:
        print("| " + " | ".join(values[name].rjust(widths[name]) for name in COLUMNS) + " |")
    for found in lines:
        if found["apart"] > (0.06 if found["cell"] == "search" else 0.03) or found.get("above", 0) > 1e-3:
            print(f"!!! {found['section']} {found['cell']} {found['rows']} x {found['columns']}: ANSWERS DIFFER")


if __name__ == "__main__":
    main()
