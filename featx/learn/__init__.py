"""The scikit-learn face: image keys (or new images) in, matrices, estimators, searches and saved models out.

Decodes nothing and loads no network, except to predict on new images, through `forward.stream`.
"""

from featx.learn.features import ImageFeatures, StoredFeatures
from featx.learn.fits import Fit
from featx.learn.halving import HalvingGridSearchCV, HalvingRandomSearchCV
from featx.learn.linear_svc import LinearSVC
from featx.learn.logistic import LogisticRegression
from featx.learn.persistence import load, save
from featx.learn.prediction import Prediction, predict_images
from featx.learn.ranking import Candidate, Selection
from featx.learn.ridge import Ridge, RidgeClassifier
from featx.learn.search import GridSearchCV, RandomizedSearchCV
from featx.learn.selection import select_model

__all__ = [
    "Candidate",
    "Fit",
    "GridSearchCV",
    "HalvingGridSearchCV",
    "HalvingRandomSearchCV",
    "ImageFeatures",
    "LinearSVC",
    "LogisticRegression",
    "Prediction",
    "RandomizedSearchCV",
    "Ridge",
    "RidgeClassifier",
    "Selection",
    "StoredFeatures",
    "load",
    "predict_images",
    "save",
    "select_model",
]
