"""Shortcuts: a column that tells the label is named, whatever its kind, and no column is where none does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audited import exif, photo_store, scene
from helpers import store_of
from PIL import Image
from separable import separable_store

from featx.audit import Shortcut, audit, shortcut_reason
from featx.audit.shortcuts import shortcuts

N = 100
Y = np.array(list("ab"))[np.random.default_rng(0).permutation(N) % 2]


def random_options(i: int) -> dict[str, Any]:
    """Quality, camera and date that have nothing to do with the label."""
    rng = np.random.default_rng(i)
    camera = ("one", "two", "")[rng.integers(3)]
    date = f"2024:0{rng.integers(1, 10)}:11 10:00:00" if i % 3 else ""
    return {"quality": int(rng.choice([70, 85, 92])), "exif": exif(camera, date)}


def warned(root: Path, save: Callable[[int], dict[str, Any]] = random_options, **options: Any) -> list[Shortcut]:
    store = photo_store(root, Y.tolist(), N, save, **options)
    return [each for each in audit(store).shortcuts if each.is_warning]


def names(found: list[Shortcut]) -> list[str]:
    return [each.column for each in found]


def test_another_jpeg_quality_is_named(tmp_path):
    found = warned(tmp_path, lambda i: random_options(i) | {"quality": 60 if Y[i] == "a" else 90})
    assert found[0].column == "JPEG quality" and found[0].score > 0.95 and found[0].chance == 0.5
    assert not set(names(found)) - {"JPEG quality", "file size", "sharpness"}
    assert "predicted from JPEG quality alone: balanced accuracy 1.00 [0." in shortcut_reason(found[0])


def test_one_camera_is_named(tmp_path):
    found = warned(tmp_path, lambda i: random_options(i) | {"exif": exif("Canon" if Y[i] == "a" else "")})
    assert found[0].column == "camera" and found[0].score > 0.95
    (stratum,) = [each for each in found[0].strata if each.value == "Canon"]
    assert set(Y[stratum.rows]) == {"a"} and stratum.interval.low <= stratum.accuracy <= stratum.interval.high


def test_a_date_is_named(tmp_path):
    def save(i: int) -> dict[str, Any]:
        return random_options(i) | {"exif": exif(date=f"2024:{3 if Y[i] == 'a' else 9:02}:{i % 28 + 1:02} 10:00:00")}

    assert names(warned(tmp_path, save)) == ["date taken"]


def test_a_file_type_and_dimensions_are_named(tmp_path):
    def save(i: int) -> dict[str, Any]:
        return {"suffix": ".png"} if Y[i] == "a" and i % 4 else {}

    assert "file type" in names(warned(tmp_path / "type", save))
    found = warned(tmp_path / "size", picture=lambda i: scene(i, 48 if Y[i] == "a" else 56))
    assert {"height", "width"} <= set(names(found))


def test_folders_are_named_unless_they_are_the_labels(tmp_path):
    ids = [f"{'north' if y == 'a' or i % 9 == 0 else 'south'}/{y}/{i}.png" for i, y in enumerate(Y)]
    store = separable_of(tmp_path / "a.h5", ids)
    assert names(shortcuts(store, Y, np.arange(N), None)) == ["folder 1"]
    corrected = np.where(np.arange(N) < 5, "c", Y)  # some labels are not their folders
    assert "folder 2" not in names(shortcuts(store, corrected, np.arange(N), None))


def separable_of(path: Path, ids: list[str]):
    return store_of(path, {"a:avg": np.random.default_rng(0).normal(size=(len(ids), 4))}, Y, ids)


COLUMNS = {
    "words": ["night" if y == "a" else "day" for y in Y],
    "numbers": [f"{i * 0.25 + 100 * (y == 'a'):g}" for i, y in enumerate(Y)],
    "small numbers": [f"{i * 1e-3 + (y == 'a'):g}e-300" for i, y in enumerate(Y)],
    "dates": [f"{2020 + (y == 'a')}-01-01 {i // 60:02}:{i % 60:02}:00" for i, y in enumerate(Y)],
    "empty": ["" if y == "a" else f"{i}" for i, y in enumerate(Y)],
}
OTHERS = {
    "constant": ["same"] * N,
    "all empty": [""] * N,
    "one each": [f"name {i}" for i in range(N)],
    "row": list(map(str, range(N))),
    "no numbers": ["inf" if i % 9 == 0 else f"1e{i + 250}" for i in range(N)],
    "some": ["x" if i % 7 else "" for i in range(N)],
    "repeated": [f"{i // 2}" for i in range(N)],
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_is_named(name, tmp_path):
    store = separable_store(tmp_path / "a.h5", N, Y, columns=as_arrays(OTHERS | {name: COLUMNS[name]}))
    found = shortcuts(store, Y, np.arange(N), None)
    assert names([each for each in found if each.is_warning]) == [f"column {name}"]
    assert found[0].score > 0.95 and found[0].column == f"column {name}"
    assert {"column constant", "column all empty"}.isdisjoint(names(found))


def as_arrays(columns: dict[str, list[str]]) -> dict[str, np.ndarray]:
    return {name: np.array(values) for name, values in columns.items()}


def test_without_a_plant_there_is_no_warning(tmp_path):
    columns = {"site": [f"s{i % 5}" for i in range(N)], "age": [f"{i * 7 % 90}" for i in range(N)]}
    store = photo_store(tmp_path, Y.tolist(), N, random_options, columns | OTHERS)
    n_warned = 0
    for seed in range(20):
        y = np.random.default_rng(seed).permutation(Y)
        found = shortcuts(store, y, np.arange(N), None, model_score=0.5, random_state=seed)
        n_warned += any(each.is_warning for each in found)
    assert n_warned <= 1 and len(found) >= 12


def test_one_class_of_ten_is_named(tmp_path):
    y = np.array([f"c{i % 10}" for i in range(300)])
    columns = {"site": np.where(y == "c3", "lab", "field"), "other": np.array([f"s{i // 7 % 4}" for i in range(300)])}
    found = shortcuts(separable_store(tmp_path / "a.h5", 300, y, columns=columns), y, np.arange(300), None)
    assert [(each.column, each.is_warning) for each in found] == [("column site", True), ("column other", False)]
    assert found[0].told == "c3" and found[0].told_score > 0.95 and found[0].score < 0.5
    assert shortcut_reason(found[0]).endswith("class 'c3' is told from the others almost always")


def test_a_rare_class_does_not_hide_another_that_is_told(tmp_path):
    y = np.array([*(f"c{i % 10}" for i in range(295)), *["rare"] * 5])
    columns = {"site": np.where(y == "c3", "lab", "field")}
    (found,) = shortcuts(separable_store(tmp_path / "a.h5", 300, y, columns=columns), y, np.arange(300), None)
    assert found.is_warning and found.told == "c3"


def test_the_content_of_pictures_is_no_shortcut_where_features_see_more(tmp_path):
    """Classes that differ in brightness, and in more: a model that knows the brightness alone is worse."""

    def picture(i):
        pixels = np.asarray(scene(i, 48), int) // 2 + (60 if Y[i] == "a" else 66) + np.random.default_rng(i).integers(9)
        pixels[:12, :12] = 30 if Y[i] == "a" else 90
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    found = audit(photo_store(tmp_path, Y.tolist(), N, lambda i: {"suffix": ".png"}, picture=picture)).shortcuts
    (brightness,) = [each for each in found if each.column == "brightness"]
    assert brightness.score > 0.55 and not brightness.is_warning


def test_the_column_of_the_labels_is_no_shortcut(tmp_path):
    columns = {"species": Y, "site": np.where(Y == "a", "north", "south")}
    store = separable_store(tmp_path / "a.h5", N, Y, columns=columns)
    assert names(audit(store, "species").shortcuts) == ["column site"]
    assert names(audit(store).shortcuts) == ["column species", "column site"]


def test_copies_in_one_fold(tmp_path):
    """Four copies of each image and a column with one value an image: seen in training, it would tell all."""
    contents = np.repeat(np.arange(N // 4), 4)
    y = np.array(list("ab"))[np.random.default_rng(1).permutation(N // 4) % 2][contents]
    columns = {"photo": np.array([f"photo {i}" for i in contents])}
    store = separable_store(tmp_path / "a.h5", N, y, columns=columns, contents=contents)
    (found,) = audit(store).shortcuts
    assert not found.is_warning and abs(found.score - 0.5) < 0.2


def test_strata_part_the_images(tmp_path):
    columns = {"value": np.array([f"{i}" if i % 10 else "" for i in range(N)])}
    right = np.arange(N) % 3 > 0
    store = separable_store(tmp_path / "a.h5", N, Y, columns=columns)
    (found,) = shortcuts(store, Y, np.arange(N), None, right)
    assert [each.value for each in found.strata][-1] == "none" and len(found.strata) == 5
    assert sorted(np.concatenate([each.rows for each in found.strata])) == list(range(N))
    for each in found.strata:
        assert each.accuracy == right[each.rows].mean()
