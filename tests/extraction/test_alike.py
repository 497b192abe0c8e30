"""What is left to "auto" is as it was before: at the output, and in a store that another one is made like."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import assert_tells, class_folders, empty_cache, left_in
from runs import extract, pictures, refused, same_file
from torch import nn
from typer.testing import CliRunner

import featx
from featx.backbones import COMPILED
from featx.cli import app
from featx.errors import BackboneError, LayerError, RecipeError, StoreError
from featx.forward import streaming, trial
from featx.store import StoreWriter, copy_rows

LAYERS = ["first", "second:max", "last"]
UNUSUAL = {"precision": "bfloat16", "batch_size": 3, "dtype": "float16", "engine": "eager"}
SMALL = featx.Preprocessing(crop=(32, 32), resize=32)


def labels(n: int) -> list[str]:
    return list("abc" * n)[:n]


@pytest.fixture
def elsewhere(monkeypatch):
    """`elsewhere()`: from now on this is a machine on which "auto" would choose otherwise."""

    def move() -> None:
        torch.set_num_threads(2)
        monkeypatch.setattr(streaming, "_BATCH_SIZE", {"cpu": 16, "cuda": 16})
        monkeypatch.setattr(streaming, "_PROBE_BATCHES", 1)
        monkeypatch.setattr(streaming, "TRIAL_BATCHES", 1)
        monkeypatch.setattr(trial, "choose", lambda *_, **__: pytest.fail("what was known has been tried anew"))

    yield move
    torch.set_num_threads(1)


@pytest.fixture
def train(tmp_path, run):
    """A store of twelve pictures that "auto" would not make."""
    return run(tmp_path / "train.h5", range(12), LAYERS, labels=labels(12), **UNUSUAL)


@pytest.fixture
def alike(train):
    """`alike(output, names)`: these pictures, like the store `train`, with no choice of one's own but those given."""

    def run(output, names, **options):
        ids = list(map(str, names))
        known = {"like": train, "ids": ids, "labels": labels(len(ids)), "device": "auto"}
        return featx.extract(pictures(ids), output, progress=False, **(known | options))

    return run


def rewritten(store: featx.FeatureStore, name: str, **changes) -> featx.FeatureStore:
    """The same rows, in a store whose recipe says something else."""
    path = store.path.with_name(name)
    recipe, ids = replace(store.recipe, **changes), store.ids.tolist()
    with StoreWriter(path, recipe, ids, store.y, {}, statistics=True) as writer:
        copy_rows(writer, store, np.arange(len(store)))
        writer.finish()
    return featx.FeatureStore(path)


# At the output


@pytest.mark.parametrize("layers", [LAYERS, ["first:none", *LAYERS]])
def test_a_store_grows_as_it_was_made(tmp_path, run, elsewhere, small_network, layers):
    whole = run(tmp_path / "whole.h5", range(20), layers, labels=labels(20), **UNUSUAL)
    store = run(tmp_path / "a.h5", range(9), LAYERS, labels=labels(9), **UNUSUAL)
    elsewhere()
    ids = list(map(str, range(20)))
    grown = extract(pictures(ids), store.path, small_network, layers=layers, ids=ids, labels=labels(20))
    assert same_file(grown, whole) and grown.recipe.threads == 1


def test_an_unfinished_run_goes_on_as_it_was_begun(tmp_path, run, break_off, elsewhere, small_network):
    ids = list(map(str, range(150)))
    whole = run(tmp_path / "whole.h5", ids, LAYERS, **UNUSUAL)
    break_off(lambda: run(tmp_path / "a.h5", ids, LAYERS, **UNUSUAL), after=40)
    elsewhere()
    plan = featx.plan(pictures(ids), tmp_path / "a.h5", small_network, LAYERS, ids=ids)
    assert 0 < plan.n_kept < 150 and same_file(plan.run(False), whole)


def test_a_store_grows_on_the_device_on_which_it_was_made(run, train, pretend_cuda):
    assert run(train.path, range(14), LAYERS, device="auto", labels=labels(14), **UNUSUAL).recipe.device == "cpu"
    options = {"device": "cuda", **UNUSUAL}
    run(train.path, range(14), LAYERS, labels=labels(14), **options)  # nothing is to be computed
    words = "made with other settings: device: 'cpu' there, 'cuda' here"
    refused(lambda: run(train.path, range(15), LAYERS, labels=labels(15), **options), train.path, words)


def test_rows_of_a_device_that_is_not_here_are_kept_and_none_are_mixed_in(run, train):
    store = rewritten(train, "gpu.h5", device="cuda")
    options = {"device": "auto", "labels": labels(12), **UNUSUAL}
    assert run(store.path, range(12), LAYERS, **options).identity == store.identity
    words = "made with other settings: device: 'cuda' there, 'cpu' here; new images in a store of their own, "
    words += "made with like='gpu.h5'"
    refused(lambda: run(store.path, range(12), [*LAYERS, "pooled"], **options), store.path, words)
    options["labels"] = labels(8)
    assert run(store.path, range(8), LAYERS, replace=True, **options).recipe.device == "cuda"


def test_a_run_that_was_begun_on_a_device_that_is_not_here_is_refused_by_that(tmp_path, run):
    store = run(tmp_path / "whole.h5", range(70), "first")
    recipe, ids = replace(store.recipe, device="cuda"), store.ids.tolist()
    with StoreWriter(tmp_path / "a.h5", recipe, ids, statistics=True) as writer:
        copy_rows(writer, store, np.arange(70))  # and it is broken off
    words = "begun with other settings: device: 'cuda' there, 'cpu' here"
    refused(lambda: run(tmp_path / "a.h5", range(70), "first", device="auto"), tmp_path / "a.h5", words)


def test_the_measured_error_is_not_that_of_layers_which_were_added(run, train):
    store = rewritten(train, "fast.h5", precision_error=0.004)
    options = {"labels": labels(14), **UNUSUAL}
    assert run(store.path, range(14), LAYERS, **options).recipe.precision_error == 0.004
    assert run(store.path, range(14), [*LAYERS, "pooled"], **options).recipe.precision_error is None


# Like another store


def test_the_same_images_give_the_same_file(tmp_path, train, alike, elsewhere):
    elsewhere()
    assert same_file(alike(tmp_path / "again.h5", range(12)), train)


def test_all_that_is_recorded_of_how_it_was_made_is_taken_over(tmp_path, train, alike, small_network):
    aliases = {"penultimate": "last:none", "second": "second:max"}
    said = rewritten(train, "said.h5", precision_error=0.004, threads=2, aliases=aliases)
    store = alike(tmp_path / "test.h5", range(12, 20), like=said.path, backbone=small_network)  # by its path
    assert said.recipe.differences(store.recipe) == [] and len(store) == 8
    assert (store.recipe.precision_error, store.recipe.threads, store.recipe.aliases) == (0.004, 2, aliases)
    assert torch.get_num_threads() == 1
    one = alike(tmp_path / "one.h5", range(12, 20), like=said, layers="penultimate", backbone=small_network)
    assert one.layers == ("last:none",) and one.recipe.aliases == {"penultimate": "last:none"}


def test_its_rows_are_those_it_would_have_grown_by(tmp_path, run, train, alike, elsewhere):
    grown = run(tmp_path / "grown.h5", range(20), LAYERS, labels=labels(20), **UNUSUAL)
    elsewhere()
    test = alike(tmp_path / "test.h5", range(12, 20))
    for layer in train.layers:
        np.testing.assert_array_equal(test[layer], grown[layer][12:])


def test_it_goes_on_and_grows(tmp_path, alike, break_off, elsewhere):
    whole = alike(tmp_path / "whole.h5", range(120))
    break_off(lambda: alike(tmp_path / "a.h5", range(100)), after=30)
    elsewhere()
    assert len(alike(tmp_path / "a.h5", range(100))) == 100
    assert same_file(alike(tmp_path / "a.h5", range(120)), whole)


def test_some_of_its_layers_by_the_names_that_it_knows(tmp_path, alike):
    store = alike(tmp_path / "some.h5", range(3), layers=["last", "second"])
    assert store.layers == ("last:none", "second:max")
    for layers, words in (("pooled", "'pooled:avg'"), (["last", "second:avg"], "'second:avg'")):
        with pytest.raises(LayerError) as caught:
            alike(tmp_path / "no.h5", range(3), layers=layers)
        assert_tells(caught.value, "train.h5 does not have", words, "first:avg, second:max, last:none")
    assert alike(tmp_path / "max.h5", range(3), layers=["second", "last"], pool="max").layers == store.layers[::-1]
    with pytest.raises(LayerError, match="does not have 'first:max'"):
        alike(tmp_path / "no.h5", range(3), layers="first", pool="max")
    with pytest.raises(LayerError, match="'layer9' is not in module:Sequential"):
        alike(tmp_path / "no.h5", range(3), layers="layer9")


CONTRADICTIONS = [
    ({"precision": "float32"}, "precision: 'bfloat16' there, 'float32' here"),
    ({"batch_size": 32}, "batch_size: 3 there, 32 here"),
    ({"dtype": "float32"}, "dtype: 'float16' there, 'float32' here"),
    ({"backbone": "resnet50"}, "backbone: 'module:Sequential' there, 'torchvision:resnet50' here"),
    ({"precision": "float32", "batch_size": 1}, "precision: "),
]


@pytest.mark.parametrize("options, words", CONTRADICTIONS)
def test_what_contradicts_it_is_refused_in_one_line(tmp_path, alike, options, words):
    with pytest.raises(RecipeError) as caught:
        alike(tmp_path / "no.h5", range(3), **options)
    assert_tells(caught.value, "train.h5 was made with other settings: ", words, "Leave out what differs, or like")
    assert left_in(tmp_path) == ["train.h5"]


def test_a_pool_without_a_layer_and_no_store_at_all_are_refused(tmp_path, alike):
    with pytest.raises(
        LayerError, match="pool='max' needs layers: without them, layers and pools are those of train.h5"
    ):
        alike(tmp_path / "no.h5", range(3), pool="max")
    with pytest.raises(StoreError, match="there is no store"):
        alike(tmp_path / "no.h5", range(3), like=tmp_path / "nowhere.h5")


def test_another_preprocessing_or_decoder_is_another_meaning(tmp_path, alike, small_network, monkeypatch):
    other = featx.Backbone(small_network.module, preprocessing=featx.Preprocessing(crop=(32, 32), resize=40))
    with pytest.raises(RecipeError, match="preprocessing.resize: 32 there, 40 here"):
        alike(tmp_path / "no.h5", range(3), backbone=other)
    monkeypatch.setattr(streaming, "DECODER", "as a later version does it")
    with pytest.raises(RecipeError, match="decoder: .* there, 'as a later version does it' here"):
        alike(tmp_path / "no.h5", range(3))


def test_what_depends_on_the_machine_may_differ(tmp_path, train, alike):
    gpu = rewritten(train, "gpu.h5", device="cuda", engine=COMPILED)
    ids = list(map(str, range(3)))
    gpu.backbone = train.backbone
    plan = featx.plan(pictures(ids), tmp_path / "a.h5", like=gpu, ids=ids)
    assert plan.recipe == replace(gpu.recipe, device="cpu", origin=None, collection=None)
    assert alike(tmp_path / "a.h5", range(3), like=gpu, engine="eager", device="cpu").recipe.device == "cpu"


# Its network


def test_a_module_is_handed_over_beside_the_path_of_a_store(tmp_path, train, alike, small_network):
    with pytest.raises(BackboneError) as caught:
        alike(tmp_path / "no.h5", range(3), like=train.path)
    assert_tells(caught.value, "train.h5", "a module of yours, Sequential. Give the backbone", "beside like")
    other = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 16, 3, 2))
    with pytest.raises(BackboneError, match="the recorded network is module:Sequential with weights sha256"):
        alike(tmp_path / "no.h5", range(3), backbone=other)
    for number, handed in enumerate([small_network, small_network.module]):  # with its preprocessing, or without
        assert len(alike(tmp_path / f"{number}.h5", range(3), like=train.path, backbone=handed)) == 3


def test_weights_in_a_file_are_found_or_handed_over(tmp_path):
    state = featx.Backbone("squeezenet1_1", None, preprocessing=SMALL).module.state_dict()
    torch.save(state, tmp_path / "w.pth")
    torch.save({name: value + 1 for name, value in state.items()}, tmp_path / "other.pth")
    made = featx.Backbone("squeezenet1_1", tmp_path / "w.pth", preprocessing=SMALL)
    train = extract(pictures(range(3)), tmp_path / "train.h5", made, layers="features.0")

    def again(name, backbone=None, **options):
        empty_cache()
        known = {"like": train.path, "progress": False, "device": "cpu"}
        return featx.extract(pictures(range(3)), tmp_path / name, backbone, **(known | options))

    assert same_file(again("a.h5"), train)
    (tmp_path / "w.pth").rename(tmp_path / "moved.pth")
    with pytest.raises(BackboneError, match="train.h5: .*w.pth' is gone. Give the backbone or its weights"):
        again("b.h5")
    for name, network in {"b.h5": None, "c.h5": "squeezenet1_1"}.items():
        store = again(name, network, weights=tmp_path / "moved.pth")
        assert train.recipe.differences(store.recipe) == []
    with pytest.raises(BackboneError, match="the recorded network is torchvision:squeezenet1_1 with weights sha256"):
        again("d.h5", weights=tmp_path / "other.pth")


def test_the_preprocessing_is_that_of_the_store_whatever_else_was_built(tmp_path):
    empty_cache()
    made = featx.Backbone("squeezenet1_1", None, preprocessing=SMALL)
    train = extract(pictures(range(3)), tmp_path / "train.h5", made, layers="features.0")
    larger = featx.Preprocessing(crop=(48, 48), resize=48)
    extract(pictures(range(3)), tmp_path / "b.h5", featx.Backbone("squeezenet1_1", None, preprocessing=larger))
    again = featx.extract(pictures(range(3)), tmp_path / "a.h5", like=train, progress=False, device="cpu")
    assert same_file(again, train)


# On the command line


def test_the_command_line_makes_two_stores_that_fit(tmp_path):
    def run(*words):
        return CliRunner().invoke(app, [str(word) for word in words])

    train, test = (
        class_folders(tmp_path / name, (f"{name} ant", f"{name} bee"), n=6, seed=seed)
        for name, seed in (("one", 0), ("two", 5000))
    )
    made = ["-b", "bundled:pixels", "-q", "--precision", "bfloat16", "--batch-size", 5, "--dtype", "float16"]
    assert run("extract", train, "-o", tmp_path / "train.h5", *made).exit_code == 0
    done = run("extract", test, "-o", tmp_path / "test.h5", "--like", tmp_path / "train.h5", "-q")
    assert done.exit_code == 0, done.output
    told = run("info", tmp_path / "train.h5", tmp_path / "test.h5").stdout
    assert told.rstrip().endswith("other be its test store\nthey can be merged") and "batch_size" not in told
    done = run("extract", test, "-o", tmp_path / "no.h5", "--like", tmp_path / "train.h5", "--batch-size", 4)
    assert done.exit_code == 2 and done.stderr == (
        "featx: train.h5 was made with other settings: batch_size: 5 there, 4 here. Leave out what differs, or --like\n"
    )
    done = run("extract", train, "-o", tmp_path / "train.h5", "-b", "bundled:pixels", "-q")  # all of it is still known
    assert done.exit_code == 0, done.output
