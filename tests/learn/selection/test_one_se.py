"""One standard error takes what is simpler and as good, whatever the clock says; select_model's rule is the same."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import sklearn.linear_model
import sklearn.model_selection
import sklearn.svm
from scipy import stats
from separable import separable_store
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_selection import SelectKBest
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from featx.errors import FeatxError
from featx.learn import (
    SVC,
    GridSearchCV,
    HoldOut,
    LinearSVC,
    LogisticRegression,
    RandomizedSearchCV,
    Ridge,
    StoredFeatures,
    one_se,
    select_model,
)


def results(*rows: tuple[dict, list[float]], **more: object) -> dict:
    """cv_results_ of (params, split scores)."""
    found: dict = {"params": [params for params, _ in rows]}
    scores = np.array([scores for _, scores in rows])
    found |= {f"split{i}_test_score": column for i, column in enumerate(scores.T)}
    found |= {"mean_test_score": scores.mean(axis=1), "std_test_score": scores.std(axis=1)}
    times = np.arange(len(rows), 0, -1.0)
    return found | {"mean_fit_time": times, "mean_score_time": times} | more


BEST, NEAR, FAR = [0.8, 0.9, 0.85], [0.79, 0.88, 0.84], [0.7, 0.8, 0.75]


@pytest.mark.parametrize(
    "name, near, far",
    [
        ("m__C", 1, 0.1),
        ("m__alpha", 100, 1000),
        ("knn__n_neighbors", 10, 50),
        ("pca__n_components", 8, 4),
        ("pca__n_components", 0.5, 0.1),
        ("svc__gamma", 1e-3, 1e-4),
    ],
)
def test_of_candidates_within_one_standard_error_the_strongest_penalty_is_taken(name, near, far):
    best = 5 if name == "knn__n_neighbors" else 0.9 if near == 0.5 else 10
    found = results(({name: best}, BEST), ({name: near}, NEAR), ({name: far}, FAR))
    assert one_se(found) == 1


def test_what_is_no_number_is_not_simple():
    for name, value in [("n_components", None), ("gamma", "scale"), ("C", "big")]:
        assert one_se(results(({name: value}, BEST), ({name: 100}, NEAR))) == 1


def test_features_come_before_estimators_and_these_before_penalties():
    simple, other = sklearn.linear_model.LogisticRegression(), sklearn.svm.SVC()
    rows = [({"clf": clf, "C": C}, NEAR) for clf, C in product([other, simple], [1.0, 0.1])]
    assert one_se(results(*rows)) == 3
    assert one_se(results(*rows, n_features=np.array([8, 8, 16, 16]))) == 1
    assert one_se(results(*rows, n_features=np.array([8, 8, np.nan, np.nan]))) == 1
    assert one_se(results(*rows, n_features=np.array([16, 8, 8, 16]))) == 2


def test_whosever_class_it_is_and_those_that_are_not_known_come_last_in_their_order():
    forest, bayes = RandomForestClassifier(), sklearn.linear_model.Perceptron()
    assert one_se(results(*(({"clf": clf}, NEAR) for clf in (forest, bayes)))) == 0
    assert one_se(results(*(({"clf": clf}, NEAR) for clf in (bayes, forest)))) == 0
    for known in (LinearSVC(), sklearn.svm.LinearSVC()):
        assert one_se(results(*(({"clf": clf}, NEAR) for clf in (forest, sklearn.svm.SVC(), known)))) == 2


def test_equal_candidates_are_told_apart_by_the_mean_and_then_by_their_place():
    assert one_se(results(({"a": 1}, BEST), ({"a": 1}, BEST))) == 0
    assert one_se(results(({"a": 1}, NEAR), ({"a": 2}, BEST))) == 1


@pytest.mark.parametrize("seed", range(3))
def test_times_decide_nothing_and_nothing_worse_than_one_standard_error_is_taken(seed):
    rng = np.random.default_rng(seed)
    estimators = [LogisticRegression(), RandomForestClassifier(), KNeighborsClassifier()]
    names = ["C", "gamma", "n_components", "n_neighbors"]
    rows = [
        (
            {"clf": estimators[rng.integers(3)]} | {name: int(rng.integers(1, 4)) for name in names},
            rng.normal(0.8, 0.02, 5).tolist(),
        )
        for _ in range(40)
    ]
    found = results(*rows)
    chosen = one_se(found)
    means = found["mean_test_score"]
    assert means[chosen] >= means.max() - stats.sem(rows[means.argmax()][1]) - 1e-9
    for _ in range(5):
        scrambled = found | {key: rng.permutation(found[key]) * rng.random() for key in found if "time" in key}
        assert one_se(scrambled) == chosen
    order = rng.permutation(40)
    assert order[one_se(results(*(rows[i] for i in order)))] == chosen


@pytest.mark.parametrize("search_of", [GridSearchCV, sklearn.model_selection.GridSearchCV])
def test_it_is_what_refit_takes(search_of):
    X, y = load_iris(return_X_y=True)
    pipeline = Pipeline([("scaler", StandardScaler()), ("pca", PCA()), ("estimator", LogisticRegression())])
    grid = [
        {"pca__n_components": [2, 4], "estimator": [LogisticRegression()], "estimator__C": [1e-2, 1.0, 10.0]},
        {"pca__n_components": [3], "estimator": [KNeighborsClassifier()], "estimator__n_neighbors": [1, 10]},
    ]
    search = search_of(pipeline, grid, refit=one_se).fit(X, y)
    means, all_params = search.cv_results_["mean_test_score"], search.cv_results_["params"]
    assert not hasattr(search, "best_score_") and "n_features" not in search.cv_results_
    scores = np.array([search.cv_results_[f"split{i}_test_score"] for i in range(5)]).T
    lowest = means.max() - max(stats.sem(row) for row in scores[means > means.max() - 1e-12])
    near = [params for params, mean in zip(all_params, means, strict=True) if mean >= lowest - 1e-12]
    assert search.best_params_["pca__n_components"] == min(params["pca__n_components"] for params in near)
    assert search.best_estimator_.score(X, y) > 0.8


# --- what the searches tell a callable refit ---


def told_by(search: object, X: object, y: object) -> np.ndarray:
    seen = {}

    def refit(cv_results):
        seen.update(cv_results)
        return 0

    search.set_params(refit=refit).fit(X, y)
    assert seen.keys() - search.cv_results_.keys() == {"n_features", "estimators"}
    return seen["n_features"]


def test_widths_are_those_of_the_matrices_that_the_estimator_is_fitted_on(tmp_path):
    store = separable_store(tmp_path / "a.h5", 60, noise={"one:avg": 1.0, "two:avg": 1.0})
    odd = FunctionTransformer(lambda X: X[:, :2])
    steps = [("f", StoredFeatures(store)), ("a", None), ("b", StandardScaler()), ("clf", LogisticRegression())]
    grid = {"f__layer": ["one", ["one", "two"]], "a": [None, "passthrough", PCA(4), PCA(0.9), odd, SelectKBest(k=3)]}
    search = GridSearchCV(Pipeline(steps), grid, cv=2)
    widths = told_by(search, store.X, store.y)
    told = {}
    for params, width in zip(search.cv_results_["params"], widths, strict=True):
        fitted = Pipeline(steps).set_params(**params).fit(store.X, store.y)
        assert np.isnan(width) or width == fitted["clf"].coef_.shape[1]
        told[str(params)] = width
    assert sorted(told.values())[:6] == [4, 4, 6, 6, 12, 12] and np.isnan(list(told.values())).sum() == 6
    np.testing.assert_array_equal(told_by(search, store.X[:, 0], store.y), widths)


def test_of_a_plain_matrix_they_are_known_too():
    X, y = load_iris(return_X_y=True)
    assert told_by(GridSearchCV(LogisticRegression(), {"C": [1.0, 2.0]}), X, y).tolist() == [4, 4]
    pipe = Pipeline([("pca", PCA()), ("clf", LogisticRegression())])
    search = RandomizedSearchCV(pipe, {"pca__n_components": [2]}, n_iter=1)
    assert told_by(search, X, y).tolist() == [2]
    assert np.isnan(told_by(GridSearchCV(RandomForestClassifier(5), {"max_depth": [2]}), X, y)).all()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_a_search_over_layers_chooses_what_select_model_does(tmp_path, seed):
    """The same rule: fewest features, simplest estimator, strongest penalty; with a PCA, its components."""
    store = separable_store(tmp_path / "a.h5", 90, noise={f"l{i}:avg": 1.0 for i in range(3)}, seed=seed)
    layers = [["l0", "l1", "l2"], ["l0", "l1"], "l2"]
    values = [1e-3, 1e-2, 1e-1, 1.0]
    for pca in (None, 8):
        found = select_model(
            store,
            layers=layers,
            estimators=["linear_svm", "logistic_regression"],
            param_grid={"linear_svm": values, "logistic_regression": values},
            folds=4,
            holdout=HoldOut(0),
            one_se=True,
            steps=[PCA(pca, random_state=0)] if pca else [],
            random_state=seed,
            n_jobs=1,
        )
        cv = sklearn.model_selection.StratifiedKFold(4, shuffle=True, random_state=seed)
        reduced = [("pca", PCA(random_state=0))] if pca else []
        steps = [("f", StoredFeatures(store)), *reduced, ("s", StandardScaler()), ("clf", LogisticRegression())]
        grid = [
            {"f__layer": [layer], "clf": [clf], "clf__C": values}
            | ({"pca__n_components": [min(pca, 6 * (1 if layer == "l2" else len(layer)))]} if pca else {})
            for layer, clf in product(layers, [LinearSVC(), LogisticRegression(max_iter=1000)])
        ]
        search = GridSearchCV(Pipeline(steps), grid, cv=cv, refit=one_se).fit(store.X, store.y)
        assert search.best_estimator_["f"].layer_ == found.chosen.layer
        assert search.best_params_["clf__C"] == found.chosen.value
        name = {"linear_svm": "LinearSVC", "logistic_regression": "LogisticRegression"}[found.chosen.estimator]
        assert type(search.best_estimator_["clf"]).__name__ == name


def test_numbers_are_compared_too():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 5))
    search = GridSearchCV(Ridge(), {"alpha": [0.1, 1.0, 10.0]}, refit=one_se).fit(X, X[:, 0] + rng.normal(size=80))
    assert search.best_params_["alpha"] == 10


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(FeatxError, match="one_se compares one score"):
        one_se({"mean_test_accuracy": [1]})
    with pytest.raises(FeatxError, match="every fit failed"):
        one_se(results(({"C": 1}, [np.nan, np.nan])))
    assert one_se(results(({"C": 1}, [np.nan, 0.9]), ({"C": 2}, [0.5, 0.4]))) == 1


def test_what_an_estimator_holds_counts_as_what_the_grid_says():
    weak, strong = LogisticRegression(C=100.0), LogisticRegression(C=0.01)
    assert one_se(results(({"clf": weak}, BEST), ({"clf": strong}, NEAR))) == 1
    assert one_se(results(({"clf": strong, "clf__C": 100.0}, BEST), ({"clf": LogisticRegression(C=1.0)}, NEAR))) == 1


@pytest.mark.parametrize("written_out", [False, True])
def test_the_estimator_of_the_pipeline_counts_as_one_of_the_grid(written_out):
    X, y = load_iris(return_X_y=True)
    own = {"clf": [LogisticRegression()]} if written_out else {}
    grid = [{"clf__C": [1.0]} | own, {"clf": [SVC()], "clf__C": [1.0]}]
    search = GridSearchCV(Pipeline([("clf", LogisticRegression())]), grid, cv=3, refit=one_se).fit(X, y)
    means = search.cv_results_["mean_test_score"]
    assert abs(means[0] - means[1]) < 0.02 and search.best_index_ == 0


def test_the_width_inside_a_pipeline_that_comes_last_is_not_known():
    X, y = load_iris(return_X_y=True)
    seen = {}

    def first(found):
        seen.update(found)
        return 0

    last = Pipeline([("pca", PCA(2)), ("model", LogisticRegression())])
    GridSearchCV(Pipeline([("clf", last)]), {"clf__pca__n_components": [2, 3]}, cv=3, refit=first).fit(X, y)
    assert np.isnan(seen["n_features"]).all() and len(seen["estimators"]) == 2
