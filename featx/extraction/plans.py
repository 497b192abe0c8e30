"""From images to a finished store: `plan` decides, `Plan.run` writes the stream of rows; `extract` does both."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from featx.backbones import COMPILED, Backbone, expand_views
from featx.errors import (
    FeatxError,
    Parameter,
    RecipeError,
    StoreError,
    UnreadableImagesWarning,
    as_path,
    listed,
    warn,
)
from featx.extraction.executors import Executor, LocalExecutor
from featx.extraction.existing import ExistingStore, compare, refuse_another_run, refuse_changed, refuse_other_names
from featx.extraction.like import Example, followed
from featx.extraction.pending import pending
from featx.forward import Trial, check_choices, decoders, measure, resolve_recipe
from featx.images import Collection, Stamp, collect, stamp
from featx.progress import EXTRACTING, Clock, Progress, preparing, shown
from featx.store import (
    FeatureStore,
    Recipe,
    StoreWriter,
    Unfinished,
    refuse_running,
    refuse_unwritable_store,
    unfinished,
    warn_of_rows,
)
from featx.store import discard as discard_unfinished


def extract(
    source: object,
    output: str | os.PathLike,
    backbone: str | nn.Module | Backbone | None = None,
    layers: str | Sequence[str] | None = None,
    *,
    like: FeatureStore | str | os.PathLike | None = None,
    pool: str = "avg",
    views: str | Sequence[str] | None = None,
    weights: str | os.PathLike | None = "DEFAULT",
    labels: Sequence[object] | np.ndarray | str | None = None,
    ids: Sequence[str] | None = None,
    target: str = "class",
    path_column: str = "path",
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    batch_size: int | str = "auto",
    workers: int | str = "auto",
    dtype: str = "auto",
    progress: bool | Callable[[Progress], None] = True,
    replace: bool = False,
    discard: bool = False,
    executor: Executor | None = None,
) -> FeatureStore:
    """Run images through a pretrained network once and keep activations in one HDF5 file.

    Parameters
    ----------
    source : path, or sequence of paths, uint8 arrays (h, w[, 3]) or PIL images, or uint8 array (n, h, w[, 3])
        A folder of class folders, a folder of images, a `.zip` file of one, WebDataset shards ("{00..15}.tar"), Parquet
        files with a column of images, a CSV manifest, the URL of one of these ("s3://..."), a `datasets.Dataset`, or
        the images themselves.
    output : path
        The HDF5 file to make. If it exists with this recipe and these images, it is returned as it is. If there are
        more images or layers now, a store with the existing rows and the new ones replaces it. An interrupted run is
        continued.
    backbone : str, torch.nn.Module or Backbone, optional
        "resnet50" (the default), "timm:convnext_tiny", "bundled:efficientnet_lite0" ...; see Backbone.
    layers : str or sequence of str, optional
        Node names, "penultimate" (the default), "stages"; "node:pool" overrides `pool`. `featx layers BACKBONE` lists
        them.
    like : FeatureStore or path, optional
        Make the store as this one was made, so that their rows can be used together: with its backbone, weights,
        preprocessing, layers, views, precision, engine, batch size, threads, storage type, and its device if it is
        available.
        Pass none of these beside it, except `layers` to choose some of its layers, and `backbone` if the store is
        opened by its path and its backbone was a module of yours or an exported program, or its weights have moved.
    pool : "avg", "max", "gem", "spp", "cls", "tokens", "flatten" or "none"
        How the image plane or the tokens are pooled: mean, maximum, generalised mean, spatial pyramid of maxima, class
        token, mean of the other tokens, everything flattened to one row, or no pooling. With "~512" appended
        ("flatten~512"), wider rows are projected at random to 512 numbers.
    views : str or sequence of str, optional
        Keep rows of v views of each image, along a leading axis of each row: (v, d). "center" is the usual crop, "flip"
        its horizontal mirror image, "crop:4" four crops of the same size at the corners of the resized picture, as in
        torchvision's `FiveCrop`, and "crop:8" these and their mirror images: with "center" and "flip", the crops of
        `TenCrop`. A corner can be named, too: "top-left", "top-left-flip". Time and file size grow v-fold. A forward
        pass has one view of each image of a batch, so the network's memory does not grow. StoredFeatures averages them.
    weights : str, path or None
        See Backbone.
    labels : sequence of n labels, or the name of a CSV or Parquet file's or Dataset's column, optional
        By default the class folders of a folder, or the column "label".
    ids : sequence of n str, optional
        Names of the images of a sequence.
    target : "class" or "numeric"
        Whether labels are class names or numbers.
    path_column : str
        A CSV file's column of paths, relative to the file.
    device : "auto", "cpu" or "cuda"
        "auto" is the GPU if there is one. Long runs use all GPUs of the same kind, one process each.
    precision : "auto", "float32", "bfloat16" or "float16"
        "auto" is bfloat16 (on a GPU, float16 too) if on the first batch it is faster and every row is within 2 %
        (relative L2) of float32. Runs of 1 or 2 batches, or of less than two seconds, are float32.
    engine : "auto", "eager" or "compiled"
        "auto" compiles the network (`torch.compile`) if the run is long enough for that to save time and there is a
        compiler.
    batch_size : int or "auto"
        Images per forward pass; "auto" is 32 on a CPU and at most 256 on a GPU, as its memory allows.
    workers : int or "auto"
        Threads that decode images; "auto" is one per core. Images at a URL are fetched by 32 threads beside them.
    dtype : "auto", "float32" or "float16"
        Type of the stored rows; "auto" is float32.
    progress : bool or callable
        Show a progress bar on stderr, or call this function with each update, a `featx.Progress`. Before the first rows
        its `phase` names the current step.
    replace : bool
        Replace a store whose images are gone or changed, or have other labels. Rows that are still valid are copied.
    discard : bool
        Discard the rows of an unfinished run for this output.
    executor : RayExecutor, optional
        Compute the rows on a Ray cluster instead of on this machine.

    Returns
    -------
    FeatureStore

    Raises
    ------
    SourceError, BackboneError, LayerError
        The images, the network or a layer is not there; nothing has been written.
    RecipeError
        The output, finished or not, was made with another recipe or of other images; the differences are named.
    StoreError
        The output cannot be written, another run is writing it, the disk is too small, no image can be read, or images
        have changed since an unfinished run read them.

    Warns
    -----
    UnreadableImagesWarning
        Some images could not be read; they have no rows.
    NonFiniteWarning
        Some rows contain NaN or inf, for example from overflow in float16.
    ContradictionWarning
        Images with the same content have different labels.

    Notes
    -----
    If the output exists or was begun, "auto" is what was chosen then: new rows are those that a single run would have
    written, byte for byte.

    A run that is interrupted or killed leaves `OUTPUT.partial` and `OUTPUT.journal`; the same call continues it, and
    the finished file is byte for byte that of an uninterrupted run.

    Examples
    --------
    >>> store = extract("photos/", "photos.h5", "resnet50", ["layer3", "penultimate"])    # doctest: +SKIP
    >>> test = extract("test/", "test.h5", like=store)    # doctest: +SKIP
    """
    with shown(progress) as show:
        todo = plan(
            source,
            output,
            backbone,
            layers,
            like=like,
            pool=pool,
            views=views,
            weights=weights,
            labels=labels,
            ids=ids,
            target=target,
            path_column=path_column,
            device=device,
            precision=precision,
            engine=engine,
            batch_size=batch_size,
            workers=workers,
            dtype=dtype,
            replace=replace,
            discard=discard,
            executor=executor,
            progress=show,
        )
        return todo._run(show)


def plan(
    source: object,
    output: str | os.PathLike,
    backbone: str | nn.Module | Backbone | None = None,
    layers: str | Sequence[str] | None = None,
    *,
    like: FeatureStore | Recipe | str | os.PathLike | None = None,
    pool: str = "avg",
    views: str | Sequence[str] | None = None,
    weights: str | os.PathLike | None = "DEFAULT",
    labels: Sequence[object] | np.ndarray | str | None = None,
    ids: Sequence[str] | None = None,
    target: str = "class",
    path_column: str = "path",
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    batch_size: int | str = "auto",
    workers: int | str = "auto",
    dtype: str = "auto",
    replace: bool = False,
    discard: bool = False,
    executor: Executor | None = None,
    progress: Callable[[Progress], None] = lambda now: None,
    dry_run: bool = False,
) -> Plan:
    """Decide everything that `extract` decides, and write nothing.

    The first batch may be computed for that; `Plan.run` does not compute it again.

    Parameters
    ----------
    source, output, ... : as in `extract`; `like` may be a recipe, too
    dry_run : bool
        Download no weights and compute no batch; such a plan cannot be run. Choices that depend on the first batch stay
        "auto" in its recipe; weights with the name that an existing store has are assumed to be the same.
    progress : callable
        Called with a `featx.Progress` at each new step.

    Returns
    -------
    Plan

    Raises
    ------
    FeatxError
        As in `extract`, for everything that is known before the first row is written.

    Examples
    --------
    >>> plan("photos/", "photos.h5", layers="stages:flatten").nbytes    # doctest: +SKIP
    """
    output = as_path("output", output, StoreError)
    refuse_unwritable_store(output)
    decoders(workers)  # refuses what is none
    executor = LocalExecutor() if executor is None else executor
    if not isinstance(executor, Executor) or isinstance(executor, type):
        raise FeatxError(Parameter("executor"), f" is an executor, such as featx.RayExecutor(); got {executor!r}")
    views = expand_views(views)
    example = None if like is None else Example.of(like)
    is_object = isinstance(backbone, nn.Module | Backbone)
    if example is None and not isinstance(backbone, Backbone):  # an unknown name is refused before images are looked at
        backbone = Backbone("resnet50" if backbone is None else backbone, weights)
    there = stamp(output)
    begun = None if discard else unfinished(output)
    images = collect(
        source,
        labels,
        ids=ids,
        target=target,
        path_column=path_column,
        on_phase=preparing(progress),
        listing=None if begun is None else begun.listing,
    )
    on_phase = preparing(progress, len(images.ids))
    on_phase(f"building {backbone.name if isinstance(backbone, Backbone) else 'the network'}")
    refuse_running(output)
    trials: list[Trial] = []
    store = FeatureStore(output) if output.exists() else None
    known = begun.recipe if begun is not None else None if store is None else store.recipe
    choices: dict[str, Any] = {
        "device": device,
        "precision": precision,
        "engine": engine,
        "batch_size": batch_size,
        "dtype": dtype,
    }
    if known is not None and known.is_imported:
        raise RecipeError(
            f"{output} has imported rows ({known.backbone}), which no network computes; choose another output"
        )
    if example is not None:
        known = example.recipe
        backbone, layers = example.backbone(backbone, weights), example.layers(layers, pool)
        views = example.recipe.views if views is None else views
    assert isinstance(backbone, Backbone)
    if known is not None:
        choices = followed(choices, known)
    if choices["dtype"] == "auto":
        choices["dtype"] = "float32"
    check_choices(**choices)
    if store is not None:
        refuse_other_names(output, store.recipe, backbone, choices, views)
    elif begun is not None:
        refuse_other_names(output, begun.recipe, backbone, choices, views, is_begun=True)
    if dry_run:
        backbone = backbone.without_download()
    recipe = resolve_recipe(
        images.images,
        backbone=backbone,
        layers="penultimate" if layers is None else layers,
        pool=pool,
        views=views,
        origin=images.origin,
        **choices,
        workers=workers,
        on_phase=on_phase,
        on_trial=None if dry_run else trials.append,
    )
    if known is not None and not backbone.has_weights and backbone.weights != known.weights:
        raise RecipeError(
            f"{output} was made with weights {known.weights!r}; whether {backbone.weights!r} are the same is not known "
            "before they are downloaded"
        )
    if known is not None and not backbone.has_weights:
        recipe = changed(recipe, weights_sha256=known.weights_sha256)
    if example is not None:
        recipe = example.made_alike(recipe)
    if store is not None:
        on_phase(f"comparing the images with {output.name}")
    existing = None if store is None else compare(store, recipe, images)
    if existing is None or not existing.is_all:
        if begun is not None:
            refuse_another_run(output, begun, recipe, images)
            recipe = begun.recipe
        if existing is not None:
            existing.refuse_what_is_lost(replace)
            recipe = recipe if begun is not None else existing.grown()
    owned = backbone if backbone.is_own or is_object else None
    return Plan(
        output,
        images,
        recipe,
        existing,
        begun,
        backbone,
        owned,
        workers,
        discard,
        there,
        dry_run,
        executor,
        *trials,
    )


@dataclass
class Plan:
    """An extraction that is ready to run, once; made by `plan`.

    Attributes
    ----------
    output : path
    images : Collection, n images with ids, y and columns
    recipe : Recipe, what will be computed and how
    backbone : Backbone, the network
    is_done : bool, whether the output has all images and layers already
    is_timed : bool, whether `seconds` is known without computing anything
    is_dry : bool, whether it was planned with `dry_run` and cannot be run
    n_kept : number of images whose rows exist already, in an unfinished run or in the store at the output
    sizes : {layer: bytes of its n rows}
    nbytes : bytes of all rows
    """

    output: Path
    images: Collection
    recipe: Recipe
    _existing: ExistingStore | None = field(repr=False)
    _begun: Unfinished | None = field(repr=False)
    _backbone: Backbone = field(repr=False)
    _owned: Backbone | None = field(repr=False)  # the backbone, if the user passed the object or a program
    _workers: int | str = field(repr=False)
    _discard: bool = field(repr=False)
    _there: Stamp | None = field(repr=False)
    is_dry: bool = field(repr=False)
    _executor: Executor = field(repr=False)
    _trial: Trial | None = field(default=None, repr=False)

    @property
    def backbone(self) -> Backbone:
        return self._backbone

    @property
    def is_done(self) -> bool:
        return self._existing is not None and self._existing.is_all

    @property
    def is_timed(self) -> bool:
        """Whether `seconds` is known without computing anything; how fast a cluster is is not known."""
        return self.is_done or (self._trial is not None and isinstance(self._executor, LocalExecutor))

    @property
    def n_kept(self) -> int:
        if self.is_done:
            return len(self.images.ids)
        if self._begun is not None:
            return self._begun.n_done
        if self._existing is None or self._existing.new_layers:
            return 0
        return int(self._existing.has.sum())

    @property
    def sizes(self) -> dict[str, int]:
        width = np.dtype(self.recipe.dtype).itemsize
        n = len(self.images.ids)
        return {name: n * width * math.prod(tap["shape"]) for name, tap in self.recipe.taps.items()}

    @property
    def nbytes(self) -> int:
        return sum(self.sizes.values())

    def seconds(self) -> float:
        """Estimate the time that `run` takes.

        The estimate is from the batch that planning has computed; if there is none, one is computed and timed, after
        one that warms up. NaN for a plan made with `dry_run`.
        """
        left = len(self.images.ids) - self.n_kept
        if not left:
            return 0.0
        if self._trial is not None:
            return left * self._trial.image_seconds
        if self.is_dry:
            return math.nan
        images, recipe = self.images.images, self.recipe
        with _threads(recipe.threads):
            return left * measure(images, recipe, self._backbone, device=recipe.device, workers=self._workers)

    def run(self, progress: bool | Callable[[Progress], None] = True) -> FeatureStore:
        """Extract; raises and warns as `extract` does.

        Parameters
        ----------
        progress : as in `extract`

        Raises
        ------
        StoreError
            The output has changed since this was planned.
        """
        return self._run(progress)

    def _run(self, progress: bool | Callable[[Progress], None]) -> FeatureStore:
        """Run the plan; `run` and `extract` both call this, so that warnings name the line that called them."""
        output, images, existing = self.output, self.images, self._existing
        if self.is_dry:
            raise StoreError(
                "this plan was made with ", Parameter("dry_run", True), " and cannot be run; plan again without it"
            )
        if self._discard:
            discard_unfinished(output)
            self._discard = False  # rows of this run are kept if it is run again
        if existing is not None and existing.is_all:
            if self._begun is None:
                discard_unfinished(output)  # a kill between the last two steps leaves a journal
            return self._with_backbone(existing.store)
        options: dict[str, Any] = {"statistics": True, "listing": images.listing}
        with (
            StoreWriter(output, self.recipe, images.ids, images.y, images.columns, **options) as writer,
            _threads(self.recipe.threads),
            shown(progress) as show,
        ):
            if stamp(output) != self._there:
                raise StoreError(f"{output} has changed since this was planned; plan again")
            if images.listing is None or self._begun is None or images.listing != self._begun.listing:
                refuse_changed(output, writer, images)  # rows of a kept listing are of the versions that it names
            if existing is not None:
                reading = Clock(writer.todo, show)
                existing.copy_rows(
                    writer,
                    decoders(self._workers),
                    lambda: reading.tick(len(writer.failures), "reading the images' statistics"),
                )
            trial, self._trial = self._trial, None  # its rows are needed once
            clock = Clock(writer.todo, show, 0.0 if trial is None else trial.seconds)
            compiling = trial is None and self.recipe.engine == COMPILED
            clock.tick(len(writer.failures), "compiling" if compiling else EXTRACTING)
            for part in pending(writer, existing):
                blocks = self._executor.compute(
                    images.images,
                    part.recipe,
                    self._backbone,
                    workers=self._workers,
                    todo=part.todo.copy(),
                    rows=writer.rows,
                    computed=() if trial is None else trial.still(images.images),
                )
                with contextlib.closing(blocks):  # all processes have ended before the writer closes the file
                    part.write_all(blocks, clock)
            writer.finish()
        store = self._with_backbone(FeatureStore(output))
        warn_of_failures(store, len(images.ids))
        warn_of_rows(store)
        return store

    def _with_backbone(self, store: FeatureStore) -> FeatureStore:
        store.backbone = self._owned
        return store


def warn_of_failures(store: FeatureStore, n: int) -> None:
    """Warn of those of n images that have no rows, at the line of the user's code that made the store."""
    if store.failures:
        warn(
            f"{len(store.failures):,} of {n:,} images cannot be read and have no rows, see store.failures: "
            f"{listed(failure.id for failure in store.failures)}",
            UnreadableImagesWarning,
        )


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """A context with the recorded number of threads of the forward pass, which decides the last bits of the numbers."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
