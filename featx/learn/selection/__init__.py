"""Choice of layer and estimator by cross-validation, and its score on held-out images."""

from featx.learn.selection.experiment import (
    A_FIFTH,
    Experiment,
    HoldOut,
    Labels,
    Stores,
    define_experiment,
    labels_of,
    reading_from,
)
from featx.learn.selection.layer_grids import Layers, new_estimator, stored_features
from featx.learn.selection.one_se_rule import one_se
from featx.learn.selection.parameters import (
    brief,
    check_callback,
    check_integer,
    check_positive,
    check_share,
    counts,
    positive_numbers,
)
from featx.learn.selection.results import (
    Candidate,
    Curve,
    Interrupted,
    Nested,
    Point,
    ProtocolResult,
    SearchSettings,
    Selection,
    TestSet,
    TrainingSet,
)
from featx.learn.selection.selection import cross_validated, predicted_test_set, select_model
from featx.learn.selection.splits import Groups, Split, cv_splits, group_numbers, groups_of, hold_out, units

__all__ = [
    "A_FIFTH",
    "HoldOut",
    "SearchSettings",
    "TestSet",
    "TrainingSet",
    "Candidate",
    "Curve",
    "Interrupted",
    "Labels",
    "Layers",
    "Nested",
    "Point",
    "ProtocolResult",
    "Experiment",
    "Groups",
    "Selection",
    "Split",
    "Stores",
    "brief",
    "check_callback",
    "check_integer",
    "check_positive",
    "check_share",
    "counts",
    "cross_validated",
    "define_experiment",
    "cv_splits",
    "group_numbers",
    "groups_of",
    "hold_out",
    "labels_of",
    "new_estimator",
    "one_se",
    "positive_numbers",
    "predicted_test_set",
    "reading_from",
    "select_model",
    "stored_features",
    "units",
]
