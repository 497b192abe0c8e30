"""Views of an image: the rows of each are those of a store of its own, and no two sets of views are mixed."""

from __future__ import annotations

import json
from functools import partial

import h5py
import numpy as np
import pytest
from forged import refused as refused_file
from forged import tree_of, with_tree, written
from helpers import assert_tells, noise, save_noise
from runs import extract, pictures, refused, same_file
from typer.testing import CliRunner

import featx
from featx import Backbone, Preprocessing
from featx.cli.application import app
from featx.errors import FeatxError, RecipeError, StoreError
from featx.store import export, layout

VIEWS = ["center", "flip", "crop:4"]
NAMES = ["center", "flip", "top-left", "top-right", "bottom-left", "bottom-right"]
OPTIONS = {"batch_size": 4, "precision": "float32", "layers": ["first:none", "last"]}
N = 10


@pytest.fixture(scope="module")
def store(small_network, tmp_path_factory) -> featx.FeatureStore:
    path = tmp_path_factory.mktemp("views") / "a.h5"
    return extract(pictures(range(N)), path, small_network, views=VIEWS, **OPTIONS)


def test_rows_of_the_center_are_bit_for_bit_those_of_a_store_without_views(store, small_network, tmp_path):
    plain = extract(pictures(range(N)), tmp_path / "b.h5", small_network, **OPTIONS)
    assert store.recipe.views == NAMES and plain.recipe.views is None
    assert store["last"].shape == (N, 6, 5) and store["first:none"].shape == (N, 6, 8, 15, 15)
    for layer in store.layers:
        assert store.recipe.taps[layer]["shape"] == [6, *plain.recipe.taps[layer]["shape"]]
        np.testing.assert_array_equal(store[layer][:, 0], plain[layer])
        np.testing.assert_array_equal(store.take([3, 1], layer, check=True)[:, 0], plain[layer][[3, 1]])
    assert "views" not in json.loads(plain.recipe.to_json())
    store.verify()


def test_rows_of_other_views_are_those_of_mirrored_and_cropped_images(small_network, tmp_path):
    images = [noise(seed, 40, 46) for seed in range(5)]  # the network's input has 32 x 32 pixels
    uncropped = Backbone(small_network.module, preprocessing=Preprocessing((32, 32), (40, 46)))
    store = extract(images, tmp_path / "a.h5", uncropped, views=["crop:8", "flip"], **OPTIONS)
    corners = {"top-left": (0, 0), "top-right": (0, 14), "bottom-left": (8, 0), "bottom-right": (8, 14)}
    crops = {name: [image[y : y + 32, x : x + 32] for image in images] for name, (y, x) in corners.items()}
    crops |= {f"{name}-flip": [image[:, ::-1].copy() for image in crops[name]] for name in corners}
    crops["flip"] = [image[4:36, 7:39][:, ::-1].copy() for image in images]
    assert store.recipe.views == list(crops)
    for view, (name, cropped) in enumerate(crops.items()):
        plain = extract(cropped, tmp_path / f"{name}.h5", small_network, **OPTIONS)
        np.testing.assert_array_equal(store["last"][:, view], plain["last"], name)


def test_the_file_has_its_version_and_a_reader_of_earlier_ones_refuses_it(store, tmp_path, monkeypatch):
    content = store.path.read_bytes()
    with h5py.File(store.path) as file:
        assert file.attrs["version"] == 3 and file["layers/last:none"].shape == (N, 6, 5)
    forged = with_tree(content, tree_of(content), version=1)
    refused_file(written(tmp_path / "a.h5", forged), "its parts are those of another format version")
    archive = export(store, tmp_path / "b.h5")
    assert export(archive, tmp_path / "c.h5", compression="none").read_bytes() == content
    np.testing.assert_array_equal(np.load(export(store, tmp_path / "d.npy", "last")), store["last"])
    monkeypatch.setattr(layout, "VERSIONS", (1, 2))
    with pytest.raises(StoreError, match="has format version 3; this featx reads 1 and 2: update it"):
        featx.FeatureStore(store.path)


@pytest.mark.filterwarnings("ignore::featx.errors.UnreadableImagesWarning")
def test_a_run_goes_on_and_grows_to_the_bytes_of_one_run(run, break_off, tmp_path):
    names, options = [0, 1, "bad", *range(2, 90)], {"layers": ["first", "last"], "views": ["flip", "center"]}
    whole = run(tmp_path / "whole.h5", names, **options)
    break_off(lambda: run(tmp_path / "a.h5", names, **options), after=20)
    assert same_file(run(tmp_path / "a.h5", names, **options), whole)
    run(tmp_path / "b.h5", names[:9], **(options | {"layers": "first"}))
    run(tmp_path / "b.h5", names[:9], **options)
    assert same_file(run(tmp_path / "b.h5", names, **options), whole)


def test_views_that_differ_are_refused(run, break_off, tmp_path):
    run(tmp_path / "a.h5", range(6), views=["center", "flip"])
    for views, here in ((None, "None"), (["flip", "center"], "['flip', 'center']"), ("center", "['center']")):
        again = partial(run, tmp_path / "a.h5", range(9), views=views)
        refused(again, tmp_path / "a.h5", f"with other settings: views: ['center', 'flip'] there, {here} here. Ask for")
    break_off(lambda: run(tmp_path / "b.h5", range(90), views="flip"), after=20)
    refused(lambda: run(tmp_path / "b.h5", range(90)), tmp_path / "b.h5", "views: ['flip'] there, None here")
    plain = run(tmp_path / "plain.h5", range(10, 16))
    with pytest.raises(RecipeError) as caught:
        featx.merge([tmp_path / "a.h5", plain], tmp_path / "m.h5")
    assert_tells(caught.value, "in different ways: views: ['center', 'flip'] in a.h5, None in plain.h5; extract")


def test_a_store_like_another_has_its_views_and_goes_with_it(store, small_network, tmp_path):
    more = extract(pictures(range(20, 26)), tmp_path / "b.h5", None, like=store, ids=[f"b{i}" for i in range(6)])
    assert more.recipe.views == NAMES and more.recipe.other_meaning(store.recipe) == []
    merged = featx.merge([store, more], tmp_path / "m.h5")
    assert merged.path.read_bytes().startswith(b"featx-store 3\n")
    np.testing.assert_array_equal(merged["last"], np.concatenate([store["last"], more["last"]]))
    with pytest.raises(RecipeError, match=r"a.h5 was made with other settings: views: .* there, \['flip'\] here"):
        extract(pictures(range(3)), tmp_path / "c.h5", None, like=store, views="flip")


def test_a_trial_of_the_first_batches_keeps_their_rows(small_network, tmp_path):
    images = pictures(range(21))
    options = {"views": ["center", "flip"], "batch_size": 4, "layers": "last"}
    chosen = extract(images, tmp_path / "a.h5", small_network, **options)
    assert same_file(chosen, extract(images, tmp_path / "b.h5", small_network, precision="float32", **options))


def test_names_that_are_no_views_are_refused(small_network, tmp_path):
    for views, word in [
        ("mirror", "crop:1 to crop:8, top-left, .*; got 'mirror'"),
        (["center", "crop:9"], "got 'crop:9'"),
        (["center", "crop:0"], "got 'crop:0'"),
        ([], "one or more; got none"),
        (["crop:2", "top-left"], "views are different, and one or more; got 'top-left', 'top-right', 'top-left'"),
        (["center", ["flip"]], r"got \['flip'\]"),
        (4, "got 4"),
    ]:
        with pytest.raises(FeatxError, match=word):
            featx.plan(pictures(range(2)), tmp_path / "a.h5", small_network, views=views)
    with pytest.raises(
        FeatxError, match="views are center and flip for bundled:pixels: it resizes pictures to 32 x 32"
    ):
        featx.plan(pictures(range(2)), tmp_path / "a.h5", "bundled:pixels", views="crop:2")


def test_a_batch_has_fewer_images_if_their_views_would_take_much_memory(small_network, tmp_path, monkeypatch):
    planned = featx.plan(pictures(range(2)), tmp_path / "a.h5", small_network, "first:none", views=VIEWS, device="cpu")
    plain = featx.plan(pictures(range(2)), tmp_path / "a.h5", small_network, "first:none", device="cpu")
    assert planned.nbytes == 6 * plain.nbytes and planned.recipe.batch_size == plain.recipe.batch_size == 32
    for nbytes, layer in ((6 * 8 * 4 * 1800, "first:none"), (6 * 8 * 3 * 32 * 32, "last")):  # of rows, of pixels
        monkeypatch.setattr("featx.forward.streaming._MOST_BATCH_BYTES", nbytes)
        planned = featx.plan(pictures(range(2)), tmp_path / "a.h5", small_network, layer, views=VIEWS, device="cpu")
        assert planned.recipe.batch_size == 8


def test_the_command_takes_views(tmp_path):
    for seed in range(3):
        save_noise(tmp_path / "photos" / f"{seed}.png", seed)
    command = ["extract", str(tmp_path / "photos"), "-o", str(tmp_path / "a.h5"), "-b", "bundled:pixels", "-q"]
    done = CliRunner().invoke(app, [*command, "--view", "center", "--view", "flip"])
    assert done.exit_code == 0, done.output
    store = featx.FeatureStore(tmp_path / "a.h5")
    assert store.recipe.views == ["center", "flip"]
    shown = CliRunner().invoke(app, ["info", str(tmp_path / "a.h5")])
    assert "views center, flip" in shown.output and "2 x 3,072" in shown.output


@pytest.mark.slow
def test_a_compiled_network_has_the_batches_of_a_run_without_views(small_network, tmp_path):
    options = OPTIONS | {"engine": "compiled", "layers": "last"}
    plain = extract(pictures(range(N)), tmp_path / "a.h5", small_network, **options)
    store = extract(pictures(range(N)), tmp_path / "b.h5", small_network, views=["flip", "center"], **options)
    np.testing.assert_array_equal(store["last"][:, 1], plain["last"])
