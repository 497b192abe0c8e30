"""The command line on stores: a second extract, verify, merge, export, comparison of two recipes, an interrupt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import class_folders, left_in, save_noise, write_store
from typer.testing import CliRunner

import featx
from featx.cli import app
from featx.store import StoreWriter

PIXELS = ["-b", "bundled:pixels", "-q"]


def _run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def _done(*words: object) -> str:
    done = _run(*words)
    assert done.exit_code == 0, done.output
    return done.stdout


def _refused(*words: object) -> str:
    done = _run(*words)
    assert done.exit_code == 2 and done.stderr.startswith("featx: ") and done.stderr.count("\n") == 1, done.output
    return done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """monday.h5 and tuesday.h5 of different images, and the folders that they were made of."""
    for seed, (day, classes) in enumerate({"monday": ("ant", "bee"), "tuesday": ("cat", "dog")}.items()):
        images = class_folders(tmp_path / day, classes, seed=5000 * seed)
        _done("extract", images, "-o", tmp_path / f"{day}.h5", *PIXELS)
    return tmp_path


def test_a_second_extract_returns_the_store_grows_it_or_asks_for_replace(folder: Path) -> None:
    again = ["extract", folder / "monday", "-o", folder / "monday.h5", *PIXELS]
    before = (folder / "monday.h5").stat()
    assert "6 images" in _done(*again)
    assert (folder / "monday.h5").stat().st_ino == before.st_ino
    save_noise(folder / "monday" / "bee" / "new.png", seed=77)
    assert "7 images" in _done(*again)
    (folder / "monday" / "ant" / "ant_0.png").unlink()
    text = _refused(*again)
    assert "gone since: 'ant/ant_0.png'" in text and "--replace" in text
    assert "6 images" in _done(*again, "--replace")


def test_verify_is_silent_of_nothing_and_names_damage(folder: Path) -> None:
    path = folder / "monday.h5"
    assert "whole" in _done("verify", path, folder / "tuesday.h5")
    content = bytearray(path.read_bytes())
    content[8192 + 100] ^= 4
    path.write_bytes(content)
    done = _run("verify", path, folder / "tuesday.h5", folder / "no.h5")
    assert done.exit_code == 2 and "tuesday.h5: whole" in done.stdout
    assert "'flatten:none' rows 0 to 5" in done.stderr and "there is no store" in done.stderr


def test_merge_makes_one_store_of_two(folder: Path) -> None:
    words = ["merge", folder / "monday.h5", folder / "tuesday.h5", "-o", folder / "week.h5"]
    assert _done(*words).endswith("12 images of 2 stores\n")
    assert featx.FeatureStore(folder / "week.h5").classes.tolist() == ["ant", "bee", "cat", "dog"]
    before = (folder / "week.h5").stat()
    (folder / "week.h5.journal").write_text("what a merge that was killed at its end leaves")
    assert "12 images of 2 stores, was finished already" in _done(*words)
    assert (folder / "week.h5").stat() == before and not (folder / "week.h5.journal").exists()
    other_order = ["merge", folder / "tuesday.h5", folder / "monday.h5", "-o", folder / "week.h5"]
    assert "is there already" in _refused(*other_order)
    assert _done(*other_order, "--replace").endswith("12 images of 2 stores\n")
    assert "two stores or more" in _refused("merge", folder / "monday.h5", "-o", folder / "x.h5")


def test_export_writes_what_the_suffix_says(folder: Path) -> None:
    store = featx.FeatureStore(folder / "monday.h5")
    for name in ("rows.npy", "rows.parquet", "archive.h5"):
        assert name in _done("export", folder / "monday.h5", "-o", folder / name)
    assert np.array_equal(np.load(folder / "rows.npy"), store["penultimate"])
    assert "compressed" in _done("info", folder / "archive.h5")
    _done("export", folder / "archive.h5", "-o", folder / "back.h5", "--compression", "none")
    assert (folder / "back.h5").read_bytes() == (folder / "monday.h5").read_bytes()
    assert "suffix" in _refused("export", folder / "monday.h5", "-o", folder / "rows.csv")
    assert "flatten:none" in _refused("export", folder / "monday.h5", "-o", folder / "x.npy", "-l", "layer4")


def _changes(table: str) -> dict[str, str]:
    """{field: what its difference changes}"""
    cells = [line.split("│")[1:-1] for line in table.splitlines() if "│" in line]
    return {row[0].strip(): row[-1].strip() for row in cells if row[0].strip()}


def test_info_shows_the_recipe_and_compares_two(folder: Path) -> None:
    recipe = featx.FeatureStore(folder / "monday.h5").recipe
    text = _done("info", folder / "monday.h5")
    for words in (recipe.weights_sha256, recipe.collection, f"{recipe.threads} threads", "bicubic", "torch", "b,d"):
        assert words in text
    _done("extract", folder / "monday", "-o", folder / "half.h5", *PIXELS, "--dtype", "float16", "--batch-size", 3)
    text = _done("info", folder / "monday.h5", folder / "half.h5")
    assert _changes(text) == {"batch_size": "the rounding", "dtype": "the rounding"}
    assert (
        "a search takes both at once: they hold the same images: monday.h5 was made with batch_size 32, dtype" in text
    )
    assert "rows agree within 0.06 % (relative L2)\n" in text
    assert text.rstrip().splitlines()[-1].startswith("they cannot be merged: a merge takes every image once")
    text = _done("info", folder / "monday.h5", folder / "tuesday.h5")
    assert _changes(text) == {"origin": "nothing", "collection": "nothing"}
    assert text.rstrip().endswith("one can be searched and the other be its test store\nthey can be merged")
    for seed, sentence in (
        (9000, "one can be searched and the other be its test store"),  # other images of the same names
        (0, "neither can be the other's test store: 6 images are in both"),  # the same images under other names
    ):
        images = class_folders(folder / f"week{seed}", ("ant", "bee") if seed else ("cat", "dog"), seed=seed)
        _done("extract", images, "-o", folder / f"week{seed}.h5", *PIXELS)
        assert sentence in _done("info", folder / "monday.h5", folder / f"week{seed}.h5").splitlines()
    write_store(folder / "other.h5")
    text = _done("info", folder / "monday.h5", folder / "other.h5")
    expected = {"backbone": "the meaning", "origin": "nothing", "layers that only one has": "nothing"}
    assert _changes(text).items() >= expected.items()
    assert text.rstrip().endswith("their rows cannot be used together: they share no layer")
    assert "equal" in _done("info", folder / "monday.h5", folder / "monday.h5")


def test_a_link_is_followed_and_stays_a_link(folder: Path) -> None:
    (folder / "disk").mkdir()
    (folder / "link.h5").symlink_to(folder / "disk" / "real.h5")
    _done("extract", folder / "monday", "-o", folder / "link.h5", *PIXELS)
    _done("merge", folder / "monday.h5", folder / "tuesday.h5", "-o", folder / "link.h5", "--replace")
    _done("export", folder / "tuesday.h5", "-o", folder / "link.h5", "--replace")
    assert (folder / "link.h5").is_symlink() and left_in(folder / "disk") == ["real.h5"]


def test_notes_name_duplicates_with_different_labels_and_overflow(tmp_path: Path) -> None:
    class_folders(tmp_path / "photos")
    save_noise(tmp_path / "photos" / "bee" / "again.png", seed=0)  # the same as ant_0
    text = _done("extract", tmp_path / "photos", "-o", tmp_path / "photos.h5", *PIXELS)
    assert "different labels" in text and "ant/ant_0.png (ant), bee/again.png (bee)" in text
    assert "2 images have the same content as another one" in _done("info", tmp_path / "photos.h5")


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(tmp_path: Path, monkeypatch) -> None:
    class_folders(tmp_path / "photos", n=70)
    words = ["extract", tmp_path / "photos", "-b", "bundled:pixels", "--batch-size", 32]
    written = StoreWriter.write
    calls = []

    def interrupted(self, *args):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(args)
        written(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(StoreWriter, "write", interrupted)
        done = _run(*words, "-o", tmp_path / "photos.h5")
    assert done.exit_code == 130 and "what is done is kept" in done.stderr
    assert {"photos.h5.partial", "photos.h5.journal"} <= set(left_in(tmp_path))
    assert "is not finished yet" in _refused("info", tmp_path / "photos.h5")
    assert "begun with other settings" in _refused(*words, "-o", tmp_path / "photos.h5", "--dtype", "float16")
    assert "140 images" in _done(*words, "-o", tmp_path / "photos.h5", "-q")
    _done(*words, "-o", tmp_path / "unbroken.h5", "-q")
    assert (tmp_path / "photos.h5").read_bytes() == (tmp_path / "unbroken.h5").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "photos.h5", "unbroken.h5"]
