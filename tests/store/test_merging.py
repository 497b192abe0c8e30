"""A merge gives the rows, keys and labels of a single run; stores that do not fit together are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import assert_tells, left_in, recipe

from featx.errors import DamageError, ImageError, RecipeError, RowsDifferWarning, StoreError
from featx.store import FeatureStore, Recipe, StoreWriter, merge

TAPS = {"layer3:avg": (5,), "layer4:none": (2, 3, 4)}


def _row(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(list(name.encode())).normal(size=shape).astype("f4")


def _write(
    path: Path, ids: list[str], failed: dict[str, str] | None = None, made: Recipe | None = None, **given
) -> FeatureStore:
    """Rows, digests and labels that depend only on the image's id."""
    made, failed = made or recipe(TAPS), failed or {}
    n = len(ids)
    y = given.get("y", np.array([f"class {name[-1]}" for name in ids]))
    columns = given.get("columns", {"site": np.array([f"site {name[0]}" for name in ids])})
    digests = np.array([list(name.encode().ljust(16)) for name in ids], np.uint8)
    with StoreWriter(path, made, ids, y, columns) as writer:
        good = np.array([i for i in range(n) if ids[i] not in failed])
        rows = {name: np.stack([_row(ids[i], tap["shape"]) for i in good]) for name, tap in made.taps.items()}
        writer.write(good, rows, digests[good])
        writer.fail({i: ImageError("damaged", failed[name]) for i, name in enumerate(ids) if name in failed})
        writer.finish()
    return FeatureStore(path)


def _names(start: int, stop: int) -> list[str]:
    return [f"{i:05d}" for i in range(start, stop)]


def test_a_merge_is_what_one_run_over_all_images_gives(tmp_path: Path) -> None:
    parts = [_write(tmp_path / f"{i}.h5", _names(*span)) for i, span in enumerate([(0, 150), (150, 151), (151, 300)])]
    merged = merge(parts, tmp_path / "merged.h5")
    _write(tmp_path / "whole.h5", _names(0, 300))
    assert (tmp_path / "merged.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    merged.verify()
    assert left_in(tmp_path) == ["0.h5", "1.h5", "2.h5", "merged.h5", "whole.h5"]


def test_failures_are_merged_unless_another_store_has_the_image(tmp_path: Path) -> None:
    first = _write(tmp_path / "1.h5", _names(0, 80), {"00003": "cut off", "00070": "cut off"})
    second = _write(tmp_path / "2.h5", ["00003", *_names(80, 90)], {"00085": "no pixels"})
    merged = merge([first, second], tmp_path / "merged.h5")
    assert [(failure.id, failure.reason) for failure in merged.failures] == [
        ("00070", "cut off"),
        ("00085", "no pixels"),
    ]
    assert len(merged) == 88
    for name in merged.layers:
        expected = np.stack([_row(name_of, TAPS[name]) for name_of in merged.ids.tolist()])
        assert np.array_equal(merged[name], expected)
    assert merged.y.tolist() == [f"class {name[-1]}" for name in merged.ids.tolist()]
    assert merged.columns["site"].tolist() == [f"site {name[0]}" for name in merged.ids.tolist()]


def test_keys_do_not_change(tmp_path: Path) -> None:
    parts = [_write(tmp_path / f"{i}.h5", _names(100 * i, 100 * i + 100)) for i in range(2)]
    assert np.array_equal(merge(parts, tmp_path / "m.h5").X, np.concatenate([part.X for part in parts]))


def test_recorded_fields_are_joined_and_may_differ(tmp_path: Path) -> None:
    other = recipe(
        TAPS, versions={"torch": "3.0", "timm": "1.0"}, device="cuda", threads=8, aliases={"x": "layer3:avg"}
    )
    first = _write(tmp_path / "1.h5", _names(0, 3), made=recipe(TAPS, versions={"torch": "2.9"}, origin="/a"))
    with pytest.warns(RowsDifferWarning, match="^2.h5 was made with device cuda, threads 8; 1.h5 with .*within 0.01 %"):
        merged = merge([first, _write(tmp_path / "2.h5", _names(3, 6), made=other)], tmp_path / "m.h5")
    assert merged.recipe.versions == {"torch": "2.9, 3.0", "timm": "1.0"}
    assert merged.recipe.aliases == {"x": "layer3:avg"} and merged.recipe.origin is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 8}, ["batch_size: 4 in 1.h5, 8 in 2.h5"]),
        ({"engine": "compiled"}, ["engine: 'eager' in 1.h5, 'compiled' in 2.h5"]),
        ({"precision": "bfloat16"}, ["precision: 'float32' in 1.h5, 'bfloat16' in 2.h5"]),
        ({"dtype": "float16"}, ["dtype"]),
        ({"weights_sha256": "1" * 64}, ["weights_sha256"]),
        ({"preprocessing": {"crop": [32, 32], "resize": 40}}, ["preprocessing.resize: 32 in 1.h5, 40 in 2.h5"]),
    ],
)
def test_other_recipes_are_refused_field_by_field(tmp_path: Path, change: dict, words: list[str]) -> None:
    stores = [
        _write(tmp_path / "1.h5", _names(0, 3)),
        _write(tmp_path / "2.h5", _names(3, 6), made=recipe(TAPS, **change)),
    ]
    with pytest.raises(RecipeError) as caught:
        merge(stores, tmp_path / "m.h5")
    assert_tells(caught.value, *words, "extract the images of the others again with like='1.h5'")
    assert left_in(tmp_path) == ["1.h5", "2.h5"]


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (dict(made=recipe({"layer3:avg": (5,)})), ["layers"]),
        (dict(y=np.arange(3.0)), ["class names", "numbers as labels"]),
        (dict(y=None), ["class names", "no labels"]),
        (dict(columns={}), ["same columns", "2.h5 has none"]),
        ("the first", ["'00000'", "3 images"]),
        (None, ["two stores or more"]),
    ],
    ids=["layers", "numeric labels", "no labels", "columns", "the same images", "one store"],
)
def test_stores_that_do_not_fit_together_are_refused(tmp_path: Path, second: Any, words: list[str]) -> None:
    stores = [_write(tmp_path / "1.h5", _names(0, 3))]
    if isinstance(second, dict):
        stores.append(_write(tmp_path / "2.h5", _names(3, 6), **second))
    elif second:
        stores *= 2
    with pytest.raises(StoreError) as caught:
        merge(stores, tmp_path / "m.h5")
    assert_tells(caught.value, *words)
    assert not (tmp_path / "m.h5").exists() and not (tmp_path / "m.h5.partial").exists()


def test_numbers_as_labels_and_no_labels_merge_too(tmp_path: Path) -> None:
    for kind, y in {"numbers": np.array([0.5, -1, 2]), "none": None}.items():
        parts = [_write(tmp_path / f"{kind}{i}.h5", _names(3 * i, 3 * i + 3), {"00001": "x"}, y=y) for i in range(2)]
        merged = merge(parts, tmp_path / f"{kind}.h5")
        assert len(merged) == 5
        assert merged.y is None if y is None else merged.y.tolist() == [0.5, 2, 0.5, -1, 2]


def test_an_existing_file_is_replaced_only_on_request_even_if_it_is_a_part(tmp_path: Path) -> None:
    parts = [_write(tmp_path / f"{i}.h5", _names(3 * i, 3 * i + 3)) for i in range(2)]
    with pytest.raises(StoreError, match="is there already"):
        merge(parts, tmp_path / "0.h5")
    merged = merge(parts, tmp_path / "0.h5", replace=True)
    assert len(merged) == 6 and len(FeatureStore(tmp_path / "0.h5")) == 6
    merged.verify()


def test_only_the_result_of_this_merge_counts_as_finished(tmp_path: Path) -> None:
    parts = [_write(tmp_path / f"{i}.h5", _names(3 * i, 3 * i + 3), {f"0000{3 * i}": "cut off"}) for i in range(2)]
    merged = merge(parts, tmp_path / "m.h5")
    assert merge(parts, tmp_path / "m.h5").identity == merge(parts, tmp_path / "m.h5", replace=True).identity
    content = merged.path.read_bytes()
    third = _write(tmp_path / "third.h5", _names(6, 9))
    other_label = _write(tmp_path / "label.h5", _names(3, 6), {"00003": "cut off"}, y=np.array(["x", "y", "z"]))
    other_column = _write(
        tmp_path / "column.h5", _names(3, 6), {"00003": "cut off"}, columns={"site": np.array(["x", "y", "z"])}
    )
    readable = _write(tmp_path / "readable.h5", _names(3, 6))
    for stores in (parts[::-1], [*parts, third], [parts[0], third], [parts[0], readable], [parts[0], other_label],
                   [parts[0], other_column]):  # fmt: skip
        with pytest.raises(StoreError, match="is there already"):
            merge(stores, tmp_path / "m.h5")
    (tmp_path / "copy.h5").write_bytes(parts[0].path.read_bytes())
    with pytest.raises(StoreError, match="is there already"):
        merge([parts[0], parts[0]], tmp_path / "copy.h5")
    assert (tmp_path / "m.h5").read_bytes() == content


def test_a_damaged_merge_does_not_count_as_finished(tmp_path: Path) -> None:
    parts = [_write(tmp_path / f"{i}.h5", _names(3 * i, 3 * i + 3)) for i in range(2)]
    whole = merge(parts, tmp_path / "m.h5").path.read_bytes()
    damaged = bytearray(whole)
    damaged[8192 + 7] ^= 1
    (tmp_path / "m.h5").write_bytes(damaged)
    with pytest.raises(StoreError, match="is there already"):
        merge(parts, tmp_path / "m.h5")
    assert merge(parts, tmp_path / "m.h5", replace=True).path.read_bytes() == whole


def test_damaged_rows_are_not_copied(tmp_path: Path) -> None:
    first, second = (_write(tmp_path / f"{i}.h5", _names(3 * i, 3 * i + 3)) for i in range(2))
    content = bytearray(second.path.read_bytes())
    content[8192 + 7] ^= 1
    (tmp_path / "bad.h5").write_bytes(content)
    with pytest.raises(DamageError) as caught:
        merge([first, tmp_path / "bad.h5"], tmp_path / "m.h5")
    assert_tells(caught.value, "bad.h5", "layer3:avg", "rows 0 to 2")
    assert left_in(tmp_path) == ["0.h5", "1.h5", "bad.h5"]


def test_an_interrupted_merge_is_continued(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("featx.store.merging._COPY_BYTES", 1)
    parts = [_write(tmp_path / f"{i}.h5", _names(200 * i, 200 * i + 200)) for i in range(2)]
    merge(parts, tmp_path / "unbroken.h5")
    write, calls = StoreWriter.write, []

    def interrupted(self, *args, **options):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(args)
        write(self, *args, **options)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(StoreWriter, "write", interrupted)
        merge(parts, tmp_path / "m.h5")
    assert (tmp_path / "m.h5.journal").exists()
    taken = []

    def counted(self, indices, *args, **options):
        taken.append(len(indices))
        write(self, indices, *args, **options)

    monkeypatch.setattr(StoreWriter, "write", counted)
    merge(parts, tmp_path / "m.h5")
    assert sum(taken) == 400 - 128
    assert (tmp_path / "m.h5").read_bytes() == (tmp_path / "unbroken.h5").read_bytes()
