"""Everything that determined a store's numbers, as plain values: written into the file, compared before reuse,
carried by saved models.
"""

from __future__ import annotations

import json
from dataclasses import asdict, astuple, dataclass, fields, replace
from typing import Any

from featx.errors import LayerError, StoreError, listed, nearest

_RECORDED_ONLY = ("weights", "aliases", "precision_error", "device", "threads", "versions", "origin")


@dataclass(frozen=True)
class Recipe:
    """What made the features.

    Parameters
    ----------
    backbone : canonical name, "torchvision:resnet50"
    weights : a weights name, a file, or None (random, from a recorded seed)
    weights_sha256 : fingerprint of the state dict
    preprocessing : resize, crop, interpolation, mean, std
    decoder : the rule by which files became RGB pictures
    taps : {name: {"node", "pool", "layout", "shape"}}
    aliases : {name that a user asked for: name of the tap}
    engine : how the network ran
    precision : "float32", "bfloat16" or "float16"
    precision_error : largest relative L2 error of a row of the first batch, where precision "auto" chose a fast type
    batch_size : images a forward pass
    dtype : of the stored rows
    device : "cpu" or "cuda"
    threads : of the forward pass
    versions : {library: version}
    origin : the folder that ids are relative to, or None
    """

    backbone: str
    weights: str | None
    weights_sha256: str
    preprocessing: dict[str, Any]
    decoder: str
    taps: dict[str, dict[str, Any]]
    aliases: dict[str, str]
    engine: str
    precision: str
    precision_error: float | None
    batch_size: int
    dtype: str
    device: str
    threads: int
    versions: dict[str, str]
    origin: str | None

    def __reduce__(self) -> tuple[Any, ...]:
        # plain constructor arguments: what skops can write and read without trusting any state
        return type(self), astuple(self)

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        try:
            values = json.loads(text)
            return cls(**{field.name: values[field.name] for field in fields(cls)})
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError("the recipe is damaged: it lacks a field or is not JSON") from error

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the taps, "node:pool", in the order of extraction."""
        return tuple(self.taps)

    def layer(self, name: str | None) -> str:
        """The full name of a layer: "layer3" -> "layer3:avg", "penultimate" -> what it stands for here.

        Parameters
        ----------
        name : str or None
            None takes the only layer there is.

        Raises
        ------
        LayerError
            There is no such layer, or the name is short for several.
        """
        if name is None:
            if len(self.taps) == 1:
                return self.layers[0]
            raise LayerError(f"there are {len(self.taps)} layers; choose one with layer=: {', '.join(self.layers)}")
        if name in self.taps or name in self.aliases:
            return self.aliases.get(name, name)
        short = [layer for layer in self.layers if layer.rpartition(":")[0] == name]
        if len(short) == 1:
            return short[0]
        if short:
            raise LayerError(f"layer {name!r} is stored with several pools; choose one of {', '.join(short)}")
        close = nearest(str(name), [*self.layers, *self.aliases])
        raise LayerError(f"layer {name!r} is not stored{close}. There are: {', '.join(self.layers)}")

    def only(self, name: str | None) -> Recipe:
        """The recipe of one layer; what serves to compute it, so without `origin`."""
        layer = self.layer(name)
        aliases = {alias: meant for alias, meant in self.aliases.items() if meant == layer}
        return replace(self, taps={layer: self.taps[layer]}, aliases=aliases, origin=None)

    def differences(self, other: Recipe) -> list[str]:
        """The fields that decide the numbers and differ: `["precision: 'float32' there, 'bfloat16' here"]`."""
        found = []
        for field in fields(self):
            there, here = getattr(self, field.name), getattr(other, field.name)
            if field.name == "taps":  # the order of layers decides nothing
                if there.keys() != here.keys():
                    found.append(f"layers: {listed(there, 20)} there, {listed(here, 20)} here")
                elif there != here:
                    found.append("layers: of the same names, but other shapes")
            elif field.name not in _RECORDED_ONLY and there != here:
                found.append(f"{field.name}: {there!r} there, {here!r} here")
        return found
