"""How near their minimum do linear models end at default `tol`, and do they say so where they don't?

    python benchmarks/accuracy.py [--problems 300] [--first 0]

Random problems that are unlike image features, from a seed each: separable or not, correlated columns, columns far
from 0, columns of scales from 1e-3 to 1e3, weighted rows (a quarter of them 0), more rows or more columns, 2 to 10
classes, C from 1e-5 to 1e4, float32 or float64; even numbers are LogisticRegression's, odd ones LinearSVC's.
scikit-learn's class gets the same rows, once with its default `max_iter`, once with 3,000 (LinearSVC: 5,000), one
thread each.

Objectives are computed anew in float64 from the coefficients: |W|^2/2 + C sum s l, of LinearSVC with the intercept's
square, which both sides penalise alike. The minimum is the least of all values known, ours at tol=1e-10 in float64
among them. It is certified: the objective is strongly convex, so it lies at most |gradient|^2 / 2 above its minimum (a
free intercept is put where its gradient is 0 first). Where columns reach 1e5, float64 has too few digits for that.

"above" counts objectives that are more than a millionth above the peer's: float32 coefficients alone move an objective
by about that much, and no score shows it. "not near" is more than a thousandth above the minimum, "silent" those of
them without a ConvergenceWarning. Seconds are CPU seconds of `fit`. Prints a table and adds lines to
benchmarks/results/accuracy.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from typing import Any

import numpy as np
import sklearn.linear_model
import sklearn.svm
import torch
from scipy.special import log_softmax, softmax
from sklearn.exceptions import ConvergenceWarning
from solve import header
from solve_data import RESULTS

from featx.learn import LinearSVC, LogisticRegression

ABOVE, NEAR = 1e-6, 1e-3
SIDES = {
    "LogisticRegression": {
        "ours": LogisticRegression(),
        "peer": sklearn.linear_model.LogisticRegression(),
        "peer, more": sklearn.linear_model.LogisticRegression(max_iter=3000),
    },
    "LinearSVC": {
        "ours": LinearSVC(),
        "peer": sklearn.svm.LinearSVC(random_state=0),
        "peer, more": sklearn.svm.LinearSVC(random_state=0, max_iter=5000),
    },
}
TIGHT = {"tol": 1e-10, "max_iter": 10_000}


def random_problem(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, list[str]]:
    """X (n, d), y (n,), weights (n,), C, and what is special about the rows."""
    rng = np.random.default_rng([16, seed])
    kinds = [name for name in ("separable", "correlated", "uncentred", "scaled", "weighted") if rng.random() < 0.5]
    if rng.random() < 0.4:
        n, d = int(rng.integers(30, 200)), int(rng.integers(200, 500))
    else:
        n, d = int(rng.integers(160, 600)), int(rng.integers(3, 160))
    k = int(rng.choice([2, 2, 3, 5, 10]))
    y = rng.permutation(np.r_[np.repeat(np.arange(k), 2), rng.integers(0, k, n - 2 * k)])
    X = rng.normal(size=(n, d))
    if "correlated" in kinds:
        X = X * np.arange(1, d + 1) ** -rng.uniform(0.5, 1.5) @ np.linalg.qr(rng.normal(size=(d, d)))[0]
        X /= X.std()
    X += (6 if "separable" in kinds else 1) * rng.normal(size=(k, d))[y] / np.sqrt(d)
    if "uncentred" in kinds:
        X += 10 ** rng.uniform(0, 2) * rng.normal(size=d)
    if "scaled" in kinds:
        X *= 10 ** (rng.uniform(-3, 3, d) if rng.random() < 0.5 else rng.uniform(-2, 2))
    weights = np.ones(n)
    if "weighted" in kinds:
        weights = rng.choice([0.0, 1.0, 2.0, 5.0], n) * rng.uniform(0.1, 2, n)
        weights[np.unique(y, return_index=True)[1]] = 1.0
    C = 10 ** rng.uniform(-5, 4)
    return X.astype(rng.choice([np.float32, np.float64])), y, weights, C, kinds


def logistic(
    W: np.ndarray, b: np.ndarray, X: np.ndarray, y: np.ndarray, s: np.ndarray, C: float
) -> tuple[float, float]:
    """The objective of coefficients (k, d) and intercepts (k,), and how far above its minimum it is at most.

    With the best intercepts for W: they are free. Two classes have coefficients of the second, and 0 of the first.
    """
    onehot = np.eye(len(W))[y]
    value = np.inf
    for _ in range(20):  # Newton's method, for the bound
        Z = X @ W.T + b
        P = softmax(Z, axis=1)
        residuals = s[:, None] * (P - onehot)
        if np.isinf(value):
            value = first = -C * s @ log_softmax(Z, axis=1)[np.arange(len(y)), y]
        hessian = np.diag(s @ P) - (P * s[:, None]).T @ P + np.full((len(W), len(W)), s.sum() / len(W))
        b = b - np.linalg.lstsq(hessian, residuals.sum(0), rcond=None)[0]
    two = len(W) == 2
    gradient = C * residuals.T @ X
    gradient, W = (gradient[1:], W[1:]) if two else (gradient, W)
    bound = 0.5 * np.sum((gradient + W) ** 2)
    return float(first + 0.5 * np.sum(W**2)), float(bound)


def squared_hinge(
    W: np.ndarray, b: np.ndarray, X: np.ndarray, y: np.ndarray, s: np.ndarray, C: float
) -> tuple[float, float]:
    """The same of the squared hinges of all columns; the intercept is one more coefficient."""
    X, W = np.column_stack([X, np.ones(len(X))]), np.column_stack([W, b])
    signs = np.where(y[:, None] == (np.arange(len(W)) if len(W) > 1 else 1), 1, -1)
    short = np.maximum(0, 1 - signs * (X @ W.T))
    gradient = W - 2 * C * (s[:, None] * signs * short).T @ X
    return float(C * np.sum(s[:, None] * short**2) + 0.5 * np.sum(W**2)), float(0.5 * np.sum(gradient**2))


def measured(model: Any, X: np.ndarray, y: np.ndarray, s: np.ndarray, C: float) -> tuple[float, float]:
    X, W, b = X.astype(np.float64), model.coef_.astype(np.float64), np.array(model.intercept_, np.float64)
    if "SVC" in type(model).__name__:
        return squared_hinge(W, b, X, y, s, C)
    if len(W) == 1:
        W, b = np.vstack([np.zeros_like(W), W]), np.r_[0.0, b]
    return logistic(W, b, X, y, s, C)


def fitted(model: Any, X: np.ndarray, y: np.ndarray, s: np.ndarray) -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        started = time.process_time()
        model.fit(X, y, sample_weight=s)
        seconds = time.process_time() - started
    warned = any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return {"seconds": seconds, "warned": warned, "passes": int(np.max(model.n_iter_))}


def solved(seed: int) -> dict[str, Any]:
    X, y, s, C, kinds = random_problem(seed)
    name = list(SIDES)[seed % 2]
    found: dict[str, Any] = {"seed": seed, "estimator": name, "shape": X.shape, "k": int(y.max()) + 1, "C": C}
    found |= {"dtype": X.dtype.name, "kinds": kinds}
    values, certified = {}, -np.inf
    for side, model in SIDES[name].items():
        model.set_params(C=C)
        found[side] = fitted(model, X, y, s)
        values[side], bound = measured(model, X, y, s, C)
        certified = max(certified, values[side] - bound)
    tight = type(SIDES[name]["ours"])(C=C, **TIGHT)
    found["tight"] = fitted(tight, X.astype(np.float64), y, s)
    values["tight"], bound = measured(tight, X, y, s, C)
    certified = max(certified, values["tight"] - bound)
    least = min(values.values())
    found["certificate"] = (least - certified) / least
    for side, value in values.items():
        found[side]["gap"] = value / least - 1
    return found


def line(name: str, side: str, problems: list[dict[str, Any]]) -> list[str]:
    gaps = np.array([found[side]["gap"] for found in problems])
    mine = np.array([found["ours"]["gap"] for found in problems])
    warned = np.array([found[side]["warned"] for found in problems])
    above = "" if side == "ours" else f"{(1 + mine > (1 + gaps) * (1 + ABOVE)).sum()} of {len(gaps)}"
    return [
        name,
        side,
        above,
        f"{gaps.max():.1e}",
        f"{np.quantile(gaps, 0.9):.1e}",
        f"{np.median(gaps):.1e}",
        f"{(gaps > NEAR).sum()}",
        f"{((gaps > NEAR) & ~warned).sum()}",
        f"{warned.sum()}",
        f"{sum(found[side]['passes'] for found in problems):,}",
        f"{sum(found[side]['seconds'] for found in problems):.1f}",
    ]


COLUMNS = ["", "", "ours above it", "largest gap", "90 %", "median", "not near", "silent", "warned", "passes", "CPU s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="the first problem's seed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    results = []
    for seed in range(options.first, options.first + options.problems):
        results.append(solved(seed))
        print(f"\r{len(results)} of {options.problems}", end="", file=sys.stderr)
    print(file=sys.stderr)
    head = header()
    with (RESULTS / "accuracy.jsonl").open("a") as file:
        for found in results:
            file.write(json.dumps(head | found) + "\n")
    versions = ", ".join(f"{module} {version}" for module, version in head["versions"].items())
    print(f"{head['date']}, {head['cpu']}; one thread; {versions}\n")
    lines = [COLUMNS, ["-"] * len(COLUMNS)]
    for name, sides in SIDES.items():
        problems = [found for found in results if found["estimator"] == name]
        lines += [line(name, side, problems) for side in (*sides, "tight") if problems]
    widths = [max(len(values[i]) for values in lines) for i in range(len(COLUMNS))]
    for values in lines:
        print("| " + " | ".join(value.rjust(width) for value, width in zip(values, widths, strict=True)) + " |")
    certified = np.array([found["certificate"] for found in results])
    print(f"\nminima certified to {NEAR:.0e} of themselves: {(certified < NEAR).sum()} of {len(results)}")
    for found in results:
        gap, peer = found["ours"]["gap"], min(found["peer"]["gap"], found["peer, more"]["gap"])
        if gap > NEAR or 1 + gap > (1 + peer) * (1 + ABOVE):
            print(json.dumps(found))


if __name__ == "__main__":
    main()
