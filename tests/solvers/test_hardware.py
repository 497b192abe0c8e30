"""What the solvers ask of the machine: their budget, and where to run."""

from __future__ import annotations

import pytest
import torch

from featx.errors import FeatxError
from featx.solvers import hardware


def test_the_budget_is_a_quarter_of_it_unless_it_is_given(monkeypatch):
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 4096)
    assert hardware.budget_of(torch.device("cpu"), None) == 1024
    assert hardware.budget_of(torch.device("cpu"), 7) == 7


def test_what_torch_does_not_know_is_no_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware.device_of("auto") == hardware.device_of("cpu") == torch.device("cpu")
    with pytest.raises(FeatxError, match="device is 'auto', 'cpu', 'cuda', or 'cuda:1' for the second GPU; got 'tpu'"):
        hardware.device_of("tpu")
    with pytest.raises(FeatxError, match="device='cuda:1' is not available: torch can use no GPU here, only 'cpu'"):
        hardware.device_of("cuda:1")
    for wrong in ("cuda:", "cuda:x", "cudacpu", 3, None):
        with pytest.raises(FeatxError, match="device is 'auto', "):
            hardware.device_of(wrong)


def test_a_gpu_that_is_not_there_is_answered_with_those_that_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert hardware.device_of("cuda:1") == torch.device("cuda:1")
    assert hardware.device_of("cuda") == hardware.device_of("auto") == torch.device("cuda")
    with pytest.raises(
        FeatxError, match="device='cuda:2' is not available: torch can use 'cuda:0', 'cuda:1' and 'cpu'"
    ):
        hardware.device_of("cuda:2")
