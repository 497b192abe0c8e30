"""The notebooks run from a bare folder, and use public names only."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
# A twentieth of the images, and no processes that take longer to start than to work.
LESS = {
    '("nominal", 400), ("local", 200), ("global", 200)': '("nominal", 20), ("local", 10), ("global", 10)',
    "n_jobs=2": "n_jobs=1",
}


@pytest.mark.parametrize("less", [LESS, pytest.param({}, marks=pytest.mark.slow)], ids=["less", "whole"])
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default")  # of the notebook client and its server
def test_runs(path: Path, less: dict[str, str], tmp_path: Path) -> None:
    notebook = nbformat.read(path, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for given, changed in less.items():
        assert any(given in cell.source for cell in code)
        for cell in code:
            cell.source = cell.source.replace(given, changed)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs and not [output for output in outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_imports_public_names_and_has_outputs(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    modules = {name for cell in code for name in re.findall(r"(?:from|import) (featx[\w.]*)", cell.source)}
    assert modules <= {"featx", "featx.learn"}
    assert all(cell.outputs for cell in code)
    assert not re.search(r"/tmp/|/home/|/root/|site-packages", path.read_text())
