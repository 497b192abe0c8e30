"""From a folder, list, manifest or arrays to ordered batches of uint8 pixels: collections, decoding, batches.

This room knows nothing of networks or stores.
"""

from featx.images.batches import Batch, batches
from featx.images.collection import Collection, collect, files, image_at
from featx.images.decoding import DECODER, content_digest, decode, decode_and_describe, stamp
from featx.images.jpeg import has_fast_jpeg
from featx.images.limits import NO_MEMORY
from featx.images.members import Member, Stamp, changed, is_remote

__all__ = [
    "DECODER",
    "NO_MEMORY",
    "Batch",
    "Collection",
    "Member",
    "Stamp",
    "batches",
    "changed",
    "collect",
    "content_digest",
    "decode",
    "decode_and_describe",
    "files",
    "has_fast_jpeg",
    "image_at",
    "is_remote",
    "stamp",
]
