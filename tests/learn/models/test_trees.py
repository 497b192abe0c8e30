"""Models of decision trees are saved and loaded; a forged tree is refused in one line before it is followed."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from helpers import TESTS
from sklearn import ensemble, tree
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.tree._tree import Tree

import featx
from featx.errors import ModelError
from featx.learn import GridSearchCV, load, save

X, Y = load_iris(return_X_y=True)
X = X.astype(np.float32)
CHILD = TESTS / "trees_child.py"

FEW = {"n_estimators": 3, "random_state": 0}
pytestmark = pytest.mark.filterwarnings("ignore:.* has no StoredFeatures or ImageFeatures")

MODELS = {
    "tree": tree.DecisionTreeClassifier(random_state=0),
    "one leaf": tree.DecisionTreeRegressor(min_samples_split=200),
    "extra tree": tree.ExtraTreeRegressor(random_state=0),
    "forest": ensemble.RandomForestClassifier(**FEW),
    "bagging": ensemble.BaggingClassifier(max_features=2, **FEW),
    "ada boost": ensemble.AdaBoostClassifier(**FEW),
    "isolation": ensemble.IsolationForest(**FEW),
    "boosting": ensemble.GradientBoostingClassifier(**FEW),
    "boosting from zero": ensemble.GradientBoostingClassifier(init="zero", **FEW),
    "boosting, huber": ensemble.GradientBoostingRegressor(loss="huber", **FEW),
    "histograms": ensemble.HistGradientBoostingClassifier(max_iter=3),
    "histograms, quantile": ensemble.HistGradientBoostingRegressor(loss="quantile", quantile=0.3, max_iter=3),
    "voting": ensemble.VotingClassifier(
        [("a", tree.DecisionTreeClassifier()), ("b", make_pipeline(StandardScaler(), ensemble.ExtraTreesClassifier(2)))]
    ),
    "stacking": ensemble.StackingClassifier([("a", ensemble.GradientBoostingClassifier(n_estimators=2))], cv=2),
    "calibrated": CalibratedClassifierCV(ensemble.RandomForestClassifier(2), cv=2),
    "search": GridSearchCV(
        make_pipeline(StandardScaler(), ensemble.RandomForestClassifier(2)),
        {"randomforestclassifier__max_depth": [1, 3]},
        cv=2,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_model_of_trees_answers_as_the_saved_one(name, tmp_path):
    model = MODELS[name].fit(X, Y)
    loaded = load(save(model, tmp_path / "model.skops"))
    assert type(loaded) is type(model)
    for method in ("predict", "predict_proba", "apply"):
        if hasattr(model, method):
            np.testing.assert_array_equal(getattr(loaded, method)(X), getattr(model, method)(X))


@pytest.mark.parametrize(
    "model, words",
    [
        (ensemble.GradientBoostingClassifier(init=DummyClassifier(), n_estimators=2), ""),
        (ensemble.GradientBoostingClassifier(init=LogisticRegression(C=0.01), n_estimators=2), "init=None or 'zero'"),
        (ensemble.HistGradientBoostingClassifier(max_iter=2, categorical_features=[0]), "without categorical features"),
        (KNeighborsClassifier(), 'algorithm="brute"'),
    ],
)
def test_what_cannot_be_saved_names_what_can(model, words, tmp_path):
    model.fit(X.round(), Y)
    if not words:
        assert save(model, tmp_path / "model.skops").exists()
        return
    with pytest.raises(ModelError, match=words) as error:
        save(model, tmp_path / "model.skops")
    assert type(model).__name__ in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


# --- forged ---


def with_tree(change: Callable[[np.ndarray, dict[str, Any]], None], d: int = 4) -> Any:
    """A decision tree whose state was changed; so is the number of features that the tree itself believes in."""
    model = fitted(MODELS["tree"])
    _, (_, n_classes, n_outputs), state = model.tree_.__reduce__()
    state["nodes"] = state["nodes"].copy()
    change(state["nodes"], state)
    model.tree_ = Tree(d, n_classes, n_outputs)
    model.tree_.__setstate__(state)
    return model


def nodes(field: str, index: int, value: int) -> Any:
    def change(nodes: np.ndarray, state: dict[str, Any]) -> None:
        nodes[field][index] = value

    return with_tree(change)


def state(name: str, value: int) -> Any:
    return with_tree(lambda _, state: state.update({name: value}))


@cache
def once(model: Any) -> Any:
    return deepcopy(model).fit(X, Y)


def fitted(model: Any, **attributes: Any) -> Any:
    model = deepcopy(once(model))
    vars(model).update(attributes)
    return model


def without(name: str) -> Any:
    model = fitted(MODELS["tree"])
    delattr(model, name)
    return model


def empty_tree() -> Any:
    return fitted(MODELS["tree"], tree_=Tree(4, np.array([3]), 1))


def in_forest() -> Any:
    model = fitted(MODELS["forest"])
    model.estimators_[1] = nodes("left_child", 0, 10**6)
    return make_pipeline(FunctionTransformer(), ensemble.VotingClassifier([("a", model)])).fit(X[:0:-1], Y[:0:-1])


def stages(change: Callable[[Any], None], name: str = "boosting") -> Any:
    model = fitted(MODELS[name])
    change(model)
    return model


def narrow_prior(model: Any) -> None:
    model.init_.class_prior_ = model.init_.class_prior_[:1]


def other_tree(model: Any) -> None:
    model.estimators_[1, 1] = fitted(tree.DecisionTreeRegressor(), n_features_in_=4)
    model.estimators_[1, 1].tree_ = nodes("feature", 0, 3).tree_
    model.estimators_[1, 1].fit(X[:, :2], Y)


def wide_trees(model: Any) -> None:
    rows = np.hstack([X] * 50)
    model.estimators_ = ensemble.GradientBoostingClassifier(**FEW).fit(rows, Y).estimators_


def own_first(model: Any) -> None:
    vars(model.init_)["predict_proba"] = np.abs


def histogram(field: str, value: int, index: int = 0) -> Any:
    model = fitted(MODELS["histograms"])
    found = model._predictors[1][2]
    found.nodes[field][index] = value
    return model


def hist(change: Callable[[Any], None]) -> Any:
    return stages(change, "histograms")


def set_nodes(model: Any, nodes: Any) -> None:
    model._predictors[0][0].nodes = nodes


def twice(model: Any) -> None:
    model._predictors[1][0] = model._predictors[0][0]


FORGED: dict[str, Callable[[], Any]] = {
    "a left child beyond": lambda: nodes("left_child", 0, 10**9),
    "a left child one beyond": lambda: nodes("left_child", 0, len(fitted(MODELS["tree"]).tree_.feature)),
    "a right child before": lambda: nodes("right_child", 2, -7),
    "a child that is its parent": lambda: nodes("left_child", 2, 2),
    "a child that is the root": lambda: nodes("right_child", 2, 0),
    "a child of two": lambda: nodes("left_child", 0, 2),
    "a leaf with one child": lambda: nodes("right_child", 1, 3),
    "a split without a left child": lambda: nodes("left_child", 0, -1),
    "a feature beyond": lambda: nodes("feature", 0, 10**9),
    "a feature one beyond": lambda: nodes("feature", 0, 4),
    "a negative feature": lambda: nodes("feature", 0, -(10**9)),
    "a split on the feature of leaves": lambda: nodes("feature", 2, -2),
    "too little depth": lambda: state("max_depth", -1),
    "depth 0": lambda: state("max_depth", 0),
    "immense depth": lambda: state("max_depth", 2**40),
    "fewer nodes": lambda: state("node_count", 3),
    "no nodes": lambda: state("node_count", 0),
    "a tree without arrays": empty_tree,
    "a tree of more features": lambda: with_tree(lambda *_: None, d=9),
    "an estimator of fewer features": lambda: fitted(MODELS["tree"], n_features_in_=1),
    "an estimator without number of features": lambda: without("n_features_in_"),
    "features that equal all": lambda: fitted(MODELS["tree"], n_features_in_=np.array([1, 4])),
    "a method of its own": lambda: fitted(MODELS["tree"], _validate_X_predict=np.add),
    "deep within": in_forest,
    "a tree alone": lambda: fitted(MODELS["tree"]).tree_,
    "a tree as last step": lambda: make_pipeline(FunctionTransformer(), fitted(MODELS["tree"]).tree_),
    "a tree that is elsewhere too": lambda: (lambda one: make_pipeline(one, one.tree_))(fitted(MODELS["tree"])),
    "boosting of more trees than numbers": lambda: fitted(MODELS["boosting from zero"], n_trees_per_iteration_=1),
    "boosting from fewer numbers": lambda: stages(narrow_prior),
    "boosting from an own method": lambda: stages(own_first),
    "boosting from another estimator": lambda: fitted(MODELS["boosting"], init_=fitted(LogisticRegression(C=0.01))),
    "boosting of wider trees": lambda: stages(wide_trees),
    "boosting with a narrower tree": lambda: stages(other_tree),
    "boosting of fewer features": lambda: fitted(MODELS["boosting"], n_features_in_=1),
    "boosting in one dimension": lambda: stages(lambda model: setattr(model, "estimators_", model.estimators_[0])),
    "boosting of nothing": lambda: stages(lambda model: setattr(model, "estimators_", model.estimators_[:0])),
    "boosting of forests": lambda: fitted(MODELS["boosting"], estimators_=np.array([[fitted(MODELS["forest"])] * 3])),
    "histograms, left beyond": lambda: histogram("left", 2**32 - 1),
    "histograms, right beyond": lambda: histogram("right", 10**6),
    "histograms, a cycle": lambda: histogram("left", 0),
    "histograms, a leaf that is none": lambda: histogram("is_leaf", 0, -1),
    "histograms, feature beyond": lambda: histogram("feature_idx", 2**40),
    "histograms, negative feature": lambda: histogram("feature_idx", -(2**40)),
    "histograms, categorical": lambda: histogram("is_categorical", 1),
    "histograms, fewer features": lambda: fitted(MODELS["histograms"], n_features_in_=1),
    "histograms, within fit": lambda: fitted(MODELS["histograms"], _in_fit=True),
    "histograms, a preprocessor": lambda: fitted(MODELS["histograms"], _preprocessor=FunctionTransformer().fit(X)),
    "histograms, own method": lambda: fitted(MODELS["histograms"], _preprocess_X=np.add),
    "histograms, no nodes": lambda: hist(lambda model: set_nodes(model, model._predictors[0][0].nodes[:0])),
    "histograms, nodes in a table": lambda: hist(lambda model: set_nodes(model, model._predictors[0][0].nodes[None])),
    "histograms, other nodes": lambda: hist(lambda model: set_nodes(model, np.zeros(3))),
    "histograms, a list of nodes": lambda: hist(lambda model: set_nodes(model, [1, 2])),
    "histograms, a tree twice": lambda: hist(twice),
    "histograms, other trees": lambda: fitted(MODELS["histograms"], _predictors=[[fitted(MODELS["tree"])]]),
}


def change_dtype(found: np.ndarray) -> np.ndarray:
    return found.astype([(name, "<f4") for name in found.dtype.names or ()]) if found.dtype.names else found


# Of the arrays in the file of a decision tree: what scikit-learn itself refuses.
REWRITTEN: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "other types": change_dtype,
    "two dimensions": lambda found: found[None] if found.dtype.names else found,
    "no longer records": lambda found: found.view("u1") if found.dtype.names else found,
    "values of another shape": lambda found: found[:-1] if found.ndim == 3 else found,
    "values of another order": lambda found: np.asfortranarray(found) if found.ndim == 3 else found,
    "values of another type": lambda found: found.astype("f4") if found.ndim == 3 else found,
    "no classes": lambda found: found[:0] if found.shape == (1,) else found,
    "many classes": lambda found: found + 2**40 if found.shape == (1,) else found,
    "negative classes": lambda found: -found if found.shape == (1,) else found,
}


def rewritten(
    content: bytes, change: Callable[[np.ndarray], np.ndarray], counted: tuple[bytes, bytes] = (b"", b"")
) -> bytes:
    """A model file with other arrays and, of its schema, another number of nodes."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(out, "w") as new:
        for name in archive.namelist():
            part = archive.read(name)
            if name.endswith(".npy"):
                file = io.BytesIO()
                np.save(file, change(np.load(io.BytesIO(part))))
                part = file.getvalue()
            else:
                part = re.sub(rb'("node_count": \{[^}]*"content": )"%s"' % counted[0], rb'\1"%s"' % counted[1], part)
            new.writestr(name, part)
    return out.getvalue()


def model_file(model: Any) -> bytes:
    return skops.io.dumps({"format": "featx-model", "version": 1, "estimator": model})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A file for each forgery, and three "sound" ones."""
    folder = tmp_path_factory.mktemp("forged")
    good = model_file(fitted(MODELS["tree"]))
    files = {name: model_file(forged()) for name, forged in FORGED.items()}
    files |= {name: rewritten(good, change) for name, change in REWRITTEN.items()}
    files["a negative number of nodes"] = rewritten(good, np.array, (rb"\d+", b"-1"))
    files |= {
        "sound": good,
        "sound copy": rewritten(good, np.array),
        "sound forest": model_file(fitted(MODELS["forest"])),
    }
    for name, content in files.items():
        (folder / f"{name}.skops").write_bytes(content)
    return folder


def test_a_forged_tree_is_refused_in_one_line(folder):
    for path in folder.iterdir():
        if path.stem.startswith("sound"):
            assert load(path)
        else:
            with pytest.raises(ModelError, match=re.escape(f"{path.name} is damaged")) as error:
                load(path)
            assert "\n" not in str(error.value)


@pytest.mark.slow
def test_what_is_loaded_can_be_followed(folder):
    """In a process of its own, where a crash is seen."""
    environment = {**os.environ, "PYTHONPATH": str(Path(featx.__file__).parents[1])}
    done = subprocess.run([sys.executable, CHILD, folder], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, f"{done.returncode} at {done.stdout.splitlines()[-1]}\n{done.stderr}"
    found = dict(line.split("\t") for line in done.stdout.splitlines())
    assert found.keys() == {path.stem for path in folder.iterdir()}
    assert all((text == "used") == name.startswith("sound") for name, text in found.items())
