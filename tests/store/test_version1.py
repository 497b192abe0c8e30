"""The store of version 1 in `data` can still be read, and is still written with the same bytes.

If a test here fails, users' stores can no longer be read or reproduced: change the code, not the file.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
from make_version1 import COLUMNS, FAILED, FILE, IDS, LABELS, RECIPE, N, digests, rows, write

from featx.store import FeatureStore, export, layout

GOOD = np.delete(np.arange(N), FAILED)


@pytest.fixture(scope="module")
def store() -> FeatureStore:
    return FeatureStore(FILE)


def test_the_file_is_unchanged():
    content = FILE.read_bytes()
    assert hashlib.sha256(content).hexdigest() == "8c30b01491f79e0f4ea41a5cb5b5d9ac97598bb98b7a7ea194a4cbd9ddd331e0"
    assert content.startswith(b"featx-store 1\n") and len(content) < 30_000


def test_every_value_is_as_it_was_written(store):
    assert len(store) == 69 and not store.is_archive and store.identity == "26b4bf0f689035a0a09940767bd2ea04"
    assert store.recipe == replace(RECIPE, collection="c7b44cc00dd8dae547f8ca55b7721b1b")
    assert store.layers == ("layer3.1:none", "flatten/größe:avg")
    assert store.ids.tolist() == [IDS[i] for i in GOOD] and store.ids[2] == "žába/2.png"
    assert store.classes.tolist() == ["ant", "bee", "žába"] and store.y.tolist() == LABELS[GOOD].tolist()
    assert {name: values.tolist() for name, values in store.columns.items()} == {
        name: values[GOOD].tolist() for name, values in COLUMNS.items()
    }
    assert [*map(tuple, store.failures)] == [("ant/33.png", "damaged", "the picture's end is missing")]
    assert [*map(tuple, store.nonfinite)] == [
        ("bee/7.png", "flatten/größe:avg", "inf"),
        ("bee/64.png", "layer3.1:none", "nan"),
    ]
    assert np.array_equal(store.digests, digests(GOOD))
    assert [group.tolist() for group in store.duplicates] == [group.tolist() for group in store.contradictions]
    assert [group.tolist() for group in store.duplicates] == [[10, 11]]


def test_every_row_is_as_it_was_written(store):
    for name, expected in rows(GOOD).items():
        assert store[name].dtype == np.float32 and np.array_equal(store[name], expected, equal_nan=True)
        assert np.array_equal(store.take([-1, 3, 3], name, check=True), expected[[-1, 3, 3]])
    assert store["penultimate"][50].tolist() == [51.0, 50.75, 50.5, 50.25, 50.0]  # image 51: 33 has no row
    assert store["layer3.1"][1].tolist() == [[[8.0], [9.0], [10.0]], [[11.0], [12.0], [13.0]]]
    assert store.verify() is None


def test_keys_are_those_that_models_were_trained_on(store):
    assert store.X[[0, 1, 33, 68], 0].tolist() == [
        1122279754264476,
        2303986110830544,
        1357971303305399,
        213522350755282,
    ]
    assert np.array_equal(store.rows(store.X), np.arange(69))


def test_it_is_still_written_in_the_same_bytes(tmp_path):
    write(tmp_path / "a.h5")
    assert (tmp_path / "a.h5").read_bytes() == FILE.read_bytes()


def test_it_opens_wherever_it_lies_and_comes_back_from_an_archive(tmp_path):
    copied = FeatureStore(shutil.copy(FILE, tmp_path / "copy.h5"))
    assert copied.identity == FeatureStore(FILE).identity
    again = export(export(copied, tmp_path / "b.h5"), tmp_path / "c.h5", compression="none")
    assert again.read_bytes() == FILE.read_bytes()


def test_the_hdf5_library_reads_it(store):
    with h5py.File(FILE) as file:
        assert file.attrs["version"] == 1 and [*file] == sorted(file)
        for name in store.layers:
            assert np.array_equal(file["layers"][layout.member(name)][()], store[name], equal_nan=True)
        classes = [name.decode() for name in file["labels/classes"]]
        assert [classes[code] for code in file["labels/code"]] == store.y.tolist()
