"""Fitted estimators as files, and what they predict of images."""

from featx.learn.models.persistence import load, refuse_unfitted, save
from featx.learn.models.prediction import Prediction, predict_images

__all__ = [
    "Prediction",
    "load",
    "predict_images",
    "refuse_unfitted",
    "save",
]
