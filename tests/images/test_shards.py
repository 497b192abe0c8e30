"""WebDataset shards give their samples in order, with labels; damaged and crafted ones are refused by name."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile

import pytest
from collected import refused
from helpers import assert_tells, class_folders, save_noise

from featx.errors import ImageError, SourceError
from featx.images import collect, content_digest, decode, files, image_at
from featx.images.shards import expand_braces


def shard(path, entries):
    """A tar file of (name, bytes) in order."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def shards_of(root, folder, as_json=False):
    """Shards of two images each of a folder of class folders; returns the images' paths."""
    folder.mkdir()
    paths = sorted(root.rglob("*.png"))
    for number in range(0, len(paths), 2):
        entries = []
        for path in paths[number : number + 2]:
            label = path.parent.name
            content = json.dumps({"class": label, "other": 1}) if as_json else f"{label}\n"
            suffix = "json" if as_json else "cls"
            entries += [(path.name, path.read_bytes()), (f"{path.stem}.{suffix}", content.encode())]
        shard(folder / f"{number // 2:03}.tar", entries)
    return paths


@pytest.fixture
def picture(tmp_path):
    return save_noise(tmp_path / "x.png", seed=0).read_bytes()


@pytest.mark.parametrize("as_json", [False, True])
def test_a_pattern_a_list_and_a_folder_of_shards_are_the_same_source(tmp_path, as_json):
    paths = shards_of(class_folders(tmp_path / "photos"), tmp_path / "shards", as_json)
    expected = [f"{number // 2:03}.tar/{path.stem}" for number, path in enumerate(paths)]
    names = [tmp_path / "shards" / f"{number:03}.tar" for number in range(3)]
    for source in (f"{tmp_path}/shards/{{000..002}}.tar", names, [str(name) for name in names], tmp_path / "shards"):
        found = collect(source)
        assert found.ids == expected and found.y.tolist() == [path.parent.name for path in paths]
        assert found.origin == tmp_path / "shards"
        assert [content_digest(image) for image in found.images] == [content_digest(path) for path in paths]
    again = pickle.loads(pickle.dumps(found.images[3]))
    assert decode(again)[0] == decode(paths[3])[0] == decode(image_at(found.origin, found.ids[3]))[0]
    assert len(files([tmp_path / "shards", names[0]])) == 8


def test_braces_are_expanded():
    assert expand_braces("a.tar") == ["a.tar"]
    assert expand_braces("{08..10}.tar") == ["08.tar", "09.tar", "10.tar"]
    assert expand_braces("{a,b}-{0..1}.tar") == ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]
    for pattern in ("{3..1}.tar", "{0..999999999999}.tar", "{0..999}{0..999}.tar"):
        with pytest.raises(SourceError):
            expand_braces(pattern)


def test_only_the_image_of_a_key_counts(tmp_path, picture):
    entries = [("./d/a.jpg", picture), ("./d/a.seg.png", picture), ("./d/._a.jpg", b"x"), ("./d/a.txt", b"x")]
    found = collect(shard(tmp_path / "0.tar", entries))
    assert found.ids == ["0.tar/d/a"] and found.y is None and found.passed_over == 2


def test_shards_of_one_name_in_two_folders_are_told_apart(tmp_path, picture):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shard(tmp_path / name / "0.tar", [("x.png", picture)])
    assert collect([tmp_path / "a" / "0.tar", tmp_path / "b" / "0.tar"]).ids == ["a/0.tar/x", "b/0.tar/x"]


def test_numbers_as_labels(tmp_path, picture):
    path = shard(tmp_path / "0.tar", [("a.png", picture), ("a.json", b'{"label": 1.5}')])
    assert collect(path, target="numeric").y.tolist() == [1.5]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (["../a.png"], ("'../a.png'", "no path inside it")),
        (["/a.png"], ("'/a.png'", "no path inside it")),
        (["b/../../a.cls"], ("no path inside it",)),
        (["a.png", "a.jpg"], ("two images under the key 'a'",)),
        (["a.png", "b.png", "a.png"], ("two images under the key 'a'",)),
        (["a.png", ("a.cls", b"x"), "b.png"], ("0.tar/b", "no label")),
        (["a.png", ("a.cls", b"\xff")], ("'a.cls'", "UTF-8")),
        (["a.png", ("a.json", b"{")], ("'a.json'", "JSON")),
        (["a.png", ("a.json", b"[" * 100_000)], ("'a.json'", "JSON")),
        (["a.png", ("a.json", b"[1]")], ("'a.json'", "object", "list")),
        (["a.png", ("a.json", b'{"label": [1]}')], ("'a.json'", "text or a number", "list")),
        (["a.png", ("a.cls", b"x" * 2_000_000)], ("'a.cls'", "2 MB")),
        ([("a.txt", b"x")], ("hold no images", "KEY.jpg")),
    ],
)
def test_samples_that_cannot_be_used_are_refused(tmp_path, picture, entries, words):
    named = [entry if isinstance(entry, tuple) else (entry, picture) for entry in entries]
    refused(shard(tmp_path / "0.tar", named), *words)


def test_a_shard_cut_short_anywhere_is_refused(tmp_path, picture):
    path = shard(tmp_path / "0.tar", [("a.png", picture), ("b.png", picture)])
    whole = path.read_bytes()
    end = 2 * (512 + -(-len(picture) // 512) * 512)
    for length in (0, 100, 512, 1000, end // 2, end // 2 + 100, end - 700, end):
        path.write_bytes(whole[:length])
        refused(path, "0.tar", "cut short")


def test_a_compressed_or_missing_shard_is_refused(tmp_path, picture):
    with tarfile.open(tmp_path / "0.tar", "w:gz") as tar:
        tar.add(tmp_path / "x.png", "a.png")
    refused(tmp_path / "0.tar", "not a plain tar", "uncompressed")
    refused(f"{tmp_path}/{{1..2}}.tar", "there is no", "1.tar")
    refused(tmp_path / "0.tar", "not a plain tar", labels=None)


def test_links_and_names_that_are_not_utf8_are_failures(tmp_path, picture):
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for name in ("caf\udce9.png", "ok.png"):
            info = tarfile.TarInfo(name)
            info.size = len(picture)
            tar.addfile(info, io.BytesIO(picture))
    found = collect(tmp_path / "0.tar")
    assert found.ids == ["0.tar/link", "0.tar/caf\\udce9", "0.tar/ok"]
    for image, words in zip(found.images, ("not a file", "not UTF-8"), strict=False):
        with pytest.raises(ImageError) as caught:
            decode(image)
        assert_tells(caught.value, words)
    decode(found.images[2])


def test_a_shard_that_changes_after_it_was_listed_is_a_failure(tmp_path, picture):
    path = shard(tmp_path / "0.tar", [("a.png", picture)])
    (image,) = collect(path).images
    decode(image)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ImageError) as caught:
        decode(image)
    assert caught.value.code == "changed"


def test_a_folder_of_images_beside_a_shard_is_a_folder(tmp_path, picture):
    shard(tmp_path / "0.tar", [("a.png", picture)])
    assert collect(tmp_path).ids == ["x.png"]
