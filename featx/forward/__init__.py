"""The forward pass: a recipe resolved, images through the network in batches, rows out. The only loop of its kind."""

from featx.forward.cache import backbone_of, matrix_of, release
from featx.forward.passes import Block
from featx.forward.streaming import as_backbone, check_choices, decoders, device_of, measure, resolve_recipe, stream
from featx.forward.trial import Trial

__all__ = [
    "Block",
    "Trial",
    "as_backbone",
    "backbone_of",
    "check_choices",
    "decoders",
    "device_of",
    "matrix_of",
    "measure",
    "release",
    "resolve_recipe",
    "stream",
]
