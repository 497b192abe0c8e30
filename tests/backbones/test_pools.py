"""Every pool follows its formula on planes, channels-last planes, tokens and vectors; a projection keeps lengths."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from featx.backbones import POOLS, Tap
from featx.backbones.pools import Pool
from featx.errors import LayerError

C, SIDE, PREFIX = 6, 5, 2


def plane(b: int = 3, side: int = SIDE, seed: int = 0) -> torch.Tensor:
    return torch.randn(b, C, side, side, generator=torch.Generator().manual_seed(seed))


def forms(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same plane with channels first, with channels last, and as tokens behind a prefix of two."""
    tokens = x.flatten(2).transpose(1, 2)
    prefix = torch.full((len(x), PREFIX, C), 100.0)
    return {"bchw": x, "bhwc": x.permute(0, 2, 3, 1), "btc": torch.cat([prefix, tokens], 1)}


def pooled(x: torch.Tensor, pool: str, prefix_tokens: int = PREFIX) -> torch.Tensor:
    tap = Tap.of("layer", pool, tuple(x.shape[1:]), prefix_tokens)
    rows = Pool(tap)(x)
    assert rows.shape == (len(x), *tap.shape) and rows.dtype == torch.float32
    assert Tap.from_dict(tap.to_dict()) == tap
    return rows


def places(form: str, x: torch.Tensor) -> np.ndarray:
    """(b, places, c) in float64, by hand."""
    x = x.double().numpy()
    if form == "bchw":
        return x.reshape(len(x), C, -1).transpose(0, 2, 1)
    return x.reshape(len(x), -1, C)


@pytest.mark.parametrize("form", ["bchw", "bhwc", "btc"])
def test_means_maxima_and_generalised_means_are_over_the_plane_or_all_tokens(form):
    x = forms(plane())[form]
    by_hand = places(form, x)
    generalised = (np.maximum(by_hand, 1e-6) ** 3).mean(1) ** (1 / 3)
    expected = {"avg": by_hand.mean(1), "max": by_hand.max(1), "gem": generalised}
    for pool, values in expected.items():
        np.testing.assert_allclose(pooled(x, pool), values, rtol=1e-5, atol=1e-6)


def test_the_class_token_is_the_first_and_tokens_are_the_places_without_the_prefix():
    x = plane()
    tokens = forms(x)["btc"]
    assert torch.equal(pooled(tokens, "cls"), tokens[:, 0])
    torch.testing.assert_close(pooled(tokens, "tokens"), x.mean((2, 3)))
    torch.testing.assert_close(pooled(forms(x)["bhwc"], "tokens"), x.mean((2, 3)))  # Swin's places are its tokens
    without = tokens[:, PREFIX:]
    torch.testing.assert_close(pooled(without, "tokens"), x.mean((2, 3)))  # before the class token is put in front


@pytest.mark.parametrize("side", [1, 2, 4, 5, 7])
def test_a_spatial_pyramid_holds_the_maxima_of_its_parts(side):
    x = plane(side=side)
    expected = []
    for parts in (1, 2, 4):
        edges = [(i * side // parts, math.ceil((i + 1) * side / parts)) for i in range(parts)]
        grid = [[x[:, :, a:b, c:d].amax((2, 3)) for c, d in edges] for a, b in edges]
        expected.append(torch.stack([torch.stack(row, -1) for row in grid], -2).flatten(1))
    for form, values in forms(x).items():
        if form != "bhwc" or side != C:
            assert torch.equal(pooled(values, "spp"), torch.cat(expected, 1)), form


def test_flatten_and_none_keep_everything():
    for x in forms(plane()).values():
        assert torch.equal(pooled(x, "none"), x)
        assert torch.equal(pooled(x, "flatten"), x.flatten(1))


def test_vectors_are_not_pooled():
    x = torch.randn(3, 7)
    for pool in POOLS:
        assert torch.equal(pooled(x, pool), x), pool


def test_pooled_rows_survive_later_in_place_changes():
    for pool, form in itertools.product(POOLS, ("bchw", "bhwc", "btc")):
        if (pool, form) in {("cls", "bchw"), ("cls", "bhwc"), ("tokens", "bchw")}:
            continue
        x = forms(plane())[form]
        rows = pooled(x, pool)
        kept = rows.clone()
        x.zero_()
        assert torch.equal(rows, kept), (pool, form)


def test_pools_that_do_not_apply_to_a_layer_are_refused(subtests):
    for pool, output, words in [
        ("mean", (C, 5, 5), ["'mean' is not one of avg, max, gem, spp, cls, tokens, flatten, none"]),
        ("averag", (C, 5, 5), ["close: 'avg'"]),
        ("avg~", (C, 5, 5), ["'avg~'"]),
        ("avg~0", (C, 5, 5), ["'avg~0'"]),
        ("avg~8~8", (C, 5, 5), ["'avg~8~8'"]),
        ("avg ~8", (C, 5, 5), ["'avg ~8'"]),
        ("cls", (C, 5, 5), ["class token", "has none", "'avg'"]),
        ("cls", (25, C), ["class token", "has none"]),  # tokens before the class token is put in front
        ("tokens", (C, 5, 5), ["needs tokens", "'avg' is its mean"]),
        ("spp", (24, C), ["24 tokens", "do not form a square"]),
    ]:
        with subtests.test(ascii((pool, output))):
            with pytest.raises(LayerError) as caught:
                Tap.of("layer", pool, output, PREFIX)
            assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words), str(caught.value)


def test_layouts_follow_from_the_shape():
    of = {(6, 5, 5): "bchw", (5, 5, 6): "bhwc", (5, 5, 5): "bchw", (25, 6): "btc", (9,): "bd"}
    assert {shape: Tap.of("x", "avg", shape).layout for shape in of} == of


@pytest.mark.parametrize("size", [(224, 448), (64, 32)])
def test_images_that_are_not_square_have_planes_like_them(size):
    tall, wide = 8 * size[0] // 32, 8 * size[1] // 32
    assert Tap.of("x", "avg", (16, tall, wide), size=size).layout == "bchw"
    assert Tap.of("x", "avg", (wide, tall, wide), size=size).layout == "bchw"  # as many channels as columns
    assert Tap.of("x", "avg", (tall, wide, 768), size=size).layout == "bhwc"
    tokens = Tap.of("x", "tokens", (tall * wide + 1, 192), 1, size)
    assert (tokens.layout, tokens.prefix) == ("btc", 1)
    assert Tap.of("x", "tokens", (tall * wide, 192), 1, size).prefix == 0


def test_a_projection_is_named_recorded_and_the_same_each_time():
    x = plane()
    tap = Tap.of("layer", "flatten~64", (C, 5, 5))
    assert (tap.name, tap.shape) == ("layer:flatten~64", (64,))
    assert tap.to_dict()["projected"] == 150 and tap.to_dict()["seed"] == 0
    assert torch.equal(Pool(tap)(x), Pool(tap)(x))
    # fixed for ever: another version of NumPy or torch must not change a recorded projection
    raw = np.random.Philox(key=0).random_raw(64 * 12).reshape(64, 12)
    flat = x.flatten(1).double().numpy()
    by_hand = np.zeros((len(x), 64))
    for number in range(64):
        for word in raw[number].tolist():
            by_hand[:, number] += (1 if word & 1 else -1) * flat[:, (word >> 1) % 150]
    np.testing.assert_allclose(Pool(tap)(x), by_hand * math.sqrt(150 / (64 * 12)), rtol=1e-4, atol=1e-5)


def test_the_generators_first_words_are_constant():
    assert np.random.Philox(key=0).random_raw(2).tolist() == [213000021201967259, 4455796210202625458]


def test_narrow_rows_are_not_projected():
    for width in (6, 7, 1000):
        assert Tap.of("layer", f"avg~{width}", (C, 5, 5)) == Tap.of("layer", "avg", (C, 5, 5))


def test_a_projection_that_is_too_large_is_refused_in_one_line():
    with pytest.raises(LayerError, match="from 802,816 to 100,000 numbers is too large for memory"):
        Tap.of("layer", "flatten~100000", (64, 112, 112))
    said = Tap.of("layer", "flatten~64", (C, 5, 5)).to_dict() | {"projected": 2**60}
    with pytest.raises(LayerError):
        Tap.from_dict(said)


def test_a_projection_keeps_squared_lengths_and_distances_on_average():
    x = torch.randn(40, 20, 30, 30, generator=torch.Generator().manual_seed(1)).relu()  # sparse, as features are
    rows = pooled(x, "flatten~1024").double()
    flat = x.flatten(1).double()
    before, after = torch.pdist(flat), torch.pdist(rows)
    assert abs(float((after**2 / before**2).mean()) - 1) < 0.02
    assert float((after / before - 1).abs().max()) < 0.15  # 1 / sqrt(1024) is 0.03


def test_a_projection_in_parts_is_the_same(monkeypatch):
    from featx.backbones import pools

    x = plane(b=2)
    whole = pooled(x, "flatten~64")
    monkeypatch.setattr(pools, "_GATHERED", 2 * 12 * 5)
    assert torch.equal(pooled(x, "flatten~64"), whole)


def test_projections_survive_another_number_type():
    tap = Tap.of("layer", "flatten~64", (C, 5, 5))
    x = plane().bfloat16()
    assert torch.equal(Pool(tap).to(torch.bfloat16)(x), Pool(tap)(x))
