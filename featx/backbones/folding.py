"""Folds the batch norms of a traced network into their convolutions.

In eval mode a batch norm is y = (x - mean) * scale + shift with scale = weight / sqrt(var + eps). Behind a convolution
with weights W and bias b it is the convolution with W' = scale W, b' = scale (b - mean) + shift. Features change by
about 3e-6 (relative L2).
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import torch
from torch import fx, nn


def fold_batch_norms(network: fx.GraphModule) -> None:
    """Fold in place every batch norm that alone uses a convolution's output, so no tapped convolution changes."""
    calls = Counter(node.target for node in network.graph.nodes if node.op == "call_module")
    for node in network.graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        if calls[node.target] > 1 or calls[source.target] > 1:  # shared weights are used elsewhere too
            continue
        norm, conv = network.get_submodule(str(node.target)), network.get_submodule(str(source.target))
        if _foldable(conv, norm):
            _fold(conv, norm)
            parent, _, name = str(node.target).rpartition(".")
            setattr(network.get_submodule(parent), name, _rest(norm))
    _fold_sequences(network)
    network.recompile()


def _fold_sequences(network: fx.GraphModule) -> None:
    """Fold adjacent pairs in sequences that were not traced into, such as Conv2dNormActivation."""
    places = Counter(part for _, part in network.named_modules(remove_duplicate=False))
    for sequence in list(network.modules()):
        if isinstance(sequence, nn.Sequential) and type(sequence).forward is nn.Sequential.forward:
            for number, (conv, norm) in enumerate(pairwise(list(sequence)), start=1):
                if places[conv] == places[norm] == 1 and _foldable(conv, norm):
                    _fold(conv, norm)
                    sequence[number] = _rest(norm)


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    return isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None and type(conv) is nn.Conv2d


def _fold(conv: nn.Module, norm: nn.Module) -> None:
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None and norm.running_mean is not None
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)  # (c,)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = torch.zeros_like(scale) if conv.bias is None else conv.bias.double()
    bias = scale * (bias - norm.running_mean.double())
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    weight = conv.weight.double() * scale.view(-1, 1, 1, 1)
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)


def _rest(norm: nn.Module) -> nn.Module:
    """What remains of a batch norm: timm's also apply dropout and an activation."""
    return nn.Sequential(getattr(norm, "drop", nn.Identity()), getattr(norm, "act", nn.Identity())).eval()
