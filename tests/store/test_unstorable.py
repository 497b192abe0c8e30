"""Values that could not be read again are refused before any work; damage during a run is found at its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_tells, left_in, recipe

from featx.errors import ImageError, StoreError
from featx.store import FeatureStore, StoreWriter, layout, merge

TAPS = {"l1:avg": (7,), "l2:none": (3, 5)}


def _begin(
    path: Path, ids: list[str], y: np.ndarray | None = None, columns: dict | None = None, **change
) -> StoreWriter:
    return StoreWriter(path, recipe(change.pop("taps", TAPS), **change), ids, y, columns)


def _fill(writer: StoreWriter, n: int, bad: tuple[int, ...] = (), value: float = 0.0) -> None:
    good = np.delete(np.arange(n), bad)
    rows = {
        name: np.arange(n * np.prod(shape), dtype="f4").reshape(n, *shape)[good] + value for name, shape in TAPS.items()
    }
    writer.write(good, rows, np.repeat(good.astype(np.uint8), 16).reshape(-1, 16) + np.uint8(value))
    writer.fail({i: ImageError("damaged", "cut off") for i in bad})


def test_values_that_cannot_be_read_again_are_refused_at_the_start(tmp_path, subtests):
    for given, words in [
        (dict(ids=[]), "at least one image"),
        (dict(ids=["a", "b", "a"]), "every id once"),
        (dict(ids=["a", "b\0"]), "null character"),
        (dict(ids=["a", "b"], y=np.array(["x", "y\0z"])), "labels contain a null character"),
        (dict(ids=["a", "\ud800"]), "not Unicode"),
        (dict(ids=["a"], columns={"site": np.array(["\udfff"])}), "site contain text that is not Unicode"),
        (dict(ids=["a"], columns={"x" * 2000: np.array(["1"])}), "1,000 bytes"),
        (dict(ids=["a"], columns={str(i): np.array(["1"]) for i in range(10_001)}), "10,000 columns"),
        (dict(ids=["a"], taps={"l:avg": (0,)}), "recipe"),
        (dict(ids=["a"], preprocessing={"mean": float("nan")}), "recipe"),
    ]:
        with subtests.test(ascii((given, words))):
            with pytest.raises(StoreError) as caught:
                _begin(tmp_path / "a.h5", **given)
            assert_tells(caught.value, words)
            assert left_in(tmp_path) == []


@pytest.mark.parametrize("bad", [(), (3,), (0, 70, 199)])
def test_rows_that_changed_on_the_disk_during_the_run_are_found(tmp_path: Path, bad: tuple[int, ...]) -> None:
    """Checksums are of the rows as they arrived, even after the gaps of failed images are closed."""
    n, ids = 200, [f"{i}" for i in range(200)]
    place = layout.place_layers(recipe(TAPS), n)["l2:none"]
    with _begin(tmp_path / "a.h5", ids) as writer:
        _fill(writer, n, bad)
        with (tmp_path / "a.h5.partial").open("r+b") as file:
            file.seek(place.offset + 150 * place.row_bytes + 3)
            file.write(b"\x55")
        if bad:
            with pytest.raises(StoreError, match="damaged"):
                writer.finish()
            return
        writer.finish()
    with pytest.raises(StoreError, match="'l2:none' rows 128 to 191"):
        FeatureStore(tmp_path / "a.h5").verify()


def test_a_merge_is_not_continued_with_another_store(tmp_path: Path, monkeypatch) -> None:
    for name, start in {"1": 0, "2": 100}.items():
        with _begin(tmp_path / f"{name}.h5", [f"{i}" for i in range(start, start + 100)]) as writer:
            _fill(writer, 100)
            writer.finish()
    parts = [tmp_path / "1.h5", tmp_path / "2.h5"]
    write, calls = StoreWriter.write, []

    def interrupted(self, *args, **options):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        write(self, *args, **options)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(StoreWriter, "write", interrupted)
        merge(parts, tmp_path / "m.h5")
    with _begin(tmp_path / "1.new", [f"{i}" for i in range(100)]) as writer:
        _fill(writer, 100, value=5)
        writer.finish()
    (tmp_path / "1.new").rename(parts[0])
    with pytest.raises(StoreError) as caught:
        merge(parts, tmp_path / "m.h5")
    assert_tells(caught.value, "1.h5 has changed", "discard that with discard=True")
    merged = merge(parts, tmp_path / "m.h5", discard=True)
    assert np.array_equal(merged["l1"][:100], FeatureStore(parts[0])["l1"])
    merged.verify()


@pytest.mark.parametrize(
    "read",
    [
        lambda store: store.take([0], "l1"),
        lambda store: store["l1"],
        lambda store: store.ids,
        lambda store: [*store.blocks("l2")],
    ],
)
def test_a_file_that_is_written_to_in_place_is_refused(tmp_path: Path, read: Callable) -> None:
    with _begin(tmp_path / "a.h5", ["a", "b"]) as writer:
        _fill(writer, 2)
        writer.finish()
    store = FeatureStore(tmp_path / "a.h5")
    with (tmp_path / "a.h5").open("r+b") as file:
        file.seek(8192)
        file.write(b"\x55")
    with pytest.raises(StoreError, match="written to since it was opened"):
        read(store)
