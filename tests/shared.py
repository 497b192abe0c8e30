"""What is made once for many tests: a small store for all who only read, a small network, a run that is broken off."""

from __future__ import annotations

import gc
import http.server
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from crash_child import RUN
from faults import REAL
from helpers import class_folders
from pretend_cuda import PretendCuda
from runs import extract, pictures
from threadpoolctl import threadpool_limits
from torch import nn

import featx
from featx.extraction import executors
from featx.forward import release
from featx.store import compaction, writer

# Matrices of tests are small: a second thread only waits, and takes the core from who shares it.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start
os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "0"  # compiled for any CPU: to try the instructions of this one takes 10 s


def pytest_collection_finish() -> None:
    """What is there before the first test stays: a million objects that garbage need not be looked for among."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def pixel_store(tmp_path_factory: pytest.TempPathFactory) -> featx.FeatureStore:
    """12 images of three classes through "bundled:pixels"; not to be changed."""
    folder = tmp_path_factory.mktemp("pixels")
    photos = class_folders(folder / "photos", ("ant", "bee", "cat"), n=4)
    return featx.extract(photos, folder / "photos.h5", "bundled:pixels", progress=False)


@pytest.fixture(scope="session")
def s3() -> Iterator[Any]:
    """An S3 server on this machine, and its boto3 client; `bucket` makes it the one that is used."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"region_name": "us-east-1", "aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    yield boto3.client("s3", endpoint_url=f"http://{host}:{port}", **options)
    server.stop()


@pytest.fixture
def bucket(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket "photos" as a file system of fsspec, by the environment variables that s3fs reads."""
    import fsspec

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.meta.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    kind = fsspec.get_filesystem_class("s3")
    kind.clear_instance_cache()
    s3.create_bucket(Bucket="photos")
    yield fsspec.filesystem("s3", use_listings_cache=False)
    for found in s3.list_objects_v2(Bucket="photos").get("Contents", ()):
        s3.delete_object(Bucket="photos", Key=found["Key"])
    s3.delete_bucket(Bucket="photos")
    kind.clear_instance_cache()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The URL of a web server of the folder `tmp_path`, which sends whole files only."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path))
    threading.Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def small_network() -> featx.Backbone:
    """A seeded network of three layers "first", "second", "last", quick enough for hundreds of images."""
    parts = OrderedDict(
        first=nn.Conv2d(3, 8, 3, 2), second=nn.Conv2d(8, 16, 3, 2), pooled=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten()
    )
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(OrderedDict(**parts, last=nn.Linear(16, 5)))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return featx.Backbone(network, preprocessing=featx.Preprocessing(crop=(32, 32), resize=32))


@pytest.fixture
def pretend_cuda() -> Iterator[PretendCuda]:
    """A GPU that is none; networks that were built on it are forgotten afterwards."""
    with PretendCuda() as device:
        yield device
        release()


@pytest.fixture
def gpu(request: pytest.FixtureRequest) -> None:
    """The GPU of this machine; where it has none, a pretend one."""
    if not torch.cuda.is_available():
        request.getfixturevalue("pretend_cuda")


@pytest.fixture
def break_off(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`break_off(run, after=3)`: the run gets an error in place of its fourth block; the next one does not."""

    def broken(run: Callable[[], object], after: int, error: BaseException | None = None) -> None:
        raised = KeyboardInterrupt() if error is None else error

        def blocks(*args: object, **options: object) -> Iterator[object]:
            for number, block in enumerate(stream(*args, **options)):
                if number == after:
                    raise raised
                yield block

        stream = executors.stream
        with monkeypatch.context() as patched, pytest.raises(type(raised)):
            patched.setattr(executors, "stream", blocks)
            run()

    return broken


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[str, ...], list[int]]]:
    """(layers, positions of the images to do) of each pass through the network from now on."""
    found: list[tuple[tuple[str, ...], list[int]]] = []
    stream = executors.stream

    def recorded(images, recipe, backbone, *, todo, **options):  # type: ignore[no-untyped-def]
        found.append((recipe.layers, todo.nonzero()[0].tolist()))
        return stream(images, recipe, backbone, todo=todo, **options)

    monkeypatch.setattr(executors, "stream", recorded)
    return found


@pytest.fixture
def run(small_network: featx.Backbone) -> Callable[..., featx.FeatureStore]:
    """`run(output, names, layers)`: the pictures of these names through the small network, four at a time."""

    def extracted(output: Path, names: Iterable[object], layers: str | list[str] = "first", **options: Any):
        ids = list(map(str, names))
        known = {"backbone": small_network, "batch_size": 4, "precision": "float32", "layers": layers, "ids": ids}
        return extract(pictures(ids), output, **(known | options))

    return extracted


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """`never()`: from now on nothing may be computed."""

    def computed(*_: object, **__: object) -> None:
        raise AssertionError("nothing is to be computed")

    return lambda: monkeypatch.setattr(executors, "stream", computed)


@pytest.fixture
def many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run asks the disk for much, in small parts."""
    monkeypatch.setattr(writer, "_SYNC_BYTES", 0)
    monkeypatch.setattr(compaction, "_MOVE_BYTES", 15_000)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What an unbroken `RUN` writes."""
    output = tmp_path_factory.mktemp("whole") / "a.h5"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compaction, "_MOVE_BYTES", 15_000)
        RUN(output)
    return output.read_bytes()


@pytest.fixture
def three_threads() -> Iterator[None]:
    """For torch, where elsewhere there is one."""
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """A sync looks at its file and returns: what a power cut loses is simulated (see `faults`)."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", os.fstat)
        patched.setitem(REAL, "fsync", os.fstat)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Of NumPy, SciPy and scikit-learn too."""
    with threadpool_limits(1):
        yield
