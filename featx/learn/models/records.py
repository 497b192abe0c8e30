"""How a saved model was chosen, as JSON beside it: the candidates, and which images were trained on and held out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, fields
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from featx.errors import FeatxError, KeysError, LayerError, ModelError, Parameter
from featx.learn.features import StoredFeatures
from featx.learn.scores import METRICS, Interval
from featx.learn.selection import Candidate, SearchSettings, Selection, TrainingSet, predicted_test_set
from featx.store import FeatureStore


def record_of(selection: Selection) -> str:
    """JSON of everything in a selection but its model and predictions."""
    training, test = selection.training, selection.test
    return json.dumps(
        {
            "candidates": [asdict(candidate) for candidate in selection.candidates],
            "chosen": selection.candidates.index(selection.chosen),
            "settings": asdict(selection.settings),
            "training": {
                "keys": _listed(training.X),
                "y": _listed(training.y),
                "classes": _listed(training.classes),
                "chance": training.chance,
                "n_duplicates": training.n_duplicates,
                "n_groups": training.n_groups,
                "stores": [store.path.name for store in training.stores],
            },
            "test": None
            if test is None
            else {
                "keys": _listed(test.X),
                "y": _listed(test.y),
                "groups": _listed(test.groups),
                "store": None if test.store is None else test.store.path.name,
            },
        }
    )


def _listed(array: np.ndarray | None) -> list[Any] | None:
    return None if array is None else array.ravel().tolist()


def selection_of(
    record: str, estimator: Any, stores: FeatureStore | Sequence[FeatureStore], test_store: FeatureStore | None
) -> Selection:
    """The selection of a record; the estimator predicts the held-out images again. Raises as `load_selection`."""
    every = [stores] if isinstance(stores, FeatureStore) else list(stores)
    try:
        said = json.loads(record)
        candidates = [_candidate(values) for values in said["candidates"]]
        chosen = candidates[int(said["chosen"])]
        training, test, settings = said["training"], said["test"], said["settings"]
        if settings["scoring"] not in METRICS:
            raise ValueError(f"there is no score {settings['scoring']!r}")
        described = SearchSettings(
            int(settings["folds"]), int(settings["repeats"]), settings["scoring"], tuple(map(str, settings["steps"]))
        )
        classes = None if training["classes"] is None else np.array([str(name) for name in training["classes"]])
        if METRICS[described.scoring].is_numeric != (classes is None):
            raise ValueError(f"{described.scoring} is no score of its labels")
        X, y = _images(training, classes)
        X_test, y_test = (None, None) if test is None else _images(test, classes)
        of_training = TrainingSet(
            stores=every,
            n=len(X),
            classes=classes,
            chance=float(training["chance"]),
            n_duplicates=int(training["n_duplicates"]),
            n_groups=None if training["n_groups"] is None else int(training["n_groups"]),
            X=X,
            y=y,
        )
        if X_test is not None and test_store is None and np.isin(X_test, X).any():
            raise ValueError("a held-out image is a training image")
        groups = None if test is None or test["groups"] is None else np.array(test["groups"], np.int64)
        if groups is not None and (X_test is None or groups.shape != (len(X_test),)):
            raise ValueError("there is not one group for each held-out image")
        names = [str(name) for name in training.get("stores", ())]  # files of featx 0.1 may lack the stores' names
        test_name = None if test is None or test.get("store") is None else str(test["store"])
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise ModelError(f"the model's record of its search is damaged: {' '.join(str(error).split())}") from error
    if not isinstance(estimator, Pipeline) or not isinstance(estimator.steps[0][1], StoredFeatures):
        raise ModelError("the model's record of its search is damaged: its model is not one that a search fits")
    store = _searched_store(estimator, every, X, names)
    best = Pipeline([(estimator.steps[0][0], _reading(estimator, store)), *estimator.steps[1:]])
    predicted = None
    if X_test is not None and y_test is not None:
        reading, of = best, store
        if test_store is not None:
            reading, of = Pipeline([("features", _reading(estimator, test_store)), *best.steps[1:]]), test_store
        if not np.isin(X_test, of.X).all():
            raise KeysError(
                f"the {len(X_test):,} held-out images are those of {test_name or 'another store'}; "
                f"{_held(of, X_test)}; give the store that holds them with ",
                Parameter("test_store", ...),
            )
        predicted = predicted_test_set(reading, METRICS[described.scoring], X_test, y_test, groups, test_store)
    return Selection(candidates, chosen, best, of_training, described, test=predicted)


def _searched_store(
    estimator: Pipeline, stores: Sequence[FeatureStore], X: np.ndarray, names: Sequence[str]
) -> FeatureStore:
    """The store of the estimator's network.

    names : of the stores that were searched, if they are known

    Raises
    ------
    KeysError, LayerError, FeatxError
        The stores are not those that were searched.
    """
    recipe = estimator.steps[0][1].recipe_
    searched = " and ".join(names) or "another store"
    given = " and ".join(store.path.name for store in stores)
    of_network = [
        store
        for store in stores
        if (store.recipe.backbone, store.recipe.weights_sha256) == (recipe.backbone, recipe.weights_sha256)
    ]
    if not of_network:
        others = ", ".join(store.recipe.backbone for store in stores)
        others = "other weights" if others == recipe.backbone else others
        raise FeatxError(
            f"the model was chosen on {searched} and reads features of {recipe.backbone}; {given} has those of "
            f"{others}; give the store that was searched"
        )
    for store in {each.identity: each for each in (stores[0], of_network[0])}.values():
        if not np.isin(X, store.X).all():
            raise KeysError(
                f"the model was chosen on {len(X):,} images of {searched}; {_held(store, X)}; give the store that was "
                "searched"
            )
    for name in recipe.layers:
        if name not in of_network[0].layers:
            raise LayerError(
                f"the model was chosen on {searched} and reads {name}; {of_network[0].path.name} has "
                f"{', '.join(of_network[0].layers)}; give the store that was searched"
            )
    return of_network[0]


def _held(store: FeatureStore, X: np.ndarray) -> str:
    """ "b.h5 holds none of them" """
    held = int(np.isin(X, store.X).sum())
    return f"{store.path.name} holds {f'only {held:,}' if held else 'none'} of them"


def _reading(estimator: Pipeline, store: FeatureStore) -> StoredFeatures:
    """The model's features step, reading from a store; `transform` compares the recipes."""
    step = estimator.steps[0][1]
    return copy(step).set_params(store=store, layer=list(step.layers_))


def _candidate(values: dict[str, Any]) -> Candidate:
    names = {each.name for each in fields(Candidate)}
    if values.keys() != names:
        raise ValueError("a candidate has other fields")
    candidate = Candidate(
        **{name: str(values[name]) for name in ("backbone", "layer", "estimator", "parameter")},
        d=int(values["d"]),
        value=None if values["value"] is None else float(values["value"]),
        mean=float(values["mean"]),
        std=float(values["std"]),
        interval=Interval(*map(float, values["interval"])),
        scores=tuple(map(float, values["scores"])),
        fit_seconds=float(values["fit_seconds"]),
        complexity=tuple(map(float, values["complexity"])),
        mae=None if values["mae"] is None else float(values["mae"]),
    )
    numbers = [0.0 if candidate.value is None else candidate.value, candidate.d, candidate.fit_seconds]
    if not np.isfinite(numbers).all() or np.isinf([candidate.mean, *candidate.scores]).any():
        raise ValueError("a candidate's value, size or time is not finite")
    return candidate


def _images(values: dict[str, Any], classes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(n, 1) keys and (n,) labels; raises ValueError if there are not as many, none, or labels of another kind."""
    keys = np.array(values["keys"], np.int64)
    y = np.array(values["y"], float) if classes is None else np.array([str(name) for name in values["y"]])
    if keys.ndim != 1 or keys.shape != y.shape or not len(keys):
        raise ValueError("keys and labels are not one each for each image")
    if not (np.isfinite(y).all() if classes is None else np.isin(y, classes).all()):
        raise ValueError("a label is not finite" if classes is None else "a label is not one of its classes")
    return keys[:, None], y
