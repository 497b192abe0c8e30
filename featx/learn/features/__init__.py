"""The first step of a pipeline, which turns image keys or images into a matrix of features."""

from featx.learn.features.features import ImageFeatures, StoredFeatures
from featx.learn.features.inputs import as_images, items_of, keys_of
from featx.learn.features.rows import FeatureRows, Origin

__all__ = [
    "FeatureRows",
    "ImageFeatures",
    "Origin",
    "StoredFeatures",
    "as_images",
    "items_of",
    "keys_of",
]
