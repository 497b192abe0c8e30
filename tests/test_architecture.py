"""The rooms and the walls between them: imports point down only, and what need not be loaded is not."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import fresh_python

import featx

PACKAGE = Path(featx.__file__).parent
LOW = {"display", "errors", "grammar", "manifest", "progress"}
MIDDLE = {"images", "backbones", "store", "solvers"}
MAY_IMPORT = {
    "display": set(),
    "errors": set(),
    "grammar": set(),
    "manifest": {"errors"},
    "progress": {"display"},
    **{room: LOW for room in MIDDLE},
    "passes": LOW | MIDDLE,
    "trial": LOW | MIDDLE | {"passes"},
    "forward": LOW | MIDDLE | {"passes", "trial"},  # and nobody else imports passes
    "reuse": LOW | {"images", "backbones", "store"},
    "alike": LOW | {"backbones", "store"},
    "parts": LOW | MIDDLE | {"forward", "reuse"},
    "processes": LOW | MIDDLE | {"forward"},
    "extraction": LOW | MIDDLE | {"forward", "reuse", "parts", "processes", "alike"},  # and nobody else imports these
    "learn": LOW | MIDDLE | {"forward"},
    **{room: LOW | MIDDLE | {"forward", "extraction", "learn"} for room in ("report", "transfer", "scale")},
    "demo": LOW | MIDDLE | {"forward", "extraction", "learn", "report"},  # it uses featx as a notebook would
    "cli": LOW | MIDDLE | {"forward", "extraction", "learn", "report", "transfer", "scale", "demo"},
    "__main__": {"cli"},
}
LEFT_SIDE = {
    "display",
    "errors",
    "grammar",
    "manifest",
    "images",
    "backbones",
    "store",
    "passes",
    "trial",
    "forward",
    "processes",
    "reuse",
    "alike",
    "extraction",
    "progress",
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """(full module name, whether inside a function) of every import, wherever it stands."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((name.name, id(node) in inside) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            # `from featx import forward` names a room, `from featx.store import Recipe` an object in one
            names = [f"featx.{name.name}" for name in node.names] if node.module == "featx" else [str(node.module)]
            yield from ((name, id(node) in inside) for name in names)


def rooms_imported(source: str) -> set[str]:
    names = {name.split(".")[1] for name, _ in imports(source) if name.startswith("featx.")}
    return {name for name in names if name in MAY_IMPORT}


def test_imports_are_found_wherever_they_stand():
    source = "import featx.images\ndef f():\n    from featx.learn import load\n    from featx import forward, extract\n"
    assert rooms_imported(source) == {"images", "learn", "forward"}
    assert dict(imports(source)) == {
        "featx.images": False,
        "featx.learn": True,
        "featx.forward": True,
        "featx.extract": True,
    }


def test_every_file_is_in_a_room_that_has_a_place():
    assert {room_of(file) for file in FILES} - {"__init__"} <= MAY_IMPORT.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_imports_point_down_only(file):
    room = room_of(file)
    if room == "__init__":
        return  # lists the public names; tested below
    assert rooms_imported(file.read_text()) <= MAY_IMPORT[room] | {room}


@pytest.mark.parametrize("room", sorted(LEFT_SIDE))
def test_nothing_left_of_the_file_imports_scikit_learn(room):
    for file in FILES:
        if room_of(file) == room:
            assert not any(name.split(".")[0] in ("sklearn", "skops") for name, _ in imports(file.read_text())), file


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_nothing_needs_the_hdf5_library(file):
    assert not {"h5py", "hdf5plugin", "tables"} & {name.split(".")[0] for name, _ in imports(file.read_text())}


def test_learning_reaches_for_the_forward_pass_in_one_place_and_only_when_it_must():
    found = [
        (file.name, lazy)
        for file in FILES
        if room_of(file) == "learn"
        for name, lazy in imports(file.read_text())
        if name.startswith("featx.forward")
    ]
    assert [lazy for _, lazy in found] == [True]


def test_importing_featx_is_quick_and_loads_nothing_heavy():
    code = """
import json, sys, time
start = time.perf_counter()
import featx
seconds = time.perf_counter() - start
print(json.dumps([seconds, sorted({"torch", "sklearn", "h5py", "numpy", "PIL"} & set(sys.modules))]))
"""
    runs = [fresh_python(code) for _ in range(5)]
    assert statistics.median(seconds for seconds, _ in runs) < 0.1
    assert all(heavy == [] for _, heavy in runs)


@pytest.mark.parametrize(
    "first", ["import featx.learn, featx.report", "import featx; featx.FeatureStore", "import featx.store"]
)
def test_learning_and_reading_a_store_do_not_load_torch(first):
    assert fresh_python(f"{first}\nimport sys\nprint(int('torch' in sys.modules))") == 0


def test_a_store_is_opened_read_and_verified_without_torch_scikit_learn_or_the_hdf5_library(pixel_store):
    code = f"""
import json, sys
from featx.store import FeatureStore
store = FeatureStore({str(pixel_store.path)!r})
store.verify()
store.X, store.y, store.ids, store.columns, store.failures, store["penultimate"].sum(), store.recipe
total = float(store.take([3, -1, 3], "penultimate", check=True).sum())
print(json.dumps([total, sorted({{"torch", "sklearn", "h5py", "PIL", "scipy"}} & set(sys.modules))]))
"""
    total, heavy = fresh_python(code)
    assert heavy == []
    assert total == float(pixel_store["penultimate"][[3, -1, 3]].sum())


def test_public_names_are_there_and_others_are_not():
    assert set(featx.__all__) == set(dir(featx)) == set(featx._HOMES)
    for name in featx.__all__:
        assert getattr(featx, name).__module__.startswith(featx._HOMES[name])
    with pytest.raises(AttributeError, match="no attribute 'extarct'"):
        featx.extarct  # noqa: B018
