"""Finds the layers of an exported program.

Operations are named by the module that they came from and their function ("layer3.0.conv1.conv2d"), so that "layer3"
means the same as in the network that was exported.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from typing import Any

import torch
from torch import fx, nn

from featx.backbones.graphs import Graph, operation
from featx.backbones.layers import Layers
from featx.backbones.programs import module_stack, root_classes

_CHECKS = re.compile("assert|sym_constrain|guards_fn")  # of the input; they are for one device and one number type
_TOKENS = "torchvision.models.vision_transformer.VisionTransformer"


def exported_layers(module: nn.Module, size: tuple[int, int]) -> Layers:
    """The layers of a program's module, for images of one size, on any device and in any number type."""
    assert isinstance(module, fx.GraphModule)
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    names: dict[fx.Node, str] = {}
    number: Counter[str] = Counter()
    for node in module.graph.nodes:
        if node.op == "output":
            graph.output(next(copied[source] for source in node.all_input_nodes))
        elif not _CHECKS.search(str(node.target)):
            copied[node] = new = graph.node_copy(node, copied.__getitem__)
            if node.op == "placeholder":
                like = [graph.call_function(getattr, (new, what)) for what in ("device", "dtype")]
            elif node.op == "call_function":
                new.args, new.kwargs = (_following(part, *like) for part in (new.args, new.kwargs))
                value = node.meta.get("val")
                if isinstance(value, torch.Tensor):
                    if (
                        not node.all_input_nodes and value.dtype == torch.float32
                    ):  # for example arange(4.0): float32 by default
                        new.kwargs = {**new.kwargs, "dtype": like[1]}
                    stack = module_stack(node)
                    name = f"{stack[-1][0] if stack else ''}.{operation(node)}".lstrip(".")
                    names[new] = f"{name}_{number[name]}" if number[name] else name
                    number[name] += 1
    prefix = (1, True) if _TOKENS in root_classes(module.graph) else (0, False)
    return Graph(copy.deepcopy(module), graph, names, {}, size, prefix)


def _following(part: Any, device: fx.Node, dtype: fx.Node) -> Any:
    """Replace the device and number type of the export in some arguments by those of the images."""

    def follow(value: Any) -> Any:
        if isinstance(value, torch.device):
            return device
        return dtype if value is torch.float32 else value

    return fx.node.map_aggregate(part, follow)
