"""Forged datasets, offsets and texts with a valid identity and seal are refused.

`test_hostile.py` forges objects that a store does not have; this file forges those that it has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from forged import changed_tree, changed_values, good_store, refused, tree_of, with_tree, written

from featx.store import layout
from featx.store.compression import filters_of
from featx.store.hdf5 import Array, Chunks

GOOD = good_store()
GZIP = filters_of("<f4")["gzip"]
HUGE = (2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - layout.PAGE, 2**64 - 1 + layout.PAGE)  # the last: undefined


def every_array(tree: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """(group, name in it) of each dataset."""
    found = []
    for name, node in tree.items():
        found += [(tree, name)] if isinstance(node, Array) else [(node, key) for key in node]
    return found


# --- datasets of other places, shapes and types


def _other_type(array: Array, text: str) -> str:
    """Numbers of as many bytes instead of numbers, or `text`; for text, bytes."""
    kind, size = array.dtype[:2], array.dtype[2:]
    return "<u1" if kind[0] == "S" else text or {"<f": "<i", "<i": "<u", "<u": "<i"}[kind] + size


OF_A_DATASET: dict[str, Callable[[Array], Array]] = {
    "elsewhere by 1": lambda array: replace(array, offset=array.offset + 1),
    "elsewhere by a page": lambda array: replace(array, offset=array.offset + layout.PAGE),
    "before the file's objects": lambda array: replace(array, offset=layout.PAGE),
    **{f"at {at}": lambda array, at=at: replace(array, offset=at) for at in HUGE[2:]},
    "of another type": lambda array: replace(array, dtype=_other_type(array, "")),
    "of text": lambda array: replace(array, dtype=_other_type(array, "S1")),
    "of half the bytes": lambda array: replace(array, dtype="<f2"),
    "of text of 2 GiB": lambda array: replace(array, dtype=f"S{2**31 - 1}"),
    "one more": lambda array: replace(array, shape=(array.shape[0] + 1, *array.shape[1:])),
    "one less": lambda array: replace(array, shape=(array.shape[0] - 1, *array.shape[1:])),
    "none": lambda array: replace(array, shape=(0, *array.shape[1:]), offset=0),
    "a single one": lambda array: replace(array, shape=()),
    "in another shape": lambda array: replace(array, shape=(*array.shape, 1)),
    "the wrong way round": lambda array: replace(array, shape=(1, *array.shape)),
    "wide of nothing": lambda array: replace(array, shape=(*array.shape[:1], 0), offset=0),
    "nothing times much": lambda array: replace(array, shape=(0, 2**63, 2**63), offset=0),
    "of 40 dimensions": lambda array: replace(array, shape=(*array.shape, *[1] * 40)),
    "of 255 dimensions": lambda array: replace(array, shape=tuple([1] * 255)),
    **{f"of {n} rows": lambda array, n=n: replace(array, shape=(n, *array.shape[1:])) for n in HUGE[2:5]},
    "whose size wraps around": lambda array: replace(array, shape=(2**32, 2**32, *array.shape)),
    "in pieces": lambda array: replace(
        array, offset=0, chunks=Chunks(64, GZIP, tuple((8193 + 9 * i, 9) for i in range(-(-array.shape[0] // 64))))
    ),
    "in one piece far away": lambda array: replace(
        array, offset=0, chunks=Chunks(array.shape[0], GZIP, ((2**62, 2**15),))
    ),
    "in no pieces": lambda array: replace(
        array, offset=0, shape=(0, *array.shape[1:]), chunks=Chunks(64, GZIP, ())
    ),
    "in pieces of no filter": lambda array: replace(
        array, offset=0, chunks=Chunks(array.shape[0], (), ((array.offset, array.nbytes),))
    ),
}  # fmt: skip


def test_no_dataset_may_have_another_type_or_shape(tmp_path, subtests):
    for name in OF_A_DATASET:
        with subtests.test(name):
            tried = len(every_array(tree_of(GOOD)))
            assert tried > 12
            for i in range(tried):
                tree = tree_of(GOOD)
                group, key = every_array(tree)[i]
                group[key] = OF_A_DATASET[name](group[key])
                refused(written(tmp_path / "a.h5", with_tree(GOOD, tree)), "not a whole", measured=i < 4)


def test_no_dataset_may_overlap_another(tmp_path):
    tree = tree_of(GOOD)
    offsets = [group[key].offset for group, key in every_array(tree)]
    for i in range(len(offsets)):
        for offset in {*offsets} - {offsets[i]}:
            tree = tree_of(GOOD)
            group, key = every_array(tree)[i]
            group[key] = replace(group[key], offset=offset)
            refused(written(tmp_path / "a.h5", with_tree(GOOD, tree)), "not a whole", measured=False)


def test_children_may_not_be_missing_additional_or_in_another_order(tmp_path):
    def tried(change: Callable[[dict[str, Any]], object]) -> None:
        refused(written(tmp_path / "a.h5", changed_tree(GOOD, change)), "not a whole", measured=False)

    def in_order(group: dict[str, Any], keys: list[str]) -> None:
        items = {key: group[key] for key in keys}
        group.clear()
        group.update(items)

    names = [*tree_of(GOOD)]
    for name in names:
        tried(lambda tree, name=name: tree.pop(name))
        tried(lambda tree, name=name: tree.update({name: Array("<i8", (0,), 0)}))
        tried(lambda tree, name=name: tree.update({name: {}}))
        tried(lambda tree, name=name: tree.update({name + "2": tree.pop(name)}))
        tried(lambda tree, name=name: in_order(tree, [*[other for other in names if other != name], name])) if (
            name != names[-1]
        ) else None
    tried(lambda tree: tree.update(more=Array("<i8", (0,), 0)))
    tried(lambda tree: tree.update(more={}))
    for name in names:
        if isinstance(tree_of(GOOD)[name], dict):
            tried(lambda tree, name=name: tree[name].update(more=Array("<i8", (0,), 0)))
            for key in tree_of(GOOD)[name]:
                tried(lambda tree, name=name, key=key: tree[name].pop(key))
                if name not in ("columns",):
                    tried(lambda tree, name=name, key=key: tree[name].update({key + "2": tree[name].pop(key)}))
            if len(tree_of(GOOD)[name]) > 1:
                tried(lambda tree, name=name: in_order(tree[name], [*reversed(tree[name])]))
    tried(lambda tree: tree["columns"].update({f"{i}": Array("S1", (0,), 0) for i in range(20_000)}))


def test_invalid_labels_are_refused(tmp_path, subtests):
    for labels in [
        {},
        Array("<f8", (0,), 0),
        Array("<f8", (3,), 2**50),
        Array("<f8", (69,), layout.FIRST_LAYER),
        {"value": Array("<f8", (0,), 0)},
        {"classes": Array("S1", (0,), 0)},
        {"code": Array("<i8", (0,), 0), "classes": Array("S1", (0,), 0)},
        {"classes": Array("S1", (0,), 0), "code": Array("<i8", (0,), 0)},
        {"classes": Array("S1", (3, 0), 0), "code": Array("<i8", (69,), layout.FIRST_LAYER)},
    ]:
        with subtests.test(ascii(labels)):

            def labelled(tree: dict[str, Any], labels: object = labels) -> None:
                items = {**tree}
                tree.clear()
                for name, node in items.items():
                    tree[name] = node
                    if name == "images":
                        tree["labels"] = labels

            refused(written(tmp_path / "a.h5", changed_tree(good_store(labels="none"), labelled)), "not a whole")


# --- values, each dataset of them in its right place


def _set(part: str, name: str, at: int, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda values: values[part][name].__setitem__(at, value)


def _become(part: str, name: str, made: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, Any]], object]:
    return lambda values: values[part].update({name: made(values[part][name])})


BAD_TEXT = (b"\xff", b"a\x80", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80")
OF_VALUES: dict[str, Callable[[dict[str, Any]], object]] = {
    **{f"key {value}": _set("images", "key", 7, value) for value in (-1, 2**53, -(2**63), 2**63 - 1)},
    "two equal keys": lambda values: values["images"]["key"].__setitem__(3, values["images"]["key"][60]),
    "two equal ids": lambda values: values["images"]["id"].__setitem__(3, values["images"]["id"][60]),
    **{f"label {value}": _set("labels", "code", 7, value) for value in (-1, 3, 2**62, -(2**63))},
    **{f"row {value} with nan": _set("nonfinite", "row", 0, value) for value in (-1, 69, 2**62)},
    **{f"layer {value} with nan": _set("nonfinite", "layer", 0, value) for value in (-1, 2, 2**62)},
    **{
        f"{part}/{name} {text!r}": _become(part, name, lambda old, text=text: np.array([*old[1:], text], "S20"))
        for part, name in [
            ("images", "id"), ("labels", "classes"), ("columns", "site%2F1"), ("failures", "id"),
            ("failures", "code"), ("failures", "reason"), ("nonfinite", "what"),
        ]
        for text in (BAD_TEXT if part == "images" else BAD_TEXT[:1])
    },
    **{
        f"{part}/{name} as {dtype}": _become(part, name, lambda old, dtype=dtype: old.astype(dtype))
        for part, name, dtype in [
            ("images", "key", "<i4"), ("labels", "code", "<f8"), ("nonfinite", "row", "S20"), ("images", "key", "<u8"),
            ("checksums", "a:avg", "<i8"),
        ]
    },
    "classes in another order": _become("labels", "classes", lambda old: old[::-1]),
    "two equal classes": _become("labels", "classes", lambda old: old[[0, 1, 1]]),
    "fewer classes": _become("labels", "classes", lambda old: old[:2]),
    "no classes": _become("labels", "classes", lambda old: old[:0]),
    "digests of 15 bytes": _become("images", "digest", lambda old: old[:, :15]),
    "digests as text": _become("images", "digest", lambda old: np.ascontiguousarray(old).view("S16")),
    **{
        f"a column {name!r}": lambda values, name=name: values["columns"].update(
            {name: values["columns"]["site%2F1"]}
        )
        for name in ("%ff", "%41", "%2f", "a/b", "", "%%", "a%", "%zz", "..", "a\0b", "é", "site%2f1")
    },
    "a recipe that is not UTF-8": lambda values: values.update(recipe=np.array([b"\xff" + values["recipe"][0]])),
    "two recipes": lambda values: values.update(recipe=values["recipe"][[0, 0]]),
    "no recipe": lambda values: values.update(recipe=values["recipe"][:0]),
    "an empty recipe": lambda values: values.update(recipe=np.zeros(1, "S9")),
    "a recipe of numbers": lambda values: values.update(recipe=np.zeros(1, "<f8")),
}  # fmt: skip


def test_invalid_values_are_refused(tmp_path, subtests):
    for name in OF_VALUES:
        with subtests.test(name):
            content = changed_values(GOOD, OF_VALUES[name])
            assert content != GOOD
            refused(written(tmp_path / "a.h5", content), "not a whole")


def test_one_value_more_or_less_is_refused(tmp_path, subtests):
    for part, name in [
        ("images", "key"),
        ("images", "id"),
        ("images", "digest"),
        ("labels", "code"),
        ("columns", "site%2F1"),
        ("failures", "id"),
        ("failures", "code"),
        ("failures", "reason"),
        ("nonfinite", "row"),
        ("nonfinite", "layer"),
        ("nonfinite", "what"),
        ("checksums", "a:avg"),
        ("checksums", "b:none"),
    ]:
        with subtests.test(ascii((part, name))):
            for change in (lambda old: old[np.r_[0, : len(old)]], lambda old: old[1:]):
                content = changed_values(GOOD, _become(part, name, change))
                refused(written(tmp_path / "a.h5", content), "not a whole", measured=False)


def test_bytes_hidden_between_metadata_are_refused(tmp_path):
    """A store has one form, without bytes that are never read."""
    tree = tree_of(GOOD)
    tried = 0
    for group, key in every_array(tree):
        array = group[key]
        if (end := array.offset + array.nbytes) % 64 and array.offset >= tree["recipe"].offset:
            content = bytearray(GOOD)
            content[end] = 1
            refused(written(tmp_path / "a.h5", with_tree(bytes(content), tree)), "not a whole")
            tried += 1
    assert tried > 5
