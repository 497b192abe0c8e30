"""A store of images inside an archive is, apart from its origin, byte for byte that of the same images in a folder."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow
import pytest
from helpers import class_folders, noise
from PIL import Image
from pyarrow import parquet
from runs import extract, refused, same_file

from featx.errors import ImageError, UnreadableImagesWarning
from featx.extraction import executors
from featx.extraction.shares import portable_image
from featx.images import collect, content_digest, decode
from featx.report.pictures import picture_of


@pytest.fixture
def photos(tmp_path):
    root = class_folders(tmp_path / "photos", n=20)
    (root / "ant" / "text.png").write_text("no picture")
    return root


def zip_of(root, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*.png")):
            archive.write(file, file.relative_to(root).as_posix())
    return path


def test_a_store_of_a_zip_file_is_that_of_the_folder(photos, tmp_path):
    archive = zip_of(photos, tmp_path / "photos.zip")
    with pytest.warns(UnreadableImagesWarning):
        zipped = extract(archive, tmp_path / "a.h5")
        same, other = (
            extract(replace(collect(source), origin=None), tmp_path / f"{source.name}.h5")
            for source in (photos, archive)
        )
    assert same_file(same, other) and len(same.failures) == 1
    assert zipped.recipe.origin == str(archive) and replace(zipped.recipe, origin=None) == same.recipe
    assert picture_of(zipped, 3).tobytes() == decode(photos / zipped.ids[3])[0].tobytes()
    made = zipped.path.stat().st_mtime_ns
    assert extract(archive, tmp_path / "a.h5").path.stat().st_mtime_ns == made
    archive.unlink()
    assert picture_of(zipped, 3) is None


def test_a_store_of_a_zip_file_grows_and_fails_by_name(photos, tmp_path):
    (photos / "ant" / "text.png").unlink()
    few = zip_of(photos / "ant", tmp_path / "x.zip")
    first = extract(few, tmp_path / "a.h5")
    few.unlink()
    class_folders(photos, ("ant",), n=22)
    grown = extract(zip_of(photos / "ant", few), tmp_path / "a.h5")
    assert len(first) == 20 and len(grown) == 22


def test_a_path_is_handed_to_a_process_as_absolute_text_and_a_member_as_it_is(photos, tmp_path, monkeypatch):
    member = collect(zip_of(photos, tmp_path / "photos.zip")).images[0]
    assert portable_image(member) is member and portable_image(photos) == str(photos)
    monkeypatch.chdir(tmp_path)
    relative = collect("photos.zip").images[0]
    sent = pickle.dumps([portable_image(Path("photos")), relative])
    monkeypatch.chdir("/")
    assert pickle.loads(sent)[0] == str(photos)
    assert content_digest(pickle.loads(sent)[1]) == content_digest(member)


def test_an_archive_that_is_handed_over_again_is_opened_once(photos, tmp_path):
    members = collect(zip_of(photos, tmp_path / "photos.zip")).images
    one, other = (pickle.loads(pickle.dumps(member)) for member in members[:2])
    assert one._archive is other._archive and one.name != other.name
    (photos / "ant" / "text.png").unlink()
    os.utime(zip_of(photos, tmp_path / "photos.zip"), ns=(1, 1))
    changed = pickle.loads(pickle.dumps(collect(tmp_path / "photos.zip").images[0]))
    assert changed._archive is not one._archive


def test_a_pil_image_is_handed_over_with_its_rotation_and_digest(tmp_path):
    turned = Image.fromarray(noise(0))
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=turned.getexif())
    for picture in (
        Image.open(tmp_path / "turned.png"),
        Image.fromarray(noise(1)).convert("P"),
        Image.new("F", (4, 4)),
    ):
        try:
            expected = decode(picture)
        except ImageError as error:
            assert portable_image(picture).code == error.code
            continue
        found = decode(pickle.loads(pickle.dumps(portable_image(picture))))
        assert found[1] == expected[1] and found[0].tobytes() == expected[0].tobytes()


def test_rows_and_digests_of_shards_and_of_parquet_are_those_of_the_folder(photos, tmp_path):
    (photos / "ant" / "text.png").unlink()
    folder = extract(photos, tmp_path / "folder.h5")
    paths = sorted(photos.rglob("*.png"))
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for path in paths:
            tar.add(path, path.name)
            label = tarfile.TarInfo(f"{path.stem}.cls")
            label.size = len(path.parent.name)
            tar.addfile(label, io.BytesIO(path.parent.name.encode()))
    structs = [{"bytes": path.read_bytes(), "path": path.relative_to(photos).as_posix()} for path in paths]
    table = pyarrow.table({"image": structs, "label": [path.parent.name for path in paths]})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=7)
    for source in ("0.tar", "x.parquet"):
        store = extract(tmp_path / source, tmp_path / f"{source}.h5")
        assert store.digests.tobytes() == folder.digests.tobytes() and store.y.tolist() == folder.y.tolist()
        assert all(store[layer].tobytes() == folder[layer].tobytes() for layer in folder.layers)
        assert picture_of(store, 25).tobytes() == decode(paths[25])[0].tobytes()
    assert store.ids.tolist() == folder.ids.tolist() and store.X.tolist() == folder.X.tolist()


def test_a_run_on_a_bucket_resumes_and_says_what_has_changed(photos, tmp_path):
    memory = fsspec.filesystem("memory")
    (photos / "ant" / "text.png").unlink()
    memory.put(str(photos), "/bucket-of-a-run", recursive=True)
    phases: list[str] = []
    url, output = "memory://bucket-of-a-run", tmp_path / "a.h5"
    store = extract(url, output, progress=lambda now: phases.append(now.phase))
    assert f"listing {url}: 40 files" in phases and store.recipe.origin == url
    folder = extract(photos, tmp_path / "b.h5")
    assert store.X.tolist() == folder.X.tolist() and store.digests.tobytes() == folder.digests.tobytes()
    made = output.stat().st_mtime_ns
    extract(url, output)
    assert output.stat().st_mtime_ns == made
    memory.pipe("/bucket-of-a-run/ant/ant_0.png", memory.cat("/bucket-of-a-run/ant/ant_1.png"))
    refused(lambda: extract(url, output), output, "changed", "'ant/ant_0.png'")
    images = collect(url)
    memory.pipe("/bucket-of-a-run/bee/bee_0.png", b"changed after the listing")
    with pytest.warns(UnreadableImagesWarning):
        store = extract(images, tmp_path / "c.h5")
    assert [(failure.id, failure.code) for failure in store.failures] == [("bee/bee_0.png", "changed")]
    memory.rm("/bucket-of-a-run", recursive=True)


def test_a_run_on_an_archive_goes_on_to_the_bytes_of_an_unbroken_one(photos, tmp_path):
    (photos / "ant" / "text.png").unlink()
    class_folders(photos, ("cat",), n=110, seed=5000)
    archive = zip_of(photos, tmp_path / "photos.zip")
    unbroken = extract(archive, tmp_path / "unbroken.h5", batch_size=8)

    def stop(now):
        if now.done > 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(archive, tmp_path / "a.h5", batch_size=8, progress=stop)
    assert (tmp_path / "a.h5.journal").exists()
    assert same_file(extract(archive, tmp_path / "a.h5", batch_size=8), unbroken)


def test_processes_read_members(photos, tmp_path, monkeypatch, small_network):
    archive = zip_of(photos, tmp_path / "photos.zip")
    options = {"backbone": small_network, "batch_size": 8, "precision": "float32"}
    with pytest.warns(UnreadableImagesWarning):
        one = extract(archive, tmp_path / "one.h5", **options)
        monkeypatch.setattr(executors, "places", lambda *_: ["cpu", "cpu"])
        assert same_file(extract(archive, tmp_path / "two.h5", **options), one)
