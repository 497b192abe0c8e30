"""A real extraction, killed at random moments: its output is absent or whole, and in the end as if nothing had been."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import left_in, save_noise

import featx

N = 400
BAD = (5, 130, 131, 300)  # so that rows are moved together at the end
# Imports once, then for each line on stdin runs an extraction in a fork of its own, for so many seconds at most.
PROGRAM = """
import json, os, signal, sys, time, warnings
from featx.extraction import extract
from featx.store import writer

warnings.simplefilter("ignore")
output, writer._SYNC_SECONDS = sys.argv[1], 0.0
for line in sys.stdin:
    start, (source, seconds) = time.monotonic(), json.loads(line)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            extract(source, output, "bundled:pixels", batch_size=16, precision="float32", device="cpu", progress=False)
            code = 0
        finally:
            os._exit(code)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() - start > seconds:
            os.kill(child, signal.SIGKILL)
            seconds = 1000.0
        time.sleep(0.0005)
    print(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic() - start]), flush=True)
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for i in range(N):
        path = save_noise(root / "ab"[i % 2] / f"{i:03}.png", seed=i)
        if i in BAD:
            path.write_text("no picture")
    return root


class Extractions:
    """run(photos, seconds) -> (exit code, or minus the signal, seconds it took)"""

    def __init__(self, output: Path) -> None:
        arguments = [sys.executable, "-c", PROGRAM, str(output)]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, photos: Path, seconds: float = 100.0) -> tuple[int, float]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(photos), seconds]) + "\n")
        self.process.stdin.flush()
        code, took = json.loads(self.process.stdout.readline())
        return code, took


@pytest.fixture
def extractions(tmp_path) -> Iterator[Extractions]:
    found = Extractions(tmp_path / "a.h5")
    with found.process:
        yield found
        assert found.process.stdin is not None
        found.process.stdin.close()


def killed_and_finished(extractions: Extractions, photos: Path, output: Path, kills: int, seed: int) -> int:
    """Kill so many runs, each of which finds what was there at first or goes on; look after each; finish.

    What is at the output is always what was there at first, or the whole new store. Returns how many went on.
    """
    first = output.read_bytes() if output.exists() else None
    code, seconds = extractions.run(photos)
    assert code == 0 and left_in(output.parent) == [output.name]
    store = featx.FeatureStore(output)
    store.verify()
    assert len(store) == N - len(BAD) and len(store.failures) == len(BAD)
    whole = output.read_bytes()

    def put_back():
        output.unlink()
        if first is not None:
            output.write_bytes(first)

    put_back()
    rng, killed, went_on = np.random.default_rng(seed), 0, 0
    while killed < kills:
        went_on += (output.parent / "a.h5.journal").exists()
        code, _ = extractions.run(photos, rng.uniform(0.0, seconds))
        assert code in (0, -signal.SIGKILL)
        killed += code == -signal.SIGKILL
        assert set(left_in(output.parent)) <= {"a.h5", "a.h5.partial", "a.h5.journal"}
        found = output.read_bytes() if output.exists() else None
        assert found in (first, whole)
        if found == whole:
            put_back()  # and again from the start; the journal of the finished run may still be there
    assert extractions.run(photos)[0] == 0
    assert output.read_bytes() == whole and left_in(output.parent) == [output.name]
    return went_on


def test_an_extraction_that_was_killed_twice_ends_as_if_it_had_not_been(extractions, photos, tmp_path):
    killed_and_finished(extractions, photos, tmp_path / "a.h5", kills=2, seed=0)


@pytest.mark.slow
def test_an_extraction_that_was_killed_ten_times_ends_as_if_it_had_not_been(extractions, photos, tmp_path):
    assert killed_and_finished(extractions, photos, tmp_path / "a.h5", kills=10, seed=1)


@pytest.mark.slow
def test_a_growth_that_was_killed_ten_times_leaves_the_old_store_or_the_new(
    extractions, photos, tmp_path, tmp_path_factory
):
    some = tmp_path_factory.mktemp("some")
    for i in [*range(100), *range(250, 300)]:
        path = some / "ab"[i % 2] / f"{i:03}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((photos / "ab"[i % 2] / f"{i:03}.png").read_bytes())
    assert extractions.run(some)[0] == 0
    assert killed_and_finished(extractions, photos, tmp_path / "a.h5", kills=10, seed=2)


@pytest.mark.slow
def test_an_extraction_goes_on_a_group_further_after_each_kill(extractions, photos, tmp_path):
    """Each run has only a little more time than it takes to get further than the one before."""
    output, journal = tmp_path / "a.h5", tmp_path / "a.h5.journal"
    assert extractions.run(photos)[0] == 0
    whole = output.read_bytes()
    output.unlink()
    seconds, told, steps = 0.02, 0, 0
    while extractions.run(photos, seconds)[0] != 0:
        assert not output.exists()
        before, told = told, len(journal.read_bytes().splitlines()) if journal.exists() else 0
        assert told >= before  # nothing that was done is lost
        steps += told > before
        seconds = seconds if told > before else seconds * 1.2
    assert steps > 2 and output.read_bytes() == whole and left_in(tmp_path) == ["a.h5"]
