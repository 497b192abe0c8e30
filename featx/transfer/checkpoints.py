"""A training that was stopped, as a safetensors file: tensors of the state, and settings and history as metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from featx.errors import FeatxError, listed
from featx.store import written_aside
from featx.transfer.training import Epoch, State, restore, tensors_of

_FORMAT = "featx-training"


def write(path: Path, state: State, settings: Mapping[str, Any]) -> None:
    """Write a state; an older file is replaced once the new one is complete.

    Parameters
    ----------
    settings : plain values that determine the training
    """
    metadata = {
        "format": _FORMAT,
        "settings": json.dumps(settings),
        "history": json.dumps(state.history),
        "best": str(state.best),
        "step": str(state.step),
    }
    with written_aside(path) as file:
        file.write(safetensors.torch.save(tensors_of(state), metadata))


def read(path: Path, state: State, settings: Mapping[str, Any]) -> None:
    """Bring a state from `begin` to where the stored one was.

    Raises
    ------
    FeatxError
        The file is not a stored training, is damaged, or is of other settings, which are named.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, safetensors.SafetensorError) as error:
        raise FeatxError(f"{path} is not a stored training: {error}; remove it to start anew") from error
    if metadata.get("format") != _FORMAT:
        raise FeatxError(f"{path} is not a stored training; choose another name")
    try:
        stored = json.loads(metadata["settings"])
        others = [name for name in {**settings, **stored} if settings.get(name) != stored.get(name)]
        if others:
            named = listed([f"{name} was {stored.get(name)!r}, now {settings.get(name)!r}" for name in others])
            raise FeatxError(f"{path} is a training with other settings: {named}; repeat those, or remove it")
        history = [Epoch(*epoch) for epoch in json.loads(metadata["history"])]
        restore(state, tensors, history, int(metadata["best"]), int(metadata["step"]))
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        if isinstance(error, FeatxError):
            raise
        raise FeatxError(f"{path} is damaged: {type(error).__name__}; remove it to start anew") from error


def digest_of(*arrays: Any) -> str:
    """A digest of arrays, for `settings`."""
    import hashlib

    digest = hashlib.sha256()
    for array in arrays:
        values = array.numpy() if isinstance(array, torch.Tensor) else array
        digest.update(f"{values.dtype.str} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:16]
