"""The HDF5 file between extraction and learning: its writer and its reader. FORMAT.md is the contract.

This room knows nothing of images, networks or scikit-learn.
"""

from featx.naming import publish
from featx.recipe import Difference, Recipe, collection_digest
from featx.store.agreement import rounding_note
from featx.store.blocks import Damage
from featx.store.exporting import export
from featx.store.files import KEPT, disk_errors, refuse_unwritable, written_aside
from featx.store.importing import import_arrays
from featx.store.journal import Unfinished, discard, is_unfinished, refuse_running, unfinished
from featx.store.keys import image_keys
from featx.store.merging import copy_rows, merge, merge_refusal
from featx.store.near_duplicates import Copies, connected, near_duplicates
from featx.store.neighbours import directions, nearest
from featx.store.reader import FeatureStore, warn_of_rows
from featx.store.rows import RowFile
from featx.store.writer import StoreWriter

__all__ = [
    "KEPT",
    "Copies",
    "Damage",
    "Difference",
    "FeatureStore",
    "Recipe",
    "RowFile",
    "StoreWriter",
    "Unfinished",
    "collection_digest",
    "connected",
    "copy_rows",
    "directions",
    "discard",
    "export",
    "image_keys",
    "import_arrays",
    "is_unfinished",
    "merge",
    "merge_refusal",
    "near_duplicates",
    "nearest",
    "refuse_running",
    "refuse_unwritable",
    "rounding_note",
    "disk_errors",
    "unfinished",
    "warn_of_rows",
    "written_aside",
]

publish([FeatureStore, Recipe], __name__)
