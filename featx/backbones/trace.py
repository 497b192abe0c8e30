"""Finds the layers of a backbone: as a graph if it can be traced or was exported, else through hooks.

Nodes have the names of torchvision's `create_feature_extractor`; a module's name stands for its output.
"""

from __future__ import annotations

import copy
import inspect
import math
import re
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from featx.backbones.backbone import BUILDING, Backbone
from featx.backbones.exported import exported_layers
from featx.backbones.graphs import Graph
from featx.backbones.heads import watched_head
from featx.backbones.hooks import Hooked
from featx.backbones.layers import Layers, noise, prefix_tokens_of


def trace_of(backbone: Backbone) -> Layers:
    """The layers of a backbone.

    Raises
    ------
    BackboneError
        The network does not run on images of its preprocessing's size.
    """
    with BUILDING:
        return _trace_of(backbone)


def _trace_of(backbone: Backbone) -> Layers:
    module = backbone.module  # outside of `try`: missing weights are no reason to try hooks
    if backbone.name.startswith("export:"):
        return exported_layers(module, backbone.preprocessing.size)
    try:
        graph = _traced(backbone)
    except Exception:  # the network's code may raise anything on symbolic values
        return Hooked(backbone)
    # torchvision's and timm's networks are tested; in others, `isinstance(x, Tensor)` may be false while tracing
    if backbone.name.startswith("module:") and not _same_function(graph, backbone):
        return Hooked(backbone)
    return graph


class _Tracer(NodePathTracer):
    """Records which node computes a module's output, and names a leaf module by its own name.

    torchvision's tracer takes a number at the end of a module's name for one that it has added: it calls the modules
    conv_1 and conv_2 "conv" and "conv_1".
    """

    def __init__(self, root: nn.Module, **options: Any) -> None:
        super().__init__(**options)
        self.ends: dict[str, fx.Node] = {}
        self.pre_logits: fx.Node | None = None
        self.traced_again: set[fx.Node] = set()
        self._taken = {name for name, _ in root.named_modules(remove_duplicate=False)}
        self._called: set[str] = set()
        self._thread = threading.get_ident()

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        # only the images: an optional mask must stay None and not become a symbol
        return root_fn, [self.root, self.create_proxy("placeholder", "images", (), {})]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:  # torch's tracer sees the modules of all threads
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        output = super().call_module(m, forward, args, kwargs)
        name = self.path_of_module(m)
        self.ends.pop(name, None)
        if isinstance(output, fx.Proxy):
            self.ends[name] = output.node
        return output

    def head(self, head: Callable[[], Any], pre_logits: Callable[[], Any]) -> Any:
        """Trace the head, then the pre-logits; nodes that the second trace adds are `traced_again`."""
        output = head()
        ends, before = dict(self.ends), set(self.graph.nodes)
        try:
            result = pre_logits()
        except Exception:  # the network's code may raise anything: the trace continues without pre-logits
            result = None
        self.ends, self.traced_again = ends, self.traced_again | set(self.graph.nodes) - before
        self.pre_logits = result.node if isinstance(result, fx.Proxy) else None
        return output

    def _get_node_qualname(self, module_qualname: str, node: fx.Node) -> str:
        if node.op == "call_module" and module_qualname not in self._called:
            self._called.add(module_qualname)
            return module_qualname
        own = [] if node.op == "call_module" else [re.sub(r"_[0-9]+$", "", str(node))]
        name = unused = ".".join([module_qualname] * bool(module_qualname) + own)
        number = 0
        while unused in self._taken:
            number += 1
            unused = f"{name}_{number}"
        self._taken.add(unused)
        return unused


def _traced(backbone: Backbone) -> Graph:
    root = copy.deepcopy(backbone.module)
    tracer = _Tracer(root, **_tracer_options(root))
    with watched_head(root, tracer.head):
        graph = tracer.trace(root)
    names = {node: name for node, name in tracer.node_to_qualname.items() if node.op.startswith("call_")}
    size, prefix = backbone.preprocessing.size, prefix_tokens_of(root)
    layers = Graph(root, graph, names, tracer.ends, size, prefix, tracer.pre_logits, tracer.traced_again)
    layers.output()  # raises if the network returns its input
    return layers


def _same_function(graph: Graph, backbone: Backbone) -> bool:
    pixels = noise(backbone.preprocessing.size)
    with torch.inference_mode():
        try:
            expected = backbone.module(pixels.clone())
        except Exception:  # layers before the failing part can still be tapped
            return True
        if not isinstance(expected, torch.Tensor):
            return True  # a dictionary or a tuple, whose tensors are layers
        got = fx.Interpreter(graph.root, graph=graph.graph).run(pixels)
    return isinstance(got, torch.Tensor) and torch.allclose(got, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


def _tracer_options(root: nn.Module) -> dict[str, Any]:
    """Modules and functions that are not traced into: torchvision's operators and, for parts of timm, timm's lists."""
    operators = [m for _, m in inspect.getmembers(torchvision.ops, inspect.isclass) if issubclass(m, nn.Module)]
    options: dict[str, Any] = {"autowrap_modules": (math, torchvision.ops), "leaf_modules": operators}
    if "timm" in sys.modules and any(type(part).__module__.startswith("timm.") for part in root.modules()):
        from timm import layers

        options["leaf_modules"] = operators + layers.get_notrace_modules()
        options["autowrap_functions"] = tuple(layers.get_notrace_functions())
    return options
