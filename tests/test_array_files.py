"""Files of arrays: what they hold, by the names of layers; other files are refused, and nothing in them is run."""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from helpers import assert_tells

from featx.array_files import described, open_arrays
from featx.errors import SourceError

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
Z = np.arange(12).reshape(6, 2)
IDS = [f"s{i}" for i in range(6)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of X and Z of every kind, in the working folder."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    np.save("a=b.npy", X)
    np.savez("both.npz", x=X, z=Z)
    np.savez_compressed("one.npz", anything=X)
    with h5py.File("f.h5", "w") as file:
        file["deep/x:1"], file["z"] = X, Z
    lists = {"id": IDS, "label": list("ababab"), "x": list(X), "n": [1, 2, None, 4, 5, 6]}
    pyarrow.parquet.write_table(pyarrow.table(lists), "lists.parquet")
    fixed = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(X.reshape(-1)), 3)
    pyarrow.parquet.write_table(pyarrow.table({"x": fixed, "key": Z[:, 0]}), "fixed.parquet")
    frame = pd.DataFrame(X, columns=list("uvw")).assign(label=range(6), id=range(6), site=list("xyzxyz"), answer=1)
    frame.index = frame.index * 2
    frame.to_parquet("columns.parquet")
    return tmp_path


@pytest.mark.parametrize(
    "sources, layers",
    [
        (["x.npy"], {"x": X}),
        (["lm=x.npy", "b/c=f.h5:z"], {"lm": X, "b/c": Z}),
        (["a=b.npy"], {"a=b": X}),
        (["c=a=b.npy"], {"c": X}),
        (["both.npz"], {"x": X, "z": Z}),
        (["one.npz"], {"anything": X}),
        (["lm=one.npz"], {"lm": X}),
        (["f.h5:deep/x:1", "f.h5:/z"], {"x:1": X, "z": Z}),
        (["lists.parquet"], {"x": X}),
        (["fixed.parquet"], {"x": X}),
        (["lm=fixed.parquet", "x.npy"], {"lm": X, "x": X}),
    ],
)
def test_layers_are_named_and_have_the_numbers(folder, sources, layers):
    opened = open_arrays(sources)
    assert [*opened.layers] == [*layers]
    for name, expected in layers.items():
        np.testing.assert_array_equal(opened.layers[name], expected)


def test_what_is_on_disk_stays_there(folder):
    layers = open_arrays(["x.npy", "z=f.h5:z"]).layers
    assert isinstance(layers["x"], np.memmap) and isinstance(layers["z"], h5py.Dataset)


def test_a_parquet_file_has_ids_labels_and_columns_too(folder):
    rows = described(open_arrays(["lists.parquet"]).table, "the table", None)
    assert rows == {"ids": IDS, "y": list("ababab"), "columns": {"n": ["1", "2", "", "4", "5", "6"]}}
    assert open_arrays(["fixed.parquet"]).table == {}


def test_labels_ids_and_row_numbers_are_no_features(folder):
    opened = open_arrays(["columns.parquet"], "answer")
    np.testing.assert_array_equal(opened.layers["columns"], X)
    assert [*opened.table] == ["label", "id", "site", "answer"]
    rows = described(opened.table, "the table", "answer")
    assert rows["y"] == ["1"] * 6 and [*rows["columns"]] == ["label", "site"]
    assert open_arrays(["columns.parquet"]).layers["columns"].shape == (6, 4)


def test_a_table_needs_ids():
    with pytest.raises(SourceError, match="t.csv has no column 'id'; it has a, b"):
        described({"a": ["1"], "b": ["2"]}, "t.csv", None)
    assert described({"path": ["1"]}, "t.csv", None) == {"ids": ["1"], "y": None, "columns": {}}
    with pytest.raises(SourceError, match="no column 'topic'; close: 'topics'.*labels="):
        described({"id": ["1"], "topics": ["2"]}, "t.csv", "topic")


class Runs:
    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, ("it ran",)


WRONG: dict[str, tuple[str, ...]] = {
    "nothere.npy": ("there is no file nothere.npy",),
    "xx.npy": ("there is no file xx.npy", "close: 'x.npy'"),
    "x.csv": (".npy, .npz and .parquet", "FILE.h5:PATH", "x.csv"),
    "objects.npy": ("objects.npy holds Python objects, which can run code",),
    "objects.npz": ("objects.npz holds Python objects",),
    "pickle.npy": ("pickle.npy cannot be read as a .npy file",),
    "pickle.npz": ("pickle.npz cannot be read as a .npz file: it is no archive of arrays",),
    "none.npz": ("none.npz holds no arrays",),
    "large.npz": ("large.npz does not fit into memory", ".npy"),
    **{
        f"{kind}.{end}": (f"{kind}.{end} cannot be read as a .{end} file",)
        for kind in ("endless", "nested")
        for end in ("npy", "npz")
    },
    "true.npy": ("true.npy cannot be read as a .npy file",),
    "empty.npy": ("empty.npy cannot be read as a .npy file",),
    "cut.npy": ("cut.npy cannot be read as a .npy file",),
    "cut.npz": ("cut.npz cannot be read as a .npz file",),
    "npy.npz": ("npy.npz cannot be read as a .npz file",),
    "x.parquet": ("x.parquet cannot be read as a Parquet file",),
    "texts.parquet": ("texts.parquet has no columns of numbers", "'id'"),
    "ragged.parquet": ("column 'x' has lists of different lengths",),
    "holes.parquet": ("column 'x' has lists of different lengths, or empty cells",),
    "f.h5": ("name a dataset, f.h5:PATH", "'deep/x:1', 'z'"),
    "f.h5:y": ("name a dataset", "'z'"),
    "f.h5:deep": ("name a dataset",),
    "x.h5:z": ("x.h5 cannot be read as an HDF5 file",),
    "elsewhere.h5:link": ("takes its numbers from another file",),
    "elsewhere.h5:outside": ("takes its numbers from another file",),
    "elsewhere.h5:virtual": ("takes its numbers from another file",),
    "lm=both.npz": ("both.npz has several arrays, 'x', 'z'", "leave out lm="),
    "x.npy both.npz": ("layer 'x' is there twice", "NAME=both.npz"),
    ".": ("there is no file .",),
}


def test_what_is_no_array_is_refused_by_name(folder, subtests):
    Path("x.csv").write_text("id\n1\n")
    np.save("objects.npy", np.array([Runs()]), allow_pickle=True)
    np.savez("objects.npz", x=np.array([Runs()]))
    for name in ("pickle.npy", "pickle.npz"):
        Path(name).write_bytes(pickle.dumps(Runs()))
    Path("empty.npy").touch()
    for name, whole in (("cut.npy", "x.npy"), ("cut.npz", "both.npz")):
        Path(name).write_bytes(Path(whole).read_bytes()[:-40])
    np.savez("none.npz")
    shapes = {"large": "(9999999999999, 4)", "endless": f"({10**22}, 4)", "nested": "(" * 5000, "true": "(True, 4)"}
    for name, shape in shapes.items():
        header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}\n".encode()
        content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)
        Path(f"{name}.npy").write_bytes(content)
        with zipfile.ZipFile(f"{name}.npz", "w") as file:
            file.writestr("x.npy", content)
    Path("npy.npz").write_bytes(Path("x.npy").read_bytes())
    for name in ("x.parquet", "x.h5"):
        Path(name).write_text("no such file")
    pyarrow.parquet.write_table(pyarrow.table({"id": IDS}), "texts.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"x": [[1.0], [1.0, 2.0]]}), "ragged.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"x": [[1.0], None]}), "holes.parquet")
    with h5py.File("elsewhere.h5", "w") as file:
        file["link"] = h5py.ExternalLink("f.h5", "z")
        file.create_dataset("outside", (6, 2), "i8", external=[("x.csv", 0, 96)])
        virtual = h5py.VirtualLayout((6, 2), "i8")
        virtual[:] = h5py.VirtualSource("f.h5", "z", (6, 2))
        file.create_virtual_dataset("virtual", virtual)
    for source, words in WRONG.items():
        with subtests.test(source):
            with pytest.raises(SourceError) as caught:
                open_arrays(source.split())
            assert_tells(caught.value, *words)
    assert not Path("it ran").exists()


@pytest.mark.parametrize(
    "source, package, extra", [("lists.parquet", "pyarrow", "parquet"), ("f.h5:z", "h5py", "import")]
)
def test_a_package_that_is_missing_is_named(folder, monkeypatch, source, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SourceError, match=rf"package {package}: pip install 'featx\[{extra}\]'"):
        open_arrays([source])
