"""What all linear models share: many fits in one call are single fits, and scikit-learn's contract around them."""

from __future__ import annotations

import doctest
import inspect
import pickle
import tracemalloc
import warnings
from dataclasses import replace
from itertools import product

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import sklearn.linear_model
import sklearn.svm
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_classification
from sklearn.ensemble import BaggingClassifier, VotingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featx
from featx import learn, solvers
from featx.errors import FeatxError
from featx.learn import Fit, LinearSVC, LogisticRegression, Ridge, RidgeClassifier, lazy_rows
from featx.learn.estimators import linear

TIGHT = {"tol": 1e-9, "max_iter": 2000}
OURS = [LogisticRegression(**TIGHT), LinearSVC(**TIGHT), RidgeClassifier(), Ridge()]
THEIRS = {
    "LogisticRegression": sklearn.linear_model.LogisticRegression(solver="newton-cholesky", tol=1e-10, max_iter=1000),
    "LinearSVC": sklearn.svm.LinearSVC(dual=False, tol=1e-10, max_iter=100_000),
    "RidgeClassifier": sklearn.linear_model.RidgeClassifier(),
    "Ridge": sklearn.linear_model.Ridge(),
}
CLASS_WEIGHTS = {"even": None, "balanced": "balanced", "dict": {"ant": 3, "cat": 0.5}}
all_models = pytest.mark.parametrize("model", OURS, ids=lambda model: type(model).__name__)


def name_of(model):
    return type(model).__name__


def penalty_of(model):
    return "alpha" if isinstance(model, Ridge | RidgeClassifier) else "C"


@pytest.fixture(scope="module")
def data():
    """(90, 5) rows of three overlapping classes, "ant" to "cat"; not to be changed."""
    X, y = make_classification(90, 5, n_informative=4, n_redundant=0, n_classes=3, class_sep=0.7, random_state=0)
    X = X * [1, 3, 0.5, 10, 1] + [5, 0, 0, -20, 1]
    X.setflags(write=False)
    return X, np.array(["ant", "bee", "cat"])[y]


def target_of(model, data):
    X, y = data
    return y if is_classifier(model) else X @ np.arange(5.0) + np.random.default_rng(0).normal(size=len(X))


@pytest.fixture
def calls(monkeypatch):
    """(X, y, problems, options) of each call of the solvers from now on."""
    found = []
    solve = solvers.solve

    def recorded(X, y, problems, loss, **options):
        found.append((X, y, problems, options))
        return solve(X, y, problems, loss, **options)

    monkeypatch.setattr(solvers, "solve", recorded)
    return found


def assert_same_model(model, expected, rtol=1e-5):
    """Every attribute is the same, numbers within rtol of the largest."""
    assert vars(model).keys() == vars(expected).keys()
    for name, value in vars(expected).items():
        if name in ("coef_", "intercept_"):
            got = getattr(model, name)
            assert np.shape(got) == np.shape(value) and np.asarray(got).dtype == np.asarray(value).dtype
            assert_allclose(got, value, rtol, atol=rtol * np.abs(value).max())
        elif name != "n_iter_":
            assert_array_equal(getattr(model, name), value)


# many fits in one call


def folds_of(data):
    """Fits of four folds, one of which lacks a class, standardised and weighted in different ways."""
    X, y = data
    weights = np.random.default_rng(1).uniform(0.5, 2, len(X))
    folds = [(np.arange(len(X)) % 4 != fold) * (weights if fold else 1) for fold in range(3)]
    folds.append((y != "bee") * weights)
    found = []
    for fold in folds:
        scaler = StandardScaler().fit(X[fold > 0])
        found.append(Fit(sample_weight=fold, shift=scaler.mean_, scale=scaler.scale_))
        found.append(Fit(sample_weight=fold, scale=scaler.scale_))
    return [*found, Fit()]


WEIGHTED = pytest.mark.parametrize(
    "model, class_weight",
    [
        (model, weights)
        for model, kinds in zip(OURS, [("even", "dict"), ("balanced", "dict"), ("balanced",), ("even",)], strict=True)
        for weights in kinds
    ],
    ids=lambda value: value if isinstance(value, str) else name_of(value),
)


@WEIGHTED
def test_many_fits_are_single_fits_on_the_rows_that_are_there(model, class_weight, data):
    X, y, class_weight = data[0], target_of(model, data), CLASS_WEIGHTS[class_weight]
    fits = []
    for number, fit in enumerate(folds_of(data)):
        value = (0.01, 10)[number // 2 % 2]
        params = {penalty_of(model): value, "fit_intercept": fit.shift is not None}
        fits.append(replace(fit, params=params | ({"class_weight": class_weight} if is_classifier(model) else {})))
    for fit, fitted in zip(fits, model.fit_many(X, y, fits), strict=True):
        s = np.ones(len(X)) if fit.sample_weight is None else fit.sample_weight
        transformed = (X - (0 if fit.shift is None else fit.shift)) / (1 if fit.scale is None else fit.scale)
        single = clone(model).set_params(**fit.params).fit(transformed[s > 0], y[s > 0], sample_weight=s[s > 0])
        assert_same_model(fitted, single)


@WEIGHTED
def test_folds_are_what_scikit_learn_fits_on_standardised_folds(model, class_weight, data):
    X, y = data[0], target_of(model, data)
    weighting = {"class_weight": CLASS_WEIGHTS[class_weight]} if is_classifier(model) else {}
    fits = [
        replace(fit, params={penalty_of(model): value, **weighting})
        for fit in folds_of(data)
        if fit.shift is not None
        for value in (0.01, 10)
    ]
    for fit, fitted in zip(fits, model.fit_many(X, y, fits), strict=True):
        rows = fit.sample_weight > 0
        theirs = clone(THEIRS[name_of(model)]).set_params(**fit.params)
        scaled = StandardScaler().fit_transform(X[rows])
        theirs.fit(scaled, y[rows], sample_weight=fit.sample_weight[rows])
        assert_allclose(fitted.coef_, theirs.coef_, rtol=1e-4, atol=1e-4 * np.abs(theirs.coef_).max())
        if is_classifier(model):
            assert_array_equal(fitted.predict(scaled), theirs.predict(scaled))
        else:
            assert_allclose(fitted.predict(scaled), theirs.predict(scaled))


def test_fits_that_stop_alike_go_to_the_solver_in_one_call_and_share_their_arrays(data, calls):
    X = data[0]
    folds = [(np.arange(len(X)) % 3 != fold).astype(float) for fold in range(3)]
    shift, scale = X.mean(axis=0), X.std(axis=0)
    for model in OURS:
        fits = [Fit({penalty_of(model): value}, fold, shift, scale) for value in (0.1, 1) for fold in folds]
        model.fit_many(X, target_of(model, data), fits)
        ((_, _, problems, options),) = calls
        # the objects themselves: == of arrays is no bool
        assert [problem.weights for problem in problems] == folds + folds
        assert all(problem.shift is shift and problem.scale is scale for problem in problems)
        assert options["device"] == "auto"
        calls.clear()


def test_fits_that_stop_differently_go_in_calls_of_their_own_and_come_back_in_order(data, calls):
    X, y = data
    fits = [Fit({"C": C, "tol": tol}) for C in (0.01, 1.0) for tol in (1e-3, 1e-6, 1e-3)]
    fitted = LogisticRegression(max_iter=500).fit_many(X, y, fits)
    assert [(len(problems), options["tol"]) for _, _, problems, options in calls] == [(4, 1e-3), (2, 1e-6)]
    assert [(model.C, model.tol) for model in fitted] == [(fit.params["C"], fit.params["tol"]) for fit in fits]
    norms = [np.linalg.norm(model.coef_) for model in fitted]
    assert max(norms[:3]) < min(norms[3:])


def test_class_weights_are_shared_too(data, calls):
    X, y = data
    fold = np.arange(len(X)) % 3 > 0
    for model in OURS[:3]:
        values = ({penalty_of(model): value, "class_weight": "balanced"} for value in (0.1, 1, 10))
        model.fit_many(X, y, [Fit(params, fold) for params in values])
        ((_, _, problems, _),) = calls
        assert len(problems) == 3 and len({id(problem.weights) for problem in problems}) == 1
        calls.clear()


def test_class_weights_are_computed_once_a_fit(data, monkeypatch):
    computed = []
    compute = linear.compute_class_weight
    monkeypatch.setattr(
        linear, "compute_class_weight", lambda *args, **options: computed.append(1) or compute(*args, **options)
    )
    for model in OURS[:3]:
        clone(model).set_params(class_weight="balanced").fit(*data)
    assert computed == [1] * 3


def test_x_and_y_are_checked_once_and_the_model_itself_stays_unfitted(data, monkeypatch):
    checked = []
    validate_data = lazy_rows.validate_data
    monkeypatch.setattr(
        lazy_rows, "validate_data", lambda *args, **options: checked.append(1) or validate_data(*args, **options)
    )
    for model in OURS:
        checked.clear()
        fits = [Fit({penalty_of(model): value}) for value in (1, 2, 3)]
        fitted = model.fit_many(data[0], target_of(model, data), fits)
        assert len(fitted) == 3 and checked == [1]
        assert "coef_" not in vars(model) and all(one.n_features_in_ == 5 for one in fitted)
        assert model.fit_many(data[0], target_of(model, data), []) == []


def test_a_fit_that_cannot_be_is_refused(data):
    X, y = data
    with pytest.raises(ValueError, match="'C' parameter of LogisticRegression"):
        LogisticRegression().fit_many(X, y, [Fit(), Fit({"C": -1.0})])
    with pytest.raises(FeatxError, match="has no loss='hinge'"):
        LinearSVC().fit_many(X, y, [Fit(), Fit({"loss": "hinge"})])
    with pytest.raises(ValueError, match="Invalid parameter 'alhpa'"):
        Ridge().fit_many(X, X, [Fit({"alhpa": 1})])


# rows, weights and classes


def test_a_class_without_weight_is_as_if_absent(data):
    X, y = data
    there = y != "bee"
    for model in OURS[:3]:
        alone = clone(model).fit(X[there], y[there])
        for fitted in (
            clone(model).fit(X, y, sample_weight=there),
            clone(model).set_params(class_weight={"bee": 0}).fit(X, y),
        ):
            assert_array_equal(fitted.classes_, ["ant", "cat"])
            assert_allclose(fitted.coef_, alone.coef_, rtol=1e-5, atol=1e-7)
            assert fitted.coef_.shape == alone.coef_.shape


def test_one_class_is_not_enough(data):
    X, y = data
    sets = (np.full(90, "bee"), None), (np.full(90, "bee"), np.ones(90)), (y, y == "bee")
    for model, (labels, weights) in product(OURS[:3], sets):
        with pytest.raises(ValueError, match=r"at least 2 classes in the data.*only one class: .*'bee'"):
            clone(model).fit(X, labels, sample_weight=weights)


@pytest.mark.parametrize(
    "weights, words",
    [
        (-np.ones(90), "Negative values in data passed to `sample_weight`"),
        (np.full(90, np.nan), "sample_weight contains NaN"),
        (np.zeros(90), "at least one non-zero number"),
        (np.ones(89), "sample_weight.shape"),
    ],
    ids=["negative", "nan", "zeros", "too few"],
)
def test_invalid_weights_are_refused(weights, words, data):
    for model in OURS:
        with pytest.raises(ValueError, match=words):
            clone(model).fit(data[0], target_of(model, data), sample_weight=weights)


@pytest.mark.parametrize(
    "class_weight, error, words",
    [
        ({"bee": 1, "cat": 1, "dog": 1}, ValueError, r"The classes, \['ant'\], are not in class_weight"),
        ({"bee": -1}, FeatxError, "class weights must be finite, at least 0 and not all 0"),
        ({"bee": np.nan}, FeatxError, "class weights must be finite, at least 0 and not all 0"),
    ],
    ids=["a class is lacking", "negative", "nan"],
)
def test_invalid_class_weights_are_refused(class_weight, error, words, data):
    for model in OURS[:3]:
        with pytest.raises(error, match=words):
            clone(model).set_params(class_weight=class_weight).fit(*data)


@all_models
def test_a_fit_that_is_refused_leaves_the_model_as_it_was(model, data, monkeypatch):
    X, y = data[0], target_of(model, data)
    table = pd.DataFrame(X, columns=list("abcde"))
    fitted = clone(model).fit(table, y)
    before, predicted = dict(vars(fitted)), fitted.predict(table)
    refused = [(X[:, :4], np.full(90, np.nan), None), (X[:, :4], y, -np.ones(90)), (np.full((90, 4), np.nan), y, None)]
    for rows, targets, weights in [*refused, *((pd.DataFrame(r).add_prefix("x"), t, w) for r, t, w in refused)]:
        with pytest.raises(ValueError):
            fitted.fit(rows, targets, sample_weight=weights)
    monkeypatch.setattr(solvers, "solve", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fitted.fit(X[:, :4], y)
    assert vars(fitted) == before
    assert_array_equal(fitted.predict(table), predicted)
    monkeypatch.undo()
    assert not hasattr(fitted.fit(X[:, :4], y), "feature_names_in_") and fitted.n_features_in_ == 4


@all_models
def test_a_read_only_memory_map_is_used_as_it_is(model, tmp_path, calls, monkeypatch):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "X.npy", rng.normal(size=(20_000, 50)).astype(np.float32))
    X = np.load(tmp_path / "X.npy", mmap_mode="r")
    model = clone(model).set_params(**({} if penalty_of(model) == "alpha" else {"tol": 1e-2}))
    model.fit(X, np.arange(len(X)) % 2)
    assert np.shares_memory(calls[0][0], X) and not calls[0][0].flags.writeable
    assert model.coef_.dtype == (np.float64 if isinstance(model, LinearSVC) else np.float32)

    class Reached(Exception):
        pass

    def reached(*_, **__):
        raise Reached

    monkeypatch.setattr(solvers, "solve", reached)
    tracemalloc.start()
    with pytest.raises(Reached):
        clone(model).fit(X, np.arange(len(X)) % 2, sample_weight=np.ones(len(X)))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < X.nbytes / 2  # a few numbers a row, of which there are 50


@pytest.mark.parametrize(
    "dtype, expected", [("f4", "f4"), ("f8", "f8"), (">f8", "f8"), ("f2", "f8"), ("i4", "f8")], ids=str
)
def test_float_types_are_kept_as_scikit_learn_keeps_them_and_others_become_float64(dtype, expected, data):
    X = np.asfortranarray(data[0].astype(dtype))
    for model in OURS:
        fitted = clone(model).set_params(tol=1e-4).fit(X, target_of(model, data))
        wanted = np.dtype("f8" if isinstance(model, LinearSVC) else expected)  # as of liblinear
        assert fitted.coef_.dtype == fitted.intercept_.dtype == wanted


def test_sparse_input_is_refused_by_name(data):
    for model, container in product(OURS, (sparse.csr_array, sparse.csc_matrix)):
        with pytest.raises(
            FeatxError, match=rf"{name_of(model)} takes dense arrays, and X is sparse.*toarray.*sklearn\."
        ):
            clone(model).fit(container(data[0]), target_of(model, data))


# scikit-learn's contract


def test_parameters_and_their_defaults_are_scikit_learn_s():
    for model in OURS:
        ours = inspect.signature(type(model)).parameters
        theirs = dict(inspect.signature(type(THEIRS[name_of(model)])).parameters)
        for deprecated in ("penalty", "n_jobs") if name_of(model) == "LogisticRegression" else ():
            assert theirs.pop(deprecated)
        if name_of(model) == "LogisticRegression":  # as a pass costs little: enough of them to get there
            theirs["max_iter"] = theirs["max_iter"].replace(default=1000)
        assert {name: (p.default, p.kind) for name, p in ours.items() if name != "device"} == {
            name: (p.default, p.kind) for name, p in theirs.items()
        }, model
        assert ours["device"].default == "auto", model


@pytest.mark.parametrize(
    "model, wrong",
    [
        (LogisticRegression(), {"C": 0}),
        (LogisticRegression(), {"solver": "lbgfs"}),
        (LogisticRegression(), {"class_weight": "even"}),
        (LogisticRegression(), {"random_state": "x"}),
        (LinearSVC(), {"tol": 0.0}),
        (LinearSVC(), {"C": np.inf}),
        (LinearSVC(), {"penalty": "l3"}),
        (Ridge(), {"alpha": -1.0}),
        (Ridge(), {"max_iter": 0}),
        (RidgeClassifier(), {"tol": -1}),
        (RidgeClassifier(), {"solver": "qr"}),
    ],
)
def test_wrong_parameters_are_refused_in_scikit_learn_s_words(model, wrong, data):
    X, y = data
    messages = []
    for estimator in (model, THEIRS[name_of(model)]):
        with pytest.raises(ValueError) as refused:
            clone(estimator).set_params(**wrong).fit(X, y)
        messages.append(sorted(str(refused.value)))  # they list sets, in an order of chance
    assert messages[0] == messages[1]


def test_a_wrong_device_is_refused(data):
    for model in OURS:
        with pytest.raises(ValueError, match=f"'device' parameter of {name_of(model)} "):
            clone(model).set_params(device="tpu").fit(data[0], target_of(model, data))


@pytest.mark.parametrize(
    "model, wanted",
    [
        (LogisticRegression(l1_ratio=0.5), "LogisticRegression has no l1_ratio=0.5, only 0; sklearn.linear_model.Log"),
        (LinearSVC(penalty="l1"), "LinearSVC has no penalty='l1', only 'l2'; sklearn.svm.LinearSVC has it"),
        (LinearSVC("l2", "hinge"), "LinearSVC has no loss='hinge', only 'squared_hinge'; sklearn.svm.LinearSVC has"),
        (LinearSVC(multi_class="crammer_singer"), "LinearSVC has no multi_class='crammer_singer', only 'ovr'; "),
        (Ridge(positive=True), "Ridge has no positive=True, only False; sklearn.linear_model.Ridge has it"),
        (RidgeClassifier(positive=True), "has no positive=True, only False; sklearn.linear_model.RidgeClassifier "),
    ],
    ids=repr,
)
def test_what_is_not_solved_here_is_refused_with_where_to_go(model, wanted, data):
    with pytest.raises(FeatxError) as refused:
        model.fit(*data)
    assert wanted in str(refused.value)


def test_column_names_are_kept_and_compared(data):
    table = pd.DataFrame(data[0], columns=list("abcde"))
    for model in OURS:
        y = target_of(model, data)
        for fitted in (clone(model).fit(table, y), *model.fit_many(table, y, [Fit(), Fit()])):
            assert_array_equal(fitted.feature_names_in_, list("abcde"))
            with pytest.raises(ValueError, match="feature names should match"):
                fitted.predict(table[list("edcba")])
        assert not hasattr(clone(model).fit(data[0], y), "feature_names_in_")


@pytest.mark.filterwarnings("ignore:.* has no StoredFeatures or ImageFeatures")
@all_models
def test_models_survive_pickle_joblib_and_featx_s_own_files(model, data, tmp_path):
    X, y = data[0], target_of(model, data)
    (fitted,) = model.fit_many(X, y, [Fit({penalty_of(model): 0.5}, np.arange(90) % 3 > 0)])
    joblib.dump(fitted, tmp_path / "model.joblib")
    featx.save(make_pipeline(StandardScaler().fit(X), fitted), tmp_path / "model.skops")
    for again in (
        pickle.loads(pickle.dumps(fitted)),
        joblib.load(tmp_path / "model.joblib"),
        featx.load(tmp_path / "model.skops")[-1],
    ):
        assert_array_equal(again.predict(X), fitted.predict(X))
        assert again.get_params() == fitted.get_params()


@all_models
def test_weights_are_routed_to_it(model, data):
    X, y = data[0], target_of(model, data)
    weights = np.random.default_rng(0).uniform(0.1, 3, len(X))
    with sklearn.config_context(enable_metadata_routing=True):
        routed = clone(model).set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        search = GridSearchCV(
            make_pipeline(StandardScaler().set_fit_request(sample_weight=False), routed),
            {f"{name_of(model).lower()}__{penalty_of(model)}": [0.5]},
            cv=3,
        ).fit(X, y, sample_weight=weights)
    expected = clone(model).set_params(**{penalty_of(model): 0.5}).fit(StandardScaler().fit_transform(X), y, weights)
    assert_allclose(search.best_estimator_[-1].coef_, expected.coef_, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "meta",
    [
        CalibratedClassifierCV(LinearSVC(), ensemble=True, cv=3),
        CalibratedClassifierCV(RidgeClassifier(), ensemble=False, cv=3),
        OneVsRestClassifier(LogisticRegression()),
        BaggingClassifier(LogisticRegression(), n_estimators=3, random_state=0),
        VotingClassifier([("a", LogisticRegression()), ("b", LogisticRegression(C=0.1))], voting="soft"),
        GridSearchCV(make_pipeline(StandardScaler(), LogisticRegression()), {"logisticregression__C": [0.1, 1]}, cv=3),
    ],
    ids=lambda meta: type(meta).__name__,
)
def test_scikit_learn_s_meta_estimators_take_them(meta, data):
    X, y = StandardScaler().fit_transform(data[0]), data[1]
    fitted = meta.fit(X, y)
    assert_allclose(fitted.predict_proba(X).sum(axis=1), 1)
    assert fitted.score(X, y) > 0.55  # of three classes


def test_they_show_themselves_in_notebooks(data):
    for model in OURS:
        fitted = clone(model).fit(data[0], target_of(model, data))
        assert f"{name_of(model)}(" in repr(fitted)
        assert name_of(model) in fitted._repr_html_() and "coef_" not in repr(fitted)


def test_examples_are_true():
    failed, tried = doctest.testmod(learn)
    assert not failed and tried > 25


# convergence


@pytest.mark.parametrize("model", OURS[:2], ids=name_of)
def test_one_warning_names_the_problems_that_did_not_converge(model, data, monkeypatch):
    solve, statuses = solvers.solve, iter(["CONVERGED", "MAX_ITER", "ROUNDING", "MAX_ITER", "MAX_ITER"])
    monkeypatch.setattr(
        solvers,
        "solve",
        lambda *args, **options: [
            replace(solution, status=solvers.Status[next(statuses)]) for solution in solve(*args, **options)
        ],
    )
    X, y = data
    fold = np.arange(90) % 2 == 0
    fits = [Fit({"C": 0.1}), Fit({"C": 1.0}), Fit(), Fit({"C": 1.0}, fold), Fit({"C": 3.0, "fit_intercept": False})]
    with pytest.warns(ConvergenceWarning) as caught:
        model.fit_many(X, y, fits)
    (warning,) = caught
    assert str(warning.message) == (
        f"{name_of(model)} did not converge for C=1.0 and C=3.0, fit_intercept=False: "
        f"{solvers.Status.MAX_ITER.value}; C=1.0: {solvers.Status.ROUNDING.value}"
    )


@pytest.mark.parametrize("model", OURS[:2], ids=name_of)
def test_too_few_iterations_warn_and_enough_do_not(model, data):
    X, y = data
    with pytest.warns(ConvergenceWarning, match=r"C=100\.0: the iterations ran out: raise max_iter") as caught:
        hasty = clone(model).set_params(C=100.0, max_iter=1).fit(X, y)
    assert caught[0].filename == __file__
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patient = clone(model).set_params(C=100.0).fit(X, y)
    assert not caught
    assert np.max(hasty.n_iter_) <= np.max(patient.n_iter_)


@pytest.mark.parametrize("model", [LogisticRegression(), LinearSVC()], ids=name_of)
def test_a_weight_of_2_is_a_row_twice_as_far_as_tol_goes(model):
    """At the default tol both objectives are near the least one; with a small tol the coefficients are the same."""
    rng = np.random.default_rng(0)
    X, y, weights = rng.random((15, 30)), rng.integers(0, 3, 15), rng.integers(0, 5, 15)
    repeated = X.repeat(weights, axis=0), y.repeat(weights)

    def objective(fitted):
        W, b = fitted.coef_, fitted.intercept_
        if isinstance(fitted, LogisticRegression):
            losses = -fitted.predict_log_proba(X)[np.arange(15), y]
        else:
            signs = np.where(y[:, None] == fitted.classes_, 1, -1)
            losses = (np.maximum(0, 1 - signs * fitted.decision_function(X)) ** 2).sum(1)
            W = np.column_stack([W, b])  # liblinear penalises the intercept
        return (W**2).sum() / 2 + weights @ losses

    tight = clone(model).set_params(tol=1e-10)
    least, same = clone(tight).fit(X, y, weights), clone(tight).fit(*repeated)
    assert_allclose(least.coef_, same.coef_, rtol=1e-7, atol=1e-9)
    for fitted in (clone(model).fit(X, y, weights), clone(model).fit(*repeated)):
        assert objective(fitted) == pytest.approx(objective(least), rel=1e-5)
        assert_allclose(fitted.coef_, least.coef_, atol=1e-2)
