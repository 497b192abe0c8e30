"""The choice of a model: an honest grid search, and a score on images that the choice never saw."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from separable import separable_store
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, PowerTransformer, StandardScaler
from sklearn.svm import SVC

import featx
from featx import FeatureStore, Preprocessing
from featx.backbones import Backbone
from featx.errors import FeatxError, KeysError, LayerError, StoreError
from featx.learn import Interrupted, StoredFeatures, features, select_model
from featx.learn import LogisticRegression as OurLogisticRegression
from featx.learn import selection as selection_module
from featx.learn.grids import ESTIMATORS

C = {"logistic_regression": [1e-3, 1e-1], "rbf_svm": [0.1, 10.0], "linear_svm": [1e-3]}
QUICK = {"folds": 3, "n_jobs": 1, "C": C}


def network(**options) -> Backbone:
    return Backbone("squeezenet1_1", weights=None, preprocessing=Preprocessing((32, 32), 32, **options))


def make_images(root: Path, levels: dict[str, int], n: int, seed: int = 0) -> Path:
    """Grey noise around a level for each class."""
    rng = np.random.default_rng(seed)
    for name, level in levels.items():
        (root / name).mkdir(parents=True)
        for i in range(n):
            noise = rng.normal(level, 40, (20, 20, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(root / name / f"{i:02}.png")
    return root


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
    return select_model(store, estimators=["logistic_regression", "rbf_svm"], **QUICK)


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
        assert one.mean > other.mean or one.cost <= other.cost
    for c in selection.candidates:
        assert c.mean == pytest.approx(np.mean(c.scores)) and c.std == pytest.approx(np.std(c.scores))
        assert len(c.scores) == 3 and c.d == store[c.layer].shape[1] and c.backbone == "torchvision:squeezenet1_1"


def test_the_scores_are_a_plain_grid_searchs(store, selection):
    held_out = set(selection.X_test.ravel().tolist())
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
    held_out = set(selection.X_test.ravel().tolist())
    train = np.array([key not in held_out for key in store.X.ravel().tolist()])
    assert selection.n_train == train.sum() == 48 and len(held_out) == 12
    assert dict(zip(*np.unique(selection.y_test, return_counts=True), strict=True)) == dict.fromkeys(LEVELS, 4)
    classifier = {"logistic_regression": LogisticRegression(max_iter=1000), "rbf_svm": SVC()}[best.estimator]
    again = make_pipeline(StandardScaler(), classifier.set_params(C=best.value))
    again.fit(np.array(store[best.layer])[train], store.y[train])
    rows = store.rows(selection.X_test)
    np.testing.assert_array_equal(selection.y_test, store.y[rows])
    np.testing.assert_array_equal(selection.predicted, again.predict(np.array(store[best.layer])[rows]))
    np.testing.assert_array_equal(selection.best_estimator.predict(selection.X_test), selection.predicted)
    assert selection.held_out == accuracy_score(selection.y_test, selection.predicted)
    p = selection.held_out
    assert selection.held_out_error == pytest.approx((p * (1 - p) / 12) ** 0.5)
    assert selection.confusion.sum() == 12 and np.trace(selection.confusion) == round(12 * p)
    assert selection.confusion.sum(1).tolist() == [4, 4, 4]
    assert selection.chance == pytest.approx(1 / 3) and selection.classes.tolist() == sorted(LEVELS)


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
    found = select_model(store, estimators=["logistic_regression"], layers=["penultimate"], **QUICK)
    held_out = set(found.X_test.ravel().tolist())
    assert len(asked) > 1 and asked[-1] == held_out
    assert all(not keys & held_out for keys in asked[:-1])
    assert len(set().union(*asked[:-1])) == found.n_train


def test_test_rows_are_held_out(store, asked):
    test = np.zeros(len(store), bool)
    test[[0, 7, 25, 40, 59]] = True
    found = select_model(store, estimators=["logistic_regression"], layers=["features.3"], test_rows=test, **QUICK)
    np.testing.assert_array_equal(found.X_test, store.X[test])
    np.testing.assert_array_equal(found.y_test, store.y[test])
    assert found.n_train == 55 and all(not keys & set(store.X[test].ravel()) for keys in asked[:-1])


def test_a_store_of_its_own_is_held_out(root, store):
    later = extracted(root, "later", "later.h5", network(), ["features.3:max", "penultimate"])
    found = select_model(store, test_store=later, estimators=["logistic_regression"], **QUICK)
    assert found.n_train == 60 and found.test_store is later
    np.testing.assert_array_equal(found.X_test, later.X)
    np.testing.assert_array_equal(found.y_test, later.y)
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=found.best.value, max_iter=1000))
    plain.fit(np.array(store[found.best.layer]), store.y)
    np.testing.assert_array_equal(found.predicted, plain.predict(np.array(later[found.best.layer])))
    assert found.best_estimator[0].store is store


def test_a_test_store_made_otherwise_is_refused(root, store):
    other = extracted(root, "later", "otherwise.h5", network(mean=(0.1, 0.2, 0.3)), ["features.3:max", "penultimate"])
    with pytest.raises(StoreError, match="the test store was made otherwise: preprocessing") as error:
        select_model(store, test_store=other, estimators=["logistic_regression"], **QUICK)
    message(error)


def test_a_test_store_with_training_images_is_refused(root, store):
    """Under other names too: it is the content that counts."""
    photo = next(iter(Path(store.recipe.origin).rglob("*.png")))
    (root / "mixed" / "dark").mkdir(parents=True)
    shutil.copy(photo, root / "mixed" / "dark" / "another name.png")
    mixed = extracted(root, "mixed", "mixed.h5", network(), ["features.3:max", "penultimate"])
    with pytest.raises(FeatxError, match="1 of the 1 test images are training images too"):
        select_model(store, test_store=mixed, **QUICK)


def test_a_test_store_with_another_class_is_refused(root, store):
    make_images(root / "strange", {"dark": 60, "unheard": 200}, 2, seed=9)
    strange = extracted(root, "strange", "strange.h5", network(), ["features.3:max", "penultimate"])
    with pytest.raises(FeatxError, match="classes that the training images have not: 'unheard'"):
        select_model(store, test_store=strange, estimators=["logistic_regression"], **QUICK)


def test_stores_of_the_same_images_compete(store, pixels):
    found = select_model([store, pixels], estimators=["logistic_regression"], **QUICK)
    assert {(c.backbone, c.layer) for c in found.candidates} == {
        ("torchvision:squeezenet1_1", "features.3:max"),
        ("torchvision:squeezenet1_1", "features.12.cat:avg"),
        ("bundled:pixels", "flatten:none"),
    }
    alone = select_model(pixels, estimators=["logistic_regression"], **QUICK)
    assert [c.scores for c in found.candidates if c.backbone == "bundled:pixels"] == [
        c.scores for c in alone.candidates
    ]
    np.testing.assert_array_equal(found.X_test, alone.X_test)


def test_stores_of_other_images_are_refused(root, store):
    later = extracted(root, "later", "later-pixels.h5", "bundled:pixels")
    with pytest.raises(KeysError, match="are not in later-pixels.h5"):
        select_model([store, later], **QUICK)


def test_the_same_seed_gives_the_same_answer_and_another_seed_another_split(pixels):
    options = QUICK | {"estimators": ["logistic_regression"]}
    one, again, other = (select_model(pixels, random_state=seed, **options) for seed in (0, 0, 1))
    assert [c.scores for c in one.candidates] == [c.scores for c in again.candidates]
    np.testing.assert_array_equal(one.predicted, again.predicted)
    assert set(one.X_test.ravel()) != set(other.X_test.ravel())


def test_two_processes_give_what_one_gives(pixels):
    options = QUICK | {"estimators": ["logistic_regression"]}
    one, two = (select_model(pixels, **options | {"n_jobs": n}) for n in (1, 2))
    assert [c.scores for c in one.candidates] == [c.scores for c in two.candidates]


def test_nothing_is_held_out_on_demand(pixels):
    found = select_model(pixels, test_size=0, estimators=["logistic_regression"], **QUICK)
    assert found.n_train == 60
    assert found.X_test is found.y_test is found.predicted is found.held_out is found.confusion is None


def test_labels_from_elsewhere_are_used(pixels):
    y = np.where(store_y := (pixels.y == "light"), "bright", "not")
    found = select_model(pixels, y, estimators=["logistic_regression"], **QUICK)
    assert found.classes.tolist() == ["bright", "not"] and found.chance == pytest.approx((~store_y).mean())
    assert found.held_out > 0.9


def test_shuffled_labels_score_as_chance(store):
    y = np.random.default_rng(0).permutation(store.y)
    found = select_model(store, y, estimators=["logistic_regression"], layers=["penultimate"], **QUICK)
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
        estimators=["logistic_regression", "rbf_svm"],
        on_progress=lambda done, total, ranked: told.append((done, total, list(ranked))),
        **QUICK,
    )
    assert {total for _, total, _ in told} == {2 * 4 * 3}  # layers, candidates of each, folds
    counts = [done for done, _, _ in told]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == 24 and 12 in counts
    assert list(dict.fromkeys(len(ranked) for _, _, ranked in told)) == [0, 4, 8]
    assert told[-1][2] == found.candidates


def test_the_default_grid_is_searched_whole(pixels):
    few = np.zeros(len(pixels), bool)
    few[::2] = True  # quick
    found = select_model(pixels, test_rows=few, folds=2, n_jobs=1)
    assert {(c.estimator, c.value) for c in found.candidates} == {
        (name, value)
        for name, family in ESTIMATORS.items()
        if not family.is_numeric and family.is_default
        for value in family.values
    }


def test_the_estimators_of_the_table_are_not_fitted_themselves(selection):
    for family in ESTIMATORS.values():
        assert not hasattr(family.estimator, "classes_")


# --- honesty ---

LINEAR = {"estimators": ["logistic_regression"], "folds": 3, "n_jobs": 1, "C": {"logistic_regression": [1e-3, 1e-1]}}


@pytest.fixture
def split_keys(monkeypatch) -> list[tuple[set[int], set[int]]]:
    """(keys trained on, keys tested on) of every split of every search."""
    seen: list[tuple[set[int], set[int]]] = []
    fit = selection_module.GridSearchCV.fit

    def recording(self, X, y=None, **params):
        seen.extend((set(X[train].ravel()), set(X[test].ravel())) for train, test in self.cv)
        return fit(self, X, y, **params)

    monkeypatch.setattr(selection_module.GridSearchCV, "fit", recording)
    return seen


def test_neither_groups_nor_twins_are_ever_parted(tmp_path, split_keys):
    rng = np.random.default_rng(0)
    contents = np.arange(120)
    contents[rng.permutation(120)[:20]] = contents[rng.permutation(120)[:20]]
    patients = np.array([f"p{i}" for i in rng.integers(40, size=120)])
    store = separable_store(tmp_path / "a.h5", 120, contents=contents, columns={"patient": patients})
    found = select_model(store, groups="patient", nested=True, repeats=2, **LINEAR)
    assert found.n_groups == len(set(patients)) and found.n_duplicates == sum(map(len, store.duplicates)) > 10
    held_out, trained = set(found.X_test.ravel()), set.union(*(train for train, _ in split_keys))
    assert len(split_keys) == (1 + 3) * 2 * 2 * 3 and len(held_out) + found.n_train == 120
    for train, test in [*split_keys, (trained, held_out)]:
        (one, other) = (store.rows(np.array(sorted(keys))) for keys in (train, test))
        assert not set(patients[one]) & set(patients[other]) and not set(contents[one]) & set(contents[other])


def test_twins_flatter_and_are_parted_only_when_asked_to(tmp_path):
    """Noise, each image five times: who has seen a twin knows the answer."""
    contents = np.repeat(np.arange(30), 5)
    y = np.random.default_rng(0).permutation(list("ab" * 15))[contents]
    store = separable_store(tmp_path / "a.h5", 150, y=y, contents=contents, noise={"noise:avg": 50.0}, d=40)
    options = LINEAR | {"C": {"logistic_regression": [10.0]}}
    honest, flattered = select_model(store, **options), select_model(store, allow_duplicates=True, **options)
    assert honest.held_out < 0.75 and honest.best.mean < 0.75
    assert flattered.held_out > 0.9 and flattered.best.mean > 0.9
    assert (honest.n_duplicates, flattered.n_duplicates) == (150, 0)


def test_held_out_rows_that_part_twins_or_groups_are_refused(tmp_path):
    contents = np.r_[np.arange(59), 0]
    store = separable_store(tmp_path / "a.h5", 60, contents=contents, y=np.array(list("ab" * 30)))
    half = np.arange(60) < 30
    with pytest.raises(FeatxError, match="1 images are both held out and trained on"):
        select_model(store, test_rows=half, **LINEAR)
    assert select_model(store, test_rows=half, allow_duplicates=True, **LINEAR).n_train == 30
    with pytest.raises(FeatxError, match="hold out whole groups"):
        select_model(store, test_rows=half, allow_duplicates=True, groups=np.arange(60) % 10, **LINEAR)
    with pytest.raises(FeatxError, match=r"groups has one value an image: a.h5 has 60, got \(59,\)"):
        select_model(store, groups=np.arange(59), **LINEAR)


def test_nested_scores_are_those_of_searches_inside_the_training_images(tmp_path):
    store = separable_store(tmp_path / "a.h5", 90)
    found = select_model(store, nested=True, **LINEAR)
    held_out = np.isin(store.X.ravel(), found.X_test.ravel())
    X, y = store.X[~held_out], store.y[~held_out]
    outer = StratifiedKFold(3, shuffle=True, random_state=0)
    scores = []
    for train, test in outer.split(X, y):
        steps = [StoredFeatures(store), StandardScaler(), OurLogisticRegression(max_iter=1000)]
        grid = {"storedfeatures__layer": list(store.layers), "logisticregression__C": [1e-3, 1e-1]}
        search = GridSearchCV(make_pipeline(*steps), grid, cv=outer).fit(X[train], y[train])
        scores.append(search.best_estimator_.score(X[test], y[test]))
    assert found.nested.scores == pytest.approx(scores)
    assert found.nested.folds == len(found.nested.chosen) == 3
    assert found.nested.interval.low <= found.nested.mean <= found.nested.interval.high
    assert found.candidates == [replace(c, fit_seconds=a.fit_seconds) for c, a in zip(
        select_model(store, **LINEAR).candidates, found.candidates, strict=True)]  # fmt: skip


def test_nested_scores_see_through_a_lucky_winner(tmp_path):
    """Of many layers of noise the best looks better than chance; the procedure is worth no more than that."""
    store = separable_store(
        tmp_path / "a.h5", 60, y=np.array(list("ab" * 30)), noise={f"n{i}:avg": 1e4 for i in range(6)}
    )
    found = select_model(store, nested=True, test_size=0, **LINEAR)
    assert found.best.mean > 0.6 and found.nested.mean < found.best.mean - 0.05


def test_one_standard_error_takes_the_cheapest_that_is_as_good_and_says_so_else(tmp_path):
    store = separable_store(tmp_path / "a.h5", 90, noise={"one:avg": 1.0, "two:avg": 1.0, "bad:avg": 30.0})
    layers = [["one", "two"], "one", "two", "bad"]
    usual, frugal = (select_model(store, layers=layers, one_se=one_se, **LINEAR) for one_se in (False, True))
    assert [c.scores for c in usual.candidates] == [c.scores for c in frugal.candidates]
    lowest = usual.best.mean - np.std(usual.best.scores, ddof=1) / np.sqrt(3)
    near = [c for c in usual.candidates if c.mean >= lowest]
    cheapest = min(near, key=lambda c: c.cost)
    assert len(near) > 1 and cheapest.d == 6 and frugal.chosen.cost == cheapest.cost and frugal.cheaper is None
    assert usual.chosen is usual.best and usual.cheaper is (cheapest if cheapest is not usual.best else None)
    assert frugal.best_estimator["features"].layer_ == frugal.chosen.layer
    assert frugal.best_estimator["estimator"].C == frugal.chosen.value


def test_every_mean_has_an_interval_around_it(store, selection):
    for c in selection.candidates:
        assert 0 <= c.interval.low <= c.mean <= c.interval.high <= 1
    assert selection.held_out_interval.low < selection.held_out < selection.held_out_interval.high or (
        selection.held_out == 1
    )


def test_repeats_add_splits(tmp_path):
    store = separable_store(tmp_path / "a.h5")
    once, twice = (select_model(store, repeats=repeats, **LINEAR) for repeats in (1, 2))
    assert {len(c.scores) for c in once.candidates} == {3} and {len(c.scores) for c in twice.candidates} == {6}
    scores = {(c.layer, c.value): c.scores for c in once.candidates}
    assert all(c.scores[:3] == scores[c.layer, c.value] for c in twice.candidates)


# --- numbers, steps, estimators, scores ---


def test_numbers_are_predicted_as_numbers(tmp_path):
    y = np.random.default_rng(0).normal(40, 15, 90)
    store = separable_store(tmp_path / "a.h5", 90, y=y, noise={"good:avg": 5.0, "poor:avg": 500.0})
    found = select_model(store, folds=3, n_jobs=1)
    assert {c.estimator for c in found.candidates} == {"ridge", "svr"} and found.best.layer == "good:avg"
    assert found.classes is None and found.confusion is None and found.scoring == "r2" and found.chance == 0
    assert 0.8 < found.held_out < 1 and found.held_out_interval.low < found.held_out < found.held_out_interval.high
    error = np.abs(found.y_test - found.best_estimator.predict(found.X_test))
    assert found.held_out_mae == pytest.approx(error.mean()) and found.best.mae == pytest.approx(error.mean(), rel=0.5)
    assert found.mistakes().tolist() == np.argsort(-error).tolist()
    by_error = select_model(store, folds=3, n_jobs=1, scoring="neg_mean_absolute_error", estimators=["ridge"])
    assert by_error.best.mean == pytest.approx(-by_error.best.mae) and by_error.held_out == -by_error.held_out_mae


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_the_units_of_the_labels_do_not_matter_to_svr(tmp_path, unit):
    y = np.random.default_rng(0).normal(40, 15, 60)
    store = separable_store(tmp_path / "a.h5", 60, y=y, noise={"good:avg": 5.0})
    one, other = (select_model(store, labels, estimators=["svr"], folds=3, n_jobs=1) for labels in (y, unit * y))
    assert one.held_out > 0.6 and other.held_out == pytest.approx(one.held_out, abs=1e-6)
    assert [c.value for c in other.candidates] == pytest.approx([unit * c.value for c in one.candidates])


def test_steps_between_features_and_scaler_are_fitted_in_each_fold(tmp_path):
    store = separable_store(tmp_path / "a.h5", 90, noise={"one:avg": 1.0})
    found = select_model(store, l2=True, power=True, pca=4, **LINEAR)
    assert found.steps == ("l2", "power", "pca 4")
    assert [name for name, _ in found.best_estimator.steps] == ["features", "l2", "power", "pca", "scaler", "estimator"]
    held_out = np.isin(store.X.ravel(), found.X_test.ravel())
    steps = [Normalizer(), PowerTransformer(), PCA(4, random_state=0), StandardScaler()]
    pipe = make_pipeline(*steps, OurLogisticRegression(C=0.1, max_iter=1000))
    cv = StratifiedKFold(3, shuffle=True, random_state=0)
    plain = cross_val_score(pipe, np.array(store["one:avg"])[~held_out], store.y[~held_out], cv=cv)
    (c,) = [c for c in found.candidates if c.value == 0.1]
    assert c.scores == pytest.approx(plain.tolist()) and c.d == 6


def test_a_pca_keeps_as_many_components_as_there_are(tmp_path):
    store = separable_store(tmp_path / "a.h5", 30, noise={"one:avg": 1.0}, d=80)
    assert select_model(store, pca=256, **LINEAR).best_estimator["pca"].n_components == 16  # of 24 in 3 folds


def test_other_estimators_compete_when_they_are_named(tmp_path):
    store = separable_store(tmp_path / "a.h5", 90)
    names = ["nearest_centroid", "ridge_classifier", "knn"]
    found = select_model(store, estimators=names, folds=3, n_jobs=1, scoring="balanced_accuracy")
    assert {(c.estimator, c.parameter) for c in found.candidates} == {
        ("nearest_centroid", ""), ("ridge_classifier", "alpha"), ("knn", "n_neighbors")
    }  # fmt: skip
    assert {c.value for c in found.candidates if c.estimator == "knn"} == {1, 5, 10, 20}  # 50 would be more than a fold
    assert found.held_out == pytest.approx(balanced_accuracy_score(found.y_test, found.predicted))
    for name in names:
        alone = select_model(store, estimators=[name], folds=3, n_jobs=1)
        assert alone.confidence is not None and alone.held_out > 0.6


# --- interrupted ---


@pytest.fixture
def interrupted(monkeypatch):
    """`interrupted(2, keep)`: the third search gets Ctrl-C; with `keep`, after candidates that were through."""

    def at(number: int, keep: bool = False) -> None:
        fit, calls = selection_module.GridSearchCV.fit, iter(range(100))

        def stopped(self, X, y=None, **params):
            here = next(calls)
            if here == number and not keep:
                raise KeyboardInterrupt
            fit(self, X, y, **params)
            if here == number:
                kept = [0]
                self.partial_results_ = {
                    key: [value[i] for i in kept] if key == "params" else np.asarray(value)[kept]
                    for key, value in self.cv_results_.items()
                }
                raise KeyboardInterrupt
            return self

        monkeypatch.setattr(selection_module.GridSearchCV, "fit", stopped)

    return at


def test_an_interrupted_search_keeps_the_layers_that_were_done(tmp_path, interrupted):
    store = separable_store(tmp_path / "a.h5")
    whole = select_model(store, **LINEAR)
    interrupted(1)
    with pytest.raises(Interrupted) as raised:
        select_model(store, nested=True, **LINEAR)
    left = raised.value.selection
    assert left.is_partial and left.best_estimator is None and left.held_out is None and left.nested is None
    assert len({c.layer for c in left.candidates}) == 1 and len(left.candidates) == 2
    scores = {(c.layer, c.value): c.scores for c in whole.candidates}
    assert all(c.scores == scores[c.layer, c.value] for c in left.candidates)


def test_candidates_of_the_layer_that_was_on_are_kept_too(tmp_path, interrupted):
    interrupted(1, keep=True)
    with pytest.raises(Interrupted) as raised:
        select_model(separable_store(tmp_path / "a.h5"), **LINEAR)
    assert len(raised.value.selection.candidates) == 3


def test_interrupted_before_anything_was_done_there_is_nothing_to_keep(tmp_path, interrupted):
    interrupted(0)
    with pytest.raises(KeyboardInterrupt) as raised:
        select_model(separable_store(tmp_path / "a.h5"), **LINEAR)
    assert not isinstance(raised.value, Interrupted)


def test_interrupted_in_the_nested_part_the_selection_is_whole(tmp_path, interrupted):
    interrupted(2 + 2)  # two layers, and both in the first outer split
    with pytest.raises(Interrupted) as raised:
        select_model(separable_store(tmp_path / "a.h5"), nested=True, **LINEAR)
    left = raised.value.selection
    assert not left.is_partial and left.held_out is not None and left.best_estimator is not None
    assert len(left.nested.scores) == 1 and left.nested.folds == 3


# --- what is refused ---


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"estimators": ["logistic_regresion"]}, FeatxError, "close: 'logistic_regression'"),
        ({"estimators": []}, FeatxError, "name at least one estimator of nearest_centroid, ridge_classifier"),
        ({"C": {"random_forest": [1]}}, FeatxError, "there is no estimator 'random_forest'"),
        ({"C": {"rbf_svm": []}}, FeatxError, "C is one or more positive numbers"),
        ({"C": {"rbf_svm": [0.0]}}, FeatxError, "C is one or more positive numbers"),
        ({"layers": ["featurs.3"]}, LayerError, "layer 'featurs.3' is not stored; close: 'features.3:max'"),
        ({"test_size": 1.0}, FeatxError, "test_size is the share of images held out"),
        ({"test_size": -0.1}, FeatxError, "test_size is the share of images held out"),
        ({"test_size": 0.01}, FeatxError, "holding out 1% of 60 images"),
        ({"folds": 30}, FeatxError, "30-fold cross-validation needs 30 training images of each class; 'dark' has 16"),
        ({"folds": 1}, FeatxError, "folds"),
        ({"test_rows": np.ones(60, bool)}, FeatxError, "must be some of the images, not all and not none"),
        ({"test_rows": np.zeros(60, bool)}, FeatxError, "must be some of the images, not all and not none"),
        ({"test_rows": np.arange(60) < 5 * np.ones(59 + 1), "y": ["a"] * 59}, StoreError, "has 60, got 59"),
        ({"test_rows": np.arange(59) < 5}, FeatxError, "60"),
        ({"y": ["one"] * 60}, FeatxError, "at least two classes are needed.*only 'one'"),
        (
            {"y": np.linspace(0, 1, 60)},
            FeatxError,
            "the labels are numbers, and rbf_svm predicts classes; choose of ridge",
        ),
        ({"y": np.ones(60)}, FeatxError, "labels that differ; they are all 1"),
        ({"y": np.r_[np.nan, np.ones(59)]}, StoreError, "finite"),
        ({"scoring": "acuracy"}, FeatxError, "no score 'acuracy' of classes; close: 'accuracy'"),
        ({"scoring": "r2"}, FeatxError, "no score 'r2' of classes"),
        ({"groups": "patient"}, StoreError, "it has no 'patient'; it has none"),
        ({"repeats": 0}, FeatxError, "got repeats=0"),
        ({"pca": 0}, FeatxError, "pca is how many components are kept, 1 or more; got 0"),
        ({"estimators": ["knn"], "C": {"knn": [500]}}, FeatxError, "n_neighbors is at most the 32 images"),
        ({"estimators": ["ridge"]}, FeatxError, "the labels are classes, and ridge predicts numbers"),
        ({"y": ["a"] * 59 + ["b"]}, FeatxError, "'b' has 1: add images, or test_size=0"),
        ({"y": ["a"] * 59 + ["b"], "test_size": 0}, FeatxError, "needs 3 training images of each class; 'b' has 1"),
        ({"y": ["a"] * 30 + ["b"] * 30, "test_rows": np.arange(60) >= 30}, FeatxError, "two classes"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused_in_a_line(store, options, error, text):
    with pytest.raises(error, match=text) as raised:
        select_model(store, **QUICK | {"estimators": ["rbf_svm"], "C": None} | options)
    message(raised)


def test_a_store_without_labels_says_where_to_get_them(root):
    files = sorted((root / "photos" / "dark").iterdir())
    bare = featx.extract(files, root / "bare.h5", "bundled:pixels", device="cpu", progress=False)
    with pytest.raises(StoreError, match=r"bare.h5 has no labels; give them: y=store.align\('labels.csv'\)") as error:
        select_model(bare)
    message(error)


def test_learning_decodes_no_image(store, monkeypatch):
    monkeypatch.setattr(features, "_forward", lambda: pytest.fail("a network was asked for"))
    select_model(store, estimators=["rbf_svm"], **QUICK)
