"""Layer names in, taps out; and what can be tapped.

Names are those of the traced graph's nodes ("layer3.0.relu", "flatten") and of the modules above them ("layer3": the
last node inside). `"stages"` stands for the network's main blocks, `"penultimate"` for the classifier's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from featx.backbones.backbone import Backbone
from featx.backbones.layers import Layers
from featx.backbones.pools import Tap
from featx.backbones.trace import trace_of
from featx.errors import LayerError


def resolve_taps(
    backbone: Backbone, layers: str | Sequence[str], pool: str, trace: Layers | None = None
) -> tuple[list[Tap], dict[str, str]]:
    """Turn what a user asked for into taps.

    Parameters
    ----------
    backbone : Backbone
    layers : node names, "penultimate", "stages", each alone or as "node:pool"
    pool : for those that name none
    trace : of the backbone, if there is one

    Returns
    -------
    taps : in the order asked for, each once
    aliases : {what was asked for: the tap's name}, where they differ and one tap is meant

    Raises
    ------
    LayerError
        A layer is not in the network (the nearest are named), a pool is not known, or layers is empty.
    """
    if not isinstance(layers, Sequence):
        raise LayerError(f"layers is a name or a list of names; got {type(layers).__name__}")
    wanted = [layers] if isinstance(layers, str) else list(layers)
    if not wanted:
        raise LayerError("layers is empty; name at least one, 'penultimate' for example")
    trace = trace_of(backbone) if trace is None else trace
    asked = []  # (what was asked for, node, pool)
    for text in wanted:
        name, colon, own = str(text).partition(":")
        asked += [(str(text), node, own if colon else pool) for node in trace.resolve(name, backbone.name)]
    shapes = trace.shapes()
    taps: dict[str, Tap] = {}
    aliases: dict[str, str] = {}
    for text, node, own in asked:
        if trace.last(node) not in shapes:
            raise LayerError(f"layer {node!r} of {backbone.name} gives no tensor; choose one inside or behind it")
        shape = shapes[trace.last(node)]
        tap = Tap.of(node, own, shape, trace.prefix_tokens, backbone.preprocessing.size, trace.class_token)
        taps.setdefault(tap.name, tap)
        if text.partition(":")[0] != "stages" and text not in (tap.name, node):
            aliases[text] = tap.name
        if "~" in own and f"{node}:{own}" != tap.name:  # what was narrow enough
            aliases[f"{node}:{own}"] = tap.name
    return list(taps.values()), aliases


class Layer(NamedTuple):
    """A layer that can be tapped.

    depth : of the module or operation in the tree of modules, 0 at the top
    shape : of its output for one image
    pooled : features after "avg" or "max"
    mark : "stage", "penultimate" or ""
    """

    name: str
    depth: int
    shape: tuple[int, ...]
    pooled: int
    mark: str


def describe(backbone: Backbone) -> list[Layer]:
    """What can be tapped, as a tree: modules, each above what is inside, and operations in the order of execution."""
    trace = trace_of(backbone)
    shapes = trace.shapes()
    marks = dict.fromkeys(trace.stages(), "stage")
    last = trace.penultimate()
    marks[last] = f"{marks[last]}, penultimate" if last in marks else "penultimate"
    names: dict[str, None] = {}
    for node in trace.nodes:
        parts = node.split(".")
        names |= dict.fromkeys(".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
    return [
        Layer(name, name.count("."), shape, _width(name, shape, backbone.preprocessing.size), marks.get(name, ""))
        for name in names
        if (shape := shapes.get(trace.last(name))) is not None
    ]


def _width(name: str, shape: tuple[int, ...], size: tuple[int, int]) -> int:
    return Tap.of(name, "avg", shape, size=size).shape[0]
