"""How a store was made in; what to ask of another run so that its rows are made alike, out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from featx.backbones import COMPILED, Backbone, Preprocessing
from featx.errors import BackboneError, LayerError, Parameter, RecipeError, UnavailableBackbone, listed
from featx.forward import backbone_of
from featx.grammar import PROGRAM_FILE, is_weights_file
from featx.store import FeatureStore, Recipe

_OF_THE_MACHINE = ("device", "engine")  # choices that may differ from those of a store to be like


def followed(choices: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The choices of a run; what is left to "auto" is as in a recipe, the device only if it is here.

    Parameters
    ----------
    choices : values of device, precision, engine, batch_size and dtype
    """
    made = {
        "device": recipe.device if recipe.device != "cuda" or torch.cuda.is_available() else "auto",
        "precision": recipe.precision,
        "engine": "compiled" if recipe.engine == COMPILED else "eager",
        "batch_size": recipe.batch_size,
        "dtype": recipe.dtype,
    }
    return {name: made[name] if choice == "auto" else choice for name, choice in choices.items()}


@dataclass(frozen=True)
class Example:
    """The store that another one is to be made like.

    name : of its file
    """

    recipe: Recipe
    name: str

    @classmethod
    def of(cls, like: FeatureStore | str | os.PathLike) -> Example:
        """Raises StoreError where there is no store."""
        store = like if isinstance(like, FeatureStore) else FeatureStore(like)
        return cls(store.recipe, store.path.name)

    def backbone(self, given: Any, weights: str | os.PathLike | None) -> Backbone:
        """Its backbone.

        Parameters
        ----------
        given : the backbone that was handed over beside it, or None
        weights : "DEFAULT", or those that were handed over

        Raises
        ------
        RecipeError
            What was handed over is another network.
        BackboneError
            It has other weights; or the network has to be handed over, and was not.
        """
        recipe, preprocessing = self.recipe, Preprocessing.from_dict(self.recipe.preprocessing)
        known = None
        if isinstance(given, Backbone):
            known = given
        elif not isinstance(given, str | None) or str(given).endswith(PROGRAM_FILE):
            known = Backbone(given, preprocessing=preprocessing)
        elif weights != "DEFAULT":
            known = Backbone(recipe.backbone if given is None else given, weights, preprocessing=preprocessing)
        elif given is not None:
            if (name := Backbone(given, None).name) != recipe.backbone:
                raise self._otherwise([f"backbone: {recipe.backbone!r} there, {name!r} here"])
            if not is_weights_file(recipe.weights):  # what the user names may be downloaded; a file may not be opened
                known = Backbone(given, recipe.weights, preprocessing=preprocessing)
        try:
            found = backbone_of(recipe, known)
        except UnavailableBackbone as error:
            raise BackboneError(
                f"{self.name}: {error.reason}. Give the backbone or its weights beside ", Parameter("like", ...)
            ) from error
        return found if known is not None else found.prepared_by(preprocessing)

    def layers(self, given: str | Sequence[str] | None, pool: str) -> list[str]:
        """The layers that are asked for, by its own names for them; all it has where none is named."""
        if given is None:
            if pool != "avg":
                raise LayerError(
                    Parameter("pool", pool), f" is for layers that are named; {self.name} has pools of its own"
                )
            return list(self.recipe.layers)
        return [self._full_name(name, pool) for name in ([given] if isinstance(given, str) else given)]

    def _full_name(self, name: str, pool: str) -> str:
        if pool != "avg" and ":" not in name:
            return name
        try:
            return self.recipe.layer(name)
        except LayerError:
            return name  # "stages", say: the network knows what that is

    def made_alike(self, asked: Recipe) -> Recipe:
        """A recipe with what follows from the store and cannot be asked for: threads, aliases, the measured error.

        Raises
        ------
        LayerError
            The store does not have a layer.
        RecipeError
            Another choice was made than for the store.
        """
        if missing := [name for name in asked.layers if name not in self.recipe.taps]:
            raise LayerError(f"{self.name} does not have {listed(missing)}; choose of {', '.join(self.recipe.layers)}")
        recipe = self.recipe.some(asked.layers)
        if recipe.backbone.startswith("export:") and asked.backbone.startswith("export:"):
            asked = replace(asked, backbone=recipe.backbone)  # a program is named by its file, and this is the same one
        same = {name: getattr(recipe, name) for name in _OF_THE_MACHINE}
        if differences := recipe.differences(replace(asked, **same)):
            raise self._otherwise(differences)
        return replace(
            asked,
            threads=recipe.threads,
            aliases={**recipe.aliases, **asked.aliases},
            precision_error=recipe.precision_error,
        )

    def _otherwise(self, differences: Sequence[str]) -> RecipeError:
        return RecipeError(
            f"{self.name} was made otherwise: {'; '.join(differences)}. Leave out what differs, or ",
            Parameter("like", ...),
        )
