"""Images in, a finished store out: `extract` joins the stream of rows to the writer. Not extract.py: that name is
the function's.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from featx.backbones import Backbone
from featx.errors import ImageError, RecipeError, StoreError, UnreadableImagesWarning, listed
from featx.forward import Block, plan, stream
from featx.images import Collection, collect, content_digest, decode
from featx.store import FeatureStore, Recipe, StoreWriter


def extract(
    source: object,
    output: str | os.PathLike,
    backbone: str | nn.Module | Backbone = "resnet50",
    layers: str | Sequence[str] = "penultimate",
    *,
    pool: str = "avg",
    weights: str | os.PathLike | None = "DEFAULT",
    labels: Sequence[object] | np.ndarray | str | None = None,
    ids: Sequence[str] | None = None,
    target: str = "class",
    path_column: str = "path",
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | str = "auto",
    workers: int | str = "auto",
    dtype: str = "float32",
    progress: bool = True,
) -> FeatureStore:
    """Run images through a pretrained network once and keep activations in one HDF5 file.

    Parameters
    ----------
    source : path, or sequence of paths, uint8 arrays (h, w[, 3]) or PIL images, or uint8 array (n, h, w[, 3])
        A folder of class folders, a folder of images, a CSV manifest, or the images themselves.
    output : path
        The HDF5 file to make. If it is there already with this recipe and these images, it is returned as it is.
    backbone : str, torch.nn.Module or Backbone
        "resnet50", "timm:convnext_tiny", "bundled:efficientnet_lite0" ...; see Backbone.
    layers : str or sequence of str
        Node names, "penultimate", "stages"; "node:pool" overrides `pool`. `featx layers BACKBONE` lists them.
    pool : "avg", "max", "flatten" or "none"
        What becomes of the image plane (or of the tokens).
    weights : str, path or None
        See Backbone.
    labels : sequence of n labels, or the name of a CSV file's column, optional
        A folder's class folders are its labels.
    ids : sequence of n str, optional
        Names of the images of a sequence.
    target : "class" or "numeric"
        Whether labels are class names or numbers.
    path_column : str
        A CSV file's column of paths, relative to the file.
    device : "auto", "cpu" or "cuda"
        "auto" is the GPU if there is one.
    precision : "auto", "float32", "bfloat16" or "float16"
        "auto" is bfloat16 if, on the first batch, it is faster here and every row is within 2 % (relative L2) of
        float32. Runs of fewer than 16 batches are float32.
    batch_size : int or "auto"
        Images a forward pass.
    workers : int or "auto"
        Threads that decode.
    dtype : "float32" or "float16"
        Of the stored rows.
    progress : bool
        Show a bar with images/s and time left on stderr.

    Returns
    -------
    FeatureStore

    Raises
    ------
    SourceError, BackboneError, LayerError
        What was asked for is not there; nothing has been written.
    RecipeError
        The output exists and was made otherwise; the differences are named.
    StoreError
        The output cannot be written, or not one image can be read.

    Warns
    -----
    UnreadableImagesWarning
        Some images could not be read; they have no rows.

    Examples
    --------
    >>> store = extract("photos/", "photos.h5", "resnet50", ["layer3", "penultimate"])    # doctest: +SKIP
    """
    output = Path(output)
    _refuse_unwritable(output)
    images = collect(source, labels, ids=ids, target=target, path_column=path_column)
    store = FeatureStore(output) if output.exists() else None
    if store is not None:  # what is left to "auto" is as it was then
        precision = store.recipe.precision if precision == "auto" else precision
        batch_size = store.recipe.batch_size if batch_size == "auto" else batch_size
    recipe = plan(
        images.images,
        backbone=backbone,
        weights=weights,
        layers=layers,
        pool=pool,
        device=device,
        precision=precision,
        batch_size=batch_size,
        dtype=dtype,
        origin=images.origin,
    )
    if store is not None:
        _refuse_another(store, recipe, images)
        return store
    blocks: Iterable[Block] = stream(images.images, recipe, device=device, workers=workers)
    if progress:
        blocks = _with_progress(blocks, len(images.ids))
    digests: dict[int, bytes] = {}
    failures: dict[int, ImageError] = {}
    with StoreWriter(output, recipe, len(images.ids)) as writer:
        for block in blocks:
            if len(block.indices):
                writer.write(block.indices, block.rows)
            digests |= block.digests
            failures |= block.failures
        writer.finish(images.ids, digests, images.y, images.columns, failures)
    if failures:
        names = listed(images.ids[position] for position in sorted(failures))
        warnings.warn(
            f"{len(failures):,} of {len(images.ids):,} images cannot be read and have no rows, see store.failures: "
            f"{names}",
            UnreadableImagesWarning,
            stacklevel=2,
        )
    return FeatureStore(output)


def _refuse_another(store: FeatureStore, recipe: Recipe, images: Collection) -> None:
    """Raise RecipeError unless the store is what would be made now."""
    if differences := store.recipe.differences(recipe):
        raise RecipeError(
            f"{store.path} was made otherwise: {'; '.join(differences)}. Choose another output, or delete it"
        )
    if differences := _image_differences(store, images):
        raise RecipeError(f"{store.path} holds other images: {'; '.join(differences)}. Choose another output")


def _image_differences(store: FeatureStore, images: Collection) -> list[str]:
    failed = {failure.id: failure for failure in store.failures}
    there, here = {*store.ids.tolist(), *failed}, set(images.ids)
    found = []
    if gone := sorted(there - here):
        found.append(f"gone since: {listed(gone)}")
    if new := sorted(here - there):
        found.append(f"new: {listed(new)}")
    position = {name: i for i, name in enumerate(images.ids)}
    rows = [(row, position[name]) for row, name in enumerate(store.ids.tolist()) if name in position]
    changed = [images.ids[i] for row, i in rows if _digest_or_none(images.images[i]) != store.digests[row].tobytes()]
    changed += [name for name in failed if name in position and _is_readable(images.images[position[name]])]
    if changed:
        found.append(f"changed: {listed(changed)}")
    if images.y is not None and not found:
        labels = images.y[[i for _, i in rows]]
        if store.y is None or not np.array_equal(labels, store.y):
            found.append("other labels (store.align gives a store other labels)")
    others = {name: values[[i for _, i in rows]].tolist() for name, values in images.columns.items()}
    if not found and others != {name: values.tolist() for name, values in store.columns.items()}:
        found.append("other columns in the manifest")
    return found


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


def _refuse_unwritable(output: Path) -> None:
    try:
        output.exists()
    except OSError as error:  # a name too long, say
        raise StoreError(f"cannot write {output}: {error.strerror}") from error
    if output.is_dir():
        raise StoreError(f"the output is a file; {output} is a folder. Name a file in it: {output / 'features.h5'}")
    if not output.parent.is_dir():
        raise StoreError(f"cannot write {output}: there is no folder {output.parent}; make it first")
    if not os.access(output.parent, os.W_OK):
        raise StoreError(f"cannot write {output}: no permission in {output.parent}; choose another folder")


def _with_progress(blocks: Iterable[Block], n: int) -> Iterator[Block]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("extracting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=n, speed="")
        for block in blocks:
            yield block
            speed = bar.tasks[task].speed
            bar.update(task, completed=block.stop, speed=f"{speed:,.0f} images/s" if speed else "")
