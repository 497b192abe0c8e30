"""A recipe survives the file, resolves layer names, and lists its differences from another."""

from __future__ import annotations

import copy
import functools
import json
import math
import pickle
import re
from dataclasses import fields, replace
from importlib import resources

import numpy as np
import pytest
from helpers import assert_tells, recipe

from featx.errors import LayerError, StoreError
from featx.grammar import VIEWS
from featx.recipe import with_views
from featx.store import Difference, Recipe, collection_digest

TAPS = {"layer3:avg": [256], "layer4:avg": [512], "layer4:max": [512], "avgpool:flatten": [512]}
OPTIONAL = {"pass_rows", "weights_file_sha256", "views"}
MADE = recipe(
    TAPS,
    aliases={"penultimate": "avgpool:flatten"},
    precision_error=0.1 + 0.2,
    versions={"torch": "8", "numpy": "2"},
    origin="/Größe/日本",
    collection="5" * 32,
)


def test_json_and_pickle_preserve_a_recipe():
    assert Recipe.from_json(MADE.to_json()) == MADE
    assert pickle.loads(pickle.dumps(MADE)) == MADE
    assert copy.deepcopy(MADE) == MADE
    assert json.loads(MADE.to_json()).keys() == {field.name for field in fields(Recipe)} - OPTIONAL


def test_pass_rows_is_written_only_if_it_is_set():
    halved = replace(MADE, pass_rows=1)
    assert Recipe.from_json(halved.to_json()) == halved and json.loads(halved.to_json())["pass_rows"] == 1
    assert pickle.loads(pickle.dumps(halved)) == halved
    for one, other, fewest in ((MADE, halved, 1), (halved, MADE, 1), (MADE, MADE, None)):
        assert one.joined(other).pass_rows == fewest


def test_the_order_of_layers_survives():
    backwards = recipe(dict(reversed(TAPS.items())))
    assert Recipe.from_json(backwards.to_json()).layers == tuple(reversed(TAPS))
    assert MADE.layers == tuple(TAPS)


def test_text_that_is_not_a_recipe_is_refused(subtests):
    for text in ["", "{", "[]", "1", '{"backbone": "x"}']:
        with subtests.test(ascii(text)):
            with pytest.raises(StoreError) as caught:
                Recipe.from_json(text)
            assert_tells(caught.value, "recipe", "damaged")


def test_a_recipe_with_a_missing_field_is_refused():
    values = json.loads(MADE.to_json())
    for name in values:
        with pytest.raises(StoreError):
            Recipe.from_json(json.dumps({key: value for key, value in values.items() if key != name}))
            pytest.fail(f"{name} may be missing")


WRONG = {
    "a number for a text": {"backbone": 1},
    "a text for a number": {"batch_size": "4"},
    "true for a number": {"threads": True},
    "a list for an object": {"preprocessing": []},
    "a number among versions": {"versions": {"torch": 2}},
    "a list for an alias": {"aliases": {"last": ["layer3:avg"]}},
    "an alias of no layer": {"aliases": {"last": "layer9:avg"}},
    "no layer": {"taps": {}, "aliases": {}},
    "a type that is not stored": {"dtype": "float64"},
    "no images a batch": {"batch_size": 0},
    "many images a batch": {"batch_size": 2**31},
    "no threads": {"threads": -1},
    "passes of no images": {"pass_rows": 0},
    "passes of a whole batch": {"pass_rows": 4},
    "a text for passes": {"pass_rows": "2"},
    "an error that is none": {"precision_error": math.nan},
    "an endless error": {"precision_error": math.inf},
    "nesting without end": {"preprocessing": functools.reduce(lambda inner, _: [inner], range(500), {"a": []})},
    "a hash that is a number": {"weights_sha256": 0},
    "an origin that is true": {"origin": True},
    "a collection of numbers": {"collection": 7},
    "no views": {"views": []},
    "a view that is none": {"views": ["center", "mean"]},
    "a view twice": {"views": ["flip", "flip"]},
    "a text for views": {"views": "center"},
    "views that are lists": {"views": [["center"]]},
}


def test_a_recipe_with_an_invalid_field_is_refused(subtests):
    for name in WRONG:
        with subtests.test(name):
            values = json.loads(MADE.to_json())
            assert Recipe.from_json(json.dumps(values)) == MADE
            with pytest.raises(StoreError) as caught:
                Recipe.from_json(json.dumps(values | WRONG[name]))
            # what is no JSON, or without end, is no recipe; of another the field is named
            damaged = name in ("an error that is none", "an endless error", "nesting without end")
            assert_tells(caught.value, "the recipe is damaged" if damaged else f"{next(iter(WRONG[name]))} must be ")


def test_an_invalid_row_size_is_refused(subtests):
    for size in [0, 2**40, 1.5, True, "3", [3]]:
        with subtests.test(ascii(size)):
            values = json.loads(MADE.to_json())
            values["taps"]["layer3:avg"]["shape"] = [2, size]
            with pytest.raises(StoreError):
                Recipe.from_json(json.dumps(values))


def test_a_shape_has_an_axis_of_the_views(subtests):
    values = json.loads(changed("views").to_json())
    assert values["taps"]["layer3:avg"]["shape"] == [2, 256]
    Recipe.from_json(json.dumps(values))
    for shape in ([256], [3, 256], [2], [2, 1, 256], [256, 2], [2, 2, 2, 2, 2]):
        with subtests.test(str(shape)):
            values["taps"]["layer3:avg"]["shape"] = shape
            with pytest.raises(StoreError) as caught:
                Recipe.from_json(json.dumps(values))
            assert_tells(caught.value, "shape must be ")
    many = changed("views").to_json().replace('"batch_size": 4', '"batch_size": 40000')
    views = json.dumps(changed("views").views)
    assert json.loads(many)["preprocessing"]["crop"] == [32, 32] and Recipe.from_json(
        MADE.to_json().replace('"batch_size": 4', '"batch_size": 40000')
    )
    with pytest.raises(StoreError, match="batch_size x crop must be at most"):
        Recipe.from_json(many.replace(views, json.dumps([*VIEWS])).replace('"shape": [2, ', '"shape": [10, '))


def test_the_recipe_of_a_view(subtests):
    both = changed("views")
    assert both.n_views == 2 and MADE.n_views == 1 and both.view_taps == MADE.view_taps == MADE.taps
    assert both.of_view("mean") is both and MADE.of_view("mean") is MADE.of_view("center") is MADE
    flip = both.of_view("flip")
    flip.check()
    assert flip.views == ["flip"] and flip.taps["layer3:avg"]["shape"] == [1, 256]
    assert flip.of_view("mean") is flip and flip.of_view("flip") == flip
    for made, name in ((MADE, "flip"), (both, "top-left"), (flip, "center"), (both, 3)):
        there = ", ".join(made.views or ["center"])
        with pytest.raises(LayerError, match=f"view {name!r} is not stored.*There are: {there}"):
            made.of_view(name)


def test_a_layer_with_a_missing_or_invalid_part_is_refused(subtests):
    for part in ["node", "pool", "layout", "shape"]:
        with subtests.test(ascii(part)):
            for change in (dict.pop, lambda tap, part: tap.update({part: 7})):
                values = json.loads(MADE.to_json())
                change(values["taps"]["layer4:max"], part)
                with pytest.raises(StoreError):
                    Recipe.from_json(json.dumps(values))


def test_a_layer_is_found_by_full_name_short_name_and_alias():
    assert MADE.layer("layer4:max") == "layer4:max" and MADE.layer("layer3") == "layer3:avg"
    assert MADE.layer("penultimate") == MADE.layer("avgpool") == "avgpool:flatten"


def test_unknown_and_ambiguous_layers_are_refused_with_the_choices(subtests):
    for name, words in [
        ("layer4", ["several pools", "layer4:avg, layer4:max"]),
        ("layer33", ["'layer33'", "close: 'layer3:avg'", *TAPS]),
        ("layer3:max", ["close: 'layer", "layer3:avg"]),
        ("penultimat", ["close: 'penultimate'"]),
        (None, ["4 layers", "layer=", *TAPS]),
    ]:
        with subtests.test(name):
            with pytest.raises(LayerError) as caught:
                MADE.layer(name)
            assert_tells(caught.value, *words)


def test_the_only_layer_needs_no_name():
    alone = MADE.only("layer4:max")
    assert alone.layers == ("layer4:max",) and alone.layer(None) == "layer4:max" == alone.layer("layer4")
    assert alone == replace(MADE, taps={"layer4:max": MADE.taps["layer4:max"]}, aliases=alone.aliases, origin=None)
    assert MADE.only("penultimate").layer("penultimate") == "avgpool:flatten"


def test_a_recipe_of_some_layers_keeps_their_aliases():
    some = MADE.some(["layer4:max", "layer3:avg"])
    assert some.layers == ("layer4:max", "layer3:avg") and some.aliases == {}
    assert MADE.some(["avgpool:flatten"]).aliases == MADE.aliases
    assert replace(some, taps=MADE.taps, aliases=MADE.aliases) == MADE
    assert MADE.some(MADE.layers) == MADE


@pytest.mark.parametrize("name", ["layer3", "penultimate"])
def test_a_recipe_of_one_layer_refuses_the_names_of_others(name):
    with pytest.raises(LayerError) as caught:
        MADE.only("layer4:max").only(name)
    assert_tells(caught.value, repr(name), "layer4:max")


# another value of each field: the name of the difference, what is said there, what here
MEANING = {
    "backbone": ("backbone", "torchvision:resnet18", "torchvision:resnet50"),
    "weights_sha256": ("weights_sha256", "0" * 64, "1" * 64),
    "preprocessing": ("preprocessing.resize", 32, 64),
    "decoder": ("decoder", "none", "another"),
    "views": ("views", None, ["center", "flip"]),
}
ROUNDING = {
    "engine": ("engine", "eager", "another"),
    "precision": ("precision", "float32", "bfloat16"),
    "batch_size": ("batch_size", 4, 5),
    "dtype": ("dtype", "float32", "float16"),
    "device": ("device", "cpu", "cuda"),
    "threads": ("threads", 2, 7),
    "pass_rows": ("pass_rows", None, 1),
}
FOLLOWED = {"device", "threads", "pass_rows"}  # by a run that goes on, so they are not compared
RECORDED = {
    "weights": ("weights", None, "DEFAULT"),
    "aliases": ("aliases.penultimate", "avgpool:flatten", "layer4:max"),
    "precision_error": ("precision_error", 0.1 + 0.2, None),
    "versions": ("versions.torch", "8", "9"),
    "origin": ("origin", "/Größe/日本", None),
    "collection": ("collection", "5" * 32, "6" * 32),
    "weights_file_sha256": ("weights_file_sha256", None, "7" * 64),
}
CHANGES = MEANING | ROUNDING | RECORDED
BYTES = [name for name in {**MEANING, **ROUNDING} if name not in FOLLOWED]


def kind_of(name: str) -> str:
    return "meaning" if name in {*MEANING, "taps"} else "rounding" if name in ROUNDING else "recorded"


def changed(*names: str) -> Recipe:
    """MADE, with other values of some fields."""
    values = {}
    for name in names:
        where, _, here = CHANGES[name]
        values[name] = {**getattr(MADE, name), where.split(".")[1]: here} if "." in where else here
    if "views" in names:  # along the first axis of each row
        values["taps"] = with_views(MADE.taps, values["views"])
    return replace(MADE, **values)


def test_every_field_has_the_kind_in_the_format():
    names = {field.name for field in fields(Recipe)}
    assert {*CHANGES, "taps"} == names
    text = resources.files("featx.store").joinpath("FORMAT.md").read_text().split("| effect of a difference |")[1]
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    assert {row[1].strip(" `"): re.match(r"\w+", row[3].strip())[0] for row in rows} == {n: kind_of(n) for n in names}


def test_two_recipes_are_compared_field_by_field(subtests):
    """Rows of one layer need more equal fields than rows that are used together."""
    for name in CHANGES:
        with subtests.test(name):
            (difference,) = MADE.compare(changed(name))
            assert difference == Difference(*CHANGES[name], kind_of(name))
            (back,) = changed(name).compare(MADE)
            assert back == difference._replace(first=difference.second, second=difference.first)
            assert [*MADE.compare(MADE)] == [*changed(name).compare(changed(name))] == []
            where, there, here = CHANGES[name]
            if name == "weights_sha256":  # as much as tells them apart
                there, here = there[:12], here[:12]
            said = [f"{where}: {there!r} there, {here!r} here"]
            assert MADE.differences(changed(name)) == (said if name in BYTES else [])
            assert MADE.other_meaning(changed(name)) == (said if name in MEANING else [])


def test_a_missing_nested_field_is_a_difference():
    without = replace(MADE, preprocessing={"crop": [32, 32]})
    assert MADE.differences(without) == ["preprocessing.resize: 32 there, None here"]
    assert without.differences(MADE) == ["preprocessing.resize: None there, 32 here"]


def test_layers_differ_by_name_and_shape_but_not_by_order():
    backwards = replace(MADE, taps=dict(reversed(MADE.taps.items())))
    assert MADE.differences(backwards) == [*MADE.compare(backwards)] == []
    fewer = MADE.some(MADE.layers[:2])
    said = f"layers: {', '.join(map(repr, TAPS))} there, {', '.join(map(repr, fewer.layers))} here"
    assert MADE.differences(fewer) == MADE.other_meaning(fewer) == [said]
    assert {found.field for found in MADE.compare(fewer)} == {
        "taps.layer4:max", "taps.avgpool:flatten", "aliases.penultimate"
    }  # fmt: skip
    wider = copy.deepcopy(MADE.taps)
    wider["layer3:avg"]["shape"] = [257]
    (said,) = MADE.differences(replace(MADE, taps=wider))
    assert said.startswith("taps.layer3:avg: ") and "[256]" in said and "[257]" in said


def test_all_differences_are_named_at_once():
    found = [*MADE.compare(changed(*CHANGES))]
    assert sorted(found, key=str) == sorted((Difference(*CHANGES[n], kind_of(n)) for n in CHANGES), key=str)
    for said, names in (
        (MADE.differences(changed(*CHANGES)), BYTES),
        (MADE.other_meaning(changed(*CHANGES)), MEANING),
    ):
        named = [text.split(":")[0].split(".")[0] for text in said]
        assert named == [field.name for field in fields(Recipe) if field.name in names]


def test_recipes_of_the_same_numbers_are_joined():
    other = replace(MADE, aliases={"last": "layer4:max"}, versions={"torch": "9", "numpy": "2", "timm": "1"})
    joined = MADE.joined(other)
    assert joined.aliases == {"penultimate": "avgpool:flatten", "last": "layer4:max"}
    assert joined.versions == {"torch": "8, 9", "numpy": "2", "timm": "1"} and joined.origin == MADE.origin
    assert joined.joined(MADE) == joined.joined(other) == joined  # and again without repeating anything
    assert MADE.joined(replace(other, origin="/elsewhere")).origin is None


def test_the_collection_digest_covers_ids_labels_and_columns_in_order():
    ids, y, columns = ["a", "b"], np.array(["x", "y"]), {"site": np.array(["1", "2"])}
    digest = collection_digest(ids, y, columns)
    others = [
        (ids[::-1], y, columns),
        (["a", "c"], y, columns),
        (["ab", ""], y, columns),
        (ids, y[::-1], columns),
        (ids, None, columns),
        (ids, np.array([1.0, 2.0]), columns),
        (ids, y, {}),
        (ids, y, {"other": columns["site"]}),
        (ids, y, {"site": columns["site"][::-1]}),
    ]
    assert digest == collection_digest(list(ids), y.copy(), dict(columns)) and len(bytes.fromhex(digest)) == 16
    assert len({digest, *(collection_digest(*other) for other in others)}) == 1 + len(others)
