"""benchmarks/gpu.py: every part runs on a GPU, a pretend one here, and none depends on the others."""

from __future__ import annotations

import importlib
import math
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
NOT_HERE = ("decoding, nvJPEG",)  # of a pretend GPU


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("gpu")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    "part",
    [
        "extract",
        "solve",
        "heads",
        "nystroem",
        *(pytest.param(part, marks=pytest.mark.slow) for part in ("search", "finetune")),
    ],
)
def test_a_part(script, part):
    lines = list(script.measured(part, script.SMALL, None, time.monotonic() + 600))
    assert len(lines) >= 2
    for line in lines:
        if line["case"] not in NOT_HERE:
            assert "error" not in line, line
            assert math.isfinite(line["value"]) and line["unit"], line
    assert all(line["case"] in script.table(lines) for line in lines)


def test_parts_do_not_depend_on_each_other(script):
    prints = f'print({script.LINE!r} + \'{{"part": "%s", "case": "x", "value": 3, "unit": "s"}}\', flush=True)'
    codes = {
        "tests": prints % "tests" + "; raise SystemExit('out of memory')",
        "extract": prints % "extract" + "; import time; time.sleep(60)",
        "solve": prints % "solve",
    }
    commands = {part: [sys.executable, "-c", code] for part, code in codes.items()}
    lines = list(script.run_all(commands, minutes=0.1))
    assert [line["part"] for line in lines if "value" in line] == list(codes)
    errors = {line["part"]: line["error"] for line in lines if "error" in line}
    assert errors == {"tests": "ended with exit status 1: out of memory", "extract": "stopped after its 5 s"}


def test_a_measurement_that_fails_is_a_line(script, monkeypatch):
    def part(size, images):
        yield "bad", lambda: 1 / 0
        yield "good", lambda: {"value": 2.0, "unit": "s"}
        yield "late", lambda: time.sleep(60)
        raise OSError("no disk")

    monkeypatch.setitem(script.PARTS, "solve", (part, 1))
    now = time.monotonic()
    times = iter([0, 0, 0, 0, 0, 0, 2, 2])
    monkeypatch.setattr(script.time, "monotonic", lambda: now + next(times))
    bad, good, late, end = script.measured("solve", script.SMALL, None, now + 1)
    assert bad["error"] == "ZeroDivisionError: division by zero" and good["value"] == 2
    assert late["error"] == "no time left" and end["error"] == "OSError: no disk"
