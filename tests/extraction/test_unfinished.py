"""What a second extraction does after one that was broken off: it goes on, to the bytes of an unbroken run, or refuses
by name; never does it take for done what is not.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from helpers import left_in, noise, save_noise
from pretend_cuda import PretendCuda
from runs import extract, pictures, refused, same_file

import featx
from featx.backbones import Choice
from featx.errors import RecipeError, StoreError
from featx.extraction import executors
from featx.forward import trial
from featx.images import decoding

pytestmark = pytest.mark.filterwarnings("ignore::featx.errors.UnreadableImagesWarning")

N = 200  # images: three groups of 64 of which a journal tells, and 8
UNREADABLE = {3, *range(72, 80), 150, 199}  # alone, a whole batch, the last of all
NAMES = [f"bad {i}" if i in UNREADABLE else str(i) for i in range(N)]
LAYERS = ["first", "second:max"]
OPTIONS = {"batch_size": 8, "labels": [f"class {i % 7}" for i in range(N)]}
BEGUN = ["a.h5.journal", "a.h5.partial"]


@pytest.fixture
def again(run, tmp_path):
    """The run that is broken off; `again(dtype="float16")` is another."""
    return lambda names=NAMES, layers=LAYERS, **options: run(tmp_path / "a.h5", names, layers, **(OPTIONS | options))


@pytest.fixture(scope="module")
def unbroken(small_network, tmp_path_factory) -> featx.FeatureStore:
    path = tmp_path_factory.mktemp("unbroken") / "u.h5"
    options = OPTIONS | {"precision": "float32", "ids": NAMES, "layers": LAYERS}
    return extract(pictures(NAMES), path, small_network, **options)


@pytest.fixture
def begun(again, break_off, tmp_path) -> Path:
    """The output of a run of which 128 images are done for certain."""
    break_off(again, after=17)
    assert left_in(tmp_path) == BEGUN
    return tmp_path / "a.h5"


# The same run goes on


@pytest.mark.parametrize("after", [0, 7, 8, 9, 24])
def test_a_run_that_goes_on_ends_in_the_bytes_of_an_unbroken_one(again, break_off, streamed, unbroken, tmp_path, after):
    break_off(again, after)
    done = after * 8 // 64 * 64
    assert left_in(tmp_path) == (BEGUN if done else [])
    streamed.clear()
    assert same_file(again(), unbroken)
    assert streamed == [(("first:avg", "second:max"), list(range(done, N)))]  # what is done is not done again
    assert left_in(tmp_path) == ["a.h5"]


@pytest.mark.parametrize(
    "error, progress",
    [(KeyboardInterrupt(), True), (torch.OutOfMemoryError("no memory"), False), (SystemExit(1), False)],
)
def test_whatever_breaks_a_run_off_it_goes_on(again, break_off, unbroken, error, progress):
    break_off(lambda: again(progress=progress), 12, error)
    assert same_file(again(progress=progress), unbroken)


def test_a_run_may_be_broken_off_again_and_again(again, break_off, streamed, unbroken, tmp_path):
    for _ in range(3):
        break_off(again, after=8)  # a group further each time
        assert left_in(tmp_path) == BEGUN
    assert same_file(again(), unbroken)
    assert [len(todo) for _, todo in streamed] == [N, N - 64, N - 128, N - 192]


def test_a_run_that_is_complete_but_for_its_end_computes_nothing(again, break_off, never, monkeypatch, unbroken):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, pytest.raises(StoreError, match="No space left .* run it again to go on"):
        patched.setattr(os, "replace", full)
        again()
    never()
    assert same_file(again(), unbroken)


def test_what_was_left_to_auto_and_the_threads_stay_as_they_were(run, break_off, tmp_path):
    options = {"precision": "bfloat16", "batch_size": 8}
    whole = run(tmp_path / "u.h5", range(N), LAYERS, **options)
    break_off(lambda: run(tmp_path / "a.h5", range(N), LAYERS, **options), after=9)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        options = {"precision": "auto", "batch_size": "auto", "device": "auto"}
        assert same_file(run(tmp_path / "a.h5", range(N), LAYERS, **options), whole)
        assert torch.get_num_threads() == threads + 1  # the caller's are given back
    finally:
        torch.set_num_threads(threads)


def test_precision_is_not_decided_a_second_time(run, break_off, monkeypatch, tmp_path):
    with monkeypatch.context() as patched:
        patched.setattr(trial, "choose", lambda found, *_, **__: Choice(found.in_type("bfloat16"), 0.004, 1.0, []))
        options = {"batch_size": 8, "precision": "auto"}
        whole = run(tmp_path / "u.h5", range(N), LAYERS, **options)
        break_off(lambda: run(tmp_path / "a.h5", range(N), LAYERS, **options), after=9)
    monkeypatch.setattr(trial, "choose", lambda *_, **__: pytest.fail("decided again"))
    finished = run(tmp_path / "a.h5", range(N), LAYERS, **options)
    assert (finished.recipe.precision, finished.recipe.precision_error) == ("bfloat16", 0.004)
    assert same_file(finished, whole)


def test_workers_and_names_of_layers_may_be_others(again, begun, unbroken):
    assert same_file(again(layers=["first:avg", "second:max"], workers=5, progress=True), unbroken)


def test_files_of_class_folders_go_on_too(small_network, break_off, tmp_path):
    photos = tmp_path / "photos"
    for i in range(130):
        save_noise(photos / "ab"[i % 2] / f"{i:03}.png", seed=i)
    (photos / "a" / "000.png").write_text("no picture")
    options = {"layers": "first", "batch_size": 16, "precision": "float32"}
    whole = extract(photos, tmp_path / "u.h5", small_network, **options)
    break_off(lambda: extract(photos, tmp_path / "a.h5", small_network, **options), after=5)
    assert same_file(extract(photos, tmp_path / "a.h5", small_network, **options), whole)


@pytest.mark.parametrize("after", [12, 16])
def test_a_run_in_which_an_image_changed_goes_on_too(small_network, break_off, monkeypatch, after, tmp_path):
    """It is a failure of that run, as it would be of an unbroken one; the next run computes it."""
    paths = [save_noise(tmp_path / "photos" / f"{i:03}.png", seed=i) for i in range(130)]
    ids = [path.name for path in paths]
    options = {"layers": "first", "batch_size": 8, "precision": "float32", "ids": ids}
    stream, seeds = executors.stream, iter((1000, 1001))

    def changing(*args, **kwargs):
        for number, block in enumerate(stream(*args, **kwargs)):
            if number == 1:
                save_noise(paths[60], seed=next(seeds))
            yield block

    with monkeypatch.context() as patched:
        patched.setattr(executors, "stream", changing)
        whole = extract(paths, tmp_path / "u.h5", small_network, **options)
        break_off(lambda: extract(paths, tmp_path / "a.h5", small_network, **options), after)
    assert [(failure.id, failure.code) for failure in whole.failures] == [("060.png", "changed")]
    assert same_file(extract(paths, tmp_path / "a.h5", small_network, **options), whole)
    assert not extract(paths, tmp_path / "a.h5", small_network, **options).failures


def test_an_image_for_which_memory_did_not_suffice_then_is_computed_by_the_run_after_next(
    again, break_off, monkeypatch, unbroken
):
    wanted, to_rgb = decoding._open(pictures(["30"])[0])[0], decoding._to_rgb

    def short_of_memory(picture, content=None):
        if content == wanted:
            raise MemoryError
        return to_rgb(picture, content)

    with monkeypatch.context() as patched:
        patched.setattr(decoding, "_to_rgb", short_of_memory)
        break_off(again, after=17)
    assert [failure.code for failure in again().failures if failure.id == "30"] == ["too-large"]
    assert same_file(again(), unbroken)


def test_a_torn_last_line_of_the_journal_counts_as_not_written(again, begun, streamed, unbroken, tmp_path):
    journal = tmp_path / "a.h5.journal"
    journal.write_bytes(journal.read_bytes()[:-7])
    assert same_file(again(), unbroken)
    assert streamed[-1][1] == list(range(N))  # the only line of rows was torn


def test_rows_that_the_disk_has_lost_are_computed_again(again, begun, streamed, unbroken, tmp_path):
    with open(tmp_path / "a.h5.partial", "r+b") as file:
        file.seek(8192 + 100 * 32)  # a row of "first:avg" in the second group
        file.write(bytes(32))
    assert same_file(again(), unbroken)
    assert streamed[-1][1] == list(range(64, N))


def test_a_journal_that_a_kill_left_beside_a_finished_store_is_removed(again, begun, never, tmp_path):
    shutil.copy(tmp_path / "a.h5.journal", tmp_path / "kept")
    store = again()
    os.rename(tmp_path / "kept", tmp_path / "a.h5.journal")
    never()
    assert again().identity == store.identity and left_in(tmp_path) == ["a.h5"]


# Another run is refused


@pytest.mark.parametrize(
    "names, words",
    [
        ([*NAMES, "200", "201"], ["images that are new: '200', '201'"]),
        (NAMES[:-2], ["images gone since: '198', 'bad 199'"]),
        ([*NAMES[:5], *NAMES[6:], "300"], ["images gone since: '5'", "images that are new: '300'"]),
        (NAMES[::-1], ["images in another order"]),
    ],
)
def test_other_images_are_refused_by_name_while_a_run_is_unfinished(again, begun, unbroken, names, words):
    labels = {name: label for name, label in zip(NAMES, OPTIONS["labels"], strict=True)}
    chosen = [labels.get(name, "class 0") for name in names]
    words = ["unfinished", *words, "discard it with discard=True"]
    for replace in (False, True):
        refused(lambda r=replace: again(names, labels=chosen, replace=r), begun, *words, error=RecipeError)
    assert same_file(again(), unbroken)  # it is still there to go on with


@pytest.mark.parametrize(
    "options, words",
    [
        ({"layers": [*LAYERS, "last"]}, "layers: 'first:avg', 'second:max' there, 'first:avg', 'second:max', 'last:"),
        ({"layers": "first"}, "layers: 'first:avg', 'second:max' there, 'first:avg' here"),
        ({"dtype": "float16"}, "dtype: 'float32' there, 'float16' here"),
        ({"precision": "bfloat16"}, "precision: 'float32' there, 'bfloat16' here"),
        ({"batch_size": 4}, "batch_size: 8 there, 4 here"),
        ({"backbone": "bundled:pixels", "layers": "flatten"}, "backbone: "),
        ({"labels": ["x"] * N}, "other labels or columns"),
        ({"labels": None}, "other labels or columns"),
    ],
)
def test_another_recipe_is_refused_field_by_field_while_a_run_is_unfinished(again, begun, unbroken, options, words):
    refused(lambda: again(**options), begun, "unfinished", words, "discard it with discard=True")
    assert same_file(again(), unbroken)


def test_another_device_is_refused_while_a_run_is_unfinished(again, begun, unbroken):
    with PretendCuda():
        refused(lambda: again(device="cuda"), begun, "device: 'cpu' there, 'cuda' here")
    assert same_file(again(), unbroken)


@pytest.mark.parametrize("other", ["another picture", "no picture"])
def test_images_that_changed_since_they_were_done_are_refused_by_name(small_network, begun, again, unbroken, other):
    changed = pictures(NAMES)
    changed[40] = noise(999) if other == "another picture" else np.zeros((2, 2))
    changed[3] = noise(3)  # and one that was mended
    known = OPTIONS | {"precision": "float32", "ids": NAMES, "layers": LAYERS}
    words = ["changed since", "'bad 3', '40'", "discard it with discard=True"]
    refused(lambda: extract(changed, begun, small_network, **known), begun, *words, error=StoreError)
    assert same_file(again(), unbroken)


def test_an_image_that_was_not_done_yet_may_have_changed(small_network, begun, tmp_path):
    changed = pictures(NAMES)
    changed[130], changed[150], changed[180] = noise(999), noise(998), np.zeros((2, 2))
    known = OPTIONS | {"precision": "float32", "ids": NAMES, "layers": LAYERS}
    finished = extract(changed, begun, small_network, **known)
    assert same_file(finished, extract(changed, tmp_path / "b.h5", small_network, **known))


# Discarding, and two at once


def test_discarding_begins_anew(again, begun, streamed, run, tmp_path):
    names = [*NAMES, "200"]
    labels = {"labels": [*OPTIONS["labels"], "class 0"]}
    store = again(names, discard=True, **labels)
    assert streamed == [(("first:avg", "second:max"), list(range(N + 1)))] and left_in(tmp_path) == ["a.h5"]
    assert same_file(store, run(tmp_path / "b.h5", names, LAYERS, **(OPTIONS | labels)))


def test_what_is_left_by_a_run_that_noted_nothing_is_no_hindrance(again, unbroken, tmp_path):
    (tmp_path / "a.h5.partial").write_bytes(b"\1" * 10_000)
    assert same_file(again(), unbroken)


def test_a_run_towards_an_output_that_is_being_written_is_refused_at_once(again, begun, unbroken):
    with open(f"{begun}.partial", "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for options in ({}, {"discard": True}, {"replace": True}):
            refused(lambda options=options: again(**options), begun, "another run is writing", error=StoreError)
    assert same_file(again(), unbroken)


def test_of_two_runs_at_once_the_second_is_refused_and_the_first_ends(again, unbroken, monkeypatch, tmp_path):
    stream, told = executors.stream, []

    def blocks(*args, **options):
        for number, block in enumerate(stream(*args, **options)):
            if number == 10:
                with pytest.raises(StoreError, match="another run is writing") as caught:
                    again()
                told.append(str(caught.value))
            yield block

    monkeypatch.setattr(executors, "stream", blocks)
    assert same_file(again(), unbroken) and len(told) == 1 and left_in(tmp_path) == ["a.h5"]


def test_a_run_of_another_version_is_not_touched(again, begun, tmp_path):
    journal = tmp_path / "a.h5.journal"
    first, *rest = journal.read_bytes().splitlines(keepends=True)
    said = json.loads(first.rpartition(b" ")[0])
    line = json.dumps(said | {"format": "featx-journal 9"}).encode()
    journal.write_bytes(line + b" " + xxhash.xxh3_64_hexdigest(line).encode() + b"\n" + b"".join(rest))
    refused(again, begun, "another version", "discard it with discard=True", error=StoreError)
    assert len(again(discard=True)) == N - len(UNREADABLE)


# A store that was to grow


@pytest.mark.parametrize(
    "old, layers, after",
    [
        (NAMES[:110], LAYERS, 9),
        (NAMES[::2], [*LAYERS, "last"], 9),
        (NAMES[100:], LAYERS, 1),
        *(
            pytest.param(old, layers, 1, marks=pytest.mark.slow)
            for old in (NAMES[:110], NAMES[::2], NAMES[100:])
            for layers in (LAYERS, [*LAYERS, "last"])
        ),
    ],
)
def test_a_growth_goes_on_and_the_old_store_is_there_until_then(again, run, break_off, tmp_path, old, layers, after):
    labels = dict(zip(NAMES, OPTIONS["labels"], strict=True))
    store = again(old, labels=[labels[name] for name in old])
    before = store.path.read_bytes()
    break_off(lambda: again(layers=layers), after)
    assert store.path.read_bytes() == before
    assert again(old, labels=[labels[name] for name in old]).identity == store.identity  # asked for, it is returned
    grown = again(layers=layers)
    assert left_in(tmp_path) == ["a.h5"]
    assert same_file(grown, run(tmp_path / "b.h5", NAMES, layers, **OPTIONS))


def test_a_store_made_otherwise_gives_no_rows_to_an_unfinished_run(again, begun, run, small_network, unbroken):
    preprocessing = featx.Preprocessing(crop=(32, 32), resize=32, mean=(0.1, 0.2, 0.3))
    other = featx.Backbone(small_network.module, preprocessing=preprocessing)
    made = run(begun.with_name("b.h5"), NAMES, LAYERS, backbone=other, **OPTIONS)
    os.rename(made.path, begun)
    refused(again, begun, "made with other settings", "preprocessing.mean")
    begun.unlink()
    assert same_file(again(), unbroken)
