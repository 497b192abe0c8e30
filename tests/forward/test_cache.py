"""The cache is bounded and may be used by several threads, each of which gets the network's own rows."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers import empty_cache, noise
from torch import nn

from featx.backbones import Backbone, Preprocessing, TappedNetwork, resolve_taps, trace_of
from featx.forward import cache, resolve_recipe, stream

SMALL = Preprocessing(crop=(32, 32), resize=32)
IMAGES = [noise(seed) for seed in range(3)]


@pytest.fixture(autouse=True)
def nothing_built():
    empty_cache()


def recipe_of(backbone: Backbone, layers: str = "penultimate"):
    return resolve_recipe(IMAGES, backbone=backbone, layers=layers, device="cpu")


def rows_of(recipe, backbone: Backbone | None = None) -> np.ndarray:
    return np.concatenate(
        [rows for block in stream(IMAGES, recipe, backbone, device="cpu") for rows in block.rows.values()]
    )


def at_once(calls) -> list:
    """The results of calls that begin together, each in a thread of its own."""
    barrier = threading.Barrier(len(calls))

    def run(call):
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


@pytest.mark.parametrize("is_passed", [False, True])
def test_threads_that_predict_first_build_a_network_once(monkeypatch, is_passed):
    recipe = recipe_of(Backbone("squeezenet1_1", None, preprocessing=SMALL))
    expected = rows_of(recipe)
    empty_cache()
    built = []
    monkeypatch.setattr(cache, "TappedNetwork", lambda *args: built.append(args) or TappedNetwork(*args))
    backbone = Backbone("squeezenet1_1", None, preprocessing=SMALL) if is_passed else None
    for rows in at_once([lambda: rows_of(recipe, backbone)] * 6):
        np.testing.assert_array_equal(rows, expected)
    assert len(built) == 1


def test_threads_that_build_several_networks_get_the_rows_of_theirs():
    names = ["squeezenet1_0", "squeezenet1_1", "resnet18"] * 2
    recipes = {name: recipe_of(Backbone(name, None, preprocessing=SMALL)) for name in set(names)}
    expected = {name: rows_of(recipe) for name, recipe in recipes.items()}
    empty_cache()
    for name, rows in zip(names, at_once([lambda name=name: rows_of(recipes[name]) for name in names]), strict=True):
        np.testing.assert_array_equal(rows, expected[name])


def test_a_pass_does_not_wait_until_another_network_is_built():
    backbone = Backbone("squeezenet1_1", None, preprocessing=SMALL)
    recipe = recipe_of(backbone)
    expected = rows_of(recipe, backbone)
    with cache.BUILDING, ThreadPoolExecutor(1) as other:
        np.testing.assert_array_equal(other.submit(rows_of, recipe, backbone).result(timeout=60), expected)


def test_a_trace_does_not_see_the_passes_of_other_threads():
    class Waits(nn.Module):
        """While its forward is traced, another thread runs a module and reads a parameter."""

        def __init__(self):
            super().__init__()
            self.first, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x):
            x = self.first(x)
            with ThreadPoolExecutor(1) as pool:
                outputs.append(
                    pool.submit(lambda: self.other(torch.zeros(1, 3, 8, 8)) + self.other.bias.sum()).result()
                )
            return x

    outputs: list = []
    backbone = Backbone(Waits().eval(), preprocessing=SMALL)
    trace = trace_of(backbone)
    assert list(trace.nodes) == ["first"]
    assert all(isinstance(output, torch.Tensor) for output in outputs)
    assert [tap.node for tap in resolve_taps(backbone, ["first"], "avg")[0]] == ["first"]


def test_it_holds_a_bounded_number_and_nothing_of_the_users_own():
    own = Backbone(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), preprocessing=SMALL)
    recipe = recipe_of(own, "1")
    expected = rows_of(recipe, own)
    for crop in range(32, 32 + cache._MAX_BACKBONES + 1):
        named = Backbone("squeezenet1_1", None, preprocessing=Preprocessing(crop=(crop, crop), resize=crop))
        rows_of(recipe_of(named), named)
    assert len(cache._networks) <= cache._MAX_NETWORKS and len(cache._backbones) <= cache._MAX_BACKBONES
    np.testing.assert_array_equal(rows_of(recipe, own), expected)
