"""Splits are honest: what belongs together stays on one side, classes keep their shares, the seed decides all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from separable import separable_store
from sklearn.model_selection import KFold, StratifiedKFold

from featx.errors import FeatxError, StoreError
from featx.learn.selection.splits import Groups, cv_splits, group_numbers, groups_of, hold_out, refuse_split_groups

CLASSES = np.array(["a", "b", "c"])


def patients(n: int, groups: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(labels, groups) of n images; a patient has images of one class or of several."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(groups, size=n)
    usual = rng.integers(3, size=groups)[numbers]
    return CLASSES[np.where(rng.random(n) < 0.8, usual, rng.integers(3, size=n))], numbers


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(60, 200), st.integers(2, 5), st.integers(1, 3))
def test_groups_stay_whole_every_image_is_tested_once_a_repeat_and_the_seed_decides(seed, n, folds, repeats):
    labels, numbers = patients(n, 40, seed)
    tied = Groups(numbers, "groups")
    try:
        splits = cv_splits(labels, tied, folds, repeats, seed)
    except FeatxError:  # too few groups of a class
        return
    assert len(splits) == folds * repeats
    for repeat in range(repeats):
        tested = [test for _, test in splits[repeat * folds : (repeat + 1) * folds]]
        assert sorted(np.concatenate(tested).tolist()) == list(range(n))
    for train, test in splits:
        assert sorted([*train, *test]) == list(range(n)) and not set(numbers[train]) & set(numbers[test])
        assert set(labels[test]) == set(labels[train]) == set(CLASSES)
    again = cv_splits(labels, tied, folds, repeats, seed)
    assert all(np.array_equal(one[1], other[1]) for one, other in zip(splits, again, strict=True))


def test_whole_groups_are_spread_about_as_evenly_as_images():
    for seed in range(5):
        labels, numbers = patients(600, 150, seed)
        for _, test in cv_splits(labels, Groups(numbers, "groups"), 5, 1, seed):
            assert abs(len(test) - 120) <= 12
            for name in CLASSES:
                assert abs((labels[test] == name).sum() - (labels == name).sum() / 5) <= 8


def test_single_images_among_twins_are_spread_exactly():
    labels = np.repeat(CLASSES, [50, 30, 20])
    numbers = np.arange(100)
    numbers[[1, 51]] = numbers[[0, 50]]  # two pairs of twins
    for _, test in cv_splits(labels, Groups(numbers, "different images"), 5, 1, 0):
        assert np.unique(labels[test], return_counts=True)[1].tolist() == [10, 6, 4]


@pytest.mark.parametrize("labels, stock", [(np.repeat(CLASSES, 20), StratifiedKFold), (np.linspace(0, 1, 60), KFold)])
def test_with_nothing_tied_they_are_scikit_learns(labels, stock):
    splits = cv_splits(labels, None, 4, 2, 7)
    expected = [
        split for seed in (7, 8) for split in stock(4, shuffle=True, random_state=seed).split(labels[:, None], labels)
    ]
    for (train, test), (expected_train, expected_test) in zip(splits, expected, strict=True):
        np.testing.assert_array_equal(train, expected_train)
        np.testing.assert_array_equal(test, expected_test)


def test_repeats_have_other_folds():
    labels, numbers = patients(120, 60, 0)
    for tied in (None, Groups(numbers, "groups")):
        splits = cv_splits(labels, tied, 3, 2, 0)
        assert {tuple(test) for _, test in splits[:3]}.isdisjoint(tuple(test) for _, test in splits[3:])


def test_numbers_are_dealt_by_group_too():
    labels, numbers = np.random.default_rng(0).normal(size=90), np.arange(90) // 3
    for train, test in cv_splits(labels, Groups(numbers, "groups"), 5, 1, 0):
        assert len(test) == 18 and not set(numbers[train]) & set(numbers[test])


def test_held_out_images_are_whole_groups_a_share_of_each_class_and_the_seeds():
    for seed in range(5):
        labels, numbers = patients(400, 100, seed)
        train, test = hold_out(labels, Groups(numbers, "groups"), 0.25, seed)
        assert sorted([*train, *test]) == list(range(400)) and not set(numbers[train]) & set(numbers[test])
        for name in CLASSES:
            assert abs((labels[test] == name).mean() - (labels == name).mean()) < 0.05
        assert 85 <= len(test) <= 115
        np.testing.assert_array_equal(test, hold_out(labels, Groups(numbers, "groups"), 0.25, seed)[1])


def test_what_touches_by_group_or_content_is_one(tmp_path):
    contents = np.array([0, 1, 2, 2, 4, 5, 6, 6])
    store = separable_store(tmp_path / "a.h5", 8, y=np.array(list("abababab")), contents=contents)
    groups = np.array([0, 0, 1, 2, 3, 3, 3, 4])
    tied = groups_of(store, groups, allow_duplicates=False)
    assert [np.flatnonzero(tied.numbers == number).tolist() for number in dict.fromkeys(tied.numbers)] == [
        [0, 1], [2, 3], [4, 5, 6, 7]
    ]  # fmt: skip
    alone = groups_of(store, None, allow_duplicates=False)
    assert len(set(alone.numbers)) == 6 and alone.numbers[2] == alone.numbers[3] and alone.noun == "different images"
    assert groups_of(store, None, allow_duplicates=True) is None
    only = groups_of(store, groups, allow_duplicates=True)
    np.testing.assert_array_equal(only.numbers[:, None] == only.numbers, groups[:, None] == groups)


def test_a_store_without_twins_ties_nothing(tmp_path):
    assert groups_of(separable_store(tmp_path / "a.h5", 6), None, allow_duplicates=False) is None


# --- what is refused ---


def test_groups_are_a_column_or_a_value_an_image(tmp_path):
    columns = {"patient": np.array(["p", "q", "q"]), "site": np.array(["s", "", "s"]), "one": np.array(["x"] * 3)}
    store = separable_store(tmp_path / "a.h5", 3, columns=columns)
    assert group_numbers(store, "patient").tolist() == group_numbers(store, [3, 7, 7]).tolist() == [0, 1, 1]
    for groups, error, text in [
        ("patent", StoreError, "has no column 'patent'; close: 'patient'; it has patient, site, one"),
        ("site", StoreError, "column 'site' is empty for 1 of 3: 'image 1'"),
        ("one", FeatxError, "two or more different values; all images have 'x'"),
        ([0, 1], StoreError, "groups is one group per image: a.h5 has 3, got 2"),
        (np.zeros((3, 1)), StoreError, r"groups is one group per image; got array\(\[0.\]\) for the first"),
    ]:
        with pytest.raises(error, match=text) as raised:
            group_numbers(store, groups)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "labels, numbers, text",
    [
        (
            np.repeat(CLASSES, 4),
            np.arange(12) // 4,
            "needs 2 groups among the training images of each class; 'a' has 1",
        ),
        (np.linspace(0, 1, 6), np.zeros(6, int), "needs 2 groups among the training images; there are 1"),
        (np.array(["a", "b", "a"]), None, "needs 2 training images of each class; 'b' has 1"),
    ],
)
def test_a_fold_without_a_class_is_refused_by_name(labels, numbers, text):
    with pytest.raises(FeatxError, match=text) as raised:
        cv_splits(labels, None if numbers is None else Groups(numbers, "groups"), 2, 1, 0)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", [str, int])
def test_labels_that_look_like_numbers_to_predict_are_said_to_be_taken_as_classes(kind):
    labels = np.arange(30).astype(kind).astype(str)
    for refused in (lambda y: cv_splits(y, None, 3, 1, 0), lambda y: hold_out(y, None, 0.5, 0)):
        with pytest.raises(FeatxError, match="are taken as classes: to predict numbers, give them as floats") as raised:
            refused(labels)
        assert "(y.astype(float))" in str(raised.value) and "\n" not in str(raised.value)
        for names in (np.char.add("site ", labels), np.r_[["1", "2"], labels[:1]]):
            with pytest.raises(FeatxError, match="of each class.*has 1: add images") as raised:
                refused(names)
            assert "floats" not in str(raised.value)
        assert refused(labels.astype(int) // 5 * 1.0)


def test_folds_that_whole_groups_leave_without_a_class_are_refused():
    """ "a" is in two groups, and both have so much of "b" that the spread of "b" brings them into one fold."""
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        numbers = rng.integers(6, size=30)
        labels = CLASSES[np.minimum(numbers % 3, rng.integers(3, size=30))]
        try:
            for train, test in cv_splits(labels, Groups(numbers, "groups"), 3, 1, 0):
                assert set(labels[train]) == set(labels[test]) == set(labels)
        except FeatxError as error:
            refused += "leave one without" in str(error)
    assert refused


@pytest.mark.parametrize("numbers", [None, np.array([0, 0, 1, 1, 2, 2])])
def test_a_class_that_cannot_be_on_both_sides_is_refused(numbers):
    labels = np.array(["a", "a", "a", "a", "b", "b"]) if numbers is not None else np.array(list("aaaaab"))
    tied = None if numbers is None else Groups(numbers, "groups")
    with pytest.raises(FeatxError, match="'b' has 1: add images, or hold none out"):
        hold_out(labels, tied, 0.34, 0)


@pytest.mark.parametrize("share, advice", [(0.01, "more"), (0.99, "fewer")])
def test_a_share_that_leaves_a_side_without_a_class_is_to_be_changed(share, advice):
    with pytest.raises(FeatxError, match=f"'a' has 20: hold out {advice}, or add images"):
        hold_out(np.repeat(["a", "b", "c"], [20, 30, 50]), None, share, 0)


def test_a_choice_that_parts_twins_or_groups_is_refused(tmp_path):
    store = separable_store(tmp_path / "a.h5", 6, contents=np.array([0, 1, 2, 3, 4, 0]))
    first = np.arange(6) < 3
    with pytest.raises(FeatxError, match=r"1 images are both held out and trained on.*'image 0', 'image 5'"):
        refuse_split_groups(first, store, None, allow_duplicates=False)
    refuse_split_groups(first, store, None, allow_duplicates=True)
    with pytest.raises(FeatxError, match="1 groups are on both sides, 'image 2' in one of them"):
        refuse_split_groups(first, store, np.array([0, 0, 1, 1, 2, 2]), allow_duplicates=True)
    refuse_split_groups(first, store, np.array([0, 0, 0, 1, 2, 2]), allow_duplicates=True)
