"""What a model says of one image."""

from __future__ import annotations

from typing import NamedTuple


class Prediction(NamedTuple):
    """The prediction for one image.

    image : its path, or its position
    label : class name, or the value that a regressor predicts; None if the image cannot be read
    confidence : highest probability, or highest decision score if the model has no probabilities; None for regressors
    kind : "probability" or "score", the meaning of `confidence`; "value" for regressors, "" if the image cannot be read
    error : why the image cannot be read, or ""
    """

    image: str
    label: str | float | None
    confidence: float | None
    kind: str
    error: str
