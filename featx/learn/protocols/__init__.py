"""The field's standard evaluations of a representation: linear probe, nearest neighbours, few-shot, learning curve.

Each protocol scores the layers of a store, one after the other, on held-out images.
"""

from featx.learn.protocols.few_shots import few_shot
from featx.learn.protocols.knn import knn_probe
from featx.learn.protocols.learning import learning_curves
from featx.learn.protocols.linear import linear_probe

__all__ = [
    "few_shot",
    "knn_probe",
    "learning_curves",
    "linear_probe",
]
