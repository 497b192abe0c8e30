"""The recipe: everything that determined a store's numbers, as plain values.

It is written into the store, compared before rows are reused, and carried by saved models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np

from featx.errors import LayerError, Parameter, StoreError, listed, nearest
from featx.grammar import check_recipe

_OPTIONAL = ("pass_rows", "weights_file_sha256")  # written only if they have a value
# What a difference in a field changes; fields in neither list change the meaning of the rows.
_RECORDED_ONLY = (
    "weights",
    "weights_file_sha256",
    "aliases",
    "precision_error",
    "versions",
    "origin",
    "collection",
)
_ROUNDING = ("engine", "precision", "batch_size", "dtype", "device", "threads", "pass_rows")
_FOLLOWED = ("device", "threads", "pass_rows")  # rounding, but a continued run adopts them and a merge joins them


class Difference(NamedTuple):
    """A field in which two recipes differ.

    there, here : its values in the first and the second recipe
    kind : what the difference changes: "meaning" (rows of the two cannot be used together), "rounding" (they can,
        within a tolerance) or "recorded" (nothing)
    """

    field: str
    there: Any
    here: Any
    kind: str


@dataclass(frozen=True)
class Recipe:
    """Everything that determined the features.

    Parameters
    ----------
    backbone : canonical name, "torchvision:resnet50"
    weights : a weights name, a file, or None (random, from a recorded seed)
    weights_sha256 : fingerprint of the state dict
    preprocessing : resize, crop, interpolation, mean, std
    decoder : the rule by which files were decoded to RGB
    taps : {name: {"node", "pool", "layout", "shape"}}
    aliases : {name that the user passed: name of the tap}
    engine : how the network ran
    precision : "float32", "bfloat16" or "float16"
    precision_error : largest relative L2 error of a row of the first batch, if precision "auto" chose a fast type
    batch_size : images per forward pass
    dtype : of the stored rows
    device : "cpu" or "cuda"
    threads : of the forward pass
    versions : {library: version}
    origin : the folder that ids are relative to, or None
    collection : digest of the run's ids, labels and columns, in order; None if no store was made
    pass_rows : the smallest number of images in a forward pass, if a GPU's memory was too small for a whole batch;
        else None
    weights_file_sha256 : of the bytes of the file that `weights` names; None if it names no file
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
    collection: str | None = None
    pass_rows: int | None = None
    weights_file_sha256: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # plain constructor arguments, which skops can write and read without trusting any state
        return type(self), astuple(self)

    def to_json(self) -> str:
        values = {name: value for name, value in asdict(self).items() if name not in _OPTIONAL or value is not None}
        return json.dumps(values, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        try:
            values = json.loads(text, parse_constant=_refuse_constant)
            _check_depth(values, 16)
            required = {field.name: values[field.name] for field in fields(cls) if field.name not in _OPTIONAL}
            recipe = cls(**required, **{name: values.get(name) for name in _OPTIONAL})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StoreError("the recipe is damaged: a field is missing or invalid") from error
        recipe.check()
        return recipe

    def check(self) -> None:
        """Raise StoreError unless every field has a value that featx writes; see `featx.grammar`.

        A recipe may come from an untrusted file: it is checked when a file is opened and before a network is built.
        """
        try:
            check_recipe(self)
        except ValueError as error:
            raise StoreError(f"featx does not write such a recipe: {error}") from error

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the taps, "node:pool", in the order of extraction."""
        return tuple(self.taps)

    def layer(self, name: str | None) -> str:
        """The full name of a layer: "layer3" -> "layer3:avg", "penultimate" -> the layer that it stands for.

        Parameters
        ----------
        name : str or None
            None stands for the only layer.

        Raises
        ------
        LayerError
            There is no such layer, or the name is ambiguous.
        """
        if name is None:
            if len(self.taps) == 1:
                return self.layers[0]
            raise LayerError(
                f"there are {len(self.taps)} layers; choose one with ",
                Parameter("layer", ...),
                f": {', '.join(self.layers)}",
            )
        if not isinstance(name, str):
            raise LayerError(f"a layer is a name, such as {self.layers[0]!r}; got {type(name).__name__}")
        if name in self.taps or name in self.aliases:
            return self.aliases.get(name, name)
        matches = [layer for layer in self.layers if layer.rpartition(":")[0] == name]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise LayerError(f"layer {name!r} is stored with several pools; choose one of {', '.join(matches)}")
        close = nearest(str(name), [*self.layers, *self.aliases])
        raise LayerError(f"layer {name!r} is not stored{close}. There are: {', '.join(self.layers)}")

    def only(self, name: str | Sequence[str] | None) -> Recipe:
        """The recipe of one layer, or of several in the given order; without `origin`, which does not affect rows.

        Raises
        ------
        LayerError
            There is no such layer, a name is ambiguous, or a layer is named twice.
        """
        several = isinstance(name, list | tuple)
        requested: list[str | None] = list(name) if several else [name]  # type: ignore[arg-type, list-item]
        if not requested or not all(isinstance(one, str if several else str | None) for one in requested):
            raise LayerError(f"layer is a name or a list of names; got {name!r}. There are: {', '.join(self.layers)}")
        names = [self.layer(one) for one in requested]
        if repeated := [one for i, one in enumerate(names) if one in names[:i]]:
            spellings = listed([str(one) for one, full in zip(requested, names, strict=True) if full == repeated[0]])
            raise LayerError(f"layer {repeated[0]!r} is asked for twice, as {spellings}; name each layer once")
        return replace(self.some(names), origin=None)

    def some(self, layers: Collection[str]) -> Recipe:
        """The recipe of some of its layers, given by their full names."""
        aliases = {alias: layer for alias, layer in self.aliases.items() if layer in layers}
        return replace(self, taps={name: self.taps[name] for name in layers}, aliases=aliases)

    def compare(self, other: Recipe) -> Iterator[Difference]:
        """Every field in which two recipes differ; the order of layers does not count.

        Nested fields are compared one by one, "preprocessing.resize"; a value that one recipe lacks is None.
        """
        for field in fields(self):
            first, second = getattr(self, field.name), getattr(other, field.name)
            kind = _kind(field.name)
            if isinstance(first, dict):
                for key in dict.fromkeys([*first, *second]):
                    if first.get(key) != second.get(key):
                        yield Difference(f"{field.name}.{key}", first.get(key), second.get(key), kind)
            elif first != second:
                yield Difference(field.name, first, second, kind)

    def differences(self, other: Recipe, where: tuple[str, str] = ("there", "here")) -> list[str]:
        """The differences because of which rows of the two recipes cannot be stored in one layer.

        Parameters
        ----------
        where : names for the places of this recipe and the other, for the text

        Returns
        -------
        list of str
            `["precision: 'float32' there, 'bfloat16' here"]`
        """
        return self._described(other, where, "meaning", "rounding")

    def other_meaning(self, other: Recipe, where: tuple[str, str] = ("there", "here")) -> list[str]:
        """The differences because of which rows of the two recipes cannot be used together; see `differences`."""
        return self._described(other, where, "meaning")

    def _described(self, other: Recipe, where: tuple[str, str], *kinds: str) -> list[str]:
        first_place, second_place = where
        lines = []
        if self.taps.keys() != other.taps.keys():
            lines.append(f"layers: {listed(self.taps, 20)} {first_place}, {listed(other.taps, 20)} {second_place}")
        for name, first, second, kind in self.compare(other):
            if name == "weights_sha256":
                first, second = first[:12], second[:12]
            is_missing_layer = name.startswith("taps.") and (first is None or second is None)
            if kind in kinds and name not in _FOLLOWED and not is_missing_layer:
                lines.append(f"{name}: {first!r} {first_place}, {second!r} {second_place}")
        return lines

    def joined(self, other: Recipe) -> Recipe:
        """This recipe with the aliases and library versions of another one that gives the same numbers."""
        versions = {
            name: ", ".join(
                dict.fromkeys(
                    text for recipe in (self, other) for text in recipe.versions.get(name, "").split(", ") if text
                )
            )
            for name in {**self.versions, **other.versions}
        }
        origin = self.origin if self.origin == other.origin else None
        passes = [recipe.pass_rows for recipe in (self, other) if recipe.pass_rows is not None]
        aliases = {**self.aliases, **other.aliases}
        return replace(
            self, aliases=aliases, versions=versions, origin=origin, pass_rows=min(passes) if passes else None
        )


def _kind(field: str) -> str:
    return "recorded" if field in _RECORDED_ONLY else "rounding" if field in _ROUNDING else "meaning"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _check_depth(value: object, max_depth: int) -> None:
    if max_depth == 0:
        raise ValueError("nested too deeply")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(inner, max_depth - 1)


def collection_digest(ids: Sequence[str], y: np.ndarray | None, columns: Mapping[str, np.ndarray]) -> str:
    """BLAKE2b (16 bytes, hexadecimal) of the ids, labels and columns of a run's images, in order."""
    content = [list(ids), None if y is None else y.tolist(), {name: columns[name].tolist() for name in columns}]
    return hashlib.blake2b(json.dumps(content, ensure_ascii=False).encode(), digest_size=16).hexdigest()
