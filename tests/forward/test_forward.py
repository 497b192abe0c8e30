"""Images and a recipe become blocks of rows: each image once, in order, whatever its neighbours and the threads."""

from __future__ import annotations

import itertools
import os
import threading
import time

import numpy as np
import pytest
import torch
from helpers import empty_cache, save_noise
from PIL import Image
from torch import nn

from featx.backbones import EAGER, Backbone, Choice, Preprocessing, TappedNetwork
from featx.errors import BackboneError, FeatxError, LayerError
from featx.forward import cache, resolve_recipe, stream, streaming, trial

SMALL = Preprocessing(crop=(32, 32), resize=32)


@pytest.fixture(autouse=True)
def nothing_built():
    empty_cache()


@pytest.fixture(scope="module")
def network() -> Backbone:
    return Backbone("squeezenet1_1", weights=None, preprocessing=SMALL)


def arrays(n: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (40, 36 + i % 5, 3), np.uint8) for i in range(n)]


def bad() -> np.ndarray:
    return np.zeros((4, 4), np.float32)


def computed(images, recipe, **options) -> tuple[dict[int, dict[str, np.ndarray]], dict[int, Exception], list]:
    rows, failures, blocks = {}, {}, list(stream(images, recipe, **({"device": "cpu"} | options)))
    for block in blocks:
        assert block.rows.keys() == (set(recipe.layers) if len(block.indices) else set())
        for at, position in enumerate(block.indices.tolist()):
            assert position not in rows
            rows[position] = {name: values[at] for name, values in block.rows.items()}
        failures |= block.failures
        assert set(block.digests) == set(block.indices.tolist())
    return rows, failures, blocks


def assert_bitwise_equal(some: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> None:
    assert some.keys() == others.keys()
    assert all(np.array_equal(some[name], others[name]) for name in some)


@pytest.mark.parametrize("n, batch_size", [(1, 4), (4, 4), (9, 4), (3, 1)])
def test_every_image_comes_once_and_in_order(network, n, batch_size):
    images = arrays(n)
    recipe = resolve_recipe(
        images, backbone=network, layers=["features.3", "penultimate"], device="cpu", batch_size=batch_size
    )
    rows, failures, blocks = computed(images, recipe)
    assert list(rows) == list(range(n)) and not failures
    assert [block.start for block in blocks] == list(range(0, n, batch_size))
    assert [block.stop for block in blocks] == [min(block.start + batch_size, n) for block in blocks]
    for name, tap in recipe.taps.items():
        assert all(row[name].shape == tuple(tap["shape"]) and row[name].dtype == np.float32 for row in rows.values())


def test_rows_are_the_networks_function_of_the_prepared_pixels(network):
    images = arrays(3)
    recipe = resolve_recipe(images, backbone=network, layers="features.3", device="cpu")
    rows, _, _ = computed(images, recipe)
    pixels = torch.from_numpy(np.stack([SMALL(Image.fromarray(image)) for image in images]))
    with torch.inference_mode():
        expected = network.module.features[:4](SMALL.normalise(pixels)).mean((2, 3)).numpy()
    np.testing.assert_allclose([rows[i]["features.3:avg"] for i in range(3)], expected, rtol=1e-4, atol=1e-6)


def test_rows_do_not_depend_on_the_number_of_threads(network):
    images = arrays(9)
    recipe = resolve_recipe(images, backbone=network, device="cpu", batch_size=4)
    one, three = (computed(images, recipe, workers=workers)[0] for workers in (1, 3))
    for position in one:
        assert_bitwise_equal(one[position], three[position])


def test_an_unreadable_image_has_a_reason_and_changes_no_other_row(network):
    good = arrays(9)
    broken = [bad() if i in (0, 5) else image for i, image in enumerate(good)]
    recipe = resolve_recipe(good, backbone=network, device="cpu", batch_size=4)
    whole, _, _ = computed(good, recipe)
    rows, failures, _ = computed(broken, recipe)
    assert sorted(failures) == [0, 5] and {error.code for error in failures.values()} == {"pixel-type"}
    assert sorted(rows) == [1, 2, 3, 4, 6, 7, 8]
    for position, row in rows.items():
        assert_bitwise_equal(row, whole[position])


def test_a_block_without_any_readable_image_has_no_rows(network):
    images = [bad(), bad(), *arrays(2)]
    recipe = resolve_recipe(images, backbone=network, device="cpu", batch_size=2)
    rows, failures, blocks = computed(images, recipe)
    assert not len(blocks[0].indices) and sorted(failures) == [0, 1] and sorted(rows) == [2, 3]


def test_rows_follow_the_images_when_these_are_permuted(network):
    images = arrays(7)
    order = np.random.default_rng(1).permutation(7)
    recipe = resolve_recipe(images, backbone=network, device="cpu", batch_size=3)
    rows, _, _ = computed(images, recipe)
    moved, _, _ = computed([images[i] for i in order], recipe)
    (layer,) = recipe.layers
    for at, i in enumerate(order):
        np.testing.assert_allclose(moved[at][layer], rows[i][layer], rtol=1e-4, atol=1e-6)


def test_a_recipe_alone_gives_the_rows_again(network, three_threads):
    from featx.store import Recipe

    images = arrays(3)
    recipe = resolve_recipe(images, backbone=network, device="cpu")
    before, _, _ = computed(images, recipe)
    empty_cache()
    after, _, _ = computed(images, Recipe.from_json(recipe.to_json()))
    for position in before:
        assert_bitwise_equal(after[position], before[position])


@pytest.mark.parametrize("n, kept, threads", [(8, False, 1), (9, False, 3), (8, True, 3)])
def test_a_few_images_are_predicted_by_one_thread_and_those_of_a_store_by_as_many_as_recorded(
    n, kept, threads, network, three_threads, monkeypatch
):
    images, seen = arrays(n), set()
    recipe = resolve_recipe(images, backbone=network, device="cpu")
    called = TappedNetwork.__call__
    monkeypatch.setattr(
        TappedNetwork, "__call__", lambda self, pixels: (seen.add(torch.get_num_threads()), called(self, pixels))[1]
    )
    for _ in stream(images, recipe, device="cpu", todo=np.ones(n, bool) if kept else None):
        assert torch.get_num_threads() == 3
    assert seen == {threads}


def test_one_layer_of_a_recipe_is_computed_alone(network):
    images = arrays(3)
    recipe = resolve_recipe(images, backbone=network, layers=["features.3:max", "penultimate"], device="cpu")
    both, _, _ = computed(images, recipe)
    alone, _, _ = computed(images, recipe.only("features.3"))
    for position in both:
        assert list(alone[position]) == ["features.3:max"]
        np.testing.assert_allclose(
            alone[position]["features.3:max"], both[position]["features.3:max"], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("todo", [[4], [3, 4], [0, 8], []])
def test_of_a_run_that_is_kept_only_batches_with_something_to_do_are_computed(network, todo):
    images = arrays(9)
    recipe = resolve_recipe(images, backbone=network, layers="features.3", device="cpu", batch_size=4)
    wanted = np.zeros(9, bool)
    whole, _, _ = computed(images, recipe, todo=~wanted)
    assert sorted(whole) == list(range(9))
    wanted[todo] = True
    rows, _, blocks = computed(images, recipe, todo=wanted)
    assert [block.start for block in blocks] == sorted({i // 4 * 4 for i in todo})
    assert sorted(rows) == [i for i in range(9) if i // 4 * 4 in {j // 4 * 4 for j in todo}]
    for position in rows:  # a row is a function of its image and the recipe, whatever was done before
        assert_bitwise_equal(rows[position], whole[position])


def test_rows_of_a_run_that_is_kept_do_not_depend_on_its_length(network):
    images = arrays(5)
    recipe = resolve_recipe(images, backbone=network, layers="features.3", device="cpu", batch_size=4)
    few, _, _ = computed(images[:2], recipe, todo=np.ones(2, bool))
    many, _, _ = computed(images, recipe, todo=np.ones(5, bool))
    for position in few:
        assert_bitwise_equal(few[position], many[position])


def test_repeated_measurements_leave_out_what_other_work_adds(network, monkeypatch):
    images = arrays(4)
    recipe = resolve_recipe(images, backbone=network, layers="features.3", device="cpu", batch_size=4)
    seconds = iter([0, 100, 0, 3, 0, 2, 0, 50])  # the first batch warms up
    monkeypatch.setattr(streaming.time, "process_time", lambda: next(seconds))
    monkeypatch.setattr(streaming.time, "perf_counter", itertools.count(step=1000).__next__)  # a busy machine
    assert streaming.measure(images, recipe, network, device="cpu", repeats=3) == 2 / 4


def test_a_module_of_ones_own_belongs_to_whoever_passes_it():
    torch.manual_seed(0)
    own = Backbone(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), preprocessing=SMALL)
    images = arrays(2)
    recipe = resolve_recipe(images, backbone=own, layers="1", device="cpu")
    assert sorted(computed(images, recipe, backbone=own)[0]) == [0, 1]
    assert not cache._backbones
    with pytest.raises(BackboneError, match="pass it: featx"):
        computed(images, recipe)


def test_the_recipe_says_what_was_decided(network):
    recipe = resolve_recipe(
        arrays(2),
        backbone=network,
        layers=["features.3:max", "penultimate"],
        pool="avg",
        device="cpu",
        batch_size=7,
        dtype="float16",
    )
    assert recipe.backbone == "torchvision:squeezenet1_1" and recipe.weights is None
    assert recipe.weights_sha256 == network.weights_sha256
    assert Preprocessing.from_dict(recipe.preprocessing) == SMALL
    assert recipe.layers == ("features.3:max", "features.12.cat:avg")
    assert recipe.aliases == {"penultimate": "features.12.cat:avg"}
    assert (recipe.precision, recipe.precision_error) == ("float32", None)
    assert (recipe.batch_size, recipe.dtype, recipe.device) == (7, "float16", "cpu")
    assert recipe.threads == torch.get_num_threads()
    assert recipe.versions.keys() == {"featx", "torch", "torchvision", "pillow", "numpy"}


def test_a_name_and_its_weights_make_the_backbone():
    recipe = resolve_recipe(arrays(1), backbone="squeezenet1_1", weights=None, layers="features.0", device="cpu")
    assert recipe.weights_sha256 == Backbone("squeezenet1_1", weights=None).weights_sha256


@pytest.fixture
def tried(monkeypatch):
    """What `choose` is called with from now on; it takes bfloat16, eager."""
    seen = []

    def choose(found, batch, n_batches, **options):
        seen.append(([batch(0), batch(1)], n_batches, options))
        fast = found.in_type("bfloat16")
        return Choice(fast, 0.004, 1.0, [fast(batch(0)[0])])

    monkeypatch.setattr(trial, "choose", choose)
    return seen


@pytest.mark.parametrize("n, asked", [(2, {}), (3, {}), (15, {"precision": "float32"}), (16, {"precision": "float32"})])
def test_faster_ways_are_tried_on_the_first_batch_of_a_run_that_is_long_enough(network, tried, n, asked):
    images = arrays(n)
    recipe = resolve_recipe(images, backbone=network, device="cpu", batch_size=1, **asked)
    if n in (2, 15):
        assert (recipe.precision, recipe.precision_error, recipe.engine, tried) == ("float32", None, EAGER, [])
        return
    assert (recipe.precision, recipe.precision_error) == ("bfloat16", 0.004)
    ((two, n_batches, options),) = tried
    for number, (pixels, slots) in enumerate(two):
        assert np.array_equal(pixels[0], SMALL(Image.fromarray(images[number])))
        assert pixels.shape == (1, 32, 32, 3) and slots == [0]
    assert n_batches == n and options["precision"] == asked.get("precision", "auto") and options["engine"] == "auto"


@pytest.mark.parametrize("unread, first", [([], 0), ([1, 2], 0), ([1, 2, 3], 4)])
def test_a_batch_of_the_run_is_tried_as_it_is_and_a_fuller_one_before_an_emptier(network, tried, unread, first):
    images = [bad() if i in unread else image for i, image in enumerate(arrays(12))]
    resolve_recipe(images, backbone=network, device="cpu", batch_size=4)
    (([(pixels, found), _], _, _),) = tried
    assert found == [slot for slot in range(4) if first + slot not in unread]
    for slot in range(4):
        true = SMALL(Image.fromarray(images[first + slot])) if slot in found else np.zeros((32, 32, 3))
        assert np.array_equal(pixels[slot], true)


def test_nothing_is_tried_where_none_of_the_first_images_can_be_read(network, tried):
    recipe = resolve_recipe([bad()] * 8 + arrays(4), backbone=network, device="cpu", batch_size=4)
    assert (recipe.precision, tried) == ("float32", [])


def test_nothing_is_tried_where_a_batch_does_not_fit_the_memory(network, monkeypatch):
    def choose(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(trial, "choose", choose)
    recipe = resolve_recipe(arrays(12), backbone=network, device="cpu", batch_size=4)
    assert (recipe.precision, recipe.engine) == ("float32", EAGER)


def test_rows_of_the_trial_are_those_of_the_run(network, tried):
    images = [bad() if i == 2 else image for i, image in enumerate(arrays(12))]
    trials = []
    recipe = resolve_recipe(images, backbone=network, device="cpu", batch_size=4, on_trial=trials.append)
    (found,) = trials
    (block,) = found.blocks
    true = next(stream(images, recipe, device="cpu", todo=np.ones(12, bool)))
    assert (block.start, block.stop, block.pass_rows, block.digests) == (true.start, true.stop, 4, true.digests)
    assert np.array_equal(block.indices, true.indices) and block.failures.keys() == true.failures.keys() == {2}
    for name, rows in true.rows.items():
        assert np.array_equal(rows, block.rows[name])
    assert found.image_seconds > 0 and list(found.still(images)) == [block]
    blocks = list(stream(images, recipe, device="cpu", todo=np.ones(12, bool), computed=[block]))
    assert [block.start for block in blocks] == [0, 4, 8] and blocks[0] is block


def test_rows_of_the_trial_are_used_only_as_long_as_its_images_are_what_they_were(network, tmp_path):
    images = [save_noise(tmp_path / f"{i}.png", i) for i in range(3)]
    trials = []
    resolve_recipe(images, backbone=network, device="cpu", batch_size=1, on_trial=trials.append)
    (found,) = trials
    assert len(list(found.still(images))) == 1
    os.utime(images[0])
    assert not list(found.still(images))
    kept = arrays(3)
    resolve_recipe(kept, backbone=network, device="cpu", batch_size=1, on_trial=trials.append)
    assert len(list(trials[1].still(kept))) == 1
    kept[0][0, 0] += 1
    assert not list(trials[1].still(kept))


def test_what_was_asked_for_is_not_tried(network, tried):
    images = arrays(16)
    exact, fast = (
        resolve_recipe(images, backbone=network, device="cpu", batch_size=1, precision=name, engine="eager")
        for name in ("float32", "bfloat16")
    )
    assert (exact.precision, fast.precision, tried) == ("float32", "bfloat16", [])
    (layer,) = exact.layers
    a, b = (computed(images[:2], recipe)[0][0][layer] for recipe in (exact, fast))
    assert 0 < np.linalg.norm(a - b) / np.linalg.norm(a) < 0.05


def test_wide_rows_make_small_batches(network, monkeypatch):
    assert resolve_recipe(arrays(1), backbone=network, device="cpu").batch_size == 32
    monkeypatch.setattr(streaming, "_MOST_BATCH_BYTES", 4 * 128 * 7 * 7 * 5)
    assert resolve_recipe(arrays(1), backbone=network, layers="features.3:flatten", device="cpu").batch_size == 4


class Scarce:
    """A network whose device holds so many images at most."""

    def __init__(self, network, most: int) -> None:
        self.network, self.most, self.sizes = network, most, []

    def __call__(self, pixels):
        self.sizes.append(len(pixels))
        if len(pixels) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        return self.network(pixels)


@pytest.mark.parametrize("most, sizes", [(4, [4, 4, 4]), (3, [4, 2, 2, 2, 2, 2, 2]), (1, [4, 2, *[1] * 12])])
def test_where_memory_does_not_suffice_batches_go_in_halves(network, pretend_cuda, monkeypatch, most, sizes):
    images = arrays(12)
    recipe = resolve_recipe(images, backbone=network, layers=["features.3", "penultimate"], device="cuda", batch_size=4)
    whole, _, _ = computed(images, recipe, device="cuda", todo=np.ones(12, bool))
    scarce = Scarce(cache.network_of(recipe, torch.device("cuda")), most)
    monkeypatch.setattr(streaming, "network_of", lambda *_: scarce)
    found, failures, blocks = computed(images, recipe, device="cuda", todo=np.ones(12, bool))
    assert scarce.sizes == sizes and not failures
    assert {block.pass_rows for block in blocks} == {min(4, {3: 2}.get(most, most))}
    for i, rows in found.items():
        for name, values in rows.items():
            np.testing.assert_allclose(values, whole[i][name], rtol=1e-4, atol=1e-5)


def test_no_thread_is_left_waiting_when_a_pass_fails(network, monkeypatch):
    images = arrays(60)
    recipe = resolve_recipe(images, backbone=network, device="cpu", batch_size=2)
    monkeypatch.setattr(streaming, "network_of", lambda *_: Scarce(None, -1))
    monkeypatch.setattr(Scarce, "__call__", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) as kept:  # its traceback holds every frame, as an interactive session does
        list(stream(images, recipe, device="cpu", workers=3))
    deadline = time.monotonic() + 5
    while (left := [t for t in threading.enumerate() if t.name.startswith("featx-")]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left and kept.value is not None


def test_a_device_that_does_not_hold_one_image_says_so(network, pretend_cuda, monkeypatch):
    recipe = resolve_recipe(arrays(3), backbone=network, device="cuda", batch_size=2)
    monkeypatch.setattr(streaming, "network_of", lambda *_: Scarce(None, 0))
    with pytest.raises(FeatxError, match="does not hold one image's forward pass; use device='cpu'"):
        list(stream(arrays(3), recipe, device="cuda"))


def test_what_cannot_be_planned_is_refused_in_a_line(network, subtests):
    for options, error, text in [
        ({"precision": "float64"}, FeatxError, "precision is one of auto, float32, bfloat16, float16; got 'float64'"),
        ({"engine": "jit"}, FeatxError, "engine is one of auto, eager, compiled; got 'jit'"),
        ({"dtype": "int8"}, FeatxError, "dtype is one of float32, float16; got 'int8'"),
        ({"device": "tpu"}, FeatxError, "device is one of auto, cpu, cuda; got 'tpu'"),
        ({"batch_size": 0}, FeatxError, "batch_size is 'auto' or a whole number of images, 1 or more; got 0"),
        ({"batch_size": 2.5}, FeatxError, "got 2.5"),
        ({"batch_size": "many"}, FeatxError, "got 'many'"),
        ({"layers": "features.99"}, LayerError, "layer 'features.99' is not in torchvision:squeezenet1_1"),
        ({"pool": "mean"}, LayerError, "pool 'mean' is not one of"),
    ]:
        with subtests.test(ascii((options, error))):
            with pytest.raises(error) as raised:
                resolve_recipe(arrays(1), backbone=network, **{"device": "cpu"} | options)
            assert text in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("workers", [0, 1.5, "all"])
def test_workers_are_threads_or_auto(network, workers):
    recipe = resolve_recipe(arrays(1), backbone=network, device="cpu")
    with pytest.raises(FeatxError, match="workers is 'auto' or a whole number of threads"):
        next(stream(arrays(1), recipe, device="cpu", workers=workers))


def test_a_gpu_that_is_not_there_is_named(network, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FeatxError, match="needs a GPU that torch can use, and there is none"):
        resolve_recipe(arrays(1), backbone=network, device="cuda")
    assert resolve_recipe(arrays(1), backbone=network, device="auto").device == "cpu"
