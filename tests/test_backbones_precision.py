"""Folded batch norms leave the function as it was; a fast number type is used where it is faster and close."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import fx, nn

from featx.backbones import Backbone, Preprocessing, TappedNetwork, precision, resolve_taps
from featx.backbones.folding import fold_batch_norms

SMALL = Preprocessing(crop=(32, 32), resize=32)
CPU = torch.device("cpu")


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms that do something: as built they are the identity."""
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
    """Convolutions whose batch norm must stay: two readers, two calls, a norm without statistics of its own."""

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


def test_what_others_read_or_share_is_not_folded():
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


@pytest.fixture
def small() -> tuple[Backbone, list]:
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    made = Backbone(net, preprocessing=SMALL)
    return made, resolve_taps(made, ["1", "3"], "max")[0]


def decide(monkeypatch, small, fast_seconds: float, error: float, rows=(0,)) -> tuple[str, float | None]:
    """Float32 takes one second; bfloat16 takes `fast_seconds` and is off by `error` in some rows of one tap."""
    made, taps = small

    def timed(network, batch, device):
        exact = TappedNetwork(made, taps, CPU, "float32")(batch)
        values = {name: value.clone() for name, value in exact.items()}  # inference tensors cannot be changed
        if network._type == torch.float32:
            return values, 1.0
        last = taps[-1].name
        values[last][list(rows)] *= 1 + error
        return values, fast_seconds

    monkeypatch.setattr(precision, "_timed", timed)
    return precision.decide_precision(made, taps, CPU, pixels())


def test_a_faster_and_close_type_is_used_and_its_error_recorded(monkeypatch, small):
    chosen, error = decide(monkeypatch, small, fast_seconds=0.5, error=0.01)
    assert chosen == "bfloat16" and error == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("fast_seconds", [1.5, 1.0, 0.95])
def test_a_type_that_is_not_clearly_faster_is_not_used(monkeypatch, small, fast_seconds):
    assert decide(monkeypatch, small, fast_seconds, error=0.0) == ("float32", None)


@pytest.mark.parametrize("error, chosen", [(0.019, "bfloat16"), (0.021, "float32"), (float("nan"), "float32")])
@pytest.mark.parametrize("row", [0, 3])
def test_every_row_of_every_tap_must_be_within_two_percent(monkeypatch, small, error, chosen, row):
    assert decide(monkeypatch, small, 0.1, error, rows=[row])[0] == chosen


def test_overflowing_rows_are_not_within_anything(monkeypatch, small):
    assert decide(monkeypatch, small, 0.1, float("inf"))[0] == "float32"


def test_the_decision_runs_the_real_networks(small):
    made, taps = small
    chosen, error = precision.decide_precision(made, taps, CPU, pixels())
    assert (chosen, error is None) in {("float32", True), ("bfloat16", False)}
    assert error is None or 0 < error <= precision.TOLERANCE


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_fast_types_give_float32_rows_near_the_exact_ones(small, kind):
    made, taps = small
    exact = TappedNetwork(made, taps, CPU, "float32")(pixels())
    fast = TappedNetwork(made, taps, CPU, kind)(pixels())
    for name, values in fast.items():
        assert values.dtype == torch.float32
        distance = (values - exact[name]).norm(dim=1) / exact[name].norm(dim=1)
        assert 0 < distance.max() <= 0.02
