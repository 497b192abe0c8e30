"""featx: features once, answers in seconds.

Images pass once through a pretrained CNN, whose activations are kept in one HDF5 file; scikit-learn does the rest.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as type checkers know it; the module `typing` is not needed otherwise
if TYPE_CHECKING:
    from typing import Any

    from featx.backbones import Backbone, Preprocessing
    from featx.errors import (
        ContradictionWarning,
        FeatxError,
        NonFiniteWarning,
        RowsDifferWarning,
        UnreadableImagesWarning,
    )
    from featx.extraction import Plan, extract, plan
    from featx.learn import load, save
    from featx.progress import Progress, SearchProgress, TrainingProgress
    from featx.scale import RayExecutor, extract_shards
    from featx.store import FeatureStore, export, merge, put

__version__ = "0.1.0"
__all__ = [
    "Backbone",
    "ContradictionWarning",
    "FeatureStore",
    "FeatxError",
    "NonFiniteWarning",
    "Plan",
    "Preprocessing",
    "Progress",
    "RayExecutor",
    "RowsDifferWarning",
    "SearchProgress",
    "TrainingProgress",
    "UnreadableImagesWarning",
    "export",
    "extract",
    "extract_shards",
    "load",
    "merge",
    "plan",
    "put",
    "save",
]

_HOMES = {
    "Backbone": "featx.backbones",
    "ContradictionWarning": "featx.errors",
    "FeatureStore": "featx.store",
    "FeatxError": "featx.errors",
    "NonFiniteWarning": "featx.errors",
    "Plan": "featx.extraction",
    "Preprocessing": "featx.backbones",
    "Progress": "featx.progress",
    "RayExecutor": "featx.scale",
    "RowsDifferWarning": "featx.errors",
    "SearchProgress": "featx.progress",
    "TrainingProgress": "featx.progress",
    "UnreadableImagesWarning": "featx.errors",
    "export": "featx.store",
    "extract": "featx.extraction",
    "extract_shards": "featx.scale",
    "load": "featx.learn",
    "merge": "featx.store",
    "plan": "featx.extraction",
    "put": "featx.store",
    "save": "featx.learn",
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import and learning from a store does not need it: names load when first used (PEP 562)
    if name not in _HOMES:
        raise AttributeError(f"module 'featx' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
