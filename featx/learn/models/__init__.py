"""Save and load fitted estimators, and predict images with them."""

from featx.learn.models.persistence import load, save
from featx.learn.models.prediction import Prediction, predict_images

__all__ = [
    "Prediction",
    "load",
    "predict_images",
    "save",
]
