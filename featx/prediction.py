"""What a model says of one image."""

from __future__ import annotations

from typing import NamedTuple


class Prediction(NamedTuple):
    """The prediction for one image.

    Attributes
    ----------
    image : str
        Path of the image, its position, or its id in a store.
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
