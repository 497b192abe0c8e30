"""Which pretrained backbone to take, and how its features carry over to the images at hand."""

from featx.transfer.adaptation import Adaptation, AdaptationRow, adapt
from featx.transfer.alignment import METHODS, Align
from featx.transfer.alike import Similarity, similarity
from featx.transfer.comparison import ComparedBackbone, ComparedLayer, Comparison, compare
from featx.transfer.finetuning import FineTuner, FineTunerRegressor
from featx.transfer.transferability import h_score, log_me, n_leep

__all__ = [
    "Adaptation",
    "AdaptationRow",
    "Align",
    "ComparedBackbone",
    "ComparedLayer",
    "Comparison",
    "FineTuner",
    "FineTunerRegressor",
    "METHODS",
    "Similarity",
    "adapt",
    "compare",
    "h_score",
    "log_me",
    "n_leep",
    "similarity",
]

Align.__module__ = __name__  # which saved models name, as those of featx.learn
