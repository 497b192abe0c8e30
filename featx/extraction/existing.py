"""What lies at the output already (a store, or an unfinished run) and what is asked for in; what of it serves, or a
refusal by name, out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from featx.backbones import Backbone
from featx.errors import ImageError, Parameter, Part, RecipeError, StoreError, listed
from featx.images import NO_MEMORY, Collection, content_digest, decode
from featx.store import FeatureStore, Recipe, StoreWriter, Unfinished, collection_digest, copy_rows


@dataclass(frozen=True)
class Old:
    """A store, seen from a run that was asked for.

    store : FeatureStore
    asked : Recipe
    rows : (n,) int64, the store's row of each of the run's images, -1 where it has none that serves
    gone, new, changed : ids; an image that could not be read then and can now is new
    labels_differ : what is different beside the images, or ""
    """

    store: FeatureStore
    asked: Recipe
    rows: np.ndarray
    gone: list[str]
    new: list[str]
    changed: list[str]
    labels_differ: str

    @cached_property
    def new_layers(self) -> list[str]:
        """The layers that the store lacks."""
        return [name for name in self.asked.layers if name not in self.store.layers]

    @property
    def has(self) -> np.ndarray:
        """(n,) bool, the images of which the store has rows."""
        return self.rows >= 0

    @property
    def is_all(self) -> bool:
        """Whether the store is what was asked for, or that and more layers."""
        images_differ = self.gone or self.new or self.changed or self.labels_differ
        if images_differ or self.new_layers:
            return False
        return not self.store.recipe.some(self.asked.layers).differences(self.asked)

    def refuse_what_is_lost(self, replacing: bool) -> None:
        """Raise RecipeError if the store's recipe is another, or if rows or labels of it would be lost unasked."""
        path, stored = self.store.path, self.store.recipe
        kept = {name: tap for name, tap in self.asked.taps.items() if name in stored.taps}
        hint: tuple[Part, ...] = ()
        differences = stored.differences(replace(self.asked, taps=kept))
        if differences and self.new_layers:
            hint = ("; to add layers, name those that are stored too",)
            if kept.keys() != stored.taps.keys():
                differences = stored.differences(self.asked)
        elif kept.keys() != stored.taps.keys():
            hint = ("; to add images, name all layers that are stored",)
        elif not differences and (self.new or self.changed or self.new_layers):
            differences = _device_differs(stored, self.asked)
            hint = ("; new images in a store of their own, made with ", Parameter("like", path.name), ", go with these")
        if differences:
            raise RecipeError(f"{path} was made otherwise: {'; '.join(differences)}", *hint, ". ", *_OTHER)
        images = {"gone since": self.gone, "changed": self.changed}
        found = [f"{how}: {listed(names)}" for how, names in images.items() if names]
        if found and self.new:
            found.append(f"new: {listed(self.new)}")
        if self.labels_differ:
            found.append(self.labels_differ)
        if found and not replacing:
            holds = "has other labels or columns" if found == [self.labels_differ] else "holds other images"
            raise RecipeError(
                f"{path} {holds}: {'; '.join(found)}. Choose another output, or replace it with ",
                Parameter("replace", True),
                ": rows that still serve are copied",
            )

    def grown(self) -> Recipe:
        """The recipe of the new store: the old one's, with the layers that are asked for."""
        joined = self.store.recipe.joined(self.asked)
        # nobody has compared the new layers with float32
        error = None if self.new_layers else joined.precision_error
        return replace(joined, taps=self.asked.taps, precision_error=error, origin=self.asked.origin)

    def digests(self, indices: np.ndarray) -> list[bytes]:
        """Content digests of some of the run's images that have rows."""
        return [digest.tobytes() for digest in self.store.digests[self.rows[indices]]]

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of all stored layers, checked, for some of the run's images that have them."""
        return {name: self.store.take(self.rows[indices], name, check=True) for name in self.store.layers}

    def copy_rows(self, writer: StoreWriter) -> None:
        """Write the rows there are, if they are of all layers."""
        if self.new_layers:
            return
        copy_rows(writer, self.store, np.where(writer.todo, self.rows, -1))


def look(store: FeatureStore, asked: Recipe, images: Collection) -> Old:
    """Compare a store with what is asked for; reads every image that it holds."""
    row_of = {name: row for row, name in enumerate(store.ids.tolist())}
    failed = {failure.id for failure in store.failures}
    rows = np.full(len(images.ids), -1)
    new, changed = [], []
    for i, name in enumerate(images.ids):
        if name in row_of:
            if _digest_or_none(images.images[i]) == store.digests[row_of[name]].tobytes():
                rows[i] = row_of[name]
            else:
                changed.append(name)
        elif name not in failed or _is_readable(images.images[i]):
            new.append(name)
    here = set(images.ids)
    gone = sorted(({*row_of} | failed) - here)
    labels_differ = _labels_differ(store, images, rows, bool(new or asked.taps.keys() - store.recipe.taps.keys()))
    return Old(store, asked, rows, gone, new, changed, labels_differ)


def _labels_differ(store: FeatureStore, images: Collection, rows: np.ndarray, growing: bool) -> str:
    here = np.flatnonzero(rows >= 0)
    if images.y is None and store.y is not None and growing:
        return "it has labels, and these images have none"
    if images.y is not None and (store.y is None or not np.array_equal(images.y[here], store.y[rows[here]])):
        return "other labels (store.align gives a store other labels)"
    columns = {name: values[here].tolist() for name, values in images.columns.items()}
    if columns != {name: values[rows[here]].tolist() for name, values in store.columns.items()}:
        return "other columns in the manifest"
    return ""


def refuse_other_names(
    output: Path, there: Recipe, backbone: Backbone, choices: Mapping[str, Any], is_begun: bool = False
) -> None:
    """Raise RecipeError if what is at the output was made with other words, as far as they say so without weights.

    Parameters
    ----------
    there : Recipe of the store, or of the unfinished run
    choices : values of precision, engine, batch_size and dtype, none of them "auto"
    """
    engine = choices["engine"] if there.engine.partition(",")[0] != choices["engine"] else there.engine
    kept = {name: choices[name] for name in ("precision", "batch_size", "dtype")}
    differences = there.differences(replace(there, backbone=backbone.name, engine=engine, **kept))
    if backbone.name == there.backbone and (backbone.weights is None) != (there.weights is None):
        differences.append(f"weights: {there.weights or 'random'!r} there, {backbone.weights or 'random'!r} here")
    way: tuple[Part, ...] = _OTHER
    if backbone.name != there.backbone and not there.backbone.startswith(("module:", "export:")):
        way = ("Go on with ", Parameter("backbone", there.backbone), ", or choose another output")
    if differences and is_begun:
        raise RecipeError(
            f"an unfinished run towards {output} was begun otherwise: {'; '.join(differences)}. ", *_FINISH
        )
    if differences:
        raise RecipeError(f"{output} was made otherwise: {'; '.join(differences)}. ", *way)


def refuse_another_run(output: Path, begun: Unfinished, asked: Recipe, images: Collection) -> None:
    """Raise RecipeError unless what is asked for is what was begun."""
    found = begun.recipe.differences(asked) + _device_differs(begun.recipe, asked)
    there, here = set(begun.ids), set(images.ids)
    if gone := sorted(there - here):
        found.append(f"images gone since: {listed(gone)}")
    if new := sorted(here - there):
        found.append(f"images that are new: {listed(new)}")
    if not found and begun.ids != images.ids:
        found.append("images in another order")
    if not found and begun.recipe.collection != collection_digest(images.ids, images.y, images.columns):
        found.append("other labels or columns")
    if found:
        raise RecipeError(f"an unfinished run towards {output} was begun otherwise: {'; '.join(found)}. ", *_FINISH)


def _device_differs(there: Recipe, here: Recipe) -> list[str]:
    return [] if there.device == here.device else [f"device: {there.device!r} there, {here.device!r} here"]


def refuse_changed(output: Path, writer: StoreWriter, images: Collection) -> None:
    """Raise StoreError if images that an unfinished run has done are not what they were."""
    changed = []
    for i in np.flatnonzero(~writer.todo).tolist():
        if i in writer.failures:  # one that changed under the run is known to have changed; memory may suffice now
            failure = writer.failures[i]
            known = failure.code == "changed" or failure.reason == NO_MEMORY
            same = known or not _is_readable(images.images[i])
        else:
            same = _digest_or_none(images.images[i]) == writer.digests[i].tobytes()
        if not same:
            changed.append(images.ids[i])
    if changed:
        raise StoreError(
            f"images changed since the unfinished run towards {output} was begun: {listed(changed)}. ", *_FINISH
        )


_OTHER = ("Ask for what it was made with, or choose another output",)
_FINISH = ("Finish it with the images and settings it was begun with, or discard it with ", Parameter("discard", True))


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
