"""Images in an S3 bucket and on a web server are those of the folder, whatever they are packed in."""

from __future__ import annotations

import sys
import threading

import fsspec
import numpy as np
import pytest
from collected import failure, refused
from helpers import class_folders
from test_shards import shards_of
from test_tables import written
from test_zips import zip_of

from featx import urls
from featx.errors import SourceError
from featx.images import batches, collect, content_digest, remote


@pytest.fixture
def photos(tmp_path):
    return class_folders(tmp_path / "photos", n=4)


def digests(images):
    return [content_digest(image) for image in images]


def test_a_bucket_holds_a_folder_a_manifest_shards_a_table_and_an_archive(bucket, photos, tmp_path):
    folder = collect(photos)
    paths = shards_of(photos, tmp_path / "shards")
    manifest = "path,label\n" + "".join(f"{name},{name[:3]}\n" for name in folder.ids)
    bucket.put(str(photos), "photos/all", recursive=True)
    bucket.pipe("photos/all/list.csv", manifest.encode())
    bucket.put(str(tmp_path / "shards"), "photos/shards", recursive=True)
    bucket.put(str(zip_of(photos, tmp_path / "x.zip")), "photos/x.zip")
    bucket.put(str(written(tmp_path / "x.parquet", photos)), "photos/x.parquet")
    for source in ("all/", "all/list.csv", "x.zip", "x.parquet"):
        images = collect(f"s3://photos/{source}")
        assert images.ids == folder.ids and images.y.tolist() == folder.y.tolist()
        assert digests(images.images) == digests(folder.images)
    for source in ("shards", "shards/{000..003}.tar"):
        shards = collect(f"s3://photos/{source}")
        assert digests(shards.images) == digests(paths) and shards.y.tolist() == folder.y.tolist()


def test_objects_are_listed_one_by_one_as_folders_are(bucket, photos, monkeypatch):
    """With progress in a folder of many, which s3fs would hold in memory."""
    for name in (".hidden.png", ".cache/x.png", "notes.txt", "a b.png", "ü#1.png", "50%.png", "ant.b/x.png", "q?x.png"):
        path = photos / "ant" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((photos / "ant/ant_0.png").read_bytes())
    bucket.put(str(photos), "photos/all", recursive=True)
    for name in ("all/", "all/ant/", "allx/ant.png", "all.png"):
        bucket.call_s3("put_object", Bucket="photos", Key=name, Body=b"")
    monkeypatch.setattr(remote, "_PHASE_EVERY", 5)
    phases = []
    listed = collect("s3://photos/all", on_phase=phases.append)
    assert phases == [f"listing s3://photos/all: {n} files" for n in (5, 10, 14)]
    monkeypatch.setattr(remote, "is_s3fs", lambda system: False)
    walked = collect("s3://photos/all")
    assert listed.ids == walked.ids == collect(photos).ids and listed.listing == walked.listing
    assert listed.passed_over == walked.passed_over == 1
    assert collect("s3://photos/all/bee").ids == [f"bee_{i}.png" for i in range(4)]


def test_a_web_server_without_ranges_serves_a_manifest_and_an_archive(web, photos, tmp_path, monkeypatch):
    folder = collect(photos)
    (photos / "list.csv").write_text("path,label\n" + "".join(f"{name},{name[:3]}\n" for name in [*folder.ids, "no"]))
    zip_of(photos, tmp_path / "x.zip")
    zipped, listed = collect(f"{web}/x.zip"), collect(f"{web}/photos/list.csv")
    assert zipped.ids == folder.ids and digests(zipped.images) == digests(folder.images)
    assert listed.ids[:-1] == folder.ids and digests(listed.images[:-1]) == digests(folder.images)
    assert failure(listed.images[-1]).code == "missing"
    refused(f"{web}/none.zip", f"there is no {web}/none.zip")
    refused(f"{web}/photos", f"{web}/photos is a web page", "a .csv file of paths")
    monkeypatch.setattr(remote, "_WHOLE_BYTES", 1000)
    monkeypatch.setattr(remote, "_blocks", remote._Blocks())
    monkeypatch.setattr(remote, "_BLOCK_BYTES", 1000)
    refused(f"{web}/x.zip", f"{web}/x.zip is on a server that sends no parts of files", "download it")


def test_a_web_server_that_ends_is_no_missing_image(web, photos, monkeypatch):
    monkeypatch.setattr(urls, "_PAUSES", ())
    (photos / "list.csv").write_text("path\nant/ant_0.png\n")
    images = collect(f"{web}/photos/list.csv").images
    port = int(web.rpartition(":")[2])
    monkeypatch.setattr(images[0].file, "_inner", f"http://127.0.0.1:{port + 1}/x")
    with pytest.raises(SourceError, match="run it again"):
        content_digest(images[0])


def test_an_object_that_changes_in_a_bucket_is_a_failure(bucket, photos):
    bucket.put(str(photos), "photos/all", recursive=True)
    images = collect("s3://photos/all").images
    bucket.pipe("photos/all/ant/ant_0.png", bucket.cat("photos/all/ant/ant_1.png"))
    bucket.rm("photos/all/ant/ant_2.png")
    assert failure(images[0]).code == "changed" and failure(images[2]).code == "missing"
    content_digest(images[1])


def test_a_shard_that_became_shorter_has_changed(bucket, photos, tmp_path, monkeypatch):
    """Although a range outside an object is a wrong request."""
    shards_of(photos, tmp_path / "shards")
    bucket.put(str(tmp_path / "shards"), "photos/shards", recursive=True)
    images = collect("s3://photos/shards").images
    monkeypatch.setattr(remote, "_blocks", remote._Blocks())
    monkeypatch.setattr(remote, "_BLOCK_BYTES", 512)
    bucket.pipe("photos/shards/000.tar", b"short")
    assert failure(images[1]).code == "changed"
    content_digest(images[2])


def test_what_a_bucket_refuses_is_one_line(bucket, photos, monkeypatch):
    refused("s3://nobucket/x", "there is no s3://nobucket/x", "its bucket does not exist")
    refused("s3://photos/x.zip", "there is no s3://photos/x.zip")
    refused("s3://key:se@cr@photos/x", "s3://photos/x takes no credentials in the URL", "set AWS_ACCESS_KEY_ID")
    refused("s3://a b/x", "Parameter validation failed: Invalid bucket name")

    async def denied(*_, **__):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(bucket), "_call_s3", denied)
    refused("s3://photos/x", "cannot list s3://photos/x", "PermissionError: Access Denied")


def test_without_credentials_the_line_says_which(bucket, monkeypatch):
    type(bucket).clear_instance_cache()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    refused("s3://photos/x", "NoCredentialsError", "AWS_ACCESS_KEY_ID")


@pytest.mark.parametrize("scheme, package", [("s3", "s3fs"), ("gs", "gcsfs"), ("abfs", "adlfs")])
def test_a_package_that_is_missing_is_named(monkeypatch, scheme, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(sys.modules["fsspec.registry"], "registry", {})  # file systems that were imported before
    refused(f"{scheme}://photos/x", f"{scheme}://photos/x needs a package that is not installed: pip install {package}")


def test_s3fs_has_a_connection_for_each_thread(bucket, monkeypatch):
    assert urls.opened("s3://photos/x", SourceError)[0].config_kwargs == {"max_pool_connections": urls.REQUESTS}
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"connect_timeout": 3, "max_pool_connections": 7}})
    configured = urls.opened("s3://photos/y", SourceError)[0].config_kwargs
    assert configured == {"connect_timeout": 3, "max_pool_connections": 7}


def test_images_of_a_shard_share_requests(bucket, photos, tmp_path, monkeypatch):
    paths = shards_of(photos, tmp_path / "shards")
    bucket.put(str(tmp_path / "shards"), "photos/shards", recursive=True)
    requests = []
    call = type(bucket)._call_s3

    async def counted(self, method, *args, **options):
        requests.append(method)
        return await call(self, method, *args, **options)

    monkeypatch.setattr(type(bucket), "_call_s3", counted)
    assert digests(collect("s3://photos/shards").images) == digests(paths)
    assert requests.count("get_object") == len(list((tmp_path / "shards").iterdir()))
    bucket.put(str(photos), "photos/all", recursive=True)
    images = collect("s3://photos/all").images
    requests.clear()
    assert digests(images) == digests(paths) and requests == ["get_object"] * len(paths)


def test_remote_images_are_fetched_while_nothing_is_decoded(bucket, photos):
    """By many threads, and while the forward pass has the cores."""
    bucket.put(str(photos), "photos/all", recursive=True)
    images = collect("s3://photos/all").images
    names = []
    fetched = remote.RemoteFile.fetched

    def named(self, *args):
        names.append(threading.current_thread().name)
        return fetched(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote.RemoteFile, "fetched", named)
        decoded = batches(images, lambda _: np.zeros((4, 4, 3), "u1"), (4, 4), 2, 1, taking_turns=True)
        next(decoded)
        for _ in range(200):
            if len(names) == 6:
                break
            threading.Event().wait(0.01)
        assert len(names) == 6 and len(set(names)) > 1
        assert sum(len(batch.digests) for batch in decoded) == 6
