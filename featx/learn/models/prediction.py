"""Predict images, or the rows of a store, one by one: a label with its confidence, or why an image cannot be read."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from featx.errors import FeatxError, ModelError, UnreadableImages
from featx.learn.features import StoredFeatures, as_images
from featx.learn.models.persistence import features_of, recipes
from featx.prediction import Prediction
from featx.store import FeatureStore

_CHUNK = 256  # images per call: results are shown after each, and an unreadable image makes one run twice


def predict_images(model: Any, images: Sequence[Any]) -> Iterator[Prediction]:
    """Predict image by image; images that cannot be read are reported and do not stop the others.

    Parameters
    ----------
    model : fitted estimator of images, as `featx.load` returns it
    images : n paths, PIL images or uint8 arrays

    Yields
    ------
    Prediction, n of them, in order

    Raises
    ------
    ModelError
        The model's steps do not fit each other, or the features of its network.
    """
    items = as_images(images)
    for start in range(0, len(items), _CHUNK):
        chunk = items[start : start + _CHUNK]
        errors: dict[int, str] = {}
        try:
            results = _predict(model, chunk)
        except UnreadableImages as error:
            errors = {position: str(reason) for position, reason in error.failures.items()}
            good = [image for position, image in enumerate(chunk) if position not in errors]
            results = _predict(model, good) if good else []
        remaining = iter(results)
        for position, image in enumerate(chunk):
            name = str(start + position) if hasattr(image, "shape") or hasattr(image, "convert") else str(image)
            if position in errors:
                yield Prediction(name, None, None, "", errors[position])
            else:
                yield Prediction(name, *next(remaining), "")


def predict_store(model: Any, store: FeatureStore) -> Iterator[Prediction]:
    """Predict every row of a store; no network is needed.

    Parameters
    ----------
    model : fitted pipeline that begins with StoredFeatures, as `featx.load` returns it
    store : FeatureStore
        Of rows with the same meaning as those that the model was fitted on.

    Yields
    ------
    Prediction, one for each image of the store, in order; its `image` is the image's id

    Raises
    ------
    ModelError
        The model does not begin with StoredFeatures, or a step cannot use its input.
    RecipeError
        The store was made in another way; the differences are named.
    LayerError
        The store does not have the model's layers.
    """
    model = copy.deepcopy(model)
    steps = features_of(model)
    if not steps or not all(isinstance(step, StoredFeatures) for step in steps):
        raise ModelError(f"{type(model).__name__} does not begin with StoredFeatures, which reads rows of a store")
    for step in steps:
        step.store = store
    for start in range(0, len(store), _CHUNK):
        part = slice(start, start + _CHUNK)
        for name, result in zip(store.ids[part].tolist(), _predict(model, store.X[part]), strict=True):
            yield Prediction(name, *result, "")


def _predict(model: Any, images: list[Any] | np.ndarray) -> list[tuple[str | float, float | None, str]]:
    """(label, confidence, kind) for each image; the features are computed once."""
    try:
        return _results(model, images)
    except FeatxError:
        raise
    except (ValueError, TypeError, AttributeError) as error:  # raised by a step that cannot use its input
        if not recipes(model):
            raise ModelError(
                f"{type(model).__name__} predicts rows of features, not images: it has no StoredFeatures or "
                "ImageFeatures; fit and save a pipeline that begins with one of them"
            ) from error
        cause = " ".join(str(error).split())
        raise ModelError(f"{type(model).__name__} cannot predict images: {cause}") from error


def _results(model: Any, images: list[Any] | np.ndarray) -> list[tuple[str | float, float | None, str]]:
    if not hasattr(model, "classes_"):
        return [(float(value), None, "value") for value in model.predict(images)]
    method, kind = ("predict_proba", "probability")
    if not hasattr(model, method):
        method, kind = ("decision_function", "score")
    scores = np.asarray(getattr(model, method)(images))  # (n, k), or (n,) for two classes
    confidence = np.abs(scores) if scores.ndim == 1 else scores.max(axis=1)
    return [(str(label), float(c), kind) for label, c in zip(model.predict(images), confidence, strict=True)]
