"""benchmarks/scale.py: its formulae, and how far they are from a small measured run."""

from __future__ import annotations

import importlib
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("scale")


def test_a_small_run_takes_about_what_the_formula_says(script, tmp_path):
    n = 256
    constants, forward, run = script.measured("bundled:pixels", n, tmp_path, script.Constants())
    expected = script.cost(n, run["width"], forward, constants)
    assert expected.store_bytes == pytest.approx(run["bytes"], rel=0.3)  # a short file has a larger share of headers
    assert run["rate"] / 8 < expected.rate < run["rate"] * 8  # this machine may be busy
    assert expected.bottleneck == "CPU"


@pytest.mark.parametrize(
    "changes, bottleneck, rate",
    [
        ({}, "GPUs", 1000),
        ({"gpus": 8, "cores": 4}, "decoding", 400),
        ({"network": 1e6}, "network", 10),
        ({"disk_write": 4200.0}, "disk", 1),
        ({"gpus": 0, "cores": 10}, "CPU", 500),
    ],
)
def test_the_slowest_part_decides(script, changes, bottleneck, rate):
    constants = replace(
        script.Constants(decode_per_core=100.0, metadata=104.0, network=1e12, image_bytes=1e5), **changes
    )
    cost = script.cost(3.6e6, 1024, 1000.0, constants)
    assert (cost.bottleneck, cost.rate) == (bottleneck, pytest.approx(rate))
    assert cost.hours == pytest.approx(1000 / rate) and cost.machines(1.0) == math.ceil(1000 / rate)
    assert cost.store_bytes == 3.6e6 * 4200


def test_constants_are_arguments(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scale.py", "--images", "3.6e6", "--set", "cores=1000", "resnet50=1000"])
    script.main()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "resnet50" in line]
    assert "| 1,000 | 1 | GPUs | 1 |" in line
    monkeypatch.setattr(sys, "argv", ["scale.py", "--set", "core=1"])
    with pytest.raises(SystemExit):
        script.main()
    assert "no constant core; there are image_bytes" in capsys.readouterr().err
