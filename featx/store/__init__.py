"""The HDF5 file between extraction and learning: its writer and its reader. FORMAT.md is the contract.

This room knows nothing of images, networks or scikit-learn.
"""

from featx.naming import publish
from featx.recipe import Difference, Recipe, collection_digest
from featx.store.agreement import rounding_note
from featx.store.blocks import Damage
from featx.store.exporting import export
from featx.store.files import KEPT, disk_errors, refuse_unwritable_store, written_aside
from featx.store.importing import import_arrays
from featx.store.journal import Unfinished, discard, is_unfinished, refuse_running, unfinished
from featx.store.keys import image_keys
from featx.store.merging import copy_rows, merge, merge_refusal
from featx.store.near_duplicates import (
    NEAR_DUPLICATES,
    Copies,
    connected,
    near_duplicate_groups,
    near_duplicates,
    pairs_of_equal,
)
from featx.store.neighbours import Neighbors
from featx.store.putting import put
from featx.store.reader import FeatureStore, warn_of_rows
from featx.store.rows import RowFile
from featx.store.writer import StoreWriter

__all__ = [
    "KEPT",
    "NEAR_DUPLICATES",
    "Copies",
    "Damage",
    "Difference",
    "FeatureStore",
    "Neighbors",
    "Recipe",
    "RowFile",
    "StoreWriter",
    "Unfinished",
    "collection_digest",
    "connected",
    "copy_rows",
    "discard",
    "export",
    "image_keys",
    "import_arrays",
    "is_unfinished",
    "merge",
    "merge_refusal",
    "near_duplicate_groups",
    "near_duplicates",
    "pairs_of_equal",
    "put",
    "refuse_running",
    "refuse_unwritable_store",
    "rounding_note",
    "disk_errors",
    "unfinished",
    "warn_of_rows",
    "written_aside",
]

publish([FeatureStore, Neighbors, Recipe], __name__)
