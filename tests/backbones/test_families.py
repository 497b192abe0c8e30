"""Every family of networks: penultimate and stages are sensible names, their rows the untouched network's own."""

from __future__ import annotations

import narrow
import pytest
import torch
import torchvision
from torch import nn

from featx.backbones import Backbone, Preprocessing, TappedNetwork, resolve_taps
from featx.backbones.trace import trace_of

CPU = torch.device("cpu")


def evens(prefix: str, n: int) -> list[str]:
    return [f"{prefix}{round(n * quarter / 4) - 1}" for quarter in (1, 2, 3, 4)]


def numbered(prefix: str, numbers: range | tuple[int, ...]) -> list[str]:
    return [f"{prefix}{number}" for number in numbers]


# name: (stages, the module whose input is penultimate, features of the penultimate layer)
BOLD = {
    "vgg16": (numbered("features.", (4, 9, 16, 23, 30)), "classifier.6", 4096),
    "resnet18": (numbered("layer", (1, 2, 3, 4)), "fc", 512),
    "resnet50": (numbered("layer", (1, 2, 3, 4)), "fc", 2048),
    "inception_v3": (["Mixed_5d", "Mixed_6e", "Mixed_7c"], "fc", 2048),
    "mobilenet_v3_small": (numbered("features.", (1, 3, 8, 11)), "classifier.3", 1024),
    "mobilenet_v3_large": (numbered("features.", (1, 3, 6, 12, 15)), "classifier.3", 1280),
    "efficientnet_b0": (numbered("features.", range(1, 8)), "classifier.1", 1280),
    "convnext_tiny": (numbered("features.", (1, 3, 5, 7)), "classifier.2", 768),
    "vit_b_16": (evens("encoder.layers.encoder_layer_", 12), "heads", 768),
    "swin_t": (numbered("features.", (1, 3, 5, 7)), "head", 768),
}
OTHERS = {
    "googlenet": (["inception3b", "inception4e", "inception5b"], "fc", 1024),
    "mobilenet_v2": (numbered("features.", (1, 3, 6, 13, 17)), "classifier", 1280),
    "densenet121": (numbered("features.denseblock", (1, 2, 3, 4)), "classifier", 1024),
    "regnet_y_400mf": (numbered("trunk_output.block", (1, 2, 3, 4)), "fc", 440),
    "shufflenet_v2_x0_5": (numbered("stage", (2, 3, 4)), "fc", 1024),
    "squeezenet1_1": (numbered("features.", (3, 4, 6, 7, 9, 10, 11, 12)), "classifier", 512),
    "mnasnet0_5": (numbered("layers.", range(8, 14)), "classifier", 1280),
    "alexnet": (numbered("features.", (2, 5, 12)), "classifier.6", 4096),
    "maxvit_t": (numbered("blocks.", (0, 1, 2, 3)), "classifier.5", 512),
    "timm:tf_efficientnet_lite0": (numbered("blocks.", range(7)), "classifier", 1280),
    "timm:convnext_pico": (numbered("stages.", (0, 1, 2, 3)), "head.fc", 512),
    "timm:vit_tiny_patch16_224": (evens("blocks.", 12), "head", 192),
    "timm:vit_small_patch14_reg4_dinov2": (evens("blocks.", 12), "norm", 384),
    "timm:deit_tiny_patch16_224": (evens("blocks.", 12), "head", 192),
    "timm:swin_tiny_patch4_window7_224": (numbered("layers.", (0, 1, 2, 3)), "head.fc", 768),
    "timm:resnet18": (numbered("layer", (1, 2, 3, 4)), "fc", 512),
    "timm:mobilenetv4_conv_small": (numbered("blocks.", (0, 1, 2, 3)), "classifier", 1280),
    "timm:mixer_s32_224": (numbered("blocks.", range(8)), "head", 512),
    "timm:coatnet_nano_rw_224": (numbered("stages.", (0, 1, 2, 3)), "head.fc", 512),
    "timm:maxxvit_rmlp_nano_rw_256": (numbered("stages.", (0, 1, 2, 3)), "head.fc", 512),
}
NARROW = {
    "narrow vgg11": (numbered("features.", (2, 5, 10, 15, 20)), "classifier.6", 8),
    "narrow vit_b_32": (evens("encoder.layers.encoder_layer_", 12), "heads", 16),
}
SLOW = {"vgg16", "vit_b_16", "convnext_tiny", "swin_t", *OTHERS}  # of these two, test_backbones_taps asks the same
FAMILIES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in [*NARROW, *BOLD, *OTHERS]]


def made_of(name: str) -> Backbone:
    """A narrow network, or a well-known one of its name."""
    makers = {"narrow vgg11": narrow.vgg_11, "narrow vit_b_32": narrow.vit_b_32}
    if name in makers:
        return Backbone(makers[name](), preprocessing=Preprocessing((64, 64), 64))
    return Backbone(name, weights=None)


def randomised(made: Backbone, seed: int = 0) -> Backbone:
    """Random batch norms; as built they are the identity."""
    generator = torch.Generator().manual_seed(seed)
    for part in made.module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.2, 0.2, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)
            part.weight.uniform_(0.5, 1.5, generator=generator)
            part.bias.uniform_(-0.2, 0.2, generator=generator)
    return made


def seen(module: nn.Module, stages: list[str], classifier: str, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Outputs of the stages and the classifier's input, from hooks on the original network."""
    found: dict[str, torch.Tensor] = {}
    handles = [
        module.get_submodule(name).register_forward_hook(lambda _, i, o, name=name: found.update({name: o.clone()}))
        for name in stages
    ]
    handles.append(
        module.get_submodule(classifier).register_forward_pre_hook(lambda _, i: found.update({"": i[0].clone()}))
    )
    with torch.inference_mode():
        module(pixels)
    for handle in handles:
        handle.remove()
    return [found[name] for name in [*stages, ""]]


@pytest.mark.parametrize("name", FAMILIES)
def test_stages_and_penultimate_are_the_networks_own(name):
    stages, classifier, width = (NARROW | BOLD | OTHERS)[name]
    made = randomised(made_of(name))
    pixels = torch.randn(1, 3, *made.preprocessing.size, generator=torch.Generator().manual_seed(0))
    taps, _ = resolve_taps(made, ["stages", "penultimate"], "none")
    assert [tap.node for tap in taps[:-1]] == stages
    *found, last = TappedNetwork(made, taps, CPU, "float32")(pixels).values()
    *expected, entering = seen(made.module, stages, classifier, pixels)
    if last.ndim == 2 and entering.shape != last.shape:  # what the norm or the dropout before the head sees: its token
        entering = made.module.get_submodule(classifier)(entering)[:, 0] if classifier == "norm" else entering
    assert last.shape[1] == width
    for got, true in zip([*found, last], [*expected, entering], strict=True):
        assert got.shape == true.shape
        assert (got - true).norm() <= 1e-4 * true.norm()


def test_the_features_of_vgg_are_flattened_or_averaged():
    made = Backbone(narrow.vgg_11(), preprocessing=Preprocessing((224, 224), 256))
    taps, _ = resolve_taps(made, ["features.20:flatten", "features.20:avg", "avgpool:flatten"], "avg")
    assert [tap.shape for tap in taps] == [(25_088,), (512,), (25_088,)]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "timm:resnet18"])
def test_no_batch_norm_is_left_to_run(name):
    trace = trace_of(Backbone(name, weights=None))
    network = trace.tapped([trace.penultimate()], [nn.Identity()])
    assert not any(isinstance(part, nn.BatchNorm2d) for part in network.modules())


def test_a_convolution_in_two_places_keeps_its_batch_norms():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            conv = nn.Conv2d(3, 3, 1)
            self.one, self.two = (
                torchvision.ops.Conv2dNormActivation(3, 3, 1, activation_layer=nn.ReLU) for _ in range(2)
            )
            self.one[0] = self.two[0] = conv

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x))

    made = randomised(Backbone(Shared().requires_grad_(False), preprocessing=Preprocessing((16, 16), 16)))
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    taps, _ = resolve_taps(made, ["one", "two"], "none")
    found = TappedNetwork(made, taps, CPU, "float32")(pixels)
    with torch.inference_mode():
        torch.testing.assert_close(found["one:none"], made.module.one(pixels))
        torch.testing.assert_close(found["two:none"], made.module(pixels))


@pytest.mark.parametrize(
    "name, tokens",
    [
        ("resnet18", 0),
        ("vit_b_32", 1),
        ("timm:vit_tiny_patch16_224", 1),
        ("timm:deit_tiny_distilled_patch16_224", 2),
        ("timm:vit_small_patch14_reg4_dinov2", 5),
        ("timm:mixer_s32_224", 0),
    ],
)
def test_prefix_tokens_are_counted(name, tokens):
    assert trace_of(Backbone(name, weights=None)).prefix_tokens == tokens


def test_stages_are_the_main_blocks_even_if_a_module_is_named_stages():
    class Staged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 1)) for _ in range(3))
            self.output = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for stage in self.stages:
                x = stage(x)
            return self.output(x).mean((2, 3))

    made = Backbone(Staged(), preprocessing=Preprocessing((16, 16), 16))
    taps, _ = resolve_taps(made, "stages", "avg")
    assert [tap.node for tap in taps] == ["stages.0", "stages.1", "stages.2"]
    taps, aliases = resolve_taps(made, "output", "avg")
    assert taps[0].shape == (3,) and taps[0].node == "output"  # the module of this name, no alias
    assert not aliases


def test_a_users_module_states_its_prefix_tokens():
    class Tokens(nn.Module):
        num_prefix_tokens = 3

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(2).transpose(1, 2)

    assert trace_of(Backbone(Tokens(), preprocessing=Preprocessing((8, 8), 8))).prefix_tokens == 3


TOO_LARGE = 120_000_000  # parameters: half a gigabyte, twice while tracing


def looked_at(made: Backbone) -> None:
    """Names resolve and the network runs once, cut."""
    taps, _ = resolve_taps(made, ["stages", "penultimate"], "avg")
    assert 1 < len(taps) <= 9, taps
    pixels = torch.randn(1, 3, *made.preprocessing.size, generator=torch.Generator().manual_seed(0))
    rows = TappedNetwork(made, taps, CPU, "float32")(pixels)
    assert all(values.isfinite().all() for values in rows.values())


def before_scores(module: nn.Module, head: str, pixels: torch.Tensor) -> torch.Tensor:
    """The input of the last layer of a network's head; the network's output, if it has no head."""
    parts = [part for part in module.get_submodule(head).modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    seen: list[torch.Tensor] = []
    handles = [part.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for part in parts[-1:]]
    with torch.inference_mode():
        output = module(pixels)
    for handle in handles:
        handle.remove()
    return [output, *seen][-1]


@pytest.mark.slow
@pytest.mark.parametrize("classified", [True, False])
@pytest.mark.parametrize("name", torchvision.models.list_models(torchvision.models))
def test_every_classifier_of_torchvision(name, classified):
    parameters = torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
    if parameters > TOO_LARGE:
        pytest.skip("needs more memory than a test should")
    of_one_size = name.startswith(("maxvit", "vit"))
    made = randomised(Backbone(name, None, preprocessing=None if of_one_size else Preprocessing((96, 96), 96)))
    (head,) = {"classifier", "fc", "head", "heads"} & dict(made.module.named_children()).keys()
    if not classified:
        setattr(made.module, head, nn.Identity())
    looked_at(made)
    pixels = torch.randn(1, 3, *made.preprocessing.size, generator=torch.Generator().manual_seed(0))
    taps, _ = resolve_taps(made, "penultimate", "none")
    (rows,) = TappedNetwork(made, taps, CPU, "float32")(pixels).values()
    expected = before_scores(made.module, head, pixels)
    assert rows.shape == expected.shape and (rows - expected).norm() <= 1e-4 * expected.norm()
