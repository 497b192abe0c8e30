"""Scores are scikit-learn's of the same names, and a search, its test set and nested cross-validation mean the same."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from separable import separable_store
from sklearn.base import BaseEstimator
from sklearn.metrics import get_scorer, roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, label_binarize

from featx.catalogue import ESTIMATORS
from featx.learn import HoldOut, RidgeClassifier, StoredFeatures, select_model
from featx.learn.scores.intervals import held_out_interval
from featx.learn.scores.metrics import METRICS

AUC = METRICS["roc_auc"]


class Says(BaseEstimator):
    """Predicts what it was told to."""

    def __init__(self, predicted):
        self.predicted = predicted

    def predict(self, X):
        return self.predicted


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if not metric.is_ranked])
def test_every_score_is_scikit_learns_of_that_name(name):
    rng = np.random.default_rng(2)
    for _ in range(20):
        n, k = rng.integers(2, 40), rng.integers(1, 5)
        y, predicted = np.array(list("abcde"))[rng.integers(k, size=(2, n))]
        if METRICS[name].is_numeric:
            y, predicted = rng.normal(size=(2, n))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that are predicted and not there
            expected = get_scorer(name)(Says(predicted), None, y)
        assert METRICS[name].score(y, predicted) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("decimals", [0, 1, 15], ids=["many ties", "ties", "no ties"])
def test_the_area_under_the_curve_is_scikit_learns(decimals):
    names = np.array(list("abc"))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        y = names[np.r_[0:3, rng.integers(3, size=50)]]
        decisions = ((y[:, None] == names) + rng.normal(size=(53, 3))).round(decimals)
        two = y != "c"
        expected = roc_auc_score(y[two], decisions[two, 1])
        assert AUC.score(y[two], decisions[two, 1]) == pytest.approx(expected, abs=1e-12)
        expected = roc_auc_score(label_binarize(y, classes=names), decisions, average="macro")
        assert AUC.score(y, decisions) == pytest.approx(expected, abs=1e-12)
        shares = np.exp(decisions) / np.exp(decisions).sum(axis=1, keepdims=True)
        expected = roc_auc_score(y, shares, multi_class="ovr", average="macro")
        assert AUC.score(y, shares) == pytest.approx(expected, abs=1e-12)


def test_samples_are_scored_as_themselves_and_without_the_classes_that_they_lack():
    rng = np.random.default_rng(0)
    y, decisions = rng.integers(3, size=40), rng.normal(size=(40, 3))
    samples = [rng.integers(40, size=40), np.flatnonzero(y != 2), np.flatnonzero(y == 1)]
    whole, lacking, alone = AUC.scores(y, decisions, samples)
    assert whole == pytest.approx(AUC.score(y[samples[0]], decisions[samples[0]]))
    both = [roc_auc_score(y[samples[1]] == c, decisions[samples[1], c]) for c in (0, 1)]
    assert lacking == pytest.approx(np.mean(both)) and np.isnan(alone)
    ones = np.ones(10, int)
    assert np.isnan(held_out_interval(AUC, ones, decisions[:10], classes=np.arange(3))).all()


def test_decision_scores_that_are_not_of_the_classes_are_refused():
    with pytest.raises(ValueError, match="a column of decision scores for each of 2 classes; got 3"):
        AUC.score(np.array(["a", "b"]), np.zeros((2, 3)))


# --- in a search ---

CLASSIFIERS = [name for name, family in ESTIMATORS.items() if not family.is_numeric]
OPTIONS = {"scoring": "roc_auc", "folds": 3, "n_jobs": 1}


@pytest.mark.parametrize("classes", ["ab", "abc"], ids=["two", "three"])
def test_every_classifier_is_chosen_and_scored_by_its_decision_scores(tmp_path, classes):
    y = np.array(list(classes))[np.arange(90) % len(classes)]
    store = separable_store(tmp_path / "a.h5", 90, y=y, noise={"good:avg": 2.0})
    for name in CLASSIFIERS:
        grid = {name: values} if (values := ESTIMATORS[name].values[1:3]) else None
        found = select_model(store, estimators=name, param_grid=grid, **OPTIONS)
        model = found.best_estimator
        say = model.decision_function if hasattr(model, "decision_function") else model.predict_proba
        scores = say(found.test.X)
        scores = scores[:, 1] if scores.ndim == 2 and len(classes) == 2 else scores
        expected = roc_auc_score(label_binarize(found.test.y, classes=list(classes)), scores, average="macro")
        assert found.held_out == pytest.approx(expected, abs=1e-12) and found.training.chance == 0.5
        assert found.held_out_interval.low <= found.held_out <= found.held_out_interval.high <= 1
        assert found.best.mean > 0.6 and found.best.mean == pytest.approx(np.mean(found.best.scores))


@pytest.mark.parametrize("classes", ["ab", "abc"], ids=["two", "three"])
def test_cross_validated_and_nested_areas_are_those_of_the_folds(tmp_path, classes):
    y = np.array(list(classes))[np.arange(90) % len(classes)]
    store = separable_store(tmp_path / "a.h5", 90, y=y, noise={"good:avg": 2.0})
    C = {"ridge_classifier": [10.0]}
    found = select_model(store, estimators="ridge_classifier", param_grid=C, nested=True, holdout=HoldOut(0), **OPTIONS)
    pipe = make_pipeline(StoredFeatures(store), StandardScaler(), RidgeClassifier(alpha=10.0))
    expected = []
    for train, test in StratifiedKFold(3, shuffle=True, random_state=0).split(store.X, y):
        scores = pipe.fit(store.X[train], y[train]).decision_function(store.X[test])
        expected.append(roc_auc_score(label_binarize(y[test], classes=list(classes)), scores, average="macro"))
    again = select_model(
        store, estimators="ridge_classifier", param_grid=C, holdout=HoldOut(0), **OPTIONS | {"n_jobs": 2}
    )
    assert [c.scores for c in again.candidates] == [c.scores for c in found.candidates]
    assert found.best.scores == pytest.approx(expected) and found.nested.scores == pytest.approx(expected)
