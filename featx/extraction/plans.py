"""Images in, a finished store out: `plan` decides, `Plan.run` joins the stream of rows to the writer. Not extract.py:
that name is the function's. Long, since two public functions say what every one of their options means.
"""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as changed
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from featx.backbones import COMPILED, Backbone
from featx.display import printable
from featx.errors import (
    ContradictionWarning,
    NonFiniteWarning,
    Parameter,
    RecipeError,
    StoreError,
    UnreadableImagesWarning,
    listed,
)
from featx.extraction.devices import places, spread
from featx.extraction.existing import Old, look, refuse_another_run, refuse_changed, refuse_other_names
from featx.extraction.like import Example, followed
from featx.extraction.pending import parts
from featx.forward import Trial, check_choices, decoders, measure, resolve_recipe, stream
from featx.images import Collection, Stamp, collect, stamp
from featx.progress import EXTRACTING, Clock, Progress, preparing, shown
from featx.store import FeatureStore, Recipe, StoreWriter, Unfinished, refuse_running, refuse_unwritable, unfinished
from featx.store import discard as discard_unfinished


def extract(
    source: object,
    output: str | os.PathLike,
    backbone: str | nn.Module | Backbone | None = None,
    layers: str | Sequence[str] | None = None,
    *,
    like: FeatureStore | str | os.PathLike | None = None,
    pool: str = "avg",
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
    backbone : str, torch.nn.Module or Backbone, optional
        "resnet50" (the default), "timm:convnext_tiny", "bundled:efficientnet_lite0" ...; see Backbone.
    layers : str or sequence of str, optional
        Node names, "penultimate" (the default), "stages"; "node:pool" overrides `pool`. `featx layers BACKBONE` lists
        them.
    like : FeatureStore or path, optional
        Make the store as this one was made, so that their rows can be used together: with its backbone, weights,
        preprocessing, layers, precision, engine, batch size, threads, storage type, and its device if that is here.
        Give no other of these, except `layers` to choose some of its layers; and `backbone` where a module of yours, an
        exported program or weights that moved have to be handed over.
    pool : "avg", "max", "gem", "spp", "cls", "tokens", "flatten" or "none"
        What becomes of the image plane, or of the tokens: their mean, their maxima, the generalised mean, a spatial
        pyramid of maxima, the class token, the mean of the tokens beside it, everything as one row, everything as it
        is. With "~512" behind it, rows wider than that are projected at random to 512 numbers ("flatten~512").
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
        "auto" is the GPU if there is one. Long runs use all GPUs that are alike, with a process each.
    precision : "auto", "float32", "bfloat16" or "float16"
        "auto" is bfloat16 (on a GPU, float16 too) if, on the first batch, it is faster here and every row is within 2 %
        (relative L2) of float32. Runs of 1 or 2 batches, or of less than two seconds, are float32.
    engine : "auto", "eager" or "compiled"
        "auto" compiles the network (`torch.compile`) if the run is long enough to earn that back, and a compiler is
        there.
    batch_size : int or "auto"
        Images a forward pass; "auto" is 32 on a CPU, and up to 256 on a GPU, as its memory allows.
    workers : int or "auto"
        Threads that decode; "auto" is one a core.
    dtype : "auto", "float32" or "float16"
        Of the stored rows; "auto" is float32.
    progress : bool or callable
        Show a bar with images/s and time left on stderr; or call this function with a `featx.Progress` as the run goes
        on. Before the first rows its `phase` says what is being done.
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
    Where there is a store or an unfinished run at the output, "auto" is what was chosen then, so that new rows are
    those that one run would have made, byte for byte.

    An interrupted run, a killed one too, leaves `OUTPUT.partial` and `OUTPUT.journal`; the same call goes on, and the
    finished file is the same, byte for byte, as that of an unbroken run.

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
            progress=show,
        )
        return todo._run(show)


def plan(
    source: object,
    output: str | os.PathLike,
    backbone: str | nn.Module | Backbone | None = None,
    layers: str | Sequence[str] | None = None,
    *,
    like: FeatureStore | str | os.PathLike | None = None,
    pool: str = "avg",
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
    progress: Callable[[Progress], None] = lambda now: None,
    dry_run: bool = False,
) -> Plan:
    """Decide all that `extract` would, and write nothing.

    The first batch may be computed for it; `Plan.run` does not compute it again.

    Parameters
    ----------
    source, output, ... : as `extract` has them
    dry_run : bool
        Download no weights and compute no batch, for a plan that is looked at and not run. What the first batch would
        decide stays "auto" in its recipe; weights of the name that a store was made with are taken to be the same.
    progress : callable
        Called with a `featx.Progress` whenever something else is being done.

    Returns
    -------
    Plan

    Raises
    ------
    FeatxError
        As `extract` raises it, for all that can be known before the first row is written.

    Examples
    --------
    >>> plan("photos/", "photos.h5", layers="stages:flatten").nbytes    # doctest: +SKIP
    """
    output = Path(output)
    refuse_unwritable(output)
    decoders(workers)  # refuses what is none
    example = None if like is None else Example.of(like)
    if example is None and not isinstance(backbone, Backbone):  # an unknown name is refused before images are looked at
        backbone = Backbone("resnet50" if backbone is None else backbone, weights)
    there = stamp(output)
    images = collect(source, labels, ids=ids, target=target, path_column=path_column)
    on_phase = preparing(progress, len(images.ids))
    on_phase(f"building {backbone.name if isinstance(backbone, Backbone) else 'the network'}")
    refuse_running(output)
    trials: list[Trial] = []
    store = FeatureStore(output) if output.exists() else None
    begun = None if discard else unfinished(output)
    known = begun.recipe if begun is not None else None if store is None else store.recipe
    choices: dict[str, Any] = {
        "device": device,
        "precision": precision,
        "engine": engine,
        "batch_size": batch_size,
        "dtype": dtype,
    }
    if example is not None:
        known = example.recipe
        backbone, layers = example.backbone(backbone, weights), example.layers(layers, pool)
    assert isinstance(backbone, Backbone)
    if known is not None:
        choices = followed(choices, known)
    if choices["dtype"] == "auto":
        choices["dtype"] = "float32"
    check_choices(**choices)
    if store is not None:
        refuse_other_names(output, store.recipe, backbone, choices)
    elif begun is not None:
        refuse_other_names(output, begun.recipe, backbone, choices, is_begun=True)
    if dry_run:
        backbone = backbone.without_download()
    recipe = resolve_recipe(
        images.images,
        backbone=backbone,
        layers="penultimate" if layers is None else layers,
        pool=pool,
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
    old = None if store is None else look(store, recipe, images)
    if old is None or not old.is_all:
        if begun is not None:
            refuse_another_run(output, begun, recipe, images)
            recipe = begun.recipe
        if old is not None:
            old.refuse_what_is_lost(replace)
            recipe = recipe if begun is not None else old.grown()
    return Plan(output, images, recipe, old, begun, backbone, workers, discard, there, dry_run, *trials)


@dataclass
class Plan:
    """An extraction that is ready to run, once; made by `plan`.

    Attributes
    ----------
    output : path
    images : Collection, n images with ids, y and columns
    recipe : Recipe, what will be computed and how
    is_done : bool, the output is there already, and is what was asked for
    is_timed : bool, `seconds` computes nothing
    is_dry : bool, it was planned with `dry_run`: to be looked at, not to be run
    n_kept : images that an unfinished run has done, or of which the store at the output has all rows
    sizes : {layer: bytes of its n rows}
    nbytes : of all rows
    """

    output: Path
    images: Collection
    recipe: Recipe
    _old: Old | None = field(repr=False)
    _begun: Unfinished | None = field(repr=False)
    _backbone: Backbone = field(repr=False)
    _workers: int | str = field(repr=False)
    _discard: bool = field(repr=False)
    _there: Stamp | None = field(repr=False)
    is_dry: bool = field(repr=False)
    _trial: Trial | None = field(default=None, repr=False)

    @property
    def is_done(self) -> bool:
        return self._old is not None and self._old.is_all

    @property
    def is_timed(self) -> bool:
        """Whether `seconds` is known without computing for it."""
        return self.is_done or self._trial is not None

    @property
    def n_kept(self) -> int:
        if self.is_done:
            return len(self.images.ids)
        if self._begun is not None:
            return self._begun.n_done
        if self._old is None or self._old.new_layers:
            return 0
        return int(self._old.has.sum())

    @property
    def sizes(self) -> dict[str, int]:
        width = np.dtype(self.recipe.dtype).itemsize
        n = len(self.images.ids)
        return {name: n * width * math.prod(tap["shape"]) for name, tap in self.recipe.taps.items()}

    @property
    def nbytes(self) -> int:
        return sum(self.sizes.values())

    def seconds(self) -> float:
        """An estimate of the time that `run` takes.

        Where planning has computed a batch, from the time of this; else computes one, after one that warms up. NaN of a
        plan made with `dry_run`.
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
        progress : as `extract` has it

        Raises
        ------
        StoreError
            The output is not what it was when this was planned.
        """
        return self._run(progress)

    def _run(self, progress: bool | Callable[[Progress], None]) -> FeatureStore:
        """One call beneath `run` and `extract` alike, so that warnings name the line of who called either."""
        output, images, old = self.output, self.images, self._old
        if self.is_dry:
            raise StoreError(
                "this plan was made with ", Parameter("dry_run", True), ", to be looked at; plan again without it"
            )
        if self._discard:
            discard_unfinished(output)
            self._discard = False  # what this run does is kept if it is run again
        if old is not None and old.is_all:
            if self._begun is None:
                discard_unfinished(output)  # a kill between the last two steps leaves a journal
            return old.store
        with (
            StoreWriter(output, self.recipe, images.ids, images.y, images.columns) as writer,
            _threads(self.recipe.threads),
            shown(progress) as show,
        ):
            if stamp(output) != self._there:
                raise StoreError(f"{output} has changed since this was planned; plan again")
            refuse_changed(output, writer, images)
            if old is not None:
                old.copy_rows(writer)
            trial, self._trial = self._trial, None  # its rows are needed once
            clock = Clock(writer.todo, show, 0.0 if trial is None else trial.seconds)
            compiling = trial is None and self.recipe.engine == COMPILED
            clock.tick(len(writer.failures), "compiling" if compiling else EXTRACTING)
            device = self.recipe.device
            for part in parts(writer, old):
                todo = part.todo.copy()
                at = places(images.images, part.recipe, todo)
                through = partial(spread, places=at, rows=writer.rows) if at[1:] else partial(stream, device=device)
                computed = () if trial is None else trial.still(images.images)
                blocks = through(
                    images.images, part.recipe, self._backbone, workers=self._workers, todo=todo, computed=computed
                )
                with contextlib.closing(blocks):  # no process is left when the writer lets go of the file
                    part.write_all(blocks, clock)
            writer.finish()
        store = FeatureStore(output)
        _warn(store, len(images.ids))
        return store


def _warn(store: FeatureStore, n: int) -> None:
    """What a user should know of a new store, at the line that called `extract` or `Plan.run`."""
    if store.failures:
        warnings.warn(
            f"{len(store.failures):,} of {n:,} images cannot be read and have no rows, see store.failures: "
            f"{listed(failure.id for failure in store.failures)}",
            UnreadableImagesWarning,
            stacklevel=4,
        )
    if store.nonfinite:
        overflow = store.recipe.dtype == "float16" and any(entry.what == "inf" for entry in store.nonfinite)
        named = ", ".join(f"{entry.id!r} in {entry.layer!r} ({entry.what})" for entry in store.nonfinite[:3])
        warnings.warn(
            f"{len(store.nonfinite):,} rows contain NaN or inf, see store.nonfinite: {named}"
            + ("; float32 may hold what float16 cannot" if overflow else ""),
            NonFiniteWarning,
            stacklevel=4,
        )
    if contradictions := store.contradictions:
        first = contradictions[0][:2].tolist()
        pair = " and ".join(f"{str(store.ids[row])!r} ({printable(store.y[row])})" for row in first)  # type: ignore[index]
        warnings.warn(
            f"{len(contradictions):,} images are there several times with different labels, see store.contradictions: "
            f"{pair}",
            ContradictionWarning,
            stacklevel=4,
        )


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """As many threads of the forward pass as were recorded: they decide the last bits of the numbers."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
