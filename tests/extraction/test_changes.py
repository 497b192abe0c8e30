"""Images that change or vanish while a run is on: failures by name, and no row of one content with the digest of
another, whatever the run does with them.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers import class_folders, save_noise
from runs import extract, same_file

import featx
from featx.errors import UnreadableImagesWarning
from featx.extraction import executors
from featx.images import content_digest, decode

OPTIONS = {"layers": "first", "batch_size": 2, "precision": "float32"}


@pytest.fixture
def photos(tmp_path) -> Path:
    return class_folders(tmp_path / "photos", n=12)


@pytest.fixture
def when(monkeypatch):
    """`when(number, act)`: act once, before that block of the next run is handed on, or before it begins (-1)."""

    def armed(number, act):
        stream, left = executors.stream, [number]

        def blocks(*args, **options):
            if left == [-1]:  # before the pass begins
                left.clear()
                act()
            for block in stream(*args, **options):
                if left == [0]:
                    left.clear()
                    act()
                left[:] = [number - 1 for number in left]
                yield block

        monkeypatch.setattr(executors, "stream", blocks)

    return armed


def rows_of(path: Path, names: list[str], network: featx.Backbone, tmp_path: Path, **options) -> dict[str, np.ndarray]:
    """What a run over only these images gives."""
    store = extract([path / name for name in names], tmp_path / "alone.h5", network, ids=names, **options)
    return {layer: np.array(store[layer]) for layer in store.layers}


def test_an_image_that_changes_is_a_failure_and_the_others_have_their_rows(photos, small_network, when, tmp_path):
    when(0, lambda: save_noise(photos / "bee" / "bee_7.png", seed=999))
    with pytest.warns(UnreadableImagesWarning, match="1 of 24 .* 'bee/bee_7.png'"):
        store = extract(photos, tmp_path / "a.h5", small_network, **OPTIONS)
    (failure,) = store.failures
    assert (failure.id, failure.code) == ("bee/bee_7.png", "changed") and "while the run was on" in failure.reason
    assert len(store) == 23 and "bee/bee_7.png" not in store.ids
    alone = rows_of(photos, store.ids.tolist(), small_network, tmp_path, **OPTIONS)
    np.testing.assert_allclose(store["first"], alone["first:avg"], rtol=1e-5, atol=1e-6)


def test_an_image_that_vanishes_is_missing(photos, small_network, when, tmp_path):
    when(0, (photos / "bee" / "bee_7.png").unlink)
    with pytest.warns(UnreadableImagesWarning):
        store = extract(photos, tmp_path / "a.h5", small_network, **OPTIONS)
    (failure,) = store.failures
    assert (failure.id, failure.code) == ("bee/bee_7.png", "missing") and "vanished" in failure.reason


def test_an_image_that_had_changed_is_computed_by_the_next_run(photos, small_network, when, tmp_path):
    when(0, lambda: save_noise(photos / "bee" / "bee_7.png", seed=999))
    with pytest.warns(UnreadableImagesWarning):
        extract(photos, tmp_path / "a.h5", small_network, **OPTIONS)
    store = extract(photos, tmp_path / "a.h5", small_network, **OPTIONS)
    assert not store.failures and same_file(store, extract(photos, tmp_path / "b.h5", small_network, **OPTIONS))


@pytest.mark.parametrize(
    "number, act", [(-1, "change"), (3, "change"), (-1, "spoil"), (0, "spoil"), (-1, "unlink"), (3, "unlink")]
)
def test_while_layers_are_added_old_rows_are_not_joined_to_another_picture(
    photos, small_network, when, tmp_path, number, act
):
    extract(photos, tmp_path / "a.h5", small_network, **OPTIONS)
    victim = photos / "bee" / "bee_11.png"
    acts = {
        "change": lambda: save_noise(victim, seed=999),
        "spoil": lambda: victim.write_text("no picture"),
        "unlink": victim.unlink,
    }
    when(number, acts[act])
    more = OPTIONS | {"layers": ["first", "second"]}
    with pytest.warns(UnreadableImagesWarning, match="1 of 24 .*'bee/bee_11.png'"):
        store = extract(photos, tmp_path / "a.h5", small_network, **more)
    code = "missing" if act == "unlink" else "not-an-image" if act == "spoil" and number == -1 else "changed"
    assert [(failure.id, failure.code) for failure in store.failures] == [("bee/bee_11.png", code)]
    alone = rows_of(photos, store.ids.tolist(), small_network, tmp_path, **more)
    for layer, rows in alone.items():
        np.testing.assert_allclose(store[layer], rows, rtol=1e-5, atol=1e-6)
    assert [digest.tobytes() for digest in store.digests] == [content_digest(photos / name) for name in store.ids]


def test_while_images_are_added_an_old_one_that_changes_keeps_its_old_row_and_digest(
    photos, small_network, when, tmp_path
):
    store = extract(photos, tmp_path / "a.h5", small_network, **OPTIONS)
    old = dict(zip(store.ids.tolist(), zip(store["first"].tolist(), store.digests.tolist(), strict=True), strict=True))
    save_noise(photos / "ant" / "new.png", seed=50)
    when(-1, lambda: save_noise(photos / "bee" / "bee_11.png", seed=999))
    grown = extract(photos, tmp_path / "a.h5", small_network, **OPTIONS)
    now = dict(zip(grown.ids.tolist(), zip(grown["first"].tolist(), grown.digests.tolist(), strict=True), strict=True))
    assert len(grown) == 25 and old.items() <= now.items()


@pytest.mark.filterwarnings("ignore::featx.errors.UnreadableImagesWarning")
def test_rows_and_digests_agree_while_another_program_keeps_writing_the_images(tmp_path):
    paths = [save_noise(tmp_path / f"{i}.png", seed=i) for i in range(40)]
    contents = {}
    for i, path in enumerate(paths):
        contents[path] = [path.read_bytes(), save_noise(tmp_path / "new.png", seed=1000 + i).read_bytes()]
    stop = threading.Event()

    def scribble():
        rng = np.random.default_rng(0)
        while not stop.is_set():
            path = paths[rng.integers(30)]  # ten images can always be read
            content = contents[path][rng.integers(2)]
            if rng.integers(2):
                path.write_bytes(content)  # seen half-written
            else:
                (tmp_path / "aside").write_bytes(content)
                os.replace(tmp_path / "aside", path)

    row_of = {}
    for both in contents.values():
        for content in both:
            (tmp_path / "one.png").write_bytes(content)
            picture, digest = decode(tmp_path / "one.png")
            small = np.asarray(picture.resize((32, 32), 3), np.float32)
            row_of[digest] = small.transpose(2, 0, 1).ravel() / 255
    writing = threading.Thread(target=scribble)
    writing.start()
    seen = failed = 0
    try:
        for number in range(6):
            store = extract(paths, tmp_path / f"{number}.h5", batch_size=4)
            assert len(store) + len(store.failures) == 40
            failed += len(store.failures)
            for row, digest in zip(store["penultimate"], store.digests, strict=True):
                np.testing.assert_allclose(row, row_of[digest.tobytes()], atol=1e-6)
                seen += 1
    finally:
        stop.set()
        writing.join()
    assert seen and failed
