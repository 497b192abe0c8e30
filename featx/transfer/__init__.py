"""Which pretrained backbone to take, and how its features carry over to the images at hand."""

from featx.transfer.alike import Similarity, similarity
from featx.transfer.comparison import ComparedBackbone, ComparedLayer, Comparison, compare
from featx.transfer.finetuning import FineTuner, FineTunerRegressor
from featx.transfer.transferability import h_score, log_me, n_leep
from featx.transfer.trial import FineTuning, finetune

__all__ = [
    "ComparedBackbone",
    "ComparedLayer",
    "Comparison",
    "FineTuner",
    "FineTunerRegressor",
    "FineTuning",
    "Similarity",
    "compare",
    "finetune",
    "h_score",
    "log_me",
    "n_leep",
    "similarity",
]

for _class in (FineTuner, FineTunerRegressor):
    _class.__module__ = __name__  # saved models name this module, so they do not depend on where a class is defined
