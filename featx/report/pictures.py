"""The pictures of a store's rows, read again from where they were extracted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from featx.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from featx.store import FeatureStore


def picture_of(store: FeatureStore, row: int) -> Image | None:
    """The picture of a row; None if there is no file of it, or another one since."""
    from featx.images import decode

    try:
        # without a folder, ids may be whole paths, or names of anything
        picture, digest = decode(Path(store.recipe.origin or "", str(store.ids[row])))
    except (ImageError, OSError):
        return None
    return picture if digest == bytes(store.digests[row]) else None
