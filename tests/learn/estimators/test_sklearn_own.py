"""scikit-learn's own tests of its linear models, run on ours; and which of them cannot apply, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType

import pytest
import sklearn.linear_model
import sklearn.svm
import sklearn_own
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegressionCV

from featx.learn import LinearSVC, LogisticRegression, Ridge, RidgeClassifier
from featx.learn.estimators import linear

pytestmark = pytest.mark.sklearn

MODULES: dict[str, ModuleType] = {
    "Common": sklearn_own.copy_of("linear_model.tests.test_common"),
    "Logistic": sklearn_own.copy_of("linear_model.tests.test_logistic"),
    "Ridge": sklearn_own.copy_of("linear_model.tests.test_ridge"),
    "SVM": sklearn_own.copy_of("svm.tests.test_svm"),
}
ols_ridge_dataset = MODULES["Ridge"].ols_ridge_dataset

_SOLVER = "what one of scikit-learn's solvers refuses; ours is one solver, whatever name it is given"
_WORDS = "the words of a solver's warning; what else it asserts is in test_iterations_run_out"
_L1 = "an l1 or elastic-net penalty, which ours refuse"
_PENALTY = "LogisticRegression's penalty, deprecated there; ours has never had it"
_HINGE = "the hinge loss, which ours refuse"
_POSITIVE = "positive=True, which ours refuse"
_CALLBACKS = "callbacks from within the iterations, which ours have not: all problems of a grid iterate as one"
_ARRAY_API = "arrays of other libraries under array_api_dispatch; ours take NumPy's, and go to the GPU by `device`"
_SPARSE = "sparse X, which ours refuse"

# By module: a test, or a test and a part of "argument=value" of the parameters that cannot apply: what it is about.
CANNOT_APPLY: dict[str, dict[str | tuple[str, str], str]] = {
    "Common": {
        ("test_linear_model_classifier_coef_shape", "RidgeClassifier"): (
            "scikit-learn expects the failure: its coef_ of two classes is (d,), and so is ours"
        ),
        ("test_model_pipeline_same_dense_and_sparse", "RidgeClassifier"): (
            "its labels are all 1; one class alone is an error for each of ours"
        ),
    },
    "Logistic": {
        "test_check_solver_option": _SOLVER,
        "test_liblinear_multiclass_raises": _SOLVER,
        "test_liblinear_with_large_values": _SOLVER,
        "test_liblinear_dual_random_state": "that liblinear's dual depends on random_state; ours never do",
        "test_max_iter": _WORDS,
        "test_newton_cholesky_fallback_to_lbfgs": "which solver newton-cholesky falls back to, told by its warning",
        "test_warm_start_newton_solver": (
            "that two Newton steps are one and one again; the steps of L-BFGS need those before, which end with a fit"
        ),
        ("test_zero_max_iter", "solver='newton"): (
            "that iterations start at an intercept of 0, which is not asserted of lbfgs; ours start at the best one"
        ),
        ("test_zero_max_iter", "solver='sag"): "the same",
        ("test_zero_max_iter", "solver='liblinear'"): "the same",
        "test_logistic_cv_multinomial_score": "a private function of theirs, given all of get_params, n_jobs too",
        ("test_logistic_regression_sample_weights", "problem='cv'"): "LogisticRegressionCV alone",
        "test_LogisticRegressionCV_GridSearchCV_elastic_net": _L1,
        "test_elastic_net_versus_sgd": _L1,
        "test_liblinear_not_stuck": _L1,
        "test_logreg_l1": _L1,
        "test_scores_attribute_layout_elasticnet": _L1,
        ("test_logistic_regression_cv_refit", "l1_ratio=1"): _L1,
        ("test_logisticregression_liblinear_sample_weight", "'l1_ratio': 1"): _L1,
        ("test_saga_vs_liblinear", "l1_ratio=1"): _L1,
        "test_elastic_net_l1_l2_equivalence": _PENALTY,
        "test_elasticnet_l1_ratio_err_helpful": _PENALTY,
        "test_l1_ratio_non_elasticnet": _PENALTY,
        "test_lr_penalty_l1ratio_incompatible": _PENALTY,
        "test_penalty_deprecated": _PENALTY,
        "test_penalty_none": _PENALTY,
        "test_l1_ratio_None_deprecated": "a deprecated value of l1_ratio that ours has never had",
        "test_logisticregression_warns_with_n_jobs": "a deprecated parameter that ours has never had",
        "test_large_sparse_matrix": _SPARSE,
        "test_logistic_regression_array_api_compliance": _ARRAY_API,
        "test_logistic_regression_array_api_warm_start": _ARRAY_API,
        "test_logistic_regression_callback_fitted_estimator": _CALLBACKS,
        "test_logistic_regression_callback_support": _CALLBACKS,
        "test_logistic_regression_callback_support_warning": _CALLBACKS,
    },
    "Ridge": {
        "test_n_iter": "that iterations end at max_iter, and closed forms have n_iter_ None; ours count its passes",
        "test_lbfgs_solver_error": _POSITIVE,
        "test_ridge_positive_error_test": _POSITIVE,
        "test_ridge_positive_regression_test": _POSITIVE,
        "test_ridge_fit_intercept_sparse_error": _SPARSE,
        "test_ridge_fit_intercept_sparse_sag": _SPARSE,
        "test_array_api_error_and_warnings_for_solver_parameter": _ARRAY_API,
        "test_array_api_numpy_namespace_no_warning": _ARRAY_API,
        "test_ridge_array_api_compliance": _ARRAY_API,
        "test_ridge_classifier_multilabel_array_api": _ARRAY_API,
        "test_ridge_per_target_alpha_array_api": _ARRAY_API,
    },
    "SVM": {
        "test_crammer_singer_binary": "multi_class='crammer_singer', which ours refuse",
        "test_dense_liblinear_intercept_handling": _L1,
        "test_linear_svm_convergence_warnings": _WORDS,
        ("test_linearsvc_parameters", "loss='hinge'"): _HINGE,
        ("test_linearsvc_parameters", "penalty='l1'"): _L1,
        ("test_linearsvm_liblinear_sample_weight", "'loss': 'hinge'"): _HINGE,
        ("test_linearsvm_liblinear_sample_weight", "'penalty': 'l1'"): _L1,
    },
}
# Compared to more digits than the default tol gives: theirs with itself, ours with theirs.
TIGHTER = {"test_logistic_cv": 1e-9}
# Comparisons of solvers: the one that is ours, the others are theirs.
AGAINST_THEIRS = {
    "test_logistic_regression_solvers": "lbfgs",
    "test_logistic_regression_solvers_multiclass": "lbfgs",
    "test_logistic_regression_solvers_multiclass_unpenalized": "lbfgs",
    "test_saga_vs_liblinear": "saga",
    "test_solver_consistency": "cholesky",
}

# Of scikit-learn, and not errors in scikit-learn's own runs.
_WARNINGS = [
    "ignore:(Liblinear|lbfgs) failed to converge:sklearn.exceptions.ConvergenceWarning",
    r"ignore:R\^2 score is not well-defined:sklearn.exceptions.UndefinedMetricWarning",
    "ignore:One or more of the test scores are non-finite:UserWarning",
]


@pytest.fixture
def global_random_seed() -> int:
    """scikit-learn's default."""
    return 42


class Borrowed:
    """The tests of a module that can apply."""

    @pytest.fixture(autouse=True)
    def _ours_take_part(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Ours are in the place of theirs where a test looks for them as it runs too, and it fits one at least."""
        fits: list[None] = []
        fit_all = linear.fit_all

        def counted(*args: object, **options: object) -> None:
            fits.append(None)
            fit_all(*args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(linear, "fit_all", counted)
        if tol := TIGHTER.get(request.node.originalname):
            monkeypatch.setattr(linear.LinearModel, "_stopping", lambda model: (tol, model.max_iter))
            monkeypatch.setattr(MODULES["Logistic"], "LogisticRegressionCV", partial(LogisticRegressionCV, tol=tol))
        if solver := AGAINST_THEIRS.get(request.node.originalname):
            for ours in sklearn_own.OURS.values():
                monkeypatch.setitem(ours._only, "solver", solver)
        with sklearn_own.ours_in_place_of_theirs():
            yield
        assert fits, "it says nothing of ours: none was fitted"


def _borrowed(name: str) -> type:
    found: dict[str, Callable[..., None]] = {}
    for test_name, test in sklearn_own.tests_of(MODULES[name]).items():
        if test_name not in CANNOT_APPLY[name]:
            sklearn_own.narrow(test, [key[1] for key in CANNOT_APPLY[name] if key[0] == test_name])
            found[test_name] = staticmethod(test)
    marks = getattr(MODULES[name], "pytestmark", [])
    marks = [*map(pytest.mark.filterwarnings, _WARNINGS), *(marks if isinstance(marks, list) else [marks])]
    return type(f"Test{name}", (Borrowed,), {**found, "pytestmark": marks})


TestCommon, TestLogistic, TestRidge, TestSVM = map(_borrowed, MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_what_cannot_apply_is_there(name):
    tests = sklearn_own.tests_of(sklearn_own.copy_of(MODULES[name].__spec__.name.removeprefix("sklearn.")))
    for key in CANNOT_APPLY[name]:
        test, text = key if isinstance(key, tuple) else (key, "")
        assert test in tests, f"no {test} of scikit-learn uses ours"
        assert not text or any(text in row for row in sklearn_own.texts_of(tests[test])), f"{test} has no {text}"


def test_what_changes_a_test_is_there():
    every = {test for module in MODULES.values() for test in vars(module)}
    assert TIGHTER.keys() | AGAINST_THEIRS.keys() <= every


@pytest.mark.parametrize(("borrowed", "least"), [(TestCommon, 4), (TestLogistic, 38), (TestRidge, 30), (TestSVM, 10)])
def test_tests_are_left_and_their_names_mean_ours(borrowed, least):
    tests = [test for name, test in vars(borrowed).items() if name.startswith("test_")]
    assert len(tests) >= least
    for test in tests:
        for name, ours in sklearn_own.OURS.items():
            assert test.__func__.__globals__.get(name, ours) is ours


@pytest.mark.parametrize("ours", [LinearSVC, LogisticRegression, Ridge, RidgeClassifier])
def test_the_substitute_is_ours_but_for_what_ours_refuses(ours):
    home = sklearn.svm if ours is LinearSVC else sklearn.linear_model
    theirs = getattr(home, ours.__name__)
    with sklearn_own.ours_in_place_of_theirs():
        substitute = getattr(home, ours.__name__)
    assert issubclass(substitute, ours)
    assert substitute is sklearn_own.OURS[ours.__name__]
    assert getattr(home, ours.__name__) is theirs
    assert type(substitute()) is type(substitute(**ours._only)) is substitute
    for name in ours._only:
        assert type(substitute(**{name: "other"})) is theirs


@pytest.mark.parametrize("max_iter", range(1, 5))
@pytest.mark.parametrize("model", [LogisticRegression(tol=1e-15), LinearSVC(tol=1e-15)])
def test_iterations_run_out(model, max_iter):
    X, y = load_iris(return_X_y=True)
    with pytest.warns(ConvergenceWarning, match="C=1.0: the iterations ran out"):
        model.set_params(max_iter=max_iter).fit(X, y == 1)
    assert model.n_iter_ == max_iter
    assert isinstance(model.n_iter_, int) == isinstance(model, LinearSVC)
