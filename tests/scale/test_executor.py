"""Extraction on a Ray cluster: the store is that of a local run, whatever ends; and what is refused."""

from __future__ import annotations

import io
import os
import socket
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import TAPS, left_in, noise, recipe, save_noise
from PIL import Image
from ray_networks import deadly
from runs import extract, same_file

import featx
from featx.errors import BackboneError, FeatxError, SourceError
from featx.extraction import plan
from featx.images import Collection, collect
from featx.scale import cluster as clusters
from featx.scale import executor as executors
from featx.scale import inspection
from featx.store import refuse_running, unfinished

pytestmark = pytest.mark.filterwarnings("ignore::featx.errors.UnreadableImagesWarning")

RED = np.full((24, 32, 3), (255, 0, 0), np.uint8)
OPTIONS = {"batch_size": 4, "precision": "float32", "layers": ["first", "last"]}


@pytest.fixture
def ray(cluster) -> featx.RayExecutor:
    return featx.RayExecutor(cluster.address)


def processes(folder: Path) -> set[int]:
    """Those that have computed with a `deadly` network, but this one."""
    return {int(path.name.split()[1]) for path in folder.glob("process *")} - {os.getpid()}


def wait_for_the_end_of(pids: set[int]) -> None:
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.05)


def of_every_kind(folder: Path) -> Collection:
    """40 images: files, a truncated and a missing one, members of archives, arrays, PIL images."""
    files = [save_noise(folder / "photos" / f"{i:02}.png", seed=i) for i in range(16)]
    files[3].write_bytes(files[3].read_bytes()[:100])
    files[9] = folder / "missing.png"
    content = [save_noise(folder / "inside" / f"{i}.png", seed=100 + i).read_bytes() for i in range(8)]
    with zipfile.ZipFile(folder / "a.zip", "w") as archive, tarfile.open(folder / "a.tar", "w") as tar:
        for i, each in enumerate(content[:4]):
            archive.writestr(f"{i}.png", each)
        for i, each in enumerate(content[4:]):
            info = tarfile.TarInfo(f"{i}.png")
            info.size = len(each)
            tar.addfile(info, io.BytesIO(each))
    members = [*collect(folder / "a.zip").images, *collect(folder / "a.tar").images]
    arrays = [noise(200 + i) for i in range(8)]
    turned = Image.fromarray(noise(300))
    turned.getexif()[0x0112] = 6  # to be rotated by a quarter
    turned.save(folder / "turned.jpg")
    pictures = [Image.open(folder / "turned.jpg"), Image.fromarray(noise(301)).convert("P")]
    images = [*files, *members, *arrays, *pictures, *(noise(400 + i) for i in range(6))]
    images[37] = RED
    return Collection(images, [f"image {i}" for i in range(40)], np.array(["ant", "bee"] * 20))


def test_the_store_is_that_of_a_local_run_though_an_actor_is_killed(ray, tmp_path, monkeypatch, capfd):
    """A network of the test's own; images of every kind, with paths relative to the folder that the run is in."""
    monkeypatch.chdir(tmp_path)
    network = deadly(tmp_path)
    images = of_every_kind(Path())
    local = extract(images, "a.h5", network, **OPTIONS)
    (tmp_path / "kill").touch()
    store = extract(of_every_kind(Path()), "b.h5", network, executor=ray, **OPTIONS)
    assert not (tmp_path / "kill").exists()
    assert same_file(store, local) and store.backbone is network
    assert [failure.code for failure in store.failures] == ["damaged", "missing"]
    actors = processes(tmp_path)
    assert len(actors) >= 2  # the killed one, and another that has computed its batches
    wait_for_the_end_of(actors)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_goes_on_and_no_actors(ray, tmp_path):
    """It goes on on this machine, and has the bytes of an unbroken run."""
    images = [noise(i) for i in range(200)]
    network = deadly(tmp_path, seconds=0.05)

    def interrupt(now: featx.Progress) -> None:
        if now.done >= 150:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(images, tmp_path / "a.h5", network, executor=ray, progress=interrupt, **OPTIONS)
    wait_for_the_end_of(processes(tmp_path))
    refuse_running(tmp_path / "a.h5")
    assert 64 <= unfinished(tmp_path / "a.h5").n_done < 200
    store = extract(images, tmp_path / "a.h5", network, **OPTIONS)
    assert same_file(store, extract(images, tmp_path / "b.h5", network, **OPTIONS))


@pytest.mark.slow
def test_images_that_kill_their_actors_end_the_run_and_are_named(ray, tmp_path):
    (tmp_path / "kill").write_text("always")
    images = [noise(i) for i in range(12)]
    images[6] = RED
    with pytest.raises(FeatxError, match="3 actors .* 'image 4', 'image 5', 'image 6', 'image 7'; leave") as told:
        extract(images, tmp_path / "a.h5", deadly(tmp_path), executor=ray, **OPTIONS)
    assert "\n" not in str(told.value)


@pytest.fixture
def objects() -> Collection:
    """Images of fsspec's "memory", which this process alone sees."""
    fsspec = pytest.importorskip("fsspec")
    for i in range(12):
        content = io.BytesIO()
        Image.fromarray(noise(i)).save(content, "png")
        fsspec.filesystem("memory").pipe(f"/unseen/{i:02}.png", content.getvalue())
    return collect("memory://unseen")


@pytest.mark.slow
def test_images_that_a_node_does_not_see_are_refused_before_the_first_batch(ray, objects, tmp_path):
    with pytest.raises(SourceError, match="node .* does not see '.*unseen/00.png' as it is here; every node"):
        extract(objects, tmp_path / "a.h5", executor=ray, batch_size=4, precision="float32")
    assert not left_in(tmp_path)


@pytest.mark.slow
def test_images_that_a_node_turns_out_not_to_see_are_no_failures(ray, objects, tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "_SAMPLE", 1)
    seen = save_noise(tmp_path / "seen.png", seed=0)
    images = Collection([seen, *objects.images], list(map(str, range(13))))
    with pytest.raises(SourceError, match=r"cannot read '.*unseen/\d\d.png', which this machine can; every node"):
        extract(images, tmp_path / "a.h5", executor=ray, batch_size=4, precision="float32")
    assert left_in(tmp_path) == ["seen.png"]


def test_nodes_without_featx_are_refused_and_a_connection_that_was_there_stays(cluster, tmp_path):
    import ray

    images, options = [noise(0)], {"batch_size": 4, "precision": "float32"}
    without = tmp_path / "without"
    without.mkdir()
    (without / "sitecustomize.py").write_text(
        "import importlib.metadata as metadata, sys\n"
        "version = metadata.version\n"
        "def found(name):\n"
        "    if name == 'featx':\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return version(name)\n"
        "metadata.version, sys.modules['featx'] = found, None\n"
    )
    ray.init(cluster.address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(without)}})
    try:
        with pytest.raises(FeatxError, match=r"of the Ray cluster has no featx; install version .* on it, as here"):
            extract(images, tmp_path / "a.h5", executor=featx.RayExecutor(), **options)
        with pytest.raises(FeatxError, match="this process is connected to the Ray cluster at .* already; got 'x:1'"):
            extract(images, tmp_path / "a.h5", executor=featx.RayExecutor("x:1"), **options)
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    assert left_in(tmp_path) == ["without", "without/sitecustomize.py"]


# What needs no cluster


@pytest.mark.parametrize("resources", [{"CPU": 2.0}, {"GPU": 4.0}, {"CPU": 4.0, "Alive": False}])
def test_a_node_too_small_for_the_threads_of_the_recipe_is_not_waited_for(resources):
    node = {"NodeID": "a", "NodeName": "a", "Alive": True, "Resources": resources} | resources
    ray = SimpleNamespace(nodes=lambda: [node])
    with pytest.raises(FeatxError, match="no node of the Ray cluster has 3 cores, the number of threads .* new run"):
        clusters.nodes_for(ray, recipe(TAPS, threads=3))


REPORT = {
    "versions": dict.fromkeys(inspection.PACKAGES) | {"torch": torch.__version__},
    "processor": inspection.processor(),
    "unseen": "",
}


@pytest.fixture
def versions(monkeypatch) -> None:
    monkeypatch.setattr(inspection, "_version", REPORT["versions"].get)


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"versions": REPORT["versions"] | {"torch": "1.0"}},
            "node n of the Ray cluster has torch 1.0, and this machine",
        ),
        ({"versions": REPORT["versions"] | {"torch": None}}, "node n of the Ray cluster has no torch; install version"),
        ({"error": "No module named 'skops'"}, "cannot use its featx: No module named 'skops'"),
        ({"processor": {"cpu": "NEON"}}, "computes with NEON instructions, and this machine with"),
        ({"unseen": "'a.png' as it is here"}, "node n of the Ray cluster does not see 'a.png' as it is here"),
    ],
)
def test_a_node_that_differs_is_refused_in_a_line(versions, changes, words):
    inspection.refuse_other_node(REPORT, "n", "cpu")
    with pytest.raises(FeatxError, match=words) as told:
        inspection.refuse_other_node(REPORT | changes, "n", "cpu")
    assert "\n" not in str(told.value)


def test_another_gpu_is_refused():
    inspection.refuse_other_gpu("H200", "H200", "n")
    with pytest.raises(FeatxError, match="node n .* computes on A100, and this machine on H200"):
        inspection.refuse_other_gpu("A100", "H200", "n")
    with pytest.raises(FeatxError, match="computes on no GPU that torch can use"):
        inspection.refuse_other_gpu(None, "H200", "n")


def test_ray_that_is_not_installed_is_refused_with_the_extra(monkeypatch):
    monkeypatch.setattr(clusters, "find_spec", lambda name: None)
    with pytest.raises(FeatxError, match=r"needs Ray, which is not installed: pip install 'featx\[ray\]'"):
        featx.RayExecutor()


def test_executors_that_are_none_are_refused(tmp_path):
    for wrong in ("ray", featx.RayExecutor, 3):
        with pytest.raises(FeatxError, match="executor is an executor, such as featx.RayExecutor"):
            extract([noise(0)], tmp_path / "a.h5", executor=wrong)
    for wrong in (None, "", "localhost", "localhost:", 6379):
        with pytest.raises(FeatxError, match="address is 'auto', 'local' or HOST:PORT"):
            featx.RayExecutor(wrong)


def test_a_network_that_cannot_be_pickled_is_refused_by_name(tmp_path, monkeypatch, small_network):
    def locked(backbone: object) -> bytes:
        raise TypeError("it holds a lock")

    monkeypatch.setattr(executors, "pickled", locked)
    with pytest.raises(BackboneError, match="module:Sequential cannot be sent to the nodes .*: it holds a lock"):
        extract([noise(0)], tmp_path / "a.h5", small_network, executor=featx.RayExecutor(), batch_size=4)
    assert not left_in(tmp_path)


def test_a_cluster_that_is_not_there_is_refused(tmp_path, monkeypatch):
    options = {"batch_size": 4, "precision": "float32"}
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(FeatxError, match="cannot join the Ray cluster at nonsense: an address is HOST:PORT") as told:
        extract([noise(0)], tmp_path / "a.h5", executor=featx.RayExecutor(), **options)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(FeatxError, match=f"cannot join the Ray cluster at {address}: .*refused"):
            extract([noise(0)], tmp_path / "a.h5", executor=featx.RayExecutor(address), **options)
    assert "\n" not in str(told.value) and "RAY_USAGE_STATS_ENABLED" not in os.environ


@pytest.mark.parametrize(
    "error, words",
    [
        (RuntimeError("Version mismatch:\n    Ray: 2.61.0\nThis process:\n    Ray: 2.60.0"), "2.61.0 This .* 2.60.0$"),
        (ConnectionError("Failed to connect"), "connect; if it has token authentication, set RAY_AUTH_MODE=token"),
    ],
)
def test_why_ray_does_not_join_a_cluster_is_told_in_a_line(monkeypatch, error, words):
    def init(**_: object) -> None:
        raise error

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr(clusters, "_reach", lambda address: None)
    with pytest.raises(FeatxError, match=f"cannot join the Ray cluster at h:1: .*{words}") as told:
        clusters.connected("h:1").__enter__()
    assert "\n" not in str(told.value)


def test_an_installation_of_ray_that_is_broken_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(FeatxError, match="Ray is installed, but cannot be imported: import of ray halted"):
        clusters.connected("auto").__enter__()


def test_a_time_measured_on_this_machine_is_not_announced_for_a_cluster(tmp_path):
    for executor in (None, featx.RayExecutor()):
        planned = plan([noise(0)], tmp_path / "a.h5", "bundled:pixels", device="cpu", executor=executor)
        planned._trial = SimpleNamespace(image_seconds=1.0)
        assert planned.is_timed == (executor is None)


def test_a_file_of_a_sample_that_is_gone_or_has_another_size_is_unseen(tmp_path):
    path, gone = save_noise(tmp_path / "a.png", seed=0), tmp_path / "gone.png"
    sample = inspection.pickled_sample([path, gone, noise(0)])
    assert inspection.unseen(sample) == "" and inspection.unseen_images([path, gone]) == [gone]
    path.write_bytes(b"other")
    assert "a.png' as it is here" in inspection.unseen(sample)
    in_output = save_noise(tmp_path / "b.png", seed=1)
    sample = inspection.pickled_sample([], in_output)
    in_output.unlink()
    assert inspection.unseen(sample) == f"the output's folder {str(tmp_path)!r} as it is here"
    assert inspection.unseen(b"no pickle").startswith("the images (UnpicklingError")
