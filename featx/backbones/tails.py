"""The tail of a network: what lies between a layer, its boundary, and the penultimate layer, as a trainable module.

A layer can be a boundary if everything behind it is computed from its output and from weights alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import fx, nn

from featx.backbones.backbone import Backbone
from featx.backbones.graphs import Graph
from featx.backbones.layers import PRODUCTS, Layers, noise
from featx.backbones.pools import Pool, Tap
from featx.backbones.trace import trace_of
from featx.errors import LayerError

INPUT = "input"


class Boundary(NamedTuple):
    """A layer at which a network can be split.

    Attributes
    ----------
    name : str
    shape : tuple of int
        Shape of its output for one image.
    n_parameters : int
        Number of parameters in the tail behind it.
    saved : float
        Share of the network's floating-point operations that come before it, from 0 to 1.
    """

    name: str
    shape: tuple[int, ...]
    n_parameters: int
    saved: float


class Tail(nn.Module):
    """The tail of a network: rows of the boundary ``(b, *shape)`` -> rows of the penultimate layer (b, d).

    It is in eval mode: batch norms keep their statistics, and dropout is off.

    Parameters
    ----------
    backbone : Backbone
    boundary : str
        The name of a layer; "input" for the images, normalised: the whole network is its tail.

    Attributes
    ----------
    boundary : str
    shape : tuple of int
        Shape of a row of the boundary.
    d : int
        Length of a row of the penultimate layer.
    depths : {name of a parameter: its depth}
        0 for the parameters of the first part. A part ends at a layer that could be a boundary too and holds at least
        one convolution or linear layer.

    Raises
    ------
    LayerError
        The network cannot be split at this layer, or nothing behind it can be trained.
    BackboneError
        The network does not run on images of its preprocessing's size.
    """

    def __init__(self, backbone: Backbone, boundary: str) -> None:
        super().__init__()
        trace = _graph(trace_of(backbone), backbone)
        splits = _splits(trace)
        end = trace.nodes[trace.last(trace.penultimate())]
        self.shape: tuple[int, ...]
        if boundary == INPUT:
            name, self.shape = INPUT, (3, *backbone.preprocessing.size)
            (node,) = trace.graph.find_nodes(op="placeholder")
        else:
            (name,) = trace.resolve(boundary, backbone.name)[:1]
            node = trace.nodes[trace.last(name)]
            if node not in splits:
                raise LayerError(_crossed(trace, backbone, name, node, splits))
            self.shape = trace.shapes()[trace.last(name)]
        self.boundary = name
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {node: graph.placeholder("rows")}
        behind = _before(end, trace, until=node)
        for each in trace.graph.nodes:
            if each in behind:
                copies[each] = graph.node_copy(each, copies.__getitem__)
        graph.output(copies[end])
        self.network = fx.GraphModule(trace.root, graph).eval().requires_grad_(True)
        size = backbone.preprocessing.size
        last = trace.last(trace.penultimate())
        tap = Tap.of(last, "avg", trace.shapes()[last], trace.prefix_tokens, size, trace.class_token)
        self.pool = Pool(tap)
        (self.d,) = tap.shape
        self.depths = _depths(trace, self.network, [each for each in trace.graph.nodes if each in behind], splits)
        if not self.depths:
            raise LayerError(
                f"there is nothing to train between layer {name!r} of {backbone.name} and its penultimate layer; "
                f"choose an earlier one{_examples(trace, splits)}"
            )
        self._check(trace, backbone, node, end)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of the boundary ``(b, *shape)`` -> rows of the penultimate layer (b, d)."""
        return self.pool(self.network(rows))

    def _check(self, trace: Graph, backbone: Backbone, node: fx.Node, end: fx.Node) -> None:
        """Raise LayerError unless front and tail together compute what the network computes.

        They differ if an operation before the boundary changes a later layer's input in place.
        """
        kept: dict[fx.Node, torch.Tensor] = {}

        class Recorder(fx.Interpreter):
            def run_node(self, n: fx.Node) -> object:
                result = super().run_node(n)
                if n in (node, end):
                    kept[n] = result.clone()
                return result

        with torch.inference_mode():
            Recorder(trace.root, graph=trace.graph).run(noise(backbone.preprocessing.size))
            got, expected = self(kept[node]), self.pool(kept[end])
        if not torch.allclose(got, expected, rtol=1e-4, atol=1e-5, equal_nan=True):
            raise LayerError(f"{backbone.name} cannot be split at layer {self.boundary!r}: its output is changed later")


def boundaries(backbone: Backbone) -> list[Boundary]:
    """The layers at which a network can be split, one for each part, in the order of execution.

    Each is named by its largest module. See `Tail`.

    Raises
    ------
    LayerError
        The network is not a graph of operations.
    """
    trace = _graph(trace_of(backbone), backbone)
    splits = _splits(trace)
    flops = _flops(trace, backbone)
    total = max(flops.values())
    end = trace.nodes[trace.last(trace.penultimate())]
    shapes, rows = trace.shapes(), []
    for node in _ends_of_parts(trace, splits):
        behind = _before(end, trace, until=node)
        n_parameters = sum(math.prod(shape) for shape in _parameters(trace, behind).values())
        if n_parameters:
            name = trace.name_of(node)
            rows.append(Boundary(name, shapes[trace.last(name)], n_parameters, flops[node] / max(total, 1)))
    return rows


def _graph(trace: Layers, backbone: Backbone) -> Graph:
    if not isinstance(trace, Graph):
        raise LayerError(
            f"{backbone.name} cannot be fine-tuned: its forward depends on its input, so it is no graph of operations"
        )
    return trace


def _splits(trace: Graph) -> set[fx.Node]:
    """The nodes with a tensor per image through which all paths from the images to the penultimate layer lead."""
    shapes = trace.shapes()
    end = trace.nodes[trace.last(trace.penultimate())]
    splits, live = set(), set()
    # backwards through the graph; `live` holds the values that later nodes need from the current node or before it
    for node in reversed(trace.graph.nodes):
        if node is end:
            live = {node}
        if node not in live:
            continue
        if live == {node} and node in trace.names and trace.names[node] in shapes:
            splits.add(node)
        live.remove(node)
        live |= {source for source in node.all_input_nodes if source not in trace.constants}
    return splits


def _before(end: fx.Node, trace: Graph, until: fx.Node) -> set[fx.Node]:
    """The nodes that `end` is computed from, itself included, as far back as `until`, which is not included."""
    found, todo = set(), [end]
    while todo:
        node = todo.pop()
        if node is not until and node not in found:
            found.add(node)
            todo += node.all_input_nodes
    return found


def _parts(trace: Graph, nodes: list[fx.Node], splits: set[fx.Node]) -> list[list[fx.Node]]:
    """Consecutive nodes in parts that each hold a convolution or a linear layer and end where the network can be split.

    The end is the last possible one: a batch norm and an activation belong to the convolution before them.
    """
    parts: list[list[fx.Node]] = [[]]
    behind: list[fx.Node] = []  # the nodes since the last split of the current part
    has_product = is_closed = False
    for node in nodes:
        if trace.kinds.get(trace.names.get(node, ""), "") in PRODUCTS:
            if is_closed:
                parts.append([])
                is_closed = False
            has_product = True
        behind.append(node)
        if node in splits or not is_closed:
            parts[-1] += behind
            behind = []
        is_closed |= has_product and node in splits
    parts[-1] += behind
    return parts


def _ends_of_parts(trace: Graph, splits: set[fx.Node]) -> list[fx.Node]:
    body = [node for node in trace.graph.nodes if node.op != "placeholder"]
    return [split[-1] for part in _parts(trace, body, splits) if (split := [node for node in part if node in splits])]


def _parameters(trace: Graph, nodes: set[fx.Node]) -> dict[str, torch.Size]:
    """{name: shape} of the parameters that nodes use."""
    found: dict[str, torch.Size] = {}
    for node in nodes:
        if node.op == "call_module":
            module = trace.root.get_submodule(str(node.target))
            found |= {f"{node.target}.{name}": value.shape for name, value in module.named_parameters()}
        elif node.op == "get_attr":
            value: object = trace.root
            for part in str(node.target).split("."):
                value = getattr(value, part)
            if isinstance(value, nn.Parameter):
                found[str(node.target)] = value.shape
    return found


def _depths(trace: Graph, network: nn.Module, nodes: list[fx.Node], splits: set[fx.Node]) -> dict[str, int]:
    depths: dict[str, int] = {}
    for depth, part in enumerate(_parts(trace, nodes, splits)):
        for name in _parameters(trace, set(part)):
            depths.setdefault(name, depth)
    return {name: depths[name] for name, _ in network.named_parameters()}


def _flops(trace: Graph, backbone: Backbone) -> dict[fx.Node, int]:
    """{node: floating-point operations of the network up to it}"""
    from torch.utils.flop_counter import FlopCounterMode  # only lists of boundaries need it

    counts: dict[fx.Node, int] = {}
    counter = FlopCounterMode(display=False)

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            counts[n] = counter.get_total_flops()
            return result

    with torch.no_grad(), counter:
        Recorder(trace.root, graph=trace.graph).run(torch.zeros(1, 3, *backbone.preprocessing.size))
    return counts


def _crossed(trace: Graph, backbone: Backbone, name: str, node: fx.Node, splits: set[fx.Node]) -> str:
    order = {each: number for number, each in enumerate(trace.graph.nodes)}
    end = trace.nodes[trace.last(trace.penultimate())]
    if order[node] > order[end]:
        return f"layer {name!r} of {backbone.name} lies behind its penultimate layer; choose an earlier one"
    ends = _ends_of_parts(trace, splits)
    before = [each for each in ends if order[each] < order[node]][-1:]
    after = [each for each in ends if order[each] > order[node]][:1]
    near = " and ".join(repr(trace.name_of(each)) for each in before + after)
    return (
        f"{backbone.name} cannot be split at layer {name!r}: a connection leads past it, or it gives more than one "
        f"tensor. The nearest that work are {near}"
    )


def _examples(trace: Graph, splits: set[fx.Node]) -> str:
    ends = [trace.name_of(node) for node in _ends_of_parts(trace, splits)][-4:-1]
    return f", {' or '.join(map(repr, ends))} for example" if ends else ""
