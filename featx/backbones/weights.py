"""Reads state dicts from disk, loads them into networks, and limits the size of a network before it is built.

A recipe names the network to build and may be untrusted, so its size is limited: by that of the weights file, or by a
constant for random weights.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import zipfile
from collections.abc import Callable
from typing import Any

import safetensors.torch
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from featx.errors import BackboneError, Call, Parameter, UnavailableBackbone, readable

MOST_RANDOM_BYTES = 2**30  # 268 million parameters
# Building a network of timm allocates up to 2.3 times its state dict, and a file may be in half precision.
_FACTOR = 4
_OTHER_BYTES = 2**28  # for masks, tables of positions, and images with which some networks are tried


class Allowance(TorchFunctionMode):
    """Context in which new tensors (empty, zeros, random) may take at most `nbytes` bytes in total.

    The tensor that exceeds the limit has been allocated but mostly not written, when the error stops the construction.

    Raises
    ------
    BackboneError
        The tensors would take more memory; the exception is `refusal`.
    """

    def __init__(self, nbytes: int, refusal: BackboneError) -> None:
        super().__init__()
        self._left, self._refusal = nbytes, refusal

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        arguments = (*args, *kwargs.values())
        if isinstance(result, torch.Tensor) and not any(isinstance(each, torch.Tensor) for each in arguments):
            self._left -= result.nbytes
            if self._left < 0:
                raise self._refusal
        return result


def random_allowance(name: str) -> Allowance:
    """Memory limit of a network with random weights that is named by a recipe, not by the user."""
    return Allowance(
        MOST_RANDOM_BYTES,
        UnavailableBackbone(
            f"its random weights take over {readable(MOST_RANDOM_BYTES)}, more than is built for a recipe",
            f"allow it with featx.load(path, backbone=featx.Backbone({name!r}, None))",
        ),
    )


def file_allowance(file: str, nbytes: int) -> Allowance:
    """The allowance of a network whose state dict is in a file of `nbytes` bytes."""
    return Allowance(
        _FACTOR * nbytes + _OTHER_BYTES,
        BackboneError(f"{file} does not fit: it has {readable(nbytes)}, and the network is far larger"),
    )


def read_state(file: str, expected_sha256: str | None = None) -> tuple[dict[str, Any], str, int]:
    """Read a state dict from a file; returns it with the SHA-256 and the size of the file.

    expected_sha256 : a file with another one is refused before it is parsed
    """
    try:
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened:  # does not block on a pipe
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise BackboneError(f"{file!r} is not a file; weights are a state dict, .safetensors or .pth")
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
            if expected_sha256 not in (None, sha256):
                raise UnavailableBackbone(
                    f"{file!r} is not the weights file that was recorded: its SHA-256 begins with {sha256[:12]}, not "
                    f"{str(expected_sha256)[:12]}",
                    "say where it is: ",
                    Call("featx.load", "path", Parameter("weights", ...)),
                )
            opened.seek(0)
            content = opened.read()  # these bytes are parsed, even if the file changes now
    except FileNotFoundError as error:
        raise BackboneError(f"there is no weights file {file}") from error
    except OSError as error:
        raise BackboneError(f"cannot read the weights file {file!r}: {error.strerror}") from error
    state: dict[str, Any]
    try:
        if file.endswith(".safetensors"):
            state = safetensors.torch.load(content)
        elif _is_deflated(content):
            raise ValueError("its tensors are larger than the file")
        else:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling, zip and safetensors errors of many types
        raise BackboneError(f"{file} is not a state dict: a .safetensors file, or .pth with tensors only") from error
    if not isinstance(state, dict):
        raise BackboneError(f"{file} is not a state dict, but holds a {type(state).__name__}")
    for wrapper in ("state_dict", "model"):  # added by training scripts
        if isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    return state, sha256, len(content)


def _is_deflated(content: bytes) -> bool:
    """Whether this is a zip file whose members are larger than the file; torch.save does not compress them."""
    opened = io.BytesIO(content)
    if not zipfile.is_zipfile(opened):
        return False
    with zipfile.ZipFile(opened) as archive:
        return sum(member.file_size for member in archive.infolist()) > len(content)


def load_state(module: nn.Module, state: dict[str, Any], file: str, name: str) -> None:
    """Load a state dict into a network; raises BackboneError unless all names and shapes are equal."""
    own = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    got = {key: tuple(getattr(tensor, "shape", ())) for key, tensor in state.items()}
    if own != got:
        wrong = sorted(key for key in own.keys() | got.keys() if own.get(key) != got.get(key))
        raise BackboneError(
            f"{file} does not fit {name}: {len(wrong)} of {len(own)} tensors differ, the first is {wrong[0]!r} "
            f"(needed {own.get(wrong[0], 'nothing')}, got {got.get(wrong[0], 'nothing')})"
        )
    module.load_state_dict(state)
