"""The choice of a model: what belongs together stays on one side, what was done is kept, numbers are numbers too."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from separable import separable_store
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, PolynomialFeatures, PowerTransformer, StandardScaler

from featx.errors import FeatxError, StoreError
from featx.learn import HoldOut, Interrupted, LogisticRegression, StoredFeatures, select_model
from featx.learn.scores.intervals import wilson
from featx.learn.selection import selection as selection_module
from featx.report import results_json, selection_text

LINEAR = {
    "estimators": ["logistic_regression"],
    "folds": 3,
    "n_jobs": 1,
    "param_grid": {"logistic_regression": [1e-3, 1e-1]},
}


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
    assert (
        found.training.n_groups == len(set(patients))
        and found.training.n_duplicates == sum(map(len, store.duplicates)) > 10
    )
    held_out, trained = set(found.test.X.ravel()), set.union(*(train for train, _ in split_keys))
    assert len(split_keys) == (1 + 3) * 2 * 2 * 3 and len(held_out) + found.training.n == 120
    for train, test in [*split_keys, (trained, held_out)]:
        (one, other) = (store.rows(np.array(sorted(keys))) for keys in (train, test))
        assert not set(patients[one]) & set(patients[other]) and not set(contents[one]) & set(contents[other])


def test_twins_flatter_and_are_parted_only_when_asked_to(tmp_path):
    """Noise, each image five times: who has seen a twin knows the answer."""
    contents = np.repeat(np.arange(30), 5)
    y = np.random.default_rng(0).permutation(list("ab" * 15))[contents]
    store = separable_store(tmp_path / "a.h5", 150, y=y, contents=contents, noise={"noise:avg": 50.0}, d=40)
    options = LINEAR | {"param_grid": {"logistic_regression": [10.0]}}
    honest, flattered = select_model(store, **options), select_model(store, allow_duplicates=True, **options)
    assert honest.held_out < 0.75 and honest.best.mean < 0.75
    assert flattered.held_out > 0.9 and flattered.best.mean > 0.9
    assert (honest.training.n_duplicates, flattered.training.n_duplicates) == (150, 0)


def test_held_out_rows_that_part_twins_or_groups_are_refused(tmp_path):
    contents = np.r_[np.arange(59), 0]
    store = separable_store(tmp_path / "a.h5", 60, contents=contents, y=np.array(list("ab" * 30)))
    half = np.arange(60) < 30
    with pytest.raises(FeatxError, match="1 images are both held out and trained on"):
        select_model(store, holdout=HoldOut(rows=half), **LINEAR)
    assert select_model(store, holdout=HoldOut(rows=half), allow_duplicates=True, **LINEAR).training.n == 30
    with pytest.raises(FeatxError, match="hold out whole groups"):
        select_model(store, holdout=HoldOut(rows=half), allow_duplicates=True, groups=np.arange(60) % 10, **LINEAR)
    with pytest.raises(FeatxError, match="groups is one group per image: a.h5 has 60, got 59"):
        select_model(store, groups=np.arange(59), **LINEAR)


def test_nested_scores_are_those_of_searches_inside_the_training_images(tmp_path):
    store = separable_store(tmp_path / "a.h5", 90)
    found = select_model(store, nested=True, **LINEAR)
    held_out = np.isin(store.X.ravel(), found.test.X.ravel())
    X, y = store.X[~held_out], store.y[~held_out]
    outer = StratifiedKFold(3, shuffle=True, random_state=0)
    scores = []
    for train, test in outer.split(X, y):
        steps = [StoredFeatures(store), StandardScaler(), LogisticRegression(max_iter=1000)]
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
    found = select_model(store, nested=True, holdout=HoldOut(0), **LINEAR)
    assert found.best.mean > 0.6 and found.nested.mean < found.best.mean - 0.05


def test_one_standard_error_takes_the_cheapest_that_is_as_good_and_says_so_else(tmp_path):
    store = separable_store(tmp_path / "a.h5", 90, noise={"one:avg": 1.0, "two:avg": 1.0, "bad:avg": 30.0})
    layers = [["one", "two"], "one", "two", "bad"]
    usual, frugal = (select_model(store, layers=layers, one_se=one_se, **LINEAR) for one_se in (False, True))
    assert [c.scores for c in usual.candidates] == [c.scores for c in frugal.candidates]
    lowest = usual.best.mean - np.std(usual.best.scores, ddof=1) / np.sqrt(3)
    near = [c for c in usual.candidates if c.mean >= lowest]
    cheapest = min(near, key=lambda c: c.complexity)
    assert (
        len(near) > 1 and cheapest.d == 6 and frugal.chosen.complexity == cheapest.complexity and frugal.simpler is None
    )
    assert usual.chosen is usual.best and usual.simpler is (cheapest if cheapest is not usual.best else None)
    assert frugal.best_estimator["features"].layer_ == frugal.chosen.layer
    assert frugal.best_estimator["estimator"].C == frugal.chosen.value


def test_repeats_add_splits(tmp_path):
    store = separable_store(tmp_path / "a.h5")
    once, twice = (select_model(store, repeats=repeats, **LINEAR) for repeats in (1, 2))
    assert {len(c.scores) for c in once.candidates} == {3} and {len(c.scores) for c in twice.candidates} == {6}
    scores = {(c.layer, c.value): c.scores for c in once.candidates}
    assert all(c.scores[:3] == scores[c.layer, c.value] for c in twice.candidates)


def test_scores_without_a_spread_have_the_images_interval(tmp_path):
    store = separable_store(tmp_path / "a.h5", 90, noise={"good:avg": 0.01})
    found = select_model(store, nested=True, repeats=2, **LINEAR)
    n = found.training.n
    assert found.best.scores == (1.0,) * 6 and found.best.interval == pytest.approx(wilson(1.0, n))
    assert found.nested.interval == pytest.approx(wilson(1.0, n))
    by_f1 = select_model(store, scoring="f1_macro", nested=True, **LINEAR)
    assert np.isnan(by_f1.best.interval).all() and np.isnan(by_f1.nested.interval).all()
    assert "1.000 over 3 splits" in str(by_f1)


def test_what_is_printed_is_read_by_a_person(tmp_path):
    store = separable_store(tmp_path / "a.h5", 90)
    found = select_model(store, nested=True, **LINEAR)
    best = found.best
    low, high = best.interval
    setting = f"good:avg of torchvision:resnet18, logistic_regression, C = {best.value:g}"
    assert str(best) == repr(best) == f"{setting}: {best.mean:.3f} [{low:.3f}, {high:.3f}]"
    lines = str(found).splitlines()
    assert lines[0] == "4 candidates by 3-fold accuracy on 72 training images (chance 0.333)"
    assert lines[1] == f"best: {best}" and repr(found) == str(found)
    (low, high), score = found.nested.interval, found.nested.mean
    assert lines[2] == f"nested: {score:.3f} [{low:.3f}, {high:.3f}] over 3 splits"
    (low, high), score = found.held_out_interval, found.held_out
    assert lines[3:] == [f"held out: {score:.3f} [{low:.3f}, {high:.3f}] on 18 images"]
    bare = replace(found, nested=None, test=None, chosen=found.candidates[-1], is_partial=True)
    first, *rest = str(bare).splitlines()
    assert first.endswith("interrupted") and rest == [f"chosen: {bare.chosen}"]


# --- numbers, steps, estimators, scores ---


def test_numbers_are_predicted_as_numbers(tmp_path):
    y = np.random.default_rng(0).normal(40, 15, 90)
    store = separable_store(tmp_path / "a.h5", 90, y=y, noise={"good:avg": 5.0, "poor:avg": 500.0})
    found = select_model(store, folds=3, n_jobs=1)
    assert {c.estimator for c in found.candidates} == {"ridge", "svr"} and found.best.layer == "good:avg"
    assert (
        found.training.classes is None
        and found.confusion is None
        and found.settings.scoring == "r2"
        and found.training.chance == 0
    )
    assert 0.8 < found.held_out < 1 and found.held_out_interval.low < found.held_out < found.held_out_interval.high
    error = np.abs(found.test.y - found.best_estimator.predict(found.test.X))
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
    found = select_model(store, steps=[Normalizer(), PowerTransformer(), PCA(4, random_state=0)], **LINEAR)
    assert found.settings.steps == ("l2", "power", "pca 4")
    assert [name for name, _ in found.best_estimator.steps] == [
        "features",
        "normalizer",
        "powertransformer",
        "pca",
        "scaler",
        "estimator",
    ]
    held_out = np.isin(store.X.ravel(), found.test.X.ravel())
    steps = [Normalizer(), PowerTransformer(), PCA(4, random_state=0), StandardScaler()]
    pipe = make_pipeline(*steps, LogisticRegression(C=0.1, max_iter=1000))
    cv = StratifiedKFold(3, shuffle=True, random_state=0)
    plain = cross_val_score(pipe, np.array(store["one:avg"])[~held_out], store.y[~held_out], cv=cv)
    (c,) = [c for c in found.candidates if c.value == 0.1]
    assert c.scores == pytest.approx(plain.tolist()) and c.d == 6


def test_a_pca_keeps_as_many_components_as_there_are(tmp_path):
    store = separable_store(tmp_path / "a.h5", 30, noise={"one:avg": 1.0}, d=80)
    found = select_model(store, steps=[PCA(256, random_state=0)], **LINEAR)
    assert found.best_estimator["pca"].n_components == 15  # 16 of 24 images in 3 folds, centred
    assert found.settings.steps == ("pca 256 (15 kept, all there are)",)
    assert found.best.mean > 0.9  # a component of rounding, scaled up, leaves chance


def test_what_a_pca_kept_of_narrower_layers_is_said_and_is_what_costs(tmp_path):
    store = separable_store(tmp_path / "a.h5", 90, noise={"one:avg": 1.0, "two:avg": 1.0})
    found = select_model(store, layers=["one", ["one", "two"]], steps=[PCA(8, random_state=0)], **LINEAR)
    assert found.settings.steps == ("pca 8 (6 to 8 kept, all there are)",)
    assert {(c.d, c.complexity[0]) for c in found.candidates} == {(6, 6), (12, 8)}


@pytest.mark.parametrize(
    "before, kept",
    [
        (PCA(3), 3),
        (make_pipeline(Normalizer(), PCA(3)), 3),
        (SelectKBest(k=2), 2),
        (PCA(0.9), 5),
        (Normalizer(), 6),
        (PolynomialFeatures(interaction_only=True), 8),
    ],
)
def test_a_pca_keeps_at_most_the_columns_that_the_step_before_gives(tmp_path, before, kept):
    store = separable_store(tmp_path / "a.h5", 90, noise={"one:avg": 1.0})
    found = select_model(store, steps=[before, PCA(8, random_state=0)], **LINEAR)
    assert found.best_estimator.steps[2][1].n_components == kept and np.isfinite(found.best.mean)
    assert found.settings.steps[1] == ("pca 8" if kept == 8 else f"pca 8 ({kept} kept, all there are)")


def test_steps_may_have_the_names_of_other_steps_and_of_a_pipelines_parameters(tmp_path):
    store = separable_store(tmp_path / "a.h5", 60, noise={"one:avg": 1.0})
    steps = [
        type(name, (Normalizer,), {})() for name in ("Features", "Scaler", "Scaler", "Estimator", "Memory", "a__b")
    ]
    found = select_model(store, steps=steps, **LINEAR)
    assert [name for name, _ in found.best_estimator.steps] == [
        "features", "features-1", "scaler-1", "scaler-2", "estimator-1", "memory-1", "a_b", "scaler", "estimator"
    ]  # fmt: skip


def test_labels_may_be_a_column(tmp_path):
    columns = {
        "species": np.array(list("xyz") * 30),
        "age": np.arange(90).astype(str),
        "gaps": np.array(["", "b"] * 45),
    }
    store = separable_store(tmp_path / "a.h5", 90, columns=columns)
    later = separable_store(
        tmp_path / "b.h5", 30, contents=np.arange(90, 120), columns={"species": columns["species"][:30]}
    )
    by_name = select_model(store, "species", holdout=HoldOut(store=later), **LINEAR)
    by_hand = select_model(store, columns["species"], **LINEAR)
    assert by_name.training.classes.tolist() == by_hand.training.classes.tolist() == ["x", "y", "z"]
    np.testing.assert_array_equal(by_name.test.y, later.columns["species"])
    for y, text in [
        ("specie", "a.h5 has no column 'specie'; close: 'species'; it has species, age, gaps"),
        ("gaps", "every image needs a label; column 'gaps' is empty for 45 of 90"),
    ]:
        with pytest.raises(StoreError, match=text):
            select_model(store, y, **LINEAR)
    with pytest.raises(FeatxError, match="to predict numbers, give them as floats"):
        select_model(store, "age", **LINEAR)
    ages = store.columns["age"].astype(float)
    assert select_model(store, ages, folds=3, n_jobs=1, estimators="ridge").training.classes is None


def test_other_estimators_compete_when_they_are_named(tmp_path):
    store = separable_store(tmp_path / "a.h5", 90)
    names = ["nearest_centroid", "ridge_classifier", "knn", "mlp"]
    options = {"layers": "good", "folds": 3, "n_jobs": 1}
    found = select_model(store, estimators=names, scoring="balanced_accuracy", **options)
    assert {(c.estimator, c.parameter) for c in found.candidates} == {
        ("nearest_centroid", ""), ("ridge_classifier", "alpha"), ("knn", "n_neighbors"), ("mlp", "alpha")
    }  # fmt: skip
    assert {c.value for c in found.candidates if c.estimator == "knn"} == {1, 5, 10, 20}  # 50 would be more than a fold
    assert found.held_out == pytest.approx(balanced_accuracy_score(found.test.y, found.test.predicted))
    for name in names:
        alone = select_model(store, estimators=[name], param_grid={"mlp": [1e-2]} if name == "mlp" else None, **options)
        assert alone.test.confidence is not None and alone.held_out > 0.6


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
    left = raised.value.result
    assert left.is_partial and left.best_estimator is None and left.held_out is None and left.nested is None
    assert len({c.layer for c in left.candidates}) == 1 and len(left.candidates) == 2
    scores = {(c.layer, c.value): c.scores for c in whole.candidates}
    assert all(c.scores == scores[c.layer, c.value] for c in left.candidates)


def test_candidates_of_the_layer_that_was_on_are_kept_too(tmp_path, interrupted):
    interrupted(1, keep=True)
    with pytest.raises(Interrupted) as raised:
        select_model(separable_store(tmp_path / "a.h5"), **LINEAR)
    assert len(raised.value.result.candidates) == 3


def test_interrupted_while_the_winner_is_scored_the_candidates_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(selection_module, "_test_set", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(Interrupted) as raised:
        select_model(separable_store(tmp_path / "a.h5"), **LINEAR)
    assert raised.value.result.is_partial and len(raised.value.result.candidates) == 4


def test_interrupted_before_anything_was_done_there_is_nothing_to_keep(tmp_path, interrupted):
    interrupted(0)
    with pytest.raises(KeyboardInterrupt) as raised:
        select_model(separable_store(tmp_path / "a.h5"), **LINEAR)
    assert not isinstance(raised.value, Interrupted)


def test_interrupted_in_the_nested_part_the_selection_is_whole(tmp_path, interrupted):
    interrupted(2 + 2)  # two layers, and both in the first outer split
    with pytest.raises(Interrupted) as raised:
        select_model(separable_store(tmp_path / "a.h5"), nested=True, **LINEAR)
    left = raised.value.result
    assert not left.is_partial and left.held_out is not None and left.best_estimator is not None
    assert len(left.nested.scores) == 1 and left.nested.folds == 3 and left.nested.is_partial
    assert json.loads(results_json(left))["is_partial"]
    interrupted(2)  # in the first outer split
    with pytest.raises(Interrupted) as raised:
        select_model(separable_store(tmp_path / "b.h5"), nested=True, **LINEAR)
    left = raised.value.result
    assert left.held_out is not None and left.nested.scores == () and json.loads(results_json(left))["is_partial"]
    assert "interrupted in the first of 3 outer splits" in selection_text(left)


def test_groups_of_a_test_store_are_other_ones_and_count_as_groups(tmp_path):
    def made(name, first_patient, seed):
        patients = np.array([f"p{first_patient + i // 6}" for i in range(60)])
        contents = 1000 * seed + np.arange(60)
        return separable_store(
            tmp_path / name, contents=contents, columns={"patient": patients}, noise={"good:avg": 2.0}
        )

    store, other, same = made("a.h5", 0, 0), made("b.h5", 10, 1), made("c.h5", 5, 2)
    few = {"groups": "patient", "estimators": ["nearest_centroid"], "n_jobs": 1}
    assert len(np.unique(select_model(store, holdout=HoldOut(store=other), **few).test.groups)) == 10
    with pytest.raises(FeatxError, match="5 of column 'patient' are in both stores"):
        select_model(store, holdout=HoldOut(store=same), **few)


def test_a_fold_of_one_image_has_no_r2(tmp_path):
    y = np.random.default_rng(0).normal(size=12)
    store = separable_store(tmp_path / "n.h5", 12, y=y)
    with pytest.raises(
        FeatxError, match="at least 2 images in every fold; 12 folds of 12 images leave fewer: use fewer folds"
    ):
        select_model(store, folds=12, holdout=HoldOut(0))
    assert np.isfinite(select_model(store, folds=6, holdout=HoldOut(0), estimators=["ridge"]).best.mean)


def test_seeds_of_few_bits_do(tmp_path):
    store = separable_store(tmp_path / "a.h5")
    few = {"estimators": ["nearest_centroid"], "folds": 2, "repeats": 8, "n_jobs": 1}
    scores = [select_model(store, random_state=seed, **few).best.scores for seed in (np.uint8(250), 250)]
    assert scores[0] == scores[1]
