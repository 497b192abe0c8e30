"""Images in, ordered batches of uint8 pixels out; decoding threads run a bounded distance ahead.

Slot i of a batch is image `start + i`, always: an image that cannot be read leaves its slot empty and an entry
in `failures`, so neither a failure nor the number of threads changes what else is in a batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from featx.errors import ImageError
from featx.images.decoding import AnyImage, Stamp, decode, stamp

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


def batches(
    images: Sequence[AnyImage],
    prepare: Callable[[Image.Image], np.ndarray],
    size: tuple[int, int],
    batch_size: int,
    workers: int,
    starts: Iterable[int] | None = None,
) -> Iterator[Batch]:
    """Decode and prepare images in order. A file that changes after this has begun is a failure.

    Parameters
    ----------
    images : n images, as `decode` takes them
    prepare : RGB picture -> (h, w, 3) uint8
    size : (h, w), what `prepare` returns
    batch_size : slots a batch; the last one is padded with empty slots
    workers : decoding threads
    starts : multiples of `batch_size`, increasing: the batches that are wanted, by default all
    """
    starts = list(range(0, len(images), batch_size) if starts is None else starts)
    stamps = {start: [stamp(image) for image in images[start : start + batch_size]] for start in starts}
    with ThreadPoolExecutor(workers, thread_name_prefix="featx-decode") as pool:
        ahead: deque[tuple[Batch, list[Future[None]]]] = deque()
        try:
            for start in starts:
                batch = Batch(start, np.zeros((batch_size, *size, 3), np.uint8), {}, {})
                chosen = zip(images[start : start + batch_size], stamps[start], strict=True)
                ahead.append((batch, [pool.submit(_fill, batch, i, *each, prepare) for i, each in enumerate(chosen)]))
                if len(ahead) > _BATCHES_AHEAD:
                    yield _finished(*ahead.popleft())
            while ahead:
                yield _finished(*ahead.popleft())
        finally:  # also when the caller stops early: Ctrl-C must not wait for what is queued
            pool.shutdown(wait=False, cancel_futures=True)


def _fill(
    batch: Batch,
    slot: int,
    image: AnyImage,
    expected: Stamp | None,
    prepare: Callable[[Image.Image], np.ndarray],
) -> None:
    try:
        picture, digest = decode(image, expected)
        batch.pixels[slot] = prepare(picture)
        batch.digests[slot] = digest
    except ImageError as error:
        batch.failures[slot] = error


def _finished(batch: Batch, work: list[Future[None]]) -> Batch:
    for future in work:
        future.result()
    return batch
