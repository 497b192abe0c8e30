"""Readers of a store that is replaced get the old rows or a StoreError, never another store's or a mixture.

The worst replacement looks the same: it has the same path, ids, keys, shapes and size, but other rows.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from joblib.externals.loky import get_reusable_executor
from test_take import written

from featx.errors import StoreError
from featx.store import FeatureStore, mapped

N = 120


def old_rows() -> dict[str, np.ndarray]:
    """Positive rows; those of the replacement are negative."""
    rng = np.random.default_rng(0)
    labels = np.arange(N)[:, None] % 2
    return {
        "wide:avg": (rng.random((N, 400), np.float32) + 1 + labels).astype(np.float32),
        "maps:none": rng.random((N, 2, 30, 5), np.float32) + 1,
    }


@pytest.fixture
def stores(tmp_path) -> tuple[FeatureStore, Callable[[], None]]:
    """A store, and a function that replaces it by one that looks the same."""
    y = np.array(["even", "odd"])[np.arange(N) % 2]
    rng = np.random.default_rng(1)
    new_rows = {name: -rng.permutation(rows) for name, rows in old_rows().items()}
    old, new = written(tmp_path / "a.h5", old_rows(), y=y), written(tmp_path / "new.h5", new_rows, y=y)
    assert np.array_equal(old.X, new.X) and old.path.stat().st_size == new.path.stat().st_size
    shutil.copy(old.path, tmp_path / "old.h5")
    return old, lambda: os.replace(tmp_path / "new.h5", old.path)


@pytest.fixture(scope="module", autouse=True)
def _no_workers_are_left() -> Iterator[None]:
    """Workers for all tests of this file; joblib replaces one that failed to unpickle."""
    yield
    get_reusable_executor().shutdown(wait=True, kill_workers=True)


def things_of(store: FeatureStore) -> dict[str, Any]:
    layer = store["wide"]
    return {
        "store": store,
        "layer": layer,
        "contiguous rows": layer[10:100],
        "plain": np.asarray(layer),
        "plain rows": np.asarray(layer)[10:100],
        "plain columns": np.asarray(layer)[5:, ::3],
        "in a list": [store["maps"][3:]],
    }


def read(thing: Any) -> list[np.ndarray]:
    if isinstance(thing, FeatureStore):
        return [np.array(thing["wide"]), np.array(thing["maps"]), thing.take([5, -1], "wide", check=True)]
    return [np.array(array) for array in (thing if isinstance(thing, list) else [thing])]


def expected_of(name: str) -> list[np.ndarray]:
    wide, maps = old_rows().values()
    return {
        "store": [wide, maps, wide[[5, -1]]],
        "layer": [wide],
        "contiguous rows": [wide[10:100]],
        "plain": [wide],
        "plain rows": [wide[10:100]],
        "plain columns": [wide[5:, ::3]],
        "in a list": [maps[3:]],
    }[name]


def same(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    return len(found) == len(expected) and all(map(np.array_equal, found, expected))


def tells_of_replacement(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, in a worker or here, is that of a replaced store."""
    while error is not None:
        if "replaced by another store" in f"{error} {getattr(error, 'tb', '')}":
            return True
        error = error.__cause__ or error.__context__
    return False


def gives_old_rows_or_says_so(call: Callable[[], list[np.ndarray]], expected: list[np.ndarray]) -> None:
    try:
        found = call()
    except Exception as error:
        if not tells_of_replacement(error):
            raise
    else:
        assert same(found, expected), "other rows"


@pytest.mark.parametrize("opened", ["before", "after"])
def test_the_reader_itself_gives_the_old_rows(stores, opened):
    store, replace = stores
    things = things_of(store) if opened == "before" else {}
    iterator = store.blocks("maps", budget_bytes=10_000)
    first = next(iterator)[1]
    replace()
    for name, thing in (things or things_of(store)).items():
        assert same(read(thing), expected_of(name))
    pieces = np.concatenate([first, *(rows for _, rows in iterator)])
    assert np.array_equal(pieces, old_rows()["maps:none"])
    store.verify()
    assert FeatureStore(store.path).identity != store.identity


@pytest.mark.parametrize("name", ["store", "layer", "contiguous rows", "in a list"])
@pytest.mark.parametrize("loaded_before", [False, True])
def test_a_pickle_gives_the_old_rows_or_an_error(stores, name, loaded_before):
    store, replace = stores
    content = pickle.dumps(things_of(store)[name])
    mapped._mapped_once.cache_clear()
    if loaded_before:
        assert same(read(pickle.loads(content)), expected_of(name))
    replace()
    for _ in range(2):
        try:
            found = read(pickle.loads(content))
        except StoreError as error:
            assert "replaced" in str(error) and str(store.path) in str(error)
        else:
            assert loaded_before and same(found, expected_of(name))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_that_outlive_the_replacement_read_the_old_rows_or_an_error(stores, method):
    store, replace = stores
    before = things_of(store)
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        assert same(pool.submit(read, before["layer"]).result(60), expected_of("layer"))
        replace()
        for name, now in things_of(store).items():
            for given in (before[name], now):
                gives_old_rows_or_says_so(lambda given=given: pool.submit(read, given).result(60), expected_of(name))


def in_workers(thing: Any) -> list[list[np.ndarray]]:
    return joblib.Parallel(n_jobs=2, max_nbytes=1)([joblib.delayed(read)(thing)] * 3)  # by file name and offset


@pytest.mark.parametrize("used_before", [pytest.param(False, marks=pytest.mark.slow), True])
def test_joblibs_workers_read_the_old_rows_or_an_error(stores, used_before):
    store, replace = stores
    names = ("store", "layer", "contiguous rows", "plain columns") if used_before else ("store", "layer")
    things = [(name, things_of(store)[name]) for name in names]
    if used_before:  # loky's workers live on
        for name, thing in things:
            assert all(same(found, expected_of(name)) for found in in_workers(thing))
    replace()
    for name, thing in [*things, ("plain", np.asarray(store["wide"]))]:
        gives_old_rows_or_says_so(lambda thing=thing: sum(in_workers(thing), []), 3 * expected_of(name))


def test_a_store_opened_anew_is_read_by_workers_that_have_the_old_one(stores):
    store, replace = stores
    parallel = joblib.Parallel(n_jobs=2, max_nbytes=1)
    assert all(same(found, expected_of("store")) for found in parallel([joblib.delayed(read)(store)] * 4))
    replace()
    new = FeatureStore(store.path)
    for thing in (new, new["wide"], np.asarray(new["wide"])[4:]):
        expected = read(thing)
        assert (expected[0] < 0).all()
        assert all(same(found, expected) for found in parallel([joblib.delayed(read)(thing)] * 4))


def test_a_worker_that_was_handed_rows_keeps_them_through_the_replacement(stores, tmp_path):
    store, replace = stores

    def wait_for(name):
        until = time.monotonic() + 60
        while not (tmp_path / name).exists():
            assert time.monotonic() < until, name

    def slowly(rows):
        first = np.array(rows[:1])
        (tmp_path / "begun").touch()
        wait_for("replaced")
        return np.concatenate([first, rows[1:]]), np.array(pickle.loads(pickle.dumps(rows)))

    def replace_when_begun():
        wait_for("begun")
        replace()
        (tmp_path / "replaced").touch()

    with ThreadPoolExecutor(1) as pool:
        replacing = pool.submit(replace_when_begun)
        ((kept, again),) = joblib.Parallel(n_jobs=2, max_nbytes=1)([joblib.delayed(slowly)(store["wide"])])
        replacing.result(60)
    assert np.array_equal(kept, old_rows()["wide:avg"]) and np.array_equal(again, kept)


@contextlib.contextmanager
def replaced_all_the_time(path: Path, stores: list[Path]) -> Iterator[None]:
    """Another thread replaces the store at the path again and again."""
    stop = threading.Event()

    def run() -> None:
        aside = path.with_suffix(".aside")
        for other in itertools.cycle(stores):
            if stop.is_set():
                return
            os.link(other, aside)
            os.replace(aside, path)
            aside.unlink(missing_ok=True)  # both names of one file: the name stays

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)


def test_no_moment_of_a_replacement_mixes_two_stores(stores, tmp_path):
    store, _ = stores
    contents = {name: pickle.dumps(things_of(store)[name]) for name in ("store", "layer", "in a list")}
    named_by_joblib = pickle.dumps(store["wide"].filename)
    offset, shape = store["wide"].offset, store["wide"].shape
    new = FeatureStore(tmp_path / "new.h5")
    seen = {"old": 0, "refused": 0, "new opened": 0}
    with replaced_all_the_time(store.path, [tmp_path / "new.h5", tmp_path / "old.h5"]):
        for turn in range(100):
            if turn % 3:
                mapped._mapped_once.cache_clear()
            for name, content in contents.items():
                try:
                    found = read(pickle.loads(content))
                except StoreError as error:
                    assert "replaced" in str(error)
                    seen["refused"] += 1
                else:
                    assert same(found, expected_of(name))
                    seen["old"] += 1
            try:
                path = pickle.loads(named_by_joblib)
                rows = np.memmap(path, np.float32, "r", offset, shape)
            except StoreError as error:
                assert "replaced" in str(error)
            else:
                assert np.array_equal(rows, old_rows()["wide:avg"])
            opened = FeatureStore(store.path)
            assert opened.identity in (store.identity, new.identity)
            of_new = opened.identity == new.identity
            seen["new opened"] += of_new
            assert same(read(opened), read(new) if of_new else expected_of("store"))
    assert all(seen.values()), seen  # each of them happened


# Workers import this module; what only these last tests need would make all of them slow to start.


def pipeline(store: FeatureStore) -> Any:
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline

    from featx.learn import StoredFeatures

    return make_pipeline(StoredFeatures(store, "wide"), RidgeClassifier())


def test_clones_of_a_pipeline_share_the_store_and_copy_nothing(stores):
    from sklearn.base import clone

    store, _ = stores
    layer = store["wide"]
    again = clone(clone(pipeline(store)))
    assert again[0].store is store and again[0].store["wide"] is layer
    assert len(pickle.dumps(again)) < 2000


@pytest.mark.slow  # scores on a layer are below, and keys read by other processes above
def test_a_search_over_a_replaced_store_gives_the_old_result_or_an_error(stores):
    from sklearn.model_selection import GridSearchCV

    store, replace = stores
    X, y = store.X, store.y
    grid = {"ridgeclassifier__alpha": [1.0, 1e3], "storedfeatures__layer": ["wide", "maps"]}

    def scores() -> list[np.ndarray]:
        search = GridSearchCV(pipeline(store), grid, cv=3, n_jobs=2, error_score="raise").fit(X, y)
        found = search.cv_results_
        return [found[f"split{i}_test_score"] for i in range(3)] + [search.best_estimator_.decision_function(X)]

    expected = scores()
    replace()
    gives_old_rows_or_says_so(scores, expected)
    gives_old_rows_or_says_so(scores, expected)


def test_scores_on_a_replaced_layer_are_those_of_the_old_rows_or_an_error(stores):
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import cross_val_score

    store, replace = stores
    layer, y = store["wide"], store.y

    def scores() -> list[np.ndarray]:
        return [cross_val_score(RidgeClassifier(), layer, y, cv=3, n_jobs=2, error_score="raise")]

    expected = scores()
    replace()
    gives_old_rows_or_says_so(scores, expected)
