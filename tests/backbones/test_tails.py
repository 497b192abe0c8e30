"""Tails of networks: split at a layer, they compute and differentiate what the whole network does."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from featx import Backbone, Preprocessing
from featx.backbones import Tail, boundaries, trace_of
from featx.backbones.graphs import Graph
from featx.errors import LayerError

SMALL = Preprocessing((32, 32), 32)
FAMILIES = [
    ("resnet18", "layer3"),
    ("mnasnet0_5", "layers.10"),
    ("densenet121", "features.transition3"),
    ("mobilenet_v3_small", "features.8"),
    ("squeezenet1_1", "features.8"),
    ("shufflenet_v2_x0_5", "stage3"),
    ("regnet_y_400mf", "trunk_output.block3"),
    ("efficientnet_b0", "features.5"),
    ("timm:convnext_atto", "stages.2"),
    ("timm:vit_tiny_patch16_224", "blocks.9"),
]


def backbone_of(name: str, size: int = 32) -> Backbone:
    if name.startswith("timm:vit"):
        size = 224
    return Backbone(name, weights=None, preprocessing=Preprocessing((size, size), size))


@pytest.mark.parametrize("name, boundary", FAMILIES)
def test_gradients_of_the_tail_are_those_of_the_whole_network(name, boundary):
    backbone = backbone_of(name)
    tail = Tail(backbone, boundary).double()
    whole = trace_of(backbone)
    whole.root.double().requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, *backbone.preprocessing.size, dtype=torch.float64, generator=generator)
    rows, last = outputs(whole, [boundary, whole.penultimate()], pixels)
    got, expected = tail(rows.detach()), tail.pool(last)
    torch.testing.assert_close(got, expected)
    towards = torch.randn(got.shape, dtype=torch.float64, generator=generator)
    got.backward(towards)
    expected.backward(towards)
    plain = {name: value.grad for name, value in whole.root.named_parameters()}
    named = {name: value.grad for name, value in tail.network.named_parameters()}
    assert named and named.keys() < plain.keys()
    for parameter, gradient in named.items():
        torch.testing.assert_close(gradient, plain[parameter], rtol=1e-9, atol=1e-12)


def outputs(trace: Graph, layers: list[str], pixels: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of layers, in one pass with gradients."""
    kept: dict[str, torch.Tensor] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            if n in trace.names:
                kept[trace.names[n]] = result.clone() if isinstance(result, torch.Tensor) else result
            return result

    Recorder(trace.root, graph=trace.graph).run(pixels)
    return [kept[trace.last(layer)] for layer in layers]


def test_the_tail_of_the_input_is_the_network():
    backbone = backbone_of("resnet18")
    tail = Tail(backbone, "input")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    module = backbone.module
    with torch.no_grad():
        torch.testing.assert_close(module.fc(tail(pixels)), module(pixels))
    assert {name for name, _ in tail.network.named_parameters()} == {
        name for name, _ in module.named_parameters() if not name.startswith("fc.")
    }


def test_boundaries_end_parts_and_all_of_them_split_the_network():
    backbone = backbone_of("resnet18")
    found = boundaries(backbone)
    assert [each.name for each in found] == [
        "maxpool", "layer1.0", "layer1", "layer2.0", "layer2", "layer3.0", "layer3", "layer4.0"
    ]  # fmt: skip
    assert all(later.saved > earlier.saved for earlier, later in zip(found, found[1:], strict=False))
    assert 0 < found[0].saved < found[-1].saved < 1
    for each in found:
        tail = Tail(backbone, each.name)
        assert tail.shape == each.shape
        assert sum(value.numel() for value in tail.network.parameters()) == each.n_parameters


def test_depths_follow_the_parts():
    depths = Tail(backbone_of("resnet18"), "layer3").depths
    assert {name.split(".")[1]: depth for name, depth in depths.items()} == {"0": 0, "1": 1}
    attention = Tail(backbone_of("timm:vit_tiny_patch16_224"), "blocks.10").depths
    assert attention["blocks.11.norm1.weight"] == attention["blocks.11.attn.qkv.weight"] == 0
    assert attention["blocks.11.norm2.weight"] == attention["blocks.11.mlp.fc1.weight"] == 1


def test_the_backbone_is_not_changed_by_training_a_tail():
    backbone = backbone_of("resnet18")
    before = backbone.weights_sha256
    tail = Tail(backbone, "layer3")
    with torch.no_grad():
        for value in tail.parameters():
            value.add_(1)
    del backbone.__dict__["weights_sha256"]
    assert backbone.weights_sha256 == before


class Data(nn.Module):
    """Its forward depends on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3)) if x.sum() > 0 else self.conv(x).amax((2, 3))


def test_what_cannot_be_split_is_refused():
    resnet = backbone_of("resnet18")
    with pytest.raises(LayerError, match=r"connection leads past it.*nearest that work are 'layer3.0' and 'layer3'"):
        Tail(resnet, "layer3.1.conv1")
    with pytest.raises(LayerError, match="nothing to train between layer 'avgpool'.*'layer4.0' for example"):
        Tail(resnet, "avgpool")
    with pytest.raises(LayerError, match="layer 'fc' of torchvision:resnet18 lies behind its penultimate layer"):
        Tail(resnet, "fc")
    with pytest.raises(LayerError, match="layer 'layer9' is not in torchvision:resnet18; close: 'layer4'"):
        Tail(resnet, "layer9")
    with pytest.raises(LayerError, match="its forward depends on its input"):
        Tail(Backbone(Data(), preprocessing=SMALL), "conv")
