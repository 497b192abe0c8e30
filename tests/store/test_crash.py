"""After a kill or a power cut at any moment the output is absent, old or whole, and a rerun gives the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import sampled
from helpers import TESTS

CHILD = TESTS / "crash_child.py"
TIMEOUT_SECONDS = 1800

PLAIN: dict[str, Any] = {}
# rows of three layers are closed up in a dozen steps; the first and the last image are among those that failed
FAILURES = {
    "bad": [0, 5, 64, 65, 66, 130, 149],
    "taps": {"a:avg": [100], "b:none": [3, 5], "c:avg": [150]},
    "move_bytes": 32_000,
}
RUNS: dict[str, dict[str, Any]] = {
    "no failures": PLAIN,
    "failures": FAILURES,
    # the second layer begins where it began; its first rows stay, what follows moves
    "one failure, late": {"bad": [120], "taps": {"a:avg": [100], "b:avg": [100]}, "move_bytes": 16_000},
    "any order": {"n": 70, "batch": 35, "seed": 1, "dtype": "float16", "block_bytes": 4096, "bad": [3]},
    "over an old store": {"old": True, "sync_bytes": 2**30, "bad": [3]},
}
MERGES: dict[str, dict[str, Any]] = {
    "to a new file": {"merge": {"n": 70, "bad": [3, 69]}},
    "over one of the parts": {"merge": {"n": 70, "old": True}},
}

SOME_OR_ALL = pytest.mark.parametrize("step", [16, pytest.param(1, marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def tried() -> Iterator[Callable[..., dict[str, Any]]]:
    """`tried(folder, call, run, **options)`: what `crash_child` says of its trials, in forks of one new process."""
    process = subprocess.Popen(
        [sys.executable, CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )

    def call(folder: Path, name: str, run: dict[str, Any], **options: Any) -> dict[str, Any]:
        assert process.stdin is not None and process.stdout is not None
        late = threading.Timer(TIMEOUT_SECONDS, process.kill)
        late.start()
        try:
            process.stdin.write(json.dumps([name, str(folder), run, options]) + "\n")
            process.stdin.flush()
            said = json.loads(process.stdout.readline() or '"it is gone"')
        finally:
            late.cancel()
        assert isinstance(said, dict), said
        assert said["complaints"] == []
        return said

    with process:
        yield call
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


@pytest.mark.parametrize("name", RUNS)
@SOME_OR_ALL
def test_a_run_that_is_killed_at_any_moment_is_finished_by_the_next(tried, tmp_path, step, name):
    said = tried(tmp_path, "at_every_moment", RUNS[name], step=step)
    calls = {
        "open",
        "posix_fallocate",
        "ftruncate",
        "pwrite",
        "pwrite half",
        "fsync",
        "replace",
        "unlink",
        "write half",
    }
    assert calls <= {*said["moments"]} and said["kills"] == len(sampled(said["moments"], step))
    assert said["went_on"] > 5


@pytest.mark.parametrize("name", MERGES)
@SOME_OR_ALL
def test_a_merge_that_is_killed_at_any_moment_is_finished_by_the_next(tried, tmp_path, step, name):
    said = tried(tmp_path, "at_every_moment", MERGES[name], step=step)
    assert said["kills"] == len(sampled(said["moments"], step)) and "unlink" in said["moments"] and said["went_on"] > 3


@pytest.mark.parametrize(
    "old, power", [(False, True), (True, False)], ids=["to a new file, power cut", "over an old store, killed"]
)
def test_an_export_that_is_killed_at_any_moment_is_finished_by_the_next(tried, tmp_path, old, power):
    said = tried(tmp_path, "at_every_moment", {"export": {"n": 70, "bad": [3], "old": old}}, power=power)
    assert said["kills"] == len(said["moments"]) and {"replace", "fsync"} <= {*said["moments"]}


@pytest.mark.parametrize("name", ["failures", "any order", "over an old store"])  # all of them are slow, below
def test_a_power_cut_loses_nothing_that_was_synced(tried, tmp_path, name):
    said = tried(tmp_path, "at_every_moment", RUNS[name], power=True, step=18)
    assert said["kills"] == len(sampled(said["moments"], 18)) and said["went_on"] > 3


@pytest.mark.parametrize("power", [False, True], ids=["killed", "power cut"])
def test_a_rerun_may_be_killed_as_well(tried, tmp_path, power):
    said = tried(tmp_path, "several_times", FAILURES, tries=8, seed=0, power=power)
    assert said["kills"] > 10 and said["went_on"] > 5


@pytest.mark.parametrize(
    "power, step",
    [(True, 3), pytest.param(True, 1, marks=pytest.mark.slow), pytest.param(False, 1, marks=pytest.mark.slow)],
)
def test_what_a_run_leaves_at_its_end_does_not_disturb_the_next(tried, tmp_path, power, step):
    said = tried(tmp_path, "at_the_end_and_the_beginning", RUNS["one failure, late"], power=power, step=step)
    assert said["kills"] > 40 / step


def test_a_run_may_be_killed_at_random_times(tried, tmp_path):
    assert tried(tmp_path, "at_random_times", FAILURES, kills=15, seed=0)["kills"] == 15


@pytest.mark.slow
@pytest.mark.parametrize("name", ["failures", "over an old store"])
def test_a_run_may_be_killed_at_500_random_times(tried, tmp_path, name):
    assert tried(tmp_path, "at_random_times", RUNS[name], kills=500, seed=1)["kills"] == 500


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_power_cut_at_any_moment_may_lose_anything_that_was_not_synced(tried, tmp_path, name):
    said = tried(tmp_path, "at_every_moment", RUNS[name], power=True, seeds=3)
    assert said["kills"] == 3 * len(said["moments"])


@pytest.mark.slow
@pytest.mark.parametrize("power", [False, True], ids=["killed", "power cut"])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_may_be_killed_many_times(tried, tmp_path, name, power):
    assert tried(tmp_path, "several_times", RUNS[name], tries=100, seed=1, power=power, most=6)["kills"] > 150
