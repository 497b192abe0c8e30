"""A recipe survives the file, names its layers, and tells by name what differs from another."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import fields, replace

import pytest
from helpers import assert_tells, recipe

from featx.errors import LayerError, StoreError
from featx.store import Recipe

TAPS = {"layer3:avg": [256], "layer4:avg": [512], "layer4:max": [512], "avgpool:flatten": [512]}
MADE = recipe(TAPS, aliases={"penultimate": "avgpool:flatten"}, precision_error=0.1 + 0.2, origin="/Größe/日本")


def test_json_and_pickle_give_it_back_equal():
    assert Recipe.from_json(MADE.to_json()) == MADE
    assert pickle.loads(pickle.dumps(MADE)) == MADE
    assert copy.deepcopy(MADE) == MADE
    assert json.loads(MADE.to_json()).keys() == {field.name for field in fields(Recipe)}


def test_the_order_of_layers_survives():
    backwards = recipe(dict(reversed(TAPS.items())))
    assert Recipe.from_json(backwards.to_json()).layers == tuple(reversed(TAPS))
    assert MADE.layers == tuple(TAPS)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1", '{"backbone": "x"}'])
def test_what_is_no_recipe_is_refused(text):
    with pytest.raises(StoreError) as caught:
        Recipe.from_json(text)
    assert_tells(caught.value, "recipe", "damaged")


@pytest.mark.parametrize("name", [field.name for field in fields(Recipe)])
def test_a_recipe_that_lacks_a_field_is_refused(name):
    values = json.loads(MADE.to_json())
    del values[name]
    with pytest.raises(StoreError):
        Recipe.from_json(json.dumps(values))


@pytest.mark.parametrize(
    "name, full",
    [
        ("layer4:max", "layer4:max"),
        ("layer3", "layer3:avg"),
        ("penultimate", "avgpool:flatten"),
        ("avgpool", "avgpool:flatten"),
    ],
)
def test_a_layer_goes_by_full_short_and_other_name(name, full):
    assert MADE.layer(name) == full


def test_names_that_are_not_one_layer_are_refused_with_the_choices():
    for name, words in {
        "layer4": ["several pools", "layer4:avg, layer4:max"],
        "layer33": ["'layer33'", "close: 'layer3:avg'", *TAPS],
        "layer3:max": ["close: 'layer", "layer3:avg"],
        "penultimat": ["close: 'penultimate'"],
        None: ["4 layers", "layer=", *TAPS],
    }.items():
        with pytest.raises(LayerError) as caught:
            MADE.layer(name)
        assert_tells(caught.value, *words)


def test_the_only_layer_needs_no_name():
    alone = MADE.only("layer4:max")
    assert alone.layers == ("layer4:max",) and alone.layer(None) == "layer4:max" == alone.layer("layer4")
    assert alone == replace(MADE, taps={"layer4:max": MADE.taps["layer4:max"]}, aliases=alone.aliases, origin=None)
    assert MADE.only("penultimate").layer("penultimate") == "avgpool:flatten"


def test_a_recipe_of_one_layer_refuses_the_names_of_others():
    for name in ("layer3", "penultimate"):
        with pytest.raises(LayerError) as caught:
            MADE.only("layer4:max").only(name)
        assert_tells(caught.value, repr(name), "layer4:max")


DECIDING = {
    "backbone": "torchvision:resnet50",
    "weights_sha256": "1" * 64,
    "preprocessing": {"crop": [64, 64], "resize": 32},
    "decoder": "another",
    "engine": "another",
    "precision": "bfloat16",
    "batch_size": 5,
    "dtype": "float16",
}
RECORDED = {
    "weights": "DEFAULT",
    "aliases": {},
    "precision_error": None,
    "device": "cuda",
    "threads": 7,
    "versions": {"torch": "9"},
    "origin": None,
}


def test_every_field_either_decides_or_is_recorded():
    assert {*DECIDING, *RECORDED, "taps"} == {field.name for field in fields(Recipe)}


@pytest.mark.parametrize("name", DECIDING)
def test_a_field_that_decides_the_numbers_is_a_difference_by_name(name):
    (said,) = MADE.differences(replace(MADE, **{name: DECIDING[name]}))
    assert said.startswith(f"{name}: {getattr(MADE, name)!r} there, {DECIDING[name]!r} here")


@pytest.mark.parametrize("name", RECORDED)
def test_a_field_that_is_only_recorded_is_no_difference(name):
    assert getattr(MADE, name) != RECORDED[name]
    assert MADE.differences(replace(MADE, **{name: RECORDED[name]})) == []


def test_layers_differ_by_name_and_shape_but_not_by_order():
    assert MADE.differences(replace(MADE, taps=dict(reversed(MADE.taps.items())))) == []
    fewer = dict(list(MADE.taps.items())[:2])
    (said,) = MADE.differences(replace(MADE, taps=fewer))
    assert said == f"layers: {', '.join(map(repr, TAPS))} there, {', '.join(map(repr, fewer))} here"
    wider = copy.deepcopy(MADE.taps)
    wider["layer3:avg"]["shape"] = [257]
    assert len(MADE.differences(replace(MADE, taps=wider))) == 1


def test_all_differences_are_named_at_once():
    said = MADE.differences(replace(MADE, **DECIDING))
    assert [text.split(":")[0] for text in said] == [f.name for f in fields(Recipe) if f.name in DECIDING]
