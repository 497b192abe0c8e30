"""Choice of a pretrained backbone, fine-tuning, and adaptation to another domain."""

from featx.naming import publish
from featx.transfer.adaptation import Adaptation, AdaptationRow, adapt
from featx.transfer.alignment import Align
from featx.transfer.alike import Similarity, similarity
from featx.transfer.comparison import ComparedBackbone, ComparedLayer, Comparison, compare
from featx.transfer.finetuning import FineTuner, FineTunerRegressor
from featx.transfer.transferability import h_score, log_me, n_leep
from featx.transfer.trial import FineTuning, finetune

__all__ = [
    "Adaptation",
    "AdaptationRow",
    "Align",
    "ComparedBackbone",
    "ComparedLayer",
    "Comparison",
    "FineTuner",
    "FineTunerRegressor",
    "FineTuning",
    "Similarity",
    "adapt",
    "compare",
    "finetune",
    "h_score",
    "log_me",
    "n_leep",
    "similarity",
]

publish([globals()[_name] for _name in __all__], __name__)
