"""Where the batches of a run are computed: an executor turns images into blocks of rows, which the run writes."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from featx.backbones import Backbone
from featx.extraction.devices import places, spread
from featx.forward import Block, stream
from featx.store import Recipe, RowFile


@runtime_checkable
class Executor(Protocol):
    """Computes the rows of a run."""

    def compute(
        self,
        images: Sequence[Any],
        recipe: Recipe,
        backbone: Backbone,
        *,
        workers: int | str,
        todo: np.ndarray,
        rows: RowFile,
        computed: Iterable[Block] = (),
    ) -> Generator[Block, None, None]:
        """Run images through a recipe.

        Parameters
        ----------
        images : n paths, Members, uint8 arrays or PIL images
        recipe : Recipe
        backbone : Backbone, the recipe's
        workers : threads that decode, or "auto"
        todo : (n,) bool, the images to do
        rows : RowFile
            Where a process that has inherited its handle may write rows itself; see `Block.in_file`.
        computed : blocks of this recipe that have been computed already

        Yields
        ------
        Block
            In any order; together they cover every image to do once. Nothing is computed any more when the generator
            has ended, for whatever reason.
        """
        ...


class LocalExecutor:
    """Computes in this process, or in one process for each of several GPUs."""

    def compute(
        self,
        images: Sequence[Any],
        recipe: Recipe,
        backbone: Backbone,
        *,
        workers: int | str,
        todo: np.ndarray,
        rows: RowFile,
        computed: Iterable[Block] = (),
    ) -> Generator[Block, None, None]:
        devices = places(images, recipe, todo)
        common: dict[str, Any] = {"workers": workers, "todo": todo, "computed": computed}
        if len(devices) > 1:
            return spread(images, recipe, backbone, places=devices, rows=rows, **common)
        return stream(images, recipe, backbone, device=recipe.device, **common)
