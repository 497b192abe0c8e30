"""Layer names in, taps out; and the network cut after the deepest of them, which returns every tap's pooled rows.

Names are those of the traced graph's nodes ("layer3.0.relu", "flatten") and of the modules above them ("layer3": the
last node inside). `"stages"` stands for the network's main blocks, `"penultimate"` for what the last linear layer sees.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torchvision
from torch import fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from featx.backbones.backbone import Backbone
from featx.backbones.folding import fold_batch_norms
from featx.errors import BackboneError, LayerError, nearest

POOLS = ("avg", "max", "flatten", "none")


@dataclass(frozen=True)
class Tap:
    """A layer and how it is pooled.

    layout : "bchw", "bhwc" (Swin), "btc" (tokens) or "bd": what the layer's output is
    shape : of one image's row, after pooling
    """

    node: str
    pool: str
    layout: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.node}:{self.pool}"

    @classmethod
    def of(cls, node: str, pool: str, output: tuple[int, ...]) -> Tap:
        """The tap of a node whose output for one image has this shape, (c, h, w), (h, w, c), (t, c) or (d,).

        Images are square, so the two equal sides are the plane; where all three agree, channels come first.
        """
        if len(output) == 3:
            channels_last = output[0] == output[1] != output[2]
            layout, channels = ("bhwc", output[2]) if channels_last else ("bchw", output[0])
        elif len(output) == 2:
            layout, channels = "btc", output[1]
        else:
            layout, channels, pool = "bd", math.prod(output), "none"  # there is nothing to pool
        shape = {"flatten": (math.prod(output),), "none": output}.get(pool, (channels,))
        return cls(node, pool, layout, shape)


class _Pool(nn.Module):
    """A layer's output -> its rows: (b, ...) in any float type -> (b, *shape) float32."""

    def __init__(self, tap: Tap) -> None:
        super().__init__()
        self._pool = tap.pool
        self._over = {"bchw": (2, 3), "bhwc": (1, 2), "btc": (1,)}.get(tap.layout, ())

    def forward(self, output: torch.Tensor) -> torch.Tensor:
        output = output.float()
        if self._pool == "avg":
            return output.mean(self._over)
        if self._pool == "max":
            return output.amax(self._over)
        # a copy: what follows in the network may work in place
        return output.flatten(1).clone() if self._pool == "flatten" else output.clone()


class TappedNetwork:
    """Pixels in, rows of every tap out, in one forward pass.

    Parameters
    ----------
    backbone : Backbone
    taps : the taps to compute; nothing deeper than the deepest of them is computed
    device : where to
    precision : "float32", "bfloat16" or "float16"; pooling is float32 in all of them
    """

    def __init__(self, backbone: Backbone, taps: Sequence[Tap], device: torch.device, precision: str) -> None:
        self._names = [tap.name for tap in taps]
        self._device, self._type = device, getattr(torch, precision)
        trace = _Trace.of(backbone)
        rows = []
        for number, tap in enumerate(taps):
            node = trace.nodes[trace.last(tap.node)]
            trace.root.add_module(f"featx_pool_{number}", _Pool(tap))
            # right behind the layer, before the next one may overwrite its output in place
            with trace.graph.inserting_after(node):
                rows.append(trace.graph.call_module(f"featx_pool_{number}", (node,)))
        (output,) = trace.graph.find_nodes(op="output")
        output.args = (tuple(rows),)
        graph_module = fx.GraphModule(trace.root, trace.graph)
        graph_module.graph.eliminate_dead_code()
        graph_module.delete_all_unused_submodules()
        fold_batch_norms(graph_module)
        self._network = graph_module.to(device, self._type)
        for parameter in self._network.parameters():
            if parameter.dim() == 4:  # convolutions on channels-last memory are half as fast again on a CPU
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """(b, 3, h, w) float32, normalised -> {tap name: (b, *shape) float32, on the device}."""
        with _exact_convolutions(self._device):
            rows = self._network(pixels.to(self._device, self._type))
        return dict(zip(self._names, rows, strict=True))


def _exact_convolutions(device: torch.device) -> AbstractContextManager[None]:
    """float32 means float32: on a GPU, cuDNN's convolutions would be TF32 by default."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def resolve_taps(backbone: Backbone, layers: str | Sequence[str], pool: str) -> tuple[list[Tap], dict[str, str]]:
    """Turn what a user asked for into taps.

    Parameters
    ----------
    backbone : Backbone
    layers : node names, "penultimate", "stages", each alone or as "node:pool"
    pool : for those that name none

    Returns
    -------
    taps : in the order asked for, each once
    aliases : {what was asked for: the tap's name}, where they differ and one tap is meant

    Raises
    ------
    LayerError
        A layer is not in the network (the nearest are named), a pool is not known, or layers is empty.
    """
    wanted = [layers] if isinstance(layers, str) else list(layers)
    if not wanted:
        raise LayerError("layers is empty; name at least one, 'penultimate' for example")
    trace = _Trace.of(backbone)
    asked = []  # (what was asked for, node, pool)
    for text in wanted:
        name, colon, own = str(text).partition(":")
        own = own if colon else pool
        if own not in POOLS:
            raise LayerError(f"pool {own!r} is not one of {', '.join(POOLS)}{nearest(own, POOLS)}")
        asked += [(str(text), node, own) for node in trace.resolve(name, backbone.name)]
    shapes = trace.shapes(backbone)
    taps: dict[str, Tap] = {}
    aliases: dict[str, str] = {}
    for text, node, own in asked:
        if trace.last(node) not in shapes:
            raise LayerError(f"layer {node!r} of {backbone.name} gives no tensor; choose one inside or behind it")
        tap = Tap.of(node, own, shapes[trace.last(node)])
        taps.setdefault(tap.name, tap)
        if text.partition(":")[0] != "stages" and text not in (tap.name, node):
            aliases[text] = tap.name
    return list(taps.values()), aliases


class Layer(NamedTuple):
    """A layer that can be tapped.

    shape : of its output for one image
    pooled : features after "avg" or "max"
    mark : "stage", "penultimate" or ""
    """

    name: str
    shape: tuple[int, ...]
    pooled: int
    mark: str


def describe(backbone: Backbone) -> list[Layer]:
    """Every layer that can be tapped, in the order of execution; a module is listed where its last node is."""
    trace = _Trace.of(backbone)
    marks = dict.fromkeys(trace.stages(), "stage") | {trace.penultimate(): "penultimate"}
    modules = {trace.last(name): name for name in marks}
    layers = []
    for node, shape in trace.shapes(backbone).items():
        name = modules.get(node, node)
        layers.append(Layer(name, shape, Tap.of(name, "avg", shape).shape[0], marks.get(name, "")))
    return layers


@dataclass(frozen=True)
class _Trace:
    """A backbone's computation as a graph of its own, sharing no tensor with the backbone.

    root : the module the graph calls into
    nodes : {name: node} in the order of execution, without inputs and output
    """

    root: nn.Module
    graph: fx.Graph
    nodes: dict[str, fx.Node]

    @classmethod
    def of(cls, backbone: Backbone) -> _Trace:
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
