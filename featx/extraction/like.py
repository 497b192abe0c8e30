"""`like=`: the choices of a run, taken from an existing store so that rows are made in the same way."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from featx.backbones import COMPILED, Backbone, Preprocessing, passed_backbone
from featx.errors import (
    BackboneError,
    LayerError,
    Parameter,
    RecipeError,
    StoreError,
    UnavailableBackbone,
    as_path,
    listed,
)
from featx.forward import backbone_of
from featx.grammar import PROGRAM_FILE
from featx.store import FeatureStore, Recipe

_OF_THE_MACHINE = ("device", "engine")  # choices that may differ from the store's


def followed(choices: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The choices of a run, with each "auto" replaced by the recipe's value; of devices, only one that is available.

    Parameters
    ----------
    choices : values of device, precision, engine, batch_size and dtype
    """
    recorded = {
        "device": recipe.device if recipe.device != "cuda" or torch.cuda.is_available() else "auto",
        "precision": recipe.precision,
        "engine": "compiled" if recipe.engine == COMPILED else "eager",
        "batch_size": recipe.batch_size,
        "dtype": recipe.dtype,
    }
    return {name: recorded[name] if choice == "auto" else choice for name, choice in choices.items()}


@dataclass(frozen=True)
class Example:
    """The store, or the recipe, that is passed as `like=`.

    name : name of the store's file
    own : the backbone that the store carries, if any
    """

    recipe: Recipe
    name: str
    own: Backbone | None

    @classmethod
    def of(cls, like: FeatureStore | Recipe | str | os.PathLike) -> Example:
        """Open it; raises StoreError if there is no store."""
        if isinstance(like, Recipe):
            return cls(like, "the recipe", None)
        store = like if isinstance(like, FeatureStore) else FeatureStore(as_path("like", like, StoreError))
        if store.recipe.is_imported:
            raise RecipeError(
                f"{store.path.name} has imported rows ({store.recipe.backbone}): images cannot be extracted like it. "
                "Import other rows with the same name instead"
            )
        return cls(store.recipe, store.path.name, store.backbone)

    def backbone(self, backbone: Any, weights: str | os.PathLike | None) -> Backbone:
        """The store's backbone.

        Parameters
        ----------
        backbone : what the user passed beside `like=`, or None
        weights : "DEFAULT", or the weights that the user passed

        Raises
        ------
        RecipeError
            The user passed another network.
        BackboneError
            The network has other weights; or it is a module or a program, and the user passed none.
        """
        recipe = self.recipe
        if backbone is None and weights == "DEFAULT":
            backbone = self.own
        if isinstance(backbone, str) and not backbone.endswith(PROGRAM_FILE):
            if (name := Backbone(backbone, None).name) != recipe.backbone:
                raise self._otherwise([f"backbone: {recipe.backbone!r} there, {name!r} here"])
        known = passed_backbone(recipe, backbone, ... if weights == "DEFAULT" else weights)
        try:
            resolved = backbone_of(recipe, known)
        except UnavailableBackbone as error:
            raise BackboneError(
                f"{self.name}: {error.reason}. Give the backbone or its weights beside ", Parameter("like", ...)
            ) from error
        return resolved if known is not None else resolved.prepared_by(Preprocessing.from_dict(recipe.preprocessing))

    def layers(self, layers: str | Sequence[str] | None, pool: str) -> list[str]:
        """Full names of the layers that the user passed; all layers of the store if there are none."""
        if layers is None:
            if pool != "avg":
                raise LayerError(
                    Parameter("pool", pool), f" needs layers: without them, layers and pools are those of {self.name}"
                )
            return list(self.recipe.layers)
        return [self._full_name(name, pool) for name in ([layers] if isinstance(layers, str) else layers)]

    def _full_name(self, name: str, pool: str) -> str:
        if pool != "avg" and ":" not in name:
            return name
        try:
            return self.recipe.layer(name)
        except LayerError:
            return name  # the network may know it, as "stages"

    def made_alike(self, recipe: Recipe) -> Recipe:
        """The recipe of a run, with the store's threads, aliases and measured error.

        Raises
        ------
        LayerError
            The store does not have a layer.
        RecipeError
            A choice differs from the store's.
        """
        if missing := [name for name in recipe.layers if name not in self.recipe.taps]:
            raise LayerError(
                f"{self.name} does not have {listed(missing)}; choose among {', '.join(self.recipe.layers)}"
            )
        recorded = self.recipe.some(recipe.layers)
        if recorded.backbone.startswith("export:") and recipe.backbone.startswith("export:"):
            recipe = replace(recipe, backbone=recorded.backbone)  # named by its file; its fingerprint is the same
        of_the_machine = {name: getattr(recorded, name) for name in _OF_THE_MACHINE}
        if differences := recorded.differences(replace(recipe, **of_the_machine)):
            raise self._otherwise(differences)
        return replace(
            recipe,
            threads=recorded.threads,
            aliases={**recorded.aliases, **recipe.aliases},
            precision_error=recorded.precision_error,
        )

    def _otherwise(self, differences: Sequence[str]) -> RecipeError:
        return RecipeError(
            f"{self.name} was made with other settings: {'; '.join(differences)}. Leave out what differs, or ",
            Parameter("like", ...),
        )
