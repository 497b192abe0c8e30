"""Save and load fitted estimators, and predict images with them."""

from featx.learn.models.persistence import load, load_selection, refuse_unfitted, save
from featx.learn.models.prediction import Prediction, predict_images, predict_store

__all__ = [
    "Prediction",
    "load",
    "load_selection",
    "predict_images",
    "predict_store",
    "refuse_unfitted",
    "save",
]
