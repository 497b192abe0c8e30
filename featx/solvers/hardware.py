"""What the solvers ask of the machine: where to run, how much memory to use, whether bfloat16 is quicker."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

import torch

from featx.errors import FeatxError, Parameter


def device_of(device: str) -> torch.device:
    """ "auto" is the first GPU, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda") and not device.startswith("cuda:"):
        raise FeatxError(f"device is 'auto', 'cpu' or 'cuda'; got {device!r}")
    if device != "cpu" and not torch.cuda.is_available():
        raise FeatxError(
            Parameter("device", device),
            ", and there is no GPU that torch can use; ",
            Parameter("device", "cpu"),
            " works everywhere",
        )
    return torch.device(device)


def budget_of(device: torch.device, budget_bytes: int | None) -> int:
    """Bytes for rows and the state of problems; by default a quarter of what the process may use, or of the GPU's."""
    if budget_bytes is not None:
        return budget_bytes
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // 4
    return memory_bytes() // 4


def memory_bytes(root: Path = Path("/")) -> int:
    """Memory of the machine; where the process is in control groups (containers, jobs), what the tightest allows."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _limits(root):
        with suppress(OSError, ValueError):  # there is no such file; it says "max"
            limits.append(int(path.read_text()))
    return min(limits)


def _limits(root: Path) -> Iterator[Path]:
    """Where the limits of the process's groups and all groups around them would be, of both versions of cgroups."""
    with suppress(OSError):  # not Linux
        for line in os.fsdecode((root / "proc/self/cgroup").read_bytes()).splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:
                mount, name = root / "sys/fs/cgroup", "memory.max"
            elif "memory" in controllers.split(","):
                mount, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
            else:
                continue
            inner = PurePosixPath(group).relative_to("/")
            for folder in (inner, *inner.parents):  # a container may see only the outermost, its own, without a name
                yield mount / folder / name


def low_type(device: torch.device) -> torch.dtype | None:
    """A type in which this machine multiplies matrices several times as fast as in float32, if there is one."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # not in all versions
    return torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else None
