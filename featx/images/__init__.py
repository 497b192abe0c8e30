"""Where pixels come from: collections of images, decoding, ordered batches.

In: a folder, a list, a manifest, arrays. Out: batches of uint8 pixels in the collection's order.
Knows nothing of networks or files of features.
"""

from featx.images.batches import Batch, batches
from featx.images.collection import Collection, collect, files
from featx.images.decoding import DECODER, Stamp, changed, content_digest, decode, stamp
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
    "files",
    "stamp",
]
