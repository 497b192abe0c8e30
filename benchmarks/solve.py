"""How fast is a grid of linear models solved, and how well? Against scikit-learn, and against bare matrix products.

    python benchmarks/solve.py [--cell A A-SVC B C D] [--fashion DIR] [--repeats 3] [--converged]

A, A-SVC, B: GridSearchCV at its best settings (a process a core, one thread each), and `fit_many` with the folds as
    row weights and scoring of what is held out: both end with the same table of accuracies. With --fashion (a folder
    of Fashion-MNIST's gzipped files) A's rows are features of the bundled backbone, else a stand-in of their spectrum.
C:  more rows than the memory budget holds, from a memory map, in a process of its own; against the bare products.
D:  a linear probe's sweep at ImageNet's size, on a GPU; against the bare products.

Sides take turns, medians count; a side that takes more than 60 s runs once. The objective of every problem is computed
anew in float64 from the coefficients: C sum l + |W|^2/2, divided by the number of the fold's rows. FLOP/s: two products
of n rows (of those too that a fold holds out), min(n, d) columns and k scores for each of a problem's passes, nothing
else; GEMM is these two products bare, for all problems at once, at their best. Prints a table and adds lines to
benchmarks/results/solve.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import sklearn.linear_model
import sklearn.svm
import torch
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from solve_data import CELLS, RESULTS, SLOW_SECONDS, Cell, features
from solve_large import gemm, mapped, sweep

from featx.learn import Fit, LinearSVC, LogisticRegression

LOGISTIC = (LogisticRegression, sklearn.linear_model.LogisticRegression)
SVC = (LinearSVC, sklearn.svm.LinearSVC)


@dataclass
class Fitted:
    coef: np.ndarray  # (k, d)
    intercept: np.ndarray  # (k,)
    n_iter: int


@dataclass
class Side:
    """One run: what was fitted for each C and each fold, and the accuracies (len(C), folds)."""

    seconds: float
    fitted: list[list[Fitted]]
    accuracy: np.ndarray

    def n_iter(self) -> list[list[int]]:
        return [[fitted.n_iter for fitted in of_C] for of_C in self.fitted]


Folds = Sequence[tuple[np.ndarray, np.ndarray]]


def ours(estimator: Any, X: np.ndarray, y: np.ndarray, Cs: Sequence[float], folds: Folds) -> Side:
    started = time.perf_counter()
    weights = [np.bincount(train, minlength=len(X)).astype(X.dtype) for train, _ in folds]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # who did not converge is counted from n_iter_
        models = estimator.fit_many(X, y, [Fit({"C": C}, fold) for C in Cs for fold in weights])
    rows = [models[start : start + len(folds)] for start in range(0, len(models), len(folds))]
    accuracy = np.empty((len(Cs), len(folds)))
    for j, (_, test) in enumerate(folds):
        held_out = X[test]
        for i, of_C in enumerate(rows):
            accuracy[i, j] = np.mean(of_C[j].predict(held_out) == y[test])
    seconds = time.perf_counter() - started
    return Side(seconds, [[_fitted(model) for model in of_C] for of_C in rows], accuracy)


def _fitted(model: Any) -> Fitted:
    return Fitted(model.coef_, model.intercept_, int(np.max(model.n_iter_)))


@dataclass(frozen=True)
class Recorder:
    """Accuracy. GridSearchCV drops what it has fitted, so on the way that goes into a small file."""

    folder: Path

    def __call__(self, model: Any, X: np.ndarray, y: np.ndarray) -> float:
        np.savez(self.file(model.C, X[:1]), **vars(_fitted(model)))
        return model.score(X, y)

    def file(self, C: float, first: np.ndarray) -> Path:
        """A fold is known by its first row that is held out."""
        return self.folder / f"{C!r}-{zlib.crc32(first.tobytes()):08x}.npz"


def peer(estimator: Any, processes: int, X: np.ndarray, y: np.ndarray, Cs: Sequence[float], folds: Folds) -> Side:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record = Recorder(Path(folder))
        search = GridSearchCV(estimator, {"C": list(Cs)}, cv=folds, refit=False, scoring=record)
        with joblib.parallel_config("loky", n_jobs=processes, inner_max_num_threads=1):
            started = time.perf_counter()
            search.fit(X, y)
            seconds = time.perf_counter() - started
        files = [[np.load(record.file(C, X[test[:1]])) for _, test in folds] for C in Cs]
        fitted = [[Fitted(file["coef"], file["intercept"], int(file["n_iter"])) for file in of_C] for of_C in files]
    accuracy = np.stack([search.cv_results_[f"split{j}_test_score"] for j in range(len(folds))], 1)
    return Side(seconds, fitted, accuracy)


def logistic(Z: np.ndarray, y: np.ndarray, fitted: Fitted, C: float) -> float:
    loss = logsumexp(Z, axis=1) - Z[np.arange(len(y)), y]
    return C * loss.sum() + 0.5 * np.sum(fitted.coef.astype(float) ** 2)


def squared_hinge(Z: np.ndarray, y: np.ndarray, fitted: Fitted, C: float) -> float:
    """Summed over the classes; liblinear penalises the intercept."""
    signs = np.where(y[:, None] == np.arange(Z.shape[1]), 1, -1)
    penalty = np.sum(fitted.coef.astype(float) ** 2) + np.sum(fitted.intercept.astype(float) ** 2)
    return C * np.sum(np.maximum(0, 1 - signs * Z) ** 2) + 0.5 * penalty


def objectives(
    formula: Callable[..., float], side: Side, X: np.ndarray, y: np.ndarray, Cs: Sequence[float], folds: Folds
) -> np.ndarray:
    """(len(C), folds) float64, by the formula alone."""
    found = np.empty((len(Cs), len(folds)))
    for j, (train, _) in enumerate(folds):
        rows = X[train].astype(np.float64)
        for i, C in enumerate(Cs):
            fitted = side.fitted[i][j]
            found[i, j] = formula(rows @ fitted.coef.T + fitted.intercept, y[train], fitted, C) / len(train)
    return found


def in_turn(sides: dict[str, Callable[[], Side]], repeats: int) -> dict[str, list[Side]]:
    runs: dict[str, list[Side]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            if not runs[name] or runs[name][0].seconds <= SLOW_SECONDS:
                runs[name].append(run())
                print(f"    {name}: {runs[name][-1].seconds:.2f} s", file=sys.stderr)
    return runs


def compare(cell: Cell, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A, A-SVC and B: a line of the table for each peer."""
    X, y = features(cell, options.fashion)
    folds = list(StratifiedKFold(cell.folds, shuffle=True, random_state=0).split(X, y))
    (mine, theirs), formula = (SVC, squared_hinge) if cell.name == "A-SVC" else (LOGISTIC, logistic)
    estimator, grid_search = mine(device=options.device), partial(peer, theirs(), options.peer_processes)
    sides = {"ours": partial(ours, estimator), "peer": grid_search}
    if options.converged and formula is logistic:
        sides["peer, max_iter=1000"] = partial(peer, theirs(max_iter=1000), options.peer_processes)
    ours(clone(estimator).set_params(max_iter=1), X, y, cell.C, folds)  # warm
    peer(theirs(max_iter=1), options.peer_processes, X, y, cell.C[:1], folds)
    runs = in_turn({name: partial(side, X, y, cell.C, folds) for name, side in sides.items()}, options.repeats)
    values = {name: objectives(formula, found[0], X, y, cell.C, folds) for name, found in runs.items()}
    seconds = {name: statistics.median(run.seconds for run in found) for name, found in runs.items()}
    rates = gemm(cell, options.device)
    return [
        {
            "cell": cell.name if name == "peer" else f"{cell.name}, {name}",
            "shape": asdict(cell),
            "seconds": {side: [run.seconds for run in runs[side]] for side in ("ours", name)},
            "ours": seconds["ours"],
            "peer": seconds[name],
            "n_iter": {side: runs[side][0].n_iter() for side in ("ours", name)},
            "most": {"ours": estimator.max_iter, name: 1000 if name != "peer" else theirs().max_iter},
            "gaps": ((values["ours"] - values[name]) / np.abs(values[name])).tolist(),
            "accuracy": {side: runs[side][0].accuracy.tolist() for side in ("ours", name)},
            "gemm": rates,
        }
        for name in sides
        if name != "ours"
    ]


CASES = {"A": compare, "A-SVC": compare, "B": compare, "C": mapped, "D": sweep}
COLUMNS = ("cell", "ours, s", "peer, s", "ratio", "passes", "gap, worst", "gap, best", "above", "GFLOP/s")


def line(found: dict[str, Any]) -> dict[str, str]:
    """A line of the table."""
    cell, passes = Cell(**found["shape"]), int(np.sum(found["n_iter"]["ours"]))
    values = {"cell": found["cell"], "ours, s": f"{found['ours']:.2f}", "passes": f"{passes:,}"}
    values["GFLOP/s"] = f"{cell.flop * passes / found['ours'] / 1e9:,.0f}"
    values |= {f"GEMM {dtype}": f"{rate / 1e9:,.0f}" for dtype, rate in found["gemm"].items()}
    if "gaps" in found:
        gaps = np.array(found["gaps"])
        values |= {"peer, s": f"{found['peer']:.2f}", "ratio": f"{found['peer'] / found['ours']:.2f}"}
        values |= {"gap, worst": f"{gaps.max():+.1e}", "gap, best": f"{gaps.min():+.1e}"}
        values["above"] = f"{(gaps > 0).sum()} of {gaps.size}"
    return values


def notes(found: dict[str, Any]) -> Iterator[str]:
    """What does not fit into the line."""
    yield f"{found['cell']}: {', '.join(f'{side} ran {len(times)} x' for side, times in found['seconds'].items())}"
    if "gaps" not in found:
        yield from large_notes(found)
        return
    gaps, Cs = np.array(found["gaps"]), found["shape"]["C"]
    for side, n_iter in found["n_iter"].items():
        ran_out = int((np.array(n_iter) >= found["most"][side]).sum())
        yield f"    {side}: {np.sum(n_iter):,} iterations, {ran_out} of {gaps.size} problems ran out of them"
    yield "    worst gap by C: " + ", ".join(f"{C:.0e} {gap:+.1e}" for C, gap in zip(Cs, gaps.max(1), strict=True))
    mine, theirs = (np.array(table) for table in found["accuracy"].values())
    yield (
        f"    accuracy by C: {', '.join(f'{mean:.3f}' for mean in mine.mean(1))}; from the peer's at most "
        f"{np.abs(mine - theirs).max():.4f} a fold, {np.abs(mine - theirs).mean(1).max():.4f} a C"
    )
    if above := [f"C={Cs[i]:.0e} fold {j} {gaps[i, j]:+.1e}" for i, j in np.argwhere(gaps > 0)]:
        yield f"!!! {found['cell']}: OURS IS ABOVE THE PEER in {len(above)} of {gaps.size} problems: {', '.join(above)}"


def large_notes(found: dict[str, Any]) -> Iterator[str]:
    roof, worst, memory = found["roofline"], found["worst"], found["memory"]
    yield (
        f"    {roof['part']:.2f} of the roofline, {roof['part_of_passes']:.2f} without preparation: a pass of all "
        f"problems takes {roof['seconds_a_full_pass']:.3f} s, its bare products {roof['bare_a_full_pass']:.3f} s"
    )
    yield f"    memory, GB: {', '.join(f'{name} {value:.2f}' for name, value in memory.items())}"
    yield f"    statuses {dict(found['statuses'])}; iterations {found['n_iter']['ours']}"
    yield f"    gradient norms {', '.join(f'{norm:.1e}' for norm in found['gradient_norms'])}"
    yield (
        f"    certificate, C={worst['C']:.3g}: relative gradient norm {worst['gradient_norm']:.2e} (reported: "
        f"{worst['reported']:.2e}), reported objective off by {worst['objective_off']:+.1e}"
    )


def header() -> dict[str, Any]:
    rows = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((row.split(":")[1].strip() for row in rows if row.startswith("model name")), platform.machine())
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {module.__name__: module.__version__ for module in (torch, sklearn, np)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--fashion", type=Path, help="folder of train-images-idx3-ubyte.gz and its labels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--scale", type=float, default=1.0, help="of rows and columns, for quick tries")
    parser.add_argument("--peer-processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--converged", action="store_true", help="the peer with max_iter=1000 too; takes minutes")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    head = header() | {"options": {name: value for name, value in vars(options).items() if name != "fashion"}}
    head["options"]["fashion"] = options.fashion is not None
    results = []
    for name in options.cell:
        print(name, file=sys.stderr)
        for found in CASES[name](CELLS[name].scaled(options.scale), options):
            results.append(found)
            with (RESULTS / "solve.jsonl").open("a") as file:
                file.write(json.dumps(head | found) + "\n")
    versions = ", ".join(f"{module} {version}" for module, version in head["versions"].items())
    print(f"{head['date']}, {head['cpu']}, {head['cores']} cores, {head['gpu'] or 'no GPU'}; {versions}")
    print(f"{options.peer_processes} peer processes; scale {options.scale:g}\n")
    lines = [line(found) for found in results]
    columns = [*COLUMNS, *dict.fromkeys(name for values in lines for name in values if name not in COLUMNS)]
    widths = {name: max(len(name), *(len(values.get(name, "")) for values in lines)) for name in columns}
    for values in [{name: name for name in columns}, {name: "-" * widths[name] for name in columns}, *lines]:
        print("| " + " | ".join(values.get(name, "").rjust(widths[name]) for name in columns) + " |")
    print()
    for found in results:
        print("\n".join(notes(found)))


if __name__ == "__main__":
    main()
