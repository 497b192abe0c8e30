"""A URL gives the images of what it names, as on disk; an object that changes after the listing is a failure."""

from __future__ import annotations

import gc
import pickle
import tracemalloc

import fsspec
import pytest
from collected import failure, refused
from helpers import assert_tells, class_folders
from test_shards import shards_of
from test_tables import written
from test_zips import zip_of

from featx import urls
from featx.errors import SourceError
from featx.images import collect, content_digest, decode, files, image_at, remote
from featx.urls import shown


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


@pytest.fixture
def photos(tmp_path):
    return class_folders(tmp_path / "photos", ("bee", "ant"), n=4)


def digests(images):
    return [content_digest(image) for image in images]


def test_a_folder_is_listed_as_on_disk_with_progress(memory, photos):
    (photos / "ant" / ".hidden.png").write_bytes(b"x")
    (photos / ".cache").mkdir()
    (photos / ".cache" / "x.png").write_bytes(b"x")
    (photos / "ant" / "notes.txt").write_bytes(b"x")
    memory.put(str(photos), "/photos", recursive=True)
    phases: list[str] = []
    folder, found = collect(photos), collect("memory://photos/", on_phase=phases.append)
    assert found.ids == folder.ids and found.y.tolist() == folder.y.tolist() and found.passed_over == 1
    assert digests(found.images) == digests(folder.images) and found.origin == "memory://photos"
    assert str(found.images[0]) == f"memory://photos/{found.ids[0]}"
    assert phases[-1] == "listing memory://photos: 9 files"
    assert digests(pickle.loads(pickle.dumps(found.images))) == digests(folder.images)
    assert collect(f"file://{photos}").ids == folder.ids


def test_archives_and_manifests_are_read_where_they_are(memory, photos, tmp_path):
    folder = collect(photos)
    paths = shards_of(photos, tmp_path / "shards")
    memory.put(str(tmp_path / "shards"), "/shards", recursive=True)
    memory.put(str(zip_of(photos, tmp_path / "photos.zip", inside="all/")), "/data/photos.zip")
    memory.put(str(written(tmp_path / "x.parquet", photos)), "/data/x.parquet")
    zipped = collect("memory://data/photos.zip/all")
    assert zipped.ids == folder.ids and digests(zipped.images) == digests(folder.images)
    refused("memory://data/photos.zip", "give memory://data/photos.zip/all")
    for source in (
        "memory://shards",
        "memory://shards/{000..003}.tar",
        [f"memory://shards/00{i}.tar" for i in range(4)],
    ):
        shards = collect(source)
        assert shards.ids[3] == f"001.tar/{paths[3].stem}" and digests(shards.images) == digests(paths)
        assert shards.origin == "memory://shards"
    table = collect("memory://data/x.parquet")
    assert table.ids == folder.ids and digests(table.images) == digests(folder.images)
    memory.put(str(photos), "/photos", recursive=True)
    memory.pipe("/photos/list.csv", b"path,label,site\nant/ant_0.png,a,1\nno.png,b,2\n../data/photos.zip,c,3\n")
    listed = collect("memory://photos/list.csv")
    assert listed.y.tolist() == ["a", "b", "c"] and listed.columns["site"].tolist() == ["1", "2", "3"]
    assert content_digest(listed.images[0]) == content_digest(photos / "ant/ant_0.png")
    assert [failure(image).code for image in listed.images[1:]] == ["missing", "missing"]
    memory.pipe("/photos/none.csv", b"path\nno.png\n")
    refused("memory://photos/none.csv", "none of the 1 images", "'no.png'")
    assert digests(files(["memory://photos/ant/ant_0.png", "memory://photos/bee"])) == digests(
        [photos / "ant/ant_0.png", *sorted((photos / "bee").iterdir())]
    )


def test_an_object_that_changes_after_it_was_listed_is_a_failure(memory, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(remote.RemoteFile, "buffer_bytes", 64)
    monkeypatch.setattr(remote, "_blocks", remote._Blocks())
    monkeypatch.setattr(remote, "_BLOCK_BYTES", 64)
    monkeypatch.setattr(remote, "_KEPT_BLOCKS", 1)
    memory.put(str(photos), "/photos", recursive=True)
    memory.put(str(zip_of(photos, tmp_path / "photos.zip")), "/photos.zip")
    images, zipped = collect("memory://photos").images, collect("memory://photos.zip").images
    decode(images[0])
    decode(zipped[0])
    memory.pipe("/photos/ant/ant_0.png", memory.cat("/photos/ant/ant_1.png"))
    memory.pipe("/photos/ant/ant_1.png", b"shorter")
    memory.rm("/photos/ant/ant_2.png")
    memory.pipe("/photos.zip", memory.cat("/photos.zip"))
    assert [failure(image).code for image in images[:3]] == ["changed", "changed", "missing"]
    assert failure(zipped[0]).code == "changed"
    decode(images[3])


def test_what_is_not_there_or_not_readable_is_refused(memory, monkeypatch):
    refused("memory://nowhere", "there is no memory://nowhere")
    refused("memory://nowhere/{0..1}.tar", "there is no memory://nowhere/0.tar")
    refused("memory://nowhere/x.csv", "there is no memory://nowhere/x.csv")
    refused("nosuchscheme://x", "cannot open nosuchscheme://x")
    memory.makedirs("/empty")
    refused("memory://empty", "memory://empty holds no images")
    for name in ("dataset_info.json", "state.json", "data.arrow"):
        memory.pipe(f"/saved/{name}", b"{}")
    refused("memory://saved", "memory://saved is a folder that save_to_disk wrote", "download it first")

    def denied(self, path, **options):
        raise PermissionError("403 Forbidden\nmore lines")

    monkeypatch.setattr(type(memory), "info", denied)
    refused("memory://photos", "cannot list memory://photos", "PermissionError: 403 Forbidden")


def test_a_request_that_fails_is_made_again_and_at_last_ends_the_run(memory, photos, monkeypatch):
    memory.put(str(photos), "/photos", recursive=True)
    images = collect("memory://photos").images
    answer, failures = type(memory).cat_file, [OSError("request 123 timed out")] * 3

    def broken(self, path, **options):
        if failures:
            raise failures.pop()
        return answer(self, path, **options)

    monkeypatch.setattr(urls, "_PAUSES", (0, 0, 0))
    monkeypatch.setattr(type(memory), "cat_file", broken)
    assert digests(images[:1]) == digests(collect(photos).images[:1]) and not failures
    failures += [OSError("request 123 timed out")] * 4
    with pytest.raises(SourceError) as caught:
        decode(images[0])
    assert_tells(caught.value, "memory://photos/ant/ant_0.png", "request 123 timed out", "run it again to go on")


def test_what_a_failed_request_says_of_an_object_is_not_that_it_is_gone():
    """fsspec raises FileNotFoundError whenever a web server does not answer."""
    gone, unreachable = FileNotFoundError("x"), FileNotFoundError("x")
    unreachable.__cause__ = ConnectionResetError()
    assert urls.is_gone(gone) and not urls.is_gone(unreachable) and not urls.is_gone(OSError())


def test_an_object_that_is_too_large_is_not_fetched(memory, photos, monkeypatch):
    memory.put(str(photos), "/photos", recursive=True)
    images = collect("memory://photos").images
    monkeypatch.setattr("featx.images.limits.MAX_FILE_BYTES", 100)
    monkeypatch.setattr(type(memory), "cat_file", None)
    assert failure(images[0]).code == "too-large"


def test_an_object_takes_little_more_memory_than_its_name(monkeypatch, memory):
    n, names = 20_000, [f"/photos/{i % 20:02}/{i:020}.jpg" for i in range(20_000)]

    def listed(self, path, detail=True):
        path = path.rstrip("/")
        if path == "/photos":
            return [{"name": f"/photos/{i:02}", "type": "directory", "size": 0} for i in range(20)]
        inside = (name for name in names if name.startswith(path))
        return [{"name": name, "type": "file", "size": 1, "ETag": f"{name} of 60 characters"} for name in inside]

    monkeypatch.setattr(type(memory), "ls", listed)
    monkeypatch.setattr(type(memory), "info", lambda self, path: {"type": "directory"})
    collect("memory://photos")  # what is imported at first use takes more
    tracemalloc.start()
    try:
        collection = collect("memory://photos")
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(collection.ids) == n and taken < 200 * n


def test_urls_are_shown_without_secrets():
    assert shown("ftp://me:secret@host/a.zip?sig=abc") == "ftp://host/a.zip"
    assert shown("sftp://me:se@cr@host/a.zip") == "sftp://host/a.zip"
    assert shown("s3://bucket/a@b/c") == "s3://bucket/a@b/c"


def test_no_message_has_the_secret_of_a_url(memory):
    with pytest.raises(SourceError) as counted:
        collect("https://me:secret@host/{0..1000000}.tar?sig=secret")
    with pytest.raises(SourceError) as labelled:
        collect("https://me:secret@host/a.csv?sig=secret", labels=["ant"])
    memory.makedirs("/me:secret@empty?sig=secret")
    with pytest.raises(SourceError) as empty:
        files(["memory://me:secret@empty?sig=secret"])
    for caught in (counted, labelled, empty):
        assert "secret" not in str(caught.value) and "://" in str(caught.value)


def test_a_url_in_a_store_is_not_opened(memory, photos, monkeypatch):
    memory.put(str(photos), "/photos", recursive=True)
    monkeypatch.setattr(remote, "RemotePath", None)
    image = image_at("memory://photos", "ant/ant_0.png")
    assert failure(image).code == "missing"
