"""Images in, a finished store out: `extract` joins the stream of rows to the writer. Not extract.py: that name is
the function's.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from featx.backbones import Backbone
from featx.errors import ContradictionWarning, NonFiniteWarning, UnreadableImagesWarning, listed
from featx.forward import Block, plan, stream
from featx.images import changed, collect
from featx.reuse import Old, look, refuse_another_run, refuse_changed
from featx.store import FeatureStore, Recipe, StoreWriter, refuse_running, refuse_unwritable, unfinished
from featx.store import discard as discard_unfinished


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
    replace: bool = False,
    discard: bool = False,
) -> FeatureStore:
    """Run images through a pretrained network once and keep activations in one HDF5 file.

    Parameters
    ----------
    source : path, or sequence of paths, uint8 arrays (h, w[, 3]) or PIL images, or uint8 array (n, h, w[, 3])
        A folder of class folders, a folder of images, a CSV manifest, or the images themselves.
    output : path
        The HDF5 file to make. If it is there already with this recipe and these images, it is returned as it is. If
        there are more images or more layers now, a new store with the old rows and the new takes its place. A run that
        was interrupted goes on.
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
    replace : bool
        Let the new store take the place of one whose images are gone or changed, or have other labels. Rows that still
        serve are copied.
    discard : bool
        Drop what an unfinished run towards this output has done.

    Returns
    -------
    FeatureStore

    Raises
    ------
    SourceError, BackboneError, LayerError
        What was asked for is not there; nothing has been written.
    RecipeError
        The output exists, or was begun, and was made otherwise or of other images; the differences are named.
    StoreError
        The output cannot be written, another run is writing it, the disk is too small, not one image can be read, or
        images changed since an unfinished run read them.

    Warns
    -----
    UnreadableImagesWarning
        Some images could not be read; they have no rows.
    NonFiniteWarning
        Some rows hold inf or NaN: float16 that overflowed, say.
    ContradictionWarning
        Images with the same content have different labels.

    Notes
    -----
    An interrupted run, a killed one too, leaves `OUTPUT.partial` and `OUTPUT.journal`; the same call goes on, and the
    finished file is the same, byte for byte, as that of an unbroken run.

    Examples
    --------
    >>> store = extract("photos/", "photos.h5", "resnet50", ["layer3", "penultimate"])    # doctest: +SKIP
    """
    output = Path(output)
    refuse_unwritable(output)
    images = collect(source, labels, ids=ids, target=target, path_column=path_column)
    refuse_running(output)
    if discard:
        discard_unfinished(output)
    store = FeatureStore(output) if output.exists() else None
    begun = unfinished(output)
    known = begun.recipe if begun is not None else None if store is None else store.recipe
    if known is not None:  # what is left to "auto" is as it was then
        precision = known.precision if precision == "auto" else precision
        batch_size = known.batch_size if batch_size == "auto" else batch_size
    if begun is not None:
        device = begun.recipe.device if device == "auto" else device
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
    old = None if store is None else look(store, recipe, images)
    if old is not None and old.is_all:
        if begun is None:
            discard_unfinished(output)  # a kill between the last two steps leaves a journal
        return old.store
    if begun is not None:
        refuse_another_run(output, begun, recipe, images)
        recipe = begun.recipe
    if old is not None:
        old.refuse_what_is_lost(replace)
        recipe = recipe if begun is not None else old.grown()
    with StoreWriter(output, recipe, images.ids, images.y, images.columns) as writer, _threads(recipe.threads):
        refuse_changed(output, writer, images)
        if old is not None:
            old.copy_rows(writer)
        for part in _parts(writer, old):
            blocks = stream(images.images, part.recipe, device=device, workers=workers, todo=part.todo.copy())
            for block in _with_progress(blocks, writer.todo) if progress else blocks:
                part.write(block)
        writer.finish()
    store = FeatureStore(output)
    _warn(store, len(images.ids))
    return store


@dataclass(frozen=True)
class _Part:
    """Images that go through the same layers: all of them, or those that an old store lacks.

    todo : (n,) bool
    """

    writer: StoreWriter
    recipe: Recipe
    todo: np.ndarray
    old: Old | None

    def write(self, block: Block) -> None:
        """Write a block's rows and failures; of images that are to be done, since a batch may hold others."""
        failures = {i: error for i, error in block.failures.items() if self.todo[i]}
        indices = block.indices[self.todo[block.indices]]
        if self.old is not None and len(indices):
            then = self.old.digests(indices)
            for i, digest in zip(indices.tolist(), then, strict=True):
                if block.digests[i] != digest:
                    failures[i] = changed()
            indices = np.setdiff1d(indices, list(failures))
        if len(indices):
            here = np.isin(block.indices, indices)
            rows = {name: values[here] for name, values in block.rows.items()}
            if self.old is not None:
                rows |= self.old.take(indices)
            digests = np.frombuffer(b"".join(block.digests[i] for i in indices.tolist()), np.uint8)
            self.writer.write(indices, rows, digests.reshape(-1, 16))
        self.writer.fail(failures)


def _parts(writer: StoreWriter, old: Old | None) -> Iterator[_Part]:
    """What is still to do: images without rows through all layers, then the others through the layers that are new."""
    fresh = writer.todo.copy() if old is None else writer.todo & ~old.has
    if fresh.any():
        yield _Part(writer, writer.recipe, fresh, None)
    if old is not None and writer.todo.any():
        yield _Part(writer, writer.recipe.some(old.new_layers), writer.todo.copy(), old)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """As many threads of the forward pass as were recorded: they decide the last bits of the numbers."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _warn(store: FeatureStore, n: int) -> None:
    """What a user should know of a new store, at the line that called `extract`."""
    if store.failures:
        warnings.warn(
            f"{len(store.failures):,} of {n:,} images cannot be read and have no rows, see store.failures: "
            f"{listed(failure.id for failure in store.failures)}",
            UnreadableImagesWarning,
            stacklevel=3,
        )
    if store.nonfinite:
        overflow = store.recipe.dtype == "float16" and any(entry.what == "inf" for entry in store.nonfinite)
        named = ", ".join(f"{entry.id!r} in {entry.layer!r} ({entry.what})" for entry in store.nonfinite[:3])
        warnings.warn(
            f"{len(store.nonfinite):,} rows hold numbers that are none, see store.nonfinite: {named}"
            + ("; float32 may hold what float16 cannot" if overflow else ""),
            NonFiniteWarning,
            stacklevel=3,
        )
    if contradictions := store.contradictions:
        first = contradictions[0][:2].tolist()
        pair = " and ".join(f"{store.ids[row].item()!r} ({store.y[row]})" for row in first)  # type: ignore[index]
        warnings.warn(
            f"{len(contradictions):,} images are there several times with different labels, see store.contradictions: "
            f"{pair}",
            ContradictionWarning,
            stacklevel=3,
        )


def _with_progress(blocks: Iterable[Block], todo: np.ndarray) -> Iterator[Block]:
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
        task = bar.add_task("", total=len(todo), completed=int((~todo).sum()), speed="")
        for block in blocks:
            yield block
            speed = bar.tasks[task].speed
            bar.update(task, completed=int((~todo).sum()), speed=f"{speed:,.0f} images/s" if speed else "")
