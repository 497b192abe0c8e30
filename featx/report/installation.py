"""What `featx doctor` shows: versions, hardware, compiler, decoders, and which packages the extras lack."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import featx
from featx.errors import count, readable
from featx.memory import memory_bytes
from featx.report.columns import PlainTable
from featx.report.interchange import json_text

if TYPE_CHECKING:
    import torch

_PACKAGES = ("torch", "torchvision", "timm", "scikit-learn", "numpy", "pillow", "safetensors", "skops")
_FOR_DEVELOPERS = {"test", "dev", "docs"}
_REQUIREMENT = re.compile(r"""([\w.-]+)(?:\[([\w,-]+)\])?\s*>?=?([\d.]*)[^;]*;\s*extra\s*==\s*["']([\w-]+)["']""")


def installation() -> dict[str, Any]:
    """Facts on this installation and machine, as values that JSON can hold.

    Returns
    -------
    dict
        "versions": {package: version or None}; "python" and "platform"; "device": name and memory of the device that
        "auto" chooses; "cpu_threads"; "compiler": the C++ compiler's path or, on a GPU, "triton", or None;
        "decoders": {format or decoder: whether it can be used}; "bfloat16": whether the device has instructions for
        bfloat16 products; "memory_bytes": what this process may use; "budget_bytes": what a solver takes of it;
        "extras": {extra: packages that are missing or too old}.
    """
    import torch
    from PIL import features

    from featx.images import has_fast_jpeg
    from featx.solvers import budget_of, device_of, low_type

    device = device_of("auto")
    return {
        "versions": {"featx": featx.__version__, **{name: _version(name) for name in _PACKAGES}},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": _device(device),
        "cpu_threads": torch.get_num_threads(),
        "compiler": _compiler(device),
        "decoders": {
            **{name: features.check(feature) for name, feature in {"JPEG": "jpg", "PNG": "zlib"}.items()},
            **{name: features.check(name.lower()) for name in ("WebP", "AVIF")},
            "simplejpeg": has_fast_jpeg(),
        },
        "bfloat16": low_type(device) is not None,
        "memory_bytes": memory_bytes(),
        "budget_bytes": budget_of(device, None),
        "extras": _extras(),
    }


def installation_table(facts: dict[str, Any]) -> PlainTable:
    """The facts of `installation` as a table, with the command that installs what an extra lacks."""
    table = PlainTable(show_header=False)
    table.add_column("fact", no_wrap=True)
    table.add_column("value", overflow="fold")
    for name, installed in facts["versions"].items():
        table.add_row(name, installed or "not installed")
    table.add_row("Python", f"{facts['python']} on {facts['platform']}")
    table.add_row("device", f"{facts['device']}, {count(facts['cpu_threads'], 'CPU thread')}")
    table.add_row("compiler", facts["compiler"] or 'none found: engine="auto" runs networks uncompiled')
    usable = [name for name, can in facts["decoders"].items() if can]
    unusable = [name for name, can in facts["decoders"].items() if not can]
    table.add_row("decoders", ", ".join(usable) + (f"; not {', '.join(unusable)}" if unusable else ""))
    table.add_row("bfloat16", "the device has instructions for it" if facts["bfloat16"] else "no instructions for it")
    budget = f"{readable(facts['memory_bytes'])}; a solver takes up to {readable(facts['budget_bytes'])}"
    table.add_row("memory", budget)
    for extra, missing in facts["extras"].items():
        install = f"lacks {', '.join(missing)}: pip install 'featx[{extra}]'"
        table.add_row(f"extra {extra}", install if missing else "installed")
    return table


def installation_json(facts: dict[str, Any]) -> str:
    """The facts of `installation` as JSON."""
    return json_text(facts, indent=2)


def _device(device: torch.device) -> str:
    if device.type != "cuda":
        return "CPU, no GPU that torch can use"
    import torch

    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    memory = torch.cuda.get_device_properties(device).total_memory
    return f"{', '.join(names)} with {readable(memory)}, CUDA {torch.version.cuda}"


def _compiler(device: torch.device) -> str | None:
    """What torch.compile needs beside torch: Triton on a GPU; on a CPU a C++ compiler and Python's headers."""
    if device.type == "cuda":
        return "triton" if _version("triton") else None
    compiler = shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++"))
    return compiler if (Path(sysconfig.get_paths()["include"]) / "Python.h").exists() else None


def _extras() -> dict[str, list[str]]:
    """The packages that each extra lacks, by the requirements of the installed featx."""
    try:
        requirements = [match.groups() for match in map(_REQUIREMENT.match, requires("featx") or []) if match]
    except PackageNotFoundError:  # run from a checkout that is not installed
        return {}

    def needed(extra: str) -> Iterator[tuple[str, str]]:
        for package, inner, least, of_extra in requirements:
            if of_extra == extra and package == "featx":
                for name in inner.split(","):
                    yield from needed(name)
            elif of_extra == extra:
                yield package, least

    extras = dict.fromkeys(extra for *_, extra in requirements if extra not in _FOR_DEVELOPERS)
    return {
        extra: sorted(
            {f"{name}>={least}" for name, least in needed(extra) if _numbers(_version(name)) < _numbers(least)}
        )
        for extra in extras
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numbers(version: str | None) -> list[int]:
    """[1, 0, 31] of "1.0.31+cpu"; [] of None, less than any version."""
    return [int(number) for number in re.match(r"[\d.]*", version or "")[0].strip(".").split(".") if number]  # type: ignore[index]
