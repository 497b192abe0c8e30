"""What a user is told of a store that was made: numbers that are none, images that contradict each other."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from helpers import noise, save_noise
from runs import extract, same_file
from torch import nn

import featx
from featx.errors import ContradictionWarning, NonFiniteWarning, UnreadableImagesWarning

LAYERS = ["times:max", "root:avg"]
OPTIONS = {"layers": LAYERS, "batch_size": 4, "precision": "float32"}


class Times(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 70_000  # of white is more than a float16 holds


class Root(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sqrt(x - 1000)  # of black is no number


@pytest.fixture(scope="module")
def network() -> featx.Backbone:
    preprocessing = featx.Preprocessing(crop=(32, 32), resize=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return featx.Backbone(nn.Sequential(OrderedDict(times=Times(), root=Root())), preprocessing=preprocessing)


def flat(value: int) -> np.ndarray:
    return np.full((24, 32, 3), value, np.uint8)


def entries(store: featx.FeatureStore) -> list[tuple[str, str, str]]:
    return [(entry.id, entry.layer, entry.what) for entry in store.nonfinite]


def test_rows_that_are_no_numbers_are_told_with_image_and_layer(network, tmp_path):
    images = [flat(value) for value in (100, 255, 60, 0, 120)]
    with pytest.warns(NonFiniteWarning, match="1 rows .* '3' in 'root:avg' .nan.$") as warned:
        full = extract(images, tmp_path / "a.h5", network, **OPTIONS)
    assert len(warned) == 1 and entries(full) == [("3", "root:avg", "nan")]
    told = "2 rows .* '1' in 'times:max' .inf., '3' in 'root:avg' .nan.; float32 may hold what float16 cannot"
    with pytest.warns(NonFiniteWarning, match=told) as warned:
        half = featx.extract(
            images, tmp_path / "b.h5", network, dtype="float16", device="cpu", progress=False, **OPTIONS
        )
    assert len(warned) == 1 and warned[0].filename == __file__  # the caller's line
    assert entries(half) == [("1", "times:max", "inf"), ("3", "root:avg", "nan")]
    for name in half.layers:
        found = {half.ids[i] for i in np.flatnonzero(~np.isfinite(half[name]).all(axis=1))}
        assert found == {entry.id for entry in half.nonfinite if entry.layer == name}
    assert np.isfinite(full["times:max"]).all()


def test_finite_rows_warn_of_nothing(network, tmp_path):
    store = extract([flat(value) for value in (100, 110)], tmp_path / "a.h5", network, dtype="float16", **OPTIONS)
    assert not store.nonfinite  # and a warning would be an error


@pytest.mark.filterwarnings("ignore::featx.errors.UnreadableImagesWarning")
def test_they_are_told_of_whatever_way_the_rows_came(network, break_off, tmp_path):
    """Copied from an old store, noted in a journal, or moved up because an image before them failed."""
    images = [flat(60 + i) for i in range(130)]
    images[5], images[40], images[100], images[120] = np.zeros((2, 2)), flat(255), flat(0), flat(254)
    ids = list(map(str, range(130)))
    expected = [("40", "times:max", "inf"), ("100", "root:avg", "nan"), ("120", "times:max", "inf")]

    def run(output, chosen=range(130)):
        options = OPTIONS | {"dtype": "float16", "ids": [ids[i] for i in chosen]}
        return extract([images[i] for i in chosen], output, network, **options)

    with pytest.warns(NonFiniteWarning):
        whole = run(tmp_path / "a.h5")
    assert entries(whole) == expected
    break_off(lambda: run(tmp_path / "b.h5"), after=20)
    with pytest.warns(NonFiniteWarning):
        assert same_file(run(tmp_path / "b.h5"), whole)
    with pytest.warns(NonFiniteWarning):
        run(tmp_path / "c.h5", range(30, 110))
    with pytest.warns(NonFiniteWarning, match="'40' in 'times:max' .inf., '100' .*, '120' "):
        assert same_file(run(tmp_path / "c.h5"), whole)


def test_images_of_the_same_content_and_other_labels_are_told(tmp_path):
    photos = tmp_path / "photos"
    for name, seed in {"a/1": 0, "a/2": 1, "a/3": 1, "b/1": 2, "b/2": 0, "b/3": 3, "c/1": 2}.items():
        save_noise(photos / f"{name}.png", seed)
    told = "2 images occur several times with different labels.*: 'a/1.png' .a. and 'b/2.png' .b."
    with pytest.warns(ContradictionWarning, match=told) as warned:
        store = featx.extract(photos, tmp_path / "a.h5", "bundled:pixels", device="cpu", progress=False)
    assert len(warned) == 1 and warned[0].filename == __file__
    names = store.ids.tolist()
    assert [[names[row] for row in group] for group in store.contradictions] == [
        ["a/1.png", "b/2.png"],
        ["b/1.png", "c/1.png"],
    ]
    assert [[names[row] for row in group] for group in store.duplicates] == [
        ["a/1.png", "b/2.png"],
        ["a/2.png", "a/3.png"],
        ["b/1.png", "c/1.png"],
    ]
    assert extract(photos, store.path).identity == store.identity  # what was told is not told again


def test_duplicates_with_equal_labels_or_none_are_no_contradiction(tmp_path):
    images = [noise(0), noise(1), noise(0)]
    assert len(extract(images, tmp_path / "a.h5").duplicates) == 1
    store = extract(images, tmp_path / "b.h5", labels=["a", "b", "a"])
    assert [group.tolist() for group in store.duplicates] == [[0, 2]] and not store.contradictions


def test_everything_that_is_to_be_told_is_told(network, tmp_path):
    images = [flat(0), flat(0), np.zeros((2, 2))]
    with pytest.warns() as warned:
        extract(images, tmp_path / "a.h5", network, labels=["a", "b", "a"], **OPTIONS)
    kinds = {warning.category for warning in warned}
    assert kinds == {UnreadableImagesWarning, NonFiniteWarning, ContradictionWarning} and len(warned) == 3
