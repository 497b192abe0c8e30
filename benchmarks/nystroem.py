"""Does Nystroem -> LinearSVC reach SVC's accuracy, and how much sooner?

    python benchmarks/nystroem.py [--rows 10000] [--columns 1280] [--landmarks 2000] [--C 0.1 1 10] [--repeats 1]

All sides are fitted behind a StandardScaler on four fifths of the rows and predict the others, for each C, in turns:
SVC with the rbf kernel, featx's and scikit-learn's, and Nystroem -> LinearSVC with the same gamma. Each side's best
accuracy over the values of C counts, and the seconds of one fit and one prediction: the median over C and repeats. CPU
seconds are those of the process, for which other work on the machine counts little; the ratios are of them. Prints a
table and adds lines to benchmarks/results/nystroem.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from typing import Any

import sklearn.svm
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from solve import header
from solve_data import RESULTS, stand_in

from featx.learn import SVC, LinearSVC, Nystroem


def models(C: float, landmarks: int) -> dict[str, Any]:
    kernel = Nystroem(n_components=landmarks, random_state=0)  # gamma 1 / d, as "scale" after a StandardScaler
    return {
        "SVC": make_pipeline(StandardScaler(), SVC(C=C)),
        "scikit-learn's SVC": make_pipeline(StandardScaler(), sklearn.svm.SVC(C=C, cache_size=600)),
        "Nystroem -> LinearSVC": make_pipeline(StandardScaler(), kernel, LinearSVC(C=C)),
    }


def measured(model: Any, parts: list[Any]) -> dict[str, float]:
    """Seconds and CPU seconds of a fit and a prediction, and the accuracy."""
    train, test, y_train, y_test = parts
    began, before = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accuracy = float((model.fit(train, y_train).predict(test) == y_test).mean())
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - before,
        "accuracy": accuracy,
    }


def compared(parts: list[Any], Cs: list[float], landmarks: int, repeats: int) -> list[dict[str, Any]]:
    """A line of the table for each side."""
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(repeats):
        for C in Cs:
            for side, model in models(C, landmarks).items():
                runs.setdefault(side, []).append({"C": C, **measured(model, parts)})
                print(side, runs[side][-1], flush=True)
    return [
        {
            "side": side,
            "accuracy": max(run["accuracy"] for run in of_side),
            **{name: statistics.median(run[name] for run in of_side) for name in ("seconds", "cpu_seconds")},
            "runs": of_side,
        }
        for side, of_side in runs.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--columns", type=int, default=1280)
    parser.add_argument("--landmarks", type=int, default=2000)
    parser.add_argument("--C", nargs="+", type=float, default=[0.1, 1.0, 10.0])
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    X, y = stand_in(options.rows, options.columns, 10)
    parts = train_test_split(X, y, test_size=0.2, random_state=0)
    lines = compared(parts, options.C, options.landmarks, options.repeats)
    RESULTS.mkdir(exist_ok=True)
    head = header() | vars(options) | {"load": os.getloadavg()[0]}
    print(f"\n| {'':21} | accuracy, best | seconds | CPU seconds | SVC's / these | scikit-learn's / these |")
    for line in lines:
        ratios = [peer["cpu_seconds"] / line["cpu_seconds"] for peer in lines[:2]]
        print(
            f"| {line['side']:21} | {line['accuracy']:14.4f} | {line['seconds']:7.2f} | {line['cpu_seconds']:11.2f} | "
            f"{ratios[0]:13.1f} | {ratios[1]:22.1f} |"
        )
        with (RESULTS / "nystroem.jsonl").open("a") as file:
            file.write(json.dumps(head | line) + "\n")


if __name__ == "__main__":
    main()
