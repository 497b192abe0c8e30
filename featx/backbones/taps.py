"""Layer names in, taps out; and the network cut after the deepest of them, which returns every tap's pooled rows.

Names are those of the traced graph's nodes ("layer3.0.relu", "flatten") and of the modules above them ("layer3": the
last node inside). `"stages"` stands for the network's main blocks, `"penultimate"` for what the last linear layer sees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from featx.backbones.backbone import Backbone
from featx.backbones.trace import trace_of
from featx.errors import LayerError, nearest

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
        network = trace_of(backbone).tapped([tap.node for tap in taps], [_Pool(tap) for tap in taps])
        self._network = network.to(device, self._type)
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
    if not isinstance(layers, Sequence):
        raise LayerError(f"layers is a name or a list of names; got {type(layers).__name__}")
    wanted = [layers] if isinstance(layers, str) else list(layers)
    if not wanted:
        raise LayerError("layers is empty; name at least one, 'penultimate' for example")
    trace = trace_of(backbone)
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
    trace = trace_of(backbone)
    marks = dict.fromkeys(trace.stages(), "stage") | {trace.penultimate(): "penultimate"}
    modules = {trace.last(name): name for name in marks}
    layers = []
    for node, shape in trace.shapes(backbone).items():
        name = modules.get(node, node)
        layers.append(Layer(name, shape, Tap.of(name, "avg", shape).shape[0], marks.get(name, "")))
    return layers
