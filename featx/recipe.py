"""Everything that determined a store's numbers, as plain values: written into the file, compared before reuse,
carried by saved models.
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

_OPTIONAL = ("pass_rows", "weights_file_sha256")  # written only where there is something to say
# What a difference changes: of a field in none of these lists the meaning of the rows.
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
_FOLLOWED = ("device", "threads", "pass_rows")  # of these: a run that goes on takes them over, a merge joins them


class Difference(NamedTuple):
    """A field that is different in two recipes.

    kind : what it changes: "meaning" (rows of the two cannot be used together), "rounding" (they can, within a
        tolerance) or "recorded" (nothing)
    """

    field: str
    there: Any
    here: Any
    kind: str


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
    collection : digest of the run's ids, labels and columns, in order; None where no store was made
    pass_rows : the fewest images of a forward pass, where a GPU's memory did not suffice for a whole batch; else None
    weights_file_sha256 : of the bytes of the file that `weights` names; None where it names no file
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
        # plain constructor arguments: what skops can write and read without trusting any state
        return type(self), astuple(self)

    def to_json(self) -> str:
        said = {name: value for name, value in asdict(self).items() if name not in _OPTIONAL or value is not None}
        return json.dumps(said, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        try:
            values = json.loads(text, parse_constant=_refuse_constant)
            _check_depth(values, 16)
            needed = {field.name: values[field.name] for field in fields(cls) if field.name not in _OPTIONAL}
            recipe = cls(**needed, **{name: values.get(name) for name in _OPTIONAL})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StoreError("the recipe is damaged: a field is missing, or is not what it should be") from error
        recipe.check()
        return recipe

    def check(self) -> None:
        """Raise StoreError unless every field is what featx writes: types, ranges and names of the closed grammar.

        A recipe may come from somebody else's file: this is called when one is opened, and before a network is built.
        """
        try:
            check_recipe(self)
        except ValueError as error:
            raise StoreError(f"the recipe is none that featx writes: {error}") from error

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
            raise LayerError(
                f"there are {len(self.taps)} layers; choose one with ",
                Parameter("layer", ...),
                f": {', '.join(self.layers)}",
            )
        if name in self.taps or name in self.aliases:
            return self.aliases.get(name, name)
        short = [layer for layer in self.layers if layer.rpartition(":")[0] == name]
        if len(short) == 1:
            return short[0]
        if short:
            raise LayerError(f"layer {name!r} is stored with several pools; choose one of {', '.join(short)}")
        close = nearest(str(name), [*self.layers, *self.aliases])
        raise LayerError(f"layer {name!r} is not stored{close}. There are: {', '.join(self.layers)}")

    def only(self, name: str | Sequence[str] | None) -> Recipe:
        """The recipe of one layer, or of several in the order given; what serves to compute them, so without `origin`.

        Raises
        ------
        LayerError
            There is no such layer, a name is short for several, or a layer is named twice.
        """
        several = isinstance(name, list | tuple)
        asked: list[str | None] = list(name) if several else [name]  # type: ignore[arg-type, list-item]
        if not asked or not all(isinstance(one, str if several else str | None) for one in asked):
            raise LayerError(f"layer is a name or a list of names; got {name!r}. There are: {', '.join(self.layers)}")
        names = [self.layer(one) for one in asked]
        if again := [one for i, one in enumerate(names) if one in names[:i]]:
            said = listed([str(one) for one, full in zip(asked, names, strict=True) if full == again[0]])
            raise LayerError(f"layer {again[0]!r} is asked for twice, as {said}; name each layer once")
        return replace(self.some(names), origin=None)

    def some(self, layers: Collection[str]) -> Recipe:
        """The recipe of some of its layers, given by their full names."""
        aliases = {alias: meant for alias, meant in self.aliases.items() if meant in layers}
        return replace(self, taps={name: self.taps[name] for name in layers}, aliases=aliases)

    def compare(self, other: Recipe) -> Iterator[Difference]:
        """Every field of which the other says something else; the order of layers is no difference.

        Fields within a field are named apart, "preprocessing.resize"; a value that one of them lacks is None.
        """
        for field in fields(self):
            there, here = getattr(self, field.name), getattr(other, field.name)
            kind = _kind(field.name)
            if isinstance(there, dict):
                for key in dict.fromkeys([*there, *here]):
                    if there.get(key) != here.get(key):
                        yield Difference(f"{field.name}.{key}", there.get(key), here.get(key), kind)
            elif there != here:
                yield Difference(field.name, there, here, kind)

    def differences(self, other: Recipe, where: tuple[str, str] = ("there", "here")) -> list[str]:
        """The fields that must be equal where rows are put into one layer, and differ.

        Parameters
        ----------
        where : what to call this recipe's place and the other's

        Returns
        -------
        list of str
            `["precision: 'float32' there, 'bfloat16' here"]`
        """
        return self._unlike(other, where, "meaning", "rounding")

    def other_meaning(self, other: Recipe, where: tuple[str, str] = ("there", "here")) -> list[str]:
        """The fields that must be equal where rows of both are used together, and differ; as `differences`."""
        return self._unlike(other, where, "meaning")

    def _unlike(self, other: Recipe, where: tuple[str, str], *kinds: str) -> list[str]:
        there, here = where
        found = []
        if self.taps.keys() != other.taps.keys():
            found.append(f"layers: {listed(self.taps, 20)} {there}, {listed(other.taps, 20)} {here}")
        for name, mine, others, kind in self.compare(other):
            if name == "weights_sha256":
                mine, others = mine[:12], others[:12]
            is_missing_layer = name.startswith("taps.") and (mine is None or others is None)
            if kind in kinds and name not in _FOLLOWED and not is_missing_layer:
                found.append(f"{name}: {mine!r} {there}, {others!r} {here}")
        return found

    def joined(self, other: Recipe) -> Recipe:
        """This recipe with what another of the same numbers records: its aliases, its libraries' versions too."""
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
    raise ValueError(f"{name} is no JSON")


def _check_depth(value: object, most: int) -> None:
    if most == 0:
        raise ValueError("nested too deeply")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(inner, most - 1)


def collection_digest(ids: Sequence[str], y: np.ndarray | None, columns: Mapping[str, np.ndarray]) -> str:
    """Blake2b, 16 bytes, of the names, labels and columns of a run's images, in order, as hexadecimal digits."""
    said = [list(ids), None if y is None else y.tolist(), {name: columns[name].tolist() for name in columns}]
    return hashlib.blake2b(json.dumps(said, ensure_ascii=False).encode(), digest_size=16).hexdigest()
