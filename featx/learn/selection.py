"""Stores in, one chosen and fitted pipeline out: a grid over layers, estimators and C with stratified
cross-validation, and a score on images that the choice never saw. What `featx search` runs.

GridSearchCV and the estimators are scikit-learn's; one search a layer and estimator, so that a caller can show how far
it is and keep what is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from joblib import cpu_count
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from featx.errors import FeatxError, StoreError, listed, nearest
from featx.learn.features import StoredFeatures
from featx.learn.intervals import cv_interval
from featx.learn.ranking import Candidate, Selection
from featx.store import FeatureStore

# Features are standardised, so one grid serves all layers.
ESTIMATORS: dict[str, tuple[Any, tuple[float, ...]]] = {
    "logistic_regression": (LogisticRegression(max_iter=1000), (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)),
    "linear_svm": (LinearSVC(), (1e-5, 1e-4, 1e-3, 1e-2)),
    "rbf_svm": (SVC(), (0.1, 1.0, 10.0)),
}


def select_model(
    stores: FeatureStore | Sequence[FeatureStore],
    y: Sequence[object] | np.ndarray | None = None,
    *,
    layers: Sequence[str] | None = None,
    estimators: Sequence[str] = tuple(ESTIMATORS),
    C: Mapping[str, Sequence[float]] | None = None,
    folds: int = 5,
    test_size: float = 0.2,
    test_rows: np.ndarray | None = None,
    test_store: FeatureStore | None = None,
    random_state: int = 0,
    n_jobs: int = -1,
    on_progress: Callable[[int, int, list[Candidate]], None] | None = None,
) -> Selection:
    """Choose layer, estimator and C by stratified cross-validation, and score the choice on images held out.

    The best of many cross-validated scores is flattered by having been chosen; the held-out score is not. The pipeline
    returned is the one that was scored: fitted on the training images only.

    Parameters
    ----------
    stores : FeatureStore, or several of the same images (from several backbones)
    y : (n,) class names, optional
        By default the first store's own.
    layers : sequence of str, optional
        By default all that are stored.
    estimators : of "logistic_regression", "linear_svm", "rbf_svm"
    C : {estimator: values}, optional
        Instead of the default grid.
    folds : int
    test_size : float
        The share of images to hold out, stratified; 0 for none.
    test_rows : (n,) bool, optional
        Which images to hold out, instead of a random share.
    test_store : FeatureStore, optional
        Labelled images to hold out, all of them, in a store of their own.
    random_state : int
        Of the split and the folds.
    n_jobs : int
        Processes; -1 is one a core. Each uses one thread.
    on_progress : callable(done, total, candidates), optional
        Called before the first and after each of the searches.

    Returns
    -------
    Selection

    Raises
    ------
    FeatxError
        There are fewer than two classes, or a class has too few images for the folds; an unknown estimator or layer.
    """
    if folds < 2:
        raise FeatxError(f"cross-validation needs two folds or more; got folds={folds}")
    stores = [stores] if isinstance(stores, FeatureStore) else list(stores)
    store = stores[0]
    labels = _labels(store, y)
    if len(np.unique(labels)) < 2:
        raise FeatxError(f"at least two classes are needed to tell apart; there is only {str(labels[0])!r}")
    keys = store.X
    for other in stores[1:]:
        other.rows(keys)  # raises where the images differ
    train, test = _split(labels, test_size, test_rows, test_store, folds, random_state)
    X_train, y_train = keys[train], labels[train]
    X_test, y_test = (keys[test], labels[test]) if len(test) else (None, None)
    if test_store is not None:
        X_test, y_test = test_store.X, _labels(test_store, None)
        shared = set(map(bytes, test_store.digests)) & {bytes(row) for row in store.digests}
        if shared:
            raise FeatxError(
                f"{len(shared):,} of the {len(test_store):,} test images are training images too; a score on them "
                "says nothing: take them out of one of the stores"
            )
        if unknown := sorted(set(y_test) - set(y_train)):
            raise FeatxError(f"the test store has classes that the training images have not: {listed(unknown)}")
    if len(np.unique(y_train)) < 2:
        raise FeatxError(f"the training images need two classes or more; they are all {str(y_train[0])!r}")
    for class_name, count in zip(*np.unique(y_train, return_counts=True), strict=True):
        if count < folds:
            raise FeatxError(
                f"{folds}-fold cross-validation needs {folds} training images of each class; {str(class_name)!r} has "
                f"{count}: add images, or take fewer folds or a smaller test share"
            )

    cv = StratifiedKFold(folds, shuffle=True, random_state=random_state)
    searches = _searches(stores, layers, estimators, C)
    n_jobs = min(n_jobs, folds) if n_jobs > 0 else min(cpu_count(), folds)
    candidates: list[Candidate] = []
    pipelines: dict[Candidate, Pipeline] = {}
    for done, (pipeline, name, grid) in enumerate(searches):
        if on_progress:
            on_progress(done, len(searches), _ranked(candidates))
        search = GridSearchCV(pipeline, {"classifier__C": grid}, cv=cv, n_jobs=n_jobs, refit=False, scoring="accuracy")
        search.fit(X_train, y_train)
        for candidate, fitted in _candidates(search, name):
            candidates.append(candidate)
            pipelines[candidate] = fitted
    if on_progress:
        on_progress(len(searches), len(searches), _ranked(candidates))
    candidates = _ranked(candidates)
    best = pipelines[candidates[0]].fit(X_train, y_train)
    predicted = confidence = None
    if X_test is not None:
        scored = best if test_store is None else _with_store(best, test_store)
        matrix = scored[:-1].transform(X_test)
        predicted = scored[-1].predict(matrix)
        scores = scored[-1].decision_function(matrix)  # (m, k), or (m,) for two classes
        confidence = np.abs(scores) if scores.ndim == 1 else scores.max(axis=1)
    classes, counts = np.unique(y_train, return_counts=True)
    return Selection(
        candidates=candidates,
        chosen=candidates[0],
        best_estimator=best,
        stores=stores,
        n_train=len(X_train),
        folds=folds,
        repeats=1,
        scoring="accuracy",
        classes=classes,
        chance=float(counts.max() / counts.sum()),
        X_test=X_test,
        y_test=y_test,
        predicted=predicted,
        confidence=confidence,
        test_store=test_store,
    )


def _labels(store: FeatureStore, y: Sequence[object] | np.ndarray | None) -> np.ndarray:
    labels = store.y if y is None else np.asarray(y)
    if labels is None:
        raise StoreError(f"{store.path.name} has no labels; give them: y=store.align('labels.csv'), or --labels")
    if len(labels) != len(store):
        raise StoreError(f"one label an image is needed: {store.path.name} has {len(store):,}, got {len(labels):,}")
    if labels.dtype.kind == "f":
        raise StoreError("labels are classes here, and these are numbers (target='numeric'); extract them as classes")
    return labels.astype(str)


def _split(
    labels: np.ndarray,
    test_size: float,
    test_rows: np.ndarray | None,
    test_store: FeatureStore | None,
    folds: int,
    random_state: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions to train on and to hold out."""
    rows = np.arange(len(labels))
    if test_store is not None:
        return rows, rows[:0]
    if test_rows is not None:
        test_rows = np.asarray(test_rows, bool)
        if test_rows.shape != rows.shape:
            raise FeatxError(
                f"test_rows says of each of the {len(rows):,} images whether it is held out; got {test_rows.shape}"
            )
        if test_rows.all() or not test_rows.any():
            raise FeatxError("the test rows must be some of the images, not all and not none")
        return rows[~test_rows], rows[test_rows]
    if test_size == 0:
        return rows, rows[:0]
    if not 0 < test_size < 1:
        raise FeatxError(f"test_size is the share of images held out, from 0 to below 1; got {test_size}")
    names, counts = np.unique(labels, return_counts=True)
    n_test = int(np.ceil(test_size * len(rows)))
    if counts.min() < 2 or n_test < len(names) or len(rows) - n_test < len(names):
        rare = str(names[counts.argmin()])
        raise FeatxError(
            f"holding out {test_size:.0%} of {len(rows):,} images needs two or more of each of the {len(names)} "
            f"classes, and one of each on both sides; {rare!r} has {counts.min()}: add images, or test_size=0"
        )
    train, test = train_test_split(rows, test_size=test_size, stratify=labels, random_state=random_state)
    return np.sort(train), np.sort(test)


def _searches(
    stores: Sequence[FeatureStore],
    layers: Sequence[str] | None,
    estimators: Sequence[str],
    C: Mapping[str, Sequence[float]] | None,
) -> list[tuple[Pipeline, str, list[float]]]:
    """Every layer of every store with every estimator, small layers first: (pipeline, estimator's name, its C)."""
    for name in [*estimators, *(C or ())]:
        if name not in ESTIMATORS:
            raise FeatxError(
                f"there is no estimator {name!r}{nearest(name, ESTIMATORS)}; choose {', '.join(ESTIMATORS)}"
            )
    if not estimators:
        raise FeatxError(f"name at least one estimator of {', '.join(ESTIMATORS)}")
    found: list[tuple[Pipeline, str, list[float]]] = []
    for store in stores:
        chosen = dict.fromkeys(store.recipe.layer(layer) for layer in (layers or store.layers))
        for layer in chosen:
            for name in estimators:
                estimator, default = ESTIMATORS[name]
                grid = [float(value) for value in (C or {}).get(name, default)]
                if not grid or min(grid) <= 0:
                    raise FeatxError(f"C is one or more positive numbers; got {grid} for {name}")
                steps = [
                    ("features", StoredFeatures(store, layer).fit()),
                    ("scaler", StandardScaler()),
                    ("classifier", clone(estimator)),
                ]
                found.append((Pipeline(steps), name, grid))
    return sorted(found, key=lambda search: search[0]["features"].n_features_out_)


def _candidates(search: GridSearchCV, name: str) -> list[tuple[Candidate, Pipeline]]:
    features = search.estimator["features"]
    results = search.cv_results_
    found = []
    for i, parameters in enumerate(results["params"]):
        candidate = Candidate(
            backbone=features.recipe_.backbone,
            layer=features.layer_,
            d=features.n_features_out_,
            estimator=name,
            parameter="C",
            value=parameters["classifier__C"],
            mean=float(results["mean_test_score"][i]),
            std=float(results["std_test_score"][i]),
            scores=tuple(float(results[f"split{fold}_test_score"][i]) for fold in range(search.n_splits_)),
            fit_seconds=float(results["mean_fit_time"][i]),
            interval=cv_interval(
                [float(results[f"split{fold}_test_score"][i]) for fold in range(search.n_splits_)],
                search.n_splits_ - 1,
                1,
                0,
                1,
            ),
            cost=(features.n_features_out_, list(ESTIMATORS).index(name), parameters["classifier__C"]),
        )
        found.append((candidate, clone(search.estimator).set_params(**parameters)))
    return found


def _ranked(candidates: list[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda candidate: (-candidate.mean, candidate.d, candidate.C))


def _with_store(pipeline: Pipeline, store: FeatureStore) -> Pipeline:
    """A fitted pipeline that reads its rows from another store of the same recipe."""
    features = pipeline["features"]
    if differences := features.recipe_.differences(store.recipe.only(features.layer_)):
        raise StoreError(f"the test store was made otherwise: {'; '.join(differences)}; extract it as the first one")
    return Pipeline([("features", StoredFeatures(store, features.layer_).fit()), *pipeline.steps[1:]])
