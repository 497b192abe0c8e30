"""scikit-learn's estimators on the batched solvers: linear models, support vector machines, neighbours, centroids,
multilayer perceptrons, approximated kernels, and a scaler of rows that are too large for memory.

`batched` is the contract by which a search fits many of them at once. This room knows nothing of stores, searches or
images.
"""

from featx.learn.estimators.batched import Fold, Job, ScoredRows, affine_of, scaled, scaler_of
from featx.learn.estimators.centroid import NearestCentroid
from featx.learn.estimators.fits import Fit
from featx.learn.estimators.linear_svc import LinearSVC
from featx.learn.estimators.logistic import LogisticRegression
from featx.learn.estimators.mlp import MLPClassifier, MLPRegressor
from featx.learn.estimators.neighbors import KNeighborsClassifier
from featx.learn.estimators.nystroem import Nystroem
from featx.learn.estimators.ridge import Ridge, RidgeClassifier
from featx.learn.estimators.scaler import StandardScaler
from featx.learn.estimators.svm import SVC, SVR

__all__ = [
    "SVC",
    "SVR",
    "Fit",
    "Fold",
    "ScoredRows",
    "Job",
    "KNeighborsClassifier",
    "LinearSVC",
    "LogisticRegression",
    "MLPClassifier",
    "MLPRegressor",
    "NearestCentroid",
    "Nystroem",
    "Ridge",
    "RidgeClassifier",
    "StandardScaler",
    "affine_of",
    "scaled",
    "scaler_of",
]
