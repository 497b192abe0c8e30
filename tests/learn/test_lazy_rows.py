"""Rows that are too large for memory: estimators read them in blocks, and answer as they do of rows in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import sklearn.preprocessing
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline

import featx
from featx.errors import ModelError, TooLargeError
from featx.learn import (
    SVC,
    Fit,
    GridSearchCV,
    KNeighborsClassifier,
    LinearSVC,
    LogisticRegression,
    Nystroem,
    Ridge,
    RidgeClassifier,
    StandardScaler,
    StoredFeatures,
    knn_probe,
    lazy_rows,
    learning_curves,
    linear_probe,
    select_model,
)
from featx.learn.lazy_rows import LazyRows
from featx.solvers import hardware

N, D = 900, 40
BLOCK_BYTES = 4 * D * 64  # of 64 rows
MEMORY = 4 * D * N  # so that a quarter of the rows is lazy


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> featx.FeatureStore:
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=N)
    rows = rng.normal(size=(N, D)) * np.geomspace(0.1, 10, D) + rng.normal(size=(3, D))[y] + 2
    layers = {"wide": rows.astype(np.float32), "narrow": rows[:, :6].astype(np.float32)}
    path = tmp_path_factory.mktemp("lazy") / "rows.h5"
    featx.FeatureStore.from_arrays(path, layers, y=np.array(["ant", "bee", "cat"])[y])
    return featx.FeatureStore(path)


@contextmanager
def little_memory(monkeypatch: pytest.MonkeyPatch, nbytes: int = MEMORY) -> Iterator[list[int]]:
    """A process that may use this much memory; the sizes of the blocks of rows that it reads."""
    sizes: list[int] = []
    read = LazyRows.__getitem__

    def recorded(self: LazyRows, index: object) -> np.ndarray:
        values = read(self, index)
        sizes.append(values.nbytes)
        return values

    with monkeypatch.context() as patch:
        for module in (lazy_rows, hardware):
            patch.setattr(module, "memory_bytes", lambda: nbytes)
        patch.setattr(lazy_rows, "BLOCK_BYTES", BLOCK_BYTES)
        patch.setattr(LazyRows, "__getitem__", recorded)
        yield sizes


def assert_alike(make: Callable[[], object], store: featx.FeatureStore, monkeypatch, order=slice(None), atol=2e-3):
    """A pipeline's scores and predictions of all images are those of the rows in memory; both are returned."""
    X, y = store.X[order], store.y[order]
    in_memory = make().fit(X, y)
    with little_memory(monkeypatch) as sizes:
        lazy = make().fit(X, y)
        assert sizes, "no rows were read lazily"
        sizes.clear()
        predicted = lazy.predict(X)
    assert max(sizes) <= BLOCK_BYTES
    if hasattr(lazy, "decision_function"):
        expected = in_memory.decision_function(X)
        assert_allclose(lazy.decision_function(X), expected, atol=atol * np.abs(expected).max())
    assert (predicted == in_memory.predict(X)).mean() > 0.997
    return lazy, in_memory


def shuffled(n: int = N) -> np.ndarray:
    return np.random.default_rng(1).permutation(n)


ESTIMATORS = [
    LogisticRegression(C=0.01, tol=1e-6),
    LogisticRegression(C=1, class_weight="balanced", tol=1e-6),
    LinearSVC(C=0.01, tol=1e-6),
    RidgeClassifier(),
    KNeighborsClassifier(7),
    KNeighborsClassifier(3, metric="cosine", weights="distance"),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda each: type(each).__name__)
def test_estimators_answer_as_in_memory(estimator, store, monkeypatch):
    def make() -> object:
        return make_pipeline(StoredFeatures(store, "wide"), StandardScaler(), estimator)

    assert_alike(make, store, monkeypatch)
    assert_alike(make, store, monkeypatch, shuffled())


def test_two_layers_side_by_side(store, monkeypatch):
    assert_alike(
        lambda: make_pipeline(StoredFeatures(store, ["narrow", "wide"]), StandardScaler(), RidgeClassifier()),
        store,
        monkeypatch,
        shuffled()[: 2 * N // 3],
    )


def test_weights_follow_their_rows(store, monkeypatch):
    order = shuffled()
    weights = np.random.default_rng(2).integers(3, size=N).astype(float)
    X, y = StoredFeatures(store, "wide").fit().transform(store.X[order]), store.y[order]
    estimator = LogisticRegression(C=0.01, tol=1e-6)
    expected = estimator.fit(X, y, weights).coef_
    fits = [Fit({}, weights), Fit({}, weights[::-1].copy()), Fit()]
    expected_of_each = [model.coef_ for model in estimator.fit_many(X, y, fits)]
    with little_memory(monkeypatch):
        lazy = StoredFeatures(store, "wide").fit().transform(store.X[order])
        assert isinstance(lazy, LazyRows)
        assert_allclose(estimator.fit(lazy, y, weights).coef_, expected, atol=2e-3 * np.abs(expected).max())
        for model, coef in zip(estimator.fit_many(lazy, y, fits), expected_of_each, strict=True):
            assert_allclose(model.coef_, coef, atol=2e-3 * np.abs(coef).max())


def test_numbers_are_predicted(store, monkeypatch):
    targets = np.asarray(store["narrow"][:, :2], np.float64)
    pipeline = make_pipeline(StoredFeatures(store, "wide"), StandardScaler(), Ridge())
    expected = pipeline.fit(store.X, targets).predict(store.X)
    with little_memory(monkeypatch):
        assert_allclose(pipeline.fit(store.X, targets).predict(store.X), expected, atol=1e-3)


def test_neighbours_are_exactly_those_in_memory(store, monkeypatch):
    order = shuffled()
    queries = np.asarray(store["wide"][:50])
    for metric in ("euclidean", "manhattan", "cosine"):
        nearest = KNeighborsClassifier(9, metric=metric)
        X, y = StoredFeatures(store, "wide").fit().transform(store.X[order]), store.y[order]
        distances, positions = nearest.fit(X, y).kneighbors(queries)
        with little_memory(monkeypatch):
            lazy = StoredFeatures(store, "wide").fit().transform(store.X[order])
            lazy_distances, lazy_positions = nearest.fit(lazy, y).kneighbors(queries)
        assert_array_equal(lazy_positions, positions)
        assert_allclose(lazy_distances, distances, rtol=1e-12, atol=1e-12)


def test_a_kernel_machine_of_any_size(store, monkeypatch):
    def make() -> object:
        kernel = Nystroem(n_components=50, random_state=0)
        return make_pipeline(StoredFeatures(store, "wide"), StandardScaler(), kernel, LinearSVC(C=1, tol=1e-6))

    assert_alike(make, store, monkeypatch, atol=0.02)


@pytest.mark.parametrize("order", [slice(None), shuffled()], ids=["in order", "shuffled"])
def test_a_search_shares_its_passes(order, store, monkeypatch):
    pipeline = make_pipeline(StoredFeatures(store, "wide"), StandardScaler(), LogisticRegression(tol=1e-6))
    grid = {"logisticregression__C": [1e-4, 1e-2, 1]}
    X, y = store.X[order], store.y[order]
    expected = GridSearchCV(pipeline, grid, cv=3, scoring="neg_log_loss", return_train_score=True).fit(X, y)
    with little_memory(monkeypatch) as sizes:
        search = GridSearchCV(pipeline, grid, cv=3, scoring="neg_log_loss", return_train_score=True)
        assert "9 fits of LogisticRegression in one solve" in str(search.plan(X, y))
        search.fit(X, y)
    assert sizes
    for name in ("mean_test_score", "mean_train_score", "std_test_score"):
        assert_allclose(search.cv_results_[name], expected.cv_results_[name], atol=1e-3)
    coef = expected.best_estimator_[-1].coef_
    assert_allclose(search.best_estimator_[-1].coef_, coef, atol=2e-3 * np.abs(coef).max())


def test_neighbours_are_searched_once_a_fold(store, monkeypatch):
    pipeline = make_pipeline(StoredFeatures(store, "wide"), StandardScaler(), KNeighborsClassifier())
    grid = {"kneighborsclassifier__n_neighbors": [1, 5, 9]}
    expected = GridSearchCV(pipeline, grid, cv=3, refit=False).fit(store.X, store.y)
    with little_memory(monkeypatch):
        search = GridSearchCV(pipeline, grid, cv=3, refit=False).fit(store.X, store.y)
    assert_allclose(search.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"], atol=2 / N)


@pytest.mark.parametrize("protocol", [linear_probe, knn_probe], ids=["linear_probe", "knn_probe"])
def test_probes_answer_as_in_memory(protocol, store, monkeypatch):
    options = {"layers": "wide", **({"C": [1e-3, 1e-1]} if protocol is linear_probe else {"k": [5, 20]})}
    (expected,) = protocol(store, **options).curves
    with little_memory(monkeypatch) as sizes:
        (curve,) = protocol(store, **options).curves
    assert sizes
    assert [point.x for point in curve.points] == [point.x for point in expected.points]
    assert_allclose([point.mean for point in curve.points], [point.mean for point in expected.points], atol=2 / N)
    assert curve.test == pytest.approx(expected.test, abs=2 / N)


def test_models_are_selected_and_curves_drawn(store, monkeypatch):
    options = {"layers": "wide", "estimators": ["logistic_regression"], "folds": 3}
    expected = select_model(store, **options)
    curve = learning_curves(store, layers="wide", sizes=[300, 600], repeats=2).curves[0]
    with little_memory(monkeypatch) as sizes:
        selection = select_model(store, **options)
        assert sizes
        lazy_curve = learning_curves(store, layers="wide", sizes=[300, 600], repeats=2).curves[0]
    assert selection.best.value == expected.best.value
    assert (selection.test.predicted == expected.test.predicted).mean() > 0.98
    assert_allclose([p.mean for p in lazy_curve.points], [p.mean for p in curve.points], atol=5e-3)


def test_a_model_saved_after_such_a_fit_predicts_anywhere(store, monkeypatch, tmp_path):
    pipeline = make_pipeline(StoredFeatures(store, "wide"), StandardScaler(), LogisticRegression())
    with little_memory(monkeypatch):
        featx.save(pipeline.fit(store.X, store.y), tmp_path / "model.skops")
    rows = np.asarray(store["wide"])
    assert_array_equal(featx.load(tmp_path / "model.skops").predict(rows), pipeline.predict(store.X))


def test_neighbours_that_stay_in_the_store_are_not_saved(store, monkeypatch, tmp_path):
    with little_memory(monkeypatch):
        pipeline = make_pipeline(StoredFeatures(store, "wide"), KNeighborsClassifier()).fit(store.X, store.y)
        with pytest.raises(ModelError, match="its rows are too large for memory"):
            featx.save(pipeline, tmp_path / "model.skops")


@pytest.mark.parametrize("step", [SVC(), PCA(3), sklearn.preprocessing.StandardScaler()], ids=repr)
def test_what_needs_a_copy_is_refused_with_what_does_not(step, store, monkeypatch):
    pipeline = make_pipeline(StoredFeatures(store, "wide"), step, *([] if isinstance(step, SVC) else [LinearSVC()]))
    with little_memory(monkeypatch):
        with pytest.raises(TooLargeError, match="Nystroem with LinearSVC takes the place of SVC"):
            pipeline.fit(store.X, store.y)


@pytest.mark.parametrize(
    "steps",
    [[sklearn.preprocessing.StandardScaler(), LogisticRegression()], [StandardScaler(), SVC()]],
    ids=["scaler", "SVC"],
)
def test_a_search_refuses_them_before_it_fits(steps, store, monkeypatch):
    search = GridSearchCV(make_pipeline(StoredFeatures(store), *steps), {"storedfeatures__layer": ["wide"]})
    culprit = "SVC" if isinstance(steps[-1], SVC) else "StandardScaler"
    with little_memory(monkeypatch) as sizes:
        with pytest.raises(TooLargeError, match=f"{culprit} needs a copy of 900 rows of wide:none, 144 kB: too much"):
            search.fit(store.X, store.y)
        with pytest.raises(TooLargeError, match="SVC needs a copy"):
            select_model(store, layers="wide", estimators=["logistic_regression", "rbf_svm"])
    assert not sizes


def test_rows_that_are_not_finite_are_refused(tmp_path, monkeypatch):
    rows = np.random.default_rng(3).normal(size=(N, D)).astype(np.float32)
    rows[-1, 3] = np.nan
    with pytest.warns(featx.errors.NonFiniteWarning):
        featx.FeatureStore.from_arrays(tmp_path / "nan.h5", {"wide": rows}, y=["a", "b"] * (N // 2))
    store = featx.FeatureStore(tmp_path / "nan.h5")
    with little_memory(monkeypatch), pytest.raises(ValueError, match="Input X contains NaN"):
        make_pipeline(StoredFeatures(store), LogisticRegression()).fit(store.X, store.y)


def test_lazy_rows_are_indexed_like_arrays(store, monkeypatch):
    expected = np.asarray(store["wide"])
    with little_memory(monkeypatch):
        X = StoredFeatures(store, "wide").fit().transform(store.X)
    mask = np.arange(N) % 7 == 2
    for index in (3, slice(5, 9), [4, 1, 1], mask, slice(0, 0), np.array([-1])):
        assert_array_equal(X[index], expected[index])
    columns = np.array([3, 1])
    assert_array_equal(X[:, columns], expected[:, columns])
    assert_array_equal(X[mask, 2:5], expected[mask, 2:5])
    assert_array_equal(X[np.ix_([5, 3], columns)], expected[np.ix_([5, 3], columns)])
    assert_array_equal(X.take(mask)[[0, 2]], expected[mask][[0, 2]])
    assert_array_equal(np.asarray(X), expected)  # there is memory for it
    assert X.shape == expected.shape and X.dtype == expected.dtype and X.nbytes == expected.nbytes


def test_a_layer_that_fits_stays_an_array(store, monkeypatch):
    with little_memory(monkeypatch, 4 * 4 * D * N):
        assert isinstance(StoredFeatures(store, "wide").fit().transform(store.X), np.ndarray)
    with little_memory(monkeypatch, 4 * 4 * D * N - 4):
        assert isinstance(StoredFeatures(store, "wide").fit().transform(store.X), LazyRows)
