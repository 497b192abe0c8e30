"""Recipes that featx would not write: one place of a true one said otherwise; and files that wait to be opened."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forged import values_of, with_values

HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 5, 7, 16, 31, 33, 64, 255, 1023, 4097, 2**15, 2**16, 2**31, 2**40, 2**63, 10**30,
    0.0, 0.5, -1.5, 1e-300, 1e300, -1e9, "", " ", "x", "output", "flatten", "classifier", "features.0", "avg", "max",
    "cls", "tokens", "none", "flatten", "spp", "bchw", "bhwc", "btc", "bd", "float16", "float64", "bfloat16", "cuda",
    "compiled", "eager, batch norms folded", "nearest", "lanczos", "\x1b[2J", "a\nb", "\u202egpj.exe", "\0", "é" * 5000,
    "evil.pt2", "./evil.pt2", "evil.pth", "evil.safetensors", "FOLDER/evil.pt2", "FOLDER/evil.pth", "/dev/zero.pth",
    "FOLDER/pipe.pth", "/etc/passwd", "export:evil", "export:evil.pt2", "module:evil", "module:os.system",
    "timm:evil.pt2", "timm:hf-hub:evil/x", "timm:local-dir:FOLDER", "timm:resnet18", "torchvision:resnet18",
    "torchvision:evil", "bundled:evil", "bundled:pixels", "hf-hub:evil/x", "http://127.0.0.1:9/evil.pth",
    "file:///FOLDER/evil.pth", "DEFAULT", "IMAGENET1K_V1", "0" * 64, "f" * 32, [], [1], [32, 32], [10**6, 1],
    [1, 10**9], [0.5, 0.5, 0.5], [0, 0, 0], [1e-40] * 3, ["x"], [[1]], [1] * 100, {}, {"x": 1}, {"a": {"b": {}}},
    "center", "flip", "mean", "crop:4", ["center"], ["flip", "center"], ["flip", "flip"], ["top-left", "center"],
]  # fmt: skip


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("it ran",)


def evil_files(folder: Path) -> None:
    """Files of the names that forged recipes say; whoever unpickles one makes a folder "it ran"."""
    payload = io.BytesIO()
    torch.save(_Runs(), payload)
    for name in ("evil.pth", "evil.pt2"):
        (folder / name).write_bytes(payload.getvalue())
    (folder / "evil.safetensors").write_bytes(b"\0" * 100)
    (folder / "evil.py").write_text("import os\nos.mkdir('it ran')\n")
    os.mkfifo(folder / "pipe.pth")


def forge(recipe: dict[str, Any], number: int) -> tuple[list[str | int], dict[str, Any]]:
    """The path of the place that was changed, and the recipe with something else there."""
    draw = random.Random(number)
    if draw.random() < 0.2:
        return ["taps"], _other_layer(recipe, draw)
    places = list(_places(recipe, []))
    path = draw.choice(places)
    *above, last = path
    owner: Any = recipe
    for key in above:
        owner = owner[key]
    how = draw.random()
    if how < 0.05 and isinstance(owner, dict) and above:
        del owner[last]
    elif how < 0.1 and isinstance(owner, dict) and above:
        owner[draw.choice(["x", "\x1b[31m", "prefix", "projected", "seed", "node"])] = _hostile(draw)
    elif how < 0.25 and isinstance(owner[last], int | float) and not isinstance(owner[last], bool):
        owner[last] = draw.choice([owner[last] + 1, owner[last] - 1, owner[last] * 2, owner[last] * 1000, -owner[last]])
    elif how < 0.35 and isinstance(owner[last], list):
        owner[last] = draw.choice([owner[last] * 2, owner[last][:-1], owner[last][::-1], [*owner[last], 1]])
    else:
        owner[last] = _hostile(draw)
    return path, recipe


def _other_layer(recipe: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """The first layer under its right name, but another one."""
    tap = next(iter(recipe["taps"].values()))
    tap["node"] = draw.choice(
        ["output", "input", "features", "features.0", "features.99", "flatten", "nonsense", "a.b"]
    )
    tap["pool"] = draw.choice(["avg", "max", "gem", "spp", "tokens", "flatten", "none", tap["pool"]])
    tap["layout"] = draw.choice(["bchw", "bhwc", "btc", "bd", tap["layout"]])
    tap["shape"] = draw.choice([tap["shape"], [1], [64], [2**20], [3, 32, 32], [2, 3], [2, 3, 32, 32]])
    if draw.random() < 0.3:
        tap["prefix"] = draw.choice([0, 1, 5, 1000])
    width = f"~{tap['shape'][0]}" if "projected" in tap else ""
    recipe["taps"], recipe["aliases"] = {f"{tap['node']}:{tap['pool']}{width}": tap}, {}
    return recipe


def _hostile(draw: random.Random) -> Any:
    value = draw.choice(HOSTILE)
    return value.replace("FOLDER", os.getcwd()) if isinstance(value, str) else value


def _places(value: Any, path: list[str | int]) -> Any:
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from _places(value[key], [*path, key])


def with_recipe(content: bytes, text: str) -> bytes:
    """A store with another recipe, behind the identity and the seal that go with it."""
    views = [] if '"views"' in text else None  # decide the format version
    return with_values(content, values_of(content) | {"recipe": np.array([text.encode()])}, views=views)
