"""`python make_model1.py` made `data/model1.skops`, a model of format version 1 that every later featx must load.

It names its classes by the modules they stood in at the time. The file is never made anew.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import VotingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featx.learn import (
    SVC,
    SVR,
    GridSearchCV,
    HalvingGridSearchCV,
    HalvingRandomSearchCV,
    KNeighborsClassifier,
    LinearSVC,
    LogisticRegression,
    NearestCentroid,
    RandomizedSearchCV,
    Ridge,
    RidgeClassifier,
    StoredFeatures,
    save,
)
from featx.store import FeatureStore, Recipe, StoreWriter

FILE = Path(__file__).with_name("data") / "model1.skops"
N, D = 30, 5
RECIPE = Recipe(
    backbone="torchvision:resnet18",
    weights="IMAGENET1K_V1",
    weights_sha256="5c106cde" * 8,
    preprocessing={
        "crop": [224, 224],
        "resize": 256,
        "interpolation": "bilinear",
        "mean": [0.485, 0.456, 0.406],
    },
    decoder="pillow:exif,rgb",
    taps={"flatten:avg": {"node": "flatten", "pool": "avg", "layout": "bd", "shape": [D]}},
    aliases={"penultimate": "flatten:avg"},
    engine="eager",
    precision="float32",
    precision_error=None,
    batch_size=32,
    dtype="float32",
    device="cpu",
    threads=2,
    versions={"featx": "0.1.0", "torch": "2.11.0"},
    origin="photos",
)
LABELS = np.array(["ant", "bee", "cat"] * (N // 3))


def rows() -> np.ndarray:
    """(N, D) rows of three classes around centres of their own."""
    chance = np.random.default_rng(0)
    return (chance.normal(size=(N, D)) + 2 * np.eye(D)[np.arange(N) % 3]).astype(np.float32)


def parts() -> list[tuple[str, Any]]:
    """A fitted part for every public class that a model can hold."""
    C = {"C": [0.1, 1.0]}
    regressions = [Ridge(), SVR()]
    classifiers = [
        LogisticRegression(),
        LinearSVC(),
        SVC(),
        KNeighborsClassifier(),
        NearestCentroid(),
        RidgeClassifier(),
    ]
    searches = [
        GridSearchCV(LogisticRegression(), C, cv=2),
        RandomizedSearchCV(LinearSVC(), C, n_iter=2, cv=2, random_state=0),
        HalvingGridSearchCV(LogisticRegression(), C, cv=2, min_resources=15, random_state=0),
        HalvingRandomSearchCV(LogisticRegression(), C, cv=2, min_resources=15, random_state=0),
    ]
    numbers = np.arange(N) % 3
    models = [
        *(model.fit(rows(), numbers) for model in regressions),
        *(model.fit(rows(), LABELS) for model in classifiers + searches),
    ]
    return [(type(model).__name__, model) for model in models]


def pipeline(folder: Path) -> Any:
    """StoredFeatures of a store, a scaler, and a vote that is as good as fitted, with all parts."""
    with StoreWriter(folder / "model1.h5", RECIPE, [f"{i}.png" for i in range(N)], y=LABELS) as writer:
        digests = np.arange(N * 16, dtype=np.uint16).reshape(N, 16).astype(np.uint8)
        digests[:, 0] = np.arange(N)
        writer.write(np.arange(N), {"flatten:avg": rows()}, digests)
        writer.finish()
    store = FeatureStore(folder / "model1.h5")
    model = make_pipeline(StoredFeatures(store), StandardScaler(), VotingClassifier([("one", LogisticRegression())]))
    model.fit(store.X, store.y)
    model.set_params(votingclassifier__estimators=parts())
    return model


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save(pipeline(Path(folder)), FILE)
