"""Merges stores of the same recipe into one, and copies rows from one store to another."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from featx.errors import (
    DamageError,
    ImageError,
    Parameter,
    RecipeError,
    RowsDifferWarning,
    StoreError,
    as_path,
    count,
    listed,
    warn,
)
from featx.manifest import text_array
from featx.store.agreement import rounding_note
from featx.store.contents import Failure
from featx.store.files import refuse_existing, refuse_unwritable_store
from featx.store.journal import discard as discard_unfinished
from featx.store.journal import is_unfinished
from featx.store.reader import FeatureStore
from featx.store.writer import StoreWriter

_COPY_BYTES = 64 * 2**20
_DESCRIBED = 1024  # images whose statistics are read before their rows are written, and so kept


def merge(
    stores: Sequence[FeatureStore | str | os.PathLike],
    output: str | os.PathLike,
    *,
    replace: bool = False,
    discard: bool = False,
) -> FeatureStore:
    """Merge stores into one with all their images, in order.

    Parameters
    ----------
    stores : two or more, with equal recipes and different images
        If one store has a row of an image that failed in another, the row is used. Statistics of images are kept if
        all stores have them.
    output : path
        The file to make. An interrupted merge is continued. If the file is already the result of this merge, it is
        returned as it is.
    replace : bool
        Replace an existing file.
    discard : bool
        Discard the rows of an unfinished run for this output.

    Returns
    -------
    FeatureStore

    Raises
    ------
    RecipeError
        Fields that determine the numbers differ; they are named. Because rows of one layer must be made in one way,
        engine, precision, batch size and storage type must be equal too, which is not required to use stores together.
    StoreError
        Two stores have the same image, labels or columns are of different kinds, the output exists or cannot be
        written, or a store has changed since an unfinished merge copied from it.
    DamageError
        A row to copy does not match its checksum.

    Warns
    -----
    RowsDifferWarning
        The stores were made on different devices or with different numbers of threads, which changes the last digits.

    Examples
    --------
    >>> merge(["monday.h5", "tuesday.h5"], "week.h5")    # doctest: +SKIP
    """
    output = as_path("output", output, StoreError)
    if isinstance(stores, str | bytes) or not isinstance(stores, Iterable):
        raise StoreError(f"stores are two or more stores or their paths, in a list; got {type(stores).__name__}")
    opened = [store if isinstance(store, FeatureStore) else FeatureStore(store) for store in stores]
    if len(opened) < 2:
        raise StoreError(f"a merge takes two stores or more, got {len(opened)}")
    if (finished := _finished(opened, output)) is not None:
        if discard or not is_unfinished(output):
            discard_unfinished(output)  # a kill between the last two steps of a merge leaves its journal
        return _with_backbone(finished, opened)
    refuse_unwritable_store(output)
    refuse_existing(output, replace)
    _refuse_unlike(opened)
    first = opened[0]
    recipe = first.recipe
    for other in opened[1:]:
        if note := rounding_note(other.recipe, first.recipe, (other.path.name, first.path.name)):
            warn(note, RowsDifferWarning)
        recipe = recipe.joined(other.recipe)
    ids = [name for store in opened for name in store.ids.tolist()]
    failures = {failure.id: ImageError(failure.code, failure.reason) for failure in _failures(opened)}
    # images without a row have no label and no column values; these placeholders are not written
    columns = {
        name: text_array([text for store in opened for text in store.columns[name].tolist()] + [""] * len(failures))
        for name in first.columns
    }
    labels = [label for store in opened if store.y is not None for label in store.y.tolist()]
    y = None
    if first.classes is not None:
        y = text_array(labels + [""] * len(failures))
    elif first.y is not None:
        y = np.array(labels + [0.0] * len(failures))
    if discard:
        discard_unfinished(output)
    have_statistics = all(store.statistics for store in opened)
    with StoreWriter(output, recipe, [*ids, *failures], y, columns, statistics=have_statistics) as writer:
        start = 0
        for store in opened:
            rows = np.full(len(writer.todo), -1)
            rows[start : start + len(store)] = np.arange(len(store))
            done = np.flatnonzero(~writer.todo & (rows >= 0))
            if not np.array_equal(writer.digests[done], store.digests[rows[done]]):
                raise StoreError(
                    f"{store.path} has changed since an unfinished merge copied from it; discard that with ",
                    Parameter("discard", True),
                )
            copy_rows(writer, store, np.where(writer.todo, rows, -1))
            start += len(store)
        failed = {len(ids) + i: error for i, error in enumerate(failures.values())}
        writer.fail({i: error for i, error in failed.items() if writer.todo[i]})
        writer.finish()
    return _with_backbone(FeatureStore(output), opened)


def _with_backbone(merged: FeatureStore, stores: Sequence[FeatureStore]) -> FeatureStore:
    merged.backbone = next((store.backbone for store in stores if store.backbone is not None), None)
    return merged


def merge_refusal(*stores: FeatureStore) -> str:
    """The reason why `merge` would refuse some stores, or ""."""
    try:
        _refuse_unlike(stores)
    except RecipeError:
        return "it takes stores whose recipes are equal"
    except StoreError as error:
        return str(error)
    return ""


def _refuse_unlike(stores: Sequence[FeatureStore]) -> None:
    times = Counter(name for store in stores for name in store.ids.tolist())
    if repeated := [name for name, number in times.items() if number > 1]:
        raise StoreError(
            f"a merge takes every image once; {count(len(repeated), 'image')} in several of the stores: "
            f"{listed(repeated)}. If those are different images with the same names, extract their folders by their "
            "common parent: ids then begin with it. A search takes several stores of the same images"
        )
    first = stores[0]
    for other in stores[1:]:
        where = (f"in {first.path.name}", f"in {other.path.name}")
        if differences := first.recipe.differences(other.recipe, where):
            raise RecipeError(
                f"the stores were made in different ways: {'; '.join(differences)}",
                *first.recipe.like_hint("; extract the images of the others again with ", first.path.name),
            )
        if (kinds := (_kind(first), _kind(other)))[0] != kinds[1]:
            raise StoreError(f"{first.path} has {kinds[0]} and {other.path} has {kinds[1]}; a store has one kind")
        if first.columns.keys() != other.columns.keys():
            columns = [f"{one.path.name} has {listed(one.columns, 20) or 'none'}" for one in (first, other)]
            raise StoreError(
                f"a merge takes stores with the same columns; {', '.join(columns)}: extract the others again with the "
                "columns of one"
            )


def copy_rows(
    writer: StoreWriter,
    store: FeatureStore,
    rows: np.ndarray,
    statistics: Callable[[np.ndarray], np.ndarray] | None = None,
) -> None:
    """Write a store's rows, with verified checksums, for images of a run.

    Parameters
    ----------
    rows : (n,) the store's row of each of the run's images, or -1
    statistics : (m,) positions in the run -> (m,) of IMAGE_STATISTICS, if the store has none and the writer needs them
    """
    row_bytes = sum(store.row_bytes(name) for name in store.layers)
    part = max(64, _COPY_BYTES // row_bytes)
    part = part if statistics is None else min(part, _DESCRIBED)
    present = np.flatnonzero(rows >= 0)
    for start in range(0, len(present), part):
        indices = present[start : start + part]
        taken = {name: store.take(rows[indices], name, check=True) for name in store.layers}
        records = store.image_records(rows[indices]) if statistics is None else statistics(indices)
        writer.write(indices, taken, store.digests[rows[indices]], statistics=records)


def _failures(stores: Sequence[FeatureStore]) -> list[Failure]:
    """The failures of images of which no store has a row."""
    failures = {failure.id: failure for store in stores for failure in store.failures}
    for store in stores:
        for name in store.ids.tolist():
            failures.pop(name, None)
    return list(failures.values())


def _finished(stores: Sequence[FeatureStore], output: Path) -> FeatureStore | None:
    """The store at the output if it is the result of merging these stores.

    If the output is itself one of the stores, it must contain all images of the others.
    """
    try:
        merged = FeatureStore(output)
    except StoreError:
        return None
    parts = [store for store in stores if store.identity != merged.identity]
    if len(parts) < len(stores) - 1 or not all(_contains(merged, part) for part in parts):
        return None
    if len(parts) == len(stores):
        ids = [name for part in parts for name in part.ids.tolist()]
        have_statistics = all(part.statistics for part in parts)
        if merged.ids.tolist() != ids or list(merged.failures) != _failures(parts):
            return None
        if have_statistics and not merged.statistics:  # the parts have been extracted again since
            return None
    try:
        merged.verify()
    except DamageError:  # `replace` can make it again
        return None
    return merged


def _contains(merged: FeatureStore, part: FeatureStore) -> bool:
    """Whether every image of `part` is in `merged`, with an equal recipe, content, label and columns."""
    row_of = {name: row for row, name in enumerate(merged.ids.tolist())}
    rows = [row_of.get(name, -1) for name in part.ids.tolist()]
    missing = {failure.id for failure in part.failures} - {failure.id for failure in merged.failures} - row_of.keys()
    if min(rows) < 0 or missing or merged.recipe.differences(part.recipe) or _kind(merged) != _kind(part):
        return False
    same_labels = merged.y is None or part.y is None or np.array_equal(merged.y[rows], part.y)
    columns = {name: values.tolist() for name, values in part.columns.items()}
    return (
        same_labels
        and np.array_equal(merged.digests[rows], part.digests)
        and columns == {name: values[rows].tolist() for name, values in merged.columns.items()}
    )


def _kind(store: FeatureStore) -> str:
    return "no labels" if store.y is None else "class names" if store.classes is not None else "numbers as labels"
