"""The site: `sphinx-build -W --keep-going docs docs/_build/html`. The code of its pages is run, without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import featx

HERE = Path(__file__).parent

project = "featx"
author = "the featx developers"
version = release = featx.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.mathjax", "numpydoc", "myst_nb"]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]

html_theme = "pydata_sphinx_theme"
html_title = "featx"
html_theme_options = {"navigation_with_keys": False, "show_prev_next": False, "secondary_sidebar_items": ["page-toc"]}
html_sidebars = {"index": []}
html_show_sourcelink = False

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

autosummary_generate = True
autosummary_imported_members = True
autosummary_ignore_module_all = False
autodoc_typehints = "none"  # the docstrings have the types
# scikit-learn's methods of metadata routing, on every class
_METADATA = ("fit", "transform", "inverse_transform", "partial_fit", "predict", "predict_proba", "score")
autodoc_default_options = {"exclude-members": ",".join(f"set_{name}_request" for name in _METADATA)}
default_role = "code"
numpydoc_show_class_members = False

# Each page runs in an empty folder; `examples` puts the pictures there.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True
os.environ["LOKY_MAX_CPU_COUNT"] = "1"  # the searches are small: worker processes would take longer to start
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def setup(app: Any) -> None:
    """Make the store that several pages use."""
    folder = Path(app.doctreedir) / "examples"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["FEATX_EXAMPLES"] = str(folder)
    subprocess.run([sys.executable, HERE / "examples.py"], cwd=folder, check=True)
