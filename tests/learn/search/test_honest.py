"""What cannot be searched is refused before anything is fitted, as scikit-learn refuses it; Ctrl-C keeps results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classified import labelled
from helpers import assert_tells, write_store
from searched import TIGHT, CountedClassifier, Recorded, RowsSeen, theirs_of
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from featx.errors import FeatxError, LayerError
from featx.learn import (
    GridSearchCV,
    LogisticRegression,
    StoredFeatures,
)

N = 60
ROWS, Y = labelled((N, 5), 3)
X = np.column_stack([np.arange(N), ROWS])  # ids first
GROUPS = np.arange(N) // 7 % 4
LOGISTIC = LogisticRegression(tol=1e-6)
UNSHARED = pytest.mark.filterwarnings("ignore:.*candidates could not share their work")


@pytest.fixture(autouse=True)
def _nothing_recorded():
    Recorded.lists.clear()
    CountedClassifier.raises.clear()


@pytest.mark.parametrize("given", ["storedfeatures__layers", "logisticregresion__C", "c", "logisticregression__c"])
def test_a_parameter_that_is_not_there_is_named_before_any_fit(given, tmp_path):
    store = write_store(tmp_path / "a.h5", n=N, taps={"layer1:avg": [4]}, y=Y.astype(str))
    pipe = make_pipeline(StoredFeatures(store), RowsSeen("seen"), LOGISTIC)
    for grid in ({given: [1]}, [{"logisticregression__C": [1.0]}, {given: [1]}]):
        with pytest.raises(FeatxError) as raised:
            GridSearchCV(pipe, grid, error_score=0.0).fit(store.X, store.y)
        assert any(f"{part!r}" in str(raised.value) for part in (given, *given.split("__")))
        assert not Recorded.of("seen"), "nothing has been fitted"
    assert "logisticregression__C" in str(_refused(pipe, "logisticregression__c", store))
    assert "storedfeatures__layer" in str(_refused(pipe, "storedfeatures__layers", store))


def _refused(pipe: Any, parameter: str, store: Any) -> BaseException:
    with pytest.raises(ValueError) as raised:
        GridSearchCV(pipe, {parameter: ["a", "b"]}).fit(store.X, store.y)
    return raised.value


def test_a_layer_that_is_not_stored_is_named_before_any_fit(tmp_path):
    store = write_store(tmp_path / "a.h5", n=N, taps={"layer1:avg": [4], "layer2:avg": [3]}, y=Y.astype(str))
    pipe = make_pipeline(StoredFeatures(store), RowsSeen("seen"), LOGISTIC)
    grid = {"storedfeatures__layer": ["layer1:avg", "layer22:avg"], "logisticregression__C": [1.0, 2.0]}
    for search in (GridSearchCV(pipe, grid), GridSearchCV(pipe, grid, error_score=0.0, n_jobs=2)):
        with pytest.raises(LayerError) as raised:
            search.fit(store.X, store.y)
        assert_tells(raised.value, "layer22:avg", "layer2:avg")
        with pytest.raises(LayerError):
            search.plan(store.X, store.y)
    assert not Recorded.of("seen")


@pytest.mark.parametrize("model", [LOGISTIC, make_pipeline(StandardScaler(), LOGISTIC)], ids=["alone", "scaled"])
def test_refused_as_scikit_learn_refuses(model):
    name = next(name for name in model.get_params() if name.split("__")[-1] == "C")
    grid = {name: [0.1, 1.0]}
    for search, given in (
        (GridSearchCV(model, {name: []}), (ROWS, Y)),
        (GridSearchCV(model, {name: 1.0}), (ROWS, Y)),
        (GridSearchCV(model, {name: "12"}), (ROWS, Y)),
        (GridSearchCV(model, []), (ROWS, Y)),
        (GridSearchCV(model, grid, cv=1), (ROWS, Y)),
        (GridSearchCV(model, grid, cv=1000), (ROWS, Y)),
        (GridSearchCV(model, grid, cv=[]), (ROWS, Y)),
        (GridSearchCV(model, grid, cv=[([0, 1, 10**6], [2])]), (ROWS, Y)),
        (GridSearchCV(model, grid), (ROWS, Y[:-1])),
        (GridSearchCV(model, grid), (ROWS, None)),
        (GridSearchCV(model, grid), (ROWS[:, 0], Y)),
        (GridSearchCV(model, grid, scoring="none such"), (ROWS, Y)),
        (GridSearchCV(model, grid, scoring=["accuracy", "f1_macro"]), (ROWS, Y)),
        (GridSearchCV(model, grid, refit="accuracy", n_jobs="many"), (ROWS, Y)),
    ):
        with pytest.raises(Exception) as theirs:  # noqa: B017
            theirs_of(search).fit(*given)
        with pytest.raises(type(theirs.value)):
            search.fit(*given)
    for groups in (GROUPS[:-1], None):
        for search in (GridSearchCV(model, grid, cv=GroupKFold(2)),):
            with pytest.raises(ValueError) as theirs:
                theirs_of(search).fit(ROWS, Y, groups=groups)
            with pytest.raises(ValueError) as ours:
                search.fit(ROWS, Y, groups=groups)
            assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("after", [1, 4, 8])
def test_an_interrupt_keeps_the_finished_candidates(after):
    """Three folds of four candidates: kept are those of which all folds were done as the nth fit began."""
    CountedClassifier.raises["last"] = (after, KeyboardInterrupt())
    search = GridSearchCV(CountedClassifier("last"), {"power": [0.5, 1.0, 2.0, 3.0]}, cv=3)
    with pytest.raises(KeyboardInterrupt):
        search.fit(X, Y)
    assert not hasattr(search, "cv_results_")
    _assert_partial(search, (after - 1) // 3)


def test_an_interrupt_while_fits_are_shared():
    CountedClassifier.raises["last"] = (9, KeyboardInterrupt())
    pipe = make_pipeline(RowsSeen("seen", True), CountedClassifier("last"))
    search = GridSearchCV(pipe, {"countedclassifier__power": [0.5, 1.0, 2.0, 3.0]}, cv=3)
    with pytest.raises(KeyboardInterrupt):
        search.fit(X, Y)
    partial = getattr(search, "partial_results_", {"params": []})
    _assert_partial(search, len(partial["params"]))
    CountedClassifier.raises.clear()
    search.fit(X, Y)
    assert len(search.cv_results_["params"]) == 4, "it can be fitted again"
    assert not hasattr(search, "partial_results_"), "what is left of the interrupted one is gone"


def test_an_interrupt_between_solves():
    """What was solved before the others began is kept."""
    CountedClassifier.raises["last"] = (2, KeyboardInterrupt())
    pipe = Pipeline([("scale", StandardScaler()), ("model", LOGISTIC)])
    grid = [{"model__C": [0.1, 1.0]}, {"model": [CountedClassifier("last")], "scale": ["passthrough"]}]
    search = GridSearchCV(pipe, grid, cv=3)
    with pytest.raises(KeyboardInterrupt):
        search.fit(X, Y)
    _assert_partial(search, 2)


def _assert_partial(search: GridSearchCV, n: int) -> None:
    """n candidates, each with the scores of a search that ends."""
    if n == 0:
        assert not hasattr(search, "partial_results_")
        return
    partial = search.partial_results_
    assert len(partial["params"]) == n
    CountedClassifier.raises.clear()
    whole = theirs_of(search).fit(X, Y).cv_results_
    assert partial.keys() <= whole.keys() and {"mean_test_score", "rank_test_score", "split2_test_score"} <= set(
        partial
    )
    for i, params in enumerate(partial["params"]):
        (same,) = [k for k, other in enumerate(whole["params"]) if repr(other) == repr(params)]
        assert abs(partial["mean_test_score"][i] - whole["mean_test_score"][same]) < 1.01 / 20


def test_a_fold_without_a_class_has_no_columns_for_it():
    train = np.flatnonzero(Y != 1)
    seen: list[Any] = []

    def told(estimator: Any, X: Any, y: Any) -> float:
        seen.append((estimator.classes_.tolist(), estimator.predict_proba(X).shape[1]))
        return estimator.score(X, y)

    model = make_pipeline(StandardScaler(), LogisticRegression(**TIGHT))
    cv = [(train, np.arange(N)), (np.arange(N), train)]
    search = GridSearchCV(model, {"logisticregression__C": [0.1, 1.0]}, cv=cv, scoring=told, refit=False).fit(ROWS, Y)
    assert sorted(seen) == [([0, 1, 2], 3)] * 2 + [([0, 2], 2)] * 2
    theirs = theirs_of(search).fit(ROWS, Y)
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], theirs.cv_results_["mean_test_score"])


@UNSHARED
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.FitFailedWarning")
def test_rows_that_are_not_finite_fail_where_they_are_trained_on():
    """A fold that holds them out goes through, another fails; as scikit-learn's search says."""
    rows = ROWS.copy()
    rows[3] = np.inf
    folds = [(np.setdiff1d(np.arange(N), test), test) for test in (np.arange(20), np.arange(20, 40))]
    scored = {"cv": folds, "scoring": lambda model, X, y: float(model[-1].coef_[0, 0]), "refit": False}
    search = GridSearchCV(make_pipeline(StandardScaler(), LOGISTIC), {"logisticregression__C": [0.1, 1.0]}, **scored)
    with pytest.warns(UserWarning) as warned:
        ours = search.fit(rows, Y).cv_results_
    (note,) = [str(each.message) for each in warned if "could not share their work" in str(each.message)]
    assert "\n" not in note and "left to scikit-learn's search, which is slower: ValueError: " in note
    with pytest.warns(UserWarning):
        theirs = theirs_of(search).fit(rows, Y).cv_results_
    for split in ("split0_test_score", "split1_test_score"):
        np.testing.assert_allclose(ours[split], theirs[split], rtol=1e-3)
    assert np.isfinite(ours["split0_test_score"]).all() and np.isnan(ours["split1_test_score"]).all()


def test_a_store_is_searched_without_another_copy_of_its_keys(tmp_path: Path):
    """Keys that the store does not hold are refused, and repeated ones are found."""
    store = write_store(tmp_path / "a.h5", n=N, taps={"layer1:avg": [4]}, y=Y.astype(str))
    pipe = make_pipeline(StoredFeatures(store), StandardScaler(), LOGISTIC)
    foreign = store.X.copy()
    foreign[5] += 1
    with pytest.raises(ValueError, match="key"):
        GridSearchCV(pipe, {"logisticregression__C": [0.1]}, error_score="raise").fit(foreign, store.y)
    twice = np.r_[np.arange(N), np.arange(N)]
    search = GridSearchCV(pipe, {"logisticregression__C": [0.1, 1.0]}, cv=3).fit(store.X[twice], store.y[twice])
    theirs = theirs_of(search).fit(store.X[twice], store.y[twice])
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], theirs.cv_results_["mean_test_score"], atol=0.03)
