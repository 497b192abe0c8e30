"""Extraction on a cluster whose processes and nodes end, with bounded memory; clusters that featx starts or joins."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import fresh_python, left_in, noise, save_noise
from ray_networks import NODE, deadly
from runs import extract, same_file

import featx
from featx.errors import FeatxError

pytestmark = pytest.mark.slow


def actors_of(cluster: Any) -> list[int]:
    """The actors' processes, which are children of the nodes' raylets."""
    raylets = {node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in raylets and (folder / "cmdline").read_bytes().startswith(b"ray::Worker"):
                found.append(int(folder.name))
    return sorted(found)


class Killer(threading.Thread):
    """Kills an actor, then the second node, and so on, at random moments while a run is on."""

    def __init__(self, cluster: Any, most: int, seed: int) -> None:
        super().__init__()
        self._cluster, self._most, self._random = cluster, most, random.Random(seed)
        self.kills: list[str] = []
        self.over = threading.Event()

    def run(self) -> None:
        while len(self.kills) < self._most and not self.over.wait(self._random.uniform(0.2, 5)):
            others = [node for node in self._cluster.list_all_nodes() if node is not self._cluster.head_node]
            if len(self.kills) % 2 == 0 and (actors := actors_of(self._cluster)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._random.choice(actors), signal.SIGKILL)
                    self.kills.append("actor")
            elif len(self.kills) % 2 and others:
                self._cluster.remove_node(others[0], allow_graceful=False)
                self.kills.append("node")

    def mend(self, now: featx.Progress) -> None:
        """Add a node in place of one that is gone: a thread cannot."""
        if len(self._cluster.list_all_nodes()) < 2:
            self._cluster.add_node(**NODE)


def test_stores_are_byte_for_byte_those_of_a_local_run_whatever_is_killed(cluster, tmp_path):
    images = [noise(i) for i in range(1000)]
    options = {"batch_size": 4, "precision": "float32", "engine": "eager"}
    local = extract(images, tmp_path / "local.h5", deadly(tmp_path), **options)
    killer = Killer(cluster, most=10, seed=0)
    options |= {"executor": featx.RayExecutor(cluster.address), "progress": killer.mend}
    killer.start()
    try:
        number = 0
        while killer.is_alive():
            store = extract(images, tmp_path / f"{number}.h5", deadly(tmp_path, seconds=0.2), **options)
            assert same_file(store, local)
            number += 1
    finally:
        killer.over.set()
        killer.join()
        killer.mend(None)
    assert killer.kills == ["actor", "node"] * 5


def test_the_drivers_memory_does_not_grow_with_the_number_of_images(cluster, tmp_path):
    """A row takes 112 kB: 1,000 take 112 MB, 4,000 450 MB."""
    for i in range(100):
        save_noise(tmp_path / "photos" / f"{i:03}.png", seed=i)
    peaks = []
    for n in (1000, 4000):
        code = f"""
import pathlib, re, torch, featx
torch.set_num_threads(1)
peak = 0
def look(now):
    global peak
    peak = max(peak, int(re.search(r"RssAnon:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]))
paths = sorted(pathlib.Path({str(tmp_path / "photos")!r}).iterdir())
paths = [paths[i % 100] for i in range({n})]
layers, ids = "layer1.0.conv1:flatten~28000", list(map(str, range({n})))
backbone = featx.Backbone("resnet18", None, preprocessing=featx.Preprocessing(crop=(32, 32), resize=32))
featx.extract(paths, {str(tmp_path / f"{n}.h5")!r}, backbone, layers, ids=ids, progress=look, device="cpu",
    precision="float32", engine="eager", batch_size=16, executor=featx.RayExecutor({cluster.address!r}))
print(peak)
"""
        peaks.append(fresh_python(code, timeout_seconds=600))
    assert peaks[1] < peaks[0] + 60_000, peaks  # kB


def ended(pattern: bytes) -> bool:
    """Whether no process has these bytes in its environment any more."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if pattern in (folder / "environ").read_bytes() and (folder / "stat").read_text().split()[2] != "Z":
                return False
    return True


def command(*words: object, **environment: str) -> subprocess.Popen:
    """A command of featx; processes that it starts have the same environment."""
    code = "import sys, torch; torch.set_num_threads(1); from featx.cli import main; main()"
    words = [sys.executable, "-c", code, *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env=os.environ | environment, process_group=0, **pipes)


@pytest.fixture
def photos(tmp_path) -> Path:
    for i in range(1000):
        save_noise(tmp_path / "photos" / f"{i:03}.png", seed=i)
    return tmp_path / "photos"


WORDS = ("-b", "bundled:pixels", "--batch-size", 1, "--precision", "float32", "--engine", "eager", "--device", "cpu")


def wait_until(holds: Any) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_command_starts_a_cluster_prints_the_bar_alone_and_shuts_it_down(photos, tmp_path):
    started = command("extract", photos, "-o", tmp_path / "a.h5", *WORDS, "--ray", "local", FEATX_TEST=str(tmp_path))
    printed, bar = started.communicate(timeout=120)
    assert started.returncode == 0, bar
    assert bar.count("\n") == 1 and bar.startswith("extracting") and "Ray" not in printed and "ray" not in printed
    wait_until(lambda: ended(f"FEATX_TEST={tmp_path}\0".encode()))
    options = {"batch_size": 1, "precision": "float32", "engine": "eager"}
    assert same_file(featx.FeatureStore(tmp_path / "a.h5"), extract(photos, tmp_path / "b.h5", **options))


@pytest.mark.parametrize("seconds", [4, 15])
def test_ctrl_c_ends_the_command_and_the_cluster_that_it_started(photos, tmp_path, seconds):
    """While it starts, and in the midst of the run, though a slow machine may still start it then."""
    words = ("extract", photos, "-o", tmp_path / "a.h5", *WORDS, "--ray", "local")
    started = command(*words, FEATX_TEST=str(tmp_path))
    journal = tmp_path / "a.h5.journal"
    begun = tmp_path / "a.h5.partial"
    wait_until(begun.exists)
    time.sleep(seconds)
    os.killpg(started.pid, signal.SIGINT)
    _, told = started.communicate(timeout=60)
    assert started.returncode == 130 and told.endswith(
        "what is done is kept, the same command goes on\n" if journal.exists() else "nothing half-written is left\n"
    )
    wait_until(lambda: ended(f"FEATX_TEST={tmp_path}\0".encode()))
    again = command(*words[:-2])
    again.communicate(timeout=120)
    assert again.returncode == 0
    assert left_in(tmp_path)[0] == "a.h5" and not begun.exists()


def test_a_run_ends_when_no_node_is_left_for_it(cluster, tmp_path, monkeypatch):
    """Its actors run on a node with three cores, which is removed."""
    monkeypatch.setattr("featx.scale.executor.LOOK_SECONDS", 0.5)
    (node,) = [cluster.add_node(num_cpus=3, object_store_memory=80_000_000)]
    images = [noise(i) for i in range(2000)]

    def remove(now: featx.Progress) -> None:
        if now.done >= 64 and node in cluster.list_all_nodes():
            cluster.remove_node(node, allow_graceful=False)

    import torch

    torch.set_num_threads(3)
    try:
        with pytest.raises(FeatxError, match="no node of the Ray cluster has 3 cores"):
            extract(
                images,
                tmp_path / "a.h5",
                deadly(tmp_path, seconds=0.05),
                batch_size=4,
                precision="float32",
                engine="eager",
                executor=featx.RayExecutor(cluster.address),
                progress=remove,
            )
    finally:
        torch.set_num_threads(1)
    assert np.isin(["a.h5.journal", "a.h5.partial"], left_in(tmp_path)).all()
