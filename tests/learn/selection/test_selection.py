"""The choice of a model: an honest grid search, and a score on images that the choice never saw."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import levelled_folders
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import featx
from featx import FeatureStore, Preprocessing
from featx.backbones import Backbone
from featx.catalogue import ESTIMATORS
from featx.errors import FeatxError, KeysError, LayerError, StoreError
from featx.learn import HoldOut, StoredFeatures, select_model
from featx.learn.features import features
from featx.learn.scores.intervals import wilson
from featx.learn.selection import new_estimator

C = {"logistic_regression": [1e-3, 1e-1], "rbf_svm": [0.1, 10.0], "linear_svm": [1e-3]}
FAST = {"folds": 3, "n_jobs": 1}
QUICK = FAST | {"estimators": list(C), "param_grid": C}


def quick(*estimators: str) -> dict[str, Any]:
    return FAST | {"estimators": list(estimators), "param_grid": {name: C[name] for name in estimators}}


def network(**options) -> Backbone:
    return Backbone("squeezenet1_1", weights=None, preprocessing=Preprocessing((32, 32), 32, **options))


def make_images(root: Path, levels: dict[str, int], n: int, seed: int = 0) -> Path:
    """Grey noise around a level for each class."""
    return levelled_folders(root, levels, n, (20, 20), spread=40, seed=seed)


LEVELS = {"dark": 60, "dim": 68, "light": 180}  # two of them are alike


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_images(root / "photos", LEVELS, 20)
    make_images(root / "later", LEVELS, 5, seed=1)
    return root


def extracted(root: Path, source: str, name: str, backbone, layers="penultimate", **options) -> FeatureStore:
    return featx.extract(root / source, root / name, backbone, layers, device="cpu", progress=False, **options)


@pytest.fixture(scope="module")
def store(root) -> FeatureStore:
    return extracted(root, "photos", "photos.h5", network(), ["features.3:max", "penultimate"])


@pytest.fixture(scope="module")
def pixels(root) -> FeatureStore:
    return extracted(root, "photos", "pixels.h5", "bundled:pixels")


@pytest.fixture(scope="module")
def selection(store):
    return select_model(store, **quick("logistic_regression", "rbf_svm"))


def message(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_the_table_has_every_layer_estimator_and_C_best_first(store, selection):
    found = {(c.layer, c.estimator, c.value) for c in selection.candidates}
    names = ("logistic_regression", "rbf_svm")
    assert found == {(layer, name, value) for layer in store.layers for name in names for value in C[name]}
    assert len(selection.candidates) == 8
    means = [c.mean for c in selection.candidates]
    assert means == sorted(means, reverse=True) and selection.best is selection.candidates[0]
    for one, other in zip(selection.candidates, selection.candidates[1:], strict=False):
        assert one.mean > other.mean or one.complexity <= other.complexity
    for c in selection.candidates:
        assert c.mean == pytest.approx(np.mean(c.scores)) and c.std == pytest.approx(np.std(c.scores))
        assert len(c.scores) == 3 and c.d == store[c.layer].shape[1] and c.backbone == "torchvision:squeezenet1_1"


def test_the_scores_are_a_plain_grid_searchs(store, selection):
    held_out = set(selection.test.X.ravel().tolist())
    train = np.array([key not in held_out for key in store.X.ravel().tolist()])
    cv = StratifiedKFold(3, shuffle=True, random_state=0)
    for layer in store.layers:
        pipe = make_pipeline(StandardScaler(), SVC())
        search = GridSearchCV(pipe, {"svc__C": C["rbf_svm"]}, cv=cv).fit(np.array(store[layer])[train], store.y[train])
        for i, value in enumerate(C["rbf_svm"]):
            (c,) = [c for c in selection.candidates if (c.layer, c.estimator, c.value) == (layer, "rbf_svm", value)]
            assert c.mean == pytest.approx(search.cv_results_["mean_test_score"][i], abs=1e-12)
            assert c.scores == tuple(search.cv_results_[f"split{fold}_test_score"][i] for fold in range(3))


def test_the_winner_is_fitted_on_the_training_images_and_scored_on_the_others(store, selection):
    best = selection.best
    held_out = set(selection.test.X.ravel().tolist())
    train = np.array([key not in held_out for key in store.X.ravel().tolist()])
    assert selection.training.n == train.sum() == 48 and len(held_out) == 12
    assert dict(zip(*np.unique(selection.test.y, return_counts=True), strict=True)) == dict.fromkeys(LEVELS, 4)
    classifier = {"logistic_regression": LogisticRegression(max_iter=1000), "rbf_svm": SVC()}[best.estimator]
    again = make_pipeline(StandardScaler(), classifier.set_params(C=best.value))
    again.fit(np.array(store[best.layer])[train], store.y[train])
    rows = store.rows(selection.test.X)
    np.testing.assert_array_equal(selection.test.y, store.y[rows])
    np.testing.assert_array_equal(selection.test.predicted, again.predict(np.array(store[best.layer])[rows]))
    np.testing.assert_array_equal(selection.best_estimator.predict(selection.test.X), selection.test.predicted)
    assert selection.held_out == accuracy_score(selection.test.y, selection.test.predicted)
    p = selection.held_out
    assert selection.held_out_interval == wilson(p, 12)
    assert selection.confusion.sum() == 12 and np.trace(selection.confusion) == round(12 * p)
    assert selection.confusion.sum(1).tolist() == [4, 4, 4]
    assert selection.training.chance == pytest.approx(1 / 3) and selection.training.classes.tolist() == sorted(LEVELS)


@pytest.fixture
def asked(monkeypatch) -> list[set[int]]:
    """The keys of every matrix that was asked for, the held-out predictions included."""
    seen: list[set[int]] = []
    transform = StoredFeatures.transform

    def recording(self, X):
        seen.append(set(np.asarray(X).ravel().tolist()))
        return transform(self, X)

    monkeypatch.setattr(StoredFeatures, "transform", recording)
    return seen


def test_held_out_images_touch_nothing_but_the_last_prediction(store, asked):
    found = select_model(store, layers=["penultimate"], **quick("logistic_regression"))
    held_out = set(found.test.X.ravel().tolist())
    assert len(asked) > 1 and asked[-1] == held_out
    assert all(not keys & held_out for keys in asked[:-1])
    assert len(set().union(*asked[:-1])) == found.training.n


def test_test_rows_are_held_out(store, asked):
    test = np.zeros(len(store), bool)
    test[[0, 7, 25, 40, 59]] = True
    found = select_model(store, layers=["features.3"], holdout=HoldOut(rows=test), **quick("logistic_regression"))
    np.testing.assert_array_equal(found.test.X, store.X[test])
    np.testing.assert_array_equal(found.test.y, store.y[test])
    assert found.training.n == 55 and all(not keys & set(store.X[test].ravel()) for keys in asked[:-1])


def test_a_store_of_its_own_is_held_out(root, store):
    later = extracted(root, "later", "later.h5", network(), ["features.3:max", "penultimate"])
    found = select_model(store, holdout=HoldOut(store=later), **quick("logistic_regression"))
    assert found.training.n == 60 and found.test.store is later
    np.testing.assert_array_equal(found.test.X, later.X)
    np.testing.assert_array_equal(found.test.y, later.y)
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=found.best.value, max_iter=1000))
    plain.fit(np.array(store[found.best.layer]), store.y)
    np.testing.assert_array_equal(found.test.predicted, plain.predict(np.array(later[found.best.layer])))
    assert found.best_estimator[0].store is store


def test_a_test_store_made_otherwise_is_refused(root, store):
    other = extracted(root, "later", "otherwise.h5", network(mean=(0.1, 0.2, 0.3)), ["features.3:max", "penultimate"])
    with pytest.raises(StoreError, match="the test store was made with other settings: preprocessing") as error:
        select_model(store, holdout=HoldOut(store=other), **quick("logistic_regression"))
    message(error)


def test_a_test_store_with_training_images_is_refused(root, store):
    """Under other names too: it is the content that counts."""
    photo = next(iter(Path(store.recipe.origin).rglob("*.png")))
    (root / "mixed" / "dark").mkdir(parents=True)
    shutil.copy(photo, root / "mixed" / "dark" / "another name.png")
    mixed = extracted(root, "mixed", "mixed.h5", network(), ["features.3:max", "penultimate"])
    with pytest.raises(FeatxError, match="1 of the 1 test images are training images too"):
        select_model(store, holdout=HoldOut(store=mixed), **QUICK)


def test_a_test_store_with_another_class_is_refused(root, store):
    make_images(root / "strange", {"dark": 60, "unheard": 200}, 2, seed=9)
    strange = extracted(root, "strange", "strange.h5", network(), ["features.3:max", "penultimate"])
    with pytest.raises(FeatxError, match="classes that the training images lack: 'unheard'"):
        select_model(store, holdout=HoldOut(store=strange), **quick("logistic_regression"))


def test_stores_of_the_same_images_compete(store, pixels):
    found = select_model([store, pixels], **quick("logistic_regression"))
    assert {(c.backbone, c.layer) for c in found.candidates} == {
        ("torchvision:squeezenet1_1", "features.3:max"),
        ("torchvision:squeezenet1_1", "features.12.cat:avg"),
        ("bundled:pixels", "flatten:none"),
    }
    alone = select_model(pixels, **quick("logistic_regression"))
    assert [c.scores for c in found.candidates if c.backbone == "bundled:pixels"] == [
        c.scores for c in alone.candidates
    ]
    np.testing.assert_array_equal(found.test.X, alone.test.X)


def test_a_layer_that_one_of_several_stores_lacks_names_that_store(store, pixels):
    with pytest.raises(LayerError, match="named; pixels.h5: layer 'features.3' is not stored") as error:
        select_model([store, pixels], layers=["features.3"], **QUICK)
    message(error)


@pytest.mark.parametrize("given", ["a.h5", Path("a.h5"), ["a.h5"]])
def test_a_path_is_no_store(given):
    with pytest.raises(FeatxError, match=r"got .*'a\.h5'.*; featx.FeatureStore\(path\) opens one") as error:
        select_model(given, **QUICK)
    message(error)


def test_of_all_layers_the_strongest_features_of_the_training_images_are_chosen(store, tmp_path):
    result = select_model(store, layers="all", **quick("logistic_regression"))
    widths = [np.prod(store[layer].shape[1:]) for layer in store.layers]
    assert {(c.layer, c.d, c.complexity[0]) for c in result.candidates} == {("all", sum(widths), max(widths))}
    training = ~np.isin(store.X[:, 0], result.test.X[:, 0])
    X, y = StoredFeatures(store, list(store.layers)).fit().transform(store.X)[training], store.y[training]
    best = dict.fromkeys(C["logistic_regression"], ())
    for fit, test in StratifiedKFold(3, shuffle=True, random_state=0).split(X, y):
        scaled = StandardScaler().fit(X[fit]).transform(X)
        weights = LogisticRegression(tol=1e-8, max_iter=10_000).fit(scaled[fit], y[fit]).coef_
        strongest = np.argsort(-np.linalg.norm(weights, axis=0))[: max(widths)]
        for value in best:
            model = LogisticRegression(C=value, tol=1e-8, max_iter=10_000).fit(scaled[fit][:, strongest], y[fit])
            best[value] += (model.score(scaled[test][:, strongest], y[test]),)
    assert {c.value: pytest.approx(c.scores) for c in result.candidates} == best
    loaded = featx.load(featx.save(result.best_estimator, tmp_path / "all.skops"))
    loaded[0].set_params(store=store).fit()
    assert (loaded.predict(store.X) == result.best_estimator.predict(store.X)).all()


def test_all_layers_at_once_compete_with_each_layer_of_each_store_and_come_last(store, pixels):
    result = select_model([store, pixels], layers=["all", "penultimate"], **quick("logistic_regression"))
    assert {c.layer for c in result.candidates} == {"all", store.layers[-1], *pixels.layers}
    backbones = [c.backbone for c in result.candidates if c.layer == "all"]
    assert sorted(set(backbones)) == ["bundled:pixels", "torchvision:squeezenet1_1"]


def test_one_layer_and_one_estimator_need_no_list(pixels, store):
    one, listed = (
        select_model(store, layers=layers, **quick("linear_svm") | {"estimators": estimators})
        for layers, estimators in [("penultimate", "linear_svm"), (["penultimate"], ["linear_svm"])]
    )
    assert [c.scores for c in one.candidates] == [c.scores for c in listed.candidates]
    assert {c.layer for c in one.candidates} == {"features.12.cat:avg"}


def test_stores_of_other_images_are_refused(root, store):
    later = extracted(root, "later", "later-pixels.h5", "bundled:pixels")
    with pytest.raises(KeysError, match="hold the same images; later-pixels.h5 lacks 'dark/"):
        select_model([store, later], **QUICK)


def test_the_same_seed_gives_the_same_answer_and_another_seed_another_split(pixels):
    options = quick("logistic_regression")
    one, again, other = (select_model(pixels, random_state=seed, **options) for seed in (0, 0, 1))
    assert [c.scores for c in one.candidates] == [c.scores for c in again.candidates]
    np.testing.assert_array_equal(one.test.predicted, again.test.predicted)
    assert set(one.test.X.ravel()) != set(other.test.X.ravel())


def test_two_processes_give_what_one_gives(pixels):
    options = quick("logistic_regression")
    one, two = (select_model(pixels, **options | {"n_jobs": n}) for n in (1, 2))
    assert [c.scores for c in one.candidates] == [c.scores for c in two.candidates]


def test_nothing_is_held_out_on_demand(pixels):
    found = select_model(pixels, holdout=HoldOut(0), **quick("logistic_regression"))
    assert found.training.n == 60
    assert found.test is found.held_out is found.held_out_interval is found.confusion is None
    assert not len(found.mistakes())


def test_labels_from_elsewhere_are_used(pixels):
    y = np.where(store_y := (pixels.y == "light"), "bright", "not")
    found = select_model(pixels, y, **quick("logistic_regression"))
    assert found.training.classes.tolist() == ["bright", "not"] and found.training.chance == pytest.approx(
        (~store_y).mean()
    )
    assert found.held_out > 0.9


def test_shuffled_labels_score_as_chance(store):
    y = np.random.default_rng(0).permutation(store.y)
    found = select_model(store, y, layers=["penultimate"], **quick("logistic_regression"))
    assert found.best.mean < 0.6


def test_keys_themselves_score_as_chance(root):
    """Who forgets StoredFeatures must not get an answer that looks like one."""
    images = make_images(root / "many", {"a": 30, "b": 120, "c": 220}, 60)
    many = extracted(root, images.name, "many.h5", "bundled:pixels")
    cv = StratifiedKFold(5, shuffle=True, random_state=0)
    for estimator in (SVC(), SVC(C=100), LogisticRegression()):
        pipe = make_pipeline(StandardScaler(), estimator)
        assert cross_val_score(pipe, many.X, many.y, cv=cv).mean() < 0.5
        with_rows = make_pipeline(StoredFeatures(many), StandardScaler(), SVC())
        assert cross_val_score(with_rows, many.X, many.y, cv=cv).mean() > 0.9


def test_progress_is_told_in_fits_and_with_the_candidates_of_the_layers_that_are_done(store):
    told = []
    found = select_model(
        store,
        on_progress=lambda now, ranked: told.append((now.done, now.total, list(ranked))),
        **quick("logistic_regression", "rbf_svm"),
    )
    assert {total for _, total, _ in told} == {2 * 4 * 3}  # layers, candidates of each, folds
    counts = [done for done, _, _ in told]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == 24 and 12 in counts
    assert list(dict.fromkeys(len(ranked) for _, _, ranked in told)) == [0, 4, 8]
    assert told[-1][2] == found.candidates


def test_the_default_grid_is_searched_whole(pixels):
    few = np.zeros(len(pixels), bool)
    few[::2] = True  # quick
    found = select_model(pixels, holdout=HoldOut(rows=few), folds=2, n_jobs=1)
    assert {(c.estimator, c.value) for c in found.candidates} == {
        (name, value)
        for name, family in ESTIMATORS.items()
        if not family.is_numeric and family.is_default
        for value in family.values
    }


def test_the_catalogue_names_parameters_of_its_estimators():
    for name, spec in ESTIMATORS.items():
        ordered = {*spec.simpler_if_small, *spec.simpler_if_large}
        assert ordered | {*spec.settings, *spec.unit_settings} <= new_estimator(spec).get_params().keys(), name
        assert not spec.parameter or spec.parameter in ordered, name


def test_every_mean_has_an_interval_around_it(store, selection):
    for c in selection.candidates:
        assert 0 <= c.interval.low <= c.mean <= c.interval.high <= 1
    assert selection.held_out_interval.low < selection.held_out < selection.held_out_interval.high


# --- what is refused ---


@pytest.mark.parametrize(
    "options, text",
    [
        ({}, "HoldOut takes one of size, rows and store; got none"),
        ({"size": 0.2, "rows": np.ones(60, bool)}, "HoldOut takes one of size, rows and store; got size and rows"),
        *(({"size": size}, "size is the share of images held out, from 0 to below 1; got ") for size in
          (1.0, 1.5, -0.1, np.nan, "0.2", [0.2], False)),
        ({"rows": [3, 7]}, "rows is True or False for each image; got an array of int64"),
        ({"rows": np.arange(60)}, "rows is True or False for each image; got an array of int64"),
        ({"rows": np.ones((60, 1), bool)}, "rows is True or False for each image; got array"),
        ({"rows": "split"}, "rows is True or False for each image; got 'split'"),
        ({"store": "later.h5"}, r"store is a featx.FeatureStore; got 'later.h5'; featx.FeatureStore\(path\) opens one"),
    ],
)  # fmt: skip
def test_a_hold_out_of_another_type_or_range_is_refused_when_it_is_made(options, text):
    with pytest.raises(FeatxError, match=text) as error:
        HoldOut(**options)
    message(error)


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"estimators": []}, FeatxError, "estimators is one or more of nearest_centroid, ridge_classifier"),
        ({"param_grid": {"random_forest": [1]}}, FeatxError, "param_grid: there is no estimator 'random_forest'"),
        ({"param_grid": {"rbf_svm": [0.0]}}, FeatxError, r"C of rbf_svm \(param_grid\) is .* numbers; got \[0.0\]"),
        (
            {"holdout": HoldOut(0.01)},
            FeatxError,
            "holding out 1% of 60 images needs images of each class on both sides",
        ),
        ({"folds": 30}, FeatxError, "30-fold cross-validation needs 30 training images of each class; 'dark' has 16"),
        ({"folds": 1}, FeatxError, "folds is an integer, 2 or more; got 1"),
        ({"holdout": HoldOut(rows=np.ones(60, bool))}, FeatxError, "must be some of the images, not all and not none"),
        ({"holdout": HoldOut(rows=np.arange(60) < 5), "y": ["a"] * 59}, StoreError, "has 60, got 59"),
        ({"holdout": HoldOut(rows=np.arange(59) < 5)}, FeatxError, r"\(rows=...\) is True or .* the 60 images; got 59"),
        ({"y": ["one"] * 60}, FeatxError, "at least two classes are needed.*only 'one'"),
        (
            {"y": np.linspace(0, 1, 60)},
            FeatxError,
            r"the labels are numbers, and rbf_svm \(estimators\) predicts classes; choose from ridge",
        ),
        ({"y": np.ones(60)}, FeatxError, "labels that differ; they are all 1"),
        ({"y": np.r_[np.inf, np.zeros(59)]}, StoreError, "finite"),
        ({"y": np.r_[np.nan, np.ones(59)]}, StoreError, r"every image needs a label \(y\); none is given for '"),
        ({"y": ["a", pd.NA] * 30}, StoreError, r"every image needs a label \(y\); none is given for '"),
        ({"y": set(range(60))}, StoreError, "y is one label per image, or a column; got {0, 1, "),
        ({"groups": np.r_[np.nan, np.arange(59)]}, StoreError, r"every image needs a group \(groups\); none is given"),
        ({"scoring": "acuracy"}, FeatxError, "scoring 'acuracy' is no score of classes; close: 'accuracy'"),
        ({"scoring": "r2"}, FeatxError, "scoring 'r2' is no score of classes"),
        ({"groups": "patient"}, StoreError, "has no column 'patient', and no others"),
        ({"repeats": 0}, FeatxError, "repeats is an integer, 1 or more; got 0"),
        ({"holdout": HoldOut}, FeatxError, "holdout is a featx.learn.HoldOut, HoldOut"),
        ({"holdout": 0.2}, FeatxError, "holdout is a featx.learn.HoldOut, .*got 0.2"),
        ({"steps": iter(["pca"])}, FeatxError, "each of steps is a transformer of scikit-learn; got 'pca'"),
        ({"steps": ["pca"]}, FeatxError, "each of steps is a transformer of scikit-learn; got 'pca'"),
        (
            {"estimators": ["knn"], "param_grid": {"knn": [500]}},
            FeatxError,
            "n_neighbors of knn .* at most the 32 images",
        ),
        (
            {"param_grid": {"linear_svm": [1.0]}},
            FeatxError,
            "param_grid has values for linear_svm, .*searched: rbf_svm",
        ),
        (
            {"estimators": ["nearest_centroid"], "param_grid": {"nearest_centroid": [1.0]}},
            FeatxError,
            "param_grid has values for nearest_centroid, which has no parameter to search",
        ),
        ({"y": ["a"] * 59 + [None]}, StoreError, r"every image needs a label \(y\); none is given for 'light/"),
        ({"groups": [1, 2] * 29 + [1, None]}, StoreError, r"every image needs a group \(groups\); none"),
        ({"estimators": ["ridge"]}, FeatxError, "the labels are classes, and ridge .estimators. predicts numbers"),
        ({"y": ["a"] * 59 + ["b"]}, FeatxError, r"'b' has 1: .*, or hold none out: holdout=HoldOut\(size=0\)"),
        (
            {"y": ["a"] * 59 + ["b"], "holdout": HoldOut(0)},
            FeatxError,
            "needs 3 training images of each class; 'b' has 1",
        ),
        ({"random_state": -1}, FeatxError, r"the seed \(random_state\) is an integer from 0 to .*; got -1"),
        ({"random_state": None}, FeatxError, "the seed .* got None"),
        ({"random_state": 0.5}, FeatxError, "the seed .* got 0.5"),
        ({"estimators": "rbf_swm"}, FeatxError, "there is no estimator 'rbf_swm'; close: 'rbf_svm'"),
        (
            {"layers": "featurs.3"},
            LayerError,
            "layer 'featurs.3' is not stored; close: 'features.3:max'.*; to add it: featx.extract.images, output=.*, "
            r"backbone='.*', layers=\['features.3:max', .*, 'featurs.3'\]",
        ),
        ({"y": np.logspace(0, 31, 60)}, FeatxError, r"numbers up to 1e\+30 in size.* from 1 to 1e\+31; multiply"),
        ({"y": 1e-150 * np.arange(60.0)}, FeatxError, "differ by 1e-100 or more; got numbers from 0 to 5.9e-149"),
        ({"y": "species"}, StoreError, "photos.h5 has no column 'species', and no others"),
        ({"y": np.arange(60)}, FeatxError, "to predict numbers, give them as floats"),
        ({"y": ["a"] * 30 + ["b"] * 30, "holdout": HoldOut(rows=np.arange(60) >= 30)}, FeatxError, "two classes"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused_in_a_line(store, options, error, text):
    with pytest.raises(error, match=text) as raised:
        select_model(store, **QUICK | {"estimators": ["rbf_svm"], "param_grid": None} | options)
    message(raised)


def test_a_store_without_labels_says_where_to_get_them(root):
    files = sorted((root / "photos" / "dark").iterdir())
    bare = featx.extract(files, root / "bare.h5", "bundled:pixels", device="cpu", progress=False)
    with pytest.raises(StoreError, match=r"bare.h5 has no labels; give them: y=store.align\('labels.csv'\)") as error:
        select_model(bare)
    message(error)


def test_learning_decodes_no_image(store, monkeypatch):
    monkeypatch.setattr(features, "_forward", lambda: pytest.fail("a network was asked for"))
    select_model(store, **quick("rbf_svm"))
