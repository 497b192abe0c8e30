"""What is left to do of a run, and how its blocks of rows are written beside those of an existing store."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from featx.extraction.existing import ExistingStore
from featx.forward import Block
from featx.image_statistics import joined
from featx.images import changed
from featx.progress import Clock
from featx.store import Recipe, StoreWriter


@dataclass(frozen=True)
class Part:
    """Images that go through the same layers: all layers, or those that the existing store does not have.

    todo : (n,) bool, the images
    existing : the store that has their other layers
    """

    writer: StoreWriter
    recipe: Recipe
    todo: np.ndarray
    existing: ExistingStore | None

    def write_all(self, blocks: Iterable[Block], clock: Clock) -> None:
        """Write each block while the next ones are computed; progress is updated after the first one at once."""
        for block in itertools.islice(blocks := iter(blocks), 1):
            self.write(block)
            clock.tick(len(self.writer.failures))
        with ThreadPoolExecutor(1, thread_name_prefix="featx-write") as thread:
            writing: Future[None] | None = None
            for block in blocks:
                if writing is not None:
                    writing.result()
                    clock.tick(len(self.writer.failures))
                writing = thread.submit(self.write, block)
            if writing is not None:
                writing.result()
                clock.tick(len(self.writer.failures))

    def write(self, block: Block) -> None:
        """Write the rows and failures of the images to do; a batch may hold others."""
        failures = {i: error for i, error in block.failures.items() if self.todo[i]}
        indices = block.indices[self.todo[block.indices]]
        if self.existing is not None and len(indices):
            for i, digest in zip(indices.tolist(), self.existing.digests(indices), strict=True):
                if block.digests[i] != digest:
                    failures[i] = changed()
            indices = np.setdiff1d(indices, list(failures))
        if len(indices):
            are_written = np.isin(block.indices, indices)
            rows = {name: values[are_written] for name, values in block.rows.items()}
            if self.existing is not None:
                rows |= self.existing.take(indices)
            digests = np.frombuffer(b"".join(block.digests[i] for i in indices.tolist()), np.uint8)
            halved = block.pass_rows if block.pass_rows < self.recipe.batch_size else None
            statistics = joined(block.statistics, indices)
            self.writer.write(indices, rows, digests.reshape(-1, 16), halved, block.in_file, statistics)
        self.writer.fail(failures)


def pending(writer: StoreWriter, existing: ExistingStore | None) -> Iterator[Part]:
    """Images without rows go through all layers, then the others through the layers that are new."""
    fresh = writer.todo.copy() if existing is None else writer.todo & ~existing.has
    if fresh.any():
        yield Part(writer, writer.recipe, fresh, None)
    if existing is not None and writer.todo.any():
        yield Part(writer, writer.recipe.some(existing.new_layers), writer.todo.copy(), existing)
