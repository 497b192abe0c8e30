"""The recipe: everything that determined a store's numbers, as plain values.

It is written into the store, compared before rows are reused, and carried by saved models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from featx import grammar
from featx.errors import BackboneError, Call, LayerError, Parameter, Part, StoreError, listed, nearest

Kind = Literal["meaning", "rounding", "recorded"]


class Difference(NamedTuple):
    """A field in which two recipes differ.

    Attributes
    ----------
    name : str
        The field, or a part of it: "preprocessing.resize".
    first, second : object
        Its values in the first and the second recipe; None if a recipe lacks it.
    kind : "meaning", "rounding" or "recorded"
        What the difference changes; see `FieldRule`.
    """

    field: str
    first: Any
    second: Any
    kind: Kind


@dataclass(frozen=True)
class FieldRule:
    """What featx does with a field of the recipe.

    Parameters
    ----------
    kind : "meaning", "rounding" or "recorded"
        What a difference changes. "meaning": rows of the two recipes cannot be used together; "rounding": they can,
        within a tolerance; "recorded": nothing.
    check : callable
        Refuses values that featx does not write, see `featx.grammar`.
    is_optional : bool
        Whether a file without the field means its default, which is therefore not written.
    is_followed : bool
        Whether a difference is accepted by a continued run, which adopts the value, and by a merge, which joins the
        values.
    join : callable(first, second)
        Returns the value for a store with rows of two recipes; by default the first one's.
    show : callable(value)
        Returns what messages show of a value.
    none_text : str
        What None stands for, in the words of a message.
    """

    kind: Kind
    check: grammar.Check
    is_optional: bool = False
    is_followed: bool = False
    join: Callable[[Any, Any], Any] = lambda first, second: first
    show: Callable[[Any], Any] = lambda value: value
    none_text: str = ""


def rule_of(name: str) -> FieldRule:
    """The rule of a field, given its name or that of a part of it: "preprocessing.resize"."""
    return _RULES[name.partition(".")[0]]


def _rule(kind: Kind, check: grammar.Check, **options: Any) -> dict[str, FieldRule]:
    """The metadata of a field."""
    return {"rule": FieldRule(kind, check, **options)}


def _joined_versions(first: dict[str, str], second: dict[str, str]) -> dict[str, str]:
    """{"torch": "2.8"} and {"torch": "2.9"} -> {"torch": "2.8, 2.9"}"""
    texts = {name: [one.get(name, "") for one in (first, second)] for name in {**first, **second}}
    return {
        name: ", ".join(dict.fromkeys(version for text in both for version in text.split(", ") if version))
        for name, both in texts.items()
    }


def _smaller(first: int | None, second: int | None) -> int | None:
    return min((value for value in (first, second) if value is not None), default=None)


@dataclass(frozen=True)
class Recipe:
    """Everything that determined the features.

    Of imported rows, which featx did not compute, only `backbone`, `weights_sha256`, `taps`, `dtype`, `versions` and
    `collection` are known; the others have the values of `grammar.not_computed`.

    Parameters
    ----------
    backbone : canonical name, "torchvision:resnet50"; "imported:NAME" of imported rows
    weights : a weights name, a file, or None (random, from a recorded seed)
    weights_sha256 : fingerprint of the state dict; of imported rows see `imported`
    preprocessing : resize, crop, interpolation, mean, std
    decoder : the rule by which files were decoded to RGB
    taps : {name: {"node", "pool", "layout", "shape"}}
    aliases : {name that the user passed: name of the tap}
    engine : how the network ran
    precision : "float32", "bfloat16" or "float16"
    precision_error : largest relative L2 error of a row of the first batch, if precision "auto" chose a fast type
    batch_size : images per forward pass
    dtype : number type of the stored rows
    device : "cpu" or "cuda"
    threads : number of threads of the forward pass
    versions : {library: version}
    origin : the folder, archive or URL that ids are relative to, or None
    collection : digest of the run's ids, labels and columns, in order; None if no store was made
    pass_rows : the smallest number of images in a forward pass, if a GPU's memory was too small for a whole batch;
        else None
    weights_file_sha256 : of the bytes of the file that `weights` names; None if it names no file
    views : the views of each image, along the first axis of a row's shape; None if rows are of the image alone
    """

    backbone: str = field(metadata=_rule("meaning", grammar.check_backbone))
    weights: str | None = field(metadata=_rule("recorded", grammar.check_weights))
    weights_sha256: str = field(metadata=_rule("meaning", grammar.hexadecimal(64), show=lambda digest: digest[:12]))
    preprocessing: dict[str, Any] = field(metadata=_rule("meaning", grammar.check_preprocessing_field))
    decoder: str = field(metadata=_rule("meaning", grammar.line(200)))
    taps: dict[str, dict[str, Any]] = field(metadata=_rule("meaning", grammar.check_taps))
    aliases: dict[str, str] = field(metadata=_rule("recorded", grammar.check_aliases, join=lambda a, b: {**a, **b}))
    engine: str = field(metadata=_rule("rounding", grammar.check_engine))
    precision: str = field(metadata=_rule("rounding", grammar.one_of(*grammar.NUMBER_TYPES)))
    precision_error: float | None = field(metadata=_rule("recorded", grammar.check_precision_error))
    batch_size: int = field(metadata=_rule("rounding", grammar.check_batch_size))
    dtype: str = field(metadata=_rule("rounding", grammar.one_of("float32", "float16")))
    device: str = field(metadata=_rule("rounding", grammar.one_of("cpu", "cuda"), is_followed=True))
    threads: int = field(metadata=_rule("rounding", grammar.whole(1, grammar.MOST_THREADS), is_followed=True))
    versions: dict[str, str] = field(metadata=_rule("recorded", grammar.lines(10_000), join=_joined_versions))
    origin: str | None = field(
        metadata=_rule("recorded", grammar.check_origin, join=lambda a, b: a if a == b else None)
    )
    collection: str | None = field(default=None, metadata=_rule("recorded", grammar.check_collection))
    pass_rows: int | None = field(
        default=None,
        metadata=_rule(
            "rounding",
            grammar.check_pass_rows,
            is_optional=True,
            is_followed=True,
            join=_smaller,
            none_text="whole batches in one pass",
        ),
    )
    weights_file_sha256: str | None = field(
        default=None, metadata=_rule("recorded", grammar.check_weights_file_sha256, is_optional=True)
    )
    views: list[str] | None = field(default=None, metadata=_rule("meaning", grammar.check_views, is_optional=True))

    def __reduce__(self) -> tuple[Any, ...]:
        # plain constructor arguments, which skops can write and read without trusting any state
        return type(self), astuple(self)

    def to_json(self) -> str:
        """The recipe as one line of JSON; `from_json` reads it."""
        values = asdict(self)
        omitted = [name for name, default in _defaults(self.backbone).items() if values[name] == default]
        return json.dumps({name: value for name, value in values.items() if name not in omitted}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Parse the text of `to_json`; raises StoreError if it is damaged."""
        try:
            values = json.loads(text, parse_constant=_refuse_constant)
            _check_depth(values, 16)
            defaults = _defaults(values["backbone"])
            required = {name: values[name] for name in _RULES if name not in defaults}
            recipe = cls(**required, **{name: values.get(name, default) for name, default in defaults.items()})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StoreError("the recipe is damaged: a field is missing or invalid") from error
        recipe.check()
        return recipe

    def check(self) -> None:
        """Raise StoreError unless every field has a value that featx writes; see `featx.grammar`.

        A recipe may come from an untrusted file: it is checked when a file is opened and before a network is built.
        """
        not_computed = grammar.not_computed() if self.is_imported else ()
        try:
            for name, rule in _RULES.items():
                check = grammar.check_not_computed if name in not_computed else rule.check
                check(name, getattr(self, name), self)
        except ValueError as error:
            raise StoreError(f"featx does not write such a recipe: {error}") from error

    @classmethod
    def imported(
        cls, backbone: str, fingerprint: str, widths: Mapping[str, int], dtype: str, versions: dict[str, str]
    ) -> Recipe:
        """The recipe of imported rows.

        Parameters
        ----------
        backbone : "imported:NAME", of what made the rows
        fingerprint : 64 hexadecimal digits; rows with equal names and fingerprints can be used together
        widths : {layer: number of columns}
        dtype, versions : as in the class
        """
        taps = {
            f"{layer}:none": {"node": layer, "pool": "none", "layout": "bd", "shape": [width]}
            for layer, width in widths.items()
        }
        return cls(
            backbone=backbone,
            weights_sha256=fingerprint,
            taps=taps,
            aliases={},
            dtype=dtype,
            versions=versions,
            **grammar.not_computed(),
        )

    @property
    def is_imported(self) -> bool:
        """Whether the rows were imported: featx did not compute them, and knows no network that does."""
        return grammar.is_imported(self.backbone)

    def require_network(self) -> None:
        """Raise BackboneError if the rows were imported."""
        if self.is_imported:
            name = self.backbone.partition(":")[2]
            how: tuple[Part, ...] = (
                "; or make a store of them: ",
                Call("FeatureStore.from_arrays", "path", "layers", Parameter("name", name)),
                " and ",
                Call("model.predict", "store.X"),
            )
            raise BackboneError(
                f"featx cannot compute these features of new inputs, since they were imported ({self.backbone}). "
                "Compute them with the tool that made these, and pass the rows, (n, d), as X in Python",
                *(() if self.backbone == grammar.UNNAMED else how),
            )

    def like_hint(self, text: str, store: str) -> tuple[Part, ...]:
        """The end of a message: `text` and `like` with a store of this recipe; empty if its rows were imported."""
        return () if self.is_imported else (text, Parameter("like", store))

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the taps, "node:pool", in the order of extraction."""
        return tuple(self.taps)

    @property
    def n_views(self) -> int:
        """Number of views of an image: 1 if there is no axis of views."""
        return 1 if self.views is None else len(self.views)

    @property
    def view_taps(self) -> dict[str, dict[str, Any]]:
        """The taps with the shape of one view."""
        if self.views is None:
            return self.taps
        return {name: {**tap, "shape": tap["shape"][1:]} for name, tap in self.taps.items()}

    def of_view(self, view: str) -> Recipe:
        """The recipe of one view, with an axis of length 1; or, for "mean", of all of them: this recipe.

        Raises
        ------
        LayerError
            There is no such view. Rows of a store without views are of the view "center".
        """
        stored = self.views or ["center"]
        if view == "mean" or (self.views is None and view in stored):
            return self
        if view not in stored:
            raise LayerError(f"view {view!r} is not stored{nearest(str(view), stored)}. There are: {', '.join(stored)}")
        return replace(self, views=[view], taps=with_views(self.view_taps, [view]))

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

    @property
    def deepest(self) -> str:
        """The full name of the penultimate layer; without one, of the last layer."""
        return self.aliases.get("penultimate", self.layers[-1])

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

        Nested fields are compared one by one, "preprocessing.resize"; a value that one recipe lacks is None. Shapes of
        taps are compared without the axis of views.
        """
        for name, rule in _RULES.items():
            first, second = (getattr(one, "view_taps" if name == "taps" else name) for one in (self, other))
            if isinstance(first, dict):
                for key in dict.fromkeys([*first, *second]):
                    if first.get(key) != second.get(key):
                        yield Difference(f"{name}.{key}", first.get(key), second.get(key), rule.kind)
            elif first != second:
                yield Difference(name, first, second, rule.kind)

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
            rule = rule_of(name)
            is_missing_layer = name.startswith("taps.") and (first is None or second is None)
            if kind in kinds and not rule.is_followed and not is_missing_layer:
                lines.append(f"{name}: {rule.show(first)!r} {first_place}, {rule.show(second)!r} {second_place}")
        if self.is_imported and other.is_imported and self.weights_sha256 != other.weights_sha256:
            lines.append("imported rows go together if they were imported with the same name")
        return lines

    def joined(self, other: Recipe) -> Recipe:
        """The recipe of a store with rows of this recipe and of another one that gives the same numbers."""
        return replace(
            self,
            **{name: rule.join(getattr(self, name), getattr(other, name)) for name, rule in _RULES.items()},
        )


_RULES: dict[str, FieldRule] = {one.name: one.metadata["rule"] for one in fields(Recipe)}
_OPTIONAL = {one.name: one.default for one in fields(Recipe) if _RULES[one.name].is_optional}


def _defaults(backbone: object) -> dict[str, Any]:
    """The fields that a file need not have, with the values that this means."""
    return _OPTIONAL | (grammar.not_computed() if grammar.is_imported(backbone) else {})


def with_views(taps: Mapping[str, dict[str, Any]], views: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """Taps with the axis of views before the shape of one view."""
    if views is None:
        return dict(taps)
    return {name: {**tap, "shape": [len(views), *tap["shape"]]} for name, tap in taps.items()}


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
