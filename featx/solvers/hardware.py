"""Properties of the machine: its devices, what of its memory a solver takes, whether bfloat16 is faster."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from featx.errors import FeatxError, Parameter
from featx.memory import memory_bytes


def device_of(device: str) -> torch.device:
    """The device of that name; "auto" is the first GPU, or the CPU if there is none."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not isinstance(device, str) or not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise FeatxError(f"device is 'auto', 'cpu', 'cuda', or 'cuda:1' for the second GPU; got {device!r}")
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]
    if device not in ("cpu", "cuda", *gpus) or (device == "cuda" and not gpus):
        has = (
            f"torch can use {', '.join(map(repr, gpus))} and 'cpu'" if gpus else "torch can use no GPU here, only 'cpu'"
        )
        raise FeatxError(Parameter("device", device), f" is not available: {has}")
    return torch.device(device)


def budget_of(device: torch.device, budget_bytes: int | None) -> int:
    """Bytes for rows and the state of problems; by default a quarter of the process's limit, or of the GPU's memory."""
    if budget_bytes is not None:
        return budget_bytes
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // 4
    return memory_bytes() // 4


def low_type(device: torch.device) -> torch.dtype | None:
    """A type in which this device multiplies matrices several times as fast as in float32, or None."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # not in all versions
    return torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else None
