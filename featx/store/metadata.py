"""Turns a run's recipe, ids, labels and failures into the datasets of its file; `contents` reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from featx.errors import StoreError, readable
from featx.image_statistics import IMAGE_STATISTICS
from featx.recipe import Recipe
from featx.store import layout
from featx.store.contents import Failure
from featx.store.hdf5_parse import MOST_MEMBERS
from featx.store.keys import image_keys

_MOST_NAME_BYTES = 1000


def datasets(
    recipe: Recipe,
    ids: Sequence[str],
    digests: np.ndarray,
    y: np.ndarray | None,
    columns: Mapping[str, np.ndarray],
    failures: Sequence[Failure],
    nonfinite: Mapping[tuple[int, str], str],
    checksums: Mapping[str, np.ndarray],
    statistics: np.ndarray | None = None,
) -> layout.Metadata:
    """The datasets of a file, in their order.

    Parameters
    ----------
    ids, digests, y, columns : of the n images that have rows
    nonfinite : {(row, layer): what}
    checksums : {layer: (blocks,) uint64}
    statistics : (n,) of IMAGE_STATISTICS, if they are kept
    """
    tree: dict[str, Any] = {
        "recipe": layout.strings([recipe.to_json()]),
        "images": {
            "key": image_keys(ids, [digest.tobytes() for digest in digests]).astype("<i8"),
            **layout.texts("id", ids),
            "digest": digests,
        },
    }
    if statistics is not None:
        cameras = [camera.decode() for camera in statistics["camera"].tolist()]
        tree["statistics"] = {
            name: np.ascontiguousarray(statistics[name]) for name in IMAGE_STATISTICS.names or () if name != "camera"
        } | layout.texts("camera", cameras)
    if y is not None and y.dtype.kind == "f":
        tree["labels"] = {"value": y.astype("<f8")}
    elif y is not None:
        classes, codes = np.unique(y, return_inverse=True)
        tree["labels"] = {**layout.texts("classes", classes.tolist()), "code": codes.astype("<i8")}
    tree["columns"] = _texts({layout.member(name): values.tolist() for name, values in columns.items()})
    tree["failures"] = _texts({field: [getattr(failure, field) for failure in failures] for field in Failure._fields})
    order = list(recipe.layers)
    marks = sorted((row, order.index(name), what) for (row, name), what in nonfinite.items())
    tree["nonfinite"] = {
        "row": np.array([row for row, _, _ in marks], "<i8"),
        "layer": np.array([layer for _, layer, _ in marks], "<i8"),
        "what": layout.strings([what for _, _, what in marks]),
    }
    tree["checksums"] = {layout.member(name): checksums[name].astype("<u8") for name in order}
    return tree


def _texts(columns: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    return {key: values for name, texts in columns.items() for key, values in layout.texts(name, texts).items()}


def refuse_unstorable(
    recipe: Recipe, ids: Sequence[str], y: np.ndarray | None, columns: Mapping[str, np.ndarray]
) -> None:
    """Raise StoreError for values that could be written but not read again."""
    Recipe.from_json(recipe.to_json())
    if len(recipe.to_json().encode()) > layout.MOST_RECIPE_BYTES:
        raise StoreError(f"a recipe has at most {readable(layout.MOST_RECIPE_BYTES)}; extract fewer layers")
    if not ids or len(set(ids)) < len(ids):
        raise StoreError("a store needs at least one image, and every id once")
    names = [layout.member(name) for name in columns]
    if max(map(len, names), default=0) > _MOST_NAME_BYTES:
        raise StoreError(
            f"a column's name has at most {_MOST_NAME_BYTES:,} bytes; {max(names, key=len)[:40]!r}... has more"
        )
    texts = {"ids": ids, **columns}
    if y is not None and y.dtype.kind != "f":
        texts["labels"] = y
    for name, values in texts.items():
        joined = "".join(values)
        if "\0" in joined:
            raise StoreError(f"{name} contain a null character, and text in a store cannot")
        try:
            joined.encode()
        except UnicodeEncodeError as error:
            raise StoreError(f"{name} contain text that is not Unicode: {error.object[error.start]!r}") from error
    members = _texts({name: values.tolist() for name, values in zip(names, columns.values(), strict=True)})
    if max(len(members), len(recipe.taps)) > MOST_MEMBERS or sum(map(len, members)) > 4 * 2**20:
        raise StoreError(
            f"a store has at most {MOST_MEMBERS:,} columns (half as many of long texts) and as many layers; choose some"
        )


def text_nbytes(ids: Sequence[str], y: np.ndarray | None, columns: Mapping[str, np.ndarray]) -> int:
    """Size in the file of the texts of n images and of their class codes."""
    classes = [] if y is None or y.dtype.kind == "f" else np.unique(y).tolist()
    texts = {"id": ids, "classes": classes} | {f"column {name}": values.tolist() for name, values in columns.items()}
    return 8 * len(ids) + sum(values.nbytes for values in _texts(texts).values())
