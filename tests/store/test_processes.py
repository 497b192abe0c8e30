"""Threads, forked and spawned processes and joblib's workers read a store's rows without broken handles."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import joblib
import numpy as np
import pytest
from test_take import written

from featx.store import FeatureStore, export

N = 300
# Python 3.12 and later warn of any fork while there are threads; other tests leave some behind
forking = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc, or forks")


def rows_for_tests() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "wide:avg": rng.random((N, 500), np.float32) + 1,
        "maps:none": rng.random((N, 2, 3, 5), np.float32) + 1,
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FeatureStore:
    return written(tmp_path_factory.mktemp("processes") / "a.h5", rows_for_tests())


def handed_over(store: FeatureStore) -> dict[str, Any]:
    """Objects that a user may pass to a worker."""
    layer, maps = store["wide"], store["maps"]
    return {
        "store": store,
        "layer": layer,
        "maps": maps,
        "contiguous rows": layer[10:200],
        "one row": layer[7],
        "every third row": layer[::3],
        "some columns": layer[:, 5:400:7],
        "rows backwards": layer[::-1],
        "transposed": layer.T,
        "reshaped": maps.reshape(N, -1),
        "the same bytes as integers": layer.view(np.int32),
        "a plain array's view": np.asarray(layer)[3:],
        "a plain array's columns": np.asarray(layer)[3:, ::2],
        "a selection": layer[[5, 3, 3]],
        "no rows": layer[:0],
        "computed": layer * 2 - maps.reshape(N, -1)[:, :1],
        "digests": store.digests,
        "several": [store, layer, (maps[1:], {"y": layer[:, 0]})],
    }


def read(thing: Any) -> Any:
    """All its values, in memory."""
    if isinstance(thing, FeatureStore):
        taken = thing.take([3, -1, 3], "wide", check=True)
        return [np.array(thing["wide"]), np.array(thing["maps"]), taken, thing.X, thing.ids]
    if isinstance(thing, dict):
        return {key: read(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [read(value) for value in thing]
    return np.array(thing)


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return found.dtype == expected.dtype and np.array_equal(found, expected)


@pytest.mark.parametrize(
    "method",
    [
        "threads",
        pytest.param("fork", marks=[forking, on_linux]),
        "spawn",
        pytest.param("forkserver", marks=on_linux),
    ],
)
def test_workers_read_the_same_rows(store, method):
    things = handed_over(store)
    expected = read(things)
    assert np.array_equal(expected["layer"], rows_for_tests()["wide:avg"])
    if method == "threads":
        pool: Any = ThreadPoolExecutor(4)
    else:
        pool = ProcessPoolExecutor(2, multiprocessing.get_context(method))
    with pool:
        waiting = {name: [pool.submit(read, thing) for _ in range(3)] for name, thing in things.items()}
        for name, futures in waiting.items():
            assert all(same(future.result(60), expected[name]) for future in futures), name


@pytest.mark.parametrize(
    "backend, most_bytes", [("loky", 1), ("loky", "1M"), ("loky", None), ("multiprocessing", 1), ("threading", "1M")]
)
@forking
def test_joblibs_workers_read_the_same_rows(store, backend, most_bytes):
    things = handed_over(store)
    expected = read(things)
    # joblib hands what has more bytes over by file name and offset, or in a file of its own
    parallel = joblib.Parallel(n_jobs=2, backend=backend, max_nbytes=most_bytes)
    found = parallel(joblib.delayed(read)(thing) for thing in things.values())
    wrong = [name for name, there in zip(things, found, strict=True) if not same(there, expected[name])]
    assert wrong == []


def test_a_worker_can_pass_rows_on(store):
    def twice(thing):
        return pickle.loads(pickle.dumps(thing)), read(pickle.loads(pickle.dumps(thing)))

    for thing in (store, store["wide"], store["wide"][5:9]):
        ((back, there),) = joblib.Parallel(n_jobs=2, max_nbytes=1)([joblib.delayed(twice)(thing)])
        assert same(there, read(thing)) and same(read(back), read(thing))


def test_pickles_of_rows_on_disk_hold_no_rows(store):
    layer = store["wide"]
    for thing in (store, layer, layer[10:200], layer[7], store["maps"].reshape(N, -1), layer.view(np.int32)):
        content = pickle.dumps(thing)
        assert len(content) < 1000 and same(read(pickle.loads(content)), read(thing))
    assert pickle.loads(pickle.dumps(layer[10:200])).offset == layer.offset + 10 * layer.strides[0]


def test_pickled_rows_are_read_only_and_computed_ones_are_not(store):
    layer = store["wide"]
    assert not pickle.loads(pickle.dumps(layer)).flags.writeable
    for thing in (layer + 1, layer[[1, 2]], layer[::2].copy(), layer.astype(np.float64)):
        again = pickle.loads(pickle.dumps(thing))
        again[...] = 0
        assert not again.any() and thing.any()


def test_results_computed_from_rows_are_ordinary_arrays(store):
    layer = store["wide"]
    for computed in (layer + 1, layer @ layer.T, layer.sum(axis=1), layer[[1, 2]], layer[layer[:, 0] > 1.5]):
        assert type(computed) is np.ndarray and computed.flags.writeable
    for number in (layer.sum(), layer[0, 0], layer.mean()):
        assert isinstance(number, np.float32)


def test_threads_that_open_a_layer_first_all_read_it(store):
    for _ in range(20):
        fresh = FeatureStore(store.path)
        start = threading.Barrier(8)

        def first(fresh=fresh, start=start):
            start.wait(10)
            return fresh["wide"].sum(dtype=np.float64), fresh.rows(fresh.X).tolist() == list(range(N))

        with ThreadPoolExecutor(8) as pool:
            found = {future.result() for future in [pool.submit(first) for _ in range(8)]}
        assert found == {(rows_for_tests()["wide:avg"].sum(dtype=np.float64), True)}


def when_told(store: FeatureStore, layer: np.ndarray, may_read: Any, answer: Any) -> None:
    """In a forked child: read what it inherited, after the parent has closed it."""
    told = may_read.wait(30)
    answer.send((told, read(store), read(layer)))


@on_linux
@forking
def test_a_forked_child_reads_what_it_inherited_after_the_parent_has_closed_and_deleted_it(tmp_path):
    own = written(tmp_path / "a.h5", rows_for_tests())
    layer, expected = own["wide"], read(own)
    context = multiprocessing.get_context("fork")
    may_read, (answer, question) = context.Event(), context.Pipe(duplex=False)
    child = context.Process(target=when_told, args=(own, layer, may_read, question))
    reading = threading.Event()

    def go_on_reading(rows):
        while not reading.is_set():
            assert np.array_equal(rows, expected[0])

    with ThreadPoolExecutor(1) as pool:
        at_it = pool.submit(go_on_reading, layer)
        child.start()
        reading.set()
        at_it.result(30)
    own.path.unlink()
    del own, layer, at_it
    gc.collect()
    may_read.set()
    assert answer.poll(60)
    told, of_store, of_layer = answer.recv()
    child.join(30)
    assert told and child.exitcode == 0 and same(of_store, expected) and same(of_layer, expected[0])


@on_linux
@forking
def test_the_parent_reads_on_when_a_forked_child_has_closed_everything_and_gone(store):
    layer, expected = store["wide"], read(store)
    child = os.fork()
    if not child:
        status = 1
        try:
            os.closerange(3, 256)
            status = 0 if np.array_equal(layer, expected[0]) else 2  # mapped: it needs no handle
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert same(read(store), expected) and same(read(FeatureStore(store.path)), expected)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@on_linux
def test_pickling_and_reading_leave_no_handles_open(store):
    content = pickle.dumps([store, store["wide"], store["wide"].filename])
    pickle.loads(content)
    gc.collect()
    before = open_files()
    for _ in range(20):
        pickle.loads(content)[0].take([1], "wide", check=True)
    for _ in range(20):
        FeatureStore(store.path)["wide"].sum()
    gc.collect()
    assert open_files() == before


def test_an_archive_is_read_by_workers_too(store, tmp_path):
    archive = FeatureStore(export(store, tmp_path / "b.h5"))
    found = joblib.Parallel(n_jobs=2)(joblib.delayed(read)(thing) for thing in (archive, archive["wide"]))
    assert same(found[0], read(store)) and same(found[1], read(store["wide"])) and len(pickle.dumps(archive)) < 1000
