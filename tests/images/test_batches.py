"""Slot i of a batch is image start + i, whatever other images fail and however many threads decode."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from helpers import noise, save_noise
from PIL import Image

from featx.errors import ImageError
from featx.images import batches, content_digest

SIZE = (24, 32)
BAD = np.zeros((3, 3), np.float32)


def prepare(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture)


def slow_and_uneven(picture: Image.Image) -> np.ndarray:
    """The first images of a batch finish last."""
    array = np.asarray(picture)
    time.sleep(int(array[0, 0, 0]) % 7 / 1000)
    return array


def collected(images, batch_size=4, workers=2, prepare=prepare):
    return list(batches(images, prepare, SIZE, batch_size, workers))


@pytest.mark.parametrize("n, batch_size", [(1, 4), (3, 4), (4, 4), (5, 4), (30, 4), (7, 1)])
def test_every_image_is_in_its_own_slot(n, batch_size):
    images = [noise(i) for i in range(n)]
    found = collected(images, batch_size, workers=4, prepare=slow_and_uneven)
    assert [batch.start for batch in found] == list(range(0, n, batch_size))
    for batch in found:
        expected = images[batch.start : batch.start + batch_size]
        assert sorted(batch.digests) == list(range(len(expected))) and not batch.failures
        for slot, image in enumerate(expected):
            assert np.array_equal(batch.pixels[slot], image)
            assert batch.digests[slot] == content_digest(image)


def test_the_last_batch_is_padded_with_empty_slots():
    *_, last = collected([noise(i) for i in range(5)], batch_size=4)
    assert last.pixels.shape == (4, *SIZE, 3) and last.pixels.dtype == np.uint8
    assert sorted(last.digests) == [0] and not last.pixels[1:].any()


def test_a_failure_empties_its_slot_and_moves_no_other(tmp_path):
    images = [noise(i) for i in range(9)]
    whole = collected(images)
    images[1], images[6], images[8] = BAD, tmp_path / "none.png", BAD
    found = collected(images)
    failed = {batch.start + slot: error.code for batch in found for slot, error in batch.failures.items()}
    assert failed == {1: "pixel-type", 6: "missing", 8: "pixel-type"}
    for batch, intact in zip(found, whole, strict=True):
        for slot in range(4):
            if batch.start + slot in failed:
                assert slot not in batch.digests and not batch.pixels[slot].any()
            else:
                assert np.array_equal(batch.pixels[slot], intact.pixels[slot])
                assert batch.digests.get(slot) == intact.digests.get(slot)


def test_all_may_fail():
    (batch,) = collected([BAD] * 3)
    assert sorted(batch.failures) == [0, 1, 2] and not batch.digests and not batch.pixels.any()


def test_the_number_of_threads_changes_nothing():
    images = [noise(i) if i % 5 else BAD for i in range(23)]
    one, many = collected(images, workers=1), collected(images, workers=8, prepare=slow_and_uneven)
    for some, others in zip(one, many, strict=True):
        assert np.array_equal(some.pixels, others.pixels)
        assert some.digests == others.digests and some.failures.keys() == others.failures.keys()


def test_an_image_error_in_preparation_fails_that_image():
    def picky(picture):
        raise ImageError("too-large", "too large to prepare")

    (batch,) = collected([noise(0)], prepare=picky)
    assert batch.failures[0].code == "too-large" and not batch.digests


def test_too_little_memory_for_one_image_fails_that_image_alone():
    def greedy(picture):
        if picture.size == (64, 48):
            raise MemoryError
        return prepare(picture)

    (batch,) = collected([noise(0), noise(1, 48, 64), noise(2)], prepare=greedy)
    assert {*batch.digests} == {0, 2} and batch.failures[1].code == "too-large"
    assert "memory" in str(batch.failures[1]) and not batch.pixels[1].any()


def test_any_other_error_is_not_taken_for_a_bad_image():
    def broken(picture):
        raise RuntimeError("a fault of the program, or of the machine")

    with pytest.raises(RuntimeError):
        collected([noise(i) for i in range(9)], prepare=broken)


def test_files_that_change_or_vanish_during_the_run_are_failures(tmp_path):
    paths = [save_noise(tmp_path / f"{i:02}.png", seed=i) for i in range(40)]
    found = batches(paths, prepare, SIZE, 4, 2)
    first = next(found)
    save_noise(paths[30], seed=99)
    paths[33].unlink()
    failed, digests = {}, {}
    for batch in [first, *found]:
        failed |= {batch.start + slot: error.code for slot, error in batch.failures.items()}
        digests |= {batch.start + slot: digest for slot, digest in batch.digests.items()}
    assert failed == {30: "changed", 33: "missing"}
    assert digests == {i: content_digest(path) for i, path in enumerate(paths) if i not in failed}


def test_only_the_requested_batches_are_read(tmp_path):
    images = [noise(i) if i // 4 in (1, 5) else tmp_path / "never" for i in range(22)]
    found = list(batches(images, prepare, SIZE, 4, 2, starts=[4, 20]))
    assert [batch.start for batch in found] == [4, 20] and not any(batch.failures for batch in found)
    for batch in found:
        for slot, digest in batch.digests.items():
            assert digest == content_digest(images[batch.start + slot])
            assert np.array_equal(batch.pixels[slot], images[batch.start + slot])
    assert [len(batch.digests) for batch in found] == [4, 2]


def test_decoding_stays_a_bounded_distance_ahead_and_stops_with_its_caller():
    seen, lock = [], threading.Lock()

    def counting(picture):
        with lock:
            seen.append(1)
        return np.asarray(picture)

    threads = threading.active_count()
    stream = batches([noise(0)] * 200, counting, SIZE, 4, 2)
    next(stream)
    time.sleep(0.1)
    assert len(seen) <= 5 * 4
    stream.close()
    assert threading.active_count() == threads
    count = len(seen)
    time.sleep(0.05)
    assert len(seen) == count


def test_taking_turns_nothing_is_decoded_while_a_batch_is_worked_on():
    decoding = []

    def noted(picture: Image.Image) -> np.ndarray:
        decoding.append(time.monotonic())
        return np.asarray(picture)

    worked_on = []
    for _ in batches([noise(i) for i in range(24)], noted, SIZE, 4, 2, taking_turns=True):
        time.sleep(0.02)  # what was being decoded ends
        start = time.monotonic()
        time.sleep(0.03)
        worked_on.append((start, time.monotonic()))
    assert len(decoding) == 24
    assert not [at for at in decoding for start, stop in worked_on if start < at < stop]


def test_taking_turns_changes_no_pixel():
    images = [BAD if i % 7 == 3 else noise(i) for i in range(30)]
    for one, other in zip(collected(images), batches(images, prepare, SIZE, 4, 2, taking_turns=True), strict=True):
        assert np.array_equal(one.pixels, other.pixels) and one.digests == other.digests
        assert one.failures.keys() == other.failures.keys()


def test_stopping_early_while_taking_turns_does_not_wait():
    before = threading.active_count()
    found = batches([noise(i) for i in range(400)], slow_and_uneven, SIZE, 4, 2, taking_turns=True)
    next(found)
    found.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_files_that_cannot_be_read_ahead_fail_as_usual(tmp_path):
    save_noise(tmp_path / "a.png", 0)
    images = [tmp_path / "a.png", tmp_path / "gone.png", tmp_path, "\0"]
    (batch,) = batches(images, prepare, SIZE, 4, 1, taking_turns=True)
    assert batch.digests.keys() == {0} and batch.failures.keys() == {1, 2, 3}
