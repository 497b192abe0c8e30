"""Stores of the same recipe in, one store of all their images out; and rows of one store copied to another."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featx.errors import (
    DamageError,
    ImageError,
    Parameter,
    RecipeError,
    RowsDifferWarning,
    StoreError,
    count,
    listed,
    warn,
)
from featx.manifest import text_array
from featx.store.agreement import rounding_note
from featx.store.contents import Failure
from featx.store.files import refuse_existing
from featx.store.journal import discard as discard_unfinished
from featx.store.journal import is_unfinished
from featx.store.reader import FeatureStore
from featx.store.writer import StoreWriter

_COPY_BYTES = 64 * 2**20


def merge(
    stores: Sequence[FeatureStore | str | os.PathLike],
    output: str | os.PathLike,
    *,
    replace: bool = False,
    discard: bool = False,
) -> FeatureStore:
    """One store with the images of several, in their order.

    Parameters
    ----------
    stores : two or more, of equal recipes and different images
        An image that one of them could not read and another could has the other's row.
    output : path
        The file to make. A merge that was interrupted goes on where it stopped. If the file is there and is this merge
        already, it is returned as it is.
    replace : bool
        Let it take the place of a file that is there.
    discard : bool
        Drop what an unfinished run towards this output has done.

    Returns
    -------
    FeatureStore

    Raises
    ------
    RecipeError
        Fields that decide the numbers differ; they are named. Rows of one layer are of one kind, so more must be equal
        than where stores are only used together: engine, precision, batch size and storage type too.
    StoreError
        Two stores have the same image, labels or columns are of different kinds, the output is there or cannot be
        written, or a store changed since an unfinished merge copied from it.
    DamageError
        A row to copy is not what was written.

    Warns
    -----
    RowsDifferWarning
        The stores were made on another device or with other threads, which changes the last digits.

    Examples
    --------
    >>> merge(["monday.h5", "tuesday.h5"], "week.h5")    # doctest: +SKIP
    """
    output = Path(output)
    opened = [store if isinstance(store, FeatureStore) else FeatureStore(store) for store in stores]
    if len(opened) < 2:
        raise StoreError(f"a merge takes two stores or more, got {len(opened)}")
    if (finished := _finished(opened, output)) is not None:
        if discard or not is_unfinished(output):
            discard_unfinished(output)  # a kill between the last two steps leaves a journal
        return finished
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
    # images without a row have no label and no value in a column; what stands here for them is not written
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
    with StoreWriter(output, recipe, [*ids, *failures], y, columns) as writer:
        start = 0
        for store in opened:
            rows = np.full(len(writer.todo), -1)
            rows[start : start + len(store)] = np.arange(len(store))
            done = np.flatnonzero(~writer.todo & (rows >= 0))
            if not np.array_equal(writer.digests[done], store.digests[rows[done]]):
                raise StoreError(
                    f"{store.path} changed since an unfinished merge copied from it; discard that with ",
                    Parameter("discard", True),
                )
            copy_rows(writer, store, np.where(writer.todo, rows, -1))
            start += len(store)
        failed = {len(ids) + i: error for i, error in enumerate(failures.values())}
        writer.fail({i: error for i, error in failed.items() if writer.todo[i]})
        writer.finish()
    return FeatureStore(output)


def merge_refusal(*stores: FeatureStore) -> str:
    """Why `merge` would not join stores, or "" if it would."""
    try:
        _refuse_unlike(stores)
    except RecipeError:
        return "it takes stores whose recipes are equal"
    except StoreError as error:
        return str(error)
    return ""


def _refuse_unlike(stores: Sequence[FeatureStore]) -> None:
    times = Counter(name for store in stores for name in store.ids.tolist())
    if twice := [name for name, number in times.items() if number > 1]:
        raise StoreError(
            f"a merge takes every image once; {count(len(twice), 'image')} in several of the stores: {listed(twice)}. "
            "If those are other images of the same names, extract their folders by their common parent: ids then begin "
            "with it. A search takes several stores of the same images"
        )
    first = stores[0]
    for other in stores[1:]:
        where = (f"in {first.path.name}", f"in {other.path.name}")
        if differences := first.recipe.differences(other.recipe, where):
            raise RecipeError(
                f"the stores were made in different ways: {'; '.join(differences)}; extract the images of one again, "
                "with ",
                Parameter("like", first.path.name),
            )
        if (kinds := (_kind(first), _kind(other)))[0] != kinds[1]:
            raise StoreError(f"{first.path} has {kinds[0]} and {other.path} has {kinds[1]}; a store has one kind")
        if first.columns.keys() != other.columns.keys():
            has = [f"{one.path.name} {listed(one.columns, 20) or 'none'}" for one in (first, other)]
            raise StoreError(f"a merge takes stores with the same columns; {has[0]}, {has[1]}: extract one again")


def copy_rows(writer: StoreWriter, store: FeatureStore, rows: np.ndarray) -> None:
    """Write a store's rows, checked on the way, for images of a run.

    Parameters
    ----------
    rows : (n,) the store's row for each of the run's images, -1 for those that it does not have
    """
    row_bytes = sum(store.row_bytes(name) for name in store.layers)
    part = max(64, _COPY_BYTES // row_bytes)
    wanted = np.flatnonzero(rows >= 0)
    for start in range(0, len(wanted), part):
        indices = wanted[start : start + part]
        taken = {name: store.take(rows[indices], name, check=True) for name in store.layers}
        writer.write(indices, taken, store.digests[rows[indices]])


def _failures(stores: Sequence[FeatureStore]) -> list[Failure]:
    """The images that none of the stores has a row of."""
    failures = {failure.id: failure for store in stores for failure in store.failures}
    for store in stores:
        for name in store.ids.tolist():
            failures.pop(name, None)
    return list(failures.values())


def _finished(stores: Sequence[FeatureStore], output: Path) -> FeatureStore | None:
    """The store at the output, if a merge of these stores made it.

    Where the output is one of the stores, the merge that replaced it left all images of the others in it.
    """
    try:
        merged = FeatureStore(output)
    except StoreError:
        return None
    parts = [store for store in stores if store.identity != merged.identity]
    if len(parts) < len(stores) - 1 or not all(_holds(merged, part) for part in parts):
        return None
    if len(parts) == len(stores):
        ids = [name for part in parts for name in part.ids.tolist()]
        if merged.ids.tolist() != ids or list(merged.failures) != _failures(parts):
            return None
    try:
        merged.verify()
    except DamageError:  # to be made again, with replace
        return None
    return merged


def _holds(merged: FeatureStore, part: FeatureStore) -> bool:
    """Whether every image of `part` is in `merged`: made alike, with the same content, label and columns."""
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
