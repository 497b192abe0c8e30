"""Where a training reads its minibatches: rows of a stored layer, or images that are decoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from featx.backbones import INPUT, Preprocessing
from featx.errors import ImageError, KeysError, LayerError, StoreError, UnreadableImages
from featx.forward import decoders
from featx.images import content_digest, decode, image_at
from featx.learn.features import StoredFeatures, as_images, items_of, keys_of
from featx.store import FeatureStore

# positions (b,) -> rows (b, ...) in memory of their own; (b * v, ...) if they are of v views of each image, one after
# another
Rows = Callable[[np.ndarray], Tensor]
_SMALLEST_CROP = 0.35  # share of the picture's area


def stored_rows(features: StoredFeatures, X: Any, generator: torch.Generator) -> tuple[Rows, Rows, np.ndarray]:
    """The rows of keys in a store.

    Parameters
    ----------
    generator : for the second result

    Returns
    -------
    rows : of all views of each image
    drawn : of one view of each image, drawn at random
    positions : (n,) of the keys in the store

    Raises
    ------
    LayerError
        The layer is stored pooled.
    KeysError
        X holds images, or a key that is not of this store.
    StoreError
        There is no store; while reading, a row is infinite or NaN.
    """
    store, layer = features.store, features.layer_
    if not isinstance(store, FeatureStore):
        raise StoreError("a loaded model carries no rows to train on; set_params(store=featx.FeatureStore(path))")
    tap = features.recipe_.taps[features.layers_[0]]
    if len(features.layers_) > 1 or (tap["pool"] != "none" and tap["layout"] != "bd"):
        raise LayerError(
            f"{store.path.name} holds {layer!r}, and fine-tuning needs the layer's whole output: extract "
            f"'{tap['node']}:none'"
        )
    items = items_of(X)
    if isinstance(items, list):
        raise KeysError("fine-tuning starts from stored rows: X holds keys, store.X for example; got images")
    positions = store.rows(keys_of(items))
    n_views, shape = features.recipe_.n_views, features.recipe_.view_taps[layer]["shape"]

    def tensor_of(values: np.ndarray) -> Tensor:
        rows = torch.from_numpy(values).float().reshape(-1, *shape)
        if not rows.isfinite().all():
            raise StoreError(
                f"{store.path.name} has rows of {layer!r} that are infinite or NaN: extract it with dtype float32"
            )
        return channels_last(rows)

    def rows(where: np.ndarray) -> Tensor:
        return tensor_of(store.take(positions[where], layer))

    def drawn(where: np.ndarray) -> Tensor:
        views = torch.randint(n_views, (len(where),), generator=generator).numpy()
        if store.is_archive:  # a row is decompressed as a whole
            return tensor_of(store.take(positions[where], layer)[np.arange(len(where)), views])
        return tensor_of(np.array(store[layer][positions[where], views]))

    return rows, rows if n_views == 1 else drawn, positions


def transformed_rows(features: StoredFeatures, X: Any) -> tuple[Rows, int]:
    """The rows of all views of keys or of images, which go through the network up to the layer; number of images."""
    items = items_of(X)
    shape = features.recipe_.view_taps[features.layer_]["shape"]

    def rows(where: np.ndarray) -> Tensor:
        part = items[where] if isinstance(items, np.ndarray) else [items[i] for i in where]
        values = np.array(features.transform_views(part), np.float32)  # a copy: keys give a read-only map of the file
        return channels_last(torch.from_numpy(values).reshape(-1, *shape))

    return rows, len(items)


def images_of(features: StoredFeatures, X: Any) -> Sequence[Any]:
    """The images of keys, which are the files that the store was made of, or the images themselves.

    Raises
    ------
    KeysError
        There is no store, or it was not made of files; those of a list of paths must not have changed.
    """
    items = items_of(X)
    if isinstance(items, list):
        return as_images(items)
    store = features.store
    if not isinstance(store, FeatureStore):
        raise KeysError(f"boundary={INPUT!r} needs images, and a loaded model has no store of their keys: give images")
    positions, origin = store.rows(keys_of(items)), store.recipe.origin
    files = [image_at(origin, str(name)) for name in store.ids[positions]]
    if origin is None:  # ids may be names of anything
        digests = map(bytes, store.digests[positions])
        if n := sum(not _has(file, digest) for file, digest in zip(files, digests, strict=True)):
            raise KeysError(
                f"boundary={INPUT!r} reads image files, and {n:,} of {len(files):,} images of {store.path.name} are "
                "not files of their names, or have changed; give images as X"
            )
    return files


def _has(file: Any, digest: bytes) -> bool:
    """Whether there is a file with this content."""
    try:
        return content_digest(file) == digest
    except ImageError:
        return False


def image_rows(
    images: Sequence[Any],
    preprocessing: Preprocessing,
    views: Sequence[str],
    change: Literal["crop", "view", None] = None,
    generator: torch.Generator | None = None,
) -> Rows:
    """Images as the network's input.

    Parameters
    ----------
    images : n paths, PIL images or uint8 arrays
    preprocessing : Preprocessing
    views : of each image
    change : "crop", "view" or None
        A random crop, of 35 to 100 % of the area, resized to the network's input and flipped half of the time; or one
        of the views, drawn at random; or all views.
    generator : torch.Generator, for random changes
    """
    threads = ThreadPoolExecutor(decoders("auto"))
    scale = (_SMALLEST_CROP, 1.0)
    random_crop = v2.RandomResizedCrop(preprocessing.size, scale, antialias=True)

    def cropped(picture: Image.Image) -> Tensor:
        pixels = functional.pil_to_tensor(picture)
        return v2.RandomHorizontalFlip()(random_crop(pixels)).permute(1, 2, 0)

    def rows(where: np.ndarray) -> Tensor:
        pictures = list(threads.map(lambda i: _decoded(images, i), where.tolist()))
        if change == "crop":
            with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator
                torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
                return preprocessing.normalise(torch.stack([cropped(picture) for picture in pictures]))
        shown = [views] * len(pictures)
        if change == "view":
            shown = [[views[i]] for i in torch.randint(len(views), (len(pictures),), generator=generator)]
        pixels = [preprocessing.views(picture, names) for picture, names in zip(pictures, shown, strict=True)]
        return preprocessing.normalise(torch.from_numpy(np.concatenate(pixels)))

    return rows


def _decoded(images: Sequence[Any], position: int) -> Image.Image:
    try:
        return decode(images[position])[0]
    except ImageError as error:
        name = images[position] if isinstance(images[position], str | os.PathLike) else type(images[position]).__name__
        raise UnreadableImages(f"image {position} ({name}) cannot be read: {error}", {position: error}) from error


def channels_last(rows: Tensor) -> Tensor:
    return rows.contiguous(memory_format=torch.channels_last) if rows.ndim == 4 else rows
