"""The first batches of a run in; how its network is best run, and the rows that this took, out.

What is computed to decide is not computed again: batches are those of the run, slot for slot, and the rows of the way
that was chosen are the run's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from featx.backbones import Backbone, Choice, Preprocessing, TappedNetwork, choose
from featx.errors import ImageError
from featx.forward.cache import keep
from featx.forward.passes import Block, Rows, block_of
from featx.images import Stamp, batches, content_digest, stamp
from featx.store import Recipe

TRIAL_BATCHES = 3  # of shorter runs there is nothing to be gained


@dataclass(frozen=True)
class Trial:
    """What was computed to decide how a network is run.

    blocks : the first blocks of the run, by the recipe that was chosen
    image_seconds : an estimate of the time that an image takes
    """

    blocks: list[Block]
    image_seconds: float
    _stamps: dict[int, Stamp | None]

    @property
    def seconds(self) -> float:
        """What the run is spared."""
        return self.image_seconds * sum(block.stop - block.start for block in self.blocks)

    def still(self, images: Sequence[Any]) -> Iterator[Block]:
        """The blocks whose images are what they were then."""
        for block in self.blocks:
            if all(self._is_same(block, i, images[i]) for i in range(block.start, block.stop)):
                yield block

    def _is_same(self, block: Block, i: int, image: Any) -> bool:
        if stamp(image) != self._stamps[i]:
            return False
        if i not in block.digests:
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
    """Decide what a recipe leaves open.

    Parameters
    ----------
    images : n paths, uint8 arrays or PIL images
    recipe : Recipe, whose precision and engine are those of `network`
    network : eager, in float32 or in the precision that was asked for
    backbone : what the network was made of
    precision, engine : as `choose` has them
    workers : threads that decode
    on_phase : called with what is being done

    Returns
    -------
    recipe : with the precision and the engine that were chosen
    trial : None where none of the first images can be read, or the device's memory does not hold a batch
    """
    device = torch.device(recipe.device)
    found = _FirstBatches(images, backbone.preprocessing, recipe.batch_size, workers, device)
    if not found.batches:
        return recipe, None
    try:
        choice = choose(
            network,
            found,
            -(-len(images) // recipe.batch_size),
            precision=precision,
            engine=engine,
            on_phase=on_phase,
        )
    except torch.OutOfMemoryError:  # the run goes on with smaller passes
        return recipe, None
    recipe = replace(recipe, engine=choice.engine, precision=choice.precision, precision_error=choice.error)
    keep(recipe, recipe.device, backbone, choice.network)
    return recipe, found.trial(choice)


class _FirstBatches:
    """The first two batches of a run that hold an image, the fuller one first; the second is decoded when asked for.

    Called with a number, 0 or 1: (pixels on the device, slots that hold an image).
    """

    def __init__(
        self,
        images: Sequence[Any],
        preprocessing: Preprocessing,
        batch_size: int,
        workers: int,
        device: torch.device,
    ) -> None:
        self._n, self._device = len(images), device
        first = images[: 2 * batch_size]
        self._stamps = {i: stamp(image) for i, image in enumerate(first)}
        start = time.perf_counter()
        self._found = batches(first, preprocessing, preprocessing.size, batch_size, workers, taking_turns=True)
        self.batches = [next(self._found)]
        self._decode_seconds = time.perf_counter() - start
        if 2 * len(self.batches[0].digests) < batch_size:
            self._fetch()
            self.batches.sort(key=lambda batch: -len(batch.digests))
        self.batches = [batch for batch in self.batches if batch.digests]

    def _fetch(self) -> None:
        self.batches += [batch for batch in self._found if batch.digests]

    def __call__(self, number: int) -> tuple[torch.Tensor, list[int]]:
        if number == len(self.batches):
            self._fetch()
        batch = self.batches[min(number, len(self.batches) - 1)]
        return torch.from_numpy(batch.pixels).to(self._device), sorted(batch.digests)

    def trial(self, choice: Choice) -> Trial:
        size = len(self.batches[0].pixels)
        blocks = [  # of the second batch there may be no rows, and no second batch
            block_of(batch, Rows(rows, None, size), self._n)
            for batch, rows in zip(self.batches, choice.rows, strict=False)
        ]
        self._found.close()
        return Trial(blocks, (self._decode_seconds + choice.batch_seconds) / size, self._stamps)
