"""A network as a graph of operations, traced from a module or exported by torch: its layers, their shapes, the cut.

Says what the operations are, whether they are modules, functions or torch's ATen operators.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from featx.backbones.folding import fold_batch_norms
from featx.backbones.layers import WEIGHTS, Layers, kind_of, one_image

_KINDS = {
    **dict.fromkeys(("linear", "addmm", "mm"), "linear"),
    **dict.fromkeys(("conv2d", "convolution"), "product"),
    **dict.fromkeys(("dropout", "feature_dropout", "native_dropout"), "dropout"),
    **dict.fromkeys(("max_pool2d", "max_pool2d_with_indices", "avg_pool2d"), "pool"),
}


class Graph(Layers):
    """A backbone's computation as a graph of its own, sharing no tensor with the backbone.

    Parameters
    ----------
    root : the module the graph calls into
    graph : with one input, the images
    names : {node: name} of those that are layers, in the order of execution
    ends : {module: the node that computes its output}, where known
    size : (h, w) of the images
    """

    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        names: Mapping[fx.Node, str],
        ends: Mapping[str, fx.Node],
        size: tuple[int, int],
        prefix_tokens: int,
    ) -> None:
        self.root, self.graph, self._size = root, graph, size
        self.prefix_tokens, self._names = prefix_tokens, names
        self._ends = {module: names[node] for module, node in ends.items() if node in names}
        self._constants: set[fx.Node] = set()  # weights, and what is made of them alone: transposed ones
        for node in graph.nodes:
            sources = node.all_input_nodes
            if node.op == "get_attr" or (sources and self._constants.issuperset(sources)):
                self._constants.add(node)
        self.nodes: Mapping[str, fx.Node] = {name: node for node, name in names.items()}
        self.kinds = {name: self._kind(node) for name, node in self.nodes.items()}

    @cached_property
    def _modules(self) -> Collection[str]:
        return {*super()._modules, *self._ends}

    def last(self, name: str) -> str:
        return name if name in self.nodes else self._ends.get(name) or super().last(name)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        seen: dict[fx.Node, tuple[int, ...]] = {}

        class Recorder(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                result = super().run_node(n)
                if shape := one_image(result):
                    seen[n] = shape
                return result

        with torch.inference_mode():
            Recorder(self.root, graph=self.graph).run(torch.zeros(2, 3, *self._size))
        return {name: seen[node] for name, node in self.nodes.items() if node in seen}

    def tapped(self, layers: Sequence[str], pools: Sequence[nn.Module]) -> nn.Module:
        rows = []
        for number, (layer, pool) in enumerate(zip(layers, pools, strict=True)):
            node = self.nodes[self.last(layer)]
            self.root.add_module(f"featx_pool_{number}", pool)
            # right behind the layer, before the next one may overwrite its output in place
            with self.graph.inserting_after(node):
                rows.append(self.graph.call_module(f"featx_pool_{number}", (node,)))
        (output,) = self.graph.find_nodes(op="output")
        output.args = (tuple(rows),)
        network = fx.GraphModule(self.root, self.graph)
        network.graph.eliminate_dead_code()
        network.delete_all_unused_submodules()
        fold_batch_norms(network)
        return network

    def output(self) -> str:
        (output,) = self.graph.find_nodes(op="output")
        return self._names[output.all_input_nodes[0]]

    def penultimate(self) -> str:
        weights = [name for name, kind in self.kinds.items() if kind in WEIGHTS]
        last = weights[-1] if weights else ""
        node = self.nodes[self.output()]
        if self.kinds.get(last) == "linear":
            # the weights of a linear layer may stand before its input: addmm(bias, input, weights)
            node = next(source for source in self.nodes[last].all_input_nodes if source not in self._constants)
        while self._kind(node) == "dropout":
            node = node.all_input_nodes[0]
        return self._names.get(node, last)  # a linear layer of the pixels themselves is the network

    def _kind(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return kind_of(self.root.get_submodule(str(node.target)))
        kind = _KINDS.get(operation(node), "")
        weights = [source for source in node.all_input_nodes if source in self._constants]
        if kind in ("linear", "product"):
            return "linear" if kind == "linear" or any(self._is_1x1(source) for source in weights) else kind
        return kind or ("weights" if weights and node.op == "call_function" else "")

    def _is_1x1(self, weights: fx.Node) -> bool:
        found: Any = self.root
        for part in str(weights.target).split(".") if weights.op == "get_attr" else ():
            found = getattr(found, part)
        return tuple(getattr(found, "shape", ())[2:]) == (1, 1)


def operation(node: fx.Node) -> str:
    """ "conv2d" of torch.nn.functional.conv2d, aten.conv2d.default and x.conv2d_() alike."""
    name: Any = node.target
    if not isinstance(name, str):
        name = getattr(getattr(name, "overloadpacket", name), "__name__", "")
    return name.strip("_")
