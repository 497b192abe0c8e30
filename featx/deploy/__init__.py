"""A fitted pipeline as one ONNX or torch program, and predictions of an ONNX file without torch or scikit-learn."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featx.deploy.runtime import predict_onnx
    from featx.deploy.verification import Agreement
    from featx.deploy.web_page import RUNTIME_FILES, RUNTIME_SOURCE, export_web
    from featx.deploy.writing import Exported, export

__all__ = [
    "RUNTIME_FILES",
    "RUNTIME_SOURCE",
    "Agreement",
    "Exported",
    "export",
    "export_web",
    "predict_onnx",
]

_HOMES = {
    "RUNTIME_FILES": "web_page",
    "RUNTIME_SOURCE": "web_page",
    "Agreement": "verification",
    "Exported": "writing",
    "export": "writing",
    "export_web": "web_page",
    "predict_onnx": "runtime",
}


def __getattr__(name: str) -> Any:
    # predicting needs neither torch nor scikit-learn, which exporting imports (PEP 562)
    if name not in _HOMES:
        raise AttributeError(f"module 'featx.deploy' has no attribute {name!r}")
    return getattr(importlib.import_module(f"featx.deploy.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
