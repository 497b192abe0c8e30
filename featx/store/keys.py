"""Names and contents of images in, the integers that stand for them in X out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash

_KEY_BITS = 52  # exact in a float64


def image_keys(ids: Sequence[str], digests: Sequence[bytes]) -> np.ndarray:
    """The integers that stand for images in X.

    Parameters
    ----------
    ids : n strings
    digests : n content digests, 16 bytes each

    Returns
    -------
    (n,) int64: 52 bits of a hash of id and content. They say nothing of order or class, and stores of the same
    images agree on them. Of two that collide, the later is hashed again.
    """
    found = [_key(name, digest, 0) for name, digest in zip(ids, digests, strict=True)]
    if len(set(found)) < len(found):
        taken: set[int] = set()
        for i, key in enumerate(found):
            attempt = 0
            while key in taken:
                attempt += 1
                key = _key(ids[i], digests[i], attempt)
            found[i] = key
            taken.add(key)
    return np.array(found, np.int64)


def _key(name: str, digest: bytes, attempt: int) -> int:
    return xxhash.xxh3_64_intdigest(digest + name.encode(), attempt) >> (64 - _KEY_BITS)
