"""Cells C and D of benchmarks/solve.py: one solve in; its time beside bare products, memory and certificates out."""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp
from solve_data import RESULTS, SLOW_SECONDS, Cell, labels, power_law

from featx.learn import LogisticRegression
from featx.solvers import Loss, Problem, Solution, solve
from featx.solvers.hardware import device_of, low_type
from featx.solvers.matmul import product

GPU_BYTES = 40e9  # what D asks for
CPU_FLOP = 1e10  # of a pass of all of D's problems, which a CPU is given too
CERTIFIED_ROWS = 4096


def mapped(cell: Cell, options: argparse.Namespace) -> list[dict[str, Any]]:
    """C. A new process, so that peak memory is the solve's."""
    y = labels(cell.n, cell.k)
    with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
        path = Path(folder) / "rows.npy"
        X = np.lib.format.open_memmap(path, "w+", np.float32, (cell.n, cell.d))
        power_law(X, y, cell.k, torch.device("cpu"))
        X.flush()
        del X
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return [pool.submit(certified, path, y, cell, options.device, options.repeats).result()]


def sweep(cell: Cell, options: argparse.Namespace) -> list[dict[str, Any]]:
    """D, where there is a GPU that holds it; the rows come from the computer's memory."""
    device = device_of(options.device)
    large = device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory >= GPU_BYTES
    if not large and cell.flop * cell.problems > CPU_FLOP:
        print(f"{cell.name} is left out: it takes a GPU of {GPU_BYTES / 1e9:.0f} GB (--device cuda) or a small --scale")
        return []
    X, y = np.empty((cell.n, cell.d), np.float32), labels(cell.n, cell.k)
    power_law(X, y, cell.k, device if large else torch.device("cpu"))
    return [certified(X, y, cell, options.device, options.repeats)]


def certified(X: np.ndarray | Path, y: np.ndarray, cell: Cell, device: str, repeats: int) -> dict[str, Any]:
    """Solve; compare the time with that of the bare products of the passes done, and check the worst problem anew."""
    if isinstance(X, Path):
        X = np.load(X, mmap_mode="r")
    held_out = np.arange(cell.n) % cell.folds
    folds = [None] if cell.folds == 1 else [(held_out != j).astype(np.float32) for j in range(cell.folds)]
    problems = [Problem(1 / C, weights) for C in cell.C for weights in folds]
    like = {"tol": LogisticRegression().tol, "device": device, "budget_bytes": cell.budget_bytes}
    run = partial(solve, X, y, problems, Loss.LOGISTIC, **like)
    seconds, preparing = [], []
    with peak_memory() as memory:
        run(max_iter=0)  # warm
        while not seconds or (len(seconds) < repeats and seconds[0] <= SLOW_SECONDS):
            started = time.perf_counter()
            run(max_iter=0)
            preparing.append(time.perf_counter() - started)
            started = time.perf_counter()
            solutions = run(max_iter=cell.max_iter)
            seconds.append(time.perf_counter() - started)
            print(f"    {cell.name}: {seconds[-1]:.2f} s", file=sys.stderr)
    worst = max(range(len(problems)), key=lambda i: solutions[i].gradient_norm)
    objective, norm = certificate(X, y, problems[worst], solutions[worst])
    rates = gemm(cell, device)
    return {
        "cell": cell.name,
        "shape": asdict(cell),
        "seconds": {"ours": seconds, "no iterations": preparing},
        "ours": statistics.median(seconds),
        "n_iter": {"ours": [solution.n_iter for solution in solutions]},
        "statuses": Counter(solution.status.name for solution in solutions),
        "gradient_norms": [solution.gradient_norm for solution in solutions],
        "worst": {
            "C": 1 / problems[worst].l2,
            "reported": solutions[worst].gradient_norm,
            "gradient_norm": norm,
            "objective_off": solutions[worst].objective / objective - 1,
        },
        "memory": memory,
        "roofline": roofline(cell, solutions, rates, statistics.median(seconds), statistics.median(preparing)),
        "gemm": rates,
    }


def roofline(
    cell: Cell, solutions: list[Solution], rates: dict[str, float], seconds: float, preparing: float
) -> dict[str, float]:
    """Seconds of the bare products of all passes, and what part they are of the solve's, with and without preparation.

    A problem has two passes in float32, the first (which n_iter leaves out) and the last; all others count in the low
    type, if there is one. A solve of no iterations is the preparation and the first pass.
    """
    passes = sum(solution.n_iter for solution in solutions)
    first = cell.problems * cell.flop / rates["float32"]
    bare = 2 * first + (passes - cell.problems) * cell.flop / max(rates.values())
    return {
        "bare": bare,
        "part": bare / seconds,
        "part_of_passes": (bare - first) / (seconds - preparing),
        "seconds_a_full_pass": seconds / (passes / cell.problems + 1),
        "bare_a_full_pass": bare / (passes / cell.problems + 1),
    }


def certificate(X: np.ndarray, y: np.ndarray, problem: Problem, solution: Solution) -> tuple[float, float]:
    """The objective, and its gradient's norm relative to that of the best model without X: float64, block by block.

    The gradient is that of the coefficients of centred columns and their intercept, as the solvers define it.
    """
    W, b = solution.coef.astype(np.float64), solution.intercept.astype(np.float64)
    s = np.ones(len(y)) if problem.weights is None else problem.weights.astype(np.float64)
    frequencies = np.bincount(y, s, len(b)) / s.sum()
    value, mean = 0.5 * problem.l2 * np.sum(W**2), np.zeros(X.shape[1])
    gradient, gradient_b, null = problem.l2 * W, np.zeros_like(b), np.zeros_like(W)
    for start in range(0, len(y), CERTIFIED_ROWS):
        block = slice(start, start + CERTIFIED_ROWS)
        rows, of_y = X[block].astype(np.float64), s[block, None] * (y[block, None] == np.arange(len(b)))
        Z = rows @ W.T + b
        log_sums = logsumexp(Z, axis=1)
        value += s[block] @ log_sums - np.sum(of_y * Z)
        R = s[block, None] * np.exp(Z - log_sums[:, None]) - of_y
        gradient += R.T @ rows
        gradient_b += R.sum(0)
        null += (s[block, None] * frequencies - of_y).T @ rows
        mean += s[block] @ rows / s.sum()
    gradient -= np.outer(gradient_b, mean)
    return value, np.hypot(np.linalg.norm(gradient), np.linalg.norm(gradient_b)) / np.linalg.norm(null)


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """GB: "peak", all that is resident, pages of a map too, and "own", allocated since. Filled in at the end."""
    found: dict[str, float] = {}
    before, most, done = _own_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            most[0] = max(most[0], _own_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    found["own"] = (most[0] - before) / 1e9
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.max_memory_allocated() / 1e9


def _own_bytes() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def gemm(cell: Cell, device: str) -> dict[str, float]:
    """FLOP/s of Z = V X^T and Z X for all problems at once, by type: the best of several sizes of blocks, with torch's
    own products and with ours."""
    where = device_of(device)
    d, columns = min(cell.n, cell.d), cell.problems * cell.k
    rows = min(cell.n, max(512, int((2e13 if where.type == "cuda" else 2e11) / (4 * d * columns))))
    rates = {}
    for dtype in filter(None, (torch.float32, low_type(where))):
        X, V = (torch.randn(m, d, device=where).to(dtype) for m in (rows, columns))
        sizes = (2**26, 2**28, 2**30) if where.type == "cuda" else (2**19, 2**21, 2**23)
        for scores, multiply in itertools.product(sizes, (bare, product)):
            for _ in range(3):
                started = ready(where)
                for block in X.split(max(1, scores // columns)):
                    multiply(multiply(V, block), block.T)
                rate = 4 * rows * d * columns / (ready(where) - started)
                rates[str(dtype)[6:]] = max(rate, rates.get(str(dtype)[6:], 0))
    return rates


def bare(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    return A @ B.T


def ready(device: torch.device) -> float:
    """The time when the device has done all."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
