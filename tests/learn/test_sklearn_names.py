"""The private names of scikit-learn are there, and nowhere but in `featx/learn/_sklearn.py`."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import featx
from featx.learn import _sklearn


def test_every_private_name_of_scikit_learn_is_there():
    assert all(hasattr(_sklearn, name) for name in _sklearn.__all__)
    for path, methods in _sklearn.METHODS.items():
        module, _, name = path.rpartition(".")
        cls = getattr(importlib.import_module(module), name)
        assert [method for method in methods if not hasattr(cls, method)] == [], path


def test_no_other_file_imports_one():
    package = Path(featx.__file__).parent
    private = re.compile(r"from sklearn\S*\._|import _")
    users = {file.name for file in package.rglob("*.py") if private.search(file.read_text())}
    assert users <= {"_sklearn.py"}
