"""From a folder, list, manifest or arrays to ordered batches of uint8 pixels: collections, decoding, batches.

This room knows nothing of networks or stores.
"""

from featx.images.batches import Batch, batches
from featx.images.collection import Collection, collect, files
from featx.images.decoding import DECODER, Stamp, changed, content_digest, decode, decode_and_describe, stamp
from featx.images.jpeg import has_fast_jpeg
from featx.images.limits import NO_MEMORY

__all__ = [
    "DECODER",
    "NO_MEMORY",
    "Batch",
    "Collection",
    "Stamp",
    "batches",
    "changed",
    "collect",
    "content_digest",
    "decode",
    "decode_and_describe",
    "files",
    "has_fast_jpeg",
    "stamp",
]
