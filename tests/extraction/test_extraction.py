"""Images in, a store out: every row is its own image's, the bytes are the recipe's, and what fails leaves nothing."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from helpers import assert_tells, class_folders, left_in, noise, save_noise
from PIL import Image
from runs import extract
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

import featx
from featx.errors import (
    BackboneError,
    FeatxError,
    LayerError,
    SourceError,
    StoreError,
    UnreadableImagesWarning,
)
from featx.extraction import executors

SMALL = featx.Preprocessing(crop=(64, 64), resize=64)
LAYERS = ["layer2", "layer3:max", "penultimate"]


@pytest.fixture(scope="module")
def resnet() -> featx.Backbone:
    return featx.Backbone("resnet18", weights=None, preprocessing=SMALL)


def pixel_row(image) -> np.ndarray:
    """What "bundled:pixels" is to give, by Pillow and NumPy alone."""
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else Image.open(image)
    with picture:
        small = picture.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
    return np.asarray(small, np.float32).transpose(2, 0, 1).ravel() / 255


def resnet_rows(resnet, image: np.ndarray) -> dict[str, np.ndarray]:
    """The three layers for one image alone, straight through the module."""
    pixels = SMALL.normalise(torch.from_numpy(SMALL(Image.fromarray(image))[None].copy()))
    parts = list(resnet.module.children())
    with torch.inference_mode():
        layer2 = nn.Sequential(*parts[:6])(pixels)
        layer3 = parts[6](layer2)
        penultimate = nn.Sequential(*parts[7:9])(layer3).flatten(1)
    return {
        "layer2:avg": layer2.mean((2, 3))[0].numpy(),
        "layer3:max": layer3.amax((2, 3))[0].numpy(),
        "penultimate": penultimate[0].numpy(),
    }


def test_each_row_id_and_label_are_of_one_image(tmp_path):
    photos = class_folders(tmp_path / "photos", ("c", "a", "b"), n=5)
    store = extract(photos, tmp_path / "a.h5", batch_size=4, workers=3)
    assert len(store) == 15 and store.y.tolist() == [name[0] for name in store.ids]
    for row, name in zip(store["penultimate"], store.ids, strict=True):
        np.testing.assert_allclose(row, pixel_row(photos / name), atol=1e-6)


def test_each_row_of_each_layer_of_a_network_is_its_images(resnet, tmp_path):
    images = [noise(i, 70 + i, 90) for i in range(6)]
    store = extract(images, tmp_path / "a.h5", resnet, layers=LAYERS, batch_size=4)
    for i, image in enumerate(images):
        for name, row in resnet_rows(resnet, image).items():
            np.testing.assert_allclose(store[name][i], row, rtol=1e-3, atol=1e-4 * np.abs(row).max())
            others = np.delete(np.asarray(store[name]), i, axis=0)
            assert np.abs(others - row).max(1).min() > 10 * np.abs(store[name][i] - row).max()


def test_the_last_batch_is_padded_so_that_rows_do_not_depend_on_how_many_there_are(resnet, tmp_path):
    images = [noise(i, 64, 64) for i in range(8)]
    few = extract(images[:5], tmp_path / "few.h5", resnet, layers=LAYERS, batch_size=4)
    many = extract(images, tmp_path / "many.h5", resnet, layers=LAYERS, batch_size=4)
    for layer in few.layers:
        assert np.array_equal(few[layer], many[layer][:5])


def spoil(images: list, positions) -> list:
    return [np.zeros((2, 2), np.float64) if i in positions else image for i, image in enumerate(images)]


@pytest.mark.parametrize("bad", [[2], [4, 5, 6, 7], [0, 3, 4, 8]])
def test_a_failure_leaves_no_row_and_changes_no_other(resnet, tmp_path, bad):
    images = [noise(i, 64, 64) for i in range(9)]
    options = {"layers": LAYERS, "batch_size": 4, "labels": [f"class {i % 3}" for i in range(9)]}
    whole = extract(images, tmp_path / "whole.h5", resnet, **options)
    kept = [i for i in range(9) if i not in bad]
    with pytest.warns(UnreadableImagesWarning, match=f"{len(bad)} of 9 images") as warned:
        store = extract(spoil(images, bad), tmp_path / "a.h5", resnet, **options)
    assert len(warned) == 1
    assert store.ids.tolist() == [str(i) for i in kept] and store.y.tolist() == whole.y[kept].tolist()
    assert np.array_equal(store.X, whole.X[kept]) and np.array_equal(store.digests, whole.digests[kept])
    for layer in whole.layers:
        assert np.array_equal(store[layer], whole[layer][kept])
    assert [(failure.id, failure.code) for failure in store.failures] == [(str(i), "pixel-type") for i in bad]
    assert left_in(tmp_path) == ["a.h5", "whole.h5"]


def test_every_kind_of_bad_file_is_in_the_ledger_and_the_run_goes_on(tmp_path):
    photos = class_folders(tmp_path / "photos", n=2)
    (photos / "ant" / "empty.jpg").touch()
    (photos / "ant" / "text.jpg").write_text("no picture")
    (photos / "bee" / "cut.png").write_bytes((photos / "bee" / "bee_0.png").read_bytes()[:-300])
    (photos / "bee" / "gone.png").symlink_to(photos / "nowhere")
    Image.fromarray(noise(0, 1, 200)).save(photos / "bee" / "thin.png")
    with pytest.warns(UnreadableImagesWarning, match="5 of 9 images .* 'ant/empty.jpg', .* and 2 more") as warned:
        store = featx.extract(photos, tmp_path / "a.h5", "bundled:pixels", progress=False)
    assert warned[0].filename == __file__  # it points at the caller's line
    assert {failure.id: failure.code for failure in store.failures} == {
        "ant/empty.jpg": "not-an-image",
        "ant/text.jpg": "not-an-image",
        "bee/cut.png": "damaged",
        "bee/gone.png": "missing",
        "bee/thin.png": "too-large",
    }
    assert all(failure.reason and "\n" not in failure.reason for failure in store.failures)
    assert store.ids.tolist() == ["ant/ant_0.png", "ant/ant_1.png", "bee/bee_0.png", "bee/bee_1.png"]
    np.testing.assert_allclose(store["penultimate"][2], pixel_row(photos / "bee/bee_0.png"), atol=1e-6)


def test_a_class_all_of_whose_images_fail_is_no_class(tmp_path):
    photos = class_folders(tmp_path / "photos", n=2)
    (photos / "wasp").mkdir()
    (photos / "wasp" / "a.jpg").write_text("no picture")
    with pytest.warns(UnreadableImagesWarning):
        assert extract(photos, tmp_path / "a.h5").classes.tolist() == ["ant", "bee"]


def test_one_class_and_one_image_make_a_store(tmp_path):
    store = extract(class_folders(tmp_path / "photos", ("ant",), n=1), tmp_path / "a.h5")
    assert len(store) == 1 and store.y.tolist() == store.classes.tolist() == ["ant"]


def test_the_bytes_do_not_depend_on_workers_progress_or_time(tmp_path, capfd):
    photos = class_folders(tmp_path / "photos", ("a", "b"), n=9, suffix=".jpg")
    (photos / "a" / "bad.jpg").write_text("no picture")
    contents = []
    for number, options in enumerate([{"workers": 1}, {"workers": 2}, {"workers": 7, "progress": True}, {}]):
        with pytest.warns(UnreadableImagesWarning):
            contents.append(extract(photos, tmp_path / f"{number}.h5", batch_size=4, **options).path.read_bytes())
    assert contents[1:] == contents[:1] * 3
    out, err = capfd.readouterr()
    assert out == "" and "extracting" in err  # the bar is the third run's, and not on stdout


def test_two_extractions_of_a_network_are_the_same_file(resnet, tmp_path):
    photos = class_folders(tmp_path / "photos", n=3)
    for name, network in (("a", resnet), ("b", featx.Backbone("resnet18", weights=None, preprocessing=SMALL))):
        extract(photos, tmp_path / f"{name}.h5", network, layers=LAYERS, batch_size=4, workers=len(name))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_the_file_of_an_extraction_is_contiguous_aligned_and_of_fixed_types(resnet, tmp_path):
    photos = class_folders(tmp_path / "photos", n=2)
    store = extract(photos, tmp_path / "a.h5", resnet, layers=["layer1", "layer2:none", "penultimate"], batch_size=2)
    kinds = set()
    with h5py.File(store.path) as file:
        file.visititems(lambda _, item: kinds.add(item.dtype.kind) if isinstance(item, h5py.Dataset) else None)
        for name in store.layers:
            dataset = file["layers"][name]
            assert dataset.chunks is None and dataset.id.get_offset() % 4096 == 0
            assert np.array_equal(dataset[()], store[name])
    assert kinds <= set("fiuS")  # no object, that is, no variable-length type
    assert store["layer2:none"].shape == (4, 128, 8, 8)


def test_half_precision_rows_are_the_rounded_ones(tmp_path):
    images = [noise(i) for i in range(3)]
    full = extract(images, tmp_path / "a.h5")
    half = extract(images, tmp_path / "b.h5", dtype="float16")
    assert half["penultimate"].dtype == np.float16
    assert np.array_equal(half["penultimate"], full["penultimate"].astype(np.float16))


def test_keys_are_the_images_own_whatever_backbone_order_and_company(resnet, tmp_path):
    images = {f"image {i}": noise(i, 64, 64) for i in range(9)}
    names = list(images)
    store = extract(list(images.values()), tmp_path / "a.h5", ids=names)
    keys = dict(zip(names, store.X[:, 0].tolist(), strict=True))
    assert len(set(keys.values())) == 9 and all(0 <= key < 2**52 for key in keys.values())
    mixed = [names[i] for i in np.random.default_rng(0).permutation(9)][:6]
    other = extract([images[name] for name in mixed], tmp_path / "b.h5", resnet, ids=mixed, batch_size=3)
    assert dict(zip(other.ids.tolist(), other.X[:, 0].tolist(), strict=True)) == {name: keys[name] for name in mixed}
    assert np.array_equal(store["penultimate"][store.rows(other.X)][0], store["penultimate"][names.index(mixed[0])])


def test_learning_from_the_keys_themselves_scores_as_chance(tmp_path):
    rng = np.random.default_rng(0)
    y = np.repeat(["a", "b", "c"], 300)
    images = rng.integers(0, 256, (900, 4, 4), np.uint8)
    store = extract(images, tmp_path / "a.h5", labels=y)
    knn = KNeighborsClassifier(3)
    assert abs(cross_val_score(knn, store.X, store.y, cv=5).mean() - 1 / 3) < 0.05
    positions = np.arange(900)[:, None]
    assert cross_val_score(knn, positions, y, cv=5).mean() > 0.5  # which row numbers do not


def test_manifest_columns_and_numeric_labels_follow_their_images(tmp_path):
    lines = []
    for i in (3, 1, 0, 2):
        save_noise(tmp_path / "in" / f"{i}.png", seed=i)
        lines.append(f"in/{i}.png,{i}.5,patient {i},{'train' if i % 2 else 'test'}")
    (tmp_path / "in" / "1.png").write_text("no picture")
    (tmp_path / "m.csv").write_text("\n".join(["path,age,patient,split", *lines]) + "\n")
    with pytest.warns(UnreadableImagesWarning):
        store = extract(tmp_path / "m.csv", tmp_path / "a.h5", labels="age", target="numeric")
    assert store.ids.tolist() == ["in/3.png", "in/0.png", "in/2.png"] and store.y.tolist() == [3.5, 0.5, 2.5]
    assert store.columns["patient"].tolist() == ["patient 3", "patient 0", "patient 2"]
    assert store.columns["split"].tolist() == ["train", "test", "test"]


def test_a_table_with_an_unnamed_column_as_pandas_writes_it(tmp_path):
    save_noise(tmp_path / "a.png", seed=0)
    (tmp_path / "m.csv").write_text(",path,label\n0,a.png,x\n")
    assert extract(tmp_path / "m.csv", tmp_path / "a.h5").columns[""].tolist() == ["0"]


# Nothing half-written


@pytest.mark.parametrize(
    "error, after, progress",
    [
        (KeyboardInterrupt(), 0, True),
        (torch.OutOfMemoryError("no memory"), 1, False),
        (RuntimeError("a fault"), 2, False),
        (RuntimeError("a fault"), 1, True),
    ],
)
def test_an_error_within_the_stream_leaves_nothing(tmp_path, monkeypatch, error, after, progress):
    photos = class_folders(tmp_path / "photos", n=6)
    before, original = left_in(tmp_path), executors.stream

    def interrupted(*args, **kwargs):
        for number, block in enumerate(original(*args, **kwargs)):
            if number == after:
                assert left_in(tmp_path) != before  # it was under way
                raise error
            yield block

    monkeypatch.setattr(executors, "stream", interrupted)
    with pytest.raises(type(error)):
        extract(photos, tmp_path / "a.h5", batch_size=4, progress=progress)
    monkeypatch.undo()
    assert left_in(tmp_path) == before
    assert len(extract(photos, tmp_path / "a.h5", batch_size=4)) == 12


@pytest.mark.parametrize(
    "batch_size, after, kept",  # something is, once 64 images are complete
    [(4, 0, False), (4, 7, False), (4, 17, True), (64, 0, False), (64, 1, True), (64, 4, True)],
)
def test_a_full_disk_is_one_line_that_says_what_is_kept(tmp_path, monkeypatch, batch_size, after, kept):
    photos = class_folders(tmp_path / "photos", n=40)
    (photos / "bee" / "last.png").write_text("no picture")
    before, original, calls = left_in(tmp_path), os.pwrite, []

    def full(*args):
        calls.append(1)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*args)

    def again():
        return extract(photos, tmp_path / "a.h5", batch_size=batch_size, precision="float32")

    with monkeypatch.context() as patched, pytest.raises(StoreError) as caught:
        patched.setattr(os, "pwrite", full)
        again()
    assert_tells(caught.value, "cannot write", "No space left", "what is done is kept" if kept else "nothing was kept")
    assert left_in(tmp_path) == sorted([*before, *(["a.h5.journal", "a.h5.partial"] if kept else [])])
    with pytest.warns(UnreadableImagesWarning):
        finished = again().path.read_bytes()
    (tmp_path / "a.h5").unlink()
    with pytest.warns(UnreadableImagesWarning):
        assert finished == again().path.read_bytes() and left_in(tmp_path) == sorted([*before, "a.h5"])


def test_a_disk_that_is_too_small_is_told_before_any_image_is_computed(tmp_path, monkeypatch, never):
    monkeypatch.setattr(os, "fstatvfs", lambda _: SimpleNamespace(f_bavail=2, f_frsize=4096))
    never()
    refused(tmp_path, StoreError, "it takes", "the disk has 8.19 kB free", "make room")


# Bad input


def refused(tmp_path, error, *words, source=None, output="a.h5", **options):
    """A leaf of FeatxError in one line, and nothing is there that was not there before."""
    source = [noise(i) for i in range(3)] if source is None else source
    before = left_in(tmp_path)
    with pytest.raises(error) as caught:
        extract(source, tmp_path / output, **options)
    assert_tells(caught.value, *words)
    assert left_in(tmp_path) == before


def test_bad_sources_are_refused(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(tmp_path, SourceError, "holds no images", str(empty), source=empty)
    (empty / "notes.txt").write_text("x")
    refused(tmp_path, SourceError, "holds no images", "1 files", ".jpg", source=empty)
    refused(tmp_path, SourceError, "there is no", "close: 'empty'", source=tmp_path / "emty")
    refused(tmp_path, SourceError, "no images", source=[])
    refused(tmp_path, SourceError, "once", "'a'", "drop", ids=["a", "b", "a"])
    refused(tmp_path, SourceError, "3 images", "2 labels", labels=["a", "b"])
    refused(tmp_path, SourceError, "a list or an array", source=(noise(i) for i in range(3)))


@pytest.mark.parametrize("kind", ["folder", "list"])
def test_an_image_whose_name_is_not_utf8_is_one_failure(tmp_path, kind):
    photos = class_folders(tmp_path / "photos", n=2)
    bad = photos / "ant" / os.fsdecode(b"caf\xe9.png")
    os.rename(photos / "ant" / "ant_0.png", bad)
    source = photos if kind == "folder" else sorted(photos.rglob("*.png"))
    with pytest.warns(featx.UnreadableImagesWarning, match=r"1 of 4 images"):
        store = extract(source, tmp_path / "a.h5")
    (failure,) = store.failures
    assert failure.id.endswith(r"ant/caf\udce9.png") and failure.reason == "its name is not UTF-8; rename it"
    assert len(store) == 3 and not any("caf" in name for name in store.ids.tolist())
    content = store.path.read_bytes()
    assert extract(source, tmp_path / "a.h5").path.read_bytes() == content  # it is as it was: nothing to do
    bad.rename(photos / "ant" / "ant_0.png")
    if kind == "folder":
        mended = extract(photos, tmp_path / "a.h5", replace=True)
        assert len(mended) == 4 and not mended.failures


def test_a_folder_whose_name_is_not_utf8(tmp_path):
    bad = os.fsdecode(b"caf\xe9")
    refused(tmp_path, SourceError, "UTF-8", r"caf\udce9", source=class_folders(tmp_path / bad, n=1))


def test_no_image_that_can_be_read_makes_no_store(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_text("no picture")
    paths = [tmp_path / f"{i}.jpg" for i in range(3)]
    refused(tmp_path, StoreError, "none of the 3 images", "0.jpg", "not a picture", source=paths)
    refused(tmp_path, StoreError, "none of the 2 images", "uint8", source=np.zeros((2, 8, 8, 3)))


def test_backbones_and_layers_that_do_not_exist_name_the_nearest(tmp_path):
    refused(tmp_path, BackboneError, "'resnet81'", "close:", "'resnet18'", backbone="resnet81")
    refused(tmp_path, BackboneError, "'torchvisio'", "torchvision, timm, bundled", backbone="torchvisio:resnet18")
    refused(tmp_path, BackboneError, "'bundled:pixel'", "'pixels'", backbone="bundled:pixel")
    network = {"backbone": "resnet18", "weights": None}
    refused(tmp_path, LayerError, "'layer9'", "close: 'layer", "featx layers", layers=["layer1", "layer9"], **network)
    refused(tmp_path, LayerError, "'mean'", "avg, max, gem, spp, cls, tokens, flatten, none", pool="mean", **network)
    refused(tmp_path, LayerError, "'mean'", layers="layer1:mean", **network)
    refused(tmp_path, BackboneError, "needs its preprocessing", backbone=nn.Flatten())
    refused(tmp_path, BackboneError, "no weights file", **(network | {"weights": str(tmp_path / "none.pth")}))


@pytest.mark.parametrize(
    "name, value", [("precision", "half"), ("dtype", "int8"), ("device", "tpu"), ("batch_size", 0), ("workers", 0)]
)
def test_options_that_are_none_of_the_choices_are_refused(tmp_path, name, value):
    with pytest.raises(FeatxError) as caught:
        extract([noise(0)], tmp_path / "a.h5", **{name: value})
    assert name in str(caught.value) and repr(value) in str(caught.value) and "\n" not in str(caught.value)
    assert left_in(tmp_path) == []


def test_outputs_that_cannot_be_written_are_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")

    def never(*_, **__):
        raise AssertionError("the output comes first")

    monkeypatch.setattr(executors, "stream", never)
    refused(tmp_path, StoreError, "is a folder", "features.h5", output="folder")
    refused(tmp_path, StoreError, "there is no folder", "make it", output="no/a.h5")
    refused(tmp_path, StoreError, "there is no folder", output="file/a.h5")
    refused(tmp_path, StoreError, "is not a featx store", "file", output="file")
    refused(tmp_path, StoreError, "cannot write", output="x" * 300 + ".h5")
    for suffix in (".csv", ".NPY", ".zip", ".skops"):
        words = "a store is an HDF5 file", f"a {suffix.lower()} file; name it", "a.h5", "featx.export"
        refused(tmp_path, StoreError, *words, output=f"a{suffix}")
    monkeypatch.setattr(os, "access", lambda *_: False)
    refused(tmp_path, StoreError, "no permission", "another folder", output="a.h5")
    assert (tmp_path / "file").read_text() == "x"
