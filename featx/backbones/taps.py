"""Resolves layer names to taps, and lists the layers of a network.

Names are those of the traced graph's nodes ("layer3.0.relu", "flatten") and of the modules around them ("layer3": the
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
    """Resolve the names of layers to taps.

    Parameters
    ----------
    backbone : Backbone
    layers : names of nodes, "penultimate", "stages", each alone or as "node:pool"
    pool : str
        Pool of layers that are named without one.
    trace : Layers, optional
        Layers of the backbone from `trace_of`, if they exist already.

    Returns
    -------
    taps : in the order of `layers`, each once
    aliases : {name in `layers`: the tap's name}, if they differ and the name stands for one tap

    Raises
    ------
    LayerError
        A layer is not in the network (similar names are listed), a pool is unknown, or layers is empty.
    """
    if not isinstance(layers, Sequence):
        raise LayerError(f"layers is a name or a list of names; got {type(layers).__name__}")
    texts = [layers] if isinstance(layers, str) else list(layers)
    if not texts:
        raise LayerError("layers is empty; name at least one, 'penultimate' for example")
    trace = trace_of(backbone) if trace is None else trace
    requests = []  # (text, node, pool)
    for text in texts:
        name, colon, own_pool = str(text).partition(":")
        nodes = trace.resolve(name, backbone.name)
        requests += [(str(text), node, own_pool if colon else pool) for node in nodes]
    shapes = trace.shapes()
    taps: dict[str, Tap] = {}
    aliases: dict[str, str] = {}
    for text, node, node_pool in requests:
        if trace.last(node) not in shapes:
            raise LayerError(
                f"layer {node!r} of {backbone.name} does not give a tensor; choose a layer inside or after it"
            )
        shape = shapes[trace.last(node)]
        tap = Tap.of(node, node_pool, shape, trace.prefix_tokens, backbone.preprocessing.size, trace.class_token)
        taps.setdefault(tap.name, tap)
        if text.partition(":")[0] != "stages" and text not in (tap.name, node):
            aliases[text] = tap.name
        if "~" in node_pool and f"{node}:{node_pool}" != tap.name:  # narrow rows are not projected
            aliases[f"{node}:{node_pool}"] = tap.name
    return list(taps.values()), aliases


class Layer(NamedTuple):
    """A layer that can be tapped.

    Attributes
    ----------
    depth : int
        Depth in the tree of modules, 0 at the top.
    shape : tuple of int or None
        Shape of its output for one image.
    pooled : int or None
        Number of features after "avg" or "max".
    mark : "stage", "penultimate" or ""
    """

    name: str
    depth: int
    shape: tuple[int, ...]
    pooled: int
    mark: str


def describe(backbone: Backbone) -> list[Layer]:
    """The layers of a network as a tree: modules before their contents, operations in the order of execution."""
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
