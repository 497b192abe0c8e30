"""Tapped rows are the original network's activations, pooled; unknown names list similar ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from featx.backbones import Backbone, Preprocessing, Tap, TappedNetwork, describe, resolve_taps
from featx.errors import LayerError

SMALL = Preprocessing(crop=(64, 64), resize=64)
CPU = torch.device("cpu")


def backbone(name: str, preprocessing: Preprocessing | None = SMALL, seed: int = 0) -> Backbone:
    """Random weights and batch norms; as built, batch norms are the identity."""
    made = Backbone(name, weights=None, preprocessing=preprocessing)
    generator = torch.Generator().manual_seed(seed)
    for part in made.module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor, low, high in (
                (part.running_mean, -0.2, 0.2),
                (part.running_var, 0.5, 1.5),
                (part.weight.data, 0.5, 1.5),
                (part.bias.data, -0.2, 0.2),
            ):
                tensor.uniform_(low, high, generator=generator)
    return made


def pixels_for(made: Backbone, n: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, *made.preprocessing.size, generator=torch.Generator().manual_seed(seed))


def tapped(made: Backbone, layers, pool: str, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    taps, _ = resolve_taps(made, layers, pool)
    found = TappedNetwork(made, taps, CPU, "float32")(pixels)
    for tap in taps:
        assert found[tap.name].shape == (len(pixels), *tap.shape) and found[tap.name].dtype == torch.float32
    return found


def hooked(made: Backbone, modules: list[str], pixels: torch.Tensor, entering: bool = False) -> dict[str, torch.Tensor]:
    """Outputs of each module's first call in the network's own forward; copied, since later layers may change them."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str, values: torch.Tensor) -> None:
        seen.setdefault(name, values.clone())

    handles = []
    for name in modules:
        module = made.module.get_submodule(name)
        if entering:
            handles.append(module.register_forward_pre_hook(lambda _, i, name=name: keep(name, i[0])))
        else:
            handles.append(module.register_forward_hook(lambda _, i, o, name=name: keep(name, o)))
    with torch.inference_mode():
        made.module(pixels)
    for handle in handles:
        handle.remove()
    return seen


def pooled(output: torch.Tensor, pool: str, plane: tuple[int, ...]) -> torch.Tensor:
    if pool == "flatten":
        return output.flatten(1)
    if pool == "none" or not plane:
        return output
    return output.mean(plane) if pool == "avg" else output.amax(plane)


def assert_rows_equal(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape
    distance = (got - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert distance.max() <= 1e-4


@pytest.fixture(scope="module")
def resnet() -> Backbone:
    return backbone("resnet18")


@pytest.mark.parametrize("pool", ["avg", "max", "flatten", "none"])
def test_rows_are_the_networks_own_activations_pooled(resnet, pool):
    # bn1 and bn2 are followed by a ReLU, and by an addition, that work in place; relu is called twice in a block
    layers = [
        "conv1",
        "bn1",
        "layer1.0.relu",
        "layer2.0.bn1",
        "layer2.0.bn2",
        "layer2.0.downsample",
        "layer3",
        "layer4",
    ]
    pixels = pixels_for(resnet)
    found = tapped(resnet, layers, pool, pixels)
    expected = hooked(resnet, layers, pixels)
    assert list(found) == [f"{layer}:{pool}" for layer in layers]
    for layer in layers:
        assert_rows_equal(found[f"{layer}:{pool}"], pooled(expected[layer], pool, (2, 3)))


def test_a_layer_alone_before_an_in_place_relu_keeps_its_negative_values(resnet):
    pixels = pixels_for(resnet)
    found = tapped(resnet, "layer2.0.bn1:none", "avg", pixels)["layer2.0.bn1:none"]
    assert (found < 0).any()
    assert_rows_equal(found, hooked(resnet, ["layer2.0.bn1"], pixels)["layer2.0.bn1"])


def test_one_pass_gives_what_single_passes_give(resnet):
    pixels = pixels_for(resnet)
    layers = ["layer1:max", "layer2.0.bn1:none", "layer3:avg", "penultimate"]
    together = tapped(resnet, layers, "avg", pixels)
    for layer in layers:
        for name, values in tapped(resnet, layer, "avg", pixels).items():
            torch.testing.assert_close(together[name], values, rtol=1e-5, atol=1e-5)


def test_a_row_does_not_depend_on_its_neighbours(resnet):
    pixels = pixels_for(resnet, n=3)
    order = torch.tensor([2, 0, 1])
    for name, values in tapped(resnet, ["layer2", "penultimate"], "avg", pixels).items():
        moved = tapped(resnet, ["layer2", "penultimate"], "avg", pixels[order])[name]
        torch.testing.assert_close(moved, values[order], rtol=1e-5, atol=1e-6)


def test_tapping_leaves_the_backbones_own_network_and_the_pixels_as_they_were(resnet):
    pixels = pixels_for(resnet)
    state = copy.deepcopy(resnet.module.state_dict())
    before, given = resnet.module(pixels), pixels.clone()
    tapped(resnet, ["layer1.0.conv1", "layer4", "penultimate"], "max", pixels)
    after = resnet.module.state_dict()
    assert state.keys() == after.keys() and all(torch.equal(state[key], after[key]) for key in state)
    assert torch.equal(resnet.module(pixels), before) and torch.equal(pixels, given)


def test_rows_do_not_share_memory_with_later_calls(resnet):
    taps, _ = resolve_taps(resnet, ["layer1:none", "layer2:avg"], "avg")
    network = TappedNetwork(resnet, taps, CPU, "float32")
    first = network(pixels_for(resnet, seed=1))
    kept = {name: values.clone() for name, values in first.items()}
    network(pixels_for(resnet, seed=2))
    assert all(torch.equal(first[name], kept[name]) for name in kept)


def test_nothing_deeper_than_the_deepest_tap_runs():
    class Broken(nn.Module):
        """Its tail cannot run: the linear layer has the wrong width."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
            self.head = nn.Linear(123, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.second(self.first(x).relu_()).flatten(1))

    made = Backbone(Broken(), preprocessing=SMALL)
    pixels = pixels_for(made)
    second = Tap("second", "avg", "bchw", (4,))
    found = TappedNetwork(made, [second, Tap("first", "max", "bchw", (8,))], CPU, "float32")(pixels)
    assert_rows_equal(found["first:max"], made.module.first(pixels).amax((2, 3)))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        TappedNetwork(made, [second, Tap("head", "none", "bd", (2,))], CPU, "float32")(pixels)


def test_the_weights_behind_the_deepest_tap_are_dropped(resnet):
    taps, _ = resolve_taps(resnet, ["layer1", "layer2"], "avg")
    kept = {name.split(".")[0] for name, _ in TappedNetwork(resnet, taps, CPU, "float32")._network.named_parameters()}
    assert {"layer1", "layer2"} <= kept and not kept & {"layer3", "layer4", "fc"}


@pytest.mark.parametrize(
    "name, preprocessing, penultimate, classifier, stages, plane",
    [
        ("resnet18", SMALL, "flatten:none", "fc", [f"layer{i}" for i in (1, 2, 3, 4)], (2, 3)),
        ("timm:resnet18", SMALL, "global_pool.flatten:none", "fc", [f"layer{i}" for i in (1, 2, 3, 4)], (2, 3)),
        pytest.param(
            "vgg11",
            SMALL,
            "classifier.4:none",
            "classifier.6",
            [f"features.{i}" for i in (2, 5, 10, 15, 20)],
            (2, 3),
            marks=pytest.mark.slow,
        ),
        (
            "mobilenet_v3_small",
            SMALL,
            "classifier.1:none",
            "classifier.3",
            [f"features.{i}" for i in (1, 3, 8, 11)],
            (2, 3),
        ),
        ("convnext_tiny", SMALL, "classifier.1:none", "classifier.2", [f"features.{i}" for i in (1, 3, 5, 7)], (2, 3)),
        (
            "squeezenet1_1",
            SMALL,
            "features.12.cat:avg",
            "classifier.1",
            [f"features.{i}" for i in (3, 4, 6, 7, 9, 10, 11, 12)],
            (2, 3),
        ),
        (
            "densenet121",
            SMALL,
            "flatten:none",
            "classifier",
            [f"features.denseblock{i}" for i in (1, 2, 3, 4)],
            (2, 3),
        ),
        (
            "bundled:efficientnet_lite0",
            SMALL,
            "global_pool.flatten:none",
            "classifier",
            [f"blocks.{i}" for i in range(7)],
            (2, 3),
        ),
        ("timm:vit_tiny_patch16_224", None, "getitem_1:none", "head", [f"blocks.{i}" for i in (2, 5, 8, 11)], (1,)),
        (
            "timm:swin_tiny_patch4_window7_224",
            None,
            "head.global_pool.pool.mean:none",
            "head.fc",
            [f"layers.{i}" for i in range(4)],
            (1, 2),
        ),
        ("swin_t", SMALL, "flatten:none", "head", [f"features.{i}" for i in (1, 3, 5, 7)], (1, 2)),
    ],
)
def test_penultimate_and_stages_of_the_families(name, preprocessing, penultimate, classifier, stages, plane):
    made = backbone(name, preprocessing)
    taps, aliases = resolve_taps(made, ["stages", "penultimate"], "avg")
    assert [tap.name for tap in taps] == [f"{stage}:avg" for stage in stages] + [penultimate]
    assert aliases == {"penultimate": penultimate}
    pixels = pixels_for(made, n=1)
    found = TappedNetwork(made, taps, CPU, "float32")(pixels)
    seen = hooked(made, stages, pixels)
    for stage in stages:
        assert_rows_equal(found[f"{stage}:avg"], seen[stage].mean(plane))
    (entering,) = hooked(made, [classifier], pixels, entering=True).values()
    assert_rows_equal(found[penultimate], pooled(entering, penultimate.rpartition(":")[2], (2, 3)))


@pytest.mark.parametrize("layout, plane", [("bhwc", (1, 2)), ("btc", (1,))])
def test_channels_last_and_token_layouts_are_pooled_over_their_plane(layout, plane):
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.mix = nn.Conv2d(3, 12, 16, stride=16), nn.Linear(12, 12)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.patches(x).permute(0, 2, 3, 1)  # (b, 4, 4, 12)
            return self.mix(x if layout == "bhwc" else x.flatten(1, 2))

    torch.manual_seed(0)
    made = Backbone(Body(), preprocessing=SMALL)
    pixels = pixels_for(made)
    for pool in ("avg", "max", "flatten", "none"):
        (tap,), _ = resolve_taps(made, "mix", pool)
        assert tap.layout == layout
        with torch.inference_mode():
            expected = pooled(made.module(pixels), pool, plane)
        assert_rows_equal(tapped(made, "mix", pool, pixels)[f"mix:{pool}"], expected)


@pytest.mark.slow
def test_torchvisions_vision_transformer():
    made = backbone("vit_b_16", None)
    taps, aliases = resolve_taps(made, ["stages", "penultimate"], "max")
    assert len(taps) == 5 and all(tap.layout == "btc" for tap in taps[:-1])
    pixels = pixels_for(made, n=1)
    found = TappedNetwork(made, taps, CPU, "float32")(pixels)
    last = "encoder.layers.encoder_layer_11"
    assert_rows_equal(found[f"{last}:max"], hooked(made, [last], pixels)[last].amax(1))
    (entering,) = hooked(made, ["heads"], pixels, entering=True).values()
    assert_rows_equal(found[aliases["penultimate"]], entering)


def test_a_network_without_classifier_ends_in_its_penultimate_layer():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3), nn.ReLU(inplace=True))
    made = Backbone(body, preprocessing=SMALL)
    pixels = pixels_for(made)
    (values,) = tapped(made, "penultimate", "avg", pixels).values()
    with torch.inference_mode():
        assert_rows_equal(values, made.module(pixels).mean((2, 3)))


def test_penultimate_takes_a_pool_where_there_is_a_plane_and_none_where_there_is_not(resnet):
    (flat,), aliases = resolve_taps(resnet, "penultimate:max", "avg")
    assert flat.name == "flatten:none" and aliases == {"penultimate:max": "flatten:none"}
    (plane,), aliases = resolve_taps(backbone("squeezenet1_1"), "penultimate:max", "avg")
    assert plane.name == "features.12.cat:max" and aliases == {"penultimate:max": "features.12.cat:max"}


def test_a_tap_asked_for_twice_is_one(resnet):
    taps, _ = resolve_taps(resnet, ["layer1", "layer1:avg", "layer1:max", "stages"], "avg")
    assert [tap.name for tap in taps] == ["layer1:avg", "layer1:max", "layer2:avg", "layer3:avg", "layer4:avg"]


@pytest.mark.parametrize(
    "layer, close",
    [("layer9", "layer4"), ("layer2.0.bn9", "layer2.0.bn1"), ("penultimat", "penultimate")],
)
def test_a_misspelt_layer_lists_similar_names_and_the_command(resnet, layer, close):
    with pytest.raises(LayerError) as error:
        resolve_taps(resnet, [layer], "avg")
    text = str(error.value)
    assert f"layer {layer!r} is not in torchvision:resnet18" in text and "\n" not in text
    assert repr(close) in text and "featx layers torchvision:resnet18 lists all" in text


@pytest.mark.parametrize("layers, pool, got", [("layer1", "agv", "agv"), ("layer1:maxx", "avg", "maxx")])
def test_a_misspelt_pool_lists_the_known_ones(resnet, layers, pool, got):
    with pytest.raises(LayerError, match=f"pool {got!r} is not one of .*none, or one with '~512'; close: ") as error:
        resolve_taps(resnet, layers, pool)
    assert "\n" not in str(error.value)


def test_no_layer_at_all_is_refused(resnet):
    with pytest.raises(LayerError, match="layers is empty"):
        resolve_taps(resnet, [], "avg")


def test_every_listed_layer_can_be_tapped_and_has_the_listed_width():
    made = backbone("squeezenet1_1")
    listed = describe(made)
    marks = {row.name: row.mark for row in listed}
    assert marks["features.12.cat"] == "penultimate" and marks["features.3"] == marks["features.11"] == "stage"
    pixels = pixels_for(made)
    names = [row.name for row in listed]
    whole, averaged = (tapped(made, names, pool, pixels) for pool in ("none", "avg"))
    for row in listed:
        assert whole[f"{row.name}:none"].shape[1:] == row.shape
        flat = averaged.get(f"{row.name}:avg", whole[f"{row.name}:none"])  # "none" where there is no plane
        assert flat.shape == (len(pixels), row.pooled)


@pytest.mark.parametrize("layers", [None, 3, []])
def test_other_types_of_layers_are_refused(layers):
    with pytest.raises(LayerError, match="layers is"):
        resolve_taps(Backbone("bundled:pixels"), layers, "avg")
