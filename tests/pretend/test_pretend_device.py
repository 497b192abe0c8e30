"""The pretend GPU refuses what a GPU refuses, and computes what the CPU computes."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from pretend_cuda import PretendCuda, PretendTensor
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("pretend_cuda")
GPU = torch.device("cuda", 0)


def on_gpu() -> Tensor:
    return torch.arange(6.0, device="cuda").view(2, 3)


MIXED: dict[str, Callable[[Tensor, Tensor], object]] = {
    "operator": operator.add,
    "reversed": lambda gpu, cpu: cpu * gpu,
    "scalar of the GPU": lambda gpu, cpu: cpu + gpu.sum(),
    "in place": operator.iadd,
    "function": torch.minimum,
    "method": lambda gpu, cpu: gpu.matmul(cpu.T),
    "list": lambda gpu, cpu: torch.cat([gpu, cpu]),
    "keyword": lambda gpu, cpu: torch.nn.functional.linear(gpu, weight=cpu),
    "out": lambda gpu, cpu: torch.add(gpu, 1, out=cpu),
    "index": lambda gpu, cpu: gpu[cpu[0].long()],
    "assigned at an index": lambda gpu, cpu: operator.setitem(gpu, gpu > 2, cpu[0]),
    "network": lambda gpu, cpu: nn.Linear(3, 2)(gpu),
    "network on the GPU": lambda gpu, cpu: nn.Linear(3, 2).to("cuda")(cpu),
}


def test_a_tensor_of_the_cpu_is_refused():
    for name, mix in MIXED.items():
        with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
            mix(on_gpu(), torch.ones(2, 3))
            pytest.fail(name)


def test_numpy_is_refused():
    for read in (torch.Tensor.numpy, np.asarray, np.linalg.norm):
        with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
            read(on_gpu())


def test_numbers_and_scalars_of_the_cpu_are_welcome():
    x = on_gpu()
    for sum_ in (x + torch.tensor(1.0), x + 1, x + np.float32(1), np.float32(1) + x):
        assert sum_.device == GPU
        assert sum_.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert x.sum().item() == float(x.sum()) == 15


def test_results_are_on_the_gpu():
    x = on_gpu()
    made = [
        x.T,
        x @ x.T,
        *x,
        *x.split(1),
        *torch.linalg.eigh(x @ x.T),
        *x.max(0),
        torch.empty_like(x),
        x.new_tensor([1]),
        torch.as_tensor(np.ones(2), device="cuda:0"),
        torch.ones(2).to(x),
        torch.ones(2).cuda(),
        copy.deepcopy(x),
    ]
    assert all(type(one) is PretendTensor and one.is_cuda and not one.is_cpu for one in made)
    assert {one.device for one in made} == {GPU}
    assert not any(one.is_cuda for one in (x.cpu(), x.to("cpu"), torch.zeros_like(x, device="cpu")))


def test_memory_is_shared_where_a_gpu_would_share_it():
    x = on_gpu()
    x[0].add_(10)
    x.view(-1)[-1:] *= 2
    same = x.to("cuda")
    row = torch.empty(3, device=GPU)
    assert torch.add(x[1], 1, out=row) is row
    assert torch.mm(x[:1], x.T, out=torch.empty(2, 2, device=GPU)[:1]).shape == (1, 2)
    x += 1
    assert same is x
    assert_array_equal(x.cpu().numpy(), [[11, 12, 13], [4, 5, 11]])
    assert row.tolist() == [4, 5, 11]


def test_what_moves_is_a_copy():
    for move in (lambda x: x.to("cuda"), lambda x: x.cuda(), lambda x: torch.zeros(3, device=GPU).copy_(x)):
        values = np.zeros(3)
        moved = move(torch.from_numpy(values))
        values += 1
        back = moved.cpu()
        back += 1
        assert moved.tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_network_moves_with_its_parameters_and_buffers(dtype):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    pixels = torch.rand(2, 3, 5, 5)
    expected = network(pixels)
    there = copy.deepcopy(network.to("cuda")).to(dtype)
    assert {one.device for one in there.state_dict().values()} == {GPU}
    assert sum(isinstance(one, nn.Parameter) for one in there.parameters()) == 4
    torch.testing.assert_close(there(pixels.to(GPU, dtype)).cpu().float(), expected, rtol=0, atol=1e-2)
    assert type(network.cpu()[0].weight) is nn.Parameter


def test_a_copy_that_nobody_waited_for_has_not_arrived():
    x, y = on_gpu(), on_gpu() + 1
    first, second = (torch.empty(2, 3, pin_memory=True) for _ in range(2))
    event = torch.cuda.Event()
    first.copy_(x, non_blocking=True)
    event.record()
    second.copy_(y, non_blocking=True)
    third = x.to("cpu", non_blocking=True)
    x.zero_()  # later than the copy
    assert first.isnan().all() and second.isnan().all() and third.isnan().all() and not event.query()
    event.synchronize()
    assert event.query() and first.tolist() == [[0, 1, 2], [3, 4, 5]] and second.isnan().all()
    torch.cuda.synchronize()
    assert second.tolist() == [[1, 2, 3], [4, 5, 6]] and third.tolist() == first.tolist()
    assert torch.empty(2, 3).copy_(y, non_blocking=True).tolist() == second.tolist()  # not pinned: it waits


def test_what_is_being_copied_must_not_change():
    pixels = torch.zeros(4, 3, pin_memory=True)
    pixels[:2].to("cuda", non_blocking=True)
    torch.cuda.synchronize()
    pixels += 1
    torch.empty(2, 3, device="cuda").copy_(pixels[2:], non_blocking=True)
    pixels.numpy()[3] = 5
    with pytest.raises(RuntimeError, match="pinned memory was written to"):
        torch.cuda.synchronize()


def test_several_gpus_are_told_apart():
    with PretendCuda(names=("A", "B")):
        assert (torch.cuda.device_count(), torch.cuda.get_device_name(1)) == (2, "B")
        first = torch.ones(2, device="cuda")
        torch.cuda.set_device(1)
        second = torch.ones(2, device="cuda")
        assert (first.device.index, second.device.index, torch.cuda.current_device()) == (0, 1, 1)
        with pytest.raises(RuntimeError, match="same device"):
            first + second
        with pytest.raises(RuntimeError, match="invalid device ordinal 2"):
            first.to("cuda:2")
    assert torch.cuda.device_count() == 1


def test_a_gpu_that_is_too_small():
    with PretendCuda(largest_tensor=1024) as small:
        torch.ones(256, device="cuda")
        with pytest.raises(torch.cuda.OutOfMemoryError, match="Tried to allocate 1028 bytes"):
            torch.ones(257, device="cuda")
        assert small.n_refusals == 1


def test_the_cpu_is_as_ever():
    assert type(torch.ones(2) + torch.ones(2)) is Tensor
    assert torch.ones(2, device="cpu").device == torch.device("cpu")
    assert torch.ones(2).numpy().sum() == 2
