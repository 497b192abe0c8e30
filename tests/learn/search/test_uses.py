"""The ways a search is used: routed metadata, nested, in processes, with callbacks, saved, on frames and stores."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import sklearn
import sklearn.linear_model
import sklearn.svm
from classified import labelled
from helpers import write_store
from scipy.sparse import csr_array
from scipy.stats import loguniform
from searched import TIGHT, assert_same, theirs_of
from sklearn.base import clone
from sklearn.callback.tests._utils import RecordingCallback
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import accuracy_score, make_scorer
from sklearn.model_selection import KFold, StratifiedKFold, StratifiedShuffleSplit, cross_val_score, cross_validate
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, Normalizer, StandardScaler
from sklearn.tree import DecisionTreeClassifier

import featx
from featx.learn import (
    GridSearchCV,
    HalvingGridSearchCV,
    HalvingRandomSearchCV,
    LinearSVC,
    LogisticRegression,
    RandomizedSearchCV,
    Ridge,
    RidgeClassifier,
    StoredFeatures,
)

X, Y = labelled((60, 5), 3)
CS = [0.01, 1.0]
LOGISTIC = LogisticRegression(**TIGHT)
SCALED = make_pipeline(StandardScaler(), LOGISTIC)
GRID = {"logisticregression__C": CS}
TREE = DecisionTreeClassifier(random_state=0)


@pytest.mark.parametrize(
    "weighed, scoring",
    [("rows", "neg_log_loss"), ("scores", ["accuracy", "neg_log_loss"]), ("both", "neg_log_loss")],
    ids=["rows", "scores", "both"],
)
def test_routed_weights(weighed, scoring):
    weights = np.random.default_rng(0).uniform(0.1, 2, len(X))
    with sklearn.config_context(enable_metadata_routing=True):
        final = clone(LOGISTIC).set_fit_request(sample_weight=weighed != "scores")
        scorers = {name: sklearn.metrics.get_scorer(name) for name in np.atleast_1d(scoring)}
        for scorer in scorers.values():
            scorer.set_score_request(sample_weight=weighed != "rows")
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        for model, grid in ((final, {"C": CS}), (make_pipeline(scaler, final), GRID)):
            asked = next(iter(scorers.values())) if isinstance(scoring, str) else scorers
            search = GridSearchCV(model, grid, scoring=asked, refit=False, cv=3)
            ours, _ = assert_same(search, X, Y, sample_weight=weights)
            unweighed = clone(search).fit(X, Y).cv_results_
            name = next(name for name in unweighed if name.startswith("mean_test_"))
            assert not np.allclose(ours.cv_results_[name], unweighed[name])


@pytest.mark.parametrize("scaler", [StandardScaler(), MinMaxScaler()])
def test_routed_weights_of_a_scaler_and_groups(scaler):
    weights, groups = np.random.default_rng(0).uniform(0.1, 2, len(X)), np.arange(len(X)) % 4
    with sklearn.config_context(enable_metadata_routing=True):
        if isinstance(scaler, StandardScaler):
            scaler = clone(scaler).set_fit_request(sample_weight=True)
        model = make_pipeline(scaler, clone(LOGISTIC).set_fit_request(sample_weight=True))
        cv = sklearn.model_selection.GroupKFold(3)
        scoring = make_scorer(accuracy_score).set_score_request(sample_weight=True)
        ours, _ = assert_same(
            GridSearchCV(model, GRID, cv=cv, scoring=scoring), X, Y, sample_weight=weights, groups=groups
        )
        assert np.isfinite(ours.cv_results_["mean_test_score"]).all()


def test_errors_are_theirs_where_they_are_to_be_raised():
    for model, grid in ((LOGISTIC, {"C": [1.0, -1.0]}), (SCALED, {"logisticregression__C": [1.0, -1.0]})):
        raised, _ = assert_same(GridSearchCV(model, grid, error_score="raise"), X, Y)
        assert "'C' parameter" in str(raised)
    raised, _ = assert_same(GridSearchCV(SCALED, {"logisticregression__C": [-1.0, -2.0]}), X, Y)
    assert "All the 10 fits failed" in str(raised)
    one_class = [(np.flatnonzero(Y == 0), np.flatnonzero(Y == 1))]
    for error_score in ("raise", np.nan, 0.5):
        raised, _ = assert_same(GridSearchCV(SCALED, GRID, cv=one_class, error_score=error_score), X, Y)
        assert "only one class" in str(raised)


def test_searches_of_searches_alone_and_in_a_pipeline():
    search = GridSearchCV(SCALED, GRID, cv=2)
    for outer in (search, make_pipeline(MinMaxScaler(), search)):
        ours = cross_val_score(outer, X, Y, cv=KFold(2), scoring="neg_log_loss")
        inner = theirs_of(search)
        theirs = inner if outer is search else make_pipeline(MinMaxScaler(), inner)
        np.testing.assert_allclose(ours, cross_val_score(theirs, X, Y, cv=KFold(2), scoring="neg_log_loss"), atol=1e-6)


def test_a_search_over_a_search():
    search = GridSearchCV(make_pipeline(PCA(3, random_state=0), LOGISTIC), GRID, cv=2)
    assert_same(GridSearchCV(search, {"cv": [2, 3], "error_score": [0.0]}, cv=2), X, Y)
    assert_same(GridSearchCV(theirs_of(search), {"estimator__logisticregression__C": [0.1, 1.0]}, cv=2), X, Y)


def test_cross_validate_returns_searches():
    found = cross_validate(GridSearchCV(SCALED, GRID, cv=3), X, Y, cv=3, return_estimator=True)
    assert all(search.best_params_["logisticregression__C"] in CS for search in found["estimator"])


@pytest.mark.slow
@pytest.mark.parametrize("model", [SCALED, make_pipeline(PCA(2, random_state=0), RandomForestClassifier(2))])
def test_two_processes(model):
    model = clone(model)
    if "randomforestclassifier" in model.named_steps:
        model.set_params(randomforestclassifier__random_state=0)
        grid: dict[str, Any] = {"randomforestclassifier__max_depth": [1, 3]}
    else:
        grid = GRID
    assert_same(GridSearchCV(model, grid, cv=3, n_jobs=2, pre_dispatch="1*n_jobs"), X, Y)


@pytest.mark.filterwarnings("ignore:.* multi-threaded, use of fork")  # of Python 3.12
@pytest.mark.parametrize("backend", ["multiprocessing", "threading"])  # the first gives no results as they come
@pytest.mark.parametrize(
    "model, parameter",
    [
        (make_pipeline(StandardScaler(), TREE), "decisiontreeclassifier__max_depth"),
        (OneVsRestClassifier(TREE), "estimator__max_depth"),
    ],
    ids=["shared steps", "fallback"],
)
def test_any_backend_of_joblib(backend, model, parameter):
    with joblib.parallel_config(backend):
        assert_same(GridSearchCV(model, {parameter: [1, 2]}, cv=2, n_jobs=2), X, Y)


@pytest.mark.filterwarnings("ignore:The estimator .* does not support callbacks")
def test_a_plan_says_that_callbacks_leave_nothing_to_share():
    search = GridSearchCV(SCALED, GRID, cv=2).set_callbacks(RecordingCallback())
    assert "which shares no work: callbacks are set" in (plan := str(search.plan(X, Y))) and "solve:" not in plan


@pytest.mark.parametrize("model", [LOGISTIC, SCALED])
@pytest.mark.filterwarnings("ignore:The estimator .* does not support callbacks")
def test_callbacks_of_the_search_are_called_and_it_warns_that_they_cost_the_sharing(model):
    records = []
    grid = {name: CS for name in model.get_params() if name.split("__")[-1] == "C"}
    ours = GridSearchCV(model, grid, cv=2)
    warned = pytest.warns(UserWarning, match="callbacks are set: falling back to scikit-learn's search")
    for search, context in ((ours, warned), (theirs_of(ours), contextlib.nullcontext())):
        callback = RecordingCallback()
        with context:
            search.set_callbacks(callback).fit(X, Y)
        records.append([entry["name"] for entry in callback.record])
    assert records[0] == records[1] and "on_fit_task_begin" in records[0]


def test_clone_parameters_and_pickle():
    search = GridSearchCV(SCALED, GRID, cv=3, return_train_score=True)
    assert clone(search).get_params(deep=False).keys() == search.get_params(deep=False).keys()
    assert search.get_params(deep=False).keys() - theirs_of(search).get_params(deep=False).keys() == {"progress"}
    assert repr(clone(search)) == repr(search)
    search.fit(X, Y)
    again = pickle.loads(pickle.dumps(search))
    np.testing.assert_array_equal(again.predict_proba(X), search.predict_proba(X))
    np.testing.assert_equal(again.cv_results_, search.cv_results_)
    assert not hasattr(clone(again), "cv_results_")
    assert again.fit(X, Y).best_params_ == search.best_params_
    unfitted = set(vars(SCALED.named_steps["logisticregression"]))
    assert not [name for name in unfitted if name.endswith("_")], "the estimator that was given is not fitted"


@pytest.mark.filterwarnings("ignore:.* has no StoredFeatures or ImageFeatures")
def test_the_best_is_saved(tmp_path):
    search = GridSearchCV(SCALED, GRID, cv=3).fit(X, Y)
    featx.save(search.best_estimator_, tmp_path / "best.skops")
    np.testing.assert_allclose(featx.load(tmp_path / "best.skops").predict_proba(X), search.predict_proba(X))


def test_data_frames():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcde"), index=[f"row {i}" for i in range(len(X))])
    labels = pandas.Series(np.array(["ant", "bee", "cat"])[Y], index=frame.index)
    plain = clone(SCALED)
    told = make_pipeline(StandardScaler(), clone(LOGISTIC)).set_output(transform="pandas")
    for model in (plain, told):
        ours, theirs = assert_same(GridSearchCV(model, GRID, cv=3), frame, labels)
        assert ours.feature_names_in_.tolist() == theirs.feature_names_in_.tolist() == list("abcde")
        assert ours.predict(frame).tolist() == theirs.predict(frame).tolist()
    final = ours.best_estimator_[-1]
    assert final.feature_names_in_.tolist() == list("abcde")


@pytest.mark.parametrize("model", [SCALED, LOGISTIC])
def test_lists_and_strings(model):
    grid = {name: CS for name in model.get_params() if name.split("__")[-1] == "C"}
    labels = np.array(["ant", "bee", "cat"])[Y]
    assert_same(GridSearchCV(model, grid, cv=2), X.tolist(), labels.tolist())
    assert_same(GridSearchCV(model, grid, cv=2), X, labels.astype(object))
    assert_same(GridSearchCV(model, grid, cv=2), np.asfortranarray(X), labels)
    assert_same(GridSearchCV(model, grid, cv=2), (10 * X).astype(int), Y - 1.0)


def test_sparse_rows_of_theirs():
    grid = {"C": [0.1, 1.0]}
    assert_same(GridSearchCV(sklearn.svm.LinearSVC(tol=1e-8, random_state=0), grid), csr_array(X), Y)
    assert_same(GridSearchCV(make_pipeline(Normalizer(), sklearn.svm.SVC()), {"svc__C": [1, 2]}), csr_array(X), Y)
    raised, _ = assert_same(GridSearchCV(LOGISTIC, grid), csr_array(X), Y)
    assert "sparse" in str(raised)


@pytest.mark.parametrize("before", [[], [StandardScaler(), PCA(2, random_state=0)]], ids=["none", "reduced"])
def test_targets_of_several_columns(before):
    targets = np.column_stack([X[:, 0] + X[:, 1] ** 2, Y])
    for model, name in ((Ridge(), "ridge"), (RidgeClassifier(), "ridgeclassifier")):
        y = targets if name == "ridge" else np.eye(3, dtype=int)[Y]
        grid = {f"{name}__alpha": [0.1, 10.0, 1000.0]}
        assert_same(GridSearchCV(make_pipeline(*before, model), grid, cv=KFold(4), return_train_score=True), X, y)


def test_without_labels():
    assert_same(GridSearchCV(KMeans(random_state=0, n_init=1), {"n_clusters": [2, 3]}), X)
    assert_same(GridSearchCV(make_pipeline(StandardScaler(), PCA()), {"pca__n_components": [1, 2]}), X)


def test_fixed_random_states():
    model = make_pipeline(
        PCA(3, svd_solver="randomized", random_state=3), MLPClassifier((4,), max_iter=5, random_state=1)
    )
    assert_same(GridSearchCV(model, {"mlpclassifier__alpha": [1e-3, 10.0]}, cv=2), X, Y)
    model = make_pipeline(PCA(3, svd_solver="randomized", random_state=np.random.RandomState(3)), LOGISTIC)
    assert_same(GridSearchCV(model, GRID, cv=2), X, Y)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(SCALED, id="scaled"),
        pytest.param(make_pipeline(PCA(2, random_state=0), LOGISTIC), id="pca", marks=pytest.mark.slow),
    ],
)
def test_other_searches(model):
    name = next(name for name in model.get_params() if name.split("__")[-1] == "C")
    drawn = {name: loguniform(1e-3, 1e2), name.replace("C", "class_weight"): [None, "balanced"]}
    assert_same(RandomizedSearchCV(model, drawn, n_iter=5, random_state=1, scoring="neg_log_loss", cv=3), X, Y)
    options: dict[str, Any] = {"cv": 2, "random_state": 0, "scoring": "neg_log_loss", "error_score": "raise"}
    big = np.tile(X, (3, 1)) + 0.1 * np.random.default_rng(0).normal(size=(180, 5)), np.tile(Y, 3)
    assert_same(HalvingGridSearchCV(model, {name: [0.01, 0.1, 1.0, 10.0]}, factor=2, **options), *big)
    assert_same(HalvingRandomSearchCV(model, drawn, n_candidates=4, factor=2, **options), *big)


def test_grids_of_several_kinds():
    pipe = Pipeline([("scale", StandardScaler()), ("model", LOGISTIC)])
    grid = [
        {"model__C": [1.0, 1.0, 0.1], "model__fit_intercept": [False], "model__class_weight": [None, "balanced"]},
        {"model": [LinearSVC(**TIGHT), RidgeClassifier()], "scale": ["passthrough", MinMaxScaler(), StandardScaler()]},
        {"scale__with_mean": [False, True], "model__tol": [1e-9, 1e-10]},
        {"model": [sklearn.linear_model.LogisticRegression(tol=1e-8)], "model__C": [0.1]},
        {},
    ]
    assert_same(GridSearchCV(pipe, grid, cv=2, return_train_score=True), X, Y)


@pytest.mark.parametrize(
    "model, dtype, scoring, atol",
    [
        (LOGISTIC, np.float16, "neg_log_loss", 2e-3),
        (SCALED, np.float32, "neg_log_loss", 2e-3),
        (SCALED, np.float16, "accuracy", 1.01 / 20),
    ],
)
def test_narrow_rows(model, dtype, scoring, atol):
    """Within a row of a fold: scikit-learn's search fits float32 rows of each fold, ours those of all."""
    grid = {name: CS for name in model.get_params() if name.split("__")[-1] == "C"}
    assert_same(GridSearchCV(model, grid, scoring=scoring, cv=3), X.astype(dtype), Y, atol=atol)


def _store(folder: Path) -> featx.FeatureStore:
    return write_store(folder / "a.h5", n=60, taps={"layer1:avg": [4], "layer2:none": [2, 3]}, y=Y.astype(str))


@pytest.mark.parametrize("before", [[], [StandardScaler(), PCA(2, random_state=0)]], ids=["alone", "reduced"])
def test_layers_of_a_store(tmp_path, before):
    store = _store(tmp_path)
    pipe = make_pipeline(StoredFeatures(store), *before, LOGISTIC)
    grid = {"storedfeatures__layer": ["layer1", "layer2:none"], **GRID}
    scoring = ["accuracy", "neg_log_loss"]
    search, theirs = assert_same(
        GridSearchCV(pipe, grid, scoring=scoring, refit="neg_log_loss", cv=2), store.X, store.y, atol=2e-4
    )
    assert (search.predict(store.X) == theirs.predict(store.X)).mean() > 0.98


def test_progress_counts_fits():
    told: list[tuple[int, int]] = []
    search = GridSearchCV(SCALED, GRID, cv=4, progress=lambda now: told.append((now.done, now.total)))
    search.fit(X, Y)
    assert told and told[-1] == (8, 8) and {total for _, total in told} == {8}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    theirs = make_pipeline(StandardScaler(), sklearn.linear_model.LogisticRegression())
    del told[:]
    GridSearchCV(theirs, GRID, cv=4, progress=lambda now: told.append((now.done, now.total))).fit(X, Y)
    assert told[-1] == (8, 8)


@pytest.mark.parametrize("grid, cv", [(GRID, []), ([], 3)])
def test_no_splits_or_no_candidates_are_refused_by_plan_and_fit(grid, cv):
    search = GridSearchCV(SCALED, grid, cv=cv)
    for call in (search.plan, search.fit):
        with pytest.raises(ValueError, match="Was the CV iterator empty"):
            call(X, Y)


def test_a_plan_tells_what_is_shared():
    pipe = Pipeline([("scale", StandardScaler()), ("model", LOGISTIC)])
    forest = RandomForestClassifier(2)
    grid = [{"model__C": CS}, {"model": [forest], "scale": ["passthrough"], "model__max_depth": [1, 2]}]
    search = GridSearchCV(pipe, grid, cv=4)
    text = str(search.plan(X, Y))
    for words in ("8 fits of LogisticRegression", "StandardScaler", "8 fits", "by scikit-learn's search", "memory"):
        assert words in text
    assert not [name for name in vars(search) if name.endswith("_") and not name.startswith("_")]
    reduced = Pipeline([("pca", PCA()), ("model", LOGISTIC)])
    text = str(GridSearchCV(reduced, {"pca__n_components": [2, 3], "model__C": CS}, cv=4).plan(X, Y))
    assert "PCA(n_components=2)," in text and "PCA(n_components=3)," in text


def test_halving_plans_with_a_seeded_splitter():
    for splitter in (StratifiedKFold(3, shuffle=True, random_state=0), StratifiedShuffleSplit(3, random_state=1)):
        search = HalvingGridSearchCV(LOGISTIC, {"C": [0.01, 0.1, 1.0]}, cv=splitter, min_resources=24, random_state=0)
        assert "in one solve" in str(search.plan(X, Y)) and search.fit(X, Y).n_candidates_[0] == 3


def test_a_splitter_with_a_generator_of_its_own_plans_the_folds_of_fit():
    class Drawn(sklearn.model_selection.KFold):
        def __init__(self, seed):
            super().__init__(3)
            self.random_state = np.random.default_rng(seed)

        def split(self, X, y=None, groups=None):
            order = self.random_state.permutation(len(X))
            return ((np.setdiff1d(order, part), np.sort(part)) for part in np.array_split(order, 3))

    search, other = (GridSearchCV(LOGISTIC, {"C": CS}, cv=Drawn(0)) for _ in range(2))
    search.plan(X, Y)
    assert search.fit(X, Y).best_score_ == other.fit(X, Y).best_score_
