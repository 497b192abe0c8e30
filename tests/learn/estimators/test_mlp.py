"""MLPClassifier and MLPRegressor: scikit-learn's losses step by step, and a search trains each candidate as alone."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import sklearn.model_selection
import sklearn.neural_network
import torch
from classified import labelled
from numpy.testing import assert_allclose, assert_array_equal
from pairwise import pairwise
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, FitFailedWarning
from sklearn.model_selection import GroupKFold, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import InvalidParameterError

import featx
from featx.errors import FeatxError
from featx.learn import GridSearchCV, MLPClassifier, MLPRegressor
from featx.learn.estimators import Fold, Job

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(did not converge|converged yet):sklearn.exceptions.ConvergenceWarning"
)

X, CLASSES = labelled((330, 8), 4)
RNG = np.random.default_rng(0)
WEIGHTS = RNG.uniform(0.2, 2, len(X))
NUMBERS = X @ RNG.normal(size=8) / 3
TARGETS: dict[str, np.ndarray] = {
    "classes": CLASSES,
    "two classes": np.array(["ant", "bee"])[CLASSES // 2],
    "labels": (X[:, :3] > X[:, 3:6]).astype(int),
    "numbers": NUMBERS,
    "columns of numbers": np.column_stack([NUMBERS, X[:, 0] ** 2]),
}
SGD = {"solver": "sgd", "learning_rate_init": 0.05}
SETTINGS: dict[str, dict[str, Any]] = {
    "adam": {},
    "adam tanh": {"activation": "tanh", "beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3},
    "adam logistic": {"activation": "logistic", "hidden_layer_sizes": 20},
    "adam identity, two layers": {"activation": "identity", "hidden_layer_sizes": [9, 5], "batch_size": 64},
    "adam, early stopping": {"early_stopping": True, "n_iter_no_change": 2, "tol": 0.01, "max_iter": 30},
    "adam, converged": {"tol": 0.5, "n_iter_no_change": 2},
    "linear": {"hidden_layer_sizes": (), "alpha": 5.0},
    "sgd": SGD,
    "sgd tanh": {**SGD, "activation": "tanh", "nesterovs_momentum": False},
    "sgd, no momentum, in order": {**SGD, "momentum": 0.0, "shuffle": False},
    "sgd, invscaling": {**SGD, "learning_rate": "invscaling", "power_t": 0.3},
    "sgd, adaptive": {**SGD, "learning_rate": "adaptive", "tol": 0.2, "n_iter_no_change": 1, "max_iter": 30},
    "the articles' linear head": {
        "hidden_layer_sizes": (),
        "solver": "sgd",
        "learning_rate_init": 0.001,
        "nesterovs_momentum": False,
        "batch_size": 32,
    },
}


def of(target: str) -> tuple[type, type]:
    """Our class and scikit-learn's."""
    name = "MLPRegressor" if "numbers" in target else "MLPClassifier"
    return {"MLPRegressor": MLPRegressor, "MLPClassifier": MLPClassifier}[name], getattr(sklearn.neural_network, name)


def losses(model: Any) -> np.ndarray:
    return np.array(model.loss_curve_)


@pairwise(setting=list(SETTINGS), target=list(TARGETS), weights={"plain": None, "weighted": WEIGHTS})
def test_losses_are_scikit_learn_s_step_by_step(setting, target, weights):
    ours, theirs = (
        cls(**({"hidden_layer_sizes": (30,), "max_iter": 8, "random_state": 3} | SETTINGS[setting]))
        for cls in of(target)
    )
    rows, y = X[:230], TARGETS[target][:230]
    for model in (ours, theirs):
        model.fit(rows, y, None if weights is None else weights[:230])
    assert_allclose(losses(ours), losses(theirs), rtol=1e-9)
    for one, other in zip([*ours.coefs_, *ours.intercepts_], [*theirs.coefs_, *theirs.intercepts_], strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert_allclose(one, other, rtol=0, atol=1e-9)
    for name in ("n_iter_", "t_", "n_layers_", "n_outputs_", "out_activation_", "n_features_in_"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("loss_", "best_loss_", "best_validation_score_", "validation_scores_"):
        one, other = getattr(ours, name), getattr(theirs, name)
        assert (one is None) == (other is None), name
        assert one is None or assert_allclose(one, other, rtol=1e-9) is None
    assert_allclose(ours.predict(X), theirs.predict(X), atol=1e-8) if "numbers" in target else assert_array_equal(
        ours.predict(X), theirs.predict(X)
    )
    if hasattr(theirs, "predict_proba"):
        assert_array_equal(ours.classes_, theirs.classes_)
        assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-9)
        assert_allclose(ours.predict_log_proba(X), theirs.predict_log_proba(X), atol=1e-6)


def test_float32_stays_float32_and_stays_close():
    for cls in of("classes"):
        model = cls((16,), max_iter=5, random_state=0).fit(X.astype(np.float32), CLASSES)
        assert {array.dtype for array in [*model.coefs_, *model.intercepts_]} == {np.dtype(np.float32)}
        assert_allclose(losses(model), losses(clone(model).fit(X, CLASSES)), rtol=1e-4)


def test_parameters_are_scikit_learn_s_with_its_defaults():
    absent, own = {"max_fun", "verbose", "warm_start"}, {"dropout", "precision", "device"}
    for target in ("classes", "numbers"):
        ours, theirs = (cls().get_params() for cls in of(target))
        assert ours.keys() - own == theirs.keys() - absent
        assert {name: ours[name] for name in ours.keys() - own} == {name: theirs[name] for name in ours.keys() - own}


GRID: dict[str, list[Any]] = {
    "alpha": [1e-4, 10.0],
    "learning_rate_init": [0.001, 0.1],
    "dropout": [0.0, 0.5],
    "solver": ["adam", "sgd"],
}
BASE = MLPClassifier((9, 6), max_iter=4, random_state=0)


def jobs_of(estimators: list[Any], scaled: bool) -> list[Job]:
    folds = []
    for number, (train, test) in enumerate(KFold(3).split(X)):
        shift, scale = (X[train].mean(0), X[train].std(0)) if scaled else (None, None)
        folds.append(Fold(number, train, None, test, WEIGHTS[train] if number else None, shift, scale))
    return [Job(clone(estimator), fold) for fold in folds for estimator in estimators]


@pytest.mark.parametrize("scaled", [False, True], ids=["as-is", "scaled"])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_candidates_and_folds_together_are_those_alone(scaled, early_stopping):
    """In float64 to 1e-9: products of several networks round otherwise than those of one."""
    grid = sklearn.model_selection.ParameterGrid(GRID)
    estimators = [clone(BASE).set_params(**params, early_stopping=early_stopping) for params in grid]
    estimators.append(clone(BASE).set_params(hidden_layer_sizes=(), max_iter=6))
    jobs = jobs_of(estimators, scaled)
    done = list(MLPClassifier.fit_each(X, CLASSES, jobs))
    assert sorted(fitted.number for fitted in done) == list(range(len(jobs)))
    for number, model, seconds, _ in done:
        estimator, fold = jobs[number]
        assert model is estimator and seconds > 0
        rows = X if fold.shift is None else (X - fold.shift) / fold.scale
        alone = clone(model).fit(rows[fold.train], CLASSES[fold.train], fold.sample_weight)
        assert_allclose(losses(model), losses(alone), rtol=1e-9)
        for one, other in zip(model.coefs_, alone.coefs_, strict=True):
            assert_allclose(one, other, rtol=0, atol=1e-9)


def runs_of(monkeypatch, jobs: list[Job]) -> list[int]:
    """The number of networks of each run."""
    sizes: list[int] = []
    train = featx.solvers.train_mlps

    def spied(runs, **options):
        sizes.extend(len(run.problems) for run in runs)
        return train(runs, **options)

    monkeypatch.setattr(featx.solvers, "train_mlps", spied)
    list(MLPClassifier.fit_each(X, CLASSES, jobs))
    return sizes


@pytest.mark.parametrize(
    "params, sizes",
    [
        ({"alpha": 1.0, "solver": "sgd", "dropout": 0.5, "max_iter": 2}, [2, 2, 2]),
        ({"hidden_layer_sizes": (9, 7)}, [1] * 6),
        ({"random_state": 1}, [1] * 6),
        ({"random_state": None}, [1] * 6),
        ({"precision": "bfloat16"}, [1] * 6),
    ],
    ids=str,
)
def test_candidates_share_what_they_have_in_common(params, sizes, monkeypatch):
    assert runs_of(monkeypatch, jobs_of([BASE, clone(BASE).set_params(**params)], False)) == sizes


@pytest.mark.parametrize("cls", [MLPClassifier, MLPRegressor])
def test_a_search_behind_a_scaler_is_scikit_learn_s(cls):
    y = CLASSES if cls is MLPClassifier else NUMBERS
    pipe = make_pipeline(StandardScaler(), cls(hidden_layer_sizes=(12,), max_iter=10, random_state=0))
    grid = {f"{cls.__name__.lower()}__{name}": GRID[name] for name in ("alpha", "learning_rate_init")}
    found = [search(pipe, grid, cv=4).fit(X, y) for search in (GridSearchCV, sklearn.model_selection.GridSearchCV)]
    assert "16 fits of" in str(GridSearchCV(pipe, grid, cv=4).plan(X, y))
    for name in ("mean_test_score", "std_test_score"):
        assert_allclose(found[0].cv_results_[name], found[1].cv_results_[name], atol=1e-9)
    assert found[0].best_params_ == found[1].best_params_


def test_without_a_random_state_networks_differ():
    estimators = [clone(BASE).set_params(random_state=state) for state in (None, None, np.random.RandomState(0))]
    first, second, third, *_ = [
        each.estimator for each in MLPClassifier.fit_each(X, CLASSES, jobs_of(estimators, False))
    ]
    assert len({model.loss_ for model in (first, second, third)}) == 3


def test_whole_groups_are_held_out():
    groups = np.arange(len(X)) % 11
    held_out = []
    model = MLPClassifier((5,), early_stopping=True, random_state=0, max_iter=3, validation_fraction=0.2)
    run = model._run

    def spied(*given):
        made = run(*given)
        held_out.append((made.train, made.held_out))
        return made

    model._run = spied
    model.fit(X, CLASSES, WEIGHTS * (groups != 4), groups=groups)
    ((train, test),) = held_out
    assert set(groups[train]).isdisjoint(groups[test]) and len(set(groups[test])) == 2
    assert set(groups[train]) | set(groups[test]) == set(range(11)) - {4}  # rows of weight 0 are left out
    assert len(model.validation_scores_) == 3


def test_a_search_hands_groups_over_and_falls_back():
    groups = np.arange(len(X)) // 10
    pipe = make_pipeline(StandardScaler(), MLPClassifier((5,), early_stopping=True, random_state=0, max_iter=3))
    grid = {"mlpclassifier__alpha": [0.1, 1.0]}
    search = GridSearchCV(pipe, grid, cv=GroupKFold(3))
    plan = search.plan(X, CLASSES, groups=groups, mlpclassifier__groups=groups)
    assert "fit is given more than sample_weight" in str(plan)
    theirs = sklearn.model_selection.GridSearchCV(pipe, grid, cv=GroupKFold(3))
    scores = [
        each.fit(X, CLASSES, groups=groups, mlpclassifier__groups=groups).cv_results_["mean_test_score"]
        for each in (search, theirs)
    ]
    assert_allclose(*scores, rtol=0, atol=1e-12)


def test_a_head_of_torch_is_expressible():
    """One Linear layer, cross-entropy, SGD of rate 0.001 and momentum 0.9, without a penalty."""
    model = MLPClassifier(
        (), solver="sgd", nesterovs_momentum=False, alpha=0, batch_size=32, shuffle=False, max_iter=3, random_state=0
    )
    model.fit(X, CLASSES)
    linear = torch.nn.Linear(X.shape[1], 4, dtype=torch.float64)
    start = clone(model)
    start.out_activation_ = "softmax"
    run = start._run(lambda: X, X, CLASSES[:, None] == np.arange(4), None, None)
    (coef,), (intercept,) = run.start()
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(coef.T))
        linear.bias.copy_(torch.from_numpy(intercept))
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.001, momentum=0.9)
    for _ in range(3):
        for rows, y in zip(torch.from_numpy(X).split(32), torch.from_numpy(CLASSES).split(32), strict=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(linear(rows), y).backward()
            optimizer.step()
    assert_allclose(model.coefs_[0], linear.weight.detach().numpy().T, atol=1e-12)


def test_dropout_is_seeded_and_regularises():
    models = [MLPClassifier((32,), dropout=p, max_iter=40, random_state=0).fit(X, CLASSES) for p in (0.0, 0.5, 0.5)]
    assert models[1].loss_curve_ == models[2].loss_curve_
    assert models[1].loss_ > models[0].loss_ + 0.05


def test_bfloat16_is_as_accurate():
    exact, low = (MLPClassifier((64,), precision=p, max_iter=60, random_state=0) for p in (None, "bfloat16"))
    rows = X.astype(np.float32)
    assert abs(exact.fit(rows, CLASSES).score(rows, CLASSES) - low.fit(rows, CLASSES).score(rows, CLASSES)) < 0.02
    assert low.coefs_[0].dtype == np.float32 and low.loss_ != exact.loss_


@pytest.mark.parametrize("target", ["two classes", "labels", "columns of numbers"])
@pytest.mark.filterwarnings("ignore:.* has no StoredFeatures or ImageFeatures")
def test_models_are_saved_and_pickled(target, tmp_path):
    model = of(target)[0](hidden_layer_sizes=(4,), early_stopping=True, max_iter=2, random_state=0)
    model.fit(X, TARGETS[target])
    for again in (featx.load(featx.save(model, tmp_path / "m.skops")), pickle.loads(pickle.dumps(model))):
        assert_array_equal(again.predict(X), model.predict(X))
        assert again.loss_curve_ == model.loss_curve_
    assert clone(model).get_params() == model.get_params()


@pytest.mark.parametrize("layout", ["read-only", "Fortran"])
def test_rows_are_not_written_to(layout):
    rows = np.asfortranarray(X) if layout == "Fortran" else X.copy()
    rows.flags.writeable = layout == "Fortran"
    model = clone(BASE).fit(rows, CLASSES)
    assert_array_equal(rows, X)
    assert_allclose(losses(model), losses(clone(BASE).fit(X, CLASSES)), rtol=1e-12)


def test_rows_of_weight_0_are_left_out():
    weights = WEIGHTS * (np.arange(len(X)) % 3 > 0)
    kept = weights > 0
    weighted = clone(BASE).fit(X, CLASSES, weights)
    assert_allclose(losses(weighted), losses(clone(BASE).fit(X[kept], CLASSES[kept], weights[kept])), rtol=1e-12)


@pytest.mark.parametrize(
    "params, change, error, match",
    [
        ({"solver": "lbfgs"}, {}, FeatxError, "has no solver='lbfgs', only 'adam' and 'sgd'; sklearn.neural_network"),
        ({"hidden_layer_sizes": (4, 0)}, {}, ValueError, r"hidden_layer_sizes must be > 0, got \[4, 0\]"),
        ({"dropout": 1.0}, {}, ValueError, "The 'dropout' parameter"),
        ({"precision": "float16"}, {}, ValueError, "The 'precision' parameter"),
        ({}, {"sample_weight": -WEIGHTS}, ValueError, "Negative values in data passed to `sample_weight`"),
        ({}, {"sample_weight": 0 * WEIGHTS}, ValueError, "Sample weights must contain at least one non-zero number"),
        ({}, {"X": csr_matrix(X)}, FeatxError, "takes dense arrays, and X is sparse"),
        ({"early_stopping": True, "validation_fraction": 0.001}, {}, ValueError, "The validation set is too small"),
        ({"early_stopping": True}, {"groups": [1, 2]}, ValueError, "inconsistent numbers of samples"),
        ({"solver": "sgd", "learning_rate_init": 1e200}, {}, ValueError, "learning_rate_init=1e.200 is too large"),
    ],
    ids=lambda value: "" if isinstance(value, dict) and "sample_weight" in value else str(value)[:30],
)
def test_what_is_refused(params, change, error, match):
    with pytest.raises(error, match=match):
        MLPClassifier(**({"random_state": 0} | params)).fit(**({"X": X, "y": CLASSES} | change))


def test_a_loss_for_counts_is_refused():
    with pytest.raises(FeatxError, match="has no loss='poisson', only 'squared_error'"):
        MLPRegressor(loss="poisson").fit(X, NUMBERS)


def test_a_candidate_that_is_refused_leaves_the_others_alone():
    bad = [
        clone(BASE).set_params(**params) for params in ({"alpha": -1}, {"solver": "lbfgs"}, {"hidden_layer_sizes": -1})
    ]
    bad.append(MLPClassifier((9, 6), solver="sgd", learning_rate_init=1e200, random_state=0, max_iter=4))
    jobs = jobs_of([BASE, *bad], False)
    results = {number: model for number, model, _, _ in MLPClassifier.fit_each(X, CLASSES, jobs)}
    for number in range(0, len(jobs), 5):
        assert [type(results[number + i]) for i in range(1, 5)] == [
            InvalidParameterError,
            FeatxError,
            InvalidParameterError,
            ValueError,
        ]
        assert results[number].n_iter_ == 4
    with pytest.warns(FitFailedWarning, match="3 fits failed"), pytest.warns(UserWarning, match="non-finite"):
        search = GridSearchCV(BASE, {"alpha": [1.0, -1.0]}, cv=3).fit(X, CLASSES)
    assert np.isnan(search.cv_results_["mean_test_score"][1]) and search.best_index_ == 0


def test_epochs_that_run_out_warn_once():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.warns(
            ConvergenceWarning, match="^MLPClassifier did not converge, 1 of 1: the epochs ran out"
        ) as one:
            clone(BASE).fit(X, CLASSES)
        assert one[0].filename == __file__
        grid = {"max_iter": [2, 300], "tol": [1.0]}
        search = GridSearchCV(BASE.set_params(n_iter_no_change=3), grid, cv=3, refit=False)
        with pytest.warns(
            ConvergenceWarning, match="^MLPClassifier did not converge, 3 of 6: the epochs ran out"
        ) as all_:
            search.fit(X, CLASSES)
        assert len(one) == len(all_) == 1 and all_[0].filename == __file__


def test_a_batch_larger_than_the_data_is_clipped_with_a_warning():
    with pytest.warns(UserWarning, match="It is going to be clipped") as warned:
        model = MLPClassifier((3,), batch_size=1000, max_iter=2, random_state=0).fit(X, CLASSES)
    assert warned[0].filename == __file__
    assert_allclose(losses(model), losses(clone(model).set_params(batch_size=330).fit(X, CLASSES)), rtol=1e-12)
