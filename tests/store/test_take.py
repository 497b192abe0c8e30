"""`take` and `blocks` agree with NumPy's indexing of the same rows in memory, in every form of a store."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import recipe
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.store import FeatureStore, StoreWriter, export, layout

N = 70  # a block of 64 rows and one of 6
TAPS = {"narrow:avg": (3,), "wide:flatten": (20_000,), "maps:none": (2, 5, 7), "huge:none": (2, 11, 6_000)}
FORMS = [("plain", "float32"), ("gzip", "float32"), ("zstd", "float16")]


def written(
    path: Path,
    layers: Mapping[str, np.ndarray],
    ids: Sequence[str] | None = None,
    digests: np.ndarray | None = None,
    y: np.ndarray | None = None,
    **changes: Any,
) -> FeatureStore:
    """A store of the rows {layer: (n, ...)}; its keys depend on ids and digests, not on the rows."""
    n = len(next(iter(layers.values())))
    if digests is None:
        digests = np.random.default_rng(0).integers(0, 256, (n, 16), np.uint8)
    taps = recipe({name: rows.shape[1:] for name, rows in layers.items()}, **changes)
    with StoreWriter(path, taps, [f"image {i}" for i in range(n)] if ids is None else ids, y) as writer:
        writer.write(np.arange(n), layers, digests)
        writer.finish()
    return FeatureStore(path)


@pytest.fixture(scope="module", params=FORMS, ids="-".join)
def stored(request, tmp_path_factory) -> tuple[FeatureStore, dict[str, np.ndarray]]:
    """A store and its rows in memory."""
    form, dtype = request.param
    folder = tmp_path_factory.mktemp(form)
    memory = {}
    for name, shape in TAPS.items():  # whole numbers to 2,047, exact in float16; every row has its own
        values = np.arange(int(np.prod(shape))) % 97
        memory[name] = (values + 20 * np.arange(N)[:, None]).astype(dtype).reshape(N, *shape)
    store = written(folder / "a.h5", memory, dtype=dtype)
    return (store if form == "plain" else FeatureStore(export(store, folder / "b.h5", compression=form))), memory


def whole(low: int, high: int, most: int) -> st.SearchStrategy:
    return st.lists(st.integers(low, high), max_size=most)


def in_arrays(lists: st.SearchStrategy, *kinds: type) -> st.SearchStrategy:
    return st.builds(np.array, lists, st.sampled_from(kinds))


def shaped(flat: np.ndarray) -> np.ndarray:
    return flat[: len(flat) // 2 * 2].reshape(2, -1)


def rows_of(n: int, most: int = 150) -> st.SearchStrategy:
    """Arguments for `rows`, most of them valid."""
    right, wild = whole(-n, n - 1, most), whole(-2 * n, 2 * n, most)
    masks = st.lists(st.booleans(), min_size=n, max_size=n)
    return st.one_of(
        right,
        right.map(tuple),
        in_arrays(right, np.int8, np.int16, np.int32, np.int64, np.intp),
        in_arrays(whole(0, n - 1, most), np.uint8, np.uint16, np.uint32, np.uint64),
        in_arrays(right, np.int64).map(shaped),
        st.builds(range, st.integers(-n, n - 1), st.integers(-n, n), st.sampled_from([1, 2, 7])),
        st.permutations(range(n)),
        st.integers(-n, n - 1),
        st.integers(-n, n - 1).map(np.int32),
        masks,
        masks.map(np.array),
        wild,
        in_arrays(wild, np.int16, np.int64),
        st.integers(-2 * n, 2 * n),
        st.lists(st.booleans(), min_size=1, max_size=2 * n).map(np.array),
    )


def outcome(call: Callable, *args: Any, **options: Any) -> Any:
    """The result of a call, or the type of its error."""
    try:
        return call(*args, **options)
    except Exception as error:
        return type(error)


def numpys(memory: np.ndarray, rows: Any) -> Any:
    """NumPy's result. A tuple is made an array, since NumPy's brackets take it as one position on each axis."""
    return outcome(memory.__getitem__, list(rows) if isinstance(rows, tuple) else rows)


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, type):
        return found is expected is IndexError
    return type(found) is np.ndarray and found.dtype == expected.dtype and np.array_equal(found, expected)


@pytest.mark.parametrize("layer, examples", [("narrow:avg", 150), ("maps:none", 40), ("wide:flatten", 40)])
def test_take_is_numpys_indexing_checked_or_not(stored, layer, examples):
    store, memory = stored

    @settings(max_examples=examples, derandomize=True, deadline=None, database=None)
    @given(rows_of(N))
    def holds(rows):
        expected = numpys(memory[layer], rows)
        for check in (False, True):
            found = outcome(store.take, rows, layer, check=check)
            assert same(found, expected), (rows, check, found)

    holds()


@settings(max_examples=30, derandomize=True, deadline=None, database=None)
@given(rows=rows_of(N, most=8).filter(lambda rows: np.size(rows) <= 8))
def test_take_reads_rows_with_one_or_two_per_block(stored, rows):
    store, memory = stored
    expected = numpys(memory["huge:none"], rows)
    for check in (False, True):
        assert same(outcome(store.take, rows, "huge", check=check), expected)


def test_the_layers_of_these_tests_have_blocks_of_one_row_of_some_and_of_64(stored):
    store, memory = stored
    rows = {name: layout.block_rows(store.row_bytes(name)) for name in TAPS}
    assert rows["narrow:avg"] == rows["maps:none"] == 64 and 2 < rows["wide:flatten"] < 64
    assert rows["huge:none"] == (1 if memory["huge:none"].itemsize == 4 else 2)


def test_invalid_rows_raise_numpys_errors(stored):
    store, memory = stored
    wrong = [
        [0.0],
        1.5,
        ["0"],
        np.ones(N - 1, bool),
        np.ones(N + 1, bool),
        np.ones((N, 2), bool),
        [N],
        [-N - 1],
        N,
        2**63,
        np.array([2**63], np.uint64),
        np.array([1], "datetime64[s]"),
        np.array([0], object),
    ]
    for rows in wrong:
        expected = numpys(memory["narrow:avg"], rows)
        for check in (False, True):
            by_numpy = not check and not store.is_archive  # plain rows are mapped, and NumPy itself indexes them
            error = outcome(store.take, rows, "narrow", check=check)
            assert error is (expected if by_numpy else IndexError), (rows, error)


def test_a_mask_of_numbers_is_no_mask_of_rows(stored):
    store, memory = stored
    for columns, check in itertools.product((slice(None), slice(1)), (False, True)):
        with pytest.raises(IndexError):
            store.take(memory["narrow:avg"][:, columns] > 5, "narrow", check=check)


def test_rows_taken_are_a_copy(stored):
    store, memory = stored
    for rows in ([3, 1, 3], range(N), np.ones(N, bool), 5, np.array(-1), [], [[0, 1], [2, 3]]):
        for check in (False, True):
            taken = store.take(rows, "maps", check=check)
            assert taken.flags.writeable and taken.dtype == memory["maps:none"].dtype
            taken[...] = -1
            assert np.array_equal(store["maps"], memory["maps:none"]), rows


def test_taking_no_rows_keeps_the_row_shape(stored):
    store, _ = stored
    for rows in ([], (), np.array([], int), range(0), np.zeros(N, bool), np.array([])):
        for check in (False, True):
            assert store.take(rows, "maps", check=check).shape == (0, 2, 5, 7)


def test_layers_are_the_rows_that_were_written(stored):
    store, memory = stored
    for name, rows in memory.items():
        layer = store[name]
        assert np.array_equal(layer, rows) and layer.dtype == rows.dtype and not layer.flags.writeable
        assert layer is store[name.split(":")[0]]


@pytest.mark.parametrize("layer", TAPS)
def test_blocks_are_the_layer_in_order_and_within_their_budget(stored, layer):
    store, memory = stored
    total, row_bytes = memory[layer].nbytes, store.row_bytes(layer)

    @settings(
        max_examples=6 if layer in ("huge:none", "wide:flatten") else 30, derandomize=True, deadline=None, database=None
    )
    @given(st.one_of(st.integers(max(1, row_bytes // 2), 2 * total), st.just(1), st.just(2**40)), st.booleans())
    def holds(budget, check):
        at = 0
        for start, rows in store.blocks(layer, budget_bytes=budget, check=check):
            assert start == at and 0 < rows.nbytes <= max(budget, row_bytes)
            assert np.array_equal(rows, memory[layer][start : start + len(rows)]) and not rows.flags.writeable
            at += len(rows)
        assert at == N

    holds()


def test_blocks_are_as_large_as_their_budget_allows(stored):
    store, memory = stored
    for name, rows in memory.items():
        assert len(list(store.blocks(name, budget_bytes=2 * rows.nbytes))) == 1
        half = rows.nbytes // 2
        assert all(2 * part.nbytes >= half for _, part in list(store.blocks(name, budget_bytes=half))[:-1])
