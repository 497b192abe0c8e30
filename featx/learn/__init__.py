"""The scikit-learn face: image keys (or new images) in, matrices, estimators, searches and saved models out.

Decodes nothing and loads no network, except to predict on new images, through `forward.stream`.
"""

from featx.learn.centroid import NearestCentroid
from featx.learn.draws import few_shot, learning_curves
from featx.learn.features import ImageFeatures, StoredFeatures
from featx.learn.fits import Fit
from featx.learn.halving import HalvingGridSearchCV, HalvingRandomSearchCV
from featx.learn.linear_svc import LinearSVC
from featx.learn.logistic import LogisticRegression
from featx.learn.neighbors import KNeighborsClassifier
from featx.learn.parsimony import one_se
from featx.learn.persistence import load, save
from featx.learn.prediction import Prediction, predict_images
from featx.learn.protocols import knn_probe, linear_probe
from featx.learn.ranking import Candidate, Interrupted, Nested, ProtocolResult, Selection
from featx.learn.ridge import Ridge, RidgeClassifier
from featx.learn.search import GridSearchCV, RandomizedSearchCV
from featx.learn.selection import select_model
from featx.learn.svm import SVC, SVR

__all__ = [
    "Candidate",
    "Fit",
    "GridSearchCV",
    "HalvingGridSearchCV",
    "HalvingRandomSearchCV",
    "ImageFeatures",
    "Interrupted",
    "KNeighborsClassifier",
    "LinearSVC",
    "LogisticRegression",
    "NearestCentroid",
    "Nested",
    "Prediction",
    "ProtocolResult",
    "RandomizedSearchCV",
    "Ridge",
    "RidgeClassifier",
    "SVC",
    "SVR",
    "Selection",
    "StoredFeatures",
    "few_shot",
    "knn_probe",
    "learning_curves",
    "linear_probe",
    "load",
    "one_se",
    "predict_images",
    "save",
    "select_model",
]
