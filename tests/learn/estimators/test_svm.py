"""SVC and SVR: scikit-learn's models, by matrix products, alone and many at once."""

from __future__ import annotations

import pickle
import warnings
from itertools import product

import numpy as np
import pytest
import sklearn.svm
from pairwise import pairwise
from scipy.sparse import csr_matrix
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, ShuffleSplit, StratifiedKFold

import featx
from featx.learn import SVC, SVR
from featx.learn.estimators.batched import Fold, Job, ScoredRows

SEED = 0


def data(k=3, n=240, d=12, dtype=np.float32, seed=SEED):
    X, y = make_classification(
        n, d, n_informative=d - 4, n_redundant=2, n_classes=k, n_clusters_per_class=1, class_sep=0.7, random_state=seed
    )
    return X.astype(dtype), np.array([f"c{c}" for c in range(k)])[y]


def numbers(n=200, d=8, dtype=np.float32):
    rng = np.random.default_rng(SEED)
    X = rng.standard_normal((n, d)).astype(dtype)
    return X, np.sin(X[:, 0]) + X[:, 1] ** 2 + 0.1 * rng.standard_normal(n)


def agree(ours, theirs, X, tol=1e-3):
    """Decision values within 1e-3 of theirs, and (all but one in 1,000 of) the predictions."""
    assert len(ours.support_) == ours.support_vectors_.shape[0] == ours.dual_coef_.shape[1]
    if hasattr(ours, "classes_"):
        a, b = ours._decision_function(X), theirs._decision_function(X)
        assert np.mean(ours.predict(X) == theirs.predict(X)) >= 0.999
    else:
        a, b = ours.predict(X), theirs.predict(X)
    assert a.shape == b.shape and a.dtype == b.dtype == np.float64
    assert np.abs(a - b).max() <= tol


KERNELS = {
    "rbf": {"kernel": "rbf"},
    "rbf-0.02": {"kernel": "rbf", "gamma": 0.02},
    "linear": {"kernel": "linear"},
    "poly": {"kernel": "poly", "coef0": 1.0, "degree": 2},
    "sigmoid": {"kernel": "sigmoid", "gamma": "auto"},
}


@pairwise(
    kernel=KERNELS,
    k=[2, 3, 5],
    dtype=[np.float32, np.float64],
    C=[0.1, 2.0],
    class_weight={"even": None, "balanced": "balanced", "dict": {"c1": 3.0}},
    weights={"even": None, "array": np.random.default_rng(SEED).uniform(0.2, 2, 180)},
)
def test_a_classifier_decides_as_scikit_learn_s(kernel, k, dtype, C, class_weight, weights):
    X, y = data(k, dtype=dtype)
    # at 1e-5 a linear machine of C=10 takes 500,000 steps, and rounding decides how many
    params = {"C": C, "class_weight": class_weight, "tol": 1e-4, **kernel}
    ours = SVC(**params).fit(X[:180], y[:180], weights)
    theirs = sklearn.svm.SVC(**params).fit(X[:180].astype(np.float64), y[:180], weights)
    agree(ours, theirs, X)


def test_float32_rows_and_memory_maps_give_scikit_learn_s_very_machine(tmp_path):
    X, y = data(4)
    np.save(tmp_path / "X.npy", X)
    ours = SVC(C=3, gamma=0.05).fit(np.load(tmp_path / "X.npy", mmap_mode="r"), y)
    theirs = sklearn.svm.SVC(C=3, gamma=0.05).fit(X, y)
    for name in ("support_", "n_support_", "n_iter_", "shape_fit_", "fit_status_", "class_weight_", "classes_"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    for name in ("support_vectors_", "dual_coef_", "intercept_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-6, atol=1e-9, err_msg=name)
    assert ours.support_vectors_.dtype == np.float32 and ours.support_vectors_.flags.owndata
    for shape in ("ovr", "ovo"):
        values = [model.set_params(decision_function_shape=shape).decision_function(X) for model in (ours, theirs)]
        np.testing.assert_allclose(*values, atol=1e-9)
    broken = [m.set_params(decision_function_shape="ovr", break_ties=True).predict(X) for m in (ours, theirs)]
    np.testing.assert_array_equal(*broken)
    with pytest.raises(ValueError, match="break_ties must be False"):
        ours.set_params(decision_function_shape="ovo").predict(X)


def test_linear_machines_have_coefficients():
    X, y = data(3)
    np.testing.assert_allclose(
        SVC(kernel="linear").fit(X, y).coef_, sklearn.svm.SVC(kernel="linear").fit(X, y).coef_, atol=1e-6
    )


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_a_regression_is_scikit_learn_s(kernel):
    X, y = numbers()
    weights = np.random.default_rng(SEED).uniform(0, 2, len(y)) * (np.arange(len(y)) % 7 > 0)
    for C, epsilon, sample_weight in ((1.0, 0.1, None), (5.0, 0.0, weights), (1.0, 100.0, None)):
        params = {"C": C, "epsilon": epsilon, "tol": 1e-4, **kernel}
        ours = SVR(**params).fit(X, y, sample_weight)
        agree(ours, sklearn.svm.SVR(**params).fit(X, y, sample_weight), X)
        assert isinstance(ours.n_iter_, int) and ours.n_support_.shape == (1,)


def test_rows_and_classes_of_weight_0_are_as_if_absent():
    X, y = data(3)
    weights = np.where(y == "c1", 0.0, 1.0) * (np.arange(len(y)) % 5 > 0)
    kept = weights > 0
    ours = SVC(gamma=0.1).fit(X, y, weights)
    theirs = sklearn.svm.SVC(gamma=0.1).fit(X[kept], y[kept])
    agree(ours, theirs, X, 1e-9)
    np.testing.assert_array_equal(ours.classes_, ["c0", "c2"])
    np.testing.assert_array_equal(ours.support_, np.flatnonzero(kept)[theirs.support_])
    for refused in (np.zeros(len(y)), -weights, np.where(y == "c0", 1.0, 0.0)):
        with pytest.raises(ValueError, match="Invalid input"):
            SVC().fit(X, y, refused)
    with pytest.raises(ValueError, match="incompatible shapes"):
        SVC().fit(X, y, weights[1:])


def folds_of(X, splits, scaled=False, also=True):
    for number, (train, test) in enumerate(splits):
        shift, scale = (X[train].mean(0), X[train].std(0)) if scaled else (None, None)
        rows = (X - shift) / scale if scaled else X
        matrices = (rows[test], rows[train], rows[:7]) if also else (rows[test],)
        yield Fold(number, train, scored(*matrices), test, shift=shift, scale=scale)


def scored(*matrices):
    return ScoredRows(lambda: matrices)


SPLITS = {
    "stratified": StratifiedKFold(3),
    "shuffled": ShuffleSplit(2, train_size=0.3, test_size=0.2, random_state=SEED),
    "sorted": KFold(2),
}


@pairwise(cv=SPLITS, scaled={"as-is": False, "scaled": True}, kept={"kept": True, "computed-again": False})
def test_machines_fitted_together_are_those_fitted_alone(cv, scaled, kept, three_threads):
    X, y = data(3)
    # two classes' distances and kernels have room; those of all rows only if they are to be kept
    budget = None if kept else 20 * 175**2 + 8 * X.size
    grid = [{"gamma": gamma, "C": C} for gamma, C in product(("scale", 0.03), (0.5, 5))]
    grid += [{"kernel": "linear"}, {"kernel": "poly", "class_weight": "balanced"}, {"kernel": "sigmoid", "coef0": 0.1}]
    folds = list(folds_of(X, cv.split(X, y), scaled))
    jobs = [Job(SVC(**params, budget_bytes=budget), fold) for fold in folds for params in grid]
    seen = []
    for number, model, seconds, view in SVC.fit_each(X, y, jobs):
        estimator, fold = jobs[number]
        assert model is estimator and seconds > 0
        rows = X if fold.shift is None else (X - fold.shift) / fold.scale
        alone = sklearn.svm.SVC(**{k: v for k, v in model.get_params().items() if k not in ("device", "budget_bytes")})
        alone.fit(rows[fold.train], y[fold.train])
        agree(model, alone, rows, 1e-6)
        np.testing.assert_array_equal(model.support_, alone.support_)
        np.testing.assert_allclose(model._gamma, alone._gamma, rtol=1e-9)
        for matrix in fold.matrices:
            np.testing.assert_allclose(view.decision_function(matrix), alone.decision_function(matrix), atol=1e-6)
            np.testing.assert_array_equal(view.predict(matrix), model.predict(matrix))
            np.testing.assert_array_equal(view.predict(matrix.copy()), model.predict(matrix))  # computed again
        seen.append(number)
    assert sorted(seen) == list(range(len(jobs)))
    assert not any("_known_decisions" in vars(job.estimator) for job in jobs)


def test_regressions_fitted_together_are_those_fitted_alone():
    X, y = numbers()
    weights = np.random.default_rng(SEED).uniform(0.1, 2, len(y))
    jobs = []
    for number, (train, test) in enumerate(KFold(3, shuffle=True, random_state=SEED).split(X)):
        fold = Fold(number, train, scored(X[test].copy()), sample_weight=weights[train])  # rows that X does not have
        jobs += [Job(SVR(C=C, epsilon=epsilon), fold) for C, epsilon in product((1, 10), (0.05, 0.2))]
    for number, model, _, view in SVR.fit_each(X, y, jobs):
        fold = jobs[number].fold
        (X_test,) = fold.matrices
        alone = sklearn.svm.SVR(C=model.C, epsilon=model.epsilon).fit(X[fold.train], y[fold.train], weights[fold.train])
        np.testing.assert_allclose(view.predict(X_test), alone.predict(X_test), atol=1e-6)
        assert view.score(X_test, y[: len(X_test)]) == pytest.approx(alone.score(X_test, y[: len(X_test)]))


def test_a_job_that_cannot_be_fitted_leaves_the_others():
    X, y = data(2)
    whole, one = Fold(0, np.arange(len(y)), scored(X)), Fold(1, np.flatnonzero(y == "c0"), scored(X))
    jobs = [Job(SVC(C=-1), whole), Job(SVC(), one), Job(SVC(), whole), Job(SVC(class_weight={"c9": 1.0}), whole)]
    answers = {number: model for number, model, *_ in SVC.fit_each(X, y, jobs)}
    assert isinstance(answers[0], ValueError) and "C" in str(answers[0])
    assert isinstance(answers[1], ValueError) and "classes" in str(answers[1])
    assert isinstance(answers[2], SVC)
    assert isinstance(answers[3], ValueError) and "are not in class_weight" in str(answers[3])


def test_what_is_not_ours_goes_scikit_learn_s_way():
    X, y = data(3, dtype=np.float64)
    theirs = sklearn.svm.SVC().fit(X, y)
    agree(SVC().fit(csr_matrix(X), y), theirs, X, 1e-6)
    kernel = X @ X.T
    for given, rows in ((kernel, kernel), (lambda a, b: a @ b.T, X)):
        model = SVC(kernel="precomputed" if given is kernel else given).fit(rows, y)
        np.testing.assert_array_equal(model.predict(rows), sklearn.svm.SVC(kernel="linear").fit(X, y).predict(X))
    fold = Fold(0, np.arange(100), scored(csr_matrix(X[100:])), np.arange(100, len(y)))
    ((_, model, *_),) = SVC.fit_each(csr_matrix(X), y, [Job(SVC(), fold)])
    np.testing.assert_array_equal(model.predict(X), sklearn.svm.SVC().fit(X[:100], y[:100]).predict(X))


def test_beyond_the_budget_it_says_so_once_and_answers_all_the_same():
    X, y = data(3)
    theirs = sklearn.svm.SVC().fit(X, y)
    needed = 20 * 161**2 + 8 * X.size
    with pytest.warns(UserWarning, match=rf"kernel matrix of 161 rows takes .* budget_bytes={needed}"):
        agree(SVC(budget_bytes=1000).fit(X, y), theirs, X, 1e-6)
    jobs = [Job(SVC(C=C, budget_bytes=1000), fold) for fold in folds_of(X, KFold(2).split(X)) for C in (1, 2)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        models = [model for _, model, *_ in SVC.fit_each(X, y, jobs)]
    assert [warning.category for warning in caught] == [UserWarning]
    assert all(isinstance(model, SVC) for model in models)


def test_running_out_of_iterations_warns():
    X, y = data(2)
    with pytest.warns(ConvergenceWarning, match="max_iter=3"):
        assert SVC(max_iter=3).fit(X, y).fit_status_ == 1


def test_probabilities_come_of_calibration():
    X, y = data(3)
    shares = CalibratedClassifierCV(SVC(), ensemble=False).fit(X, y).predict_proba(X)
    theirs = CalibratedClassifierCV(sklearn.svm.SVC(), ensemble=False).fit(X, y).predict_proba(X)
    np.testing.assert_allclose(shares, theirs, atol=1e-6)
    assert not hasattr(SVC().fit(X, y), "predict_proba")
    with pytest.warns(FutureWarning, match="CalibratedClassifierCV"):
        assert SVC(probability=True, random_state=0).fit(X, y).predict_proba(X).shape == (len(y), 3)


@pytest.mark.parametrize("model", [SVC(), SVC(kernel="poly"), SVR(), SVC(kernel="linear", class_weight="balanced")])
@pytest.mark.filterwarnings("ignore:.* has no StoredFeatures or ImageFeatures")
def test_a_saved_model_predicts_the_same(model, tmp_path):
    X, y = numbers() if isinstance(model, SVR) else data(3)
    model.fit(X, y)
    for again in (featx.load(featx.save(model, tmp_path / "m.skops")), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(again.predict(X), model.predict(X))
        assert again.get_params() == model.get_params()
