"""A run continues with the groups that the journal records and the file confirms, and repeats the others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xxhash
from faults import Steps
from helpers import assert_tells, digests_of, left_in, recipe, rows_of, write_store

from featx.errors import ImageError, StoreError
from featx.store import FeatureStore, StoreWriter, compaction, discard, layout, unfinished, writer

TAPS = {"a:avg": [50], "b:none": [3, 5]}
N, BAD = 200, {7: "missing", 100: "damaged"}
IDS = [f"image {i}" for i in range(N)]


@pytest.fixture(autouse=True)
def many_steps(monkeypatch):
    monkeypatch.setattr(writer, "_SYNC_BYTES", 0)
    monkeypatch.setattr(compaction, "_MOVE_BYTES", 15_000)


def begin(output: Path, **changes) -> StoreWriter:
    return StoreWriter(output, recipe(TAPS, **changes), IDS)


def fill(target: StoreWriter, indices, bad=BAD) -> None:
    """Write the images that are still to do."""
    todo = [i for i in indices if target.todo[i]]
    good = [i for i in todo if i not in bad]
    if good:
        rows = rows_of(good, TAPS)
        rows["a:avg"][np.array(good) == 10] = np.nan
        target.write(np.array(good), rows, digests_of(good))
    target.fail({i: ImageError(bad[i], f"image {i} is bad") for i in todo if i in bad})


def break_off(output: Path, indices, bad=BAD) -> None:
    with pytest.raises(KeyboardInterrupt), begin(output) as target:
        fill(target, indices, bad)
        raise KeyboardInterrupt


def finished(output: Path) -> bytes:
    with begin(output) as target:
        fill(target, range(N))
        target.finish()
    assert left_in(output.parent) == [output.name]
    return output.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    return finished(tmp_path_factory.mktemp("whole") / "a.h5")


def lines(output: Path) -> list[bytes]:
    return output.with_name(output.name + ".journal").read_bytes().splitlines(keepends=True)


def put(output: Path, *parts: bytes) -> None:
    output.with_name(output.name + ".journal").write_bytes(b"".join(parts))


def line(entry: dict) -> bytes:
    text = json.dumps(entry, ensure_ascii=False).encode()
    return b"%b %b\n" % (text, xxhash.xxh3_64_hexdigest(text).encode())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), RuntimeError("in between")])
def test_a_run_that_ends_before_a_complete_group_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)), begin(tmp_path / "a.h5") as target:
        fill(target, [*range(63), *range(70, 150)])
        assert left_in(tmp_path) == ["a.h5.journal", "a.h5.partial"]
        raise error
    assert left_in(tmp_path) == []


def test_a_run_continues_after_the_complete_groups(tmp_path, whole):
    output = tmp_path / "a.h5"
    break_off(output, [*range(64), *range(70, 120), *range(128, N)])
    assert left_in(tmp_path) == ["a.h5.journal", "a.h5.partial"]
    begun = unfinished(output)
    assert begun.ids == IDS and begun.recipe.differences(recipe(TAPS)) == []
    with begin(output) as target:
        assert target.recipe == begun.recipe
        done = [*range(64), *range(128, N)]
        assert np.flatnonzero(~target.todo).tolist() == done
        good = [i for i in done if i not in BAD]
        assert np.array_equal(target.digests[good], digests_of(good))
        assert {i: (error.code, error.reason) for i, error in target.failures.items()} == {
            7: ("missing", "image 7 is bad")
        }
        fill(target, range(N))
        target.finish()
    assert output.read_bytes() == whole
    assert FeatureStore(output).nonfinite == (("image 10", "a:avg", "nan"),)


@pytest.mark.parametrize("seed", range(12))
def test_a_run_interrupted_many_times_gives_the_bytes_of_an_uninterrupted_one(tmp_path, whole, seed, monkeypatch):
    rng, output = np.random.default_rng(seed), tmp_path / "a.h5"
    monkeypatch.setattr(writer, "_SYNC_BYTES", int(rng.choice([0, 10_000, 2**30])))
    for _ in range(4):
        order = rng.permutation(N)[: int(rng.integers(N))]
        with pytest.raises(KeyboardInterrupt), begin(output) as target:
            for part in np.array_split(order, int(rng.integers(1, 5))):
                fill(target, sorted(part.tolist()))
            raise KeyboardInterrupt
    assert finished(output) == whole


def test_complete_groups_are_not_written_again(tmp_path, whole):
    output = tmp_path / "a.h5"
    break_off(output, range(128))
    written: list[int] = []
    with begin(output) as target:
        original = writer.files.pwrite
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(
                writer.files, "pwrite", lambda file, data, at: (written.append(at), original(file, data, at))
            )
            fill(target, range(N))
        target.finish()
    assert len(written) == 2 and min(written) >= layout.FIRST_LAYER + 128 * 200  # the last group, of two layers
    assert output.read_bytes() == whole


def test_a_truncated_journal_counts_up_to_its_last_complete_line(tmp_path, whole):
    output = tmp_path / "a.h5"
    break_off(output, range(N))
    written_lines = lines(output)
    assert len(written_lines) > 2
    partial, content = tmp_path / "a.h5.partial", b"".join(written_lines)
    rows = partial.read_bytes()
    first, rng = len(written_lines[0]), np.random.default_rng(0)
    for size in [0, 1, first - 1, first, first + 1, len(content) - 1, *rng.integers(0, len(content), 20)]:
        partial.write_bytes(rows)
        put(output, content[:size])
        assert (unfinished(output) is None) == (size < first)
        assert finished(output) == whole


def test_entries_after_an_incomplete_line_was_removed_count(tmp_path, whole):
    output = tmp_path / "a.h5"
    break_off(output, range(64))
    written_lines = lines(output)
    put(output, *written_lines, written_lines[-1][: len(written_lines[-1]) // 2])
    break_off(output, range(128))
    assert [entry["groups"] for entry in unfinished(output).entries] == [[0, 1], [1, 2]]
    assert finished(output) == whole


@pytest.mark.parametrize("compacting", [False, True], ids=["writing", "compacting"])
def test_a_journal_with_any_bit_flipped_never_makes_another_store(tmp_path, whole, compacting):
    output, partial = tmp_path / "a.h5", tmp_path / "a.h5.partial"
    if compacting:
        moments: list[str] = []

        def happen(_: int, name: str) -> None:
            moments.extend([name] if name == "write" else [])
            if len(moments) == 6:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), Steps(happen):
            finished(output)
        assert any("moved" in entry for entry in unfinished(output).entries)
    else:
        break_off(output, range(100))
    journal, rows, rng = b"".join(lines(output)), partial.read_bytes(), np.random.default_rng(1)
    first = journal.index(b"\n")
    for bit in [*rng.integers(0, first * 8, 5), *rng.integers(first * 8, len(journal) * 8, 40)]:
        spoiled = bytearray(journal)
        spoiled[bit // 8] ^= 1 << bit % 8
        put(output, bytes(spoiled))
        partial.write_bytes(rows)
        if compacting and bit >= first * 8:  # rows have moved already: the entries about them may be needed
            try:
                assert finished(output) == whole
            except StoreError as error:
                assert_tells(error, "damaged", "discard")
                assert not output.exists()
                discard(output)
        else:
            assert finished(output) == whole
        output.unlink(missing_ok=True)


def test_rows_without_the_journals_checksums_are_computed_again(tmp_path, whole):
    output, partial = tmp_path / "a.h5", tmp_path / "a.h5.partial"
    break_off(output, range(N))
    place = layout.place_layers(recipe(TAPS), N)["b:none"]
    with open(partial, "r+b") as file:
        file.seek(place.offset + 130 * place.row_bytes + 59)
        file.write(b"\1")
    with begin(output) as target:
        assert np.flatnonzero(target.todo).tolist() == list(range(128, 192))
        assert [*target.failures] == [7, 100]
        fill(target, range(N))
        target.finish()
    assert output.read_bytes() == whole


def test_the_later_entry_of_a_group_counts(tmp_path, whole):
    """An image fails, its group's rows are lost, the image is back; then the run is killed in the compaction."""
    output, partial = tmp_path / "a.h5", tmp_path / "a.h5.partial"
    break_off(output, range(N), BAD | {3: "missing"})
    rows = bytearray(partial.read_bytes())
    rows[layout.FIRST_LAYER + 4 * 200] ^= 1
    partial.write_bytes(rows)
    count: list[str] = []

    def happen(_: int, name: str) -> None:
        count.append(name)
        if count.count("write") == 6 and name == "fsync":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Steps(happen), begin(output) as target:
        assert target.todo[:64].all() and not target.todo[64:].any() and [*target.failures] == [100]
        fill(target, range(N))
        target.finish()
    assert any("moved" in entry for entry in unfinished(output).entries)
    with begin(output) as target:
        assert sorted(target.failures) == [7, 100] and not target.todo.any()
        target.finish()
    assert output.read_bytes() == whole


def other_runs(output: Path) -> dict[str, StoreWriter]:
    return {
        "recipe": lambda: begin(output, precision="bfloat16"),
        "recorded": lambda: begin(output, threads=9),
        "fewer images": lambda: StoreWriter(output, recipe(TAPS), IDS[:-1]),
        "order": lambda: StoreWriter(output, recipe(TAPS), IDS[::-1]),
        "labels": lambda: StoreWriter(output, recipe(TAPS), IDS, np.zeros(N)),
        "columns": lambda: StoreWriter(output, recipe(TAPS), IDS, columns={"site": np.array(IDS)}),
        "layers": lambda: StoreWriter(output, recipe({"a:avg": [50]}), IDS),
    }


@pytest.mark.parametrize("difference", sorted(other_runs(Path("a.h5"))))
def test_another_run_is_refused_and_harms_nothing(tmp_path, whole, difference):
    output = tmp_path / "a.h5"
    break_off(output, range(100))
    before = [(tmp_path / name).read_bytes() for name in left_in(tmp_path)]
    with pytest.raises(StoreError) as caught:
        other_runs(output)[difference]()
    assert_tells(caught.value, str(output), "unfinished run", "discard it with discard=True")
    assert [(tmp_path / name).read_bytes() for name in left_in(tmp_path)] == before
    assert finished(output) == whole


@pytest.mark.parametrize("use", [begin, unfinished])
def test_a_run_of_another_version_is_refused_and_can_be_discarded(tmp_path, whole, use):
    output = tmp_path / "a.h5"
    break_off(output, range(100))
    put(output, line({"format": "featx-journal 2", "what": "ever"}), line({"groups": [0, 1]}))
    before = [(tmp_path / name).read_bytes() for name in left_in(tmp_path)]
    with pytest.raises(StoreError) as caught:
        use(output)
    assert_tells(caught.value, "another version", str(output), "discard it with discard=True")
    assert [(tmp_path / name).read_bytes() for name in left_in(tmp_path)] == before
    discard(output)
    assert left_in(tmp_path) == []
    assert finished(output) == whole


@pytest.mark.parametrize("what", ["partial", "journal", "both"])
def test_an_unfinished_run_is_discarded_and_the_output_stays(tmp_path, what):
    output = tmp_path / "a.h5"
    break_off(output, range(100))
    if what != "both":
        (tmp_path / f"a.h5.{'journal' if what == 'partial' else 'partial'}").unlink()
        assert unfinished(output) is None
    output.write_bytes(b"old")
    discard(output)
    assert left_in(tmp_path) == ["a.h5"] and output.read_bytes() == b"old"
    discard(output)  # nothing is there; nothing happens
    assert left_in(tmp_path) == ["a.h5"]


@pytest.mark.parametrize("closed", [False, True], ids=["rows", "closed up"])
def test_a_journal_without_its_file_is_ignored(tmp_path, whole, monkeypatch, closed):
    """A kill after the renaming leaves only the journal; the partial file that appears later is empty."""
    output = tmp_path / "a.h5"
    if closed:
        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", lambda *_, **__: None)
            with begin(output) as target:
                fill(target, range(N))
                target.finish()
        assert output.read_bytes() == whole
        output.unlink()
    else:
        break_off(output, range(100))
        (tmp_path / "a.h5.partial").unlink()
    assert left_in(tmp_path) == ["a.h5.journal"] and unfinished(output) is None
    with begin(output) as target:
        assert target.todo.all() and not target.failures
        fill(target, range(N))
        target.finish()
    assert output.read_bytes() == whole
    put(output, line({"format": "featx-journal 1", "recipe": {}, "ids": []}))
    write_store(output, 3)  # another run
    assert len(FeatureStore(output)) == 3 and left_in(tmp_path) == ["a.h5"]


@pytest.mark.parametrize("content", [b"", b"half a store" * 10_000])
def test_a_partial_file_without_a_journal_is_overwritten(tmp_path, whole, content):
    (tmp_path / "a.h5.partial").write_bytes(content)
    assert finished(tmp_path / "a.h5") == whole
