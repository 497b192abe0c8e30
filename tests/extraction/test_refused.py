"""What a second extraction onto a store refuses, by name: images gone or changed, other labels, another recipe."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import assert_tells, class_folders, save_noise
from runs import extract, pictures, refused, same_file

import featx
from featx.errors import RecipeError, UnreadableImagesWarning
from featx.forward import streaming


@pytest.fixture
def made(tmp_path):
    photos = class_folders(tmp_path / "photos", n=3)
    return photos, extract(photos, tmp_path / "a.h5")


# Images gone or changed


def test_gone_and_changed_images_are_refused_by_name_with_the_new(made):
    photos, store = made
    save_noise(photos / "ant" / "new.png", seed=50)
    (photos / "bee" / "bee_1.png").unlink()
    save_noise(photos / "ant" / "ant_2.png", seed=51)
    words = ["gone since: 'bee/bee_1.png'", "new: 'ant/new.png'", "changed: 'ant/ant_2.png'", "another output"]
    refused(lambda: extract(photos, store.path), store.path, "other images", *words, "replace=True")


def test_an_image_that_became_unreadable_is_a_changed_one(made):
    photos, store = made
    (photos / "ant" / "ant_0.png").write_text("no picture")
    refused(lambda: extract(photos, store.path), store.path, "changed: 'ant/ant_0.png'")
    (photos / "ant" / "ant_0.png").unlink()
    (photos / "ant" / "ant_0.png").symlink_to(photos / "nowhere")
    refused(lambda: extract(photos, store.path), store.path, "changed: 'ant/ant_0.png'")


@pytest.mark.filterwarnings("ignore::featx.errors.UnreadableImagesWarning")
def test_an_image_of_the_ledger_that_is_gone_is_named_too(tmp_path, run):
    store = run(tmp_path / "a.h5", [0, "bad", 1])
    refused(lambda: run(store.path, [0, 1]), store.path, "gone since: 'bad'")
    assert same_file(run(store.path, [0, 1], replace=True), run(tmp_path / "b.h5", [0, 1]))


def test_gone_images_are_refused_with_more_layers_too(tmp_path, run):
    store = run(tmp_path / "a.h5", range(5))
    refused(lambda: run(store.path, range(4), ["first", "last"]), store.path, "gone since: '4'")


@pytest.mark.parametrize("layers", [["first"], ["first", "last"]])
def test_replacing_copies_the_rows_that_still_serve(tmp_path, small_network, streamed, layers):
    options = {"batch_size": 4, "precision": "float32"}
    photos = class_folders(tmp_path / "photos", n=5)
    store = extract(photos, tmp_path / "a.h5", small_network, layers="first", **options)
    (photos / "ant" / "ant_3.png").unlink()
    (photos / "bee" / "bee_1.png").write_text("no picture")
    save_noise(photos / "bee" / "bee_2.png", seed=51)
    save_noise(photos / "bee" / "new.png", seed=52)
    streamed.clear()
    for output, replace in ((store.path, True), (tmp_path / "b.h5", False)):
        with pytest.warns(UnreadableImagesWarning, match="bee/bee_1.png"):
            extract(photos, output, small_network, layers=layers, replace=replace, **options)
    assert same_file(featx.FeatureStore(store.path), featx.FeatureStore(tmp_path / "b.h5"))
    names = [path.relative_to(photos).as_posix() for path in sorted(photos.rglob("*.png"))]
    computed = [names[i] for i in streamed[0][1]]
    assert computed == ["bee/bee_1.png", "bee/bee_2.png", "bee/new.png"]


# Other labels


def test_other_labels_and_columns_are_refused_and_replaced_without_computing(tmp_path, run, streamed):
    store = run(tmp_path / "a.h5", range(4), labels=list("abab"))
    streamed.clear()
    others = [{"labels": list("aabb")}, {"labels": [1, 2, 3, 4], "target": "numeric"}]
    for options in others:
        refused(lambda options=options: run(store.path, range(4), **options), store.path, "has other labels", "align")
    refused(lambda: run(store.path, range(5)), store.path, "it has labels, and these images have none")
    replaced = run(store.path, range(4), replace=True, **others[0])
    assert replaced.y.tolist() == list("aabb") and not streamed
    assert same_file(replaced, run(tmp_path / "b.h5", range(4), **others[0]))


def test_labels_for_a_store_that_has_none_are_refused(tmp_path, run):
    store = run(tmp_path / "a.h5", range(4))
    refused(lambda: run(store.path, range(4), labels=list("abab")), store.path, "has other labels", "align")


def test_other_columns_of_a_manifest_are_refused(tmp_path):
    lines = [f"{save_noise(tmp_path / f'{i}.png', i).name},x,patient {i}" for i in range(3)]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,patient", *lines]) + "\n")
    store = extract(tmp_path / "m.csv", tmp_path / "a.h5")
    for old, new in (("patient 1", "patient 7"), ("label,patient", "label,site")):
        (tmp_path / "m2.csv").write_text((tmp_path / "m.csv").read_text().replace(old, new))
        refused(lambda: extract(tmp_path / "m2.csv", store.path), store.path, "other columns")


# Another recipe


OTHERWISE = [
    ({"dtype": "float16"}, "dtype: 'float32' there, 'float16' here"),
    ({"precision": "bfloat16"}, "precision: 'float32' there, 'bfloat16' here"),
    ({"batch_size": 7}, "batch_size: 4 there, 7 here"),
    ({"weights": "DEFAULT", "backbone": "bundled:pixels", "layers": "flatten"}, "backbone: "),
    ({"layers": "second"}, "layers: 'first:avg', 'last:none' there, 'second:avg' here"),
    ({"layers": ["first:max", "last"]}, "layers: 'first:avg', 'last:none' there, 'first:max', 'last:none' here"),
]


@pytest.mark.parametrize("options, words", OTHERWISE)
def test_another_recipe_is_refused_field_by_field(tmp_path, small_network, run, never, options, words):
    """With the same images, with more and with fewer; a recipe is not what `replace` is for."""
    store = run(tmp_path / "a.h5", range(5), ["first", "last"])
    never()
    known = {"backbone": small_network, "batch_size": 4, "precision": "float32", "layers": ["first", "last"]}
    for names, replace in itertools.product((range(5), range(6), range(4)), (False, True)):

        def again(names=names, replace=replace):
            extract(pictures(names), store.path, ids=list(map(str, names)), replace=replace, **(known | options))

        refused(again, store.path, "made with other settings", words, "another output")


def test_all_fields_that_differ_are_named(tmp_path, run):
    store = run(tmp_path / "a.h5", range(3))
    words = ["dtype: ", "batch_size: 4 there, 2 here", "precision: "]
    refused(lambda: run(store.path, range(3), dtype="float16", batch_size=2, precision="float16"), store.path, *words)


def test_some_of_a_stores_layers_are_there_already_and_more_images_need_all(tmp_path, run, never):
    store = run(tmp_path / "a.h5", range(3), ["first", "last"])
    never()
    before = store.path.read_bytes()
    assert run(store.path, range(3), "first").layers == store.layers and store.path.read_bytes() == before
    words = ["layers: 'first:avg', 'last:none' there, 'first:avg' here", "to add images, name all layers"]
    said = refused(lambda: run(store.path, range(4), "first"), store.path, *words)
    assert "delete" not in str(said)


@pytest.mark.parametrize("begun", [False, True])
def test_other_names_are_refused_before_any_weights_are_fetched(tmp_path, monkeypatch, run, break_off, begun):
    names = list(map(str, range(300)))
    backbone = featx.Backbone("squeezenet1_1", weights=None)
    known = {"backbone": backbone, "layers": "features.0", "ids": names, "batch_size": 4, "precision": "float32"}
    small = featx.Backbone("bundled:pixels")
    made = {"backbone": small, "ids": names, "batch_size": 4, "precision": "float32", "device": "cpu"}
    if begun:
        break_off(lambda: extract(pictures(names), tmp_path / "a.h5", **made), after=40)
    else:
        extract(pictures(names), tmp_path / "a.h5", **made)
    monkeypatch.setattr(featx.Backbone, "module", property(lambda self: pytest.fail("it was built")))
    for words, options in [
        ("backbone: 'bundled:pixels' there, 'torchvision:squeezenet1_1' here", known),
        ("batch_size: 4 there, 5 here", made | {"batch_size": 5}),
        ("weights: 'DEFAULT' there, 'random' here", made | {"backbone": featx.Backbone("bundled:pixels", None)}),
    ]:
        with pytest.raises(RecipeError) as caught:
            extract(pictures(names), tmp_path / "a.h5", **options)
        assert_tells(caught.value, words, "another output" if not begun else "discard")


def test_other_layers_are_told_how_to_be_added(tmp_path, run):
    store = run(tmp_path / "a.h5", range(3))
    refused(lambda: run(store.path, range(3), "last"), store.path, "to add layers, name those that are stored too")


@pytest.mark.parametrize(
    "name, field, other", [("DECODER", "decoder", "as a later version does it"), ("_ENGINES", "engine", "eager")]
)
def test_another_way_to_decode_or_to_run_is_another_recipe(tmp_path, run, monkeypatch, name, field, other):
    store = run(tmp_path / "a.h5", range(3))
    monkeypatch.setattr(streaming, name, {"eager": other} if name == "_ENGINES" else other)
    for layers in (["first"], ["first", "last"]):
        words = [f"{field}: ", f"'{other}' here"]
        refused(lambda layers=layers: run(store.path, range(3), layers), store.path, *words)


def test_other_weights_and_another_preprocessing_are_refused_by_the_field(tmp_path, small_network, run):
    store = run(tmp_path / "a.h5", range(3))
    crop = featx.Preprocessing(crop=(32, 32), resize=40)
    refused(
        lambda: run(store.path, range(3), backbone=featx.Backbone(small_network.module, preprocessing=crop)),
        store.path,
        "preprocessing.resize: 32 there, 40 here",
    )
    torch.manual_seed(1)
    pretrained = featx.Backbone("squeezenet1_1", weights=None, preprocessing=crop)
    store = extract(pictures(range(3)), tmp_path / "b.h5", pretrained, layers="features.0")
    state = {name: value + 1 for name, value in pretrained.module.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    other = featx.Backbone("squeezenet1_1", weights=tmp_path / "w.pth", preprocessing=crop)
    refused(
        lambda: extract(pictures(range(3)), store.path, other, layers="features.0"),
        store.path,
        "weights: 'random' there",
    )
