"""A zip file gives the images of the folder that it was made of; a crafted one is refused by name."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from collected import failure, refused
from helpers import assert_tells, class_folders, save_noise
from PIL import Image

from featx.errors import ImageError
from featx.images import collect, content_digest, decode, files, image_at


def zip_of(root, path, inside=""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, inside + file.relative_to(root).as_posix())
    return path


def written(path, names, content=None, **attributes):
    """A zip file with these names as they are."""
    picture = content if content is not None else save_noise(path.parent / "one.png", seed=0).read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of repeated names
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                info = zipfile.ZipInfo("x")
                info.filename, info.compress_type = name, zipfile.ZIP_DEFLATED
                for attribute, value in attributes.items():
                    setattr(info, attribute, value)
                archive.writestr(info, picture)
    return path


def test_the_images_are_those_of_the_folder(tmp_path):
    root = class_folders(tmp_path / "photos", ("b", "a", "c d", "é"), n=2)
    save_noise(root / "a" / "deep" / "er" / "x.JPG", seed=9)
    save_noise(root / "a" / ".hidden.png", seed=1)
    (root / "a" / "notes.txt").write_text("no picture")
    folder, zipped = collect(root), collect(str(zip_of(root, tmp_path / "photos.zip")))
    assert zipped.ids == folder.ids and zipped.y.tolist() == folder.y.tolist()
    assert zipped.passed_over == folder.passed_over == 1 and zipped.origin == tmp_path / "photos.zip"
    for one, other in zip(folder.images, zipped.images, strict=True):
        assert content_digest(one) == content_digest(other) and decode(one)[0] == decode(other)[0]
    assert str(zipped.images[0]) == f"{tmp_path}/photos.zip/{zipped.ids[0]}"
    assert files([tmp_path / "photos.zip"])[3].read() == (root / folder.ids[3]).read_bytes()


def test_members_are_read_by_threads_and_by_other_processes(tmp_path):
    root = class_folders(tmp_path / "photos", n=20)
    images = collect(zip_of(root, tmp_path / "photos.zip")).images
    with ThreadPoolExecutor(8) as threads:
        digests = list(threads.map(content_digest, [*images] * 5))
    expected = [content_digest(path) for path in collect(root).images]
    assert digests == expected * 5
    assert [content_digest(image) for image in pickle.loads(pickle.dumps(images))] == expected


def test_a_folder_inside_is_a_source_too(tmp_path):
    root = class_folders(tmp_path / "photos", n=2)
    archive = zip_of(root, tmp_path / "photos.zip", inside="2024/")
    refused(archive, "lie in folders of '2024'", f"give {archive / '2024'}")
    inside = collect(archive / "2024")
    assert inside.ids == collect(root).ids and inside.origin == archive / "2024"
    assert content_digest(image_at(inside.origin, "ant/ant_1.png")) == content_digest(root / "ant/ant_1.png")
    assert failure(image_at(inside.origin, "ant/no.png")).code in ("missing", "unreadable")


def test_what_a_folder_may_not_hold_is_refused_in_a_zip_too(tmp_path):
    loose = class_folders(tmp_path / "loose")
    save_noise(loose / "loose.png", seed=5)
    refused(zip_of(loose, tmp_path / "loose.zip"), "loose images", "'loose.png'")
    splits = class_folders(tmp_path / "splits", ("train", "test"))
    refused(zip_of(splits, tmp_path / "splits.zip"), "splits, not classes", "'test', 'train'")
    refused(tmp_path / "splits.zip", "class folders are the labels", "CSV", labels=["x"] * 6)
    (tmp_path / "empty").mkdir()
    refused(zip_of(tmp_path / "empty", tmp_path / "empty.zip"), "holds no images", "of 0 files")


@pytest.mark.parametrize(
    "name",
    ["../x.png", "a/../../x.png", "/etc/x.png", "a\\x.png", "C:/x.png", "a/./x.png", "a//x.png", "../no-image.txt"],
)
def test_a_name_that_leaves_the_archive_is_refused(tmp_path, name):
    refused(written(tmp_path / "a.zip", ["a/1.png", name]), repr(name), "no path inside it")


def test_repeated_names_are_refused(tmp_path):
    refused(written(tmp_path / "a.zip", ["a/1.png", "a/1.png"]), "repeated", "'a/1.png'")


def test_an_encrypted_archive_is_refused(tmp_path):
    path = written(tmp_path / "a.zip", ["a/1.png"])
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    refused(path, "encrypted", "'a/1.png'")


def test_a_link_is_a_failure(tmp_path):
    path = written(tmp_path / "a.zip", ["a/1.png"], content=b"/etc/passwd", external_attr=0o120777 << 16)
    (image,) = collect(path).images
    assert_tells(failure(image), "it is a link")


def test_a_name_that_is_not_utf8_is_a_failure_and_utf8_without_its_flag_is_read(tmp_path):
    path = written(tmp_path / "a.zip", ["a/cafX.png", "a/cafXX.png"])
    content = path.read_bytes().replace(b"cafXX", "café".encode()).replace(b"cafX", b"caf\xe9")
    path.write_bytes(content)
    found = collect(path)
    assert sorted(found.ids) == sorted(["a/caf\\udce9.png", "a/café.png"])
    by_name = dict(zip(found.ids, found.images, strict=True))
    assert_tells(failure(by_name["a/caf\\udce9.png"]), "not UTF-8")
    decode(by_name["a/café.png"])


def test_bombs_are_refused_before_they_are_inflated(tmp_path, monkeypatch):
    refused(written(tmp_path / "a.zip", ["a/1.png"], content=bytes(2**26)), "zip bomb", "67.1 MB")
    noise = np.random.default_rng(0).bytes(2**20)
    path = written(tmp_path / "b.zip", ["a/1.png"], content=bytes(2**25))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/noise.png", noise)
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    error = failure(collect(path).images[0])
    assert error.code == "too-large"
    assert_tells(error, "would inflate to 33.6 MB", "200 times")


@pytest.mark.parametrize("stated", [10, 4_000])
def test_a_member_that_inflates_to_another_size_is_damaged(tmp_path, stated):
    path = written(tmp_path / "a.zip", ["a/1.png"])
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\1\2") + 24
    content[start : start + 4] = struct.pack("<I", stated)
    path.write_bytes(content)
    assert failure(collect(path).images[0]).code == "damaged"


def test_other_compressions_are_refused_by_name(tmp_path):
    save_noise(tmp_path / "x.png", seed=0)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.write(tmp_path / "x.png", "a/x.png")
    assert_tells(failure(collect(tmp_path / "a.zip").images[0]), "neither stored nor deflated")


def test_files_that_are_no_zip_or_are_cut_short_are_refused(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(b"x" * 1000)
    refused(path, "not a zip file")
    zip_of(class_folders(tmp_path / "photos"), path)
    path.write_bytes(path.read_bytes()[:-100])
    refused(path, "not a zip file")


def test_damaged_data_is_a_failure_of_one_image(tmp_path):
    path = zip_of(class_folders(tmp_path / "photos"), tmp_path / "a.zip")
    content = bytearray(path.read_bytes())
    start = content.index(b"ant/ant_1.png") + 500
    content[start : start + 8] = bytes(8)
    path.write_bytes(content)
    codes = []
    for image in collect(path).images:
        try:
            decode(image)
        except ImageError as error:
            codes.append(error.code)
    assert codes == ["damaged"]


def test_an_archive_that_changes_after_it_was_listed_is_a_failure(tmp_path):
    path = zip_of(class_folders(tmp_path / "photos"), tmp_path / "a.zip")
    images = collect(path).images
    decode(images[0])
    os.utime(path, ns=(1, 1))
    assert failure(images[0]).code == "changed"
    zip_of(class_folders(tmp_path / "others", seed=50), path)
    assert failure(images[1]).code == "changed"
    shutil.move(path, tmp_path / "b.zip")
    assert failure(images[1]).code == "missing"


def test_a_picture_from_a_zip_keeps_its_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "photos" / "a").mkdir(parents=True)
    Image.new("RGB", (40, 20)).save(tmp_path / "photos" / "a" / "1.jpg", exif=exif)
    (image,) = collect(zip_of(tmp_path / "photos", tmp_path / "a.zip")).images
    assert decode(image)[0].size == (20, 40)
