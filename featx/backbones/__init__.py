"""A name or a module in; a network in eval mode with its preprocessing, its fingerprint and its taps out.

Knows nothing of where images come from or where rows go.
"""

from featx.backbones.backbone import Backbone, recall
from featx.backbones.precision import decide_precision
from featx.backbones.preprocessing import Preprocessing
from featx.backbones.taps import POOLS, Tap, TappedNetwork, describe, resolve_taps

__all__ = [
    "POOLS",
    "Backbone",
    "Preprocessing",
    "Tap",
    "TappedNetwork",
    "decide_precision",
    "describe",
    "recall",
    "resolve_taps",
]
