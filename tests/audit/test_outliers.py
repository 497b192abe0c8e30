"""Outliers: each kind is found where it was planted, with its reason, and ordinary images are none."""

from __future__ import annotations

import numpy as np
import pytest
from audited import scene
from helpers import store_of
from PIL import Image, ImageFilter
from runs import extract

from featx.audit import audit, neighbours
from featx.audit.neighbours import distances_to_nearest
from featx.audit.outliers import outliers, robust_z

N = 60


def ordinary(seed: int, n: int = N) -> list[np.ndarray]:
    return [np.asarray(scene(1000 * seed + i, 48)) for i in range(n)]


def found_in(pictures, path, y=None):
    store = extract(pictures, path)
    return outliers(store, store.layers[0], y, np.arange(len(store)))


SCENE = np.asarray(scene(7, 48))
CORNER = (np.add.outer(np.arange(48), np.arange(48)) < 10)[..., None]
PLANTED = {
    "blank": (np.full((48, 48, 3), 120, np.uint8), "grey values hardly differ (standard deviation 0.000 of 1)"),
    "dark": (np.where(CORNER, SCENE, SCENE // 30), "underexposed: 98% of its pixels are almost black"),
    "bright": (np.where(CORNER, SCENE, 255 - SCENE // 30), "overexposed: 98% are almost white"),
    "blurred": (np.asarray(scene(7, 48).filter(ImageFilter.GaussianBlur(6))), "little changes from pixel to pixel"),
    "aspect": (np.asarray(scene(7, 130).resize((24, 130))), "odd shape: 24 x 130 pixels; the typical ratio is 1.00"),
    "tiny": (np.asarray(scene(7, 10)), "tiny: 10 x 10 pixels; typical are 48 x 48"),
    "size": (np.asarray(scene(7, 400)), "large: 400 x 400 pixels; typical are 48 x 48"),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_each_kind_is_found_with_its_reason(kind, tmp_path):
    picture, reason = PLANTED[kind]
    every = found_in([*ordinary(0), picture.astype(np.uint8)], tmp_path / "a.h5")
    of_kind = [each for each in every if each.kind == kind]
    assert [each.row for each in of_kind] == [N] and reason in of_kind[0].reason
    assert {each.row for each in every} == {N}


def test_ordinary_images_are_none(tmp_path):
    found = [found_in(ordinary(seed), tmp_path / f"{seed}.h5") for seed in range(10)]
    assert found == [[]] * 10


def test_far_features_are_found_with_and_without_labels(tmp_path):
    rng = np.random.default_rng(0)
    y = np.array(list("abc"))[np.arange(300) % 3]
    X = 8 * np.eye(3, 12)[np.arange(300) % 3] + rng.normal(size=(300, 12))
    X[[4, 50]] = 40 * np.eye(12)[[7, 9]] * [[1], [2]]
    store = store_of(tmp_path / "a.h5", {"a:avg": X}, y)
    with_labels, without = (outliers(store, "a", labels, np.arange(300)) for labels in (y, None))
    assert {each.row for each in with_labels} == {each.row for each in without} == {4, 50}
    assert {each.reason for each in with_labels} == {"its features are far from every class"}
    assert {each.reason for each in without} == {"its features are far from all others"}
    scores = [each.score for each in with_labels]
    assert scores == sorted(scores, reverse=True) and min(scores) > 5


def test_pictures_of_another_kind_are_found_among_pictures_that_are_alike(tmp_path):
    """Around the mean of images that are alike, those of another kind have no direction that the others lack."""
    alike = [(scene(0, 48), np.random.default_rng(i).integers(-9, 10, (48, 48, 3))) for i in range(N)]
    pictures = [np.clip(np.asarray(one, int) + noise, 0, 255).astype(np.uint8) for one, noise in alike]
    found = found_in([*pictures, *ordinary(3, 4)], tmp_path / "a.h5")
    assert {each.row for each in found if each.kind == "features"} == {N, N + 1, N + 2, N + 3}


def test_rows_with_nan_are_left_out(tmp_path):
    X = np.random.default_rng(0).normal(size=(300, 12))
    X[3], X[9] = 30 * np.eye(12)[5], np.nan
    store = store_of(tmp_path / "a.h5", {"a:avg": X})
    finite = np.delete(np.arange(300), 9)
    assert [each.row for each in outliers(store, "a", None, finite)] == [3]
    assert [each.row for each in audit(store).outliers] == [3]


def test_equal_rows_and_few_images_are_none(tmp_path):
    same = store_of(tmp_path / "same.h5", {"a:avg": np.ones((40, 3))})
    assert outliers(same, "a", None, np.arange(40)) == []
    X = np.random.default_rng(0).normal(size=(20, 3))
    X[0] = 1e3
    few = audit(store_of(tmp_path / "few.h5", {"a:avg": X}))
    assert few.outliers == [] and "outliers by features: they need 21 images; there are 20" in few.missing


def test_sizes_that_many_images_have_are_not_odd(tmp_path):
    """Half the images wide, half tall and large: neither is rare."""
    pictures = [np.asarray(scene(i, 60).resize(((120, 20), (200, 400))[i % 2])) for i in range(N)]
    assert not {"aspect", "tiny", "size"} & {each.kind for each in found_in(pictures, tmp_path / "a.h5")}


def test_black_frames_in_a_set_of_photos_are_blank_alone(tmp_path):
    black = [np.zeros((48, 48, 3), np.uint8)] * 3
    kinds = {(each.row, each.kind) for each in found_in([*ordinary(1), *black], tmp_path / "a.h5")}
    assert {(N + i, "blank") for i in range(3)} <= kinds and not {"dark", "blurred"} & {kind for _, kind in kinds}


def test_robust_z_is_in_standard_deviations():
    values = np.random.default_rng(0).normal(3, 2, 10_001)
    np.testing.assert_allclose(robust_z(values), (values - 3) / 2, atol=0.15)
    assert not robust_z(np.r_[np.zeros(9), 5.0]).any()


def test_pictures_of_two_pixels_have_statistics(tmp_path):
    pictures = [np.asarray(Image.fromarray(p).resize((2, 2))) for p in ordinary(2, 30)]
    assert not {each.kind for each in found_in(pictures, tmp_path / "a.h5")} - {"features", "blank"}


@pytest.mark.parametrize("m", [50, 20])
def test_distances_to_the_nearest_of_some_rows(monkeypatch, m):
    rng = np.random.default_rng(0)
    X, among = rng.normal(size=(50, 7)).astype(np.float32), np.sort(rng.permutation(50)[:m])
    every = np.linalg.norm(X[:, None] - X, axis=2) + np.diag(np.full(50, np.inf))
    expected = np.sort(every[:, among], axis=1)[:, :3]
    for n_bytes in (2**20, 4 * m * 7):  # at once, and seven rows at a time
        monkeypatch.setattr(neighbours, "_BLOCK_BYTES", n_bytes)
        np.testing.assert_allclose(np.sort(distances_to_nearest(X, 3, among), axis=1), expected, rtol=1e-4)
