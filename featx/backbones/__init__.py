"""From a name or a module to a network in eval mode, with its preprocessing, fingerprint and taps.

This room knows nothing of collections of images or of stores.
"""

from featx.backbones.backbone import BUILDING, Backbone, passed_backbone, resolve_backbone
from featx.backbones.engine import Choice, choose
from featx.backbones.network import COMPILED, EAGER, TappedNetwork
from featx.backbones.pools import POOLS, Tap
from featx.backbones.preprocessing import Preprocessing
from featx.backbones.taps import describe, resolve_taps
from featx.backbones.trace import trace_of

__all__ = [
    "BUILDING",
    "COMPILED",
    "EAGER",
    "POOLS",
    "Backbone",
    "Choice",
    "Preprocessing",
    "Tap",
    "TappedNetwork",
    "choose",
    "describe",
    "passed_backbone",
    "resolve_backbone",
    "resolve_taps",
    "trace_of",
]
