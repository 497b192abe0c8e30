"""A network as a graph of operations, traced or exported: its layers, their shapes, and cutting it at the taps.

Operations may be modules, functions or torch's ATen operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from featx.backbones.folding import fold_batch_norms
from featx.backbones.heads import unused_name
from featx.backbones.layers import WEIGHTS, Layers, kind_of, noise, one_image

_KINDS = {
    **dict.fromkeys(("linear", "addmm", "mm"), "linear"),
    **dict.fromkeys(("conv2d", "convolution"), "product"),
    **dict.fromkeys(("dropout", "feature_dropout", "native_dropout"), "dropout"),
    **dict.fromkeys(("max_pool2d", "max_pool2d_with_indices", "avg_pool2d"), "pool"),
}
_JOINS = ("add", "iadd", "mul", "imul", "cat")  # operations that end a residual branch


class Graph(Layers):
    """A copy of a backbone's computation as a graph; it shares no tensor with the backbone.

    Parameters
    ----------
    root : the module that the graph calls
    graph : with one input, the images
    names : {node: name} of the layers, in the order of execution
    ends : {module: the node that computes its output}, as far as known
    size : (h, w) of the images
    prefix : number of tokens before the image's, and whether the first is the class token
    pre_logits : the node that computes the classifier's input according to the network's `forward_head`, if any
    traced_again : nodes that were traced only for `pre_logits`; those that repeat others are dropped
    """

    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        names: Mapping[fx.Node, str],
        ends: Mapping[str, fx.Node],
        size: tuple[int, int],
        prefix: tuple[int, bool] = (0, False),
        pre_logits: fx.Node | None = None,
        traced_again: Collection[fx.Node] = (),
    ) -> None:
        self.root, self.graph, self._size = root, graph, size
        self.prefix_tokens, self.class_token = prefix
        self.constants: set[fx.Node] = set()  # weights, and what is made of them alone: transposed ones
        for node in graph.nodes:
            sources = node.all_input_nodes
            if node.op == "get_attr" or (sources and self.constants.issuperset(sources)):
                self.constants.add(node)
        names = {node: name for node, name in names.items() if node not in traced_again}
        self._pre_logits = self._merged(pre_logits, traced_again) if traced_again else None
        if self._pre_logits and self._pre_logits in traced_again:
            names[self._pre_logits] = unused_name(names.values())
        self.names = {node: names[node] for node in graph.nodes if node in names}
        self._ends = {module: names[node] for module, node in ends.items() if node in names}
        self.nodes: Mapping[str, fx.Node] = {name: node for node, name in self.names.items()}
        self.kinds = {name: self._kind(node) for name, node in self.nodes.items()}

    def _merged(self, pre_logits: fx.Node | None, traced_again: Collection[fx.Node]) -> fx.Node | None:
        """Drop the nodes `traced_again`, except those that compute something new for `pre_logits`.

        Returns the node that computes `pre_logits`, without dropout.
        """
        first: dict[tuple[str, Any, str], fx.Node] = {}
        equal: dict[fx.Node, fx.Node] = {}
        for node in self.graph.nodes:
            if self._kind(node) == "dropout":
                equal[node] = equal[node.all_input_nodes[0]]
            else:
                arguments = fx.map_arg((node.args, node.kwargs), equal.__getitem__)
                equal[node] = first.setdefault((node.op, node.target, repr(arguments)), node)
        pre_logits = equal[pre_logits] if pre_logits else None
        for node in reversed([node for node in self.graph.nodes if node in traced_again]):
            node.replace_all_uses_with(equal[node])
            if node is not pre_logits and not node.users:
                self.graph.erase_node(node)
        (images,) = self.graph.find_nodes(op="placeholder")
        for node in [node for node in self.graph.nodes if node in traced_again]:
            # right behind its inputs, before another node may overwrite them in place
            order = {earlier: number for number, earlier in enumerate(self.graph.nodes)}
            max(node.all_input_nodes or [images], key=order.__getitem__).append(node)
        return pre_logits

    @cached_property
    def _modules(self) -> Collection[str]:
        return {*super()._modules, *self._ends}

    def last(self, name: str) -> str:
        return name if name in self.nodes else self._ends.get(name) or super().last(name)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}

        def note(name: str, output: Any) -> None:
            if shape := one_image(output):
                shapes[name] = shape

        self._run(torch.zeros(2, 3, *self._size), note)
        return shapes

    def _run(self, images: torch.Tensor, note: Callable[[str, Any], None]) -> None:
        """Run the whole graph; `note` is called with each layer's name and output."""
        names = self.names

        class Recorder(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                result = super().run_node(n)
                if n in names:
                    note(names[n], result)
                return result

        with torch.inference_mode():
            Recorder(self.root, graph=self.graph).run(images)

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

    def name_of(self, node: fx.Node) -> str:
        """The name of the largest module whose output a node computes, or else its own."""
        own = self.names[node]
        modules = [module for module in self._modules if self.last(module) == own and module not in self.nodes]
        return min(modules, key=lambda module: (module.count("."), len(module)), default=own)

    def output(self) -> str:
        (output,) = self.graph.find_nodes(op="output")
        return self.names[output.all_input_nodes[0]]

    def penultimate(self) -> str:
        layer = self._before_classifier()
        if self._pre_logits not in self.names:
            return layer
        pre_logits = self.names[self._pre_logits]
        return layer if self._same_numbers(layer, pre_logits) else pre_logits

    def _same_numbers(self, layer: str, other: str) -> bool:
        """Whether two layers give the same numbers, possibly in different shapes such as (c, 1, 1) and (c,)."""
        if layer == other:
            return True
        if layer not in self._shapes or math.prod(self._shapes[layer]) != math.prod(self._shapes.get(other, ())):
            return False
        outputs: dict[str, torch.Tensor] = {}

        def note(name: str, output: Any) -> None:
            if name in (layer, other):
                outputs[name] = output.clone()

        self._run(noise(self._size), note)
        return torch.equal(outputs[layer].flatten(1), outputs[other].flatten(1))

    def _before_classifier(self) -> str:
        weights = [name for name, kind in self.kinds.items() if kind in WEIGHTS]
        last = weights[-1] if weights else ""
        node = self.nodes[self.output()]
        if self.kinds.get(last) == "linear" and self._classifies(self.nodes[last]):
            # the weights of a linear layer may stand before its input: addmm(bias, input, weights)
            node = next(source for source in self.nodes[last].all_input_nodes if source not in self.constants)
        while self._kind(node) == "dropout":
            node = node.all_input_nodes[0]
        return self.names.get(node, last)  # if the linear layer takes the pixels themselves, it is the network

    def _classifies(self, linear: fx.Node) -> bool:
        """Whether a linear layer computes the network's scores.

        It does not at the end of a residual branch, as in the last block of a transformer, nor in a network whose
        `num_classes` is 0.
        """
        before: set[fx.Node] = set()
        todo = [linear]
        while todo:
            sources = set(todo.pop().all_input_nodes) - before
            before |= sources
            todo += sources
        node = linear
        while len(node.users) == 1:
            (node,) = node.users
            if operation(node) in _JOINS and not before.isdisjoint(node.all_input_nodes):
                return False
        return getattr(self.root, "num_classes", None) != 0

    def _kind(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return kind_of(self.root.get_submodule(str(node.target)))
        kind = _KINDS.get(operation(node), "")
        weights = [source for source in node.all_input_nodes if source in self.constants]
        if kind in ("linear", "product"):
            return "linear" if kind == "linear" or any(self._is_1x1(source) for source in weights) else kind
        return kind or ("weights" if weights and node.op == "call_function" else "")

    def _is_1x1(self, weights: fx.Node) -> bool:
        value: Any = self.root
        for part in str(weights.target).split(".") if weights.op == "get_attr" else ():
            value = getattr(value, part)
        return tuple(getattr(value, "shape", ())[2:]) == (1, 1)


def operation(node: fx.Node) -> str:
    """The name of an operation: "conv2d" for torch.nn.functional.conv2d, aten.conv2d.default and x.conv2d_()."""
    name: Any = node.target
    if not isinstance(name, str):
        name = getattr(getattr(name, "overloadpacket", name), "__name__", "")
    return name.strip("_")
