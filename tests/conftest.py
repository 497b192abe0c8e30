"""How many workers share the suite, and where their fixtures are."""

from __future__ import annotations

import gc
from pathlib import Path

import joblib
import pytest

MOST_WORKERS = 4  # each takes 15 s to begin, and up to 3 GB


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One a core for folders of tests; none for files and tests that are named: those begin at once, right here."""
    named = [Path(name.partition("::")[0]) for name in config.args]
    return min(joblib.cpu_count(), MOST_WORKERS) if any(path.is_dir() for path in named) else 0


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("tx") or hasattr(config, "workerinput"):  # who only hands out tests needs no torch
        gc.disable()  # until all is imported and collected: some hundred thousand objects that stay
        config.pluginmanager.import_plugin("shared")
