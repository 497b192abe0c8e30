"""How long does a search take, and what does it hold in memory? GridSearchCV of featx.learn against scikit-learn's.

    python benchmarks/search.py [--cell logistic svc linear_svc knn store] [--fashion DIR] [--repeats 3] [--rows 10000]

logistic:   make_pipeline(StandardScaler(), LogisticRegression()), 8 C x 5 folds
svc:        SVC, 3 C x 2 gamma x 5 folds
linear_svc: LinearSVC, 4 C x 5 folds
knn:        KNeighborsClassifier by cosine, 7 k x 5 folds; no target was set
store:      five layers x (LogisticRegression, LinearSVC, SVC) x 8 C x 5 folds, each after a StandardScaler; ours alone,
            in a process of its own: time, and the largest proportional set size (PSS) above that before the search,
            beside 2.5 x the largest layer plus the budget that the plan states

The peer has its estimators at their default tol and max_iter (100 for logistic regression, 1000 for LinearSVC), a
process a core with one thread each, and for its SVC a cache that holds a fold's kernel. Ours have their defaults, in
one process. Both get the same float32 rows and folds and end with the same table of mean accuracies, which is compared
before any time counts. Rows are those of cell A of solve.py: with --fashion (a folder of Fashion-MNIST's gzipped
files) features of the bundled backbone, else a stand-in of their spectrum. Sides take turns, medians count; a side that
takes more than 60 s runs once. Prints a table and adds lines to benchmarks/results/search.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import sklearn.linear_model
import sklearn.model_selection
import sklearn.neighbors
import sklearn.svm
from search_store import FOLDS, write_layers
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from solve import header, in_turn
from solve_data import CELLS, RESULTS, features, grid

import featx
from featx.learn import SVC, GridSearchCV, KNeighborsClassifier, LinearSVC, LogisticRegression


@dataclass(frozen=True)
class Question:
    """One search, asked of both.

    target : how many times as fast ours is to be, if anybody said
    tolerance : of mean accuracies; larger where the peer's iterations run out
    """

    ours: Any
    theirs: Any
    grid: Mapping[str, Any]
    target: float | None
    tolerance: float


QUESTIONS = {
    "logistic": Question(
        make_pipeline(StandardScaler(), LogisticRegression()),
        make_pipeline(StandardScaler(), sklearn.linear_model.LogisticRegression()),
        {"logisticregression__C": grid(-5, 2, 8)},
        5,
        0.01,
    ),
    "svc": Question(
        SVC(),
        sklearn.svm.SVC(cache_size=600),
        {"C": (1.0, 10.0, 100.0), "gamma": ("scale", "auto")},
        10,
        0.0005,
    ),
    "linear_svc": Question(LinearSVC(), sklearn.svm.LinearSVC(), {"C": grid(-5, -2, 4)}, 25, 0.002),
    "knn": Question(
        KNeighborsClassifier(metric="cosine"),
        sklearn.neighbors.KNeighborsClassifier(metric="cosine"),
        {"n_neighbors": (1, 5, 10, 20, 50, 100, 200)},
        None,
        0.0005,
    ),
}


@dataclass
class Side:
    seconds: float
    results: Mapping[str, Any]  # cv_results_


def run(search: Any, processes: int | None, X: np.ndarray, y: np.ndarray) -> Side:
    """A search, in one process or in several with one thread each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # who did not converge is scored all the same
        started = time.perf_counter()
        if processes is None:
            search.fit(X, y)
        else:
            with joblib.parallel_config("loky", n_jobs=processes, inner_max_num_threads=1):
                search.fit(X, y)
        return Side(time.perf_counter() - started, search.cv_results_)


def compare(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A line of the table."""
    X, y = rows_of(options)
    question = QUESTIONS[name]
    cv = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(X, y))
    mine = GridSearchCV(question.ours, question.grid, cv=cv, scoring="accuracy", refit=False)
    theirs = sklearn.model_selection.GridSearchCV(
        question.theirs, question.grid, cv=cv, scoring="accuracy", refit=False
    )
    print(mine.plan(X, y), file=sys.stderr)
    few = np.arange(min(500, len(X)))
    run(sklearn.clone(mine).set_params(cv=2), None, X[few], y[few])  # warm
    if not options.ours_only:
        run(sklearn.clone(theirs).set_params(cv=2), options.peer_processes, X[few], y[few])
    sides: dict[str, Callable[[], Any]] = {
        "ours": partial(run, mine, None, X, y),
        "peer": partial(run, theirs, options.peer_processes, X, y),
    }
    if options.ours_only:
        del sides["peer"]
    runs: dict[str, Any] = in_turn(sides, options.repeats)
    scores = {side: found[0].results["mean_test_score"] for side, found in runs.items()}
    seconds = {side: [one.seconds for one in found] for side, found in runs.items()}
    found = {
        "cell": name,
        "rows": len(X),
        "fits": len(scores["ours"]) * FOLDS,
        "seconds": seconds,
        "ours": statistics.median(seconds["ours"]),
        "scores": {side: table.tolist() for side, table in scores.items()},
        "best": {side: repr(one[0].results["params"][int(scores[side].argmax())]) for side, one in runs.items()},
        "target": question.target,
        "tolerance": question.tolerance,
    }
    if "peer" in runs:
        found["peer"] = statistics.median(seconds["peer"])
        found["apart"] = float(np.abs(scores["ours"] - scores["peer"]).max())
    return found


def rows_of(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """X (n, d) float32 and y, the first of cell A's."""
    cell = CELLS["A"] if options.fashion else replace(CELLS["A"], n=options.rows, d=options.columns)
    X, y = features(cell, options.fashion)
    return np.ascontiguousarray(X[: options.rows]), y[: options.rows]


def stored(name: str, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layers.h5"
        write_layers(path, *rows_of(options))
        command = [sys.executable, str(Path(__file__).with_name("search_store.py")), str(path)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {"cell": name} | json.loads(done.stdout.splitlines()[-1])


CASES = {**dict.fromkeys(QUESTIONS, compare), "store": stored}
COLUMNS = ("cell", "rows", "fits", "ours, s", "peer, s", "ratio", "target", "accuracies apart")


def line(found: dict[str, Any]) -> dict[str, str]:
    """A line of the table."""
    values = {"cell": found["cell"], "rows": f"{found['rows']:,}", "fits": f"{found['fits']:,}"}
    values["ours, s"] = f"{found['ours']:.2f}"
    if "peer" in found:
        values |= {"peer, s": f"{found['peer']:.2f}", "ratio": f"{found['peer'] / found['ours']:.2f}"}
        values |= {"target": f"{found['target'] or '-'}", "accuracies apart": f"{found['apart']:.1e}"}
    return values


def notes(found: dict[str, Any]) -> list[str]:
    """What does not fit into the line."""
    told = [f"{found['cell']}: {', '.join(f'{side} ran {len(runs)} x' for side, runs in found['seconds'].items())}"]
    told.append(f"    best: {found['best']}")
    if "memory" in found:
        memory = found["memory"]
        largest = 2.5 * memory["largest_layer"] / 1e9
        told.append(
            f"    memory, GB: {(memory['peak'] - memory['before']) / 1e9:.3f} above {memory['before'] / 1e9:.3f}; "
            f"2.5 x the largest layer is {largest:.3f}, with the budget {largest + memory['budget'] / 1e9:.3f}; "
            f"{found['failed']} candidates failed"
        )
    if found.get("apart", 0) > found.get("tolerance", 1):
        told.append(f"!!! {found['cell']}: MEAN ACCURACIES ARE {found['apart']:.4f} APART, not {found['tolerance']}")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--fashion", type=Path, help="folder of train-images-idx3-ubyte.gz and its labels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--columns", type=int, default=1280, help="of the stand-in")
    parser.add_argument("--peer-processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--ours-only", action="store_true")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    head = header() | {"featx": featx.__version__, "options": {k: str(v) for k, v in vars(options).items()}}
    head["options"]["fashion"] = str(options.fashion is not None)
    results = []
    for name in options.cell:
        print(name, file=sys.stderr)
        results.append(CASES[name](name, options))
        with (RESULTS / "search.jsonl").open("a") as file:
            file.write(json.dumps(head | results[-1]) + "\n")
    versions = ", ".join(f"{module} {version}" for module, version in head["versions"].items())
    print(f"{head['date']}, {head['cpu']}, {head['cores']} cores, {head['gpu'] or 'no GPU'}; {versions}")
    print(f"{options.peer_processes} peer processes\n")
    lines = [line(found) for found in results]
    widths = {name: max(len(name), *(len(values.get(name, "")) for values in lines)) for name in COLUMNS}
    for values in [{name: name for name in COLUMNS}, {name: "-" * widths[name] for name in COLUMNS}, *lines]:
        print("| " + " | ".join(values.get(name, "").rjust(widths[name]) for name in COLUMNS) + " |")
    print()
    for found in results:
        print("\n".join(notes(found)))


if __name__ == "__main__":
    main()
