"""Every flipped bit and every truncation is found by opening, by `verify` or by reads with `check=True`.

Damaged rows are reported by layer; all others are read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forged import changed_values, good_store, refused, seal_of, tree_of, written
from helpers import assert_tells

from featx.errors import DamageError, StoreError
from featx.store import Damage, FeatureStore, layout

N = 150  # 149 rows: blocks of 64, 64 and 21
FORMS = pytest.mark.parametrize("form", ["plain", "gzip", "zstd"])
MANY = [
    pytest.param(form, flips, marks=pytest.mark.slow)
    for form, flips in (("plain", 10_000), ("gzip", 2500), ("zstd", 2500))
]


def stored(form: str) -> bytes:
    return good_store(N, compression=None if form == "plain" else form)


def places_of_rows(content: bytes) -> list[tuple[int, int, Damage]]:
    """(start, stop) of each block's bytes in the file, and the damage that a flipped bit in them causes."""
    found = []
    for member, array in tree_of(content)["layers"].items():
        unit, n = layout.block_rows(array.row_bytes), array.shape[0]
        for block, first in enumerate(range(0, n, unit)):
            damage = Damage(layout.member_name(member), first, min(first + unit, n))
            if array.chunks is None:
                ends = [array.offset + row * array.row_bytes for row in (damage.start, damage.stop)]
            else:
                at, nbytes = array.chunks.extents[block]
                ends = [at, at + nbytes]
            found.append((*ends, damage))
    return found


def assert_told(path: Path, expected: Damage | None, rng: np.random.Generator) -> None:
    """A file with a flipped bit is refused or opened, depending on the place of the bit."""
    store = FeatureStore(path)
    if expected is None:  # between layers
        with pytest.raises(StoreError, match="between its layers"):
            store.verify()
        return
    with pytest.raises(DamageError) as caught:
        store.verify()
    assert caught.value.damages == [expected]
    first, last = store.ids[[expected.start, expected.stop - 1]].tolist()
    where = f"{expected.layer!r} rows {expected.start} to {expected.stop - 1} ({first!r} to {last!r})"
    assert_tells(caught.value, where)
    row = int(rng.integers(expected.start, expected.stop))
    with pytest.raises(DamageError) as caught:
        store.take([0, row, -1], expected.layer, check=True)
    assert caught.value.damages == [expected]
    others = [i for i in range(len(store)) if not expected.start <= i < expected.stop]
    assert len(store.take(others, expected.layer, check=True)) == len(others)
    for name in store.layers:
        read = []
        try:
            for start, rows in store.blocks(name, budget_bytes=64 * store.row_bytes(name), check=True):
                read.append((start, len(rows)))
        except DamageError as error:
            assert error.damages == [expected] and name == expected.layer
            assert read == [(start, 64) for start in range(0, expected.start, 64)]
        else:
            assert name != expected.layer and sum(length for _, length in read) == len(store)


@pytest.mark.parametrize("form, flips", [("plain", 3000), ("gzip", 800), ("zstd", 800), *MANY])
def test_every_flipped_bit_is_found_and_located(tmp_path, form, flips):
    content = stored(form)
    path, rng = written(tmp_path / "a.h5", content), np.random.default_rng(flips)
    blocks, metadata = places_of_rows(content), seal_of(content).metadata
    met = {"seal": 0, "metadata": 0, "rows": 0, "gap": 0}
    handle = os.open(path, os.O_WRONLY)
    try:
        for bit in rng.integers(0, 8 * len(content), flips).tolist():
            at = bit // 8
            os.pwrite(handle, bytes([content[at] ^ 1 << bit % 8]), at)
            damage = next((damage for start, stop, damage in blocks if start <= at < stop), None)
            if layout.FIRST_LAYER <= at < metadata:
                met["rows" if damage else "gap"] += 1
                assert_told(path, damage, rng)
            else:
                met["seal" if at < layout.PAGE else "metadata"] += 1
                with pytest.raises(StoreError):
                    FeatureStore(path)
            os.pwrite(handle, content[at : at + 1], at)
        assert FeatureStore(path).verify() is None and path.read_bytes() == content
        assert min(met.values()) > flips / 125, met
    finally:
        os.close(handle)


@FORMS
def test_every_truncated_or_extended_file_is_refused(tmp_path, form):
    content = stored(form)
    path, rng = tmp_path / "a.h5", np.random.default_rng(1)
    lengths = [
        *rng.integers(0, len(content), 1000 if form == "plain" else 400).tolist(),
        0,
        1,
        4095,
        4096,
        4097,
        len(content) - 1,
    ]
    path.write_bytes(content)
    for length in sorted(lengths, reverse=True):
        os.truncate(path, length)
        with pytest.raises(StoreError):
            FeatureStore(path)
        if any(content[length:]):  # as a disk does that lost what was written last
            os.truncate(path, len(content))
            with pytest.raises(StoreError):
                FeatureStore(path)
            os.truncate(path, length)
    for more in [*range(1, 20), 4096, 5000]:
        refused(written(path, content + bytes(more)), "should have", f"{len(content):,}")
    refused(written(path, content + content))


@FORMS
def test_swapped_rows_are_found(tmp_path, form):
    content = stored(form)
    (a, b, first), (c, d, second), *_ = places_of_rows(content)
    swapped = bytearray(content)
    if form == "plain":
        swapped[a:b], swapped[c:d] = content[c:d], content[a:b]
        expected = [(first.layer, 0, 128)]  # adjacent blocks are reported as one
    else:
        swapped[a:b] = content[c : c + b - a].ljust(b - a, b"\0")
        expected = [first]
    with pytest.raises(DamageError) as caught:
        FeatureStore(written(tmp_path / "a.h5", bytes(swapped))).verify()
    assert [*map(tuple, caught.value.damages)] == [*map(tuple, expected)] and second.start == 64
    if form == "plain":  # two rows of one block
        swapped, width = bytearray(content), (b - a) // 64
        swapped[a : a + width], swapped[a + width : a + 2 * width] = (
            content[a + width : a + 2 * width],
            content[a : a + width],
        )
        with pytest.raises(DamageError) as caught:
            FeatureStore(written(tmp_path / "a.h5", bytes(swapped))).take([1], first.layer, check=True)
        assert caught.value.damages == [first]


@FORMS
def test_damage_in_several_places_is_reported_at_once(tmp_path, form):
    content = stored(form)
    blocks = places_of_rows(content)
    for chosen, expected in [
        ([0, 2], [("a:avg", 0, 64), ("a:avg", 128, 149)]),
        ([1, 2, 3, 4], [("a:avg", 64, 149), ("b:none", 0, 128)]),
        ([0, 1, 2, 3, 4, 5], [("a:avg", 0, 149), ("b:none", 0, 149)]),
        ([0, 2, 3, 5], [("a:avg", 0, 64), ("a:avg", 128, 149), ("b:none", 0, 64), ("b:none", 128, 149)]),
    ]:
        damaged = bytearray(content)
        for block in chosen:
            damaged[blocks[block][1] - 1] ^= 0x80
        store = FeatureStore(written(tmp_path / "a.h5", bytes(damaged)))
        with pytest.raises(DamageError) as caught:
            store.verify()
        assert [*map(tuple, caught.value.damages)] == expected
        assert_tells(caught.value, "'a:avg' rows", *(["and 1 more places"] if len(expected) > 3 else []))


@FORMS
def test_pages_that_a_disk_lost_are_found(tmp_path, form):
    content = stored(form)
    for start in range(0, len(content), layout.PAGE):
        page = content[start : start + layout.PAGE]
        if any(page):
            lost = content[:start] + bytes(len(page)) + content[start + len(page) :]
            path = written(tmp_path / "a.h5", lost)
            with pytest.raises(StoreError):
                FeatureStore(path).verify()


OPEN = """
import json, os, shutil, sys
import numpy as np
from featx.errors import FeatxError
from featx.store import FeatureStore
folder, how, others = sys.argv[1], sys.argv[2], sys.argv[3]
uses = {
    **{name: (lambda store, name=name: getattr(store, name)) for name in
       ("ids", "y", "classes", "columns", "failures", "nonfinite", "X", "digests", "duplicates", "contradictions")},
    "metadata": lambda store: store._contents.datasets(),
    "rows": lambda store: store.rows(KEYS),
    "layer": lambda store: np.array(store["a"]),
    "take": lambda store: store.take([0, 3, -1], "b"),
    "take, checked": lambda store: store.take([0, 3, -1], "b", check=True),
    "blocks": lambda store: [rows.copy() for _, rows in store.blocks("a")],
    "blocks, checked": lambda store: [rows.copy() for _, rows in store.blocks("a", check=True)],
    "verify": lambda store: store.verify(),
}
path = os.path.join(folder, "a.h5")
good = open(path, "rb").read()
KEYS = FeatureStore(path).X[[5, 1]]
outcomes = {}
for name, use in uses.items():
    expected = repr(use(FeatureStore(path)))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        mine = os.path.join(folder, "mine.h5")
        with open(mine, "wb") as file:
            file.write(good)
        os.utime(mine, ns=(0, 0))
        store = FeatureStore(mine)
        if how == "shortened":
            os.truncate(mine, 4096)
        elif how == "renamed and shortened":
            os.rename(mine, mine + "2")
            os.truncate(mine + "2", 4096)
        elif how == "removed and shortened":
            handle = os.open(mine, os.O_WRONLY)
            os.unlink(mine)
            os.truncate(handle, 4096)
        else:
            shutil.copyfile(others, mine)
        try:
            same = repr(use(store)) == expected
            said = "as it was" if same else "another"
        except FeatxError as error:
            told_so = "not a whole featx store" in str(error) or "was written to since" in str(error)
            said = "refused" if told_so else repr(error)
        except BaseException as error:
            said = repr(error)
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    said = os.read(reading, 1000).decode()
    status = os.waitpid(child, 0)[1]
    outcomes[name] = said or f"signal {status}"
    os.close(reading)
print(json.dumps(outcomes))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="has no fork")
@pytest.mark.parametrize(
    "how, form",
    [
        ("shortened", "plain"),
        ("shortened", "gzip"),
        ("renamed and shortened", "plain"),
        ("removed and shortened", "plain"),
        ("copied over", "plain"),
        ("copied over", "gzip"),
    ],
)
def test_a_file_that_changes_while_open_reads_as_before_or_is_refused(tmp_path, how, form):
    """Reading mapped pages behind the end of the file would kill the process."""
    content = stored(form)
    written(tmp_path / "a.h5", content)

    def renamed(values: dict[str, Any]) -> None:
        values["images"]["id"] = np.char.replace(values["images"]["id"], "ä".encode(), "ö".encode())

    other = written(tmp_path / "other.h5", changed_values(content, renamed))
    assert other.stat().st_size == len(content) and FeatureStore(other).ids[0] == "ö 0"
    done = subprocess.run(
        [sys.executable, "-c", OPEN, tmp_path, how, other], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert len(outcomes) == 18 and {*outcomes.values()} <= {"as it was", "refused"}, outcomes
    assert outcomes["verify"] == outcomes["take, checked"] == outcomes["blocks, checked"] == "refused", outcomes
