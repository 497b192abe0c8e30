"""Check that every decision tree in a loaded model is safe to use.

scikit-learn traverses trees in compiled code without index checks: a forged child, feature or depth would read or write
memory outside the tree. So each tree must be one that scikit-learn could have built, and belong to one estimator that
checks the number of features of its input.
"""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import numpy as np
from sklearn.base import is_classifier
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.tree import BaseDecisionTree, DecisionTreeRegressor

from featx.errors import ModelError
from featx.learn._sklearn import (
    PREDICTOR_RECORD_DTYPE,
    BaseGradientBoosting,
    Tree,
    TreePredictor,
    init_raw_predictions,
)
from featx.learn.identity import Same
from featx.learn.models.objects import refuse_own_methods

# Trusted beside the types that skops trusts. Their constructors copy arrays of checked type and shape; `check_trees`
# checks the values.
TREE_TYPES = (
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
)


def check_trees(model: Any) -> None:
    """Check every decision tree that can be reached from a model.

    Raises
    ------
    ModelError
        scikit-learn could not have built a tree, or a tree is outside the estimators that may have one; or an object of
        the model has attributes in place of methods of its class.
    """
    refuse_own_methods(model)  # so that the walk below sees everything
    walk = _Walk()
    walk.dump(model)
    owned: Counter[Same] = Counter()
    for estimator in walk.estimators.values():
        owned.update(Same(tree) for tree in _checked_trees(estimator))
    for tree, references in walk.trees.items():
        if owned[tree] != 1 or references != 1:
            raise ModelError("a decision tree must belong to one estimator; got one that is referred to elsewhere too")


class _Walk(pickle.Pickler):
    """A pickler that discards its output: it visits all objects, and keeps trees and their estimators.

    estimators : those with trees
    trees : number of references to each tree
    """

    def __init__(self) -> None:
        super().__init__(_Nowhere(), protocol=5, buffer_callback=lambda _: None)
        self._kinds = (
            BaseDecisionTree,
            BaseGradientBoosting,
            HistGradientBoostingClassifier,
            HistGradientBoostingRegressor,
        )
        self._tree_kinds = Tree, TreePredictor
        self.estimators: dict[Same, Any] = {}
        self.trees: Counter[Same] = Counter()

    def persistent_id(self, obj: Any) -> None:
        """Called at every reference to an object, not only the first."""
        if isinstance(obj, self._tree_kinds):
            self.trees[Same(obj)] += 1
        elif isinstance(obj, self._kinds):
            self.estimators[Same(obj)] = obj


class _Nowhere:
    def write(self, content: Any) -> int:
        return len(content)


def _checked_trees(estimator: Any) -> list[Any]:
    """Check an estimator's own trees and return them; none if it is not fitted or nested estimators own them."""
    fitted, name = vars(estimator), type(estimator).__name__
    if not {"tree_", "estimators_", "_predictors"} & fitted.keys():
        return []
    d = fitted.get("n_features_in_")  # scikit-learn compares X with it only if it is there
    if not isinstance(d, int) or isinstance(d, bool) or d < 1:
        raise ModelError(f"n_features_in_ of {name} must be an integer, 1 or more; got {d!r}")
    if isinstance(estimator, BaseDecisionTree):
        _check_tree(estimator.tree_, d)
        return [estimator.tree_]
    if isinstance(estimator, BaseGradientBoosting):
        _check_boosting(estimator, d)
        return []  # its trees belong to its decision trees
    return _checked_predictors(estimator, d)


def _check_tree(tree: Any, d: int) -> None:
    if type(tree) is not Tree or tree.n_features != d or min(tree.n_outputs, tree.max_n_classes) < 1:
        raise ModelError(
            f"a decision tree must be a Tree of the {d} features of its estimator, with at least one output"
        )
    inner = tree.children_left != -1
    if not np.array_equal(inner, tree.children_right != -1):
        raise ModelError("a node of a tree must have two children or none; got one")
    depth = _check_nodes(tree.children_left, tree.children_right, inner, tree.feature, d)
    if tree.max_depth != depth:  # scikit-learn allocates decision paths by it
        raise ModelError(f"the depth of a tree must be that of its deepest node, {depth}; got {tree.max_depth}")


def _check_boosting(estimator: Any, d: int) -> None:
    """GradientBoosting: compiled code adds the values of each tree of a stage to a column of its own."""
    name, stages, first = type(estimator).__name__, estimator.estimators_, estimator.init_
    if type(stages) is not np.ndarray or stages.ndim != 2 or not stages.size:
        raise ModelError(f"the trees of {name} must be an array of two dimensions; got {type(stages).__name__}")
    for tree in stages.flat:
        if type(tree) is not DecisionTreeRegressor or vars(tree).get("n_features_in_") != d:
            raise ModelError(f"the trees of {name} must be regression trees of its {d} features")
    if isinstance(first, str):
        width = np.zeros((1, estimator.n_trees_per_iteration_)).shape[1]
    elif type(first) not in (DummyClassifier, DummyRegressor):
        raise ModelError(f"{name} can be saved with init=None or 'zero'; got {type(first).__name__}")
    else:
        shapes = [
            init_raw_predictions(np.zeros((n, 1)), first, estimator._loss, is_classifier(estimator)).shape
            for n in (1, 2, 3)  # if it is one row per row for these three, it is for any number
        ]
        width = shapes[0][-1] if shapes == [(n, shapes[0][-1]) for n in (1, 2, 3)] else None
    if width != stages.shape[1]:
        needed = f"{stages.shape[1]} values per row, one per tree of a stage"
        raise ModelError(f"{name}: the initial prediction needs {needed}; got {width}")


def _checked_predictors(estimator: Any, d: int) -> list[Any]:
    """Check the trees of a HistGradientBoosting model; returns them, with copied nodes."""
    name = type(estimator).__name__
    if estimator._preprocessor is not None:
        raise ModelError(f"{name} can be saved without categorical features; encode them in a step before it")
    if "_in_fit" in vars(estimator):  # it would not check columns
        raise ModelError(f"{name} must be fitted; got one whose fit has not ended")
    trees = [tree for stage in estimator._predictors for tree in stage]
    for tree in trees:
        if type(tree) is not TreePredictor or type(tree.nodes) is not np.ndarray:
            raise ModelError(f"the trees of {name} must be arrays of nodes; got {type(tree).__name__}")
        if tree.nodes.dtype != PREDICTOR_RECORD_DTYPE or tree.nodes.ndim != 1:
            raise ModelError(
                f"the nodes of {name} must be an array (n,) of records; got {tree.nodes.dtype}, {tree.nodes.shape}"
            )
        nodes = tree.nodes = tree.nodes.copy()  # no other object of the file can change this copy
        inner = nodes["is_leaf"] == 0
        if nodes["is_categorical"][inner].any():
            raise ModelError(f"the trees of {name} must split on numbers; got a categorical feature")
        _check_nodes(nodes["left"], nodes["right"], inner, nodes["feature_idx"], d)
    return trees


def _check_nodes(left: np.ndarray, right: np.ndarray, inner: np.ndarray, feature: np.ndarray, d: int) -> int:
    """The depth of a tree, whose first node is the root and every other node the child of one earlier node.

    left, right, feature : (n,) int
    inner : (n,) bool, which nodes have children
    """
    n, parents = len(left), np.tile(inner.nonzero()[0], 2)
    if not n:
        raise ModelError("a tree needs at least one node; got none")
    children = np.concatenate([left[inner], right[inner]]).astype(np.int64)
    if not np.array_equal(np.sort(children), np.arange(1, n)) or not (children > parents).all():
        raise ModelError(
            "each node of a tree but the first must be the child of one earlier node; got another structure"
        )
    if not ((feature[inner] >= 0) & (feature[inner] < d)).all():
        raise ModelError(f"a tree must split on the {d} features of its estimator; got another feature")
    above, depths = np.zeros(n, np.int64), np.ones(n, np.int64)
    above[children], depths[0] = parents, 0
    while above.any():  # doubles the distance towards the root
        depths, above = depths + depths[above], above[above]
    return int(depths.max())
