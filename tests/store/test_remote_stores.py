"""A store is put to a URL and opened from it: whole or absent, downloaded once, checked, noticed when it changes."""

from __future__ import annotations

import contextlib
import copy
import http.server
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from helpers import TESTS, assert_tells, write_store

import featx
from featx.errors import SourceError, StoreError
from featx.store import mapped, remote


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    yield system
    if system.exists("/stores"):
        system.rm("/stores", recursive=True)


URL = "memory://stores/a.h5"


def put(store, url=URL, **options):
    return featx.put(store, url, progress=False, **options)


def opened(url=URL):
    return featx.FeatureStore(url, progress=False)


def refused(call, *words):
    with pytest.raises(StoreError) as caught:
        call()
    assert_tells(caught.value, *words)


@pytest.fixture
def endless():
    """A web server of files of 1 GB, and the sizes of what it has sent."""
    sent = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", str(2**30))
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            with contextlib.suppress(OSError):
                for _ in range(2**10):
                    self.wfile.write(bytes(2**20))
                    sent.append(2**20)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", sent
    server.shutdown()
    server.server_close()


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "a.h5", n=300)


@pytest.fixture
def other(tmp_path):
    return write_store(tmp_path / "b.h5", n=301)


def test_a_store_in_a_bucket_is_the_one_that_was_put(bucket, store, other, cache):
    url = "s3://photos/a.h5"
    phases = []
    assert featx.put(store, url, progress=lambda now: phases.append(now.phase)) and not put(store, url)
    assert any(phase.startswith("uploading a.h5") for phase in phases)
    copied = featx.FeatureStore(url, progress=lambda now: phases.append(now.phase))
    assert (
        copied.identity == store.identity
        and copied.url == url
        and repr(copied) == repr(store).replace(str(store.path), url)
    )
    assert copied.path.read_bytes() == store.path.read_bytes() and copied.path.is_relative_to(cache)
    assert any(phase.startswith(f"downloading {url}") for phase in phases)
    refused(lambda: put(other, url), f"{url} is another store", "replace=True")
    assert put(other, url, replace=True) and opened(url).identity == other.identity
    assert bucket.ls("photos/") == ["photos/a.h5"]
    bucket.pipe("photos/x.txt", b"words")
    refused(lambda: put(store, "s3://photos/x.txt"), "is not a featx store", "replace=True")
    refused(lambda: opened("s3://photos/x.txt"), "is not a featx store", "featx.put")
    refused(lambda: opened("s3://photos/no.h5"), "there is no store s3://photos/no.h5")
    refused(lambda: put(store, "s3://nobucket/a.h5"), "s3://nobucket/a.h5", "bucket")


def test_a_store_is_downloaded_once_and_again_when_it_has_changed(memory, store, other, monkeypatch):
    put(store)
    first, downloads = opened(), []
    download = remote.RemoteStore.download
    monkeypatch.setattr(remote.RemoteStore, "download", lambda *args: downloads.append(0) or download(*args))
    assert opened().identity == first.identity and not downloads
    rows = np.array(first[first.layers[0]])
    put(other, replace=True)
    assert opened().identity == other.identity and len(downloads) == 1
    assert (first[first.layers[0]] == rows).all()  # the open store reads what it opened


def test_a_damaged_download_is_refused_and_removed(memory, store, cache):
    put(store)
    content = bytearray(memory.cat("/stores/a.h5"))
    content[9000] ^= 1
    memory.pipe("/stores/a.h5", bytes(content))
    refused(opened, "damaged and was removed", URL, "replace=True")
    assert not [path for path in cache.rglob("*") if path.is_file()]
    assert not put(store) and put(store, replace=True) and opened().identity == store.identity
    memory.pipe("/stores/a.h5", bytes(content[:-1]))
    refused(opened, "is not a whole featx store", "bytes")
    (cache / "stores").rename(cache / "other")
    refused(lambda: put(store), "is not a whole featx store", "replace=True")
    assert put(store, replace=True) and opened().identity == store.identity


def test_a_half_download_goes_on(memory, store, cache, monkeypatch):
    monkeypatch.setattr(remote, "_PART_BYTES", 4096)
    monkeypatch.setattr(remote, "_PARTS_AT_ONCE", 1)
    monkeypatch.setattr("featx.urls._PAUSES", ())
    put(store)
    answer, starts = type(memory).cat_file, []

    def cut_off(self, path, start=None, end=None):
        if start >= 3 * 4096 and not starts[-1:] == ["again"]:
            raise OSError("cut off")
        return answer(self, path, start=start, end=end)

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "cat_file", cut_off)
        refused(opened, "cut off", "run it again to go on")
    (half,) = cache.rglob("*.download")
    assert half.stat().st_size == 3 * 4096

    def counted(self, path, start=None, end=None):
        starts.append(start)
        return answer(self, path, start=start, end=end)

    monkeypatch.setattr(type(memory), "cat_file", counted)
    assert opened().path.read_bytes() == store.path.read_bytes()
    assert min(starts[1:]) == 3 * 4096 and not half.exists()


def test_two_downloads_at_once_are_one(memory, store, monkeypatch):
    put(store)
    download, downloads = remote.RemoteStore.download, []

    def slow(*args):
        downloads.append(0)
        time.sleep(0.3)
        download(*args)

    monkeypatch.setattr(remote.RemoteStore, "download", slow)
    stores = []
    threads = [threading.Thread(target=lambda: stores.append(opened())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.identity for each in stores] == [store.identity] * 3 and len(downloads) == 1


def test_without_a_connection_the_copy_is_named(memory, store, monkeypatch):
    put(store)
    path = opened().path

    def broken(self, path, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(type(memory), "info", broken)
    refused(opened, f"cannot read {URL}: OSError: no route to host", f"{path} is a copy")


def test_a_pickle_opens_the_url_where_there_is_no_copy(memory, store, other, tmp_path, monkeypatch):
    put(store)
    store_at_url = opened()
    pickled = pickle.dumps(store_at_url)
    assert copy.deepcopy(store_at_url) is store_at_url
    monkeypatch.setenv("FEATX_CACHE", str(tmp_path / "elsewhere"))
    store_at_url.path.unlink()
    again = pickle.loads(pickled)
    assert again.url == URL and again.path.is_relative_to(tmp_path / "elsewhere")
    put(other, replace=True)
    again.path.unlink()
    mapped._mapped_once.cache_clear()
    refused(lambda: pickle.loads(pickled), "replaced by another store")


def test_a_path_of_a_url_is_the_url(memory, store):
    put(store)
    assert featx.FeatureStore(Path(URL), progress=False).url == URL
    file_url = f"file://{store.path}"
    assert featx.FeatureStore(Path(file_url), progress=False).identity == store.identity


def test_what_is_no_url_of_a_file_is_refused(store, memory):
    refused(lambda: put(store, "b.h5"), "to the URL of a file", "'b.h5'")
    refused(lambda: put(store, "memory://stores/"), "to the URL of a file")
    refused(lambda: put(store, "s3://me:secret@photos/?sig=secret/"), "got 's3://photos/'")
    memory.pipe("/stores/photos/a.jpg", b"1")
    refused(lambda: put(store, "memory://stores/photos", replace=True), "memory://stores/photos is a folder")
    refused(lambda: opened("memory://stores/photos"), "memory://stores/photos is a folder", "one file")
    refused(lambda: featx.extract([], "s3://photos/a.h5"), "the output is a local file", "featx.put")
    refused(lambda: featx.merge([store, store], "s3://photos/a.h5"), "the output is a local file")


def test_a_damaged_store_is_not_put(memory, store):
    content = bytearray(store.path.read_bytes())
    content[9000] ^= 1
    store.path.write_bytes(content)
    refused(lambda: put(featx.FeatureStore(store.path)), "is damaged")
    assert not memory.exists("/stores/a.h5")


def test_a_put_that_is_killed_leaves_nothing_under_the_name(store, tmp_path):
    """In a folder: the file has a temporary name until it is whole, and the next put takes its place."""
    target = tmp_path / "remote" / "a.h5"
    target.parent.mkdir()
    code = (
        "import featx, fsspec, time\n"
        "kind = fsspec.get_filesystem_class('file')\n"
        "kind.mv = lambda *_: (print('uploaded', flush=True), time.sleep(60))\n"
        f"featx.put({str(store.path)!r}, 'file://{target}', progress=False)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=TESTS)
    assert child.stdout.readline() == b"uploaded\n"
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert [path.name for path in target.parent.iterdir()] == [f"a.h5.{store.identity[:8]}.uploading"]
    assert put(store, f"file://{target}")
    assert [path.name for path in target.parent.iterdir()] == ["a.h5"]


def test_a_web_server_that_sends_whole_files_is_enough(web, store):
    secret = opened(f"{web}/a.h5?signature=secret")
    assert secret.path.read_bytes() == store.path.read_bytes()
    assert secret.url == f"{web}/a.h5" and b"secret" not in pickle.dumps(secret)
    refused(lambda: opened(f"{web}/no.h5"), f"there is no store {web}/no.h5")
    refused(lambda: put(store, f"{web}/new.h5"), f"{web}/new.h5 is on a web server, which stores no files")


def test_no_more_is_read_of_a_web_server_than_is_asked_for(endless):
    """It says that its file has 1 GB and sends it, whatever the range."""
    url, sent = endless
    refused(lambda: opened(f"{url}/a.h5"), f"{url}/a.h5 is not a featx store")
    with pytest.raises(SourceError, match="sends no parts of files"):
        featx.plan(f"{url}/a.zip", "x.h5", "bundled:pixels")
    assert sum(sent) < 2**26


@pytest.mark.slow
def test_an_upload_in_parts_that_is_killed_leaves_nothing_under_the_name(bucket, tmp_path):
    rows = np.zeros((30_000, 1024), np.float32)
    store = featx.FeatureStore.from_arrays(tmp_path / "large.h5", {"x": rows + np.arange(30_000)[:, None]})
    code = (
        "import featx, os, s3fs, signal\n"
        "call, parts = s3fs.S3FileSystem._call_s3, []\n"
        "async def killed(self, method, *args, **options):\n"
        "    parts.extend([0] if method == 'upload_part' else [])\n"
        "    if len(parts) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return await call(self, method, *args, **options)\n"
        "s3fs.S3FileSystem._call_s3 = killed\n"
        f"featx.put({str(store.path)!r}, 's3://photos/large.h5', progress=False)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=TESTS).returncode == -signal.SIGKILL
    assert not bucket.exists("photos/large.h5")
    assert put(store, "s3://photos/large.h5") and opened("s3://photos/large.h5").identity == store.identity
