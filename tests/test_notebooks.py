"""The notebooks run from a bare folder, and use public names only."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default")  # of the notebook client and its server
def test_runs(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert outputs and not [output for output in outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_imports_public_names_and_has_outputs(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    modules = {name for cell in code for name in re.findall(r"(?:from|import) (featx[\w.]*)", cell.source)}
    assert modules <= {"featx", "featx.learn"}
    assert all(cell.outputs for cell in code)
    assert not re.search(r"/tmp/|/home/|/root/|site-packages", path.read_text())
