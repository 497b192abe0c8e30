"""Decodes images to ordered batches of uint8 pixels, in threads that run at most two batches ahead.

If the forward pass needs the same cores, decoding and forward passes take turns, which makes a run about 10 % faster
than both at once. Meanwhile the system reads the files of the next batches; remote images are fetched at all times, by
more threads than decode.

Slot i of a batch is always image `start + i`: an image that cannot be read leaves its slot empty and an entry in
`failures`, so neither failures nor the number of threads change the rest of a batch.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from featx.errors import ImageError
from featx.images.decoding import AnyImage, decode, decode_and_describe, stamp
from featx.images.limits import MAX_FILE_BYTES, bounded
from featx.images.members import Fetched, Member, Stamp, is_remote
from featx.images.remote import RemoteImages
from featx.urls import REQUESTS

_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """b slots, each for one image of a run or empty.

    pixels : (b, h, w, 3) uint8, or (b, v, h, w, 3); empty slots are zero, and their rows must not be used
    start : position in the run of the first slot's image
    digests : {slot: 16 bytes}, the content digest of each image that was read
    failures : {slot: ImageError}
    statistics : {slot: bytes of a record of IMAGE_STATISTICS} of each image that was read, if they were requested
    """

    start: int
    pixels: np.ndarray
    digests: dict[int, bytes]
    failures: dict[int, ImageError]
    statistics: dict[int, bytes] = field(default_factory=dict)


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape, np.uint8)


def batches(
    images: Sequence[AnyImage],
    prepare: Callable[[Image.Image], np.ndarray],
    size: tuple[int, ...],
    batch_size: int,
    workers: int,
    starts: Iterable[int] | None = None,
    *,
    taking_turns: bool = False,
    statistics: bool = False,
    allocate: Callable[[tuple[int, ...]], np.ndarray] = _zeros,
) -> Generator[Batch, None, None]:
    """Decode and prepare images in order. A file that changes after the first call is a failure.

    Parameters
    ----------
    images : n images, as `decode` takes them
    prepare : RGB picture -> (h, w, 3) uint8, or (v, h, w, 3)
    size : (h, w) or (v, h, w), what `prepare` returns
    batch_size : slots per batch; the last batch is padded with empty slots
    workers : decoding threads; remote images are fetched by 32 threads, or more if `workers` is larger
    starts : increasing multiples of `batch_size`, the first image of each batch to compute; by default all
    taking_turns : decode only while the caller waits for a batch
    statistics : compute the statistics of each image, too
    allocate : shape -> uint8 zeros, the memory of a batch
    """
    starts = list(range(0, len(images), batch_size) if starts is None else starts)
    stamps: dict[int, list[Stamp | None]] = {}
    if not isinstance(images, RemoteImages):  # which refuse a change by themselves
        stamps = {start: [stamp(image) for image in images[start : start + batch_size]] for start in starts}
    readers = max(workers, REQUESTS) if any(map(is_remote, images)) else workers
    decoding = threading.Semaphore(workers)
    gate = threading.Event()  # set: threads may decode
    if not taking_turns:
        gate.set()
    with (
        ThreadPoolExecutor(readers, thread_name_prefix="featx-decode") as pool,
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
                batch_images = images[start : start + batch_size]
                if taking_turns:
                    reader.submit(_read_ahead, batch_images)
                expected = stamps.get(start) or [None] * len(batch_images)
                work = [
                    pool.submit(_fill, gate, decoding, batch, slot, *each, prepare, statistics)
                    for slot, each in enumerate(zip(batch_images, expected, strict=True))
                ]
                ahead.append((batch, work))
                if len(ahead) > _BATCHES_AHEAD:
                    yield finished()
            while ahead:
                yield finished()
        finally:  # also if the caller stops early: Ctrl-C must not wait for queued work
            pool.shutdown(wait=False, cancel_futures=True)
            reader.shutdown(wait=False, cancel_futures=True)
            gate.set()


def _read_ahead(images: Sequence[AnyImage]) -> None:
    """Ask the system to read files that will be needed soon, while the cores compute."""
    if not hasattr(os, "posix_fadvise"):
        return
    for image in images:
        if isinstance(image, str | os.PathLike) and not isinstance(image, Member):
            with contextlib.suppress(OSError, ValueError):  # decoding reports the error
                file = os.open(image, os.O_RDONLY | os.O_NONBLOCK)
                try:
                    if os.fstat(file).st_size <= MAX_FILE_BYTES:
                        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(file)


def _fill(
    gate: threading.Event,
    decoding: threading.Semaphore,
    batch: Batch,
    slot: int,
    image: AnyImage,
    expected: Stamp | None,
    prepare: Callable[[Image.Image], np.ndarray],
    statistics: bool,
) -> None:
    try:
        if isinstance(image, Member) and is_remote(image):
            with bounded():
                image = Fetched(image, image.read())
        gate.wait()
        with decoding, bounded():
            if statistics:
                picture, digest, batch.statistics[slot] = decode_and_describe(image, expected)
            else:
                picture, digest = decode(image, expected)
            batch.pixels[slot] = prepare(picture)
        batch.digests[slot] = digest
    except ImageError as error:
        batch.failures[slot] = error
