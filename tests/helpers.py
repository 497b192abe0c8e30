"""What several tests need: small seeded pictures, class folders, stores without a network, new processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featx.errors import FeatxError, ImageError
from featx.store import FeatureStore, Recipe, StoreWriter

TESTS = Path(__file__).parent


def noise(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    """(h, w, 3) uint8 noise; no two seeds give the same picture."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def save_noise(path: Path, seed: int) -> Path:
    """A picture of noise in a file, its folders made; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed)).save(path)
    return path


def class_folders(
    root: Path, classes: Sequence[str] = ("ant", "bee"), n: int = 3, suffix: str = ".png", seed: int = 0
) -> Path:
    """`root/CLASS/CLASS_i.png`, n pictures a class, all different; returns the root."""
    for k, name in enumerate(classes):
        for i in range(n):
            save_noise(root / name / f"{name}_{i}{suffix}", seed=seed + 1000 * k + i)
    return root


def levelled_folders(
    root: Path, levels: Mapping[str, int], n: int, size: tuple[int, int], spread: float, seed: int = 0
) -> Path:
    """`root/CLASS/00.png` ..., n pictures a class, (h, w) of noise around the class's level; returns the root."""
    rng = np.random.default_rng(seed)
    for name, level in levels.items():
        (root / name).mkdir(parents=True)
        for i in range(n):
            pixels = rng.normal(level, spread, (*size, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:02}.png")
    return root


def empty_cache() -> None:
    """As in a process that has just started: no network, no matrix is kept from before."""
    from featx.forward import cache

    for cached in (cache._backbones, cache._networks, cache._matrices):
        cached.clear()


def resolved(
    name: str,
    weights: str | None,
    weights_sha256: str,
    preprocessing: Any,
    known: Any = None,
    weights_file_sha256: str | None = None,
) -> Any:
    """The backbone of a recipe that records these."""
    from featx.backbones import resolve_backbone

    network = {"backbone": name, "weights": weights, "weights_sha256": weights_sha256}
    network |= {"preprocessing": preprocessing.to_dict(), "weights_file_sha256": weights_file_sha256}
    return resolve_backbone(recipe({"x:avg": [1]}, **network), known)


def recipe(taps: Mapping[str, Sequence[int]], **changes: Any) -> Recipe:
    """A recipe of no network, for tests of the store alone; `taps` maps layer names to the shape of a row."""
    values: dict[str, Any] = dict(
        backbone="torchvision:resnet18",
        weights=None,
        weights_sha256="0" * 64,
        preprocessing={"crop": [32, 32], "resize": 32},
        decoder="none",
        taps={name: _tap(*name.split(":"), list(shape)) for name, shape in taps.items()},
        aliases={},
        engine="eager",
        precision="float32",
        precision_error=None,
        batch_size=4,
        dtype="float32",
        device="cpu",
        threads=2,
        versions={},
        origin=None,
        collection=None,
    )
    return Recipe(**(values | changes))


def _tap(node: str, pool: str, shape: list[int]) -> dict[str, Any]:
    layout = {1: "bd", 2: "btc", 3: "bchw"}[len(shape)] if pool == "none" else "bchw"
    return {"node": node, "pool": pool, "layout": layout, "shape": shape}


TAPS = {"layer1:avg": [3], "layer2:none": [2, 5, 7], "fc:flatten": [2000]}


def rows_of(
    indices: Iterable[int], taps: Mapping[str, Sequence[int]] = TAPS, dtype: str = "float32"
) -> dict[str, np.ndarray]:
    """Rows that depend on the image and the layer alone, not on how they are written."""
    return {
        name: np.array([np.random.default_rng([k, i]).normal(size=shape) for i in indices]).astype(dtype)
        for k, (name, shape) in enumerate(taps.items())
    }


def digests_of(indices: Iterable[int]) -> np.ndarray:
    """(m, 16) uint8, those of no content, different for different images."""
    return np.array([np.frombuffer(int(i).to_bytes(16, "little"), np.uint8) for i in indices])


def write_store(
    path: Path,
    n: int = 10,
    blocks: Iterable[Iterable[int]] | None = None,
    bad: Collection[int] = (),
    taps: Mapping[str, Sequence[int]] = TAPS,
    y: np.ndarray | None = None,
    columns: Mapping[str, np.ndarray] | None = None,
    **changes: Any,
) -> FeatureStore:
    """A store of n images written in blocks of positions, some of them failures; goes on with a run that was begun."""
    with StoreWriter(path, recipe(taps, **changes), [f"image {i}" for i in range(n)], y, columns) as writer:
        for block in [range(n)] if blocks is None else blocks:
            todo = [i for i in block if writer.todo[i]]
            if good := [i for i in todo if i not in bad]:
                writer.write(np.array(good), rows_of(good, taps, changes.get("dtype", "float32")), digests_of(good))
            writer.fail({i: ImageError("damaged", f"image {i} is bad") for i in todo if i in bad})
        writer.finish()
    return FeatureStore(path)


def store_of(
    path: Path,
    rows: Mapping[str, np.ndarray],
    y: np.ndarray | None = None,
    ids: Sequence[str] = (),
    columns: Mapping[str, np.ndarray] | None = None,
    first: int = 0,
    **changes: Any,
) -> FeatureStore:
    """A store of these rows, {"node:pool": (n, ...)}, of images with the contents `first`, `first + 1` ..."""
    n = len(next(iter(rows.values())))
    names = list(ids) or [f"image {i}" for i in range(n)]
    with StoreWriter(
        path, recipe({name: X.shape[1:] for name, X in rows.items()}, **changes), names, y, columns
    ) as writer:
        digests = digests_of(range(first, first + n))
        writer.write(np.arange(n), {name: X.astype(np.float32) for name, X in rows.items()}, digests)
        writer.finish()
    return FeatureStore(path)


def left_in(folder: Path) -> list[str]:
    """All names below a folder, sorted: what a run has left there."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def assert_tells(error: BaseException, *words: str) -> None:
    """The error is a leaf of FeatxError, its message one line that holds all these words."""
    assert isinstance(error, FeatxError) and type(error) is not FeatxError, repr(error)
    message = str(error)
    assert message.strip() and "\n" not in message, message
    for word in words:
        assert word in message, f"{word!r} is not said in: {message}"


def fresh_python(code: str, timeout_seconds: float = 120) -> Any:
    """What a program prints as JSON on its last line, run in a new process."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
