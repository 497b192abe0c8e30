"""Images in, ordered batches of uint8 pixels out; decoding threads run a bounded distance ahead.

Where the forward pass needs the same cores, the two take turns: a run is about a tenth faster than with both at once.
Files of the next batches are meanwhile read by the system.

Slot i of a batch is image `start + i`, always: an image that cannot be read leaves its slot empty and an entry
in `failures`, so neither a failure nor the number of threads changes what else is in a batch.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from featx.errors import ImageError
from featx.images.decoding import AnyImage, Stamp, decode, stamp
from featx.images.limits import MAX_FILE_BYTES, bounded

_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """b slots of a run, of which `indices` hold an image.

    pixels : (b, h, w, 3) uint8; empty slots are zero, and their rows must not be used
    start : index of the first slot's image
    digests : {slot: 16 bytes}, the content digest of each image that was read
    failures : {slot: ImageError}
    """

    start: int
    pixels: np.ndarray
    digests: dict[int, bytes]
    failures: dict[int, ImageError]


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape, np.uint8)


def batches(
    images: Sequence[AnyImage],
    prepare: Callable[[Image.Image], np.ndarray],
    size: tuple[int, int],
    batch_size: int,
    workers: int,
    starts: Iterable[int] | None = None,
    *,
    taking_turns: bool = False,
    allocate: Callable[[tuple[int, ...]], np.ndarray] = _zeros,
) -> Generator[Batch, None, None]:
    """Decode and prepare images in order. A file that changes after this has begun is a failure.

    Parameters
    ----------
    images : n images, as `decode` takes them
    prepare : RGB picture -> (h, w, 3) uint8
    size : (h, w), what `prepare` returns
    batch_size : slots a batch; the last one is padded with empty slots
    workers : decoding threads
    starts : multiples of `batch_size`, increasing: the batches that are wanted, by default all
    taking_turns : decode only while a batch is waited for
    allocate : shape -> uint8 zeros, the memory of a batch
    """
    starts = list(range(0, len(images), batch_size) if starts is None else starts)
    stamps = {start: [stamp(image) for image in images[start : start + batch_size]] for start in starts}
    gate = threading.Event()  # open: decode
    if not taking_turns:
        gate.set()
    with (
        ThreadPoolExecutor(workers, thread_name_prefix="featx-decode") as pool,
        ThreadPoolExecutor(1, thread_name_prefix="featx-read-ahead") as reader,
    ):
        ahead: deque[tuple[Batch, list[Future[None]]]] = deque()

        def finished() -> Batch:
            batch, work = ahead.popleft()
            gate.set()
            for future in work:
                future.result()
            if taking_turns:
                gate.clear()
            return batch

        try:
            for start in starts:
                batch = Batch(start, allocate((batch_size, *size, 3)), {}, {})
                chosen = images[start : start + batch_size]
                if taking_turns:
                    reader.submit(_read_ahead, chosen)
                work = [
                    pool.submit(_fill, gate, batch, slot, *each, prepare)
                    for slot, each in enumerate(zip(chosen, stamps[start], strict=True))
                ]
                ahead.append((batch, work))
                if len(ahead) > _BATCHES_AHEAD:
                    yield finished()
            while ahead:
                yield finished()
        finally:  # also when the caller stops early: Ctrl-C must not wait for what is queued
            pool.shutdown(wait=False, cancel_futures=True)
            reader.shutdown(wait=False, cancel_futures=True)
            gate.set()


def _read_ahead(images: Sequence[AnyImage]) -> None:
    """Ask the system for files that will be wanted soon; it reads while the cores compute."""
    if not hasattr(os, "posix_fadvise"):
        return
    for image in images:
        if isinstance(image, str | os.PathLike):
            with contextlib.suppress(OSError, ValueError):  # whoever decodes it tells what is wrong with it
                file = os.open(image, os.O_RDONLY | os.O_NONBLOCK)
                try:
                    if os.fstat(file).st_size <= MAX_FILE_BYTES:
                        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(file)


def _fill(
    gate: threading.Event,
    batch: Batch,
    slot: int,
    image: AnyImage,
    expected: Stamp | None,
    prepare: Callable[[Image.Image], np.ndarray],
) -> None:
    gate.wait()
    try:
        with bounded():
            picture, digest = decode(image, expected)
            batch.pixels[slot] = prepare(picture)
        batch.digests[slot] = digest
    except ImageError as error:
        batch.failures[slot] = error
