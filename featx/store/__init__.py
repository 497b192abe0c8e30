"""The HDF5 file between extracting and learning: its recipe, its writer, its reader. FORMAT.md is the contract.

Knows nothing of images, networks or scikit-learn.
"""

from featx.store.reader import FeatureStore
from featx.store.recipe import Recipe
from featx.store.writer import StoreWriter, image_keys

__all__ = ["FeatureStore", "Recipe", "StoreWriter", "image_keys"]
