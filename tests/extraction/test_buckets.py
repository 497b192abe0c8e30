"""A run on a bucket makes the rows of the folder, keeps the listing that it began with, and ends when it is cut off."""

from __future__ import annotations

import shutil

import fsspec
import pytest
from helpers import class_folders
from runs import extract, refused, same_file

from featx import urls
from featx.errors import SourceError, UnreadableImagesWarning
from featx.images import collect, remote


@pytest.fixture
def memory(tmp_path):
    """200 images in memory and, as "photos", in a folder."""
    system = fsspec.filesystem("memory")
    system.put(str(class_folders(tmp_path / "photos", n=100)), "/all", recursive=True)
    yield system
    system.rm("/all", recursive=True)


URL = "memory://all"


def interrupted(source, output, **options):
    def stop(now):
        if now.done > 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(source, output, batch_size=8, progress=stop, **options)
    assert output.with_name(f"{output.name}.journal").exists()


def test_rows_keys_and_digests_are_those_of_the_folder(bucket, tmp_path):
    bucket.put(str(class_folders(tmp_path / "photos", n=10)), "photos/all", recursive=True)
    store, folder = extract("s3://photos/all", tmp_path / "a.h5"), extract(tmp_path / "photos", tmp_path / "b.h5")
    assert store.X.tolist() == folder.X.tolist() and store.digests.tobytes() == folder.digests.tobytes()
    assert all(store[layer].tobytes() == folder[layer].tobytes() for layer in folder.layers)
    assert store.recipe.origin == "s3://photos/all"


def test_a_resumed_run_has_the_images_that_it_began_with(memory, tmp_path, monkeypatch):
    unbroken = extract(URL, tmp_path / "unbroken.h5", batch_size=8)
    interrupted(URL, tmp_path / "a.h5")
    memory.pipe("/all/ant/added.png", memory.cat("/all/ant/ant_1.png"))
    memory.rm("/all/ant/ant_2.png")  # its row is there
    walked = []
    monkeypatch.setattr(remote.RemotePath, "_walked", lambda *_: walked.append(0))
    resumed = extract(URL, tmp_path / "a.h5", batch_size=8)
    assert same_file(resumed, unbroken) and not walked
    monkeypatch.undo()


def test_an_object_that_changed_before_the_resume_is_a_failure(memory, tmp_path):
    interrupted(URL, tmp_path / "a.h5")
    memory.pipe("/all/bee/bee_99.png", memory.cat("/all/bee/bee_1.png"))
    with pytest.warns(UnreadableImagesWarning):
        resumed = extract(URL, tmp_path / "a.h5", batch_size=8)
    assert [(failure.id, failure.code) for failure in resumed.failures] == [("bee/bee_99.png", "changed")]
    grown = extract(URL, tmp_path / "a.h5", batch_size=8, replace=True)
    assert len(grown) == 200 and not grown.failures


def test_an_archive_that_changed_before_the_resume_is_refused(memory, tmp_path, monkeypatch):
    """Its images have no versions of their own."""
    archive = shutil.make_archive(tmp_path / "x", "zip", tmp_path / "photos")
    memory.put(archive, "/all/x.zip")
    url, output = f"{URL}/x.zip", tmp_path / "a.h5"
    unbroken = extract(url, tmp_path / "unbroken.h5", batch_size=8)
    interrupted(url, output)
    content = memory.cat("/all/x.zip")
    memory.pipe("/all/x.zip", content[:-1])
    monkeypatch.setattr(remote, "_blocks", remote._Blocks())  # as in another process
    words = (f"cannot read {url}", "changed", "unfinished run", "discard=True")
    refused(lambda: extract(url, output, batch_size=8), output, *words, error=SourceError)
    memory.pipe("/all/x.zip", content)
    assert same_file(extract(url, output, batch_size=8, discard=True), unbroken)


def test_another_source_does_not_use_the_listing(memory):
    kept = collect(URL).listing
    memory.pipe("/all/ant/added.png", b"")
    assert len(collect(URL, listing=kept).ids) == 200
    assert len(collect(f"{URL}/ant", listing=kept).ids) == 101


def test_a_run_that_is_cut_off_blames_no_image_and_goes_on(memory, tmp_path, monkeypatch):
    unbroken = extract(URL, tmp_path / "unbroken.h5", batch_size=8)
    answer, requests = type(memory).cat_file, []

    def cut_off(self, *args, **options):
        requests.append(args)
        if len(requests) > 140:
            raise OSError("no route to host")
        return answer(self, *args, **options)

    monkeypatch.setattr(urls, "_PAUSES", (0,))
    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "cat_file", cut_off)
        with pytest.raises(SourceError, match="no route to host; run it again to go on"):
            extract(URL, tmp_path / "a.h5", batch_size=8)
    assert (tmp_path / "a.h5.journal").exists()
    assert same_file(extract(URL, tmp_path / "a.h5", batch_size=8), unbroken)


def test_a_bucket_that_is_gone_at_the_resume_is_no_missing_image(memory, tmp_path, monkeypatch):
    interrupted(URL, tmp_path / "a.h5")
    monkeypatch.setattr(remote.RemotePath, "_info", lambda self: self._tried(_gone))
    refused(lambda: extract(URL, tmp_path / "a.h5", batch_size=8), tmp_path / "a.h5", f"there is no {URL}",
            "unfinished run", error=SourceError)  # fmt: skip


def _gone():
    raise FileNotFoundError("The specified bucket does not exist")
