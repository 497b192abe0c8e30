"""A backbone in, its computation as a graph out; and what its parts are called.

Nodes have the names that torchvision's `create_feature_extractor` gives them; a module's name stands for its last node.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from featx.backbones.backbone import Backbone
from featx.backbones.folding import fold_batch_norms
from featx.errors import BackboneError, LayerError, nearest


def trace_of(backbone: Backbone) -> Trace:
    return Trace.of(backbone)


@dataclass(frozen=True)
class Trace:
    """A backbone's computation as a graph of its own, sharing no tensor with the backbone.

    root : the module the graph calls into
    nodes : {name: node} in the order of execution, without inputs and output
    """

    root: nn.Module
    graph: fx.Graph
    nodes: dict[str, fx.Node]

    @classmethod
    def of(cls, backbone: Backbone) -> Trace:
        root = copy.deepcopy(backbone.module)
        tracer = NodePathTracer(**_tracer_options(backbone))
        try:
            graph = tracer.trace(root)
        except Exception as error:  # whatever the network's own code raises on symbolic values
            raise BackboneError(
                f"{backbone.name} cannot be traced: its forward depends on the values of its input ({error})"
            ) from error
        named = {name: node for node, name in tracer.node_to_qualname.items()}
        return cls(root, graph, {k: v for k, v in named.items() if v.op not in ("placeholder", "output")})

    def resolve(self, name: str, network: str) -> list[str]:
        """The layers that a name stands for; raises LayerError if there is none."""
        if name in ("penultimate", "stages"):
            return self.stages() if name == "stages" else [self.penultimate()]
        modules = {".".join(node.split(".")[:depth]) for node in self.nodes for depth in range(1, 9)}
        if name not in modules | self.nodes.keys():
            close = nearest(name, ["penultimate", "stages", *sorted(modules)])
            raise LayerError(f"layer {name!r} is not in {network}{close}. featx layers {network} lists all")
        return [name]

    def last(self, name: str) -> str:
        """A module's last node; a node is its own."""
        return name if name in self.nodes else [node for node in self.nodes if node.startswith(name + ".")][-1]

    def shapes(self, backbone: Backbone) -> dict[str, tuple[int, ...]]:
        """{node: shape of one image's output}, for the nodes that give tensors with a row an image."""
        seen: dict[fx.Node, tuple[int, ...]] = {}

        class Recorder(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                result = super().run_node(n)
                if isinstance(result, torch.Tensor) and result.ndim > 1 and len(result) == 2:
                    seen[n] = tuple(result.shape[1:])
                return result

        with torch.inference_mode():
            Recorder(fx.GraphModule(self.root, self.graph)).run(torch.zeros(2, 3, *backbone.preprocessing.size))
        return {name: seen[node] for name, node in self.nodes.items() if node in seen and len(seen[node]) < 4}

    def tapped(self, layers: Sequence[str], pools: Sequence[nn.Module]) -> nn.Module:
        """The network cut after the deepest of some layers; it gives a tuple, `pools[i]` of the output of `layers[i]`.

        Uses up the trace: its graph becomes the network's.
        """
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

    def penultimate(self) -> str:
        """What the classifier sees: the input of the last layer with weights, if that is linear (a 1 x 1 convolution
        counts), dropout skipped; the output of a network without classifier.
        """
        names = {node: name for name, node in self.nodes.items()}
        last = next((node for node in reversed(self.nodes.values()) if self._has_weights(node)), None)
        if last is not None and self._is_linear(last):
            node = last.all_input_nodes[0]
        else:
            (output,) = self.graph.find_nodes(op="output")
            node = output.all_input_nodes[0]
        while self._is_dropout(node):
            node = node.all_input_nodes[0]
        return names[node]

    def stages(self) -> list[str]:
        """The main blocks: the children of the first module, from the top, that has three or more with convolutions
        or linear layers inside; where there are none (VGG), the last layer before each change of resolution.
        """
        names = {node: name for name, node in self.nodes.items()}
        order = list(self.nodes)
        body = order[: order.index(self.penultimate()) + 1]
        classifier = order[-1].split(".")[0]

        def blocks(prefix: str) -> list[str]:
            depth = prefix.count(".") + 1 if prefix else 0
            children = [".".join(n.split(".")[: depth + 1]) for n in body if not prefix or n.startswith(prefix + ".")]
            heavy = [
                child
                for child in dict.fromkeys(children)
                if child not in self.nodes and any(n.startswith(child + ".") and self._weighs(n) for n in body)
            ]
            return [child for child in heavy if child != classifier] or heavy

        prefix = ""
        while 0 < len(found := blocks(prefix)) < 3:
            prefix = max(found, key=lambda child: sum(n.startswith(child + ".") and self._weighs(n) for n in body))
        if found:
            return found
        pools = [n for n in body if isinstance(self._module(self.nodes[n]), nn.MaxPool2d | nn.AvgPool2d)]
        return pools or [names[self.nodes[body[-1]]]]

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.root.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _has_weights(self, node: fx.Node) -> bool:
        module = self._module(node)
        if module is None:
            return node.op == "call_function" and any(source.op == "get_attr" for source in node.all_input_nodes)
        return any(True for _ in module.parameters())

    def _is_linear(self, node: fx.Node) -> bool:
        module = self._module(node)
        if isinstance(module, nn.Conv2d):
            return module.kernel_size == (1, 1)
        return isinstance(module, nn.Linear) or node.target is nn.functional.linear

    def _weighs(self, name: str) -> bool:
        node = self.nodes[name]
        module = self._module(node)
        if module is None:
            return node.target in (nn.functional.linear, nn.functional.conv2d)
        return any(isinstance(m, nn.Conv2d | nn.Linear) for m in module.modules())

    def _is_dropout(self, node: fx.Node) -> bool:
        module = self._module(node)
        if module is None:
            return node.op == "call_function" and "dropout" in getattr(node.target, "__name__", "")
        return isinstance(module, nn.Dropout | nn.Identity)


def _tracer_options(backbone: Backbone) -> dict[str, Any]:
    """What tracing must not look into: torchvision's own operators, and timm's list where timm built the network."""
    operators = [m for _, m in inspect.getmembers(torchvision.ops, inspect.isclass) if issubclass(m, nn.Module)]
    options: dict[str, Any] = {"autowrap_modules": (math, torchvision.ops), "leaf_modules": operators}
    if backbone.name.startswith("timm:") or backbone.name == "bundled:efficientnet_lite0":
        from timm import layers

        options["leaf_modules"] = operators + layers.get_notrace_modules()
        options["autowrap_functions"] = tuple(layers.get_notrace_functions())
    return options
