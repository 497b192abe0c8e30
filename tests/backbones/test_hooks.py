"""Hooks on networks that cannot be traced give the same rows and names, and refuse ambiguous layers."""

from __future__ import annotations

import copy
import threading

import narrow
import pytest
import torch
from helpers import assert_tells
from torch import nn

from featx.backbones import Backbone, Preprocessing, TappedNetwork, describe, resolve_taps
from featx.backbones.hooks import Hooked
from featx.backbones.trace import trace_of
from featx.errors import BackboneError, LayerError

SMALL = Preprocessing(crop=(32, 32), resize=32)
CPU = torch.device("cpu")


class Net(nn.Module):
    """Three blocks and a classifier; `dark` runs only for negative images, so that the flow depends on values."""

    def __init__(self, act_again: float = torch.inf) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = (3, 6, 8, 10)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(n, m, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(m, m, 3, padding=1))
            for n, m in zip(widths, widths[1:], strict=False)
        )
        self.act = nn.ReLU(inplace=True)
        self.dark, self.twice = nn.Conv2d(10, 10, 1), nn.Sigmoid()
        self.pair = Pair()
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(10, 4)
        self.act_again = act_again

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = x.mean()
        for block in self.blocks:
            x = block(x)
        x = self.twice(self.twice(self.pair(self.act(x))[0])) + x
        if bright < 0:
            x = self.dark(x)
        if bright > self.act_again:
            x = self.act(x)
        return self.fc(self.drop(x.mean((2, 3))))


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
        return x - 0.1, 3


def images(n: int = 2, seed: int = 0, size: int = 32) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def own(module: nn.Module | None = None) -> Backbone:
    return Backbone(module or Net(), preprocessing=SMALL)


def rows(made: Backbone, layers: str | list[str], pool: str = "none", pixels: torch.Tensor | None = None):
    taps, _ = resolve_taps(made, layers, pool)
    return TappedNetwork(made, taps, CPU, "float32")(images() if pixels is None else pixels)


def seen(module: nn.Module, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The outputs of the original module's parts, recorded as they run."""
    found: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        handles = [
            part.register_forward_hook(lambda _, i, o, name=name: found.update({name: copy.deepcopy(o)}))
            for name, part in module.named_modules()
        ]
        module(pixels.clone())
        for handle in handles:
            handle.remove()
    return found


def test_rows_are_the_networks_own_activations():
    made = own()
    assert isinstance(trace_of(made), Hooked)
    layers = ["blocks.0", "blocks.1.1", "blocks.2", "act", "fc"]  # act overwrites what blocks.2 gave
    found, expected = rows(made, layers), seen(made.module, images())
    assert (found["blocks.2:none"] < 0).any()
    for layer in layers:
        torch.testing.assert_close(found[f"{layer}:none"], expected[layer])
    averaged = rows(made, ["blocks.0", "blocks.0:max"], "avg")
    torch.testing.assert_close(averaged["blocks.0:avg"], expected["blocks.0"].mean((2, 3)))
    torch.testing.assert_close(averaged["blocks.0:max"], expected["blocks.0"].amax((2, 3)))


def test_penultimate_stages_and_output_are_found_without_a_graph():
    made = own()
    trace = trace_of(made)
    assert trace.stages() == ["blocks.0", "blocks.1", "blocks.2"]
    assert trace.penultimate() == "fc.input" and trace.output() == "output"
    found = rows(made, ["penultimate", "output", "blocks"])
    torch.testing.assert_close(found["output:none"], made.module(images()))
    with torch.inference_mode():
        torch.testing.assert_close(made.module.fc(found["fc.input:none"]), found["output:none"])
    assert torch.equal(rows(made, "fc.input")["fc.input:none"], found["fc.input:none"])
    torch.testing.assert_close(found["blocks:none"], seen(made.module, images())["blocks.2"])  # as in a graph: its last


def test_the_module_whose_output_is_the_classifiers_input_is_penultimate():
    class Pooled(Net):
        def __init__(self, spoilt: bool) -> None:
            super().__init__()
            self.head, self.spoilt = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1)), spoilt

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.head(self.blocks[2](self.blocks[1](self.blocks[0](x if x.sum() > 0 else -x))))
            return self.fc(x.mul_(2) if self.spoilt else x)

    assert trace_of(own(Pooled(spoilt=False))).penultimate() == "head.1"  # dropout does nothing
    spoilt = own(Pooled(spoilt=True))
    assert trace_of(spoilt).penultimate() == "fc.input"  # worked on in place since
    found = rows(spoilt, ["head.1", "penultimate"])
    torch.testing.assert_close(found["head.1:none"] * 2, found["fc.input:none"])


@pytest.mark.parametrize("network", ["resnet18", "timm:vit_tiny_patch16_224", "squeezenet1_1", narrow.vgg_11])
def test_hooks_and_graphs_agree(network):
    size = 224 if "vit" in str(network) else 64
    made = Backbone(network() if callable(network) else network, None, preprocessing=Preprocessing((size, size), size))
    graph, hooked = trace_of(made), Hooked(made)
    assert not isinstance(graph, Hooked) and hooked.stages() == graph.stages()
    assert hooked.prefix_tokens == graph.prefix_tokens
    shapes = hooked.shapes()
    both = [layer for layer in graph.nodes if layer in shapes]
    assert len(both) > 10 and all(shapes[layer] == graph.shapes()[layer] for layer in both)
    layers = [*graph.stages(), graph.penultimate()], [*hooked.stages(), hooked.penultimate()]
    pixels = images(size=size)
    networks = (
        graph.tapped(layers[0], [Copy() for _ in layers[0]]),
        hooked.tapped(layers[1], [Copy() for _ in layers[1]]),
    )
    with torch.inference_mode():
        for from_graph, from_hooks in zip(*(network(pixels) for network in networks), strict=True):
            torch.testing.assert_close(from_hooks, from_graph, rtol=1e-4, atol=1e-4)


class Copy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()


def test_a_layer_run_twice_is_refused_by_name():
    with pytest.raises(LayerError) as error:
        resolve_taps(own(), "twice", "avg")
    assert_tells(
        error.value,
        "layer 'twice' of module:Net was run 2 times in one forward pass; choose a layer inside or around it",
    )


def test_a_layer_never_run_is_refused_by_name():
    with pytest.raises(LayerError) as error:
        resolve_taps(own(), "dark", "avg")
    assert_tells(error.value, "layer 'dark' of module:Net was not run on a black image")


def test_a_layer_that_gives_no_tensor_is_refused_by_name():
    with pytest.raises(LayerError, match="layer 'pair' of module:Net does not give a tensor"):
        resolve_taps(own(), "pair", "avg")


def test_a_misspelt_layer_names_the_nearest():
    with pytest.raises(LayerError, match=r"layer 'block\.1' is not in module:Net; close: 'blocks\.1'"):
        resolve_taps(own(), "block.1", "avg")


@pytest.mark.parametrize("layers", [["act"], ["blocks.0", "act"]])
def test_a_layer_run_twice_only_for_some_images_is_refused_with_them(layers):
    made = own(Net(act_again=0.4))
    with pytest.raises(LayerError, match="layer 'act' of module:Net was run 2 times in one forward pass"):
        rows(made, layers)
    rows(made, layers, pixels=images() * 0.5)  # dark enough: once


def test_a_layer_not_run_for_some_images_is_refused_with_them():
    class Early(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if x.mean() < 0.3 else self.fc(x.mean((2, 3)).repeat(1, 4)[:, :10])

    made = own(Early())
    rows(made, "blocks.1", pixels=images() * 0.1)
    with pytest.raises(LayerError, match="layer 'blocks.1' of module:Early was not run for these images"):
        rows(made, "blocks.1")


def test_a_layer_without_a_row_per_image_is_refused():
    class Merging(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.blocks[0](x if x.sum() == 0 else x.mean(0, keepdim=True))

    with pytest.raises(LayerError, match=r"layer 'blocks\.0' of module:Merging does not give one row per image"):
        rows(own(Merging()), "blocks.0")


class ByShape(nn.Module):
    """It cannot be traced, because it branches on the size; its flow is the same for all images of one size."""

    runs: list[str] = []

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.tail = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.Linear(8, 2)
        self.norm = nn.BatchNorm2d(6)  # has buffers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            x = self.norm(self.first(x))
            self.runs.append("second")
            x = self.second(x) if max(x.shape) > 8 else x
        except Exception as error:
            raise AssertionError("the stop is no exception") from error
        self.runs.append("tail")
        return self.tail(x.mean((2, 3)))


def test_nothing_deeper_than_the_deepest_layer_runs():
    made = own(ByShape())
    trace = trace_of(made)
    assert isinstance(trace, Hooked)
    network = trace.tapped(["second", "first"], [Copy(), Copy()])
    ByShape.runs.clear()
    second, first = network(images())
    assert ByShape.runs == ["second"]
    assert torch.equal(first, made.module.first(images())) and second.shape == (2, 8, 28, 28)


def test_the_users_module_is_left_alone():
    net = Net().train()
    before = copy.deepcopy(net.state_dict())
    rows(own(net), ["stages", "penultimate"])
    assert net.training and all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_a_later_call_does_not_change_earlier_rows():
    made = own()
    taps, _ = resolve_taps(made, ["blocks.0", "penultimate"], "none")
    network = TappedNetwork(made, taps, CPU, "float32")
    first = network(images(seed=1))
    kept = {name: values.clone() for name, values in first.items()}
    network(images(seed=2))
    assert all(torch.equal(first[name], kept[name]) for name in kept)


def test_two_threads_do_not_mix_their_images():
    made = own()
    taps, _ = resolve_taps(made, ["blocks.0", "fc"], "none")
    network = TappedNetwork(made, taps, CPU, "float32")
    expected = [network(images(seed=seed)) for seed in range(4)]
    wrong: list[int] = []

    def work(seed: int) -> None:
        for _ in range(20):
            got = network(images(seed=seed))
            wrong.extend(seed for name in got if not torch.equal(got[name], expected[seed][name]))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_every_listed_layer_can_be_tapped_and_has_the_listed_shape():
    made = own()
    listed = describe(made)
    assert {row.name: row.mark for row in listed}["fc.input"] == "penultimate"
    found = rows(made, [row.name for row in listed])
    assert all(found[f"{row.name}:none"].shape[1:] == row.shape for row in listed)


def test_a_network_that_does_not_run_says_why():
    class Wrong(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x if x.sum() > 0 else x)

    with pytest.raises(BackboneError) as error:
        resolve_taps(own(Wrong()), "penultimate", "avg")
    assert_tells(error.value, "module:Wrong does not run on images of 32 x 32", "shapes cannot be multiplied")


def test_an_identity_network_returns_its_input():
    made = own(nn.Identity())
    assert torch.equal(rows(made, ["penultimate", "stages", "output"])["output:none"], images())


def test_a_network_of_the_pixels_alone_has_its_layers():
    made = own(nn.Conv2d(3, 5, 1))
    assert [row.name for row in describe(made)] and trace_of(made).penultimate()
    torch.testing.assert_close(rows(made, "output").popitem()[1], made.module(images()))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_torchscript_is_refused_but_a_module_around_it_is_not():
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval())
    with pytest.raises(BackboneError) as error:
        resolve_taps(own(scripted), "output", "avg")
    assert_tells(error.value, "is TorchScript, whose layers cannot be watched; give the module that it was made from")
    made = own(nn.Sequential(scripted, nn.Conv2d(4, 5, 3)))
    torch.testing.assert_close(rows(made, "1").popitem()[1], made.module(images()))


def test_a_trace_that_is_another_function_is_not_used():
    class Unlike(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.blocks[0](x)
            return x if isinstance(x, torch.Tensor) else -x  # a symbol of tracing is none

    made = own(Unlike())
    assert torch.equal(rows(made, "output")["output:none"], made.module(images()))


def test_an_optional_input_keeps_its_default_in_a_trace():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            return self.conv(x) if mask is None else self.conv(x * mask)

    made = own(Masked())
    assert not isinstance(trace_of(made), Hooked)
    assert torch.allclose(rows(made, "conv")["conv:none"], made.module(images()))


def test_a_layers_name_that_ends_in_a_number_is_its_own():
    class Numbered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            for number in (1, 2, 3):
                self.add_module(f"conv_{number}", nn.Conv2d(3, 3, 3))
            self.act, self.act_1 = nn.ReLU(), nn.Tanh()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act_1(self.act(self.conv_3(self.act(self.conv_2(self.conv_1(x))))))

    made = own(Numbered())
    assert not isinstance(trace_of(made), Hooked)
    layers = ["conv_1", "conv_2", "conv_3", "act_1"]
    found, expected = rows(made, layers), seen(made.module, images())
    for layer in layers:
        torch.testing.assert_close(found[f"{layer}:none"], expected[layer])


def test_a_module_stands_for_what_it_returns():
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            main = self.main(x)
            self.other(x)  # computed last, and not what comes out
            return main

    made = own(nn.Sequential(Inner(), nn.ReLU()))
    torch.testing.assert_close(rows(made, "0")["0:none"], seen(made.module, images())["0"])
