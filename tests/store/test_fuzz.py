"""1,000 mutated stores are opened and read in separate processes: each is read, or raises a FeatxError.

There is no crash, hang or other exception, no read outside of the file, and little use of memory. See `fuzz_child.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import TESTS

CHILD = TESTS / "fuzz_child.py"


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory if possible, since files are written very often."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        yield Path(name)


def fuzz(folder: Path, runs: list[tuple[str, int, int]]) -> Counter[str]:
    """Mutate in one process a run, (form, seed, count), all at once; how many files ended in which way."""
    running = [
        subprocess.Popen(
            [sys.executable, CHILD, folder, form, str(seed), str(count)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for form, seed, count in runs
    ]  # fmt: skip
    found: Counter[str] = Counter()
    try:
        for process, (form, seed, count) in zip(running, runs, strict=True):
            said, errors = process.communicate(timeout=60 + count / 20)
            at = (folder / f"{form} {seed}.at").read_text().strip()
            assert process.returncode == 0, f"mutation {at} of {form}, seed {seed}: {process.returncode}\n{errors}"
            told = json.loads(said)
            assert told.pop("KiB") < 2**16, f"{form}, seed {seed} took {told} KiB"
            assert sum(number for what, number in told.items() if "another" not in what) == count
            found.update(told)
    finally:
        for process in running:
            process.kill()
            process.wait()
    return found


def assert_reached(found: Counter[str], total: int) -> None:
    """The mutations reached every check, and some files passed all of them."""
    for part in ("seal", "identity", "further in"):
        assert sum(number for what, number in found.items() if what.endswith(f"refused, {part}")) > total / 50
    assert found["resealed: refused, further in"] > total / 6 and found["tree: refused, further in"] > total / 6
    assert found["values: refused, further in"] > total / 12
    for kind in ("resealed", "tree", "values"):  # other columns' names, for instance
        assert found[f"{kind}: opened, and another"] > total / 2000
    assert found["bytes: opened, and another"] == found["splice: opened, and another"] == 0


def test_mutated_stores_are_read_or_refused(folder):
    found = fuzz(folder, [("plain", 1, 400), ("texts", 4, 200), ("gzip", 2, 200), ("zstd", 3, 200)])
    assert_reached(found, 1_000)
    assert found["pieces: refused, further in"] > 15


@pytest.mark.slow
def test_many_more_mutated_stores_are_read_or_refused(folder):
    for seed in range(10, 20):
        runs = [("plain", seed, 15_000), ("texts", seed, 15_000), ("gzip", seed, 15_000), ("zstd", seed, 15_000)]
        found = fuzz(folder, runs)
        assert_reached(found, 60_000)
