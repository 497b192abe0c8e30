"""The forward pass: a recipe resolved, images through the network in batches, rows out. The only loop of its kind."""

from featx.forward.passes import Block
from featx.forward.streaming import check_choices, decoders, measure, release, settle, stream
from featx.forward.trial import Trial

__all__ = [
    "Block",
    "Trial",
    "check_choices",
    "decoders",
    "measure",
    "release",
    "settle",
    "stream",
]
