"""The images of a report: the held-out ones and a sample of the training images, with thumbnails."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from featx.report.pictures import picture_of

if TYPE_CHECKING:
    from featx.learn.selection import Selection
    from featx.store import FeatureStore

MOST_THUMBNAILS = 2000
_MOST_PIXELS = 16_000_000  # of all sheets
_SIDES = (48, 144)  # pixels of a thumbnail
A_SHEET = 250  # thumbnails
_QUALITIES = (80, 65, 50, 35, 20, 10)


@dataclass(frozen=True, eq=False)
class Images:
    """The held-out images, first, and the training images of a report.

    rows : (n,) their rows in their stores
    n_test : number of held-out images
    y : (n,) labels
    ids : n names; of whole paths without the folder that they have in common
    store : the store of the held-out images
    training_store : the store of the training images
    """

    rows: np.ndarray
    n_test: int
    y: np.ndarray
    ids: list[str]
    store: FeatureStore
    training_store: FeatureStore

    def __len__(self) -> int:
        return len(self.ids)

    def picture(self, position: int) -> Image.Image | None:
        """The image, read again; None if there is no file of it, or another one since."""
        return picture_of(self.store if position < self.n_test else self.training_store, self.rows[position])


def images_of(selection: Selection, most_training: int, random_state: int = 0) -> Images:
    """The held-out images and a random sample of the training images."""
    training, test = selection.training, selection.test
    training_store = training.stores[0]
    store = training_store if test is None or test.store is None else test.store
    rows = np.empty(0, int) if test is None else store.rows(test.X)
    chosen = np.empty(0, int)
    if training.X is not None and training.y is not None:
        n = min(most_training, len(training.y))
        chosen = np.sort(np.random.default_rng(random_state).permutation(len(training.y))[:n])
    keys = np.empty((0, 1), np.int64) if training.X is None else training.X[chosen]
    of_training = training_store.rows(keys)
    labels = [] if test is None else test.y.tolist()
    labels += [] if training.y is None else training.y[chosen].tolist()
    ids = [*map(str, store.ids[rows]), *map(str, training_store.ids[of_training])]
    ids = _in_common_folder(ids)
    return Images(np.r_[rows, of_training], len(rows), np.array(labels), ids, store, training_store)


def _in_common_folder(ids: list[str]) -> list[str]:
    """Whole paths without the folder that they have in common; other names as they are."""
    if not ids or not all(map(os.path.isabs, ids)):
        return ids
    folder = os.path.commonpath(map(os.path.dirname, ids))
    return [os.path.relpath(name, folder) for name in ids]


@dataclass(frozen=True)
class Thumbnails:
    """Small pictures on a few sheets.

    sheets : JPEG files
    place_of : {position of an image: number of its thumbnail}
    side : pixels of a thumbnail
    columns : thumbnails side by side on a sheet
    """

    sheets: list[bytes]
    place_of: dict[int, int]
    side: int
    columns: int

    def urls(self) -> list[str]:
        return [f"data:image/jpeg;base64,{base64.b64encode(sheet).decode()}" for sheet in self.sheets]


def thumbnails(images: Images, order: Sequence[int], most_bytes: int) -> Thumbnails:
    """Thumbnails of the images at these positions, as many as a page holds; those that cannot be read are left out.

    order : positions, the most important first
    most_bytes : of all sheets, which are compressed further until they fit
    """
    shown = order[:MOST_THUMBNAILS]
    low, high = _SIDES
    side = int(np.clip(np.sqrt(_MOST_PIXELS / max(len(shown), 1)), low, high))
    with ThreadPoolExecutor() as threads:
        pictures = list(threads.map(lambda i: _square(images.picture(i), side), shown))
    readable = [(i, picture) for i, picture in zip(shown, pictures, strict=True) if picture is not None]
    columns = max(1, int(np.sqrt(A_SHEET)))
    parts = [readable[at : at + A_SHEET] for at in range(0, len(readable), A_SHEET)]
    sheets: list[bytes] = []
    for quality in _QUALITIES:
        sheets = [_sheet([picture for _, picture in part], side, columns, quality) for part in parts]
        if sum(map(len, sheets)) <= most_bytes:
            break
    return Thumbnails(sheets, {i: place for place, (i, _) in enumerate(readable)}, side, columns)


def _square(picture: Image.Image | None, side: int) -> Image.Image | None:
    """The whole picture in a square, on grey."""
    if picture is None:
        return None
    scale = side / max(picture.size)
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    square = Image.new("RGB", (side, side), (128, 128, 128))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def _sheet(pictures: Sequence[Image.Image], side: int, columns: int, quality: int) -> bytes:
    lines = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (side * min(columns, len(pictures)), side * lines))
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (side * (place % columns), side * (place // columns)))
    written = io.BytesIO()
    sheet.save(written, "JPEG", quality=quality)
    return written.getvalue()
