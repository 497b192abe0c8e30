"""Preprocessing gives the pixels of the reference transforms, and a recipe can carry it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision.transforms import functional as F
from torchvision.transforms.functional import pil_modes_mapping

from featx.backbones import Backbone, Preprocessing, expand_views
from featx.errors import BackboneError

# width, height: photos, odd ones, some smaller than the crop
SIZES = [(300, 200), (200, 301), (224, 224), (64, 50), (31, 80), (513, 511), (7, 3)]


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)) for width, height in SIZES]


def assert_prepares_like(own: Preprocessing, reference) -> None:
    for picture in pictures():
        pixels = own(picture)
        assert pixels.shape == (*own.size, 3) and pixels.dtype == np.uint8
        values = own.normalise(torch.from_numpy(pixels.copy())[None])[0]
        assert torch.equal(values, reference(picture)), picture.size


def test_pixels_and_values_are_torchvisions(subtests):
    for name, weights in [
        ("resnet18", "DEFAULT"),  # bilinear, 256 -> 224
        ("efficientnet_b1", "IMAGENET1K_V1"),  # bicubic, 256 -> 240
        ("swin_t", "DEFAULT"),  # bicubic, 232 -> 224
        ("inception_v3", "DEFAULT"),  # 342 -> 299
        ("vgg16", "IMAGENET1K_FEATURES"),  # mean and std of its own
        ("efficientnet_v2_s", "DEFAULT"),  # bilinear, 384 -> 384
        ("vit_h_14", "IMAGENET1K_SWAG_E2E_V1"),  # bicubic, 518 -> 518
        ("convnext_tiny", "DEFAULT"),  # bilinear, 236 -> 224
    ]:
        with subtests.test(name):
            preset = getattr(torchvision.models.get_model_weights(name), weights).transforms()
            assert_prepares_like(Preprocessing.from_torchvision(preset), preset)


def test_pixels_and_values_are_timms(subtests):
    for name in [
        "tf_efficientnet_lite0.in1k",  # bicubic, mean and std 0.5
        "resnet18.a1_in1k",
        "csatv2.r512_in1k",  # bilinear
        "coat_lite_medium_384.in1k",  # squash
        "efficientnet_b4.ra2_in1k",  # 320, crop_pct 0.875
        "swin_tiny_patch4_window7_224.ms_in1k",  # crop_pct 0.9
        "vit_base_patch16_384.augreg_in21k_ft_in1k",  # crop_pct 1.0
    ]:
        with subtests.test(name):
            config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
            assert_prepares_like(Preprocessing.from_timm(config), create_transform(**config))


def test_timms_squash_is_followed_off_the_square():
    config = resolve_data_config({"input_size": (3, 128, 96), "crop_mode": "squash", "crop_pct": 0.9})
    assert_prepares_like(Preprocessing.from_timm(config), create_transform(**config))


@pytest.mark.parametrize("rounds", [40, pytest.param(1_000, marks=pytest.mark.slow)])
def test_pixels_are_torchvisions_whatever_the_sizes(rounds):
    rng = np.random.default_rng(rounds)
    for interpolation in [*pil_modes_mapping] * rounds:
        width, height, *crop = (int(side) for side in rng.integers(1, 120, 4))
        resize = [int(rng.integers(1, 100))] if rng.random() < 0.7 else [int(side) for side in rng.integers(1, 120, 2)]
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        expected = np.asarray(F.center_crop(F.resize(picture, resize, interpolation), crop))
        own = Preprocessing(tuple(crop), resize[0] if len(resize) == 1 else tuple(resize), interpolation.value)
        assert np.array_equal(own(picture), expected), (picture.size, own)


@pytest.mark.parametrize("change", [{"crop_mode": "border"}, {"input_size": (1, 28, 28)}])
def test_an_unsupported_preprocessing_of_timms_is_refused(change):
    config = resolve_data_config({"input_size": (3, 224, 224)}) | change
    with pytest.raises(BackboneError, match=r"give your own: featx\.Backbone\(name, preprocessing=") as error:
        Preprocessing.from_timm(config)
    assert "\n" not in str(error.value)


def test_random_weights_keep_the_preprocessing_of_the_pretrained_ones():
    preset = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT.transforms()
    assert_prepares_like(Backbone("squeezenet1_1", weights=None).preprocessing, preset)


def test_the_bundled_network_has_its_recorded_preprocessing():
    found = Backbone("bundled:efficientnet_lite0").preprocessing
    assert found.size == (224, 224) and found.interpolation == "bicubic"
    assert found.mean == found.std == (0.5, 0.5, 0.5)


def test_the_users_preprocessing_is_used():
    own = Preprocessing(crop=(48, 64), resize=(50, 70), interpolation="nearest")
    assert Backbone("squeezenet1_1", weights=None, preprocessing=own).preprocessing is own


@pytest.mark.parametrize("resize", [256, (40, 60)])
def test_a_recipe_can_carry_a_preprocessing(resize):
    own = Preprocessing((32, 48), resize, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    again = Preprocessing.from_dict(json.loads(json.dumps(own.to_dict())))
    assert again == own
    assert all(np.array_equal(again(picture), own(picture)) for picture in pictures())


def test_normalising_is_the_formula_and_leaves_the_pixels_alone():
    own = Preprocessing((4, 4), 4, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8))
    before = pixels.clone()
    expected = (pixels.double() / 255 - torch.tensor(own.mean).double()) / torch.tensor(own.std).double()
    torch.testing.assert_close(own.normalise(pixels).double(), expected.permute(0, 3, 1, 2), atol=1e-6, rtol=0)
    assert torch.equal(pixels, before)


def test_views_are_torchvisions_ten_crops():
    prepare = Preprocessing((24, 20), (31, 44))
    ten = ["top-left", "top-right", "bottom-left", "bottom-right", "center"]
    # the top left of a mirrored picture is the mirror image of the top right
    ten += ["top-right-flip", "top-left-flip", "bottom-right-flip", "bottom-left-flip", "flip"]
    assert sorted(ten) == sorted(expand_views(["center", "flip", "crop:8"]))
    for picture in pictures():
        resized = F.resize(picture, [31, 44])
        expected = np.stack([np.asarray(crop) for crop in F.ten_crop(resized, [24, 20])])
        expected[-1] = expected[4][:, ::-1]
        np.testing.assert_array_equal(prepare.views(picture, ten), expected)
    small = Preprocessing((30, 40), (20, 20)).views(pictures()[0], ["top-left", "bottom-right"])
    assert not small[0, 20:].any() and small[0, :20, :20].any() and not small[1, :10].any() and small[1, 10:, 20:].any()
