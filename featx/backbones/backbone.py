"""Backbone: a network by name or of the user's own, with its weights, preprocessing and fingerprint."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import threading
from functools import cached_property
from pathlib import Path
from types import EllipsisType
from typing import Any, Self

import torch
from torch import nn
from torch.export import ExportedProgram

from featx.backbones.preprocessing import Preprocessing
from featx.backbones.programs import constants, load_program, module_of, program_name
from featx.backbones.sources import SOURCES, canonical
from featx.backbones.weights import file_allowance, load_state, random_allowance, read_state
from featx.errors import BackboneError, Call, Parameter, UnavailableBackbone
from featx.grammar import PROGRAM_FILE, is_weights_file
from featx.recipe import Recipe

SEED = 0  # of the random weights of weights=None
# Held while a network is built or traced: seeding and torch's tracer change the state of the process.
BUILDING = threading.RLock()


class Backbone:
    """A network with its preprocessing, loaded on first use.

    Parameters
    ----------
    network : str, torch.nn.Module or torch.export.ExportedProgram
        "torchvision:resnet50", "timm:convnext_tiny", "bundled:efficientnet_lite0" (lite1, lite2), "bundled:pixels" (the
        32 x 32 image itself, a baseline). A name without a prefix is torchvision's, or else timm's. Or a module of your
        own, or an exported program, as an object or a `.pt2` file. Opening such a file can run its author's code: open
        only files that you trust.
    weights : str, path or None
        "DEFAULT" or another name of the source's pretrained weights, a `.safetensors` or `.pth` state dict, or None
        for random weights from a recorded seed. Ignored for a module or a program, which have their own.
    preprocessing : Preprocessing, optional
        By default that of the weights. Required for a module and a program.

    Raises
    ------
    BackboneError
        The name is unknown (similar ones are listed), or the weights are not available.

    Examples
    --------
    >>> Backbone("resnet18", weights=None).name
    'torchvision:resnet18'
    """

    def __init__(
        self,
        network: str | os.PathLike | nn.Module | ExportedProgram,
        weights: str | os.PathLike | None = "DEFAULT",
        *,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        if not isinstance(preprocessing, Preprocessing | None):
            raise BackboneError(f"preprocessing is a featx.Preprocessing; got {type(preprocessing).__name__}")
        self._own = network if isinstance(network, nn.Module | ExportedProgram) else None
        self._preprocessing = preprocessing
        self._fetch: bool | None = True
        self._expected_sha256: str | None = None
        self._built: tuple[nn.Module, Preprocessing, str | None] | None = None
        self.weights: str | None = "its own"
        if isinstance(network, nn.Module):
            self.name = f"module:{type(network).__name__}"
            self._needs_preprocessing(f"{type(network).__name__}(...)")
        elif isinstance(network, ExportedProgram):
            self.name = f"export:{program_name(network)}"
            self._needs_preprocessing("program")
        elif isinstance(network, str | os.PathLike) and os.fspath(network).endswith(PROGRAM_FILE):
            self.weights = str(Path(network).absolute())
            self.name = f"export:{Path(network).stem}"
            self._needs_preprocessing(repr(os.fspath(network)))
        elif isinstance(network, str):
            self.name = canonical(network)
            self.weights = None if weights is None else str(weights)
            if is_weights_file(self.weights):
                self.weights = str(Path(str(self.weights)).absolute())
        else:
            raise BackboneError(
                f"a backbone is a name, a module, an exported program or a featx.Backbone; got {type(network).__name__}"
            )

    @classmethod
    def of_recipe(
        cls, name: str, weights: str | None, weights_file_sha256: str | None, preprocessing: Preprocessing
    ) -> Backbone:
        """The network that a recipe names, built with care since the recipe may be untrusted.

        Only names in a library's own list are built, nothing is downloaded, and a weights file is parsed only if it has
        the recorded SHA-256. A network that is far larger than its file, or has more random weights than
        `MOST_RANDOM_BYTES`, is refused.
        """
        source, _, model = name.partition(":")
        if source not in SOURCES or canonical(name) != name:
            raise BackboneError(f"a recipe's backbone is torchvision:NAME, timm:NAME or bundled:NAME; got {name!r}")
        if is_weights_file(weights) and weights_file_sha256 is None:
            raise UnavailableBackbone(
                f"the weights of {name} were the file {weights!r}, whose SHA-256 was not recorded",
                "say where it is: ",
                Call("featx.load", "path", Parameter("weights", ...)),
            )
        backbone = cls(name, weights, preprocessing=preprocessing)
        backbone._fetch, backbone._expected_sha256 = False, weights_file_sha256
        return backbone

    def _needs_preprocessing(self, network: str) -> None:
        if self._preprocessing is None:
            kind = "a module" if self.name.startswith("module:") else "an exported program"
            raise BackboneError(
                f"{kind} needs its preprocessing, which is given in Python: featx.Backbone({network}, "
                "preprocessing=featx.Preprocessing(crop=(224, 224), resize=256))"
            )

    def __repr__(self) -> str:
        return f"Backbone({self.name!r}, weights={self.weights!r})"

    def __copy__(self) -> Self:
        return self  # its network does not change

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # scikit-learn's clone must not copy weights

    def __getstate__(self) -> dict[str, Any]:
        """A user's module is pickled with its weights.

        Of a network with a name or a file only these are pickled, and it is built again.

        Raises
        ------
        BackboneError
            The network is a program in memory.
        """
        if isinstance(self._own, ExportedProgram):
            raise BackboneError(
                f"{self.name} is a program in memory, which cannot be sent to another process: write it with "
                "torch.export.save and make the Backbone of the .pt2 file"
            )
        state = vars(self) | {"_built": None, "_own": None if self._own is None else self.module}
        state.pop("weights_sha256", None)
        return state

    def _changed(self, **attributes: Any) -> Self:
        """A copy with other attributes, which shares the network if that is built."""
        other = object.__new__(type(self))
        vars(other).update(vars(self) | attributes)
        return other

    @property
    def is_own(self) -> bool:
        """Whether the network is the user's own module or program, which cannot be built from a recipe."""
        return self.name.startswith(("module:", "export:"))

    @property
    def seed(self) -> int | None:
        """The seed of random weights."""
        return SEED if self.weights is None else None

    def _network(self) -> tuple[nn.Module, Preprocessing, str | None]:
        """The module, its preprocessing and the SHA-256 of its weights file, built once."""
        if self._built is None:
            with BUILDING:
                if self._built is None:  # another thread may have built it in the meantime
                    self._built = self._build()
        return self._built

    def _build(self) -> tuple[nn.Module, Preprocessing, str | None]:
        if isinstance(self._own, nn.Module):
            assert self._preprocessing is not None
            # a copy: the user's module keeps its mode, and training it later has no effect here
            return copy.deepcopy(self._own).eval(), self._preprocessing, None
        if self.name.startswith("export:"):
            assert self._preprocessing is not None
            program = self._own or load_program(str(self.weights))
            try:
                return module_of(program, self._preprocessing), self._preprocessing, None
            except BackboneError as error:
                raise BackboneError(f"{self.name}: ", *error.parts) from error
        source, _, name = self.name.partition(":")
        file = self.weights if is_weights_file(self.weights) else None
        allowance: contextlib.AbstractContextManager = contextlib.nullcontext()
        state, file_sha256 = None, None
        if file:
            state, file_sha256, nbytes = read_state(file, self._expected_sha256)
            allowance = file_allowance(file, nbytes)
        elif self.weights is None and self._fetch is False:
            allowance = random_allowance(self.name)
        try:
            with torch.random.fork_rng(devices=[]), allowance:
                torch.manual_seed(SEED)
                named_weights = None if file else self.weights
                module, preprocessing = SOURCES[source](name, named_weights, self._preprocessing, self._fetch)
        except UnavailableBackbone as error:
            raise UnavailableBackbone(f"{self.name}: {error.reason}", *error.how) from error
        except BackboneError as error:
            raise BackboneError(f"{self.name}: ", *error.parts) from error
        if state is not None:
            load_state(module, state, str(file), self.name)
        return module.eval().requires_grad_(False), preprocessing, file_sha256

    def without_download(self) -> Backbone:
        """The same network and preprocessing. Pretrained weights of torchvision and timm, which might have to be
        downloaded, are replaced by random ones.
        """
        return self._changed(_fetch=None)

    @property
    def has_weights(self) -> bool:
        """Whether the weights are those that `weights` names; see `without_download`."""
        named = self.name.startswith(("torchvision:", "timm:")) and self.weights is not None
        return self._fetch is not None or not named or is_weights_file(self.weights)

    @property
    def module(self) -> nn.Module:
        """The network in eval mode, on the CPU, in float32."""
        return self._network()[0]

    @property
    def preprocessing(self) -> Preprocessing:
        return self._network()[1]

    @property
    def weights_file_sha256(self) -> str | None:
        """SHA-256 of the state dict's file; None if the weights are not a file."""
        return self._network()[2]

    def prepared_by(self, preprocessing: Preprocessing) -> Backbone:
        """A Backbone with the same module and another preprocessing."""
        if self.preprocessing == preprocessing:
            return self
        return self._changed(
            _preprocessing=preprocessing, _built=(self.module, preprocessing, self.weights_file_sha256)
        )

    def with_its_module(self) -> Backbone:
        """A Backbone that is pickled with its module and weights, so that another process does not build it again."""
        if self.name.startswith("export:"):
            return self
        return self._changed(_own=self.module, _preprocessing=self.preprocessing)

    @cached_property
    def weights_sha256(self) -> str:
        """Fingerprint: SHA-256 over names, types, shapes and bytes of the state dict, in order, and of a program's
        other tensors.
        """
        digest = hashlib.sha256()
        state = self.module.state_dict()
        if self.name.startswith("export:"):
            state |= {name: tensor for name, tensor in constants(self.module).items() if name not in state}
        for name, tensor in state.items():
            array = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {array.dtype} {tuple(array.shape)}\n".encode())
            digest.update(array.flatten().view(torch.uint8).numpy().tobytes() if array.numel() else b"")
        return digest.hexdigest()


def passed_backbone(
    recipe: Recipe,
    backbone: str | os.PathLike | nn.Module | ExportedProgram | Backbone | None,
    weights: str | os.PathLike | EllipsisType | None = ...,
) -> Backbone | None:
    """The backbone that a user passes for a recipe; None if it can be built from the recipe alone.

    Parameters
    ----------
    recipe : Recipe
    backbone : as in `featx.extract`; a module or a program is prepared as recorded, a name has the recorded weights
    weights : the weights of the recorded network, or `...` if none were passed

    Raises
    ------
    BackboneError
        `backbone` is no network, or not the recorded one; or the rows of the recipe were imported.
    """
    recipe.require_network()
    preprocessing = Preprocessing.from_dict(recipe.preprocessing)
    if isinstance(backbone, Backbone):
        return backbone
    if backbone is None and isinstance(weights, str | os.PathLike) and recipe.backbone.startswith("export:"):
        backbone = weights
    if backbone is not None and (not isinstance(backbone, str) or backbone.endswith(PROGRAM_FILE)):
        return Backbone(backbone, preprocessing=preprocessing)
    if backbone is not None and (name := canonical(backbone)) != recipe.backbone:
        raise BackboneError(f"the recorded network is {recipe.backbone}; got {name}")
    if not isinstance(weights, EllipsisType) and not recipe.backbone.startswith("module:"):
        return Backbone(recipe.backbone, weights, preprocessing=preprocessing)
    if backbone is None or is_weights_file(recipe.weights):  # a file is opened only if it is the recorded one
        return None
    return Backbone(backbone, recipe.weights, preprocessing=preprocessing)  # named by the user: it may be downloaded


def resolve_backbone(recipe: Recipe, known: Backbone | None = None) -> Backbone:
    """The backbone that a recipe names.

    Parameters
    ----------
    recipe : Recipe
    known : Backbone, optional
        Passed by the user: a module, a program, or weights that have moved or may be downloaded. It is returned if it
        has the recorded fingerprint. Without it, see `Backbone.of_recipe`.

    Raises
    ------
    BackboneError
        The weights are not the recorded ones, or the backbone must be passed; or the rows of the recipe were imported.
    """
    recipe.require_network()
    name, weights = recipe.backbone, recipe.weights
    if known is None and name.startswith("module:"):
        raise UnavailableBackbone(
            f"the features came from a module of yours, {name.removeprefix('module:')}",
            "pass it: featx.load(path, backbone=featx.Backbone(module, preprocessing=...))",
        )
    if known is None and name.startswith("export:"):
        # a recipe may be untrusted and opening a program can run code, so the user must name the file
        file = f" (it was {weights!r})" if str(weights).endswith(PROGRAM_FILE) else ""
        raise UnavailableBackbone(
            f"the features came from an exported program, {name.removeprefix('export:')}{file}",
            "pass it, if you trust it: ",
            Call("featx.load", "path", Parameter("weights", "FILE.pt2")),
        )
    if known is None and is_weights_file(weights) and not Path(str(weights)).exists():
        raise UnavailableBackbone(
            f"the weights file {weights!r} is gone",
            "say where it is: ",
            Call("featx.load", "path", Parameter("weights", ...)),
        )
    if known is None:
        preprocessing = Preprocessing.from_dict(recipe.preprocessing)
        known = Backbone.of_recipe(name, weights, recipe.weights_file_sha256, preprocessing)
    are_programs = name.startswith("export:") and known.name.startswith(
        "export:"
    )  # the name of a program is that of its file
    if known.weights_sha256 != recipe.weights_sha256 or (known.name != name and not are_programs):
        raise BackboneError(
            f"the recorded network is {name} with weights sha256 {recipe.weights_sha256[:12]}; "
            f"got {known.name} with {known.weights_sha256[:12]}"
        )
    return known
