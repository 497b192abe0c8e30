"""Near duplicates: copies are found however they were made, other images are not, and groups follow from them."""

from __future__ import annotations

import importlib
import io

import numpy as np
import pytest
from audited import scene
from helpers import noise
from PIL import Image, ImageEnhance, ImageOps
from runs import extract

import featx
from featx.errors import FeatxError, StoreError
from featx.learn import HoldOut, select_model
from featx.store import StoreWriter, connected, near_duplicate_groups, near_duplicates

N = 60


def jpeg(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=40)
    return Image.open(file).convert("RGB")


CHANGES = {
    "jpeg": jpeg,
    "smaller": lambda p: p.resize((38, 38), Image.Resampling.BICUBIC),
    "mirror": ImageOps.mirror,
    "brighter": lambda p: ImageEnhance.Brightness(p).enhance(1.3),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """60 pictures, then four changed copies of the first five."""
    pictures = [scene(seed) for seed in range(N)]
    copies = [change(pictures[i]) for i in range(5) for change in CHANGES.values()]
    ids = [f"{i:03}" for i in range(N)] + [f"{i:03} {name}" for i in range(5) for name in CHANGES]
    labels = [str(i % 2) for i in range(N)] + [str(i % 2) for i in range(5) for _ in CHANGES]
    path = tmp_path_factory.mktemp("copies") / "a.h5"
    return extract([np.asarray(p) for p in [*pictures, *copies]], path, ids=ids, labels=labels)


def sets_of(store) -> set[frozenset[str]]:
    numbers = near_duplicate_groups(store)
    groups = [frozenset(store.ids[numbers == g].tolist()) for g in np.unique(numbers)]
    return {group for group in groups if len(group) > 1}


def test_all_copies_are_found_and_nothing_else(store):
    expected = {frozenset([f"{i:03}", *(f"{i:03} {name}" for name in CHANGES)]) for i in range(5)}
    assert sets_of(store) == expected
    copies = near_duplicates(store)
    assert set(copies.kinds) == {"hash"} and copies.most_bits == 8 and np.isnan(copies.similarity).all()
    mirrored = [bool(m) for (a, b), m in zip(copies.pairs.tolist(), copies.are_mirrored, strict=True)
                if sorted([len(store.ids[a]), len(store.ids[b])])[0] == 3 and "mirror" in store.ids[b]]  # fmt: skip
    assert mirrored == [True] * 5


def test_copies_in_another_store(store, tmp_path):
    other = extract([np.asarray(jpeg(scene(i))) for i in (7, 900)] + [np.asarray(scene(9))], tmp_path / "b.h5")
    copies = near_duplicates(store, other)
    assert copies.pairs.tolist() == [[9, 2], [7, 0]] and copies.kinds.tolist() == ["exact", "hash"]


def test_equal_files_are_exact_and_pairs_are_listed_once(tmp_path):
    images = [np.asarray(scene(i)) for i in (0, 1, 0, 2, 0, 1)]
    copies = near_duplicates(extract(images, tmp_path / "a.h5"))
    assert copies.pairs.tolist()[:3] == [[0, 2], [0, 4], [1, 5]] and copies.kinds.tolist()[:3] == ["exact"] * 3
    assert len({tuple(pair) for pair in copies.pairs.tolist()}) == len(copies.pairs)


def test_blank_pictures_are_not_copies_of_one_another_unless_they_are_equal(tmp_path):
    levels = [np.full((20, 20, 3), level, np.uint8) for level in (3, 90, 200)]
    assert not len(near_duplicates(extract(levels, tmp_path / "a.h5")).pairs)


def test_where_all_pictures_are_alike_hashes_decide_nothing(tmp_path):
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(*[np.linspace(-1, 1, 28)] * 2)
    images = []
    for a, b, c, d in rng.uniform([0.3, 0.3, -0.3, -0.3], [0.9, 0.9, 0.3, 0.3], (200, 4)):
        images.append(np.uint8(255 * ((x / a) ** 2 + (y / b + c * x + d * x * y) ** 2 < 1)))  # silhouettes
    copies = near_duplicates(extract(images, tmp_path / "a.h5"))
    assert copies.most_bits < 4


def test_features_find_crops(tmp_path):
    pictures = [scene(seed, 96) for seed in range(80)]
    crops = [p.crop((5, 5, 91, 91)) for p in pictures[:10]]
    store = extract([np.asarray(p) for p in [*pictures, *crops]], tmp_path / "a.h5", layers="flatten")
    alone, joined = near_duplicates(store), near_duplicates(store, layer=store.layers[0])
    crop_pairs = {(i, 80 + i) for i in range(10)}
    found = [crop_pairs & {tuple(pair) for pair in copies.pairs.tolist()} for copies in (alone, joined)]
    assert len(found[1]) > len(found[0]) and len(found[1]) >= 8
    assert {tuple(pair) for pair in joined.pairs.tolist()} <= crop_pairs


def test_a_search_keeps_near_duplicates_together(store):
    options = {"estimators": ["nearest_centroid"], "groups": "near-duplicates", "folds": 3}
    selection = select_model(store, **options)
    numbers = near_duplicate_groups(store)
    assert selection.training.n_groups is not None
    training = set(numbers[store.rows(selection.training.X)])
    assert not training & set(numbers[store.rows(selection.test.X)])


def test_stores_without_statistics_say_how_to_get_them(tmp_path):
    from make_version1 import FILE

    old = featx.FeatureStore(FILE)
    assert near_duplicates(old).most_bits == -1
    with pytest.raises(StoreError, match="keeps no statistics of its images, .*extract the same images to it again"):
        near_duplicate_groups(old)


def test_a_column_of_that_name_is_a_column(tmp_path):
    (tmp_path / "in").mkdir()
    lines = ["path,label,near-duplicates"]
    for i in range(12):
        Image.fromarray(noise(i)).save(tmp_path / "in" / f"{i}.png")
        lines.append(f"{i}.png,{'ab'[i % 2]},same")
    (tmp_path / "in" / "m.csv").write_text("\n".join(lines))
    store = extract(tmp_path / "in" / "m.csv", tmp_path / "a.h5")
    with pytest.raises(FeatxError, match="all images have 'same'"):
        select_model(store, groups="near-duplicates")


def test_connected_rows_are_those_of_a_graph():
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    rng = np.random.default_rng(0)
    for _ in range(20):
        pairs = rng.integers(0, 40, (rng.integers(0, 40), 2))
        graph = coo_matrix((np.ones(len(pairs)), pairs.T), (40, 40)) if len(pairs) else coo_matrix((40, 40))
        expected = connected_components(graph, directed=False)[1]
        numbers = connected(40, pairs)
        assert (
            len(set(zip(numbers.tolist(), expected.tolist(), strict=True))) == len(set(expected)) == len(set(numbers))
        )
        assert (numbers <= np.arange(40)).all()


def test_pairs_of_equal_pictures_grow_with_their_number_and_not_with_its_square(tmp_path):
    rng = np.random.default_rng(0)
    picture = np.asarray(scene(0, 16))
    images = [picture + rng.integers(0, 2, picture.shape, np.uint8) for _ in range(400)]  # of different content
    store = extract([*images, np.asarray(scene(1, 16))], tmp_path / "a.h5")
    assert len(near_duplicates(store, layer=store.layers[0]).pairs) < 20 * len(store)
    assert near_duplicate_groups(store).tolist() == [0] * 400 + [400]


@pytest.mark.parametrize("kept", [0, 2**22])
@pytest.mark.parametrize("block", [500, 2**22])
def test_groups_do_not_depend_on_how_many_pairs_of_an_image_are_kept(store, tmp_path, monkeypatch, kept, block):
    module = importlib.import_module("featx.store.near_duplicates")
    layer = store.layers[0]
    other = extract([np.asarray(p) for i in (3, 900, 7) for p in (scene(i), jpeg(scene(i)))] * 2, tmp_path / "b.h5")
    whole = [near_duplicates(store, layer=layer), near_duplicates(store, other, layer)]
    monkeypatch.setattr(module, "_MOST_KEPT", kept)
    monkeypatch.setattr(module, "_BLOCK", block)
    for one, parts in zip(
        whole, [near_duplicates(store, layer=layer), near_duplicates(store, other, layer)], strict=True
    ):
        assert sorted(one.pairs.tolist()) == sorted(parts.pairs.tolist())
    monkeypatch.setattr(module, "_MOST_COPIES", 1)
    n = len(store) + len(other)
    for one, few, shift in zip(
        whole,
        [near_duplicates(store, layer=layer), near_duplicates(store, other, layer)],
        ([0, 0], [0, len(store)]),
        strict=True,
    ):
        assert len(few.pairs) <= len(one.pairs)
        assert connected(n, few.pairs + shift).tolist() == connected(n, one.pairs + shift).tolist()


def test_a_row_of_nan_or_inf_hides_no_copies(tmp_path):
    pictures = [scene(seed, 96) for seed in range(80)]
    crops = [p.crop((5, 5, 91, 91)) for p in pictures[:10]]
    whole = extract([np.asarray(p) for p in [*pictures, *crops]], tmp_path / "a.h5", layers="flatten")
    layer = whole.layers[0]
    rows = np.array(whole[layer])
    rows[40, 3], rows[41] = np.nan, np.inf
    with StoreWriter(tmp_path / "b.h5", whole.recipe, whole.ids.tolist(), statistics=True) as writer:
        writer.write(np.arange(90), {layer: rows}, whole.digests, statistics=whole.image_records(np.arange(90)))
        writer.finish()
    copies = near_duplicates(featx.FeatureStore(tmp_path / "b.h5"), layer=layer)
    assert (copies.kinds == "features").sum() >= 3
    assert (copies.pairs[:, 0] + 80 == copies.pairs[:, 1]).all()


def test_a_test_store_with_near_duplicates_of_training_images_is_refused(store, tmp_path):
    def other(name, seeds, change):
        images = [np.asarray(change(scene(seed))) for seed in seeds]
        return extract(images, tmp_path / name, labels=[str(i % 2) for i in range(len(images))])

    options = {"estimators": ["nearest_centroid"], "groups": "near-duplicates", "folds": 3}
    leaking = HoldOut(store=other("a.h5", (*range(900, 910), 7, 8), jpeg))
    with pytest.raises(
        FeatxError,
        match=r"^2 of the 12 test images are near duplicates of training images: '11' of '008', '10' of '007'",
    ):
        select_model(store, **options, holdout=leaking)
    select_model(store, **(options | {"groups": None}), holdout=leaking)
    fresh = HoldOut(store=other("b.h5", (*range(900, 906), 900), lambda p: p))
    selection = select_model(store, **options, holdout=fresh)
    assert selection.test.groups.tolist() == [0, 1, 2, 3, 4, 5, 0]
