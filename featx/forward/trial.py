"""Decide on the first batches of a run which precision and engine it uses.

Nothing is computed twice: the batches are those of the run, slot for slot, and the rows of the chosen precision and
engine are kept as the run's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from featx.backbones import Backbone, Choice, TappedNetwork, choose
from featx.errors import ImageError
from featx.forward.cache import keep
from featx.forward.passes import Block, Rows, block_of
from featx.images import Stamp, batches, content_digest, is_remote, stamp
from featx.store import Recipe

TRIAL_BATCHES = 3  # shorter runs would gain nothing


@dataclass(frozen=True)
class Trial:
    """Rows of the first batches, and what they took.

    blocks : the first blocks of the run, computed by the chosen recipe
    image_seconds : estimated seconds per image
    """

    blocks: list[Block]
    image_seconds: float
    _stamps: dict[int, Stamp | None]

    @property
    def seconds(self) -> float:
        """The time that the run saves by not computing these blocks again."""
        return self.image_seconds * sum(block.stop - block.start for block in self.blocks)

    def still(self, images: Sequence[Any]) -> Iterator[Block]:
        """The blocks whose images have not changed since."""
        for block in self.blocks:
            if all(self._is_same(block, i, images[i]) for i in range(block.start, block.stop)):
                yield block

    def _is_same(self, block: Block, i: int, image: Any) -> bool:
        if stamp(image) != self._stamps[i]:
            return False
        if i not in block.digests or is_remote(image):  # what was read of a remote image is what was listed
            return True
        try:
            return content_digest(image) == block.digests[i]
        except ImageError:
            return False


def try_out(
    images: Sequence[Any],
    recipe: Recipe,
    network: TappedNetwork,
    backbone: Backbone,
    *,
    precision: str,
    engine: str,
    workers: int,
    on_phase: Callable[[str], None],
) -> tuple[Recipe, Trial | None]:
    """Choose precision and engine.

    Parameters
    ----------
    images : n paths, uint8 arrays or PIL images
    recipe : Recipe, with the precision and engine of `network`
    network : eager, in float32 or in the precision that the user chose
    backbone : the one of the network
    precision, engine : as in `choose`
    workers : threads that decode
    on_phase : called at each new step

    Returns
    -------
    recipe : with the chosen precision and engine
    trial : None if none of the first images can be read, or a batch does not fit the device's memory
    """
    device = torch.device(recipe.device)
    prepare, size = backbone.preprocessing.for_views(recipe.views)
    first = _FirstBatches(images, prepare, size, recipe.batch_size, workers, device)
    if not first.batches:
        return recipe, None
    try:
        choice = choose(
            network,
            first,
            -(-len(images) // recipe.batch_size),
            precision=precision,
            engine=engine,
            on_phase=on_phase,
        )
    except torch.OutOfMemoryError:  # the run itself makes smaller passes
        return recipe, None
    recipe = replace(recipe, engine=choice.engine, precision=choice.precision, precision_error=choice.error)
    keep(recipe, recipe.device, backbone, choice.network)
    return recipe, first.trial(choice)


class _FirstBatches:
    """The first two batches of a run that have an image, the fuller one first; the second is decoded on demand.

    Called with a number, 0 or 1, it returns (pixels on the device, slots that have an image).
    """

    def __init__(
        self,
        images: Sequence[Any],
        prepare: Callable[[Image.Image], np.ndarray],
        size: tuple[int, ...],
        batch_size: int,
        workers: int,
        device: torch.device,
    ) -> None:
        self._n, self._device = len(images), device
        first = images[: 2 * batch_size]
        self._stamps = {i: stamp(image) for i, image in enumerate(first)}
        start = time.perf_counter()
        self._decoded = batches(first, prepare, size, batch_size, workers, taking_turns=True, statistics=True)
        self.batches = [next(self._decoded)]
        self._decode_seconds = time.perf_counter() - start
        if 2 * len(self.batches[0].digests) < batch_size:
            self._fetch()
            self.batches.sort(key=lambda batch: -len(batch.digests))
        self.batches = [batch for batch in self.batches if batch.digests]

    def _fetch(self) -> None:
        self.batches += [batch for batch in self._decoded if batch.digests]

    def __call__(self, number: int) -> tuple[torch.Tensor, list[int]]:
        if number == len(self.batches):
            self._fetch()
        batch = self.batches[min(number, len(self.batches) - 1)]
        return torch.from_numpy(batch.pixels).to(self._device), sorted(batch.digests)

    def trial(self, choice: Choice) -> Trial:
        size = len(self.batches[0].pixels)
        blocks = [  # there may be no second batch, or no rows of it
            block_of(batch, Rows(rows, None, size), self._n)
            for batch, rows in zip(self.batches, choice.rows, strict=False)
        ]
        self._decoded.close()
        return Trial(blocks, (self._decode_seconds + choice.batch_seconds) / size, self._stamps)
