"""Labels of some images only: a search on them is that on a store of the labelled images alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import store_of

import featx
from featx.errors import FeatxError, StoreError
from featx.learn import HoldOut, select_model

FAST = {
    "folds": 3,
    "n_jobs": 1,
    "estimators": "logistic_regression",
    "param_grid": {"logistic_regression": [0.01, 1.0]},
}
N, N_LABELLED = 60, 42


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def y(rows) -> np.ndarray:
    return np.where(rows[:, 0] + rows[:, 1] > 0, "up", "down")


@pytest.fixture(scope="module")
def whole(rows, tmp_path_factory) -> featx.FeatureStore:
    place = np.array([f"place {i // 4}" for i in range(N)])
    path = tmp_path_factory.mktemp("partial") / "whole.h5"
    return store_of(path, {"a:avg": rows}, columns={"place": place})


@pytest.fixture(scope="module")
def labelled(whole, rows, y, tmp_path_factory) -> featx.FeatureStore:
    """The first images of `whole`, with their labels."""
    path = tmp_path_factory.mktemp("labelled") / "labelled.h5"
    columns = {"place": whole.columns["place"][:N_LABELLED]}
    return store_of(path, {"a:avg": rows[:N_LABELLED]}, y[:N_LABELLED], columns=columns)


@pytest.fixture(scope="module")
def partial(y) -> np.ma.MaskedArray:
    return np.ma.masked_array(y, np.arange(N) >= N_LABELLED)


@pytest.mark.parametrize("numeric", [False, True])
@pytest.mark.parametrize("groups", [None, "place"])
def test_a_search_uses_the_labelled_images_alone(whole, labelled, partial, rows, groups, numeric):
    options = dict(FAST)
    if numeric:
        options |= {"estimators": "ridge", "param_grid": {"ridge": [1.0, 10.0]}}
        partial = np.ma.masked_array(rows[:, 2].astype(float), partial.mask)
        partial.data[N_LABELLED:] = np.nan
    on_part = select_model(whole, partial, groups=groups, **options)
    alone = select_model(labelled, partial.data[:N_LABELLED], groups=groups, **options)
    assert [each.scores for each in on_part.candidates] == [each.scores for each in alone.candidates]
    assert on_part.held_out == alone.held_out and on_part.training.n_groups == alone.training.n_groups
    assert on_part.training.X.tolist() == alone.training.X.tolist()
    assert on_part.test.X.tolist() == alone.test.X.tolist()


def test_unlabelled_copies_are_on_neither_side(rows, y, tmp_path):
    ids = [f"image {i}" for i in range(20)]
    store = store_of(tmp_path / "a.h5", {"a:avg": rows[:20]}, ids=ids)
    copies = store_of(tmp_path / "b.h5", {"a:avg": rows[:20]}, ids=[f"copy {i}" for i in range(20)])  # same contents
    both = featx.merge([store.path, copies.path], tmp_path / "both.h5")
    assert len(both.duplicates) == 20
    labels = np.ma.masked_array(np.r_[y[:20], y[:20]], np.arange(40) >= 20)
    held_out = np.arange(40) % 4 == 0
    held_out[20:] = ~held_out[20:]
    chosen = select_model(both, labels, holdout=HoldOut(rows=held_out), **FAST)
    assert (chosen.training.n, len(chosen.test.y), chosen.training.n_duplicates) == (15, 5, 0)
    with pytest.raises(FeatxError, match="20 images are both held out and trained on"):
        select_model(both, labels.data, holdout=HoldOut(rows=held_out), **FAST)


def test_labels_of_which_none_or_one_class_is_known_are_refused(whole, y, partial):
    with pytest.raises(StoreError, match="all labels .* are masked"):
        select_model(whole, np.ma.masked_all(N, dtype=y.dtype), **FAST)
    with pytest.raises(FeatxError, match="there is only 'up'"):
        select_model(whole, np.ma.masked_array(y, y == "down"), **FAST)
    with pytest.raises(FeatxError, match="some of the images, not all"):
        select_model(whole, partial, holdout=HoldOut(rows=np.arange(N) >= N_LABELLED), **FAST)


def test_align_masks_images_without_a_label(whole, tmp_path: Path):
    ids = whole.ids.tolist()
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["id,label", f"{ids[3]},x", f"{ids[1]},", f"{ids[0]},  ", f"{ids[2]},y"]))
    labels = whole.align(table, partial=True)
    assert np.flatnonzero(~labels.mask).tolist() == [2, 3] and labels[[2, 3]].tolist() == ["y", "x"]
    numbers = whole.align({ids[5]: 2, ids[6]: None, ids[7]: float("nan")}, target="numeric", partial=True)
    assert numbers.compressed().tolist() == [2.0] and numbers.dtype == float
    full = whole.align(dict.fromkeys([*ids, "another"], "x"), partial=True)
    assert not isinstance(full, np.ma.MaskedArray) and set(full) == {"x"}


@pytest.mark.parametrize(
    "lines, text",
    [
        (["image 1,", "image 2,"], "no image has a label in .*labels.csv; fill some in"),
        (
            ["image 1,x", "imag 2,y"],
            "1 of 2 labels in .* are of images that the store lacks: 'imag 2'; close: 'image 2'",
        ),
    ],
)
def test_align_refuses_a_table_without_labels_or_with_other_ids(whole, tmp_path, lines, text):
    (tmp_path / "labels.csv").write_text("\n".join(["id,label", *lines]))
    with pytest.raises(StoreError, match=text):
        whole.align(tmp_path / "labels.csv", partial=True)


def test_an_id_that_a_spreadsheet_would_compute_is_found_behind_its_apostrophe(rows, tmp_path):
    ids = ["=1+1", "'=2", "c", "-d"]
    store = store_of(tmp_path / "s.h5", {"a:avg": rows[:4]}, ids=ids)
    (tmp_path / "l.csv").write_text("id,label\n'=1+1,a\n''=2,b\nc,c\n'-d,d\n")
    assert store.align(tmp_path / "l.csv").tolist() == list("abcd")
