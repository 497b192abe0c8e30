"""Disk errors at any step, once or permanent: one line of message, the old file or the new, and a rerun finishes."""

from __future__ import annotations

import errno
import gc
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from crash_child import RUN, Merge, Run
from faults import Steps, Unsynced
from helpers import assert_tells, left_in

from featx.errors import StoreError
from featx.store import refuse_running, unfinished, writer

pytestmark = pytest.mark.usefixtures("many_steps")
OLD = b"the old store"
HANDLES = "/proc/self/fd"


def moments() -> list[str]:
    """Names of all file operations of an uninterrupted run."""
    names: list[str] = []
    with tempfile.TemporaryDirectory() as folder, Steps(lambda _, name: names.append(name)):
        RUN(Path(folder) / "a.h5")
    return names


def refusing(moment: int, error: BaseException, lasting: bool):
    """Arguments of `Steps`: an error at one step, or from then on."""

    def happen(number: int, name: str) -> None:
        if number == moment or lasting and number > moment:
            raise type(error)(*error.args)

    return happen


def spoiled(output: Path, happen, run: Run = RUN, unsynced: Unsynced | None = None) -> BaseException | None:
    with Steps(happen, unsynced, sync=unsynced is None):
        try:
            run(output)
        except (OSError, KeyboardInterrupt, MemoryError, StoreError) as caught:
            return caught.with_traceback(None)
    return None


def looked_after(output: Path, whole: bytes, story: str) -> None:
    """The output is the old file or the complete new one; a rerun gives the new one and leaves nothing else."""
    assert output.read_bytes() in (OLD, whole), story
    assert {*left_in(output.parent)} <= {"a.h5", "a.h5.partial", "a.h5.journal"}, story
    refuse_running(output)  # no lock is held
    RUN(output)
    assert output.read_bytes() == whole, story
    assert left_in(output.parent) == ["a.h5"], story


REFUSALS = [(errno.ENOSPC, False), (errno.ENOSPC, True), (errno.EIO, False), (errno.EROFS, True)]  # lasting or once


@pytest.mark.parametrize(
    "refusals", [REFUSALS, *(pytest.param([one], marks=pytest.mark.slow) for one in REFUSALS)], ids=str
)
def test_a_disk_error_at_any_step_is_one_line_and_a_rerun_finishes(tmp_path, whole, refusals):
    """The kinds of error take turns over the steps; each of them at each step is slow."""
    output = tmp_path / "a.h5"
    for moment, name in enumerate(moments()):
        number, lasting = refusals[(moment + moment // 4) % len(refusals)]
        reason = os.strerror(number)
        output.write_bytes(OLD)
        caught = spoiled(output, refusing(moment, OSError(number, reason), lasting))
        story = f"moment {moment}, {name}"
        assert caught is not None, story
        assert isinstance(caught, StoreError), f"{story}: {caught!r}"
        assert_tells(caught, "cannot write", str(output), reason)
        if output.read_bytes() == OLD:
            kept = unfinished(output) is not None and len(unfinished(output).entries) > 0
            assert ("what is done is kept" in str(caught)) == kept, f"{story}: {caught}"
            assert ("nothing was kept" in str(caught)) != kept, f"{story}: {caught}"
        looked_after(output, whole, story)


@pytest.mark.parametrize("old, lasting", [(False, False), (True, True)], ids=["a new file, once", "a part, for good"])
def test_a_merge_with_a_disk_error_at_any_step_is_finished_by_a_rerun(tmp_path, old, lasting):
    run, output = Merge(n=70, bad=(3,), old=old), tmp_path / "store" / "a.h5"
    output.parent.mkdir()
    run.prepare(output)
    first = output.read_bytes() if old else None
    names: list[str] = []
    with Steps(lambda _, name: names.append(name), sync=False):
        run(output)
    whole = output.read_bytes()
    at_end = names.index("replace")
    for moment in [*range(0, at_end, 4), *range(at_end, len(names))]:
        name = names[moment]
        output.write_bytes(first) if first is not None else output.unlink()
        caught = spoiled(output, refusing(moment, OSError(errno.EIO, os.strerror(errno.EIO)), lasting), run)
        is_there = output.exists() and output.read_bytes() == whole
        # a look at what is at the output already may be refused, and the merge does its work
        assert isinstance(caught, StoreError) or caught is None and is_there, f"moment {moment}, {name}: {caught!r}"
        assert not is_there or "nothing was kept" not in str(caught), f"moment {moment}, {name}: {caught}"
        with Steps(lambda *_: None, sync=False):
            run(output)
        assert output.read_bytes() == whole and left_in(output.parent) == ["a.h5"], f"moment {moment}, {name}"


def test_other_errors_pass_through_and_a_rerun_finishes(tmp_path, whole):
    output = tmp_path / "a.h5"
    for moment, name in enumerate(moments()):
        output.write_bytes(OLD)
        caught = spoiled(output, refusing(moment, MemoryError(), lasting=False))
        assert type(caught) is MemoryError, f"moment {moment}, {name}"
        looked_after(output, whole, f"moment {moment}, {name}")


def test_a_failing_rerun_keeps_the_rows(tmp_path, whole):
    output = tmp_path / "a.h5"
    output.write_bytes(OLD)

    RUN.break_off(output)
    entries = unfinished(output).entries
    assert len(entries) > 0
    names: list[str] = []
    with Steps(lambda _, name: names.append(name)):
        RUN(output)
    for moment, name in enumerate(names):
        output.write_bytes(OLD)
        RUN.break_off(output)
        caught = spoiled(output, refusing(moment, OSError(errno.EIO, "Input/output error"), lasting=True))
        assert_tells(caught, "cannot write", str(output))
        if output.read_bytes() == OLD:
            assert unfinished(output).entries[: len(entries)] == entries, f"moment {moment}, {name}"
            assert "nothing was kept" not in str(caught), f"moment {moment}, {name}: {caught}"
        looked_after(output, whole, f"moment {moment}, {name}")


@pytest.mark.parametrize("sync_bytes", [0, 2**30], ids=["often", "at the end"])
@pytest.mark.parametrize("bad", [(), RUN.bad], ids=["no failures", "failures"])
def test_rows_of_a_failed_fsync_are_written_again(tmp_path, monkeypatch, bad, sync_bytes):
    """A failed write is reported once: the next fsync succeeds, and reads give data that are not on the disk. So a
    continued run must not trust what it reads; after it has finished, a power cut must lose nothing.
    """
    monkeypatch.setattr(writer, "_SYNC_BYTES", sync_bytes)
    run, output, aside = replace(RUN, bad=bad), tmp_path / "store" / "a.h5", tmp_path / "aside"
    output.parent.mkdir()
    aside.mkdir()
    names: list[str] = []
    with Steps(lambda _, name: names.append(name)):
        run(output)
    whole = output.read_bytes()
    for moment in [moment for moment, name in enumerate(names) if name == "fsync"]:
        output.write_bytes(OLD)
        unsynced = Unsynced(aside, output.parent)
        happen = refusing(moment, OSError(errno.EIO, os.strerror(errno.EIO)), lasting=False)
        assert isinstance(spoiled(output, happen, run, unsynced), StoreError)
        with Steps(lambda *_: None, unsynced, sync=False):
            run(output)
        unsynced.lose()
        assert output.read_bytes() == whole, f"moment {moment}"
        (output.parent / "a.h5.journal").unlink(missing_ok=True)  # its removal may be lost


def test_an_interrupt_at_any_step_loses_no_group_that_is_complete(tmp_path, whole):
    output = tmp_path / "a.h5"
    for moment, name in enumerate(moments()):
        output.write_bytes(OLD)
        caught, target = None, None
        with Steps(refusing(moment, KeyboardInterrupt(), lasting=False)):
            try:
                with RUN.begin(output) as target:
                    RUN.write(target)
            except KeyboardInterrupt as error:
                caught = error
        assert caught is not None, f"moment {moment}, {name}"
        if output.read_bytes() == OLD and target is not None:
            done = ~target.todo
            groups = [start for start in range(0, RUN.n, 64) if done[start : start + 64].all()]
            entries = unfinished(output).entries if groups else []
            told = {group for entry in entries for group in range(*entry.get("groups", [0, 0]))}
            assert told >= {start // 64 for start in groups}, f"moment {moment}, {name}"
        looked_after(output, whole, f"moment {moment}, {name}")


def test_no_handle_stays_open_after_an_error(tmp_path):
    if not os.path.isdir(HANDLES):
        pytest.skip("no /proc")
    gc.collect()  # what other tests left must not go in between
    before = len(os.listdir(HANDLES))
    for moment in range(len(moments())):
        spoiled(tmp_path / "a.h5", refusing(moment, OSError(errno.EIO, "error"), lasting=moment % 2 == 1))
    assert len(os.listdir(HANDLES)) == before
