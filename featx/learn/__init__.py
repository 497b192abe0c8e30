"""The scikit-learn interface: features of image keys or new images, estimators, searches and saved models.

This room decodes no images and loads no network, except to compute features of new images, through `forward`.
"""

from featx.learn.estimators import (
    SVC,
    SVR,
    Fit,
    KNeighborsClassifier,
    LinearSVC,
    LogisticRegression,
    MLPClassifier,
    MLPRegressor,
    NearestCentroid,
    Nystroem,
    Ridge,
    RidgeClassifier,
    StandardScaler,
)
from featx.learn.features import ImageFeatures, StoredFeatures
from featx.learn.models import Prediction, load, load_selection, predict_images, predict_store, save
from featx.learn.protocols import few_shot, knn_probe, learning_curves, linear_probe
from featx.learn.search import GridSearchCV, HalvingGridSearchCV, HalvingRandomSearchCV, RandomizedSearchCV
from featx.learn.selection import (
    Candidate,
    Curve,
    HoldOut,
    Interrupted,
    Nested,
    Point,
    ProtocolResult,
    SearchSettings,
    Selection,
    TestSet,
    TrainingSet,
    one_se,
    select_model,
)
from featx.naming import publish

__all__ = [
    "Candidate",
    "Curve",
    "Fit",
    "GridSearchCV",
    "HalvingGridSearchCV",
    "HalvingRandomSearchCV",
    "HoldOut",
    "ImageFeatures",
    "Interrupted",
    "KNeighborsClassifier",
    "LinearSVC",
    "LogisticRegression",
    "MLPClassifier",
    "MLPRegressor",
    "NearestCentroid",
    "Nested",
    "Nystroem",
    "Point",
    "Prediction",
    "ProtocolResult",
    "RandomizedSearchCV",
    "Ridge",
    "RidgeClassifier",
    "SVC",
    "SVR",
    "SearchSettings",
    "Selection",
    "StandardScaler",
    "StoredFeatures",
    "TestSet",
    "TrainingSet",
    "few_shot",
    "knn_probe",
    "learning_curves",
    "linear_probe",
    "load",
    "load_selection",
    "one_se",
    "predict_images",
    "predict_store",
    "save",
    "select_model",
]

publish([globals()[_name] for _name in __all__], __name__)
