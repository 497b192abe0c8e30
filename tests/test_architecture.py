"""The rooms and the walls between them: imports point down only, and what need not be loaded is not."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from helpers import fresh_python

import featx

PACKAGE = Path(featx.__file__).parent
LOW = {
    "catalogue",
    "display",
    "errors",
    "grammar",
    "image_statistics",
    "manifest",
    "memory",
    "naming",
    "prediction",
    "progress",
    "recipe",
    "resizing",
    "urls",
}
MIDDLE = {"images", "backbones", "store", "solvers"}
LEFT = {"forward", "extraction"}
SHARED = {"learn._sklearn", "learn.identity", "learn.lazy_rows"}
LEARN = {f"learn.{room}" for room in ("features", "estimators", "scores", "search", "selection", "protocols", "models")}
MAY_IMPORT = {
    "array_files": {"errors", "manifest"},
    "catalogue": set(),
    "display": set(),
    "errors": set(),
    "grammar": set(),
    "image_statistics": set(),
    "manifest": {"errors"},
    "memory": set(),
    "naming": set(),
    "prediction": set(),
    "progress": {"display", "errors"},
    "recipe": {"errors", "grammar"},
    "resizing": {"errors", "grammar"},
    "request": {"catalogue", "errors", "store", "learn"},
    "urls": {"errors"},
    "_torch": set(),
    **{room: LOW | {"_torch"} for room in MIDDLE},
    "forward": LOW | MIDDLE,
    "extraction": LOW | MIDDLE | {"forward"},
    **{room: set() for room in SHARED},
    "learn.lazy_rows": {"errors", "memory"},
    "learn.estimators": LOW | SHARED | {"solvers"},
    "learn.features": LOW | SHARED | {"store", "forward", "images"},
    "learn.scores": LOW,
    "learn.search": LOW | SHARED | {"store", "solvers", "learn.features", "learn.estimators"},
    "learn.models": LOW | SHARED | {"store", "backbones"} | LEARN - {"learn.protocols", "learn.models"},
    "learn.selection": LOW | {"store", "learn._sklearn"} | LEARN - {"learn.protocols", "learn.models"},
    "learn.protocols": LOW | SHARED | LEARN - {"learn.models"},
    "learn": LEARN | {"naming"},  # the public list
    "transfer": LOW | MIDDLE - {"solvers"} | LEFT | SHARED | LEARN - {"learn.protocols", "learn.models"},
    "deploy": LOW | MIDDLE - {"solvers"} | {"forward", "learn.features", "learn.models"},
    "audit": LOW | MIDDLE - {"solvers"} | LEFT | {"learn._sklearn"} | LEARN - {"learn.protocols"},
    "report": LOW | MIDDLE | LEFT | LEARN | {"learn", "transfer", "audit"},
    "scale": LOW | {"backbones", "images", "store"} | LEFT,
    "cli": LOW
    | {
        "array_files",
        "images",
        "backbones",
        "store",
        "extraction",
        "request",
        "learn",
        "report",
        "transfer",
        "audit",
        "deploy",
        "scale",
    },
    "__main__": {"cli"},
}
LEFT_SIDE = LOW | MIDDLE | LEFT | {"_torch", "scale"}
FILES = {file.relative_to(PACKAGE).as_posix(): file.read_text() for file in sorted(PACKAGE.rglob("*.py"))}


def room_of(name: str) -> str:
    """The room of a file or a module, given its name below featx: "learn/search/planner.py", "store.recipe"."""
    parts = name.removesuffix(".py").replace("/", ".").removesuffix("__init__").strip(".").split(".")
    return ".".join(parts[:2]) if ".".join(parts[:2]) in LEARN | SHARED else parts[0]


@cache
def imports(source: str) -> tuple[tuple[str, bool], ...]:
    """(full module name, whether inside a function) of every import, wherever it stands."""
    return tuple(_imports(source))


def _imports(source: str) -> Iterator[tuple[str, bool]]:
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((name.name, id(node) in inside) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            # `from featx import forward` names a room, `from featx.store import Recipe` an object in one
            rooms = [f"{node.module}.{name.name}".removeprefix("featx.") for name in node.names]
            is_room = node.module == "featx" or set(rooms) <= LEARN
            names = [f"featx.{room}" for room in rooms] if is_room else [str(node.module)]
            yield from ((name, id(node) in inside) for name in names)


def featx_imports(source: str) -> set[str]:
    """Names below featx of the modules that are imported: "store", "learn.search"."""
    names = {name.removeprefix("featx.") for name, _ in imports(source) if name.startswith("featx.")}
    return {name for name in names if room_of(name) in MAY_IMPORT}


def test_imports_are_found_wherever_they_stand():
    source = "import featx.images\ndef f():\n    from featx.learn import load\n    from featx import forward, extract\n"
    assert featx_imports(source) == {"images", "learn", "forward"}
    assert dict(imports(source)) == {
        "featx.images": False,
        "featx.learn": True,
        "featx.forward": True,
        "featx.extract": True,
    }
    assert featx_imports("from featx.learn import search") == {"learn.search"}
    assert room_of("learn/__init__.py") == "learn" and room_of("learn/search/__init__.py") == "learn.search"


def test_every_room_has_a_place_and_every_place_a_room():
    assert {room_of(name) for name in FILES} - {""} == MAY_IMPORT.keys()


def test_imports_point_down_only():
    wrong = {
        f"{name} imports {module}"
        for name, source in FILES.items()
        for module in featx_imports(source)
        if name != "__init__.py" and room_of(module) not in MAY_IMPORT[room_of(name)] | {room_of(name)}
    }
    assert not wrong


def test_no_files_import_each_other_in_a_circle():
    """Imports for type checkers and inside functions count; a package's list of public names does not."""
    files = {"featx." + name.removesuffix(".py").replace("/", ".") for name in FILES}
    graph = {
        file: {module for module, _ in imports(FILES[file.removeprefix("featx.").replace(".", "/") + ".py"])} & files
        for file in files
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, with the circle
    assert "featx.solvers.basis" in graph["featx.solvers.objective"]


def test_a_room_is_used_by_what_its_init_lists():
    wrong = {
        f"{name} imports {module}"
        for name, source in FILES.items()
        for module in featx_imports(source)
        if room_of(module) not in (module, room_of(name))
    }
    assert not wrong


def test_walls_are_no_wider_than_what_stands():
    """A wall that nobody needs open is closed."""
    used = {room: set() for room in MAY_IMPORT}
    for name, source in FILES.items():
        used.get(room_of(name), set()).update(map(room_of, featx_imports(source)))
    for room in LEARN:
        assert MAY_IMPORT[room] - LOW - SHARED - used[room] == set(), room


def test_nothing_left_of_the_file_imports_scikit_learn_and_nothing_needs_the_hdf5_library():
    for name, source in FILES.items():
        libraries = {module.split(".")[0] for module, _ in imports(source)}
        if name == "array_files.py":  # a dataset of an HDF5 file that the user names is read by the library
            assert dict(imports(source))["h5py"]
            libraries -= {"h5py"}
        assert not {"h5py", "hdf5plugin", "tables"} & libraries, name
        assert room_of(name) not in LEFT_SIDE or not {"sklearn", "skops"} & libraries, name


def test_learning_reaches_for_the_forward_pass_in_one_place_and_only_when_it_must():
    found = [
        (file, lazy)
        for file, source in FILES.items()
        if room_of(file).startswith("learn")
        for name, lazy in imports(source)
        if name.startswith("featx.forward")
    ]
    assert [lazy for _, lazy in found] == [True]


def test_ray_is_imported_where_it_is_used_and_only_then():
    found = {(room_of(file), lazy) for file, source in FILES.items() for name, lazy in imports(source) if name == "ray"}
    assert found == {("scale", True)}


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


@pytest.mark.parametrize("first", ["import featx; featx.FeatureStore", "import featx.store"])
def test_reading_a_store_does_not_load_torch(first):
    assert fresh_python(f"{first}\nimport sys\nprint(int('torch' in sys.modules))") == 0


def test_predicting_with_an_exported_model_loads_neither_torch_nor_scikit_learn():
    code = "import sys, featx.report\nfrom featx.deploy import predict_onnx\n"
    assert fresh_python(f"{code}print(sum(name in sys.modules for name in ('torch', 'sklearn', 'scipy')))") == 0


def test_learning_does_not_load_torch_nor_ensembles_of_trees():
    code = "import featx.learn, sys\nwith_trees = 'sklearn.ensemble' in sys.modules\n"
    code += "import featx.report\nprint(int(with_trees or 'torch' in sys.modules))"
    assert fresh_python(code) == 0


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
