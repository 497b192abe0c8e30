"""Forged statistics of images with a valid identity and seal: what a writer does not write is refused, and any numbers
in it harm nothing.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from forged import changed_values, good_store, refused, tree_of, values_of, with_tree, with_values, written

from featx import merge
from featx.image_statistics import CAMERA_BYTES, IMAGE_STATISTICS
from featx.store import FeatureStore, export, layout, near_duplicates
from featx.store.hdf5 import Array

N = 69  # images of the good store that have rows


def records() -> np.ndarray:
    made = np.zeros(N, IMAGE_STATISTICS)
    made["hash"] = np.random.default_rng(0).integers(0, 2**64, N, np.uint64)
    made["contrast"], made["camera"] = 0.3, "Canon č".encode()
    return made


def group_of(made: np.ndarray) -> dict[str, np.ndarray]:
    numbers = {name: np.ascontiguousarray(made[name]) for name in IMAGE_STATISTICS.names if name != "camera"}
    return numbers | {"camera": np.array(made["camera"].tolist())}


@cache
def good() -> bytes:
    """The good store with statistics."""
    return with_statistics(group_of(records()))


def with_statistics(group: dict[str, np.ndarray]) -> bytes:
    metadata: dict[str, object] = {}
    for name, values in values_of(good_store()).items():
        metadata[name] = values
        if name == "images":
            metadata["statistics"] = group
    return with_values(good_store(), metadata)


CHANGED = {
    "one more": lambda array: replace(array, shape=(N + 1,)),
    "one less": lambda array: replace(array, shape=(N - 1,)),
    "none": lambda array: replace(array, shape=(0,), offset=0),
    "a single one": lambda array: replace(array, shape=()),
    "a column": lambda array: replace(array, shape=(N, 1)),
    "of other bytes": lambda array: replace(array, dtype="<u1"),
    "of half the bytes": lambda array: replace(array, dtype="<f2"),
    "elsewhere": lambda array: replace(array, offset=array.offset + 64),
    "of 2 GiB of text": lambda array: replace(array, dtype=f"S{2**31 - 1}"),
}


def test_the_store_itself_is_good(tmp_path):
    store = FeatureStore(written(tmp_path / "a.h5", good()))
    assert store.image_records(np.arange(N)).tobytes() == records().tobytes()
    assert FeatureStore(export(store, tmp_path / "b.h5")).image_records(np.arange(N)).tobytes() == records().tobytes()


@pytest.mark.parametrize("name", IMAGE_STATISTICS.names)
def test_another_type_or_shape_is_refused(tmp_path, name):
    for change in CHANGED.values():
        tree = tree_of(good())
        tree["statistics"][name] = change(tree["statistics"][name])
        refused(written(tmp_path / "a.h5", with_tree(good(), tree)), "not a whole", measured=False)
    signed = {"<u8": "<i8", "<i8": "<u8", "<f4": "<i4"}
    tree = tree_of(good())
    array = tree["statistics"][name]
    tree["statistics"][name] = replace(array, dtype=signed.get(array.dtype, "<u1"))
    refused(written(tmp_path / "a.h5", with_tree(good(), tree)), "not a whole", measured=False)


@pytest.mark.parametrize("name", IMAGE_STATISTICS.names)
def test_a_missing_or_renamed_dataset_is_refused(tmp_path, name):
    group = group_of(records())
    for kept in ({key: group[key] for key in group if key != name},
                 {f"{key}2" if key == name else key: values for key, values in group.items()},
                 {name: group[name]} | group if name != "hash" else dict(reversed(group.items()))):  # fmt: skip
        refused(written(tmp_path / "a.h5", with_statistics(kept)), "not those of a store", measured=False)


def test_additional_datasets_and_versions_are_refused(tmp_path):
    for more in ({"more": np.zeros(N)}, {"camera@offsets": np.zeros(N + 1, "<u8")}, {}):
        group = group_of(records()) | more if more else {}
        refused(written(tmp_path / "a.h5", with_statistics(group)), "not a whole", measured=False)
    for version in (1, 2):
        refused(
            written(tmp_path / "a.h5", with_tree(good(), tree_of(good()), version=version)), "another format version"
        )
    plain = good_store()
    for version in (2, 3):
        refused(written(tmp_path / "a.h5", with_tree(plain, tree_of(plain), version=version)), "another format version")
    tree = tree_of(good())
    tree["statistics"] = Array("<i8", (N,), tree["statistics"]["hash"].offset)
    refused(written(tmp_path / "a.h5", with_tree(good(), tree)), "not a whole")


CAMERAS = {
    "bytes": b"\xff\xfe",
    "cut": b"Can\xc4",
    "long": "č".encode() * (CAMERA_BYTES // 2 + 1),
    "huge": b"x" * 10**6,
}


@pytest.mark.parametrize("camera", CAMERAS.values(), ids=CAMERAS)
def test_a_camera_that_is_too_long_or_not_unicode_is_refused(tmp_path, camera):
    cameras = [b""] * (N - 1) + [camera]
    group = group_of(records()) | {"camera": np.array(cameras)}
    reason = "name of a camera has more than 64 bytes" if len(camera) > CAMERA_BYTES else "not UTF-8"
    refused(written(tmp_path / "a.h5", with_statistics(group)), reason)
    content, offsets = np.frombuffer(camera, np.uint8), np.array([0] * N + [len(camera)], "<u8")
    group.pop("camera")
    group |= {"camera": content, f"camera{layout.OFFSETS}": offsets}
    refused(written(tmp_path / "a.h5", with_statistics(group)), reason)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 3e38])
def test_any_numbers_harm_nothing(tmp_path, number):
    made = records()
    for name in IMAGE_STATISTICS.names:
        if IMAGE_STATISTICS[name].kind == "f":
            made[name][::2] = number
        elif IMAGE_STATISTICS[name].kind == "i":
            made[name][::3], made[name][1::3] = -(2**63), 2**63 - 1
    store = FeatureStore(written(tmp_path / "a.h5", with_statistics(group_of(made))))
    assert store.statistics["taken"].dtype == "<M8[s]" and store.image_records(np.arange(N)).tobytes() == made.tobytes()
    near_duplicates(store, layer="last")
    other = changed_values(store.path.read_bytes(), lambda values: values["images"].update(
        key=values["images"]["key"] ^ 1, id=np.array([f"z{i}".encode() for i in range(N)])))  # fmt: skip
    assert merge([store, written(tmp_path / "b.h5", other)], tmp_path / "c.h5").statistics["contrast"].shape == (2 * N,)
