"""The audit as a whole: what is audited by whatever labels, test images and stores, and what it cannot do is said."""

from __future__ import annotations

import re

import numpy as np
import pytest
from audited import photo_store, scene
from helpers import noise, store_of
from make_version1 import FILE
from runs import extract
from separable import separable_store

import featx
from featx.audit import Audit, Finding, audit
from featx.errors import FeatxError, LayerError, StoreError
from featx.report import audit_text

N = 120
Y = np.array(list("abc"))[np.arange(N) % 3]
FLIPPED = np.random.default_rng(6).permutation(N)[:6].tolist()
WRONG = np.where(np.isin(np.arange(N), FLIPPED), np.roll(Y, 1), Y)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> featx.FeatureStore:
    columns = {
        "patient": np.array([f"p{i // 4}" for i in range(N)]),
        "three": np.array([f"p{i // 40}" for i in range(N)]),
        "split": np.where(np.arange(N) % 4 == 0, "test", "train"),
        "part": np.where(np.arange(N) % 5 == 0, "x", ""),
    }
    noise = {"good:avg": 0.4, "poor:avg": 2.0}
    return separable_store(tmp_path_factory.mktemp("audit") / "a.h5", N, Y, noise, columns=columns)


def findings(result: Audit, kind: str) -> list[Finding]:
    return [each for each in result.findings() if each.kind == kind]


@pytest.mark.parametrize("y", ["species", WRONG, WRONG.tolist(), WRONG.astype(object)])
def test_labels_by_column_array_and_list(y, tmp_path):
    store = separable_store(tmp_path / "a.h5", N, Y, {"good:avg": 0.4, "poor:avg": 2.0}, columns={"species": WRONG})
    result = audit(store, y)
    found = findings(result, "label")
    assert {each.row for each in found[:6]} == set(FLIPPED) and found[0].rank == 1
    assert [each.label for each in found[:6]] == [WRONG[each.row] for each in found[:6]]
    assert [each.suggestion for each in found[:6]] == [Y[each.row] for each in found[:6]]
    assert all(each.id == store.ids[each.row] for each in found)
    assert "warning: About 6 of 120 labels are wrong (95 % interval 2 to 12)" in audit_text(result)


def test_wrong_labels_that_may_be_chance_are_listed_with_a_note(tmp_path):
    wrong = np.random.default_rng(8).permutation(N)[:8]
    y = np.where(np.isin(np.arange(N), wrong), np.roll(Y, 1), Y)
    result = audit(separable_store(tmp_path / "a.h5", N, Y, {"good:avg": 0.4, "poor:avg": 2.0}), y)
    assert result.labels.interval.low < 1 and not result.labels.is_clean
    found = findings(result, "label")
    assert 2 <= len(found) == result.labels.n_probable and all(y[each.row] != Y[each.row] for each in found)
    text = audit_text(result)
    assert "labels may be wrong, or none (95 % interval 0 to " in text and "No sign" not in text


def test_clean_data_have_no_findings_and_the_words_say_so(store):
    for seed in range(3):
        result = audit(store, random_state=seed)
        assert result.findings() == [] and result.labels.is_clean and result.layers == ("good:avg", "poor:avg")
        assert "warning" not in audit_text(result)
        assert re.search(
            rf"ok: No sign of wrong labels: (none|at most \d+) of {N} \(95 % interval\)", audit_text(result)
        )
        assert "ok: No two classes are confused" in audit_text(result)


def test_labels_that_features_do_not_predict_are_not_judged(tmp_path):
    rng = np.random.default_rng(1)
    result = audit(
        store_of(tmp_path / "a.h5", {"a:avg": rng.normal(size=(200, 8))}, rng.permutation(np.tile(["x", "y"], 100)))
    )
    assert result.labels.is_open and findings(result, "label") == []
    assert "note: Whether labels are wrong cannot be told: the features hardly predict them. Of 200," in audit_text(
        result
    )


def test_masked_labels_are_no_labels(store):
    part = np.ma.masked_array(WRONG, np.arange(N) % 2 == 1)
    result = audit(store, part)
    assert sorted(result.labels.rows) == list(range(0, N, 2)) and set(result.labels.classes) == set("abc")
    found = findings(result, "label")
    assert found and {each.row for each in found} <= {row for row in FLIPPED if row % 2 == 0}
    assert (result.y == np.where(np.arange(N) % 2 == 0, WRONG, "")).all()
    split = audit(store, part, test=np.arange(N) % 4 == 0).split
    assert set(split.shares) == set("abc")
    with pytest.raises(StoreError, match="column 'part' is empty for 96 of 120"):
        audit(store, "part")


@pytest.mark.parametrize(
    "y, reason",
    [
        (np.arange(N) * 0.5, "they need class names, and the labels are numbers"),
        (["one"] * N, "they need two classes of 5 different images"),
        ([f"c{i // 4}" for i in range(N)], "they need two classes of 5 different images"),
    ],
)
def test_labels_that_cannot_be_audited(store, y, reason):
    result = audit(store, y, test=np.arange(N) % 4 == 0)
    assert result.labels is None and (result.confused, result.shortcuts) == ([], [])
    assert f"labels, confused classes and shortcuts: {reason}" in result.missing
    assert (
        result.split.auc is not None
        and f"note: Not audited: labels, confused classes and shortcuts: {reason}." in audit_text(result)
    )


def test_no_labels(tmp_path):
    result = audit(store_of(tmp_path / "a.h5", {"a:avg": np.random.default_rng(0).normal(size=(30, 3))}))
    assert result.y is None and result.labels is None and result.findings() == []
    assert (
        "the store has no labels; give some, in the order of its images or as a CSV file by image id"
        in result.missing[0]
    )


def test_small_classes_are_named_and_left_out(store):
    y = np.where(np.arange(N) < 3, "few", Y)
    result = audit(store, y)
    assert result.too_small == {"few": 3} and len(result.labels.rows) == N - 3
    (finding,) = findings(result, "confused")
    assert finding.reason == "class 'few' has 3 different images: too few to judge its labels"
    assert "note: Classes with too few images to judge: 'few'." in audit_text(result)


def test_groups_are_kept_together(store):
    result = audit(store, groups="patient")
    assert result.unit == "group" and result.labels.is_clean
    by_array = audit(store, groups=store.columns["patient"])
    assert by_array.labels.rows.tolist() == result.labels.rows.tolist()
    few = audit(store, groups="three")
    assert few.too_small == {"a": 3, "b": 3, "c": 3} and "they need two classes of 5 groups" in few.missing[-1]
    assert findings(few, "confused")[0].reason == "class 'a' has 3 groups: too few to judge its labels"
    both = audit(store, test=np.arange(N) % 4 == 0, groups="patient")
    assert len(both.split.common_groups) == 30 and "30 groups on both sides: 'p0'" in audit_text(both)


def test_copies_inside_and_across_the_split(tmp_path):
    contents = np.r_[np.arange(100), np.arange(20)]
    y = np.array(list("ab"))[contents % 2]
    y[105] = "a"  # row 5 is "b"
    store = separable_store(tmp_path / "a.h5", N, y, contents=contents)
    whole = audit(store)
    assert len(findings(whole, "duplicate")) == 20 and findings(whole, "leak") == [] and whole.leaks is None
    (odd,) = [each for each in findings(whole, "duplicate") if each.row == 5]
    assert odd.reason == "the same file; labelled 'b' and 'a'" and (odd.other, odd.other_row) == ("image 105", 105)
    assert (
        "20 of the same file, 0 of the same picture saved, resized, mirrored or cropped; 1 pair labelled "
        in audit_text(whole)
    )
    is_test = np.zeros(N, bool)
    is_test[:10] = is_test[105:110] = True
    result = audit(store, test=is_test)
    leaks, inside = (result.leaks.pairs.tolist(), result.duplicates.pairs.tolist())
    crossing = [[100 + i, i] for i in (0, 1, 2, 3, 4)]  # the training image first
    assert leaks == crossing and len(inside) == 15
    assert "5 test images are copies of training images" in audit_text(result)


def test_a_test_store(store, tmp_path):
    rows = np.random.default_rng(0).normal(size=(60, 6))
    test = store_of(tmp_path / "t.h5", {"good:avg": rows, "poor:avg": rows}, Y[:60], first=1000)
    result = audit(store, test=test, groups="patient")
    assert result.test is test and result.split.n_test == 60 and result.split.differs
    assert set(result.split.shares) == set("abc") and result.split.common_groups == []
    assert "common groups: t.h5 has no groups; they are of a column of both stores" in result.missing
    assert result.leaks is not None and "No test image has the same content as a training image." in audit_text(result)
    copies = store_of(
        tmp_path / "c.h5", {name: store[name] for name in store.layers}, columns={"patient": store.columns["patient"]}
    )
    result = audit(store, test=copies, groups="patient")
    assert len(result.leaks.pairs) == N and not result.split.differs and len(result.split.common_groups) == 30


def test_stores_with_statistics(tmp_path):
    """Copies in another file format; a test store without statistics says what is missing."""
    training = photo_store(tmp_path / "a", ["a", "b"] * 30)
    test = photo_store(
        tmp_path / "b", ["a", "b"] * 15, 30, lambda i: {"suffix": ".png"}, picture=lambda i: scene(i + 55, 48)
    )
    result = audit(training, test=test)
    assert result.missing == [] and [(a, b) for a, b in sorted(result.leaks.pairs.tolist())] == [
        (55 + i, i) for i in range(5)
    ]
    assert {each.kind for each in result.findings()} <= {"leak", "confused"}
    assert findings(result, "leak")[0].reason.startswith("hashes differ by ")
    assert "ok: No training image is a copy of another one." in audit_text(result)
    assert "ok: No image is a copy of another one." in audit_text(audit(training))
    halves = audit_text(audit(training, test=np.arange(60) < 30))
    assert "ok: No image is a copy of another one on its side of the split." in halves
    features = {name: test[name] for name in test.layers}
    without = store_of(tmp_path / "w.h5", features, first=0, **recipe_of(test))
    result = audit(training, test=without)
    (missing,) = result.missing
    assert missing.startswith(
        "near duplicates across the split: w.h5 keeps no statistics of its images; extract the same"
    )


def recipe_of(store: featx.FeatureStore) -> dict:
    import json

    return {name: value for name, value in json.loads(store.recipe.to_json()).items() if name != "taps"}


def test_a_test_store_of_another_recipe_is_refused(store, tmp_path):
    other = separable_store(tmp_path / "a.h5", 30, weights_sha256="1" * 64)
    with pytest.raises(
        StoreError, match="rows of a.h5 mean something else than those of a.h5: .*extract its images again"
    ):
        audit(store, test=other)
    few = store_of(tmp_path / "few.h5", {"good:avg": np.ones((9, 6))})
    with pytest.raises(StoreError, match="few.h5 does not have 'poor:avg'; name layers of both"):
        audit(store, test=few)
    assert audit(store, test=few, layers=["good"]).split.n_test == 9


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"layers": ["god"]}, LayerError, "layer 'god' is not stored; close: 'good:avg'"),
        ({"layers": "good"}, FeatxError, "layers is a list of one or more layers of the store; got 'good'"),
        ({"layers": []}, FeatxError, "layers is a list of one or more layers"),
        ({"y": "patent"}, StoreError, "has no column 'patent'; close: 'patient'"),
        ({"y": ["a", "b"]}, StoreError, "one label per image: a.h5 has 120, got 2"),
        ({"y": np.ma.masked_all(N, str)}, StoreError, "all labels .* are masked"),
        ({"groups": "patients"}, StoreError, "has no column 'patients'; close: 'patient'"),
        ({"groups": ["p"] * N}, FeatxError, "groups need two or more different values"),
        ({"groups": "near-duplicates"}, StoreError, "keeps no statistics of its images"),
        ({"test": "split"}, FeatxError, r"test is a FeatureStore, or \(120,\) bool"),
        ({"test": np.zeros(N, bool)}, FeatxError, "test needs images on both sides"),
        ({"test": np.ones(N, bool)}, FeatxError, "test needs images on both sides"),
        ({"test": np.zeros(3, bool)}, FeatxError, r"\(120,\) bool"),
        ({"random_state": -1}, FeatxError, "random_state is an integer, 0 or more"),
    ],
)
def test_what_does_not_fit_is_refused(store, options, error, text):
    with pytest.raises(error, match=text):
        audit(store, **options)
    with pytest.raises(FeatxError, match="store is a featx.FeatureStore"):
        audit("a.h5")


def test_layers(store, tmp_path):
    assert audit(store, layers=["poor", "good"]).layers == ("poor:avg", "good:avg")
    assert audit(store, layers=["good", "good:avg"]).layers == ("good:avg",)
    many = {f"layer{i}:avg": np.ones((6, 2)) for i in range(9)}
    assert audit(store_of(tmp_path / "m.h5", many)).layers == tuple(f"layer{i}:avg" for i in (0, 3, 5, 8))
    maps = {"map:none": np.random.default_rng(0).normal(size=(60, 3, 2, 2))}
    assert audit(store_of(tmp_path / "maps.h5", maps, Y[:60])).layers == ("map:none",)


def test_a_store_of_version_1_says_what_it_cannot_do():
    result = audit(featx.FeatureStore(FILE))
    (missing,) = result.missing
    assert missing == (
        "near duplicates, image quality and shortcuts by file: the store keeps no statistics of its images; extract "
        "the same images to it again, which computes them and keeps all rows"
    )
    text = audit_text(result)
    assert "No image is a copy" not in text and "camera" not in text


def test_archives_and_views(tmp_path):
    pictures, y = [np.asarray(scene(i, 40)) for i in range(40)], ["a", "b"] * 20
    views = extract(pictures, tmp_path / "v.h5", labels=y, views=["center", "flip"])
    assert {each.kind for each in audit(views).findings()} <= {"confused"}
    plain = extract(pictures, tmp_path / "p.h5", labels=y)
    archive = featx.FeatureStore(featx.export(plain, tmp_path / "archive.h5"))
    ours, theirs = (audit(each) for each in (plain, archive))
    assert archive.is_archive and ours.findings() == theirs.findings() and ours.missing == theirs.missing == []


def test_one_image_and_no_variety(tmp_path):
    one = audit(store_of(tmp_path / "one.h5", {"a:avg": np.ones((1, 2))}, np.array(["x"])))
    assert findings(one, "label") == [] and one.too_small == {"x": 1}
    same = audit(store_of(tmp_path / "same.h5", {"a:avg": np.ones((60, 2))}, Y[:60]), test=np.arange(60) % 3 == 0)
    assert same.labels.is_open and findings(same, "label") == [] and not same.split.differs


def test_rows_with_nan_are_left_out(tmp_path):
    X = 3 * np.eye(3, 6)[np.arange(N) % 3] + np.random.default_rng(0).normal(size=(N, 6))
    X[[3, 10], [1, 2]] = np.nan, np.inf
    result = audit(store_of(tmp_path / "a.h5", {"a:avg": X, "b:avg": np.nan_to_num(X, posinf=0.0)}, Y))
    assert sorted(result.labels.rows) == sorted(set(range(N)) - {3, 10})


def test_steps_are_told(store):
    steps: list[str] = []
    audit(store, test=np.arange(N) % 4 == 0, on_step=steps.append)
    assert steps[0] == "comparing images with one another" and steps[-1] == "comparing test with training images"


def test_every_test_image_that_is_a_training_file_is_a_leak(tmp_path):
    """Of many copies of one file, pairs name each with the first only."""
    images = [noise(i) for i in (0, 1, 0, 0, 2, 1, 3, 0)]
    store = extract(images, tmp_path / "a.h5")
    test = np.array([True, False, False, True, True, True, False, True])
    leaks = audit(store, test=test).leaks
    assert {tuple(pair) for pair in leaks.pairs.tolist() if leaks.kinds[0] == "exact"} >= {
        (2, 0),
        (2, 3),
        (2, 7),
        (1, 5),
    }
    assert not test[leaks.pairs[:, 0]].any() and test[leaks.pairs[:, 1]].all()


def test_few_images_do_not_show_that_labels_are_right(tmp_path):
    store = separable_store(tmp_path / "a.h5", n=60, noise={"good:avg": 1.2}, d=6)
    result = audit(store)
    assert result.labels.is_clean and result.labels.interval.high > 0.04 * 60
    assert "note: No clear sign of wrong labels, but so few images do not exclude some: at most" in audit_text(result)
