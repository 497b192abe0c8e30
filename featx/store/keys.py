"""Computes the integers that stand for images in X, from their ids and contents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash

_KEY_BITS = 52  # exact in a float64


def image_keys(ids: Sequence[str], digests: Sequence[bytes]) -> np.ndarray:
    """The keys of images, the integers that stand for them in X.

    Parameters
    ----------
    ids : n strings
    digests : n content digests, 16 bytes each

    Returns
    -------
    (n,) int64: 52 bits of a hash of id and content. Keys reveal neither order nor class, and are the same in all stores
    of the same images. If two collide, the later image is hashed again.
    """
    keys = [_key(name, digest, 0) for name, digest in zip(ids, digests, strict=True)]
    if len(set(keys)) < len(keys):
        taken: set[int] = set()
        for i, key in enumerate(keys):
            attempt = 0
            while key in taken:
                attempt += 1
                key = _key(ids[i], digests[i], attempt)
            keys[i] = key
            taken.add(key)
    return np.array(keys, np.int64)


def _key(name: str, digest: bytes, attempt: int) -> int:
    return xxhash.xxh3_64_intdigest(digest + name.encode(), attempt) >> (64 - _KEY_BITS)
