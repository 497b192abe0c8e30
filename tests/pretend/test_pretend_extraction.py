"""On a GPU the left side gives the rows that it gives on the CPU: networks, pools, precisions, small memory."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import narrow
import numpy as np
import pytest
import torch
from helpers import noise
from numpy.testing import assert_allclose
from pretend_cuda import PretendCuda
from runs import extract, pictures
from torch import nn
from torch.export import Dim, export
from torchvision.models import SwinTransformer

import featx
from featx import Preprocessing
from featx.backbones import engine
from featx.errors import FeatxError
from featx.extraction import devices
from featx.forward import release
from featx.grammar import POOLS
from featx.learn import ImageFeatures, StoredFeatures

IMAGES = [noise(seed) for seed in range(7)]
ON_GPU = pytest.mark.usefixtures("gpu")
ON_PRETEND = pytest.mark.usefixtures("pretend_cuda")


def swin() -> nn.Module:
    """swin_t, with less of everything."""
    widths = {"patch_size": [4, 4], "embed_dim": 16, "window_size": [4, 4], "num_heads": [2, 4], "depths": [2, 2]}
    return narrow.seeded(SwinTransformer, **widths)


class Branching(nn.Module):
    """Cannot be traced, so it runs with hooks; makes tensors as it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.register_buffer("scale", torch.full((4,), 2.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = self.first(images).mean((2, 3)) * self.scale
        if bool((rows.abs() > 1e9).any()):
            return rows
        return self.last(rows + torch.arange(4, device=images.device) + rows.new_ones(4))


class Constants(nn.Module):
    """To be exported: with a constant that is neither parameter nor buffer, and a tensor made as it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.offset = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), torch.full((4,), 0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(images).mean((2, 3)) + self.offset + torch.arange(4.0))


def program() -> torch.export.ExportedProgram:
    return export(narrow.seeded(Constants), (torch.zeros(2, 3, 32, 32),), dynamic_shapes=({0: Dim("batch")},))


def both(
    folder: Path, backbone: featx.Backbone, layers: list[str], images: Any = IMAGES, **options: Any
) -> list[featx.FeatureStore]:
    """Stores of the GPU and of the CPU."""
    stores = []
    for device in ("cuda", "cpu"):
        stores.append(extract(images, folder / f"{device}.h5", backbone, layers=layers, device=device, **options))
        assert stores[-1].recipe.device == device
    return stores


def assert_same_rows(on_gpu: featx.FeatureStore, on_cpu: featx.FeatureStore, rtol: float = 1e-5) -> None:
    assert on_gpu.ids.tolist() == on_cpu.ids.tolist() and on_gpu.layers == on_cpu.layers
    for layer in on_cpu.layers:
        size = np.abs(on_cpu[layer]).max()
        assert_allclose(on_gpu[layer], on_cpu[layer], rtol=0, atol=rtol * size, err_msg=layer)


def of_size(side: int, module: Any, weights: str | None = "DEFAULT") -> featx.Backbone:
    return featx.Backbone(module, weights, preprocessing=Preprocessing((side, side), side))


PLANE = [pool for pool in POOLS if pool not in ("cls", "tokens")]
NETWORKS = {
    "resnet18": (lambda: of_size(32, "resnet18", None), [f"layer2:{pool}" for pool in (*PLANE, "flatten~20")]),
    "lite0": (lambda: of_size(32, "bundled:efficientnet_lite0"), ["blocks.3", "penultimate"]),
    "swin": (lambda: of_size(32, swin()), [f"features.1:{pool}" for pool in (*PLANE, "tokens")] + ["penultimate"]),
    "vit": (
        lambda: of_size(64, narrow.vit_b_32()),
        [f"encoder.layers.encoder_layer_3:{pool}" for pool in (*POOLS, "flatten~20")],
    ),
    "hooks": (lambda: of_size(32, narrow.seeded(Branching)), ["first:max", "last"]),
    "exported": (lambda: of_size(32, program()), ["conv", "penultimate"]),
}


@ON_GPU
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_and_pools(name, tmp_path):
    make, layers = NETWORKS[name]
    assert_same_rows(*both(tmp_path, make(), layers, precision="float32", batch_size=3))


@ON_GPU
@pytest.mark.parametrize("name, precision", [("resnet18", "bfloat16"), ("swin", "float16"), ("exported", "bfloat16")])
def test_precisions(name, precision, tmp_path):
    make, layers = NETWORKS[name]
    assert_same_rows(*both(tmp_path, make(), layers, precision=precision, batch_size=4), rtol=2e-2)


@ON_GPU
def test_images_that_cannot_be_read_and_classes(small_network, tmp_path):
    names = ["0", "1", "bad 2", "3", "bad 4", "bad 5", "6"]
    with pytest.warns(featx.errors.UnreadableImagesWarning):
        stores = both(
            tmp_path, small_network, ["first", "last"], pictures(names), batch_size=2, labels=["a", "b"] * 3 + ["a"]
        )
    assert_same_rows(*stores)
    assert stores[0].y.tolist() == stores[1].y.tolist() and len(stores[0].ids) == 4


@ON_GPU
def test_a_run_that_was_broken_off_goes_on(run, break_off, tmp_path):
    on_cpu = run(tmp_path / "cpu.h5", range(20), ["first", "last"])
    again = lambda: run(tmp_path / "gpu.h5", range(20), ["first", "last"], device="cuda")  # noqa: E731
    break_off(again, after=2)
    assert_same_rows(again(), on_cpu)


@ON_GPU
def test_new_images_of_a_pipeline(small_network, tmp_path):
    stores = both(tmp_path, small_network, ["last"], batch_size=2)
    rows = StoredFeatures(stores[0], device="cuda").fit().transform(IMAGES)
    assert_allclose(rows, stores[1]["last"], rtol=1e-4, atol=1e-5)
    rows = ImageFeatures(small_network, "last", device="cuda").fit(IMAGES).transform(IMAGES)
    assert_allclose(rows, stores[1]["last"], rtol=1e-4, atol=1e-5)


# What a machine's own GPU would decide by its speed and its memory


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Every number type but float32 is ten times as fast; how often the passes of each were timed."""
    passes: Counter[str] = Counter()
    timed = engine._timed

    def told(network, pixels):
        assert pixels.is_cuda
        passes[network.precision] += 1
        seconds = 10.0 if network.precision == "float32" else 1.0
        return timed(network, pixels)[0], seconds, seconds

    monkeypatch.setattr(engine, "_timed", told)
    return passes


@ON_PRETEND
def test_precision_auto_takes_what_is_close_enough(small_network, tmp_path, quick, monkeypatch):
    store = extract(IMAGES * 3, tmp_path / "a.h5", small_network, batch_size=4, device="cuda", engine="eager")
    assert store.recipe.precision == "bfloat16" and 0 < store.recipe.precision_error < engine.TOLERANCE
    assert quick == {"float32": 2, "bfloat16": 4}
    quick.clear()
    monkeypatch.setattr(engine, "TOLERANCE", store.recipe.precision_error / 2)
    store = extract(IMAGES * 3, tmp_path / "b.h5", small_network, batch_size=4, device="cuda", engine="eager")
    assert store.recipe.precision == "float16"
    on_cpu = extract(IMAGES * 3, tmp_path / "c.h5", small_network, batch_size=4, precision="float32")
    assert_same_rows(store, on_cpu, 1e-2)


def test_batches_are_halved_until_they_fit(small_network, tmp_path):
    with PretendCuda(largest_tensor=60_000) as gpu:  # 4 images of 12,288 bytes, and not the rows of all 16
        on_gpu, on_cpu = both(tmp_path, small_network, ["first:none", "last"], IMAGES * 3, batch_size=16)
        release()
    assert gpu.n_refusals and on_gpu.recipe.pass_rows == 4 and on_cpu.recipe.pass_rows is None
    assert_same_rows(on_gpu, on_cpu)


def test_a_pass_has_one_view_of_each_image(small_network, tmp_path):
    options = {"views": ["center", "flip", "crop:2"]}
    with PretendCuda(largest_tensor=60_000):  # as for a run without views, but for the pixels of all views
        on_gpu, on_cpu = both(tmp_path, small_network, ["first:avg", "last"], IMAGES * 3, batch_size=8, **options)
        release()
    assert on_gpu.recipe.pass_rows == 4 and on_gpu["last"].shape == (21, 4, 5)
    assert_same_rows(on_gpu, on_cpu)


def test_an_image_that_does_not_fit(small_network, tmp_path):
    for batch_size in (4, "auto"):
        with PretendCuda(largest_tensor=6000), pytest.raises(FeatxError, match="not hold one image's forward pass"):
            extract(IMAGES, tmp_path / "a.h5", small_network, batch_size=batch_size, device="cuda")
        release()


def test_the_batch_is_measured_with_as_many_images_as_fit(small_network, tmp_path):
    with PretendCuda(largest_tensor=15_000) as gpu:  # one image, 12,288 bytes as float32, and not two
        on_gpu, on_cpu = both(tmp_path, small_network, ["last"])
        release()
    assert gpu.n_refusals > 3 and on_gpu.recipe.pass_rows == 1
    assert_same_rows(on_gpu, on_cpu)


@pytest.mark.parametrize("total_bytes, expected", [(2**33, 256), (2**18, 4), (1, 1)])
def test_the_batch_is_what_the_memory_holds(small_network, total_bytes, expected, tmp_path):
    with PretendCuda(total_bytes=total_bytes):
        store = extract(IMAGES, tmp_path / "a.h5", small_network, device="cuda")
        release()
    assert store.recipe.batch_size == expected


class InProcess:
    """A process of a run, right here."""

    def __init__(self, place: str) -> None:
        self.place, self.connection, self._sent = place, self, []
        self._messages: Iterator[Any] | None = None

    def send(self, content: bytes) -> None:
        self._sent.append(content)

    def recv_bytes(self) -> bytes:
        return self._sent.pop(0)

    def receive(self) -> Any:
        if self._messages is None:
            release()
            self._messages = devices._messages(self, 0)
        return next(self._messages)


def test_several_gpus(small_network, tmp_path, monkeypatch):
    places = []

    @contextlib.contextmanager
    def child(place, rows):
        places.append(place)
        yield InProcess(place)

    monkeypatch.setattr(devices, "_child", child)
    monkeypatch.setattr(devices, "_end_with", lambda connection, run: None)
    monkeypatch.setattr(devices, "wait", lambda connections: connections[:1])  # one after the other
    monkeypatch.setattr(devices, "_LEAST_BATCHES", 2)
    images = [noise(seed) for seed in range(20)]
    with PretendCuda(names=("A", "B", "A")) as gpus:
        on_gpu, on_cpu = both(tmp_path, small_network, ["first", "last"], images, batch_size=4, precision="float32")
        assert gpus.current == 2  # of the last process
        release()
    assert places == ["cuda:0", "cuda:2"]
    assert_same_rows(on_gpu, on_cpu)
