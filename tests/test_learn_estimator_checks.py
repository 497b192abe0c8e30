"""scikit-learn's own list of what an estimator must do; nothing is expected to fail."""

from __future__ import annotations

from sklearn.utils.estimator_checks import parametrize_with_checks

from featx.learn import LinearSVC, LogisticRegression, Ridge, RidgeClassifier


@parametrize_with_checks([LogisticRegression(), LinearSVC(), Ridge(), RidgeClassifier()])
def test_scikit_learn_s_check(estimator, check):
    if "sample_weight_equivalence" in check.func.__name__:
        estimator.set_params(tol=1e-10)  # two optima to 1e-7: scikit-learn runs it with a tight tol on its own, too
    check(estimator)
