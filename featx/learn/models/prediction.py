"""Predict images one by one: a label with its confidence, or the reason why the image cannot be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from featx.errors import FeatxError, ModelError, UnreadableImages
from featx.learn.features import as_images
from featx.learn.models.persistence import recipes

_CHUNK = 256  # images per call: results are shown after each, and an unreadable image makes one run twice


class Prediction(NamedTuple):
    """The prediction for one image.

    Attributes
    ----------
    image : str
        Path of the image, or its position.
    label : str, float or None
        Class name, or the value that a regressor predicts; None if the image cannot be read.
    confidence : float or None
        Highest probability, or highest decision score if the model has no probabilities; None for regressors.
    kind : "probability", "score", "value" or ""
        Meaning of `confidence`; "value" for regressors, "" if the image cannot be read.
    error : str
        Why the image cannot be read, or "".
    """

    image: str
    label: str | float | None
    confidence: float | None
    kind: str
    error: str


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


def _predict(model: Any, images: list[Any]) -> list[tuple[str | float, float | None, str]]:
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


def _results(model: Any, images: list[Any]) -> list[tuple[str | float, float | None, str]]:
    if not hasattr(model, "classes_"):
        return [(float(value), None, "value") for value in model.predict(images)]
    method, kind = ("predict_proba", "probability")
    if not hasattr(model, method):
        method, kind = ("decision_function", "score")
    scores = np.asarray(getattr(model, method)(images))  # (n, k), or (n,) for two classes
    confidence = np.abs(scores) if scores.ndim == 1 else scores.max(axis=1)
    return [(str(label), float(c), kind) for label, c in zip(model.predict(images), confidence, strict=True)]
