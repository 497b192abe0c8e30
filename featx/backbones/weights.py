"""State dicts on disk in, their tensors in a network out; and how large a network may be before it is built.

A recipe may be somebody else's and names the network that is built, so its size is bounded: by the file's, or by a
fixed one where weights are random.
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
# A network of timm makes up to 2.3 times its state dict while it is built, and a file may hold that in half precision.
_TIMES = 4
_BESIDE = 2**28  # and bytes of masks, tables of positions, and of images that some are tried on


class Allowance(TorchFunctionMode):
    """In here new tensors (empty ones, zeros, random numbers) may take so many bytes, all together.

    The one that exceeds it has been allocated, and mostly not touched: what is built stops there.

    Raises
    ------
    BackboneError
        They take more; this is `refusal`.
    """

    def __init__(self, nbytes: int, refusal: BackboneError) -> None:
        super().__init__()
        self._left, self._refusal = nbytes, refusal

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        given = (*args, *kwargs.values())
        if isinstance(made, torch.Tensor) and not any(isinstance(each, torch.Tensor) for each in given):
            self._left -= made.nbytes
            if self._left < 0:
                raise self._refusal
        return made


def room_for_random(name: str) -> Allowance:
    """For a network of random weights that a recipe alone names."""
    return Allowance(
        MOST_RANDOM_BYTES,
        UnavailableBackbone(
            f"its random weights take over {readable(MOST_RANDOM_BYTES)}, more than a recipe alone makes",
            f"allow it with featx.load(path, backbone=featx.Backbone({name!r}, None))",
        ),
    )


def room_for(file: str, nbytes: int) -> Allowance:
    """For a network that is to take the state dict of a file of so many bytes."""
    return Allowance(
        _TIMES * nbytes + _BESIDE,
        BackboneError(f"{file} does not fit: it has {readable(nbytes)}, and the network is larger by far"),
    )


def read_state(file: str, expected_sha256: str | None = None) -> tuple[dict[str, Any], str, int]:
    """A state dict from a file; the SHA-256 and the number of its bytes.

    expected_sha256 : other bytes are refused before anything parses them
    """
    try:
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened:  # a pipe of this name is not waited for
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
            content = opened.read()  # what is parsed is what was opened here, even if another takes its name
    except FileNotFoundError as error:
        raise BackboneError(f"there is no weights file {file}") from error
    except OSError as error:
        raise BackboneError(f"cannot read the weights file {file!r}: {error.strerror}") from error
    state: dict[str, Any]
    try:
        if file.endswith(".safetensors"):
            state = safetensors.torch.load(content)
        elif _is_deflated(content):
            raise ValueError("a few bytes would take any amount of memory")
        else:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling, zip and safetensors errors of many types
        raise BackboneError(f"{file} is not a state dict: a .safetensors file, or .pth with tensors only") from error
    if not isinstance(state, dict):
        raise BackboneError(f"{file} is not a state dict, but holds a {type(state).__name__}")
    for wrapper in ("state_dict", "model"):  # what training scripts save around it
        if isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    return state, sha256, len(content)


def _is_deflated(content: bytes) -> bool:
    """Whether this is a zip file with members that take more bytes than it has; torch.save stores them as they are."""
    opened = io.BytesIO(content)
    if not zipfile.is_zipfile(opened):
        return False
    with zipfile.ZipFile(opened) as archive:
        return sum(member.file_size for member in archive.infolist()) > len(content)


def load_state(module: nn.Module, state: dict[str, Any], file: str, name: str) -> None:
    """Give a network the tensors of a state dict, if they are its own in name and shape."""
    own = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    got = {key: tuple(getattr(tensor, "shape", ())) for key, tensor in state.items()}
    if own != got:
        wrong = sorted(key for key in own.keys() | got.keys() if own.get(key) != got.get(key))
        raise BackboneError(
            f"{file} does not fit {name}: {len(wrong)} of {len(own)} tensors differ, the first is {wrong[0]!r} "
            f"(needed {own.get(wrong[0], 'nothing')}, got {got.get(wrong[0], 'nothing')})"
        )
    module.load_state_dict(state)
