"""Exported models: labels and probabilities against the model's own, and CPU time an image of both.

    python benchmarks/export.py TRAIN TEST [--images 1000] [--tests 400] [--backbone bundled:efficientnet_lite0]

TRAIN and TEST have class folders. Each estimator is fitted on the penultimate layer of a part of TRAIN, behind a
StandardScaler, exported with input "pixels", and compared on images of TEST: labels that differ, and the largest
difference of a probability, or of a score or value relative to the largest. The stages model reads three layers and a
PCA. CPU time is that of the process per image, one thread, pixels in memory, batches of 8, medians of five by turns:
the model's own float32 forward pass, eager with folded batch norms and on channels-last memory, without its estimator,
against onnxruntime with everything. Prints a table and adds lines to benchmarks/results/export.jsonl.
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

import numpy as np
import onnxruntime
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, PowerTransformer, StandardScaler
from solve import header
from solve_data import RESULTS

import featx
from featx.backbones import Preprocessing, Tap, TappedNetwork
from featx.deploy import export
from featx.images import collect, decode
from featx.learn import (
    SVC,
    SVR,
    KNeighborsClassifier,
    LinearSVC,
    LogisticRegression,
    MLPClassifier,
    NearestCentroid,
    Ridge,
    RidgeClassifier,
    StoredFeatures,
)

BATCH = 8


def models(store: featx.FeatureStore) -> dict[str, Pipeline]:
    """Unfitted pipelines by name."""

    def behind(model: Any, *steps: Any, layer: str | list[str] = "penultimate") -> Pipeline:
        return make_pipeline(StoredFeatures(store, layer), *(steps or (StandardScaler(),)), model)

    members = [("logistic", LogisticRegression(C=1e-3)), ("neighbours", KNeighborsClassifier(9))]
    stages = [name for name in store.layers if name != store.recipe.layer("penultimate")]
    return {
        "LogisticRegression": behind(LogisticRegression(C=1e-3)),
        "LinearSVC": behind(LinearSVC(C=1e-5)),
        "RidgeClassifier": behind(RidgeClassifier(1e3)),
        "SVC, rbf": behind(SVC()),
        "SVC, linear": behind(SVC(kernel="linear", C=1e-3)),
        "SVC, poly": behind(SVC(kernel="poly")),
        "SVC, sigmoid": behind(SVC(kernel="sigmoid")),
        "KNeighborsClassifier": behind(KNeighborsClassifier(9, weights="distance")),
        "NearestCentroid": behind(NearestCentroid()),
        "MLPClassifier": behind(MLPClassifier((256,), max_iter=20, tol=0.0, random_state=0)),
        "CalibratedClassifierCV of SVC": behind(CalibratedClassifierCV(SVC(), ensemble=False, cv=3)),
        "VotingClassifier": behind(VotingClassifier(members, voting="soft")),
        "StackingClassifier": behind(StackingClassifier(members, LogisticRegression(), cv=3)),
        "stages, PCA, LogisticRegression": behind(LogisticRegression(C=1e-3), StandardScaler(), PCA(100), layer=stages),
        "PowerTransformer, SVC": behind(SVC(), PowerTransformer()),
        "Normalizer, LogisticRegression": behind(LogisticRegression(C=10), Normalizer()),
        "Ridge": behind(Ridge(1e3)),
        "SVR": behind(SVR()),
    }


def cpu_seconds(functions: dict[str, Callable[[], Any]], repeats: int = 5) -> dict[str, float]:
    """Median CPU seconds of each function, by turns."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(repeats + 1):
        for name, function in functions.items():
            began = time.process_time()
            function()
            if number:  # the first warms up
                times[name].append(time.process_time() - began)
    return {name: statistics.median(each) for name, each in times.items()}


def speed(store: featx.FeatureStore, path: Path, pixels: np.ndarray) -> dict[str, float]:
    """CPU milliseconds an image of featx's forward pass and of an exported program."""
    recipe = store.recipe.only("penultimate")
    taps = [Tap.from_dict(tap) for tap in recipe.taps.values()]
    preprocessing = Preprocessing.from_dict(recipe.preprocessing)
    backbone = featx.Backbone(recipe.backbone, recipe.weights)
    network = TappedNetwork(backbone, taps, torch.device("cpu"), "float32", preprocessing=preprocessing)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    parts = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
    sides = {
        "featx, eager float32": lambda: [network(torch.from_numpy(part)) for part in parts],
        "onnxruntime": lambda: [session.run(None, {"pixels": part}) for part in parts],
    }
    return {name: 1000 * seconds / len(pixels) for name, seconds in cpu_seconds(sides).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--tests", type=int, default=400)
    parser.add_argument("--backbone", default="bundled:efficientnet_lite0")
    parser.add_argument("--only", nargs="+", help="names of models")
    options = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    train, test = collect(options.train), collect(options.test)
    chosen, _ = train_test_split(
        np.arange(len(train.images)), train_size=options.images, stratify=train.y, random_state=0
    )
    tested = np.random.default_rng(0).permutation(len(test.images))[: options.tests]
    images = [test.images[i] for i in tested]
    with tempfile.TemporaryDirectory() as folder:
        store = featx.extract(
            [train.images[i] for i in chosen],
            Path(folder) / "train.h5",
            options.backbone,
            ["penultimate", "stages"],
            labels=train.y[chosen],
            precision="float32",
            engine="eager",
        )
        rows = []
        print(f"{'model':34} {'labels that differ':>18} {'difference':>12} {'MB':>6} {'export s':>9}")
        for name, pipeline in models(store).items():
            if options.only and name not in options.only:
                continue
            is_numeric = name in ("Ridge", "SVR")
            pipeline.fit(store.X, np.unique(store.y, return_inverse=True)[1].astype(float) if is_numeric else store.y)
            path = Path(folder) / "model.onnx"
            began = time.perf_counter()
            agreement = export(pipeline, path, check=images, replace=True).agreement
            row = {
                "model": name,
                "n": agreement.n,
                "of": agreement.of,
                "difference": agreement.difference,
                "megabytes": path.stat().st_size / 1e6,
                "seconds": time.perf_counter() - began,
            }
            rows.append(row)
            print(
                f"{name:34} {f'0 of {agreement.n}':>18} {agreement.difference:12.1e} {row['megabytes']:6.1f} "
                f"{row['seconds']:9.1f}  {agreement.of}",
                flush=True,
            )
            if len(rows) == 1:
                preprocessing = Preprocessing.from_dict(store.recipe.preprocessing)
                pixels = np.stack([preprocessing(decode(image)[0]) for image in images[:64]])
                times = speed(store, path, pixels)
        print({name: f"{milliseconds:.1f} ms an image" for name, milliseconds in times.items()})
    with open(RESULTS / "export.jsonl", "a") as file:
        file.write(json.dumps(header() | {"backbone": options.backbone, "rows": rows, "milliseconds": times}) + "\n")


if __name__ == "__main__":
    main()
