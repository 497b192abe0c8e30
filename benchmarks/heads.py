"""Perceptrons as heads: CPU seconds and accuracy of a search over alpha, beside scikit-learn's and a linear probe's.

    python benchmarks/heads.py [--rows 2000] [--columns 1280] [--hidden 1024] [--epochs 20] [--repeats 2]

Each side searches the same folds behind a StandardScaler, in turns: MLPClassifier of featx.learn in float32 and in
bfloat16, with two threads; scikit-learn's in GridSearchCV(n_jobs=2), one thread a process; and featx's
LogisticRegression. CPU seconds are those of the process and its workers, so that other work on the machine counts for
little; what starting the workers takes is measured on a small search and subtracted. Initial coefficients and the order
of rows are the same on all sides, and in float32 so are the accuracies, within 0.005. Prints a table and adds lines to
benchmarks/results/heads.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import joblib
import numpy as np
import sklearn.model_selection
import sklearn.neural_network
import torch
from joblib.externals.loky import get_reusable_executor
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from solve import header
from solve_data import RESULTS, stand_in

from featx.learn import GridSearchCV, LogisticRegression, MLPClassifier

ALPHAS = [1e-4, 1e-2, 1.0, 100.0]
FOLDS = 5


def searches(hidden: list[int], epochs: int) -> dict[str, Callable[[], Any]]:
    """Functions that make the search of each side."""
    cv = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    settings: dict[str, Any] = {"hidden_layer_sizes": hidden, "max_iter": epochs, "tol": 0.0, "random_state": 0}

    def made(search: type, model: Any, values: dict[str, list[float]], **options: Any) -> Any:
        pipe = make_pipeline(StandardScaler(), model)
        grid = {f"{pipe.steps[-1][0]}__{name}": choices for name, choices in values.items()}
        return search(pipe, grid, cv=cv, refit=False, **options)

    theirs = sklearn.model_selection.GridSearchCV, sklearn.neural_network.MLPClassifier(**settings)
    return {
        "featx, float32": partial(made, GridSearchCV, MLPClassifier(**settings), {"alpha": ALPHAS}),
        "featx, bfloat16": partial(
            made, GridSearchCV, MLPClassifier(precision="bfloat16", **settings), {"alpha": ALPHAS}
        ),
        "scikit-learn": partial(made, *theirs, {"alpha": ALPHAS}, n_jobs=2),
        "featx, LogisticRegression": partial(made, GridSearchCV, LogisticRegression(), {"C": [1e-4, 1e-3, 1e-2, 0.1]}),
    }


def measured(search: Any, X: np.ndarray, y: np.ndarray) -> tuple[float, float, np.ndarray]:
    """CPU seconds, seconds, and mean accuracies."""
    began, before = time.perf_counter(), sum(os.times()[:4])
    with warnings.catch_warnings(), joblib.parallel_config("loky", inner_max_num_threads=1):
        warnings.simplefilter("ignore")
        search.fit(X, y)
        seconds = time.perf_counter() - began
        get_reusable_executor().shutdown(wait=True)  # the times of workers count once they have ended
    return sum(os.times()[:4]) - before, seconds, search.cv_results_["mean_test_score"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--columns", type=int, default=1280)
    parser.add_argument("--hidden", nargs="*", type=int, default=[1024])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(2)
    os.environ["PYTHONWARNINGS"] = "ignore"  # of the workers: epochs run out
    X, y = stand_in(options.rows, options.columns, 10)
    X = X.astype(np.float32)
    sides = searches(options.hidden, options.epochs)
    tiny = searches([2], 1)
    start = {side: measured(make(), X[:100, :4], y[:100])[0] for side, make in tiny.items()}
    runs: dict[str, list[tuple[float, float, np.ndarray]]] = {side: [] for side in sides}
    for _ in range(options.repeats):
        for side, make in sides.items():
            cpu, seconds, scores = measured(make(), X, y)
            runs[side].append((max(0.0, cpu - start[side]), seconds, scores))
            print(side, f"{runs[side][-1][0]:.1f} CPU seconds", scores.round(4), flush=True)
    peer = statistics.median(cpu for cpu, *_ in runs["scikit-learn"])
    expected = runs["scikit-learn"][0][2]
    RESULTS.mkdir(exist_ok=True)
    head = header() | vars(options) | {"load": os.getloadavg()[0]}
    print(f"\n| {'':26} | CPU s | x scikit-learn's | accuracy, best | largest difference |")
    for side, results in runs.items():
        cpu = statistics.median(cpu for cpu, *_ in results)
        scores = results[0][2]
        apart = float("nan") if "Logistic" in side else float(np.abs(scores - expected).max())
        print(f"| {side:26} | {cpu:5.1f} | {cpu / peer:16.2f} | {scores.max():14.4f} | {apart:18.4f} |")
        line = {"side": side, "cpu_seconds": [cpu for cpu, *_ in results], "scores": scores.tolist(), "apart": apart}
        with (RESULTS / "heads.jsonl").open("a") as file:
            file.write(json.dumps(head | line) + "\n")
        if apart > (0.005 if side != "featx, bfloat16" else 0.02):
            print(f"!!! {side}: ANSWERS DIFFER")


if __name__ == "__main__":
    main()
