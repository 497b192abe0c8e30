"""`Align`: moments of the target, skada's numbers, and no row that says less than which domain it is of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sklearn.model_selection
from helpers import TESTS, assert_tells, class_folders, store_of
from scipy.linalg import sqrtm
from sklearn.base import clone
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

import featx
from featx import FeatureStore
from featx.errors import FeatxError, KeysError, LayerError, RecipeError, RowsDifferWarning
from featx.learn import GridSearchCV, HoldOut, LogisticRegression, StoredFeatures, select_model
from featx.transfer import Align

METHODS = ("scaler", "coral", "linear_ot")
LAYER = "layer4:avg"


def domain(seed: int, n: int, d: int = 5, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + shift


def opened(folder: Path, source: np.ndarray, target: np.ndarray) -> tuple[FeatureStore, FeatureStore]:
    """A store of each domain; classes of the source by the sign of its first column."""
    y = np.where(source[:, 0] > np.median(source[:, 0]), "a", "b")
    names = [f"target {i}" for i in range(len(target))]
    return (
        store_of(folder / "source.h5", {LAYER: source}, y),
        store_of(folder / "target.h5", {LAYER: target}, ids=names),
    )


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> tuple[FeatureStore, FeatureStore]:
    return opened(tmp_path_factory.mktemp("domains"), domain(1, 90, shift=3), domain(2, 60, shift=-1))


def rows_of(store: FeatureStore, keys: np.ndarray | None = None) -> np.ndarray:
    return StoredFeatures(store).fit_transform(store.X if keys is None else keys)


def aligned(source: FeatureStore, target: FeatureStore, method: str, **options) -> np.ndarray:
    return Align(target, method, **options).fit_transform(rows_of(source))


@pytest.mark.parametrize("method", METHODS)
def test_moments_after_alignment_are_those_of_the_target(stores, method):
    source, target = stores
    align = Align(target, method, shrinkage=0).fit(rows_of(source))
    ours, theirs = align.transform(rows_of(source)), align.transform(rows_of(target))
    np.testing.assert_allclose(ours.mean(axis=0), theirs.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(ours.std(axis=0), theirs.std(axis=0), rtol=1e-5)
    if method == "scaler":
        np.testing.assert_allclose(theirs.mean(axis=0), 0, atol=1e-6)
    else:
        np.testing.assert_allclose(np.cov(ours.T), np.cov(theirs.T) * (60 / 59) ** -1 * (90 / 89), rtol=2e-5, atol=1e-5)
        np.testing.assert_array_equal(theirs, rows_of(target))


@pytest.mark.parametrize("name", ["coral_auto", "coral_0.2", "linear_ot"])
def test_equals_skada(tmp_path, name):
    with np.load(TESTS / "data/skada.npz") as data:  # made by make_skada.py
        source, target = opened(tmp_path, data["source"], data["target"])
        theirs = data[name]
    method, shrinkage = {
        "coral_auto": ("coral", "auto"),
        "coral_0.2": ("coral", 0.2),
        "linear_ot": ("linear_ot", 0.0),
    }[name]
    ours = aligned(source, target, method, shrinkage=shrinkage)
    if method == "coral":  # skada centres the target instead
        ours = ours - rows_of(target).mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6 * np.abs(theirs).max())


def test_the_maps_are_their_formulas(stores):
    source, target = stores
    C_s, C_t = (np.cov(rows_of(store).astype(np.float64).T, bias=True) for store in stores)
    root, inverse = sqrtm(C_s), np.linalg.inv(sqrtm(C_s))
    maps = {method: Align(target, method, shrinkage=0).fit(rows_of(source)).map_ for method in ("coral", "linear_ot")}
    np.testing.assert_allclose(maps["coral"], inverse @ sqrtm(C_t), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(maps["linear_ot"], inverse @ sqrtm(root @ C_t @ root) @ inverse, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(maps["linear_ot"], maps["linear_ot"].T, atol=1e-12)


@pytest.mark.parametrize("shrinkage", [0, "auto"])
@pytest.mark.parametrize("method", ["coral", "linear_ot"])
def test_equal_domains_are_left_as_they_are(tmp_path, method, shrinkage):
    rows = domain(1, 90)
    source, target = opened(tmp_path, rows, rows[::-1])
    np.testing.assert_allclose(
        aligned(source, target, method, shrinkage=shrinkage), rows_of(source), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_scaled_target_moves_no_source_row_elsewhere(stores, tmp_path, method):
    """Units do not matter where each column of both domains is scaled alike, nor does the order of images."""
    source, target = stores
    order = np.random.default_rng(0).permutation(len(target))
    scaled = opened(tmp_path, np.asarray(rows_of(source)) * 4, np.asarray(rows_of(target))[order] * 4)
    factor = 1 if method == "scaler" else 4
    np.testing.assert_allclose(aligned(*scaled, method), factor * aligned(source, target, method), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shrinkage", [0, "auto"])
@pytest.mark.parametrize("method", METHODS)
def test_fewer_rows_than_columns_and_constant_columns_stay_finite(tmp_path, method, shrinkage):
    source, target = domain(1, 12, 30), domain(2, 7, 30)
    source[:, 3], target[:, 4] = 0.0, 2.0
    source_store, target_store = opened(tmp_path, source, target)
    ours = aligned(source_store, target_store, method, shrinkage=shrinkage)
    assert np.isfinite(ours).all() and np.abs(ours).max() < 1e3
    if method != "scaler":
        np.testing.assert_allclose(ours.mean(axis=0), target.mean(axis=0), atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_which_domain_a_row_is_of_is_known_from_its_store(stores, tmp_path, method):
    source, target = stores
    align = Align(target, method)
    np.testing.assert_array_equal(align.fit_transform(rows_of(source)), align.transform(rows_of(source)))
    other = store_of(tmp_path / "other.h5", {LAYER: np.asarray(rows_of(target))}, ids=[f"new {i}" for i in range(60)])
    np.testing.assert_array_equal(align.transform(rows_of(other)), align.transform(rows_of(target)))
    some = [5, 2, 2]
    np.testing.assert_array_equal(
        align.transform(rows_of(source, source.X[some])), align.transform(rows_of(source))[some]
    )


@pytest.mark.parametrize("method", METHODS)
def test_target_images_that_are_left_out_take_no_part(stores, tmp_path, method):
    source, target = stores
    changed = np.array(rows_of(target))
    changed[40:] += 1000
    _, other = opened(tmp_path, np.asarray(rows_of(source)), changed)

    def both(store: FeatureStore, keys: np.ndarray | None) -> np.ndarray:
        align = Align(store, method, target_keys=keys).fit(rows_of(source))
        return np.concatenate([align.transform(rows_of(source)), align.transform(rows_of(target))])

    np.testing.assert_array_equal(both(target, target.X[:40]), both(other, other.X[:40]))
    assert (both(target, None) != both(other, None)).any()


@pytest.mark.parametrize("method", METHODS)
def test_a_search_aligns_held_out_source_rows_by_the_map_of_its_training_rows(stores, method):
    source, target = stores
    pipe = make_pipeline(StoredFeatures(source), Align(target, method), LogisticRegression())
    grid = {"logisticregression__C": [0.01, 1.0]}
    ours = GridSearchCV(pipe, grid, cv=3, return_train_score=True).fit(source.X, source.y)
    theirs = sklearn.model_selection.GridSearchCV(pipe, grid, cv=3, return_train_score=True).fit(source.X, source.y)
    assert "one solve a fold" in str(ours.plan(source.X, source.y))
    for name in ("mean_test_score", "mean_train_score"):
        np.testing.assert_allclose(ours.cv_results_[name], theirs.cv_results_[name])
    train, test = next(iter(sklearn.model_selection.StratifiedKFold(3).split(source.X, source.y)))
    of_fold = clone(pipe).fit(source.X[train], source.y[train])
    by_hand = Align(target, method).fit(rows_of(source, source.X[train])).transform(rows_of(source, source.X[test]))
    np.testing.assert_array_equal(of_fold[:-1].transform(source.X[test]), by_hand)


def test_layers_are_those_of_the_stored_features_before_it(tmp_path):
    rows = {"layer3:avg": domain(1, 40), LAYER: domain(2, 40)}
    y = np.where(rows[LAYER][:, 0] > 0, "a", "b")
    source = store_of(tmp_path / "source.h5", rows, y)
    ids = [f"target {i}" for i in range(40)]
    target = store_of(tmp_path / "target.h5", {name: X * 2 + 1 for name, X in rows.items()}, y, ids=ids, first=100)
    selection = select_model(
        source,
        layers=["layer3", "layer4", ["layer3", "layer4"]],
        estimators="logistic_regression",
        steps=[Align(target)],
        holdout=HoldOut(store=target),
        folds=3,
        n_jobs=1,
    )
    assert {each.layer for each in selection.candidates} == {"layer3:avg", LAYER, f"layer3:avg+{LAYER}"}
    align = Align(target).fit(StoredFeatures(source, [LAYER, "layer3"]).fit_transform(source.X))
    assert align.layers_ == (LAYER, "layer3:avg")
    np.testing.assert_allclose(align.target_mean_[:5], (rows[LAYER] * 2 + 1).mean(axis=0), atol=1e-5)
    with pytest.raises(FeatxError, match="was fitted on layer4:avg[+]layer3:avg; got layer3:avg"):
        align.transform(StoredFeatures(source, "layer3").fit_transform(source.X))


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_model_predicts_images_of_the_target(tmp_path, method):
    options = {"backbone": "bundled:pixels", "layers": "output:flatten~64", "progress": False}
    photos = class_folders(tmp_path / "photos", n=6)
    source = featx.extract(photos, tmp_path / "source.h5", **options)
    theirs = class_folders(tmp_path / "theirs", ("x", "y"), n=5)
    target = featx.extract(theirs, tmp_path / "target.h5", **options)
    pipe = make_pipeline(StoredFeatures(source), Align(target, method), LogisticRegression()).fit(source.X, source.y)
    images = sorted(theirs.rglob("*.png"))
    featx.save(pipe, tmp_path / "model.skops")
    loaded = featx.load(tmp_path / "model.skops")
    np.testing.assert_allclose(loaded.decision_function(images), pipe.decision_function(images))
    reading = pipe.set_params(storedfeatures__store=target)
    np.testing.assert_allclose(reading.decision_function(target.X), loaded.decision_function(images), atol=1e-4)
    with pytest.raises(FeatxError, match="target_store is a featx.FeatureStore; got Recipe"):
        loaded[1].fit(rows_of(source))


def test_what_cannot_be_aligned_is_refused(stores, tmp_path):
    source, target = stores
    X = rows_of(source)
    between = make_pipeline(StoredFeatures(source), StandardScaler(), Align(target))
    other_columns = make_pipeline(StoredFeatures(source), FunctionTransformer(lambda rows: rows[:, :2]), Align(target))
    for pipe in (between, other_columns, make_pipeline(FunctionTransformer(np.log1p), Align(target))):
        with pytest.raises(FeatxError, match="Align stands right behind StoredFeatures"):
            pipe.fit(source.X, source.y)
    with pytest.raises(FeatxError, match="rows of the target store itself"):
        Align(source).fit(X)
    with pytest.raises(FeatxError, match="there are no target images to align with"):
        Align(target, target_keys=target.X[:0]).fit(X)
    with pytest.raises(FeatxError, match="the target has 1"):
        Align(target, target_keys=target.X[:1]).fit(X)
    with pytest.raises(KeysError):
        Align(target, target_keys=source.X[:4]).fit(X)
    with pytest.raises(ValueError, match="'method' parameter of Align"):
        Align(target, "dann").fit(X)
    broken = np.asarray(rows_of(target)).copy()
    broken[7, 0] = np.nan
    _, unfinished = opened(tmp_path, np.asarray(X), broken)
    with pytest.raises(FeatxError, match="1 rows of the target hold inf or NaN, number 7"):
        Align(unfinished).fit(X)


def test_stores_that_do_not_go_together_are_refused_and_rounding_is_told(stores, tmp_path):
    source, target = stores
    X, rows = rows_of(source), np.asarray(rows_of(target))
    elsewhere = store_of(tmp_path / "elsewhere.h5", {"layer9:avg": rows})
    with pytest.raises(LayerError) as raised:
        Align(elsewhere).fit(X)
    assert_tells(raised.value, "elsewhere.h5 needs the layers of the source", LAYER)
    other = store_of(tmp_path / "other.h5", {LAYER: rows}, backbone="torchvision:resnet34")
    with pytest.raises(RecipeError) as raised:
        Align(other).fit(X)
    assert_tells(raised.value, "'torchvision:resnet18' in the source", "'torchvision:resnet34' in other.h5")
    rounded = store_of(tmp_path / "rounded.h5", {LAYER: rows}, batch_size=7)
    with pytest.warns(RowsDifferWarning, match="rounded.h5 was made with batch_size 7"):
        Align(rounded).fit(X)


def test_an_origin_is_that_of_unchanged_rows(stores):
    source, _ = stores
    rows = rows_of(source)
    assert rows.origin == rows[3:9].origin == rows[[1, 1]].origin == rows.copy().origin
    for computed in (rows * 2, rows - rows, np.exp(rows), np.array(rows), np.asarray(rows), rows.mean(axis=0)):
        assert type(computed) is np.ndarray
    assert isinstance(rows.sum(), np.floating) and type(np.concatenate([rows, rows])) is np.ndarray
    assert isinstance(Pipeline([("features", StoredFeatures(source))]).fit_transform(source.X), np.ndarray)
