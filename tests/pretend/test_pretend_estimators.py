"""On a GPU every estimator, alone and in a search over a store, says what it says on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import write_store
from numpy.testing import assert_allclose
from searched import assert_same_results
from sklearn.base import BaseEstimator, clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featx.learn import (
    SVC,
    SVR,
    GridSearchCV,
    KNeighborsClassifier,
    LinearSVC,
    LogisticRegression,
    MLPClassifier,
    MLPRegressor,
    NearestCentroid,
    Nystroem,
    Ridge,
    RidgeClassifier,
    StoredFeatures,
)

pytestmark = pytest.mark.usefixtures("gpu")

ESTIMATORS: dict[str, BaseEstimator] = {
    "logistic": LogisticRegression(tol=1e-7),
    "linear-svc": LinearSVC(tol=1e-7, class_weight="balanced"),
    "ridge": Ridge(),
    "ridge-classifier": RidgeClassifier(),
    "knn": KNeighborsClassifier(3),
    "knn-cosine": KNeighborsClassifier(metric="cosine", weights="distance"),
    "knn-manhattan": KNeighborsClassifier(p=1),
    "knn-chebyshev": KNeighborsClassifier(metric="chebyshev"),
    "knn-minkowski": KNeighborsClassifier(p=3),
    "svc-linear": SVC(kernel="linear"),
    "svc-rbf": SVC(),
    "svc-poly": SVC(kernel="poly", coef0=1.0),
    "svc-sigmoid": SVC(kernel="sigmoid", gamma=0.01),
    "svc-distances-anew": SVC(budget_bytes=24_000),  # for the tall rows; of the wide ones, distances are kept
    "svr": SVR(),
    "svr-linear": SVR(kernel="linear"),
    "centroid": NearestCentroid(),
    "centroid-shrunk": NearestCentroid(shrink_threshold=0.2, priors="empirical"),
    "centroid-cosine": NearestCentroid(metric="cosine"),
    "mlp": MLPClassifier((7, 5), tol=0.1, n_iter_no_change=2, random_state=0),
    "mlp-regressor": MLPRegressor(hidden_layer_sizes=7, solver="sgd", tol=0.1, n_iter_no_change=2, random_state=0),
    "nystroem": Nystroem(n_components=12, random_state=0),
}


def labelled(n: int, d: int, dtype: type = np.float64) -> tuple[np.ndarray, np.ndarray]:
    """X (n, d), y (n,): three classes that overlap."""
    rng = np.random.default_rng([n, d])
    y = np.arange(n) % 3
    return (rng.normal(size=(n, d)) + rng.normal(size=(3, d))[y]).astype(dtype), y


def answers(estimator: BaseEstimator, X: np.ndarray) -> np.ndarray:
    """Of the method that says most."""
    for name in ("decision_function", "predict_proba", "predict", "transform"):
        if hasattr(estimator, name):
            return getattr(estimator, name)(X)
    raise AssertionError


# estimators whose route depends on the shape see both; the others each see one of them
ON_BOTH = {"logistic", "linear-svc", "ridge", "knn", "svc-rbf", "svc-distances-anew", "svr", "centroid"}
CASES = [(name, i) for k, name in enumerate(ESTIMATORS) for i in ((0, 1) if name in ON_BOTH else (k % 2,))]


@pytest.mark.parametrize("name, wide", CASES)
def test_an_estimator(name, wide):
    estimator, dtype = ESTIMATORS[name], np.float32 if wide else np.float64
    X, y = labelled(*((24, 40) if wide else (48, 5)), dtype)
    on_gpu, on_cpu = (clone(estimator).set_params(device=device).fit(X, y) for device in ("cuda", "cpu"))
    assert_allclose(answers(on_gpu, X), answers(on_cpu, X), rtol=0, atol=1e-4 if dtype is np.float32 else 1e-6)


GRIDS = {
    "logistic": {"C": [0.1, 1.0], "tol": [1e-5]},
    "linear-svc": {"C": [0.1, 1.0]},
    "ridge-classifier": {"alpha": [1.0, 100.0]},
    "knn": {"n_neighbors": [1, 4]},
    "knn-cosine": {"n_neighbors": [1, 4]},
    "svc-rbf": {"C": [0.1, 1.0], "gamma": ["scale", 0.1]},
    "centroid": {"shrink_threshold": [None, 0.2]},
    "mlp": {"alpha": [1e-4, 10.0], "learning_rate_init": [1e-3, 1e-2]},
}


@pytest.mark.parametrize("name", GRIDS)
def test_a_search_over_a_store(name, tmp_path: Path):
    layers = {"layer1:avg": [4], "layer2:none": [2, 3]}
    store = write_store(tmp_path / "a.h5", n=60, taps=layers, y=np.array(["ant", "bee", "cat"] * 20))
    found = []
    for device in ("cuda", "cpu"):
        estimator = clone(ESTIMATORS[name]).set_params(device=device)
        pipe = make_pipeline(StoredFeatures(store), StandardScaler(), estimator)
        step = list(pipe.named_steps)[-1]
        grid = {f"{step}__{parameter}": values for parameter, values in GRIDS[name].items()}
        search = GridSearchCV(pipe, grid | {"storedfeatures__layer": list(layers)}, cv=3, return_train_score=True)
        found.append(search.fit(store.X, store.y))
    on_gpu, on_cpu = found
    assert_same_results(on_gpu.cv_results_, on_cpu.cv_results_)
    assert_allclose(answers(on_gpu, store.X), answers(on_cpu, store.X), rtol=0, atol=1e-4)
