"""A source becomes ordered images with their own ids and labels, or is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_tells, class_folders, noise, save_noise
from PIL import Image

from featx.errors import ImageError, SourceError
from featx.images import collect, decode, files


def refused(*words, **options):
    with pytest.raises(SourceError) as caught:
        collect(**options)
    assert_tells(caught.value, *words)


def test_class_folders_give_sorted_ids_and_their_names_as_labels(tmp_path):
    root = class_folders(tmp_path / "photos", ("b", "a", "c d"), n=2)
    save_noise(root / "a" / "deep" / "er" / "x.JPG", seed=9)
    found = collect(root)
    assert found.ids == sorted(found.ids, key=lambda name: Path(name).parts)
    assert len(found.ids) == 7 and "a/deep/er/x.JPG" in found.ids
    assert found.y.tolist() == [name.split("/")[0] for name in found.ids]
    assert [root / name for name in found.ids] == list(found.images)
    assert found.origin == root and found.passed_over == 0


def test_order_is_by_name_not_by_the_file_system(tmp_path):
    names = ["b/2.png", "a/9.png", "b/10.png", "a/1.png"]
    for order, root in ((names, tmp_path / "one"), (names[::-1], tmp_path / "other")):
        for i, name in enumerate(order):
            save_noise(root / name, seed=i)
    assert collect(tmp_path / "one").ids == collect(tmp_path / "other").ids


def test_hidden_files_do_not_count_and_others_are_counted(tmp_path):
    root = class_folders(tmp_path / "photos", n=1)
    save_noise(root / "ant" / ".hidden.png", seed=1)
    save_noise(root / ".cache" / "x.png", seed=2)
    (root / "ant" / "notes.txt").write_text("no picture")
    (root / "ant" / ".DS_Store").write_text("no picture")
    found = collect(root)
    assert found.ids == ["ant/ant_0.png", "bee/bee_0.png"] and found.passed_over == 1


def test_a_folder_of_images_has_no_labels(tmp_path):
    for i in range(3):
        save_noise(tmp_path / "flat" / f"{i}.png", seed=i)
    found = collect(str(tmp_path / "flat"))
    assert found.ids == ["0.png", "1.png", "2.png"] and found.y is None


def test_a_folder_named_like_an_image_is_a_folder(tmp_path):
    save_noise(tmp_path / "photos" / "x.jpg" / "a.png", seed=0)
    save_noise(tmp_path / "photos" / "y" / "z.png" / "b.png", seed=1)
    found = collect(tmp_path / "photos")
    assert found.ids == ["x.jpg/a.png", "y/z.png/b.png"] and found.y.tolist() == ["x.jpg", "y"]


def test_linked_folders_are_followed_and_a_circle_ends(tmp_path):
    root = class_folders(tmp_path / "photos", ("ant",), n=2)
    elsewhere = class_folders(tmp_path / "elsewhere", ("wasp",), n=1)
    (root / "bee").symlink_to(elsewhere / "wasp")
    (root / "ant" / "again").symlink_to(root)
    found = collect(root)
    assert found.ids == ["ant/ant_0.png", "ant/ant_1.png", "bee/wasp_0.png"]


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    root = class_folders(tmp_path / "photos")
    listing = os.scandir

    def denied(path):
        if Path(path).name == "bee":
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", denied)
    refused("bee", source=root)


def test_numeric_folders_may_be_numbers(tmp_path):
    found = collect(class_folders(tmp_path / "photos", ("0.5", "12"), n=1), target="numeric")
    assert found.y.tolist() == [0.5, 12.0]
    refused("finite number", "'ant'", source=class_folders(tmp_path / "others"), target="numeric")


@pytest.mark.parametrize("kind", ["folder", "text", "hidden"])
def test_a_folder_without_images_is_refused(tmp_path, kind):
    root = tmp_path / "photos"
    (root / "ant").mkdir(parents=True)
    if kind == "text":
        (root / "ant" / "a.txt").write_text("x")
    if kind == "hidden":
        save_noise(root / "ant" / ".a.png", seed=0)
    refused("holds no images", ".jpg", f"of {int(kind == 'text')} files", source=root)


def test_folders_that_mean_something_else_are_refused(tmp_path):
    mixed = class_folders(tmp_path / "mixed")
    save_noise(mixed / "loose.png", seed=5)
    refused("loose images", "'loose.png'", "move", source=mixed)
    refused("splits, not classes", "'Test', 'train'", source=class_folders(tmp_path / "splits", ("train", "Test")))
    refused("class folders are the labels", "CSV", source=class_folders(tmp_path / "a"), labels=["x"] * 6)
    refused("class folders are the labels", "CSV", source=tmp_path / "a", ids=["x"] * 6)


def test_a_missing_source_lists_similar_names(tmp_path):
    class_folders(tmp_path / "photos")
    refused("there is no", "close: 'photos'", source=tmp_path / "photo")
    refused("there is no", source=tmp_path / "no" / "where")


@pytest.mark.parametrize("name", ["a.png", "list.txt"])
def test_a_single_file_is_refused_with_what_is_needed(tmp_path, name):
    path = save_noise(tmp_path / "a.png", seed=0).rename(tmp_path / name)
    refused("single file", str(path), "give a folder, an archive, or a .csv file of paths", source=path)


@pytest.mark.parametrize("where", ["image", "class folder", "list"])
def test_a_file_whose_name_is_not_utf8_counts_as_unreadable(tmp_path, where):
    root = class_folders(tmp_path / "photos")
    new = root / os.fsdecode(b"caf\xe9") if where == "class folder" else root / "ant" / os.fsdecode(b"caf\xe9.png")
    os.rename(root / "bee" if where == "class folder" else root / "ant" / "ant_0.png", new)
    source = sorted(root.rglob("*.png")) if where == "list" else root
    found = collect(source)
    bad = [number for number, image in enumerate(found.images) if isinstance(image, ImageError)]
    assert len(bad) == (3 if where == "class folder" else 1) and len(found.ids) == 6
    assert all(r"caf\udce9" in found.ids[number] for number in bad) and "".join(found.ids).isprintable()
    with pytest.raises(ImageError, match="its name is not UTF-8; rename it"):
        decode(found.images[bad[0]])


def test_ids_and_folders_that_are_not_utf8_are_refused_by_name(tmp_path):
    root = class_folders(tmp_path / os.fsdecode(b"caf\xe9"))
    refused("UTF-8", "rename", r"caf\udce9", source=root)
    refused("UTF-8", "rename", r"caf\udce9", source=[np.zeros((2, 2), np.uint8)], ids=[os.fsdecode(b"caf\xe9")])
    refused("UTF-8", r"\ud800", source=[np.zeros((2, 2), np.uint8)], ids=["\ud800"])
    assert collect(["\ud800.png"]).ids == [r"\ud800.png"]


def test_a_list_of_paths_keeps_its_order_and_names(tmp_path):
    paths = [save_noise(tmp_path / f"{name}.png", seed=i) for i, name in enumerate("cab")]
    found = collect([str(paths[0]), *paths[1:]], labels=[2, 0, 1])
    assert found.ids == [path.as_posix() for path in paths] and found.y.tolist() == ["2", "0", "1"]
    assert collect(tuple(paths), ids=["x", "y", "z"]).ids == ["x", "y", "z"]
    assert collect(np.array([str(path) for path in paths])).ids == found.ids
    assert found.columns == {} and collect(paths).y is None


def test_an_array_of_images_is_numbered():
    for shape in ((3, 8, 9), (3, 8, 9, 3)):
        array = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)
        collection = collect(array, target="numeric", labels=np.array([0.1, 0.2, 0.3]))
        assert collection.ids == ["0", "1", "2"] and collection.y.tolist() == [0.1, 0.2, 0.3]
        assert all(np.array_equal(image, rows) for image, rows in zip(collection.images, array, strict=True))


def test_pictures_and_arrays_may_be_mixed(tmp_path):
    images = [Image.fromarray(noise(0)), noise(1), save_noise(tmp_path / "a.png", 2)]
    assert collect(images).ids == ["0", "1", images[2].as_posix()]


def test_invalid_collections_are_refused(subtests):
    for source, options, words in [
        ([], {}, ["no images", "empty"]),
        (np.zeros((0, 8, 8, 3), np.uint8), {}, ["no images", "empty"]),
        ([noise(0)] * 3, {"labels": ["a", "b"]}, ["one label per image", "3 images", "2 labels"]),
        ([noise(0)] * 3, {"labels": "abc"}, ["one value per image", "'abc'"]),
        ([noise(0)] * 3, {"labels": ["a", "", "b"]}, ["image 1 has no label"]),
        ([noise(0)] * 3, {"labels": ["a", "b", "c"], "target": "numeric"}, ["image 0", "finite number", "'a'"]),
        ([noise(0)] * 3, {"ids": ["a", "b"]}, ["one id", "3 images", "2 ids"]),
        ([noise(0)] * 3, {"ids": "abc"}, ["ids is a list of one name per image; got 'abc'"]),
        ([noise(0)] * 3, {"ids": 3}, ["ids is a list of one name per image; got 3"]),
        ([noise(0)] * 3, {"ids": ["a", "b", "a"]}, ["once", "'a'", "drop"]),
        (["a.png", "b.png", "./a.png", "a.png"], {}, ["once", "'a.png'"]),
        ([1, 2], {}, ["a path, a uint8 array or a PIL image", "int"]),
        (iter("ab"), {}, ["a list or an array", "str_"]),
        (12, {}, ["a list or an array", "int"]),
        (Image.new("RGB", (8, 8)), {}, ["a list or an array", "Image"]),
        (np.zeros((8, 8), np.uint8), {}, ["(n, h, w)", "(8, 8)"]),
        (noise(0), {}, ["(n, h, w)"]),  # one colour picture is not many grey ones, three pixels wide
    ]:
        with subtests.test(ascii((source, options))):
            refused(*words, source=source, **options)


def write_csv(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_manifest_gives_paths_labels_and_its_other_columns(tmp_path):
    for i in range(3):
        save_noise(tmp_path / "in" / f"{i}.png", seed=i)
    absolute = tmp_path / "in" / "2.png"
    path = write_csv(
        tmp_path / "m.csv", f"split,path,label,patient\ntrain,in/1.png,b,7\ntest,in/0.png,a,8\ntrain,{absolute},b,9\n"
    )
    found = collect(path)
    assert found.ids == ["in/1.png", "in/0.png", str(absolute)] and found.y.tolist() == ["b", "a", "b"]
    assert list(found.images) == [tmp_path / "in/1.png", tmp_path / "in/0.png", absolute]
    assert {name: values.tolist() for name, values in found.columns.items()} == {
        "split": ["train", "test", "train"],
        "patient": ["7", "8", "9"],
    }
    assert found.origin == tmp_path
    other = collect(path, "patient", target="numeric")
    assert other.y.tolist() == [7.0, 8.0, 9.0] and set(other.columns) == {"split", "label"}


def test_a_manifest_may_have_other_column_names_or_no_labels(tmp_path):
    save_noise(tmp_path / "a.png", seed=0)
    found = collect(write_csv(tmp_path / "m.CSV", "file,kind\na.png,x\n"), "kind", path_column="file")
    assert found.ids == ["a.png"] and found.y.tolist() == ["x"] and found.columns == {}
    assert collect(tmp_path / "m.CSV", path_column="file").y is None


def test_a_manifest_that_does_not_fit_is_refused(tmp_path):
    save_noise(tmp_path / "a.png", seed=0)
    path = write_csv(tmp_path / "m.csv", "path,labels\na.png,x\n")
    refused("no column 'label'", "close: 'labels'", source=path, labels="label")
    refused("no column 'file'", "path_column", source=path, path_column="file")
    refused("label column", source=path, labels=["x"])
    refused("label column", source=path, ids=["x"])
    refused("once", "'a.png'", source=write_csv(path, "path,label\na.png,x\na.png,y\n"))
    refused("image a.png has no label", source=write_csv(path, "path,label\na.png,\n"))
    refused("none of the 2 images", "b.png", source=write_csv(path, "path\nb.png\nc.png\n"))


def test_files_lists_files_as_given_and_the_images_of_folders(tmp_path):
    root = class_folders(tmp_path / "photos", n=1)
    single = save_noise(tmp_path / "z.png", seed=0)
    assert files([single, root]) == [single, root / "ant/ant_0.png", root / "bee/bee_0.png"]
    (tmp_path / "empty").mkdir()
    for path, word in ((tmp_path / "empty", "no images"), (tmp_path / "none.png", "there is no")):
        with pytest.raises(SourceError) as caught:
            files([single, path])
        assert_tells(caught.value, word, path.name)
