"""Whether test images are like training images: no warning by chance, one where they differ, copies and groups kept."""

from __future__ import annotations

import numpy as np
import pytest
from audited import photo_store, scene
from helpers import store_of
from PIL import ImageEnhance

from featx.audit import audit, split_warnings
from featx.audit.shift import Side, shift

N = 200


def sides(X, is_test, together=None, **values) -> list[Side]:
    together = np.arange(len(X)) if together is None else together
    return [
        Side(X[of].astype(np.float32), together[of], **{name: column[of] for name, column in values.items()})
        for of in (~is_test, is_test)
    ]


def drawn(seed: int, n: int = N, share: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 20)), rng.permutation(n) < share * n


def test_images_of_one_distribution_are_alike():
    warned = 0
    for seed in range(20):
        X, is_test = drawn(seed)
        y = np.array(list("abc"))[np.random.default_rng(seed).integers(0, 3, N)]
        warned += bool(split_warnings(shift(*sides(X, is_test, labels=y), seed)))
    assert warned <= 1


@pytest.mark.parametrize("seed", range(3))
def test_shifted_features_are_told_apart(seed):
    X, is_test = drawn(seed)
    X[is_test, 0] += 1.5
    found = shift(*sides(X, is_test), seed)
    assert found.differs and found.interval.low < found.auc < found.interval.high
    (score, text) = split_warnings(found)[0]
    assert score == found.auc and "a classifier tells them apart with ROC AUC 0." in text


def test_darker_photos_are_unlike_the_others(tmp_path):
    def picture(i):
        return ImageEnhance.Brightness(scene(i, 48)).enhance(0.5 if i >= 60 else 1.0)

    store = photo_store(tmp_path, n=100, picture=picture)
    assert audit(store, test=np.arange(100) >= 60).split.differs
    assert not audit(store, test=np.arange(100) % 5 < 2).split.differs


def test_shares_of_classes():
    X, is_test = drawn(0)
    y = np.where(np.arange(N) % 4 == 0, "rare", "often")
    found = shift(*sides(X, is_test, labels=np.where(is_test & (np.arange(N) % 2 == 0), "rare", y)))
    assert found.shares_differ and set(found.shares) == {"rare", "often"}
    np.testing.assert_allclose([sum(side) for side in zip(*found.shares.values(), strict=True)], 1)
    assert "the shares of the classes differ (p = " in split_warnings(found)[0][1]
    partial = shift(*sides(X, is_test, labels=np.where(np.arange(N) < 50, y, "")))
    assert set(partial.shares) == {"rare", "often"} and not partial.shares_differ
    of_none = shift(*sides(X, is_test, labels=np.where(is_test, "", y)))
    assert (of_none.shares, of_none.p_value) == ({}, None)
    assert shift(*sides(X, is_test, labels=np.full(N, "one"))).p_value is None


def test_groups_on_both_sides():
    X, is_test = drawn(0)
    groups = np.where(is_test, "p9", "p1").astype("<U3")
    assert shift(*sides(X, is_test, groups=groups)).common_groups == []
    groups[:5] = "p5"
    is_test[:5] = [True, False, True, False, False]
    found = shift(*sides(X, is_test, groups=groups))
    assert found.common_groups == ["p5"] and "1 group on both sides: 'p5'" in split_warnings(found)[-1][1]


def test_copies_do_not_fool_the_folds():
    """Each test image five times: a classifier that has seen a copy knows the image, not the side."""
    rng = np.random.default_rng(0)
    X, is_test = rng.normal(size=(120, 60)), np.arange(120) < 30
    copies = np.r_[np.arange(120), np.repeat(np.arange(30), 9)]
    X, is_test = X[copies], is_test[copies]
    by_row, by_copies = (shift(*sides(X, is_test, together)) for together in (np.arange(len(X)), copies))
    assert by_row.auc > 0.75 and by_row.differs and by_copies.auc < 0.6 and not by_copies.differs


def test_copies_across_the_split_do_not_hide_or_make_a_difference(tmp_path):
    X, is_test = drawn(1, 160, 0.5)
    across = np.flatnonzero(is_test)[:40]
    X[across] = X[np.flatnonzero(~is_test)[:40]]
    together = np.arange(160)
    together[across] = np.flatnonzero(~is_test)[:40]
    assert not shift(*sides(X, is_test, together)).differs


def test_images_of_one_group_stay_in_one_fold(tmp_path):
    """Each patient has features of their own; that the test patients are others is no difference of the two sides."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(30), 8)
    X = 3 * rng.normal(size=(30, 12))[patients] + rng.normal(size=(240, 12))
    columns = {"patient": np.array([f"p{i}" for i in patients])}
    store = store_of(tmp_path / "a.h5", {"a:avg": X}, columns=columns)
    is_test = patients % 3 == 0
    assert audit(store, test=is_test).split.differs
    split = audit(store, test=is_test, groups="patient").split
    assert not split.differs and split.common_groups == []
    training = store_of(tmp_path / "b.h5", {"a:avg": X[~is_test]}, columns={"patient": columns["patient"][~is_test]})
    test = store_of(
        tmp_path / "c.h5", {"a:avg": X[is_test]}, columns={"patient": columns["patient"][is_test]}, first=500
    )
    split = audit(training, test=test, groups="patient").split
    assert not split.differs and split.common_groups == []


@pytest.mark.parametrize("n_test", [1, 3, 9, 195])
def test_too_few_images_are_not_compared(n_test, tmp_path):
    X, _ = drawn(0)
    y = np.where(np.arange(N) % 2 == 0, "a", "b")
    result = audit(store_of(tmp_path / "a.h5", {"a:avg": X}, y), test=np.arange(N) < n_test)
    assert result.split.auc is None and result.split.interval is None and not result.split.differs
    assert (result.split.n_training, result.split.n_test) == (N - n_test, n_test) and result.split.shares
    assert "whether test images are like training images: that needs 10 different images on each side" in result.missing


def test_a_side_without_finite_features(tmp_path):
    X, is_test = drawn(0)
    X[is_test] = np.nan
    result = audit(store_of(tmp_path / "a.h5", {"a:avg": X}), test=is_test)
    assert result.split.auc is None and result.split.n_test == 0
    nothing = audit(store_of(tmp_path / "b.h5", {"a:avg": np.full((30, 2), np.nan)}), test=np.arange(30) < 9)
    assert "labels and outliers: no image has finite features of 'a:avg'" in nothing.missing
