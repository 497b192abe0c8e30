"""A recipe in, its network out, built once; batches in, blocks of their rows out.

Beneath `forward`, which joins it to images.
"""

from __future__ import annotations

import contextlib
import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from featx.backbones import Backbone, Preprocessing, Tap, TappedNetwork, recall
from featx.errors import FeatxError, ImageError
from featx.images import Batch
from featx.solvers import threads_for
from featx.store import Recipe


@dataclass(frozen=True)
class Block:
    """What became of some consecutive images.

    start, stop : their positions
    indices : (m,) increasing positions of those that have rows
    rows : {layer: (m, ...) float32}
    digests : {position: content digest} of the same
    failures : {position: ImageError} of the others
    pass_rows : images a forward pass; fewer than the recipe's batch where a GPU's memory did not suffice
    in_file : layers whose rows are not among `rows`: who computed them wrote them to their places
    """

    start: int
    stop: int
    indices: np.ndarray
    rows: dict[str, np.ndarray]
    digests: dict[int, bytes]
    failures: dict[int, ImageError]
    pass_rows: int
    in_file: tuple[str, ...] = ()


class Rows(NamedTuple):
    """{tap name: (b, ...)} on its way from the device, and how many images a pass computed it.

    arrived : None, or a CUDA event that is recorded behind the copies
    """

    values: dict[str, torch.Tensor]
    arrived: Any
    pass_rows: int


class Passes:
    """Batches through the network: in one pass each; in halves, quarters ... where a GPU's memory does not suffice.

    rows : images a pass
    few : whether there are so few images that one thread of the CPU is enough
    """

    def __init__(self, network: TappedNetwork, rows: int, on_gpu: bool, few: bool) -> None:
        self._network, self._rows, self._on_gpu, self._few = network, rows, on_gpu, few

    def start(self, batch: Batch) -> Rows:
        """Send a batch to the device, and its rows back; on a GPU this does not wait for them.

        Raises
        ------
        FeatxError
            Not even one image fits.
        """
        if not batch.digests:
            return Rows({}, None, self._rows)
        pixels = torch.from_numpy(batch.pixels)
        while True:
            try:
                with threads_for(0) if self._few else contextlib.nullcontext():
                    values = self._computed(pixels)
                break
            except torch.OutOfMemoryError as error:
                if self._rows == 1:
                    raise FeatxError("the GPU's memory does not hold one image's forward pass; device='cpu'") from error
                self._rows = -(-self._rows // 2)
                torch.cuda.empty_cache()
        if not self._on_gpu:
            return Rows(values, None, self._rows)
        arrived = torch.cuda.Event()
        arrived.record()
        return Rows(values, arrived, self._rows)

    def _computed(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The rows of all images, on the CPU; from a GPU each pass's are copied at once, so that it holds no others."""
        if not self._on_gpu:
            return self._network(pixels)
        host: dict[str, torch.Tensor] = {}
        for start in range(0, len(pixels), self._rows):
            for name, rows in self._network(pixels[start : start + self._rows]).items():
                if name not in host:
                    host[name] = torch.empty((len(pixels), *rows.shape[1:]), dtype=rows.dtype, pin_memory=True)
                host[name][start : start + len(rows)].copy_(rows, non_blocking=True)
        return host


def block_of(batch: Batch, rows: Rows, n: int) -> Block:
    """A batch of a run of n images, with its rows."""
    if rows.arrived is not None:
        rows.arrived.synchronize()
    slots = np.array(sorted(batch.digests), dtype=np.int64)
    return Block(
        start=batch.start,
        stop=min(batch.start + len(batch.pixels), n),
        indices=batch.start + slots,
        rows={name: values.numpy()[slots] for name, values in rows.values.items()},
        digests={batch.start + slot: digest for slot, digest in batch.digests.items()},
        failures={batch.start + slot: error for slot, error in sorted(batch.failures.items())},
        pass_rows=rows.pass_rows,
    )


def pinned(shape: tuple[int, ...]) -> np.ndarray:
    """Memory that a GPU copies from by itself, while the next batch is decoded."""
    return torch.zeros(shape, dtype=torch.uint8, pin_memory=True).numpy()


_networks: OrderedDict[str, tuple[Backbone, TappedNetwork]] = OrderedDict()
_MOST_NETWORKS = 2


def _key(recipe: Recipe, device: str) -> str:
    decides = [recipe.backbone, recipe.weights_sha256, recipe.preprocessing, recipe.taps, recipe.engine]
    return json.dumps([*decides, recipe.precision, recipe.batch_size, recipe.threads, device])


def keep(recipe: Recipe, device: str, backbone: Backbone, network: TappedNetwork) -> None:
    """Remember a recipe's network; the last few are."""
    _networks[_key(recipe, device)] = backbone, network
    while len(_networks) > _MOST_NETWORKS:
        _networks.popitem(last=False)


def forget() -> None:
    _networks.clear()


def network_of(recipe: Recipe, place: torch.device) -> TappedNetwork:
    """Built once for a run, and for the calls that follow each other in a session of predictions.

    From the very backbone that is recalled: two modules of a class with the same weights may compute different things.
    """
    preprocessing = Preprocessing.from_dict(recipe.preprocessing)
    with threads_for(0):  # small work, as in `settle`
        backbone = recall(
            recipe.backbone,
            recipe.weights,
            recipe.weights_sha256,
            preprocessing,
            weights_file_sha256=recipe.weights_file_sha256,
        )
        key = _key(recipe, place.type)
        if key not in _networks or _networks[key][0] is not backbone:
            taps = [Tap.from_dict(tap) for tap in recipe.taps.values()]
            network = TappedNetwork(backbone, taps, place, recipe.precision, recipe.engine, preprocessing)
            keep(recipe, place.type, backbone, network)
    _networks.move_to_end(key)
    return _networks[key][1]
