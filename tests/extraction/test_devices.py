"""Several processes write one file: the bytes are those of one process, whatever becomes of the devices."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import TAPS, left_in, noise, recipe, save_noise
from PIL import Image
from pretend_cuda import PretendCuda
from runs import extract, pictures, same_file
from torch import nn

import featx
from featx.errors import FeatxError, StoreError
from featx.extraction import devices, executors, plans, shares
from featx.forward import resolve_recipe
from featx.store import RowFile, StoreWriter, refuse_running, unfinished
from featx.store.hdf5 import Array

pytestmark = pytest.mark.filterwarnings("ignore::featx.errors.UnreadableImagesWarning")

N = 200
UNREADABLE = {3, *range(72, 80), 150, 199}  # alone, a whole batch, the last of all
NAMES = [f"bad {i}" if i in UNREADABLE else str(i) for i in range(N)]
RED, BLUE = (np.full((24, 32, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
OPTIONS = {"batch_size": 8, "precision": "float32", "ids": NAMES, "layers": ["first", "last"]}


def faulty(flag: Path, kills: bool = False) -> featx.Backbone:
    """Raises at a red picture, or kills its process, while there is a file `flag`; not before a blue one has been seen
    by any process. Its class is known here alone.
    """
    passed = flag.with_name("passed")

    def all_is(images: torch.Tensor, channel: int) -> bool:
        return bool(((images[:, channel] > 2) & (images[:, 1] < -2)).all((1, 2)).any())

    class Faulty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, 4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if all_is(images, 2):
                passed.touch()
            if all_is(images, 0) and flag.exists():
                while not passed.exists():
                    time.sleep(0.01)
                if kills:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise RuntimeError("a fault of\nthe network")
            return self.last(self.first(images).mean((2, 3)))

    torch.manual_seed(0)
    return featx.Backbone(Faulty(), preprocessing=featx.Preprocessing(crop=(32, 32), resize=32))


@pytest.fixture
def two(monkeypatch) -> None:
    """A run is spread over two devices."""
    monkeypatch.setattr(executors, "places", lambda *_: ["cpu", "cpu"])


class Fork:
    """In place of `subprocess.Popen`: a fork of this process that runs the program, which spares it its imports."""

    def __init__(self, words, stdin, stderr, pass_fds, process_group) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setpgid(0, process_group)
                os.dup2(stderr.fileno(), 2)
                exec(words[-1], {})
            finally:
                os._exit(1)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture(params=[True, pytest.param(False, marks=pytest.mark.slow)], ids=["forks", "processes"])
def forks(request, monkeypatch) -> None:
    """The processes of a run begin at once, or as ever."""
    if request.param:
        monkeypatch.setattr(devices, "subprocess", SimpleNamespace(Popen=Fork, DEVNULL=subprocess.DEVNULL))


@pytest.fixture
def images() -> list[np.ndarray]:
    found = pictures(NAMES)
    found[145], found[90] = RED, BLUE  # in batches of the one process and of the other
    return found


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_error_in_a_process_reaches_the_caller_and_the_run_goes_on_to_the_same_bytes(
    two, images, monkeypatch, capfd, tmp_path, processes
):
    output, flag = tmp_path / "a.h5", tmp_path / "flag"
    network = faulty(flag)
    flag.touch()
    with pytest.raises(RuntimeError) as caught:
        extract(images, output, network, **OPTIONS)
    assert str(caught.value) == "a fault of\nthe network" and "On cpu:\nTraceback" in caught.value.__notes__[0]
    refuse_running(output)  # nobody holds the file, though the error is still in our hands
    flag.unlink()
    assert unfinished(output).n_done >= 64
    monkeypatch.setattr(executors, "places", lambda *_: ["cpu"] * processes)
    found = extract(images, output, network, **OPTIONS)
    monkeypatch.undo()
    assert same_file(found, extract(images, tmp_path / "b.h5", network, **OPTIONS))
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow  # its message is checked below, without a process of Python
def test_a_process_that_is_killed_is_told_with_its_place_and_the_run_goes_on(
    two, three_threads, images, monkeypatch, tmp_path
):
    output, flag = tmp_path / "a.h5", tmp_path / "flag"
    network = faulty(flag, kills=True)
    flag.touch()
    with pytest.raises(FeatxError, match=r"process on cpu ended with exit code -9 \(killed; .* run it again to go on"):
        extract(images, output, network, **OPTIONS)
    refuse_running(output)
    flag.unlink()
    monkeypatch.undo()
    assert unfinished(output).n_done >= 64
    assert same_file(
        extract(images, output, network, **OPTIONS), extract(images, tmp_path / "b.h5", network, **OPTIONS)
    )


@pytest.mark.parametrize("old", [range(N), range(0, N, 2)], ids=["layers", "images"])
def test_a_store_grows_as_by_one_process(two, forks, small_network, monkeypatch, old, tmp_path):
    """By layers, and by images if there are more; one of the old ones changes meanwhile."""
    options = OPTIONS | {"dtype": "float16"}
    names = [NAMES[i] for i in old]
    look = plans.compare

    def changing(store, asked, images):
        found = look(store, asked, images)
        images.images[100] = noise(1000)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(executors, "places", lambda *_: ["cpu"])
        extract(pictures(names), tmp_path / "a.h5", small_network, **(options | {"ids": names, "layers": "first"}))
        shutil.copy(tmp_path / "a.h5", tmp_path / "b.h5")
        patched.setattr(plans, "compare", changing)
        more = options | {"layers": ["last", "second:max", "first"]}
        one = extract(pictures(NAMES), tmp_path / "b.h5", small_network, **more)
    monkeypatch.setattr(plans, "compare", changing)
    grown = extract(pictures(NAMES), tmp_path / "a.h5", small_network, **more)
    assert same_file(grown, one) and "changed" in [failure.code for failure in grown.failures]


# Of a run that ends, whatever way, no process goes on writing

PROGRAM = """
import sys, time, warnings
from featx.extraction import executors, pending
from featx.cli import main
from featx.store import writer

executors.places = lambda *_: ["cpu", "cpu"]
writer._SYNC_SECONDS, write = 0, pending.Part.write
pending.Part.write = lambda *args: (time.sleep(0.003), write(*args))
warnings.simplefilter("ignore")
sys.argv = ["featx", "extract", *sys.argv[1:], "-b", "bundled:pixels", "--batch-size", "1", "--precision", "float32"]
sys.argv += ["--device", "cpu", "-q"]
main()
"""


@pytest.fixture
def photos(tmp_path) -> Path:
    for i in range(1500):
        save_noise(tmp_path / "photos" / f"{i:04}.png", seed=i)
    return tmp_path / "photos"


def begin(photos: Path) -> tuple[subprocess.Popen, list[int]]:
    """A command that runs in two processes, in the midst of it; and these."""
    output = photos.with_name("a.h5")
    words = [sys.executable, "-c", PROGRAM, str(photos), "-o", str(output)]
    run = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, process_group=0)
    journal = output.with_name("a.h5.journal")
    while not journal.exists() or journal.read_bytes().count(b"\n") < 2:  # 64 images are done
        assert run.poll() is None
        time.sleep(0.01)
    return run, [int(child) for child in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]


def wait_for_the_end_of(children: list[int]) -> None:
    end = time.monotonic() + 20
    for child in children:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # or it is there until somebody asks after it
            while (
                Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
                or len(os.listdir(f"/proc/{child}/task")) > 1  # its other threads have the files still
            ):
                assert time.monotonic() < end
                time.sleep(0.05)


def finished(photos: Path) -> bool:
    """Whether the run goes on to the bytes that one process writes."""
    options = {"batch_size": 1, "precision": "float32"}
    output, other = photos.with_name("a.h5"), photos.with_name("b.h5")
    return same_file(extract(photos, output, **options), extract(photos, other, **options))


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_and_keeps_what_is_done(photos, monkeypatch, tmp_path):
    run, children = begin(photos)
    assert len(children) == 2
    for child in children:  # some launchers signal every process
        os.kill(child, signal.SIGINT)
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130 and said == "featx: interrupted; what is done is kept, the same command goes on\n"
    wait_for_the_end_of(children)
    assert finished(photos)


@pytest.mark.slow
def test_while_a_process_is_left_of_a_run_that_was_killed_no_other_run_begins(photos, tmp_path):
    run, children = begin(photos)
    # beside it, a child of ours: a stopped process that nobody's children are beside is woken as its parent dies
    beside = subprocess.Popen(["sleep", "600"], process_group=children[0])
    try:
        os.kill(children[0], signal.SIGSTOP)  # what notices nothing
        run.kill()
        run.communicate()
        wait_for_the_end_of(children[1:])
        with pytest.raises(StoreError, match="another run is writing"):
            finished(photos)
        os.kill(children[0], signal.SIGCONT)
        wait_for_the_end_of(children)
    finally:
        beside.kill()
        beside.wait()
    assert finished(photos)


@pytest.mark.slow
def test_processes_wait_for_a_caller_that_takes_nothing_and_end_when_it_leaves(small_network, tmp_path):
    n = 4000
    images = [noise(0)] * n
    plan = resolve_recipe(
        images, backbone=small_network, layers="first", device="cpu", precision="float32", batch_size=1
    )
    with StoreWriter(tmp_path / "a.h5", plan, list(map(str, range(n)))) as writer:
        todo = np.ones(n, bool)
        blocks = devices.spread(images, plan, small_network, places=["cpu"] * 2, workers=1, todo=todo, rows=writer.rows)
        block = next(blocks)
        written = [0, -1]
        while written[-1] != written[-2]:
            time.sleep(2)
            written.append(int(writer.rows.read("first:avg", np.arange(n)).any(axis=1).sum()))
        assert 0 < written[-1] < n / 4
        (name,) = block.in_file
        writer.write(block.indices, {}, np.zeros((1, 16), np.uint8), in_file=[name])
        blocks.close()
    refuse_running(tmp_path / "a.h5")


# What needs no other process


def test_a_network_that_cannot_be_handed_over_runs_in_one_process(two, small_network, monkeypatch, caplog, tmp_path):
    def locked(*_, **__):
        raise TypeError("it holds a lock")

    monkeypatch.setattr(devices, "_child", lambda *_: pytest.fail("a process was begun"))
    monkeypatch.setattr(shares, "wrap_non_picklable_objects", locked)
    with caplog.at_level("INFO", "featx"):
        found = extract(pictures(NAMES), tmp_path / "a.h5", small_network, **OPTIONS)
    assert "it holds a lock" in caplog.text
    monkeypatch.undo()
    assert same_file(found, extract(pictures(NAMES), tmp_path / "b.h5", small_network, **OPTIONS))


def test_a_network_that_has_a_name_is_handed_over_with_its_weights_and_preprocessing():
    backbone = featx.Backbone("bundled:pixels")
    other = pickle.loads(shares.pickled(backbone))
    assert other.preprocessing == backbone.preprocessing
    assert other.weights_sha256 == backbone.weights_sha256


@pytest.mark.parametrize(
    "script, words",
    [
        ("echo a line >&2; echo no module >&2; exit 3", "exit code 3: no module; what is done"),
        ("kill -9 $$", r"exit code -9 \(killed; .* run it again to go on"),
    ],
)
def test_a_process_that_does_not_begin_is_told_with_its_last_words(
    two, small_network, monkeypatch, capfd, tmp_path, script, words
):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}")
    python.chmod(0o755)
    monkeypatch.setattr(devices, "get_executable", lambda: str(python))
    with pytest.raises(FeatxError, match=f"process on cpu ended with {words}"):
        extract(pictures(NAMES), tmp_path / "a.h5", small_network, **OPTIONS)
    assert left_in(tmp_path) == ["python"] and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("count", [1, 3, 40])
def test_every_batch_with_something_to_do_is_dealt_once_and_whole(small_network, count, tmp_path):
    images = pictures(range(70))
    plan = resolve_recipe(
        images, backbone=small_network, layers="first", device="cpu", precision="float32", batch_size=8
    )
    todo = np.ones(70, bool)
    todo[[*range(16, 24), 30, *range(32, 40)]] = False
    with StoreWriter(tmp_path / "a.h5", plan, list(map(str, range(70)))) as writer:
        blocks = []
        for share in devices._deal(images, plan, ["cpu"] * count, 1, todo, writer.rows):
            blocks += list(share.blocks(small_network))
        starts = [0, 8, 24, 40, 48, 56, 64]
        assert sorted((block.start, block.stop) for block in blocks) == [(i, min(i + 8, 70)) for i in starts]
        assert all(block.indices.tolist() == list(range(block.start, block.stop)) for block in blocks)
        assert all([*block.digests] == block.indices.tolist() and not block.rows for block in blocks)
        there = writer.rows.read("first:avg", np.arange(70)).any(axis=1)
        assert np.array_equal(there, todo)  # what is done is not written again


def test_a_disk_that_refuses_in_a_process_is_told_as_ever(small_network, tmp_path):
    plan = resolve_recipe(pictures("1"), backbone=small_network, layers="first", device="cpu", batch_size=8)
    (tmp_path / "a").touch()
    with open(tmp_path / "a", "rb") as file:
        rows = RowFile(tmp_path / "a.h5", file.fileno(), {"first:avg": Array("<f4", (1, 8), 8192)})
        (share,) = devices._deal(pictures("1"), plan, ["cpu"], 1, np.ones(1, bool), rows)
        with pytest.raises(StoreError, match="cannot write .*a.h5: Bad file descriptor; .* run it again"):
            list(share.blocks(small_network))


@pytest.mark.parametrize(
    "n, names, expected",
    [
        (1, "aaaa", [1]),
        (63 * 8, "aaaa", [1]),
        (63 * 8 + 1, "aaaa", [1, 0]),
        (10_000, "aaaa", [1, 0, 2, 3]),
        (10_000, "aaba", [1, 0, 3]),
        (10_000, "baaa", [1, 2, 3]),
        (10_000, "ba", [1]),
    ],
)
def test_all_gpus_that_are_alike_are_used_if_there_are_batches_for_them(n, names, expected):
    gpu = recipe(TAPS, batch_size=8, device="cuda")
    todo = np.ones(2 * n, bool)
    todo[-(-n // 8) * 8 :] = False
    with PretendCuda(names=tuple(names)):
        torch.cuda.set_device(1)
        assert devices.places(["a.png"] * 2 * n, gpu, todo) == [f"cuda:{number}" for number in expected]
        assert devices.places(["a.png"] * 2 * n, recipe(TAPS), todo) == ["cpu"]
        assert devices.places([Image.new("RGB", (9, 9))] * 2 * n, gpu, todo) == ["cuda"]


def test_an_error_that_cannot_be_handed_over_is_told_in_words():
    class Odd(Exception):
        pass

    found = shares.portable(Odd("a fault"), "cuda:1")
    assert type(found) is FeatxError and str(found) == "on cuda:1: Odd: a fault"
    assert type(shares.portable(torch.OutOfMemoryError("full"), "cuda:1")) is torch.OutOfMemoryError
