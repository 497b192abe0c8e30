"""What tests of extraction share: quiet runs on the CPU, pictures by name, a refusal that must change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from helpers import assert_tells, left_in, noise

import featx
from featx.errors import RecipeError


def extract(
    source: Any, output: Any, backbone: str | featx.Backbone = "bundled:pixels", **options: Any
) -> featx.FeatureStore:
    return featx.extract(source, output, backbone, **({"progress": False, "device": "cpu"} | options))


def pictures(names: Iterable[object]) -> list[np.ndarray]:
    """One for each name, the same for the same name; one that cannot be read for "bad..."."""
    return [np.zeros((2, 2)) if str(name).startswith("bad") else noise(int(str(name))) for name in names]


def refused(again: Callable[[], object], output: Any, *words: str, error: type[Exception] = RecipeError) -> None:
    """`again()` raises, in one line, and all files beside the output, and it itself, are as they were."""
    beside = {name: (output.parent / name) for name in left_in(output.parent)}
    before = {name: path.read_bytes() for name, path in beside.items() if path.is_file()}
    with pytest.raises(error) as caught:
        again()
    assert_tells(caught.value, *words)
    assert left_in(output.parent) == list(beside)
    assert {name: beside[name].read_bytes() for name in before} == before


def same_file(one: featx.FeatureStore, other: featx.FeatureStore) -> bool:
    one.verify()
    return one.path.read_bytes() == other.path.read_bytes()
