"""From a name or a module to a network in eval mode, with its preprocessing, fingerprint and taps.

This room knows nothing of collections of images or of stores.
"""

from featx.backbones.available import Pretrained, n_timm, pretrained
from featx.backbones.backbone import BUILDING, Backbone, passed_backbone, resolve_backbone
from featx.backbones.engine import Choice, choose
from featx.backbones.network import COMPILED, EAGER, TappedNetwork
from featx.backbones.pools import POOLS, Pool, Tap
from featx.backbones.preprocessing import Preprocessing, expand_views
from featx.backbones.tails import INPUT, Boundary, Tail, boundaries
from featx.backbones.taps import describe, resolve_taps
from featx.backbones.trace import trace_of

__all__ = [
    "BUILDING",
    "COMPILED",
    "EAGER",
    "POOLS",
    "INPUT",
    "Backbone",
    "Boundary",
    "Choice",
    "Pool",
    "Preprocessing",
    "Pretrained",
    "Tail",
    "Tap",
    "TappedNetwork",
    "boundaries",
    "choose",
    "describe",
    "expand_views",
    "n_timm",
    "passed_backbone",
    "pretrained",
    "resolve_backbone",
    "resolve_taps",
    "trace_of",
]
