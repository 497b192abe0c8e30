"""Image keys are constant, unique and reveal nothing."""

from __future__ import annotations

import numpy as np
import xxhash

from featx.store import image_keys, keys

IDS = [f"class{i // 50}/{i:04}.jpg" for i in range(1000)]
DIGESTS = [i.to_bytes(16, "little") for i in range(1000)]


def test_keys_are_different_52_bit_numbers_that_a_float_holds():
    found = image_keys(IDS, DIGESTS)
    assert found.dtype == np.int64 and found.shape == (1000,) and len(set(found.tolist())) == 1000
    assert found.min() >= 0 and found.max() < 2**52 and found.max() > 2**50
    assert np.array_equal(found.astype(float).astype(np.int64), found)
    bits = (found[:, None] >> np.arange(52)) & 1
    assert np.all(np.abs(bits.mean(0) - 0.5) < 0.1)  # all 52 bits carry something


def test_a_key_does_not_depend_on_other_images():
    key_of = dict(zip(IDS, image_keys(IDS, DIGESTS).tolist(), strict=True))
    chosen = np.random.default_rng(0).permutation(1000)[:300]
    some = image_keys([IDS[i] for i in chosen], [DIGESTS[i] for i in chosen])
    assert some.tolist() == [key_of[IDS[i]] for i in chosen]


def test_a_key_depends_on_name_and_content():
    names, digests = ["a", "a", "b", "b"], [DIGESTS[0], DIGESTS[1], DIGESTS[0], DIGESTS[1]]
    assert len(set(image_keys(names, digests).tolist())) == 4


def test_keys_are_constant_over_versions():
    assert image_keys(["a.jpg", "b.jpg"], [bytes(16), bytes(range(16))]).tolist() == [
        2268827697251122,
        1550797816970264,
    ]


def test_keys_are_what_the_format_says():
    for name, digest in zip(IDS[:100], DIGESTS[:100], strict=True):
        assert image_keys([name], [digest]).tolist() == [xxhash.xxh3_64_intdigest(digest + name.encode()) >> 12]


def test_keys_that_collide_are_hashed_again(monkeypatch):
    monkeypatch.setattr(keys, "_KEY_BITS", 8)
    found = image_keys(IDS[:200], DIGESTS[:200])
    assert len(found) == len(set(found.tolist())) == 200 and found.max() < 256
    assert image_keys(IDS[:100], DIGESTS[:100]).tolist() == found[:100].tolist()  # the later of two gives way


def test_keys_do_not_reveal_the_order():
    found = image_keys(IDS, DIGESTS)
    assert abs(np.corrcoef(np.argsort(np.argsort(found)), np.arange(1000))[0, 1]) < 0.1
