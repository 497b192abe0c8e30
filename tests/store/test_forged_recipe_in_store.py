"""Forged recipes in stores with a valid identity and seal are refused."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forged import good_store, refused, tree_of, values_of, with_tree, with_values, written
from helpers import fresh_python, recipe

from featx.store import layout
from featx.store.hdf5 import Array

GOOD = good_store()


def _changed(**changes: Any) -> Callable[[dict[str, Any]], str]:
    return lambda values: json.dumps(values | changes, ensure_ascii=False)


def _without(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda values: json.dumps({key: value for key, value in values.items() if key != name}, ensure_ascii=False)


def _tap(**changes: Any) -> Callable[[dict[str, Any]], str]:
    """Change values of the first tap."""
    return lambda values: json.dumps(values | {"taps": values["taps"] | {"a:avg": values["taps"]["a:avg"] | changes}})


def _replaced(old: str, new: str) -> Callable[[dict[str, Any]], str]:
    def changed(values: dict[str, Any]) -> str:
        text = json.dumps(values, ensure_ascii=False)
        assert old in text
        return text.replace(old, new, 1)

    return changed


def _nested(depth: int, opening: str, closing: str) -> Callable[[dict[str, Any]], str]:
    return _replaced('"preprocessing": {', '"preprocessing": {"x": ' + opening * depth + "1" + closing * depth + ", ")


# Each field is once of a wrong type; the slow test below tries every field with every wrong value. Of values with an
# equal check (a tap's texts, a number that must be whole), each name and each value occurs, not each pair.
FIELDS = [*json.loads(recipe({"a:avg": (1,)}).to_json())]
RECIPES: dict[str, Callable[[dict[str, Any]], str]] = {
    **{f"{text!r} alone": lambda _, text=text: text for text in ("", "[]", "{}", '"x"', "NaN", "{", "\0")},
    **{f"without {name}": _without(name) for name in (FIELDS[0], FIELDS[-1])},
    **{f"{name} as {value!r}": _changed(**{name: value})
       for name, value in zip(FIELDS, itertools.cycle([[], True, {}]), strict=False)
       if value != getattr(recipe({"a:avg": (1,)}), name)},
    "backbone as null": _changed(backbone=None),
    **{f"lists in one another, {depth} deep": _nested(depth, "[", "]") for depth in (100, 990, 10**5)},
    "objects in one another": _nested(10**5, '{"a": ', "}"),
    "brackets that never close": _nested(10**5, "[", ""),
    "more after it": lambda values: json.dumps(values) + "{}",
    "a blank after it": lambda values: json.dumps(values) + " ",
    "a byte order mark before it": lambda values: "\ufeff" + json.dumps(values),
    "another order": lambda values: json.dumps(dict(reversed(values.items()))),
    "blanks left out": lambda values: json.dumps(values, separators=(",", ":")),
    "a field more": _changed(more=1),
    "a field twice": _replaced('{"backbone"', '{"backbone": "x", "backbone"'),
    "a tap twice": _replaced('"taps": {', '"taps": {"a:avg": 1, '),
    "escaped letters": _replaced("torchvision", "\\u0074orchvision"),
    "half a letter": _replaced("torchvision", "\\ud800"),
    "half a letter in a layer": _replaced("a:avg", "\\ud800:avg"),
    **{f"error {value}": _replaced('"precision_error": null', f'"precision_error": {value}')
       for value in ("NaN", "-Infinity", "1e999", "9" * 5000, "0.10")},
    **{f"preprocessing with {value}": _replaced('"crop": [32, 32]', f'"crop": {value}')
       for value in ("[Infinity]", "9" * 5000, "1.50", "01")},
    **{f"batch_size {value}": _replaced('"batch_size": 4', f'"batch_size": {value}')
       for value in ("0", "-1", "4.0", "9" * 4000, "9" * 5000, "1e3", "true", '"4"', str(2**63))},
    **{f"threads {value}": _replaced('"threads": 2', f'"threads": {value}') for value in ("0", "2.0", str(2**63))},
    **{f"dtype {value!r}": _changed(dtype=value) for value in ("float16", "float64", "<f4", "float32 ")},
    "no taps": _changed(taps={}),
    **{f"shape {value}": _tap(shape=value)
       for value in ([], [3.0], [0], [-3], [True], [[3]], "3", None, [1, 3], [2**40], [2**200], [2**39, 2**39],
                     [3, *[1] * 200])},
    "tap's node null": _tap(node=None),
    "tap's pool 1": _tap(pool=1),
    "tap's layout []": _tap(layout=[]),
    "a tap that is a list": lambda values: json.dumps(values | {"taps": values["taps"] | {"a:avg": []}}),
    "a tap that is a text": lambda values: json.dumps(values | {"taps": values["taps"] | {"a:avg": "node"}}),
    "another layer's name": _replaced('"taps": {"a:avg"', '"taps": {"c:avg"'),
    "layers in another order": lambda values: json.dumps(values | {"taps": dict(reversed(values["taps"].items()))}),
    "an alias of no layer": _changed(aliases={"last": "z:avg"}),
    "an alias of a list": _changed(aliases={"last": ["a:avg"]}),
    "a version that is a number": _changed(versions={"torch": 2}),
}  # fmt: skip


def _forged_is_refused(path: Path, change: Callable[[dict[str, Any]], str]) -> None:
    values = values_of(GOOD)
    text = change(json.loads(values["recipe"][0]))
    values["recipe"] = np.array([text.encode()], f"S{max(1, len(text.encode()))}")
    content = with_values(GOOD, values)
    assert content != GOOD
    refused(written(path, content), "not a whole")


def test_a_recipe_that_featx_does_not_write_is_refused(tmp_path, subtests):
    for name in RECIPES:
        with subtests.test(ascii(name)):
            _forged_is_refused(tmp_path / "a.h5", RECIPES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_is_missing_or_of_any_wrong_type_is_refused(tmp_path, name):
    _forged_is_refused(tmp_path / "a.h5", _without(name))
    for value in ([], True, {}, None, 1.5):
        # null is valid for four fields, an empty object for two, a number for none
        if value != getattr(recipe({"a:avg": (1,)}), name) and (name, value) != ("precision_error", 1.5):
            if value is not None or name not in ("weights", "precision_error", "origin", "collection"):
                _forged_is_refused(tmp_path / "a.h5", _changed(**{name: value}))


BOMBS = """
import json, resource, signal
from featx.errors import FeatxError
from featx.store import FeatureStore
signal.alarm(60)
said = {}
for path in PATHS:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**29, -1))
    try:
        store = FeatureStore(path)
        said[path] = "opened"
    except BaseException as error:
        said[path] = f"{type(error).__name__}: {error}"
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    said[path + " KiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps(said))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for memory")
def test_large_files_of_many_small_objects_are_refused_in_little_memory(tmp_path):
    values, texts = values_of(GOOD), {}
    said = json.loads(values["recipe"][0])
    for name, bomb in (("lists", "[]"), ("numbers", "1"), ("texts", '"é"'), ("objects", '{"a":{}}')):
        texts[name] = _replaced('"preprocessing": {', '"preprocessing": {"x": [1' + f",{bomb}" * (4 << 20) + "], ")(
            said
        )
    paths = []
    for name, text in texts.items():
        paths.append(
            written(tmp_path / f"{name}.h5", with_values(GOOD, values | {"recipe": np.array([text.encode()])}))
        )
    tree = tree_of(GOOD)
    tree["columns"] = {f"{i}": Array("S1", (0,), 0) for i in range(100_000)}
    paths.append(written(tmp_path / "columns.h5", with_tree(GOOD, tree)))
    attributes = {**layout.ATTRIBUTES, **{f"x{i}": bytes(60_000) for i in range(100)}}
    paths.append(written(tmp_path / "attributes.h5", with_tree(GOOD, tree_of(GOOD), attributes)))
    said = fresh_python(BOMBS.replace("PATHS", repr([*map(str, paths)])))
    for path in paths:
        assert said[str(path)].startswith("StoreError: "), said[str(path)]
        assert said[f"{path} KiB"] * 1024 < 2**24 + 2 * path.stat().st_size, path.name
