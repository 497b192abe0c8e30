"""Which images to label next: accuracy of few labels that `featx.audit.next_to_label` chose, beside random ones.

    pip install conformal-clip-data; apt install dataset-fashion-mnist
    python benchmarks/label_next.py --cifar DIR --fashion /usr/share/dataset-fashion-mnist [--folder label_next]

CIFAR-10 (DIR holds class folders in train/ and test/), textile and Fashion-MNIST, penultimate rows of
EfficientNet-Lite0. Labels are bought in rounds, up to each budget; each round knows the labels of those before. Two
classifiers are fitted on them and scored on other images: a logistic regression on standardised columns, C = 0.01, and
one on rows of unit length, C = 10. A difference is the mean over the seeds, with the 95 % interval of Student's t of
the paired differences. Stores are kept in the folder; `--json FILE` adds a line for each data set and choice to a file.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from compare_data import Images, split
from scipy import stats
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from solve import header

import featx
from featx.audit import next_to_label
from featx.images import collect
from featx.learn import LogisticRegression

CIFAR = 2_000, 1_000  # training images, test images
CLASSIFIERS = {
    "standardised": make_pipeline(StandardScaler(), LogisticRegression(C=0.01)),
    "unit length": make_pipeline(Normalizer(), LogisticRegression(C=10.0)),
}
CHOICES = ("random", "typical", "auto")


def cifar(folder: Path) -> tuple[Images, Images]:
    parts = []
    for part, n in zip(("train", "test"), CIFAR, strict=True):
        images = collect(folder / part)
        assert images.y is not None
        rows = np.random.default_rng(0).permutation(len(images.images))[:n]
        parts.append(Images([images.images[i] for i in rows], [str(images.y[i]) for i in rows]))
    return parts[0], parts[1]


def stores(name: str, arguments: argparse.Namespace) -> list[featx.FeatureStore]:
    """The stores of the training and the test images."""
    paths = [arguments.folder / f"{name}-{part}.h5" for part in ("train", "test")]
    if not all(path.exists() for path in paths):
        parts = cifar(arguments.cifar) if name == "cifar" else split(name, arguments.fashion)
        for path, part in zip(paths, parts, strict=True):
            featx.extract(part.images, path, "bundled:efficientnet_lite0", "penultimate", labels=part.y, progress=False)
    return [featx.FeatureStore(path) for path in paths]


def bought(store: featx.FeatureStore, choice: str, budgets: list[int], seed: int) -> list[np.ndarray]:
    """The labelled rows at each budget."""
    rng = np.random.default_rng(seed)
    labels = np.ma.masked_array(store.y, np.ones(len(store), bool))
    rounds = []
    for budget in budgets:
        n = budget - labels.count()
        if choice == "random":
            rows = rng.permutation(np.flatnonzero(labels.mask))[:n]
        else:
            rows = next_to_label(store, n, labels, strategy=choice, random_state=seed).rows
        labels.mask[rows] = False
        rounds.append(np.flatnonzero(~labels.mask))
    return rounds


def accuracies(train: featx.FeatureStore, test: featx.FeatureStore, rows: np.ndarray) -> list[float]:
    X, y = np.asarray(train["penultimate"])[rows], train.y[rows]
    if len(set(y)) < 2:
        return [float(np.mean(test.y == y[0]))] * len(CLASSIFIERS)
    return [model.fit(X, y).score(test["penultimate"], test.y) for model in CLASSIFIERS.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["cifar", "textile", "fashion"])
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--fashion", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("label_next"))
    parser.add_argument("--budgets", nargs="+", type=int, default=[10, 20, 50, 100, 200, 400])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(exist_ok=True)
    print(header())
    for name in arguments.data:
        train, test = stores(name, arguments)
        print(
            f"\n{name}: {len(train):,} images to choose from, {len(test):,} test images, {len(train.classes)} classes"
        )
        print(f"{'':24}" + "".join(f"{budget:>30}" for budget in arguments.budgets))
        scores = {}
        for choice in CHOICES:
            start = time.process_time()
            rounds = [bought(train, choice, arguments.budgets, seed) for seed in range(arguments.seeds)]
            seconds = (time.process_time() - start) / arguments.seeds / len(arguments.budgets)
            scores[choice] = np.array([[accuracies(train, test, rows) for rows in each] for each in rounds])
            for place, classifier in enumerate(CLASSIFIERS):
                of = scores[choice][:, :, place]  # (seeds, budgets)
                cells = [f"{mean:.3f}" for mean in of.mean(axis=0)]
                if choice != "random":
                    more = of - scores["random"][:, :, place]
                    half = stats.t.ppf(0.975, len(more) - 1) * stats.sem(more, axis=0)
                    differences = zip(cells, more.mean(axis=0), half, strict=True)
                    cells = [f"{cell} {d:+.3f} ({d - h:+.3f}, {d + h:+.3f})" for cell, d, h in differences]
                print(f"{choice:9}{classifier:15}" + "".join(f"{cell:>30}" for cell in cells), flush=True)
                if arguments.json is not None:
                    line = {"data": name, "choice": choice, "classifier": classifier, "budgets": arguments.budgets}
                    with open(arguments.json, "a") as file:
                        file.write(json.dumps(line | {"accuracy": of.tolist(), "cpu_seconds": seconds}) + "\n")
            print(f"{'':9}{seconds:.2f} CPU seconds a round")


if __name__ == "__main__":
    main()
