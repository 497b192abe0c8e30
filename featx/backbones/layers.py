"""What the parts of a network are called: what a name stands for, which parts are stages, which of them is penultimate.

Knows names in the order of execution, what kind each is and its output's shape; not how a network is looked into:
that is `graphs.py` and `hooks.py`.
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

PRODUCTS = ("linear", "product")  # the kinds that do a network's work
WEIGHTS = (*PRODUCTS, "weights")  # those that have parameters
_STAGES = 8  # more are thinned out


class Layers(ABC):
    """The named places of a network; a copy of it, which `tapped` uses up.

    root : the network's module, sharing no tensor with the backbone
    nodes : {name: what computes it} in the order of execution
    kinds : {name: "linear" (a 1 x 1 convolution counts), "product" (other convolutions and what holds some),
        "weights" (other parameters), "dropout", "pool" or ""}
    prefix_tokens : how many class and register tokens stand before the image's own, in a network of tokens
    class_token : whether the first of them is the class token, and no register
    compilable : whether what `tapped` gives can be compiled
    """

    compilable = True

    root: nn.Module
    nodes: Mapping[str, Any]
    kinds: Mapping[str, str]
    prefix_tokens: int
    class_token: bool

    @abstractmethod
    def tapped(self, layers: Sequence[str], pools: Sequence[nn.Module]) -> nn.Module:
        """The network cut after the deepest of some layers; it gives a tuple, `pools[i]` of the output of `layers[i]`.

        Uses up the trace: its parts become the network's.
        """

    @abstractmethod
    def penultimate(self) -> str:
        """The layer that is the classifier's input, dropout skipped; the output of a network without a classifier.

        In a network with timm's `forward_head` it is what that returns for `pre_logits=True`, with several classifiers
        too: their inputs side by side, or their mean, as the network defines it. Where no layer of the network's own
        forward gives it, its name is "pre_logits". Elsewhere, and where that result is no single tensor, the classifier
        is the last layer with weights, if it is linear (a 1 x 1 convolution counts).
        """

    @abstractmethod
    def output(self) -> str:
        """The layer whose output is the network's."""

    @property
    @abstractmethod
    def _shapes(self) -> dict[str, tuple[int, ...]]: ...

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{node: shape of one image's output}, for the nodes that give tensors with a row an image."""
        return self._shapes

    def resolve(self, name: str, network: str) -> list[str]:
        """The layers that a name stands for; raises LayerError if there is none."""
        if name in ("penultimate", "stages"):  # also where a module has this name
            return self.stages() if name == "stages" else [self.penultimate()]
        if name in self.nodes or name in self._modules:
            return [name]
        if name == "output":
            return [self.output()]
        close = nearest(name, ["penultimate", "stages", "output", *sorted(self._modules)])
        raise LayerError(f"layer {name!r} is not in {network}{close}. featx layers {network} lists all")

    def last(self, name: str) -> str:
        """A module's last node; a node is its own."""
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
        """The main blocks, three to eight of them where the network has as many.

        They are the children, with two or more convolutions or linear layers inside, of the first module from the top
        that has three such; where there are none (VGG), the pooling layers. Where they are more than eight, the last
        before each change of resolution; where that does not change (ViT), four evenly spaced, the last one included.
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
    """From the top down into the heaviest child: the children that hold `least` or more of the products."""
    levels: list[list[str]] = []
    prefix = ""
    while len(levels) < 9:
        inside = [name for name in products if name.startswith(prefix)]
        depth = prefix.count(".") + 1
        # strictly inside: a layer is no block
        held = Counter(".".join(name.split(".")[:depth]) for name in inside if name.count(".") >= depth)
        blocks = {block: n for block, n in held.items() if n >= least}
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
    """How fine the output is: (h, w), whichever side the channels are on, or (t,)."""
    return shape[1:] if len(shape) == 3 and shape[1] == shape[2] else shape[:-1]


def kind_of(module: nn.Module) -> str:
    """The kind of a layer that a module is; see `Layers`."""
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
    """How many tokens stand before the image's, and whether the first is the class token: what timm's networks, or the
    user's own, state. The user's own that states only their number has a class token.
    """
    if isinstance(module, VisionTransformer):
        return 1, True
    count = getattr(module, "num_prefix_tokens", 0)
    stated = getattr(module, "has_class_token", getattr(module, "cls_token", True))
    return (count, stated is not None and stated is not False) if isinstance(count, int) and count else (0, False)


def one_image(output: Any) -> tuple[int, ...] | None:
    """The shape of one image's row in a layer's output for two images; None if it has none, or an empty one."""
    if isinstance(output, torch.Tensor) and 1 < output.ndim < 5 and len(output) == 2 and output.numel():
        return tuple(output.shape[1:])
    return None


def noise(size: tuple[int, int]) -> torch.Tensor:
    """Two images on which layers that give different numbers do: all of a black one may become zero."""
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
