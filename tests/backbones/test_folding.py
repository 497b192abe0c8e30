"""Folding batch norms does not change the function."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import fx, nn

from featx.backbones import Backbone, Preprocessing, TappedNetwork, resolve_taps
from featx.backbones.folding import fold_batch_norms

SMALL = Preprocessing(crop=(32, 32), resize=32)
CPU = torch.device("cpu")


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random batch norms; as built they are the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.uniform_(-1, 1, generator=generator)
                part.running_var.uniform_(0.2, 3, generator=generator)
                if part.affine:
                    part.weight.uniform_(-2, 2, generator=generator)
                    part.bias.uniform_(-1, 1, generator=generator)
    return module.eval()


def seeded(make, seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def pixels(n: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def norms(network: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in network.modules())


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)],
        lambda: [nn.Conv2d(3, 8, 3, bias=False, stride=2), nn.BatchNorm2d(8, eps=0.1)],
        lambda: [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False)],
        lambda: [nn.Conv2d(3, 9, 3, groups=3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(9)],
    ],
)
def test_a_folded_batch_norm_leaves_the_function_as_it_was(layers):
    network = shaken(seeded(lambda: nn.Sequential(*layers(), nn.ReLU())))
    with torch.inference_mode():
        expected = network(pixels())
        traced = fx.symbolic_trace(copy.deepcopy(network))
        fold_batch_norms(traced)
        got = traced(pixels())
    assert norms(traced) == 0
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


class Readers(nn.Module):
    """Convolutions whose batch norm must stay: two users, two calls, a norm without running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.branched, self.branched_norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.shared, self.shared_norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.alone, self.common_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.last, self.batch_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.branched(x)
        x = x + self.branched_norm(x)
        x = self.shared(self.shared_norm(self.shared(x)))
        x = self.common_norm(self.common_norm(self.alone(x)).relu())
        return self.batch_norm(self.last(x))


def test_shared_batch_norms_and_convolutions_are_not_folded():
    network = seeded(Readers)
    untracked = network.batch_norm
    network.batch_norm = nn.Identity()
    shaken(network)
    network.batch_norm = untracked.eval()
    traced = fx.symbolic_trace(copy.deepcopy(network))
    with torch.inference_mode():
        expected = network(pixels())
        fold_batch_norms(traced)
        torch.testing.assert_close(traced(pixels()), expected, rtol=1e-5, atol=1e-5)
    assert norms(traced) == norms(network)


@pytest.mark.parametrize("name", ["resnet18", "bundled:efficientnet_lite0"])  # timm's norms activate, too
def test_a_folded_backbone_has_its_own_function_and_fewer_operations(name):
    made = Backbone(name, weights=None, preprocessing=SMALL)
    shaken(made.module)
    for part in made.module.modules():  # keep the activations of a deep random network in range
        if isinstance(part, nn.BatchNorm2d):
            part.weight.data.clamp_(0.5, 1)
    taps, _ = resolve_taps(made, ["penultimate"], "avg")
    classifier = "fc" if name == "resnet18" else "classifier"
    state = copy.deepcopy(made.module.state_dict())
    seen = {}
    handle = made.module.get_submodule(classifier).register_forward_pre_hook(lambda _, i: seen.update(x=i[0].clone()))
    with torch.inference_mode():
        made.module(pixels())
    handle.remove()
    network = TappedNetwork(made, taps, CPU, "float32")
    (got,) = network(pixels()).values()
    # timm's convolutions that pad by themselves are of a type of their own, and are not folded
    assert norms(network._network) < norms(made.module) / 5
    distance = (got - seen["x"]).norm(dim=1) / seen["x"].norm(dim=1)
    assert distance.max() <= 1e-4
    assert all(torch.equal(value, state[key]) for key, value in made.module.state_dict().items())


def test_a_tapped_convolution_keeps_its_own_output():
    net = shaken(seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True))))
    made = Backbone(net, preprocessing=SMALL)
    taps, _ = resolve_taps(made, ["0", "1", "2"], "none")
    found = TappedNetwork(made, taps, CPU, "float32")(pixels())
    with torch.inference_mode():
        conv = net[0](pixels())
        norm = net[1](conv)
        for name, expected in (("0:none", conv), ("1:none", norm), ("2:none", norm.relu())):
            torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-5)
