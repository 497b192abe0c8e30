"""Writing a store: enough space, exclusively, on the disk of the output."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from crash_child import RUN, Run
from helpers import assert_tells, digests_of, left_in, recipe, rows_of, write_store

from featx.errors import StoreError
from featx.store import FeatureStore, StoreWriter, discard, files, refuse_running, unfinished

pytestmark = pytest.mark.usefixtures("many_steps")


@pytest.mark.parametrize("most", [1, 7, 1000])
def test_short_writes_are_continued(tmp_path, monkeypatch, whole, most):
    pwrite, write = os.pwrite, os.write
    run, output = (
        (RUN, tmp_path / "a.h5") if most > 1 else (Run(n=70, bad=(3,), taps={"a:avg": [5]}), tmp_path / "b.h5")
    )
    if most == 1:
        run(tmp_path / "a.h5")
        whole = (tmp_path / "a.h5").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", lambda file, data, offset: pwrite(file, data[:most], offset))
        patched.setattr(os, "write", lambda file, data: write(file, data[:most]))
        run(output)
    assert output.read_bytes() == whole


def test_a_system_that_cannot_allocate_space_writes_the_same_bytes(tmp_path, monkeypatch, whole):
    monkeypatch.delattr(os, "posix_fallocate")
    RUN(tmp_path / "a.h5")
    assert (tmp_path / "a.h5").read_bytes() == whole


def free(monkeypatch, nbytes: int) -> None:
    monkeypatch.setattr(os, "fstatvfs", lambda _: SimpleNamespace(f_bavail=nbytes // 512, f_frsize=512))


def test_too_little_space_is_reported_before_anything_is_computed(tmp_path, monkeypatch):
    free(monkeypatch, 20_000_000)
    with pytest.raises(StoreError) as caught:
        StoreWriter(tmp_path / "a.h5", recipe({"l:avg": [1000]}), [f"image {i}" for i in range(10_000)])
    assert_tells(caught.value, f"cannot write {tmp_path / 'a.h5'}", "MB and the disk has", "20 MB free", "make room")
    assert left_in(tmp_path) == []
    free(monkeypatch, 80_000_000)
    with StoreWriter(tmp_path / "a.h5", recipe({"l:avg": [1000]}), [f"image {i}" for i in range(10_000)]):
        pass


@pytest.mark.parametrize("long", ["ids", "labels", "columns"])
def test_long_texts_are_counted_in_the_space(tmp_path, monkeypatch, long):
    free(monkeypatch, 1_000_000)
    ids, taps = [f"{i:04}" for i in range(1000)], recipe({"l:avg": [1]})
    with StoreWriter(tmp_path / "a.h5", taps, ids):
        pass
    texts = np.array([name.ljust(1000, "x") for name in ids])
    options = {"labels": {"y": texts}, "columns": {"columns": {"site": texts}}, "ids": {"ids": [*ids, "x" * 1000]}}
    with pytest.raises(StoreError, match="takes"):
        StoreWriter(tmp_path / "a.h5", taps, **{"ids": ids, **options[long]})


def test_a_continued_run_needs_only_the_space_that_is_missing(tmp_path, monkeypatch, whole):
    output = tmp_path / "a.h5"
    RUN.break_off(output)
    if not (tmp_path / "a.h5.partial").stat().st_blocks:
        pytest.skip("a file system that does not count what a file takes")
    free(monkeypatch, RUN.n * 1000)  # names and labels, not the rows again
    RUN(output)
    assert output.read_bytes() == whole


@pytest.mark.parametrize(
    "nbytes, text", [(0, "0 B"), (999, "999 B"), (999_997, "1 MB"), (8.6e9, "8.6 GB"), (1.5e12, "1.5 TB")]
)
def test_sizes_have_three_digits(nbytes, text):
    assert files.readable(nbytes) == text


@pytest.mark.parametrize("where", ["no/folder/a.h5", "file/a.h5", "x" * 300 + ".h5"])
def test_an_output_that_cannot_be_created_is_refused_at_once(tmp_path, where):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError) as caught:
        StoreWriter(tmp_path / where, recipe({"l:avg": [2]}), ["a", "b"])
    assert_tells(caught.value, "cannot write", str(tmp_path / where))
    assert left_in(tmp_path) == ["file"]


def test_a_folder_that_may_not_be_written_is_refused_at_once(tmp_path):
    folder = tmp_path
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):  # a user who may do everything; but not this
        folder = Path("/sys")
    before = sorted(os.listdir(folder))
    with pytest.raises(StoreError) as caught:
        StoreWriter(folder / "a.h5", recipe({"l:avg": [2]}), ["a", "b"])
    tmp_path.chmod(0o755)
    assert_tells(caught.value, f"cannot write {folder / 'a.h5'}")
    assert sorted(os.listdir(folder)) == before


def test_a_second_writer_fails_at_once_and_harms_nothing(tmp_path, whole):
    output = tmp_path / "a.h5"
    with StoreWriter(output, recipe({"l:avg": [2]}), ["a", "b"]) as first:
        first.write(np.array([0]), rows_of([0], {"l:avg": [2]}), digests_of([0]))
        beside = left_in(tmp_path)
        for another in (lambda: RUN(output), lambda: discard(output), lambda: refuse_running(output)):
            with pytest.raises(StoreError) as caught:
                another()
            assert_tells(caught.value, "another run is writing", str(output))
            assert left_in(tmp_path) == beside
        first.write(np.array([1]), rows_of([1], {"l:avg": [2]}), digests_of([1]))
        first.finish()
    assert np.array_equal(FeatureStore(output)["l"], rows_of([0, 1], {"l:avg": [2]})["l:avg"])
    RUN(output)  # now it may
    assert output.read_bytes() == whole


def test_a_run_that_begins_as_another_ends_is_not_disturbed(tmp_path, monkeypatch, whole):
    """Once the first run has renamed its file, the output is free, though the journal is still there."""
    output, seconds = tmp_path / "a.h5", []
    fsync_folder = files.fsync_folder

    def begin_another(folder: Path) -> None:
        fsync_folder(folder)
        if output.exists() and not seconds:
            seconds.append(None)
            with StoreWriter(output, recipe({"l:avg": [2]}), [f"image {i}" for i in range(64)]) as second:
                second.write(np.arange(64), rows_of(range(64), {"l:avg": [2]}), digests_of(range(64)))
                seconds[0] = second
                raise KeyboardInterrupt

    first = StoreWriter(output, recipe({"l:avg": [2]}), ["a"])
    first.write(np.array([0]), rows_of([0], {"l:avg": [2]}), digests_of([0]))
    monkeypatch.setattr(files, "fsync_folder", begin_another)
    with pytest.raises(KeyboardInterrupt), first:
        first.finish()
    assert FeatureStore(output).ids.tolist() == ["a"]
    begun = unfinished(output)  # of the second, which was broken off
    assert begun is not None and len(begun.ids) == 64 and len(begun.entries) == 1
    write_store(output, 64, taps={"l:avg": [2]})
    assert len(FeatureStore(output)) == 64 and left_in(tmp_path) == ["a.h5"]


@pytest.fixture
def elsewhere(tmp_path) -> Iterator[Path]:
    """A folder on another disk."""
    if not os.access("/dev/shm", os.W_OK) or os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other file system")
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


def test_a_folder_that_is_a_link_to_another_disk_is_written_there(tmp_path, elsewhere, whole):
    (tmp_path / "out").symlink_to(elsewhere, target_is_directory=True)
    RUN(tmp_path / "out" / "a.h5")
    assert (elsewhere / "a.h5").read_bytes() == whole
    assert left_in(elsewhere) == ["a.h5"] and left_in(tmp_path) == ["out"]


def test_an_output_that_is_a_link_to_another_disk_is_replaced_there(tmp_path, elsewhere, whole):
    output = tmp_path / "a.h5"
    output.symlink_to(elsewhere / "b.h5")
    for _ in range(2):  # the link leads nowhere at first, then to a store
        RUN.break_off(output)
        assert left_in(tmp_path) == ["a.h5"]
        RUN(output)
        assert output.is_symlink() and (elsewhere / "b.h5").read_bytes() == whole
        assert left_in(elsewhere) == ["b.h5"]
