"""Stores in shards: joined they are the store of one run; each goes on by itself."""

from __future__ import annotations

import contextlib
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from commands import refused, run
from helpers import class_folders, left_in, noise
from runs import same_file

import featx
from featx.errors import FeatxError, RecipeError, SourceError, StoreError, UnreadableImagesWarning
from featx.extraction import executors
from featx.images import Collection
from featx.scale import shards as sharding
from featx.scale.cluster import Node

OPTIONS = {"batch_size": 4, "precision": "float32", "device": "cpu", "progress": False}


def shards(source, output, backbone="bundled:pixels", n=3, **options) -> list[featx.FeatureStore]:
    return featx.extract_shards(source, output, backbone, shards=n, **(OPTIONS | options))


def same_rows(merged: featx.FeatureStore, whole: featx.FeatureStore) -> bool:
    """Whether two stores have the same images, labels and rows."""
    merged.verify()
    return (
        all(np.array_equal(getattr(merged, name), getattr(whole, name)) for name in ("ids", "y", "X", "classes"))
        and {name: values.tolist() for name, values in merged.columns.items()}
        == {name: values.tolist() for name, values in whole.columns.items()}
        and all(np.array_equal(merged[name], whole[name]) for name in whole.layers)
        and [failure.id for failure in merged.failures] == [failure.id for failure in whole.failures]
    )


@pytest.mark.filterwarnings("ignore::featx.errors.UnreadableImagesWarning")
def test_merged_shards_are_the_store_of_one_run_though_each_lacks_classes(tmp_path):
    """Classes are folders, so each shard has some of them; one image cannot be read; n is no multiple of the batch."""
    photos = class_folders(tmp_path / "photos", ("ant", "bee", "cat", "dog"), n=7)
    (photos / "bee" / "bee_3.png").write_bytes(b"no picture")
    whole = featx.extract(photos, tmp_path / "whole.h5", "bundled:pixels", **OPTIONS)
    stores = shards(photos, tmp_path / "a.h5")
    assert [store.path.name for store in stores] == [f"a-0000{i}-of-00003.h5" for i in range(3)]
    assert [list(store.classes) for store in stores] == [["ant", "bee"], ["bee", "cat"], ["cat", "dog"]]
    assert same_rows(featx.merge(stores, tmp_path / "merged.h5"), whole)
    assert all(store.recipe.differences(whole.recipe) == [] for store in stores)
    assert left_in(tmp_path)[:3] == [store.path.name for store in stores]  # no other file is beside them


def test_columns_numbers_and_arrays_of_one_network_of_the_users(small_network, tmp_path):
    columns = {"site": np.array([f"site {i % 5}" for i in range(30)])}
    images = Collection([noise(i) for i in range(30)], list(map(str, range(30))), np.arange(30.0), columns)
    whole = featx.extract(images, tmp_path / "whole.h5", small_network, ["first", "last"], **OPTIONS)
    stores = shards(images, tmp_path / "a.h5", small_network, 2, layers=["first", "last"])
    assert same_rows(featx.merge(stores, tmp_path / "merged.h5"), whole)
    assert all(store.backbone is small_network for store in stores)


def test_a_run_of_shards_that_is_broken_off_goes_on_with_its_recipe(small_network, tmp_path, monkeypatch):
    """The second shard is half done when the run ends; the first is not computed again."""
    images = [noise(i) for i in range(400)]
    stream, computed = executors.stream, []

    def recorded(images, recipe, backbone, *, todo, **options):
        for block in stream(images, recipe, backbone, todo=todo, **options):
            computed.append(block.start)
            if len(computed) == 70:
                raise KeyboardInterrupt
            yield block

    monkeypatch.setattr(executors, "stream", recorded)
    with pytest.raises(KeyboardInterrupt):
        shards(images, tmp_path / "a.h5", small_network, 2)
    assert left_in(tmp_path) == ["a-00000-of-00002.h5", "a-00001-of-00002.h5.journal", "a-00001-of-00002.h5.partial"]
    stores = shards(images, tmp_path / "a.h5", small_network, 2, precision="auto", batch_size="auto")
    assert 100 < len(computed) < 110 and stores[0].recipe.batch_size == 4
    monkeypatch.undo()
    others = shards(images, tmp_path / "b.h5", small_network, 2)
    assert all(same_file(one, other) for one, other in zip(stores, others, strict=True))
    before = [store.path.stat().st_mtime_ns for store in stores]
    again = shards(images, tmp_path / "a.h5", small_network, 2)
    assert [store.path.stat().st_mtime_ns for store in again] == before


def test_other_settings_and_too_many_shards_are_refused(small_network, tmp_path):
    images = [noise(i) for i in range(12)]
    with pytest.raises(FeatxError, match="shards=4 needs as many batches of 4 images; 12 images are 3"):
        shards(images, tmp_path / "a.h5", small_network, 4)
    for wrong in (0, True, 2.0, "3"):
        with pytest.raises(FeatxError, match="shards is a whole number of stores, 1 or more"):
            shards(images, tmp_path / "a.h5", small_network, wrong)
    with pytest.raises(FeatxError, match="executor is a featx.RayExecutor for shards"):
        shards(images, tmp_path / "a.h5", small_network, executor=executors.LocalExecutor())
    with pytest.raises(StoreError, match="there is no folder"):
        shards(images, tmp_path / "none" / "a.h5", small_network)
    assert not left_in(tmp_path)
    shards(images, tmp_path / "a.h5", small_network, layers="first")
    with pytest.raises(RecipeError, match="batch_size: 4 there, 2 here"):
        shards(images, tmp_path / "a.h5", small_network, layers="first", batch_size=2)


def test_each_shard_warns_at_the_line_that_called(tmp_path):
    photos = class_folders(tmp_path / "photos", n=8)
    (photos / "bee" / "bee_3.png").write_bytes(b"no picture")
    with pytest.warns(UnreadableImagesWarning, match="1 of 8 images cannot be read") as warned:
        featx.extract_shards(photos, tmp_path / "a.h5", "bundled:pixels", shards=2, **OPTIONS)
    assert [each.filename for each in warned] == [__file__]


def test_the_command_prints_a_line_for_each_shard(tmp_path):
    photos = class_folders(tmp_path / "photos", n=8)
    words = ["extract", photos, "-o", tmp_path / "a.h5", "-b", "bundled:pixels", "--batch-size", 4, "--device", "cpu"]
    done = run(*words, "--shards", 2, "-q")
    assert done.exit_code == 0, done.output
    paths = [tmp_path / f"a-0000{i}-of-00002.h5" for i in range(2)]
    assert done.stdout.splitlines() == [f"{path}: 8 images" for path in paths]
    merged = run("merge", *paths, "-o", tmp_path / "merged.h5")
    assert merged.exit_code == 0 and featx.FeatureStore(tmp_path / "merged.h5").classes.tolist() == ["ant", "bee"]
    assert "--shards goes with neither --dry-run nor --json" in refused(*words, "--shards", 2, "--json")
    assert "--shards 9 needs as many batches of 4 images" in refused(
        *words[:3], tmp_path / "b.h5", *words[4:], "--shards", 9
    )


def test_the_command_refuses_ray_that_is_not_installed_before_it_looks_for_images(tmp_path, monkeypatch):
    monkeypatch.setattr("featx.scale.cluster.find_spec", lambda name: None)
    line = refused("extract", tmp_path / "none", "-o", tmp_path / "a.h5", "--ray", "auto")
    assert "pip install 'featx[ray]'" in line


def test_shards_are_not_waited_for_when_no_node_is_left(small_network, tmp_path, monkeypatch):
    """On a cluster played by this process, whose tasks wait for ever."""
    remote = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: object()))
    ray = SimpleNamespace(
        put=lambda value: value,
        remote=lambda function: remote,
        wait=lambda references, timeout: ([], references),
        nodes=lambda: [],
        cancel=lambda reference, force: None,
    )
    monkeypatch.setattr(sharding, "connected", lambda address: contextlib.nullcontext(ray))
    monkeypatch.setattr(sharding, "refuse_other_nodes", lambda *_: [Node("a", "a", 1, 1)])
    with pytest.raises(FeatxError, match="no node of the Ray cluster has 1 cores"):
        shards([noise(i) for i in range(12)], tmp_path / "a.h5", small_network, executor=featx.RayExecutor())
    assert not left_in(tmp_path)


def test_the_command_names_its_own_option_of_the_address(tmp_path):
    assert "--ray is 'auto', 'local' or HOST:PORT" in refused("extract", "x", "-o", tmp_path / "a.h5", "--ray", "here")


@pytest.mark.slow
def test_shards_on_a_cluster_are_those_of_this_machine(cluster, small_network, tmp_path, monkeypatch):
    """The output's folder and the images have relative paths; the cluster's processes run in another folder."""
    monkeypatch.chdir(tmp_path)
    class_folders(tmp_path / "photos", ("ant", "bee"), n=12)
    (tmp_path / "photos" / "bee" / "bee_03.png").write_bytes(b"no picture")
    names = [path.relative_to(tmp_path).as_posix() for path in sorted((tmp_path / "photos").rglob("*.png"))]
    (tmp_path / "photos.csv").write_text("path,label\n" + "".join(f"{name},{name[7:10]}\n" for name in names))
    (tmp_path / names[2]).unlink()
    ray = featx.RayExecutor(cluster.address)
    told = []
    with pytest.warns(UnreadableImagesWarning, match="1 of . images cannot be read") as warned:
        found = shards("photos.csv", "a.h5", small_network, executor=ray, progress=told.append)
        expected = shards("photos.csv", "b.h5", small_network)
    assert [each.filename for each in warned].count(__file__) == 4
    assert [failure.code for store in found for failure in store.failures] == ["missing", "not-an-image"]
    assert all(same_file(one, other) for one, other in zip(found, expected, strict=True))
    assert [now.done for now in told if now.phase == "extracting"][-1] == 25
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("a-*")}
    with pytest.warns(UnreadableImagesWarning):
        shards("photos.csv", "a.h5", small_network, executor=ray)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("a-*")} == before
    assert left_in(tmp_path)[:3] == [path.name for path in sharding.shard_paths(found[0].path.with_name("a.h5"), 3)]


@pytest.mark.slow
def test_shards_of_images_that_a_node_does_not_see_are_refused(cluster, tmp_path, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    photos = class_folders(tmp_path / "photos", ("ant", "bee"), n=4)
    fsspec.filesystem("memory").put(str(photos), "/shards", recursive=True)
    monkeypatch.setattr("featx.scale.inspection._SAMPLE", 0)
    with pytest.raises(SourceError, match="cannot read '.*', which this machine can; every node"):
        shards("memory://shards", tmp_path / "a.h5", n=2, executor=featx.RayExecutor(cluster.address))
    shutil.rmtree(photos)
    assert not left_in(tmp_path)
