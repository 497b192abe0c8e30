"""What a second extraction onto a store does with the same images, or with more images or layers.

A store that has grown is, byte for byte, that of one run over everything.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from helpers import class_folders, left_in, save_noise
from pretend_cuda import PretendCuda
from runs import extract, pictures, refused, same_file

import featx
from featx.errors import DamageError, FeatxError, StoreError, UnreadableImagesWarning
from featx.store import export


@pytest.fixture
def made(tmp_path):
    photos = class_folders(tmp_path / "photos", n=3)
    return photos, extract(photos, tmp_path / "a.h5")


# The same recipe, the same images


def test_the_same_again_returns_the_store_without_computing(made, never):
    photos, store = made
    never()
    before = store.path.stat()
    for options in (
        {},
        {"workers": 1},
        {"precision": "float32"},
        {"batch_size": 32},
        {"layers": "flatten"},
        {"replace": True},
        {"discard": True},
        {"backbone": featx.Backbone("bundled:pixels")},
    ):
        assert extract(photos, store.path, **options).identity == store.identity
    assert store.path.stat() == before
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)  # they are only recorded, as the device is
    try:
        assert extract(photos, store.path).identity == store.identity
    finally:
        torch.set_num_threads(threads)
    with PretendCuda():
        assert extract(photos, store.path, device="cuda").recipe == store.recipe
    assert left_in(store.path.parent / "photos") == left_in(photos) and store.path.stat() == before


def test_what_was_left_to_auto_stays_as_it_was_then(tmp_path):
    photos = class_folders(tmp_path / "photos", n=2)
    store = extract(photos, tmp_path / "a.h5", batch_size=3, precision="bfloat16")
    assert extract(photos, store.path).recipe == store.recipe
    save_noise(photos / "ant" / "new.png", seed=50)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        grown = extract(photos, store.path)
    finally:
        torch.set_num_threads(threads)
    assert len(grown) == 5 and (grown.recipe.batch_size, grown.recipe.precision) == (3, "bfloat16")
    assert same_file(grown, extract(photos, tmp_path / "b.h5", batch_size=3, precision="bfloat16"))


def test_the_order_of_images_and_layers_is_no_difference(tmp_path, run):
    store = run(tmp_path / "a.h5", range(6), ["first", "second:max"], labels=list("ababab"))
    again = run(store.path, range(5, -1, -1), ["second:max", "first"], labels=list("bababa"))
    assert again.identity == store.identity and again.ids.tolist() == list("012345")
    assert run(store.path, range(6), ["first", "second:max"]).y.tolist() == list("ababab")  # labels may be left out


def test_an_image_that_failed_then_and_still_does_is_no_difference(tmp_path, run, never):
    with pytest.warns(UnreadableImagesWarning):
        store = run(tmp_path / "a.h5", [0, "bad", 1])
    never()
    assert run(store.path, [0, "bad", 1]).identity == store.identity


# More images


@pytest.mark.parametrize(
    "old, new, batch_size",
    [
        (range(0, 9), range(0, 14), 3),  # at the end
        (range(0, 9), range(0, 14), 1),
        (range(5, 14), range(0, 14), 4),  # before
        (range(0, 14, 3), range(0, 14), 1),  # between
        (range(0, 14, 3), range(0, 14), 64),
        (range(8, 0, -1), range(0, 14), 3),  # in another order
        ([0], range(0, 14), 4),
        (range(0, 130), range(0, 140), 4),  # more than two groups
    ],
)
def test_more_images_are_added_as_if_all_had_been_there(tmp_path, run, streamed, old, new, batch_size):
    layers, options = ["first", "last"], {"batch_size": batch_size}
    run(tmp_path / "a.h5", old, layers, labels=[f"class {i % 3}" for i in old], **options)
    streamed.clear()
    labels = [f"class {i % 3}" for i in new]
    grown = run(tmp_path / "a.h5", new, layers, labels=labels, **options)
    added = [position for position, name in enumerate(new) if name not in old]
    assert streamed == [(("first:avg", "last:none"), added)]  # old rows are copied
    assert same_file(grown, run(tmp_path / "b.h5", new, layers, labels=labels, **options))
    assert left_in(tmp_path) == ["a.h5", "b.h5"]


@pytest.mark.parametrize(
    "new, batch_size",
    [([0, 1, 2, 3, "bad new"], 1), (["bad new", 0, "bad", 1, 2, 3, 4], 4), ([0, "bad", 1, 2, 3, 4], 1)],
)
@pytest.mark.filterwarnings("ignore::featx.errors.UnreadableImagesWarning")
def test_images_that_fail_are_in_the_ledger_of_the_grown_store(tmp_path, run, new, batch_size):
    run(tmp_path / "a.h5", [0, "bad", 1, 2, 3] if "bad" in new else range(4), batch_size=batch_size)
    grown = run(tmp_path / "a.h5", new, batch_size=batch_size)
    assert [failure.id for failure in grown.failures] == [name for name in new if str(name).startswith("bad")]
    assert same_file(grown, run(tmp_path / "b.h5", new, batch_size=batch_size))


def test_an_image_that_was_mended_since_is_computed(tmp_path):
    photos = class_folders(tmp_path / "photos", n=2)
    (photos / "ant" / "bad.png").write_text("no picture")
    with pytest.warns(UnreadableImagesWarning):
        store = extract(photos, tmp_path / "a.h5")
    save_noise(photos / "ant" / "bad.png", seed=60)
    mended = extract(photos, store.path)
    assert len(mended) == 5 and not mended.failures
    assert same_file(mended, extract(photos, tmp_path / "b.h5"))


def test_manifest_columns_grow_with_their_images(tmp_path):
    lines = [f"{save_noise(tmp_path / f'{i}.png', i).name},{i / 2},patient {i}" for i in range(5)]
    options = {"labels": "age", "target": "numeric"}
    for last in (3, 5):
        (tmp_path / "m.csv").write_text("\n".join(["path,age,patient", *lines[:last]]) + "\n")
        grown = extract(tmp_path / "m.csv", tmp_path / "a.h5", **options)
    assert grown.columns["patient"].tolist() == [f"patient {i}" for i in range(5)]
    assert same_file(grown, extract(tmp_path / "m.csv", tmp_path / "b.h5", **options))


def test_keys_of_old_images_stay_when_a_store_grows(tmp_path, run):
    keys = dict(zip(range(5), run(tmp_path / "a.h5", range(5)).X[:, 0].tolist(), strict=True))
    grown = run(tmp_path / "a.h5", [7, 3, 0, 9, 1, 2, 4])
    found = dict(zip(map(int, grown.ids), grown.X[:, 0].tolist(), strict=True))
    assert {name: found[name] for name in keys} == keys


def test_an_archive_grows_into_a_plain_store(tmp_path, run):
    export(run(tmp_path / "a.h5", range(70)), tmp_path / "archive.h5")
    assert featx.FeatureStore(tmp_path / "archive.h5").is_archive
    os.replace(tmp_path / "archive.h5", tmp_path / "a.h5")
    assert run(tmp_path / "a.h5", range(70)).is_archive  # the same is returned as it is
    assert same_file(run(tmp_path / "a.h5", range(80)), run(tmp_path / "b.h5", range(80)))


# More layers


@pytest.mark.parametrize(
    "old, new",
    [
        (["first"], ["first", "second:max", "last"]),
        (["last", "second:max"], ["first:none", "second:max", "last"]),
        (["penultimate"], ["second", "penultimate"]),
    ],
)
def test_more_layers_are_added_and_only_they_are_computed(tmp_path, run, streamed, old, new):
    before = run(tmp_path / "a.h5", range(9), old)
    streamed.clear()
    grown = run(tmp_path / "a.h5", range(9), new)
    assert streamed == [(tuple(name for name in grown.layers if name not in before.layers), list(range(9)))]
    assert same_file(grown, run(tmp_path / "b.h5", range(9), new)) and len(grown.layers) == len(new)


@pytest.mark.filterwarnings("ignore::featx.errors.UnreadableImagesWarning")
@pytest.mark.parametrize("old, batch_size", [(range(0, 8, 2), 1), ([0, "bad", 2, 4, 6, 5], 4)])
def test_more_images_and_more_layers_at_once(tmp_path, run, streamed, old, batch_size):
    new = [*range(7), "bad", "bad too"] if "bad" in old else range(9)
    options = {"batch_size": batch_size}
    run(tmp_path / "a.h5", old, "second", **options)
    streamed.clear()
    grown = run(tmp_path / "a.h5", new, ["first", "second"], **options)
    has = [position for position, name in enumerate(new) if name in old and name != "bad"]
    assert streamed == [
        (("first:avg", "second:avg"), [i for i in range(len(new)) if i not in has]),
        (("first:avg",), has),
    ]
    assert same_file(grown, run(tmp_path / "b.h5", new, ["first", "second"], **options))


@pytest.mark.filterwarnings("ignore::featx.errors.UnreadableImagesWarning")
def test_more_layers_where_a_whole_batch_cannot_be_read(tmp_path, run):
    names = [0, 1, 2, 3, "bad", "bad too"]
    run(tmp_path / "a.h5", names)
    grown = run(tmp_path / "a.h5", names, ["first", "last"])
    assert same_file(grown, run(tmp_path / "b.h5", names, ["first", "last"]))


def test_names_that_a_user_gave_layers_are_kept(tmp_path, run):
    store = run(tmp_path / "a.h5", range(3), "penultimate")
    grown = run(tmp_path / "a.h5", range(3), ["last", *store.layers])
    assert np.array_equal(grown["penultimate"], store["penultimate"])


# Old or new, whole


@pytest.mark.parametrize("layers, after", [(["first"], 0), (["first", "last"], 1), (["first", "last"], 3)])
def test_a_growth_that_is_broken_off_leaves_the_old_store(tmp_path, run, break_off, layers, after):
    store = run(tmp_path / "a.h5", range(10))
    before = store.path.read_bytes()
    break_off(lambda: run(store.path, range(30), layers), after)
    assert store.path.read_bytes() == before and left_in(tmp_path) == ["a.h5"]  # no 64 images were complete
    assert same_file(run(store.path, range(30), layers), run(tmp_path / "b.h5", range(30), layers))


@pytest.mark.parametrize("layers", [["first"], ["first", "last"]])
def test_a_store_whose_rows_are_damaged_does_not_grow(tmp_path, run, layers):
    store = run(tmp_path / "a.h5", range(10))
    with open(store.path, "r+b") as file:
        file.seek(8192 + 5)
        byte = file.read(1)[0]
        file.seek(8192 + 5)
        file.write(bytes([byte ^ 1]))
    refused(lambda: run(store.path, range(12), layers), store.path, "first:avg", error=DamageError)


def test_an_output_that_is_no_store_is_left_alone(tmp_path, never):
    never()
    (tmp_path / "a.h5").write_text("my notes")
    for options in ({}, {"replace": True}, {"discard": True}):
        with pytest.raises(StoreError, match="is not a featx store") as caught:
            extract(pictures(range(2)), tmp_path / "a.h5", **options)
        assert isinstance(caught.value, FeatxError)
    assert (tmp_path / "a.h5").read_text() == "my notes" and left_in(tmp_path) == ["a.h5"]
