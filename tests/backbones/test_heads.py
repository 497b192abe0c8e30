"""Penultimate is the classifier's input according to the network's `forward_head(..., pre_logits=True)`."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from helpers import assert_tells
from torch import nn

from featx.backbones import Backbone, Preprocessing, TappedNetwork, describe, resolve_taps
from featx.backbones.hooks import Hooked
from featx.backbones.trace import trace_of
from featx.errors import LayerError

timm = importlib.import_module("timm")
CPU = torch.device("cpu")

TINY = {"embed_dim": 12, "depth": 1, "num_heads": 2}
# name: (what makes it narrow, side of the images, penultimate with and without a classifier)
NARROW: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "vit_base_patch16_siglip_224": (TINY | {"img_size": 48}, 48, *["attn_pool.getitem_5"] * 2),
    "naflexvit_base_patch16_siglip": (TINY, 48, *["attn_pool.getitem_5"] * 2),
    "qwen3_vit_88m": (TINY | {"embed_dim": 24}, 64, *["norm.layer_norm"] * 2),
    "eva02_tiny_patch14_224": (TINY | {"embed_dim": 24, "img_size": 42}, 42, *["fc_norm.layer_norm"] * 2),
    "vit_small_patch16_dinov3": (TINY | {"embed_dim": 24, "img_size": 48}, 48, "mean", "mean"),
    "deit_tiny_distilled_patch16_224": (TINY | {"img_size": 48}, 48, "pre_logits", "truediv"),
    "mobilenetv3_small_050": ({}, 32, "flatten", "flatten"),
    "resnetv2_18": ({"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}, 32, "head.global_pool.pool", "head.flatten"),
}


def made_of(name: str, options: dict[str, Any], size: tuple[int, int], classes: int) -> Backbone:
    """A network of timm's as a user's module, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = timm.create_model(name, **options, num_classes=classes)
    return Backbone(module, preprocessing=Preprocessing(size, size))


def drawn(made: Backbone) -> Backbone:
    """Randomise constant initial weights too, since a scale of zero hides its input."""
    generator = torch.Generator().manual_seed(0)
    for tensor in [*made.module.parameters(), *made.module.buffers()]:
        if tensor.is_floating_point() and tensor.ndim and tensor.numel() and (tensor == tensor.flatten()[0]).all():
            tensor.data.uniform_(0.4, 0.8, generator=generator)
    return made


def pixels_for(made: Backbone, n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, *made.preprocessing.size, generator=torch.Generator().manual_seed(0))


def assert_penultimate(made: Backbone, expected: torch.Tensor) -> str:
    """Check the rows of penultimate; returns its layer, whose shape may also be (c, 1, 1)."""
    (tap,), _ = resolve_taps(made, "penultimate", "none")
    (rows,) = TappedNetwork(made, [tap], CPU, "float32")(pixels_for(made, len(expected))).values()
    rows, expected = rows.flatten(1), expected.flatten(1)
    assert rows.shape == expected.shape and (rows - expected).norm() <= 1e-4 * expected.norm(), tap
    return tap.node


def pre_logits(module: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return module.forward_head(module.forward_features(pixels), pre_logits=True)


@pytest.mark.parametrize("name", NARROW)
def test_penultimate_is_the_classifiers_input(name):
    options, side, *nodes = NARROW[name]
    for classes, node in zip((7, 0), nodes, strict=True):
        made = drawn(made_of(name, options, (side, side), classes))
        expected = pre_logits(made.module, pixels_for(made))
        assert assert_penultimate(made, expected) == node
        if not classes:
            with torch.inference_mode():
                torch.testing.assert_close(expected, made.module(pixels_for(made)))


def test_every_listed_layer_of_a_network_with_empty_layers_can_be_tapped():
    made = made_of(
        "qwen3_vit_88m", TINY | {"embed_dim": 24, "depth": 2}, (64, 64), 0
    )  # it cuts off the tokens in front: none
    listed = describe(made)
    assert [row.name for row in listed if "penultimate" in row.mark] == ["norm.layer_norm"]
    assert sum("stage" in row.mark for row in listed) > 1 and all(math.prod(row.shape) for row in listed)
    resolve_taps(made, [row.name for row in listed], "avg")
    with pytest.raises(LayerError) as error:
        resolve_taps(made, "encoder.blocks.1.attn.getitem_12", "avg")
    assert_tells(
        error.value, "layer 'encoder.blocks.1.attn.getitem_12' of module:Qwen3VitClassifier does not give a tensor"
    )


@pytest.mark.parametrize(
    "name, options, tokens, has",
    [
        ("vit_small_patch16_dinov3", {"embed_dim": 24, "img_size": 48}, 5, None),
        ("vit_base_patch16_siglip_224", {"img_size": 48}, 0, "none. 'avg' is the mean"),
        (
            "vit_base_patch16_rope_reg1_gap_256",
            {"embed_dim": 24, "img_size": 48},
            1,
            "register tokens only. 'tokens' is the mean",
        ),
        ("naflexvit_base_patch16_parfac_gap", {}, 4, "register tokens only. 'tokens' is the mean"),
    ],
)
def test_the_class_token_is_distinguished_from_registers(name, options, tokens, has):
    made = drawn(made_of(name, TINY | options, (48, 48), 0))
    block = made.module.blocks[-1]
    seen: list[torch.Tensor] = []
    handle = block.register_forward_hook(lambda _, inputs, output: seen.append(output))
    with torch.inference_mode():
        made.module(pixels_for(made))
    handle.remove()
    assert seen[0].shape[1] == tokens + 9
    pools = ["blocks.0:tokens"] + ["blocks.0:cls"] * (has is None)
    taps, _ = resolve_taps(made, pools, "avg")
    rows = TappedNetwork(made, taps, CPU, "float32")(pixels_for(made))
    torch.testing.assert_close(rows["blocks.0:tokens"], seen[0][:, tokens:].mean(1))
    if has is None:
        torch.testing.assert_close(rows["blocks.0:cls"], seen[0][:, 0])
    else:
        with pytest.raises(LayerError) as error:
            resolve_taps(made, "blocks.0:cls", "avg")
        assert_tells(error.value, f"pool 'cls' needs a class token; layer 'blocks.0' has {has}")


class Own(nn.Module):
    """A user's network with a head like timm's, or one without pre-logits or not used in the forward."""

    def __init__(self, head: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.pre_logits, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 6), nn.Linear(6, 2)
        self.head = head

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        x = self.pre_logits(x.mean((2, 3)))
        if pre_logits and self.head == "raises":
            raise NotImplementedError
        if pre_logits:
            return (x, x) if self.head == "pair" else x.abs()
        return self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.forward_features(x)
        return self.fc(self.pre_logits(x.amax((2, 3)))) if self.head == "unused" else self.forward_head(x)


@pytest.mark.parametrize(
    "head, layers_of",
    [("timm's", trace_of), ("timm's", Hooked), ("raises", trace_of), ("raises", Hooked), ("pair", trace_of),
     ("unused", Hooked)],
)  # fmt: skip
def test_a_users_head(head, layers_of):
    made = Backbone(Own(head), preprocessing=Preprocessing((8, 8), 8))
    layers = layers_of(made)
    assert not isinstance(trace_of(made), Hooked)
    assert layers.penultimate() == ("pre_logits_" if head == "timm's" else "pre_logits")
    assert ("pre_logits_" in layers.nodes) == (head == "timm's")
    assert layers.shapes()["pre_logits"] == (6,)  # the module's
    if head == "timm's":
        expected = pre_logits(made.module, pixels_for(made))
        names = ["pre_logits_", "fc", "pre_logits_", "pre_logits"]
        with torch.inference_mode():
            rows = layers.tapped(names, [nn.Identity() for _ in names])(pixels_for(made))
        torch.testing.assert_close(rows[0], expected)
        assert torch.equal(rows[0], rows[2])
        torch.testing.assert_close(rows[1], made.module(pixels_for(made)))


@pytest.mark.parametrize("layers_of", [trace_of, Hooked])
def test_a_head_set_on_one_object_is_restored(layers_of):
    net = Own("timm's")
    net.forward_head = lambda x, pre_logits=False: x.amax((2, 3))
    made = Backbone(net, preprocessing=Preprocessing((8, 8), 8))
    layers = layers_of(made)
    layer = layers.penultimate()
    with torch.inference_mode():
        (rows,) = layers.tapped([layer], [nn.Identity()])(pixels_for(made))
        torch.testing.assert_close(rows, made.module.conv(pixels_for(made)).amax((2, 3)))


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "deit_tiny_distilled_patch16_224", "resnetv2_18"])
def test_hooks_find_the_same(name):
    options, side, _, _ = NARROW[name]
    made = drawn(made_of(name, options, (side, side), 7))
    hooked = Hooked(made)
    layer = hooked.penultimate()
    assert (layer == "pre_logits") == (name == "deit_tiny_distilled_patch16_224")
    expected = pre_logits(made.module, pixels_for(made))
    with torch.inference_mode():
        (rows,) = hooked.tapped([layer], [nn.Identity()])(pixels_for(made))
    torch.testing.assert_close(rows.flatten(1), expected)


class Block(nn.Module):
    """A residual block and the layers behind it."""

    def __init__(self, behind: nn.Module, num_classes: int = 3) -> None:
        super().__init__()
        self.first, self.second, self.behind = nn.Linear(12, 24), nn.Linear(24, 12), behind
        self.num_classes = num_classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        x = x.mean((2, 3)).repeat(1, 4)
        x = x + self.second(self.first(x).relu())
        return self.behind(x).view(n, -1)


@pytest.mark.parametrize(
    "behind, num_classes, node",
    [
        (nn.Identity(), 3, "view"),  # of the network
        (nn.Linear(12, 3), 3, "add"),
        (nn.Sequential(nn.Linear(12, 3), nn.Softmax(1)), 3, "add"),
        (nn.Sequential(nn.Linear(12, 12), nn.ReLU()), 0, "view"),
    ],
)
def test_a_residual_branch_is_no_classifier(behind, num_classes, node):
    torch.manual_seed(0)
    made = Backbone(Block(behind, num_classes), preprocessing=Preprocessing((8, 8), 8))
    assert trace_of(made).penultimate() == node
    if num_classes:  # an exported program does not say
        images = {0: torch.export.Dim("batch")}
        program = torch.export.export(made.module, (pixels_for(made),), dynamic_shapes=(images,))
        assert trace_of(Backbone(program, preprocessing=made.preprocessing)).penultimate() == node


# files of timm's whose smallest network needs more memory or time than a test should: what makes it narrow
NARROWER = {"embed_dim": 96, "depth": 2, "num_heads": 2}
SMALLER: dict[str, dict[str, Any]] = {
    "beit": {"depth": 2},
    "deepseek_vit": NARROWER,
    "gemma4_vit": NARROWER,
    "naflexvit": {"depth": 2},
    "qwen3_vit": NARROWER,
    "vision_transformer_sam": {"depth": 2},
}
WHOLE = ("halonet_h1", "deepseek_vit_412m")  # not of 128 x 128: windows of 8 at each scale, patches of 14
VARIANTS: dict[str, dict[str, Any]] = {  # of networks that differ in their tokens, pooling or head
    "beitv2_base_patch16_224": {"depth": 2},
    "convnext_base.clip_laion2b": {"depths": (1, 1, 1, 1)},
    "crossvit_tiny_240": {},
    "deit_tiny_distilled_patch16_224": {},
    "efficientvim_m1_dist": {},
    "eva02_tiny_patch14_224": {},
    "eva02_tiny_patch14_336": {},
    "hiera_tiny_224": {},
    "levit_conv_128s": {},
    "levit_256d": {},
    "naflexvit_base_patch16_map": {"depth": 2},
    "naflexvit_base_patch16_radio_v3": {"depth": 2},
    "naflexvit_base_patch16_siglip": {"depth": 2},
    "qwen3_vit_88m_merge": NARROWER,
    "repvit_m0_9.dist_450e_in1k": {},
    "resnet50_clip": {},
    "vit_base_patch16_224.mae": {"depth": 2},
    "vit_base_patch16_rope_reg1_gap_256": {"depth": 2},
    "vit_base_patch16_siglip_224": {"depth": 2},
    "vit_base_patch32_clip_224": {"depth": 2},
    "vit_base_patch32_siglip_256": {"depth": 2},
    "vit_pe_core_tiny_patch16_384": {},
    "vit_small_patch14_reg4_dinov2": {"depth": 2},
    "vit_small_patch14_dinov2": {"depth": 2},
    "vit_small_patch16_dinov3": {"depth": 2},
    "vit_small_patch16_dinov3_qkvb": {"depth": 2},
}


def smallest_of(module: str) -> str:
    """The network of a file of timm's with the fewest parameters."""
    sizes: dict[str, int] = {}
    for name in timm.list_models(module=module)[:40]:
        with torch.device("meta"):
            sizes[name] = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
    return min(sizes, key=sizes.__getitem__)


def assert_timms_own(made: Backbone) -> None:
    made = drawn(made)
    assert_penultimate(made, pre_logits(made.module, pixels_for(made, 1)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of timm, when it builds on the meta device
@pytest.mark.parametrize("module", timm.list_modules())
def test_every_file_of_timm(module):
    name = smallest_of(module)
    if module in SMALLER:
        assert_both_ways(name, SMALLER[module])
    else:
        size = size_of(name)
        assert_timms_own(Backbone(f"timm:{name}", weights=None, preprocessing=Preprocessing(size, size)))
        # by name with a classifier, or without; as a module the other way
        assert_timms_own(made_of(name, {}, size, 7 if not timm.get_pretrained_cfg_value(name, "num_classes") else 0))


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_the_variants_of_timm(name):
    assert_both_ways(name, VARIANTS[name])


def assert_both_ways(name: str, options: dict[str, Any]) -> None:
    for classes in (7, 0):
        assert_timms_own(made_of(name, options, size_of(name), classes))


def size_of(name: str) -> tuple[int, int]:
    """The network's own, or a smaller one that it takes too."""
    config = timm.get_pretrained_cfg(name)
    return config.input_size[1:] if config.fixed_input_size or name in WHOLE else (128, 128)
