"""What exists at the output, a store or an unfinished run: which rows are kept, and which runs are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from featx.backbones import Backbone
from featx.errors import ImageError, Parameter, Part, RecipeError, StoreError, listed
from featx.image_statistics import IMAGE_STATISTICS
from featx.images import NO_MEMORY, Collection, content_digest, decode, decode_and_describe, is_remote
from featx.recipe import with_views
from featx.store import FeatureStore, Recipe, StoreWriter, Unfinished, collection_digest, copy_rows
from featx.urls import REQUESTS


@dataclass(frozen=True)
class ExistingStore:
    """The store at the output, compared with a run.

    store : FeatureStore
    recipe : Recipe, the run's
    images, ids : the run's n images and their ids
    rows : (n,) int64, the store's row of each of the run's images, or -1
    gone, new, changed : ids; an image that could not be read then and can be now is new
    labels_differ : how labels or columns differ, or ""
    """

    store: FeatureStore
    recipe: Recipe
    images: Sequence[Any]
    ids: list[str]
    rows: np.ndarray
    gone: list[str]
    new: list[str]
    changed: list[str]
    labels_differ: str

    @cached_property
    def new_layers(self) -> list[str]:
        """Layers of the run that the store does not have."""
        return [name for name in self.recipe.layers if name not in self.store.layers]

    @property
    def has(self) -> np.ndarray:
        """(n,) bool, whether the store has a row of the image."""
        return self.rows >= 0

    @property
    def is_all(self) -> bool:
        """Whether nothing is left to do: the store has all images and layers of the run, and no other image.

        Statistics of images are added only if the run names all layers of the store, since the others would be lost.
        """
        images_differ = self.gone or self.new or self.changed or self.labels_differ
        lacks_statistics = not self.store.statistics and len(self.recipe.layers) == len(self.store.layers)
        if images_differ or self.new_layers or lacks_statistics:
            return False
        return not self.store.recipe.some(self.recipe.layers).differences(self.recipe)

    def refuse_what_is_lost(self, replacing: bool) -> None:
        """Raise RecipeError if the recipes differ, or if rows or labels would be lost and `replacing` is not set."""
        path, stored = self.store.path, self.store.recipe
        kept = {name: tap for name, tap in self.recipe.taps.items() if name in stored.taps}
        hint: tuple[Part, ...] = ()
        differences = stored.differences(replace(self.recipe, taps=kept))
        if differences and self.new_layers:
            hint = ("; to add layers, name those that are stored too",)
            if kept.keys() != stored.taps.keys():
                differences = stored.differences(self.recipe)
        elif kept.keys() != stored.taps.keys():
            hint = ("; to add images, name all layers that are stored",)
        elif not differences and (self.new or self.changed or self.new_layers):
            differences = _device_differs(stored, self.recipe)
            hint = ("; new images in a store of their own, made with ", Parameter("like", path.name), ", go with these")
        if differences:
            raise RecipeError(f"{path} was made with other settings: {'; '.join(differences)}", *hint, ". ", *_OTHER)
        images = {"gone since": self.gone, "changed": self.changed}
        changes = [f"{how}: {listed(names)}" for how, names in images.items() if names]
        if changes and self.new:
            changes.append(f"new: {listed(self.new)}")
        if self.labels_differ:
            changes.append(self.labels_differ)
        if changes and not replacing:
            holds = "has other labels or columns" if changes == [self.labels_differ] else "holds other images"
            raise RecipeError(
                f"{path} {holds}: {'; '.join(changes)}. Choose another output, or replace it with ",
                Parameter("replace", True),
                ": rows that are still valid are copied",
            )

    def grown(self) -> Recipe:
        """The recipe of the grown store: the existing one's with the run's layers."""
        joined = self.store.recipe.joined(self.recipe)
        # the error of the new layers has not been measured
        error = None if self.new_layers else joined.precision_error
        return replace(joined, taps=self.recipe.taps, precision_error=error, origin=self.recipe.origin)

    def digests(self, indices: np.ndarray) -> list[bytes]:
        """Content digests of some of the run's images, which have rows."""
        return [digest.tobytes() for digest in self.store.digests[self.rows[indices]]]

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Rows of all stored layers for some of the run's images, which have them; checksums are verified."""
        return {name: self.store.take(self.rows[indices], name, check=True) for name in self.store.layers}

    def copy_rows(self, writer: StoreWriter, workers: int, on_part: Callable[[], None]) -> None:
        """Write the rows that are kept; none if layers are new, since a row is written with all its layers.

        workers : threads that decode images for their statistics, if the store has none
        on_part : called before each part of the images whose statistics are read
        """
        if self.new_layers:
            return
        statistics = None if self.store.statistics else partial(self._statistics, workers=workers, on_part=on_part)
        copy_rows(writer, self.store, np.where(writer.todo, self.rows, -1), statistics)

    def _statistics(self, indices: np.ndarray, workers: int, on_part: Callable[[], None]) -> np.ndarray:
        """(m,) of IMAGE_STATISTICS of some of the run's images, read from their files; they must not have changed."""
        on_part()
        images = [self.images[i] for i in indices.tolist()]
        with ThreadPoolExecutor(max(workers, REQUESTS) if is_remote(images[0]) else workers) as pool:
            described = list(pool.map(_described, images))
        for i, digest, (found, _) in zip(indices.tolist(), self.digests(indices), described, strict=True):
            if found != digest:
                raise StoreError(f"the image {self.ids[i]!r} changed while the run was on; run it again")
        return np.frombuffer(b"".join(record for _, record in described), IMAGE_STATISTICS)


def compare(store: FeatureStore, recipe: Recipe, images: Collection) -> ExistingStore:
    """Compare the store at the output with a run; reads every image that the store holds."""
    row_of = {name: row for row, name in enumerate(store.ids.tolist())}
    failed = {failure.id for failure in store.failures}
    rows = np.full(len(images.ids), -1)
    new, changed = [], []
    stored = [i for i, name in enumerate(images.ids) if name in row_of]
    for i, digest in zip(stored, _mapped(_digest_or_none, images.images, stored), strict=True):
        row = row_of[images.ids[i]]
        if digest == store.digests[row].tobytes():
            rows[i] = row
        else:
            changed.append(images.ids[i])
    for i, name in enumerate(images.ids):
        if name not in row_of and (name not in failed or _is_readable(images.images[i])):
            new.append(name)
    gone = sorted(({*row_of} | failed) - set(images.ids))
    labels_differ = _labels_differ(store, images, rows, bool(new or recipe.taps.keys() - store.recipe.taps.keys()))
    return ExistingStore(store, recipe, images.images, images.ids, rows, gone, new, changed, labels_differ)


def _labels_differ(store: FeatureStore, images: Collection, rows: np.ndarray, growing: bool) -> str:
    shared = np.flatnonzero(rows >= 0)
    if images.y is None and store.y is not None and growing:
        return "it has labels, and these images have none"
    if images.y is not None and (store.y is None or not np.array_equal(images.y[shared], store.y[rows[shared]])):
        return "other labels (store.align gives a store other labels)"
    columns = {name: values[shared].tolist() for name, values in images.columns.items()}
    if columns != {name: values[rows[shared]].tolist() for name, values in store.columns.items()}:
        return "other columns in the manifest"
    return ""


def refuse_other_names(
    output: Path,
    there: Recipe,
    backbone: Backbone,
    choices: Mapping[str, Any],
    views: list[str] | None,
    is_begun: bool = False,
) -> None:
    """Raise RecipeError if names and choices differ from those of the output; needs no weights.

    Parameters
    ----------
    there : Recipe of the store, or of the unfinished run
    choices : values of precision, engine, batch_size and dtype, none of them "auto"
    """
    engine = choices["engine"] if there.engine.partition(",")[0] != choices["engine"] else there.engine
    kept = {name: choices[name] for name in ("precision", "batch_size", "dtype")}
    taps = with_views(there.view_taps, views)
    here = replace(there, backbone=backbone.name, engine=engine, views=views, taps=taps, **kept)
    differences = there.differences(here)
    if backbone.name == there.backbone and (backbone.weights is None) != (there.weights is None):
        differences.append(f"weights: {there.weights or 'random'!r} there, {backbone.weights or 'random'!r} here")
    way: tuple[Part, ...] = _OTHER
    if backbone.name != there.backbone and not there.backbone.startswith(("module:", "export:")):
        way = ("Go on with ", Parameter("backbone", there.backbone), ", or choose another output")
    if differences and is_begun:
        raise RecipeError(
            f"an unfinished run for {output} was begun with other settings: {'; '.join(differences)}. ", *_FINISH
        )
    if differences:
        raise RecipeError(f"{output} was made with other settings: {'; '.join(differences)}. ", *way)


def refuse_another_run(output: Path, begun: Unfinished, recipe: Recipe, images: Collection) -> None:
    """Raise RecipeError unless the run is the unfinished one."""
    differences = begun.recipe.differences(recipe) + _device_differs(begun.recipe, recipe)
    begun_ids, run_ids = set(begun.ids), set(images.ids)
    if gone := sorted(begun_ids - run_ids):
        differences.append(f"images gone since: {listed(gone)}")
    if new := sorted(run_ids - begun_ids):
        differences.append(f"images that are new: {listed(new)}")
    if not differences and begun.ids != images.ids:
        differences.append("images in another order")
    if not differences and begun.recipe.collection != collection_digest(images.ids, images.y, images.columns):
        differences.append("other labels or columns")
    if differences:
        raise RecipeError(
            f"an unfinished run for {output} was begun with other settings: {'; '.join(differences)}. ", *_FINISH
        )


def _device_differs(there: Recipe, here: Recipe) -> list[str]:
    return [] if there.device == here.device else [f"device: {there.device!r} there, {here.device!r} here"]


def refuse_changed(output: Path, writer: StoreWriter, images: Collection) -> None:
    """Raise StoreError if images have changed since an unfinished run computed their rows."""
    changed = []
    read = [i for i in np.flatnonzero(~writer.todo).tolist() if i not in writer.failures]
    for i, digest in zip(read, _mapped(_digest_or_none, images.images, read), strict=True):
        if digest != writer.digests[i].tobytes():
            changed.append(i)
    for i, failure in writer.failures.items():
        # one that changed under the run is known to have changed; memory may suffice now
        if failure.code != "changed" and failure.reason != NO_MEMORY and _is_readable(images.images[i]):
            changed.append(i)
    if changed:
        names = listed(images.ids[i] for i in sorted(changed))
        raise StoreError(f"images changed since the unfinished run for {output} was begun: {names}. ", *_FINISH)


_OTHER = ("Ask for what it was made with, or choose another output",)
_FINISH = ("Finish it with the images and settings it was begun with, or discard it with ", Parameter("discard", True))


def _mapped(function: Callable[[Any], Any], images: Sequence[Any], indices: Sequence[int]) -> Iterator[Any]:
    """A function of some images, in order; of remote ones, many at once."""
    if not indices or not is_remote(images[indices[0]]):
        yield from (function(images[i]) for i in indices)
        return
    with ThreadPoolExecutor(REQUESTS) as pool:
        for start in range(0, len(indices), 8 * REQUESTS):
            yield from pool.map(function, [images[i] for i in indices[start : start + 8 * REQUESTS]])


def _digest_or_none(image: Any) -> bytes | None:
    try:
        return content_digest(image)
    except ImageError:
        return None


def _is_readable(image: Any) -> bool:
    try:
        decode(image)
    except ImageError:
        return False
    return True


def _described(image: Any) -> tuple[bytes, bytes]:
    """The content digest and the statistics of an image; empty if it cannot be read any more."""
    try:
        return decode_and_describe(image)[1:]
    except ImageError:
        return b"", b""
