"""Image keys, or images, in; a matrix of features out: the first step of a pipeline."""

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
