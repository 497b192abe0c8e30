"""The pictures of a store's rows, read again from where they were extracted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featx.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from featx.store import FeatureStore


def picture_of(store: FeatureStore, row: int) -> Image | None:
    """The picture of a row; None if there is no file of it, or another one since."""
    from featx.images import decode, image_at

    try:
        # without a folder, ids may be whole paths, or names of anything
        picture, digest = decode(image_at(store.recipe.origin, str(store.ids[row])))
    except (ImageError, OSError):
        return None
    return picture if digest == bytes(store.digests[row]) else None
