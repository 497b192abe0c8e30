"""The command line on URLs: images in a bucket, stores put there, and one line for what goes wrong."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile

import pyarrow
import pyarrow.parquet
import pytest
from commands import refused, run
from helpers import class_folders

from featx import urls
from featx.store import FeatureStore

PIXELS = ["-b", "bundled:pixels", "-q"]


@pytest.fixture
def photos(bucket, tmp_path, monkeypatch):
    """20 images in the folder "all" of a bucket, and their local folder."""
    monkeypatch.setenv("FEATX_CACHE", str(tmp_path / "cache"))
    root = class_folders(tmp_path / "photos", n=10)
    bucket.put(str(root), "photos/all", recursive=True)
    return root


def done(*words):
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def tar_of(*names, cut=None):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"1234"))
    return content.getvalue()[:cut]


def test_a_store_of_a_bucket_is_put_there_and_read_by_its_url(photos, tmp_path):
    store, url = tmp_path / "a.h5", "s3://photos/a.h5"
    lines = done("extract", "s3://photos/all", "-o", store, "-b", "bundled:pixels", "--json").splitlines()
    assert "listing s3://photos/all: 20 files" in [json.loads(line).get("phase") for line in lines]
    assert "uploaded" in done("put", store, url) and "is there already" in done("put", store, url)
    assert url in done("info", url) and f"{url}: whole" in done("verify", url)
    done("search", url, "-o", tmp_path / "m.skops", "-e", "ridge_classifier", "--jobs", 1)
    assert "s3://photos/all/ant/ant_0.png" in done("predict", tmp_path / "m.skops", "s3://photos/all/ant/ant_0.png")
    assert FeatureStore(url).recipe == FeatureStore(store).recipe
    done("extract", photos / "ant", "-o", tmp_path / "b.h5", *PIXELS)
    line = refused("put", tmp_path / "b.h5", url)
    assert f"{url} is another store" in line and "--replace" in line
    done("put", tmp_path / "b.h5", url, "--replace")
    assert FeatureStore(url).identity == FeatureStore(tmp_path / "b.h5").identity
    assert "featx put" in refused("extract", photos, "-o", url, *PIXELS)
    for name, words in {"a.parquet": ("export", store), "m.skops": ("search", store)}.items():
        line = refused(*words, "-o", f"s3://photos/{name}")
        assert f"the output is a local file; got s3://photos/{name}" in line and "featx put" not in line
    assert "there is no store s3://photos/no.h5" in refused("info", "s3://photos/no.h5")
    assert "is not a featx store" in refused("info", "s3://photos/all/ant/ant_0.png")


def test_sources_that_cannot_be_used_are_refused_by_name(bucket, tmp_path):
    bomb, table = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(10**8))
    pyarrow.parquet.write_table(pyarrow.table({"image": ["http://x/a.jpg"]}), table)
    contents = {
        "bomb.zip": (bomb.getvalue(), "is a zip bomb"),
        "cut.tar": (tar_of("a.png", cut=700), "cut short"),
        "out.tar": (tar_of("../a.png"), "the name '../a.png'"),
        "two.tar": (tar_of("a.png", "a.jpg"), "two images under the key 'a'"),
        "urls.parquet": (table.getvalue(), "its column 'image' holds no image bytes, but perhaps URLs"),
    }
    for name, (content, words) in contents.items():
        bucket.pipe(f"photos/{name}", content)
        line = refused("extract", f"s3://photos/{name}", "-o", tmp_path / "x.h5", *PIXELS)
        assert f"s3://photos/{name}" in line and words in line
    for name in ("nothere", "no.zip", "{0..3}.tar", "no.csv"):
        assert "there is no s3://photos/" in refused("extract", f"s3://photos/{name}", "-o", tmp_path / "x.h5", *PIXELS)
    assert "its bucket does not exist" in refused("extract", "s3://nobucket/x", "-o", tmp_path / "x.h5", *PIXELS)
    assert not list(tmp_path.glob("x.h5*"))


def test_a_connection_that_ends_leaves_a_run_that_goes_on(bucket, photos, tmp_path, monkeypatch):
    class_folders(photos, ("cat",), n=100, seed=7000)
    bucket.put(str(photos / "cat"), "photos/all/", recursive=True)
    store, words = tmp_path / "a.h5", ["--batch-size", 8, *PIXELS]
    monkeypatch.setattr(urls, "_PAUSES", (0,))
    call, requests = type(bucket)._call_s3, []

    async def cut_off(self, method, *args, **options):
        requests.append(method)
        if requests.count("get_object") > 90:
            raise ConnectionResetError(104, "Connection reset by peer")
        return await call(self, method, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(bucket), "_call_s3", cut_off)
        line = refused("extract", "s3://photos/all", "-o", store, *words)
    assert "Connection reset by peer; run it again to go on" in line and store.with_name("a.h5.journal").exists()
    bucket.pipe("photos/all/cat/added.png", b"no picture")
    assert "120 images" in done("extract", "s3://photos/all", "-o", store, *words)
    assert FeatureStore(store).failures == ()
