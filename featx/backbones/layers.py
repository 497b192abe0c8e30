"""The named layers of a network: resolving a name, finding the stages and the penultimate layer.

This module uses the names in the order of execution, with their kinds and output shapes. `graphs.py` and `hooks.py`
find those in a network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torchvision.models import VisionTransformer

from featx.errors import LayerError, nearest

PRODUCTS = ("linear", "product")  # the kinds that do a network's main computations
WEIGHTS = (*PRODUCTS, "weights")  # the kinds with parameters
_STAGES = 8  # from more blocks, some are selected


class Layers(ABC):
    """The named layers of a copy of a network; `tapped` consumes the copy.

    root : the network's module, sharing no tensor with the backbone
    nodes : {name: what computes it} in the order of execution
    kinds : {name: "linear" (1 x 1 convolutions included), "product" (other convolutions and modules with some inside),
        "weights" (other parameters), "dropout", "pool" or ""}
    prefix_tokens : number of class and register tokens before the image's tokens
    class_token : whether the first of them is the class token, not a register
    compilable : whether the result of `tapped` can be compiled
    """

    compilable = True

    root: nn.Module
    nodes: Mapping[str, Any]
    kinds: Mapping[str, str]
    prefix_tokens: int
    class_token: bool

    @abstractmethod
    def tapped(self, layers: Sequence[str], pools: Sequence[nn.Module]) -> nn.Module:
        """The network cut after the deepest of some layers; it returns a tuple, `pools[i]` of `layers[i]`'s output.

        This consumes the copy: its modules become the network's.
        """

    @abstractmethod
    def penultimate(self) -> str:
        """The layer that is the classifier's input, before dropout; the output, if the network has no classifier.

        In a network with timm's `forward_head` it is the result of `pre_logits=True`; for several classifiers that is
        their concatenated inputs, or the mean, as the network defines it. If no layer of the network's forward has this
        output, its name is "pre_logits". In other networks, and if that result is not one tensor, the classifier is the
        last layer with weights, if it is linear (1 x 1 convolutions included).
        """

    @abstractmethod
    def output(self) -> str:
        """The layer whose output is the network's."""

    @property
    @abstractmethod
    def _shapes(self) -> dict[str, tuple[int, ...]]: ...

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{node: shape of one image's output}, for the nodes whose output is a tensor with one row per image."""
        return self._shapes

    def resolve(self, name: str, network: str) -> list[str]:
        """The layers that a name stands for; raises LayerError if there are none."""
        if name in ("penultimate", "stages"):  # even if a module has this name
            return self.stages() if name == "stages" else [self.penultimate()]
        if name in self.nodes or name in self._modules:
            return [name]
        if name == "output":
            return [self.output()]
        close = nearest(name, ["penultimate", "stages", "output", *sorted(self._modules)])
        raise LayerError(f"layer {name!r} is not in {network}{close}. featx layers {network} lists all")

    def last(self, name: str) -> str:
        """The last node inside a module; a node itself."""
        inside = [name] if name in self.nodes else [node for node in self.nodes if node.startswith(name + ".")]
        if not inside:
            raise LayerError(f"layer {name!r} is not in the network")
        return inside[-1]

    @cached_property
    def _modules(self) -> Collection[str]:
        """The names of nodes and of the modules above them."""
        return {
            ".".join(parts[:depth]) for node in self.nodes for parts in [node.split(".")] for depth in _depths(parts)
        }

    def stages(self) -> list[str]:
        """The main blocks, three to eight if the network has as many.

        Candidates are the children that contain two or more convolutions or linear layers, of the first module from the
        top with at least three such children; in their absence (VGG) the pooling layers. Of more than eight candidates,
        the last one before each change of resolution is taken; if the resolution is constant (ViT), four evenly spaced
        ones, including the last.
        """
        order = list(self.nodes)
        body = order[: order.index(self.last(self.penultimate())) + 1]
        products = [name for name in body if self.kinds[name] in PRODUCTS]
        classifier = order[-1].split(".")[0]
        several, single = (
            [[block for block in level if self.last(block) in self._shapes] for level in levels]
            for levels in (_levels(products, classifier, least) for least in (2, 1))
        )
        pools = [name for name in body if self.kinds[name] == "pool" and name in self._shapes]
        enough = [level for level in [*several, pools, *single] if len(level) >= 3]
        if not enough:
            return max([*several, *single, pools, [self.penultimate()]], key=len)
        blocks = enough[0]
        if len(blocks) > _STAGES:
            planes = [_plane(self._shapes[self.last(block)]) for block in blocks]
            changes = [
                block for block, this, then in zip(blocks, planes, [*planes[1:], None], strict=True) if this != then
            ]
            even = [blocks[round(len(blocks) * quarter / 4) - 1] for quarter in (1, 2, 3, 4)]
            blocks = changes if 3 <= len(changes) <= _STAGES else even
        return blocks


def _depths(parts: list[str]) -> range:
    return range(1, len(parts) + 1)


def _levels(products: list[str], classifier: str, least: int) -> list[list[str]]:
    """The children with at least `least` products, at each level from the top down into the child with the most."""
    levels: list[list[str]] = []
    prefix = ""
    while len(levels) < 9:
        inside = [name for name in products if name.startswith(prefix)]
        depth = prefix.count(".") + 1
        # strictly inside: a layer is no block
        inside_of = Counter(".".join(name.split(".")[:depth]) for name in inside if name.count(".") >= depth)
        blocks = {block: n for block, n in inside_of.items() if n >= least}
        if len(blocks) > 1:
            blocks.pop(classifier, None)
        if not blocks:
            break
        levels.append(list(blocks))
        if len(blocks) >= 3:
            break
        prefix = max(blocks, key=lambda block: blocks[block]) + "."
    return levels


def _plane(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The resolution of an output: (h, w), with channels first or last, or (t,)."""
    return shape[1:] if len(shape) == 3 and shape[1] == shape[2] else shape[:-1]


def kind_of(module: nn.Module) -> str:
    """The kind of a module; see `Layers`."""
    if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
        return "linear"
    if any(isinstance(part, nn.Conv2d | nn.Linear) for part in module.modules()):
        return "product"
    if isinstance(module, nn.Dropout | nn.Identity):
        return "dropout"
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        return "pool"
    return "weights" if next(module.parameters(), None) is not None else ""


def prefix_tokens_of(module: nn.Module) -> tuple[int, bool]:
    """The number of tokens before the image's, and whether the first is the class token.

    These are attributes of timm's networks and may be of the user's. A network with only the number has a class token.
    """
    if isinstance(module, VisionTransformer):
        return 1, True
    count = getattr(module, "num_prefix_tokens", 0)
    stated = getattr(module, "has_class_token", getattr(module, "cls_token", True))
    return (count, stated is not None and stated is not False) if isinstance(count, int) and count else (0, False)


def one_image(output: Any) -> tuple[int, ...] | None:
    """The shape of one image's row in a layer's output for two images; None if there is no such row, or it is empty."""
    if isinstance(output, torch.Tensor) and 1 < output.ndim < 5 and len(output) == 2 and output.numel():
        return tuple(output.shape[1:])
    return None


def noise(size: tuple[int, int]) -> torch.Tensor:
    """Two random images, for which different layers have different outputs; for black images all might be zero."""
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
