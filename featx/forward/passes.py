"""Batches of pixels through a network: rows, and blocks of them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from featx.backbones import TappedNetwork
from featx.errors import FeatxError, ImageError, Parameter
from featx.images import Batch
from featx.solvers import threads_for


@dataclass(frozen=True)
class Block:
    """The result of some consecutive images.

    start, stop : their positions
    indices : (m,) positions of the images that have rows, ascending
    rows : {layer: (m, ...) float32}
    digests : {position: content digest} of the images that have rows
    failures : {position: ImageError} of the others
    pass_rows : images per forward pass; fewer than the recipe's batch if a GPU's memory was too small
    statistics : {position: bytes of a record of IMAGE_STATISTICS} of the images that have rows, if they are kept
    in_file : layers whose rows are not in `rows`, since the process that computed them wrote them to the file
    """

    start: int
    stop: int
    indices: np.ndarray
    rows: dict[str, np.ndarray]
    digests: dict[int, bytes]
    failures: dict[int, ImageError]
    pass_rows: int
    statistics: dict[int, bytes] = field(default_factory=dict)
    in_file: tuple[str, ...] = ()


class Rows(NamedTuple):
    """Rows of a batch, which may still be on their way from the device.

    values : {tap name: (b, ...)}
    arrived : None, or a CUDA event that is recorded after the copies
    pass_rows : images per forward pass
    """

    values: dict[str, torch.Tensor]
    arrived: Any
    pass_rows: int


class Passes:
    """Runs batches through the network: in one pass each, or in halves, quarters ... if a GPU's memory is too small.

    rows : images per pass
    few : whether there are so few images that one CPU thread is enough
    """

    def __init__(self, network: TappedNetwork, rows: int, on_gpu: bool, few: bool) -> None:
        self._network, self._rows, self._on_gpu, self._few = network, rows, on_gpu, few

    def start(self, batch: Batch) -> Rows:
        """Run a batch and begin to copy its rows back; does not wait for a GPU.

        Raises
        ------
        FeatxError
            The GPU's memory is too small for one image.
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
                    raise FeatxError(
                        "the GPU's memory does not hold one image's forward pass; use ", Parameter("device", "cpu")
                    ) from error
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
    """The block of a batch, in a run of n images; waits for its rows."""
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
        statistics={batch.start + slot: batch.statistics[slot] for slot in batch.digests if slot in batch.statistics},
    )


def pinned(shape: tuple[int, ...]) -> np.ndarray:
    """Page-locked memory, which a GPU copies from while the next batch is decoded."""
    return torch.zeros(shape, dtype=torch.uint8, pin_memory=True).numpy()
