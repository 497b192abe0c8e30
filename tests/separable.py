"""Stores without a network whose rows tell something: classes around centres, or numbers along a direction."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from helpers import digests_of, recipe

from featx.store import FeatureStore, StoreWriter


def separable_store(
    path: Path,
    n: int = 60,
    y: np.ndarray | None = None,
    noise: Mapping[str, float] | None = None,
    d: int = 6,
    columns: Mapping[str, np.ndarray] | None = None,
    contents: np.ndarray | None = None,
    seed: int = 0,
    **changes: Any,
) -> FeatureStore:
    """n images of classes "a", "b", "c" in turn, or of labels y.

    noise : {layer: standard deviation of the rows around the label's centre}; a layer has d columns
    contents : (n,) numbers; images of the same number have the same content, and the same rows
    changes : fields of the recipe
    """
    noise = noise or {"good:avg": 0.5, "poor:avg": 4.0}
    y = np.array(list("abc"))[np.arange(n) % 3] if y is None else y
    contents = np.arange(n) if contents is None else contents
    rng = np.random.default_rng(seed)
    kinds = y[:, None] if y.dtype.kind == "f" else (y[:, None] == np.unique(y)).astype(float)  # (n, 1) or (n, k)
    centres = kinds @ rng.normal(size=(kinds.shape[1], d))
    rows = {}
    for layer, spread in noise.items():
        around = rng.normal(size=(contents.max() + 1, d))[contents]
        rows[layer] = (centres + spread * around).astype(changes.get("dtype", "float32"))
    taps = {layer: [d] for layer in noise}
    with StoreWriter(path, recipe(taps, **changes), [f"image {i}" for i in range(n)], y, columns) as writer:
        writer.write(np.arange(n), rows, digests_of(contents))
        writer.finish()
    return FeatureStore(path)
