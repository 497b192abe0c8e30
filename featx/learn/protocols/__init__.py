"""The field's standard evaluations of a representation: linear probe, nearest neighbours, few-shot, learning curve.

Stores in, scores on held-out images out, a layer at a time.
"""

from featx.learn.protocols.probes import knn_probe, linear_probe
from featx.learn.protocols.subsamples import few_shot, learning_curves

__all__ = [
    "few_shot",
    "knn_probe",
    "learning_curves",
    "linear_probe",
]
