"""scikit-learn's own list of what an estimator must do; nothing is expected to fail."""

from __future__ import annotations

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from featx.learn import (
    SVC,
    SVR,
    KNeighborsClassifier,
    LinearSVC,
    LogisticRegression,
    MLPClassifier,
    MLPRegressor,
    NearestCentroid,
    Nystroem,
    Ridge,
    RidgeClassifier,
)

pytestmark = pytest.mark.sklearn

ESTIMATORS = [
    LogisticRegression(),
    LinearSVC(),
    Ridge(),
    RidgeClassifier(),
    SVC(),
    SVR(),
    KNeighborsClassifier(),
    NearestCentroid(),
    MLPClassifier(),
    MLPRegressor(),
    Nystroem(n_components=10),
]


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_ has at least 1 zero")  # of the checks' own rows
@pytest.mark.filterwarnings("ignore:MLP.* did not converge:sklearn.exceptions.ConvergenceWarning")  # in few epochs
@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_s_check(estimator, check):
    if "sample_weight_equivalence" in check.func.__name__ and hasattr(estimator, "tol"):
        estimator.set_params(tol=1e-10)  # two optima to 1e-7: scikit-learn runs it with a tight tol on its own, too
        if hasattr(estimator, "gamma"):
            estimator.set_params(gamma="auto")  # "scale" is of all rows, whatever their weight; scikit-learn's is too
    check(estimator)
