"""What `featx doctor` shows of the installation and of the extras."""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from typer.testing import CliRunner

import featx
from featx.cli import app
from featx.report import installation

REQUIREMENTS = [
    "torch>=2.11",
    'timm>=1.0.31; extra == "timm"',
    'matplotlib>=3.11; extra == "plot"',
    'featx[plot,timm]; extra == "demo"',
    'conformal-clip-data>=0.1.4; extra == "demo"',
    'pytest>=9.0; extra == "test"',
]


def installed(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    """Let these packages be the only ones that are installed, and REQUIREMENTS be those of featx."""

    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    module = sys.modules["featx.report.installation"]
    monkeypatch.setattr(module, "version", version)
    monkeypatch.setattr(module, "requires", lambda name: REQUIREMENTS)


def test_an_extra_lists_what_is_missing_or_too_old_also_of_the_extras_in_it(monkeypatch):
    installed(monkeypatch, {"timm": "1.0.9", "conformal-clip-data": "0.1.10+local"})
    facts = installation()
    assert facts["extras"] == {
        "timm": ["timm>=1.0.31"],
        "plot": ["matplotlib>=3.11"],
        "demo": ["matplotlib>=3.11", "timm>=1.0.31"],
    }
    assert facts["versions"]["timm"] == "1.0.9" and facts["versions"]["torch"] is None
    text = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "120"}).stdout
    assert "lacks matplotlib>=3.11, timm>=1.0.31: pip install 'featx[demo]'" in text and "not installed" in text


def test_json_has_the_same_facts():
    done = CliRunner().invoke(app, ["doctor", "--json"])
    facts = json.loads(done.stdout)
    assert done.exit_code == 0 and facts == installation()
    assert facts["versions"]["featx"] == featx.__version__ and torch.__version__.startswith(facts["versions"]["torch"])
    assert 0 < facts["budget_bytes"] < facts["memory_bytes"]
    assert facts["decoders"]["JPEG"] and facts["decoders"]["PNG"]


def test_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert installation()["compiler"] is None
    assert "networks uncompiled" in CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "120"}).stdout
