"""Image keys, or images, in; a matrix of features out: the first step of a pipeline."""

from featx.learn.features.features import ImageFeatures, StoredFeatures
from featx.learn.features.inputs import as_images, items_of, keys_of

__all__ = [
    "ImageFeatures",
    "StoredFeatures",
    "as_images",
    "items_of",
    "keys_of",
]
