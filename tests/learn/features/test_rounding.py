"""Stores of one meaning whose rows are rounded differently are used together, which one line says; others are not."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from helpers import assert_tells
from separable import separable_store
from sklearn.model_selection import GridSearchCV as SklearnGridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from typer.testing import CliRunner

import featx
from featx.backbones import COMPILED, EAGER
from featx.cli import app
from featx.errors import FeatxError, LayerError, RecipeError, RowsDifferWarning, StoreError
from featx.learn import (
    GridSearchCV,
    HoldOut,
    LogisticRegression,
    StoredFeatures,
    few_shot,
    knn_probe,
    learning_curves,
    linear_probe,
    select_model,
)
from featx.learn.selection import selection as selection_module

TRAIN = {"engine": COMPILED, "precision": "bfloat16", "precision_error": 0.004, "batch_size": 32}
OTHERWISE = {
    "engine": {"engine": EAGER},
    "precision": {"precision": "float32", "precision_error": None},
    "batch_size": {"batch_size": 8},
    "dtype": {"dtype": "float16"},
    "device": {"device": "cuda"},
    "threads": {"threads": 16},
    "all": {"engine": EAGER, "precision": "float32", "precision_error": None, "batch_size": 8, "dtype": "float16"},
}
ELSEWHERE = {"preprocessing": {"crop": [32, 32], "resize": 40}, "weights_sha256": "1" * 64, "decoder": "another"}
QUICK = {
    "estimators": ["logistic_regression"],
    "folds": 3,
    "param_grid": {"logistic_regression": [0.1, 1.0]},
    "n_jobs": 1,
}
PROTOCOLS = [linear_probe, knn_probe, few_shot, learning_curves]


@pytest.fixture
def train(tmp_path):
    return separable_store(tmp_path / "train.h5", 90, **TRAIN)


@pytest.fixture
def made(tmp_path):
    def make(**changes) -> featx.FeatureStore:
        """Other images of the same classes, made otherwise."""
        return separable_store(tmp_path / "test.h5", 30, contents=np.arange(90, 120), **(TRAIN | changes))

    return make


def told(caught) -> list[str]:
    """The one line about rounding, at the test that caused it."""
    (found,) = [warning for warning in caught if warning.category is RowsDifferWarning]
    assert found.filename == __file__ and "\n" not in str(found.message)
    return str(found.message)


# Scored on


@pytest.mark.parametrize("name", ["dtype", "device", "all"])
def test_a_test_store_that_rounds_differently_is_scored_on(train, made, name):
    test = made(**OTHERWISE[name])
    with pytest.warns(RowsDifferWarning) as caught:
        found = select_model(train, holdout=HoldOut(store=test), **QUICK)
    message = told(caught)
    assert message.startswith("test.h5 was made with ") and "train.h5 with " in message
    assert all(field in message for field in OTHERWISE[name] if field != "precision_error")
    rows = np.asarray(test[found.best.layer])
    assert found.test.predicted.tolist() == found.best_estimator[1:].predict(rows).tolist()
    assert found.held_out > 0.9


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_so_does_every_protocol(train, made, protocol):
    with pytest.warns(RowsDifferWarning, match="within 0.40 %") as caught:
        found = protocol(train, holdout=HoldOut(store=made(**OTHERWISE["precision"])))
    told(caught)
    assert found.n_test == 30 and found.curves[0].layer == "good:avg"


def test_a_test_store_that_was_made_alike_is_scored_on_without_a_word(train, made):
    holdout = HoldOut(store=made(versions={"torch": "9"}, origin="/b"))
    assert select_model(train, holdout=holdout, **QUICK).held_out > 0.9


def test_whoever_wants_silence_gets_it(train, made):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", featx.RowsDifferWarning)
        select_model(train, holdout=HoldOut(store=made(**OTHERWISE["all"])), **QUICK)


@pytest.mark.parametrize(
    "run, field",
    [*((select_model, field) for field in ELSEWHERE), *((protocol, "preprocessing") for protocol in PROTOCOLS)],
)
def test_another_meaning_is_refused_before_anything_is_fitted(train, made, monkeypatch, field, run):
    monkeypatch.setattr(StoredFeatures, "transform", lambda *_: pytest.fail("rows were read"))
    test = made(**(OTHERWISE["all"] | {field: ELSEWHERE[field]}))
    with pytest.raises(StoreError) as caught:
        run(train, holdout=HoldOut(store=test))
    assert_tells(
        caught.value, "the test store was made with other settings", f"{field}", "in train.h5", "in test.h5", "like="
    )
    assert "engine" not in str(caught.value)


@pytest.mark.parametrize("run", [select_model, *PROTOCOLS])
def test_a_layer_that_the_test_store_lacks_is_named_before_anything_is_fitted(train, tmp_path, monkeypatch, run):
    monkeypatch.setattr(StoredFeatures, "transform", lambda *_: pytest.fail("rows were read"))
    test = separable_store(tmp_path / "t.h5", 30, contents=np.arange(90, 120), noise={"good:avg": 0.5}, **TRAIN)
    with pytest.raises(LayerError) as caught:
        run(train, holdout=HoldOut(store=test))
    assert_tells(caught.value, "test store t.h5", "every layer that is searched", "'poor:avg'", "or search fewer")


def test_a_test_store_that_overflowed_in_half_the_bytes_is_refused_before_anything_is_fitted(train, tmp_path):
    y = np.linspace(-1e7, 1e7, 30)
    with pytest.warns(RuntimeWarning, match="overflow"):
        test = separable_store(tmp_path / "t.h5", 30, y, contents=np.arange(90, 120), dtype="float16")
    numbers = separable_store(tmp_path / "n.h5", 90, np.linspace(-1, 1, 90))
    with pytest.raises(FeatxError, match="features must be finite; layer .*:avg of t.h5 holds inf or NaN for"):
        select_model(numbers, holdout=HoldOut(store=test))


def test_another_network_is_named_as_such_although_its_layers_have_other_names(train, tmp_path):
    changes = {"noise": {"mid:avg": 0.5}, "backbone": "torchvision:alexnet"}
    test = separable_store(tmp_path / "t.h5", 30, contents=np.arange(90, 120), **(TRAIN | changes))
    with pytest.raises(
        RecipeError, match="backbone: 'torchvision:resnet18' in train.h5, 'torchvision:alexnet' in t.h5"
    ):
        select_model(train, holdout=HoldOut(store=test))


# Read with another store's model


@pytest.mark.parametrize("name, layer", [*((name, "good") for name in OTHERWISE), ("all", ["poor", "good"])])
def test_a_fitted_pipeline_reads_keys_of_a_store_that_rounds_differently(train, made, name, layer):
    pipe = make_pipeline(StoredFeatures(train, layer), StandardScaler(), LogisticRegression()).fit(train.X, train.y)
    test = made(**OTHERWISE[name])
    pipe.set_params(storedfeatures__store=test)
    with pytest.warns(RowsDifferWarning, match="^test.h5 was made with .* the store of fit with"):
        predicted = pipe.predict(test.X)
    rows = np.hstack([np.asarray(test[one]) for one in pipe[0].layers_])
    assert predicted.tolist() == pipe[1:].predict(rows).tolist()
    with pytest.warns(RowsDifferWarning):
        assert pipe[0].transform(test.X).dtype == test.recipe.dtype
    assert np.mean(predicted == test.y) > 0.9


def test_a_saved_model_reads_them_too(train, made, tmp_path):
    pipe = make_pipeline(StoredFeatures(train, "good"), LogisticRegression()).fit(train.X, train.y)
    featx.save(pipe, tmp_path / "m.skops")
    test = made(**OTHERWISE["all"])
    loaded = featx.load(tmp_path / "m.skops").set_params(storedfeatures__store=test)
    with pytest.warns(RowsDifferWarning, match="rows agree within 0.45 %"):
        assert loaded.score(test.X, test.y) > 0.9
    elsewhere = separable_store(tmp_path / "e.h5", 30, preprocessing=ELSEWHERE["preprocessing"])
    with pytest.raises(RecipeError, match="made with other settings: preprocessing.resize"):
        loaded.set_params(storedfeatures__store=elsewhere).predict(elsewhere.X)


# Searched over


def test_stores_of_the_same_images_compete_whatever_their_rounding(train, tmp_path):
    other = separable_store(tmp_path / "other.h5", 90, **(TRAIN | OTHERWISE["all"]))
    pipe = make_pipeline(StoredFeatures(train, "good"), StandardScaler(), LogisticRegression())
    grid = {"storedfeatures__store": [train, other], "logisticregression__C": [0.1, 1.0]}
    ours, stock = (kind(pipe, grid, cv=3).fit(train.X, train.y) for kind in (GridSearchCV, SklearnGridSearchCV))
    assert ours.cv_results_["mean_test_score"].tolist() == stock.cv_results_["mean_test_score"].tolist()
    found = select_model([train, other], layers=["good"], **QUICK)
    assert len(found.candidates) == 4


def test_every_store_that_is_searched_is_compared_with_the_test_store(train, made, tmp_path):
    other = separable_store(tmp_path / "other.h5", 90, **(TRAIN | OTHERWISE["dtype"]))
    with pytest.warns(RowsDifferWarning) as caught:
        select_model([train, other], holdout=HoldOut(store=made()), **QUICK)
    assert "dtype float32; other.h5 with dtype float16" in told(caught)


# On the command line


def test_the_search_says_it_in_one_line(train, made, monkeypatch):
    search = [
        "search",
        str(train.path),
        "--test-store",
        str(made(**OTHERWISE["all"]).path),
        "-e",
        "logistic_regression",
    ]
    done = CliRunner().invoke(app, [*search, "--jobs", "1"])
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.stderr.splitlines() if "test.h5" in line]
    assert line.startswith("note: test.h5 was made with engine eager, precision float32, batch_size 8, dtype float16; ")
    assert line.endswith("train.h5 with engine compiled, precision bfloat16, batch_size 32, dtype float32: "
                         "rows agree within 0.45 % (relative L2)")  # fmt: skip
    assert "note" not in done.stdout and "held out" in done.stdout
    monkeypatch.setattr(selection_module, "GridSearchCV", None)
    made_otherwise = CliRunner().invoke(app, search[:3] + [str(made(decoder="another").path)])
    assert made_otherwise.exit_code == 2 and made_otherwise.stderr.count("\n") == 1
    assert made_otherwise.stderr.rstrip().endswith("extract its images with --like train.h5")
