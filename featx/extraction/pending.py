"""What is still to do of a run, and the blocks of rows that come of it, in; rows of the writer's file out.

Beneath `extraction`: an old store's rows and the new ones meet here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from featx.extraction.existing import Old
from featx.forward import Block
from featx.images import changed
from featx.progress import Clock
from featx.store import Recipe, StoreWriter


@dataclass(frozen=True)
class Part:
    """Images that go through the same layers: all of them, or those that an old store lacks.

    todo : (n,) bool
    """

    writer: StoreWriter
    recipe: Recipe
    todo: np.ndarray
    old: Old | None

    def write_all(self, blocks: Iterable[Block], clock: Clock) -> None:
        """Write blocks while the next ones are computed; of the first one the user is told at once."""
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
            halved = block.pass_rows if block.pass_rows < self.recipe.batch_size else None
            self.writer.write(indices, rows, digests.reshape(-1, 16), halved, block.in_file)
        self.writer.fail(failures)


def parts(writer: StoreWriter, old: Old | None) -> Iterator[Part]:
    """What is still to do: images without rows through all layers, then the others through the layers that are new."""
    fresh = writer.todo.copy() if old is None else writer.todo & ~old.has
    if fresh.any():
        yield Part(writer, writer.recipe, fresh, None)
    if old is not None and writer.todo.any():
        yield Part(writer, writer.recipe.some(old.new_layers), writer.todo.copy(), old)
