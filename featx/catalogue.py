"""The estimators that a search offers, as plain data, so that their names are known before scikit-learn is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class EstimatorSpec:
    """An estimator of the catalogue, and the one parameter of it that is searched.

    Parameters
    ----------
    class_name : str
        A class of `featx.learn.estimators`.
    parameter : str
        The name of the parameter, or "" if there is none.
    values : tuple
        Its default values.
    settings : mapping
        Other parameters that do not have the class's defaults.
    simpler_if_small, simpler_if_large : tuple of str
        Parameters of which a smaller, or a larger, value makes a simpler model; `parameter` is one of them.
    unit_settings : mapping
        Parameters that have the unit of y, with their values for y of unit variance; values of `parameter` then have
        that unit too.
    counts_images : bool
        Whether `parameter` is a number of training images, and at most as many as there are.
    is_numeric : bool
        Whether it is a regressor.
    is_default : bool
        Whether it is searched by default.
    """

    class_name: str
    parameter: str
    values: tuple[Any, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    simpler_if_small: tuple[str, ...] = ()
    simpler_if_large: tuple[str, ...] = ()
    unit_settings: Mapping[str, float] = field(default_factory=dict)
    counts_images: bool = False
    is_numeric: bool = False
    is_default: bool = True

    def complexity(self, value: float | None) -> float:
        """Sort key of a value of the parameter; the strongest regularization comes first."""
        if value is None:
            return 0.0
        return -float(value) if self.parameter in self.simpler_if_large else float(value)


# In the order of complexity, simplest first, which decides between equal scores. Features are standardised, so one grid
# fits all layers.
ESTIMATORS: dict[str, EstimatorSpec] = {
    "nearest_centroid": EstimatorSpec("NearestCentroid", "", (None,), is_default=False),
    "ridge_classifier": EstimatorSpec(
        "RidgeClassifier", "alpha", (1.0, 1e1, 1e2, 1e3, 1e4, 1e5), simpler_if_large=("alpha",), is_default=False
    ),
    "logistic_regression": EstimatorSpec(
        "LogisticRegression",
        "C",
        (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 1.0),
        {"max_iter": 1000},
        simpler_if_small=("C",),
    ),
    "linear_svm": EstimatorSpec("LinearSVC", "C", (1e-5, 1e-4, 1e-3, 1e-2), simpler_if_small=("C",)),
    "knn": EstimatorSpec(
        "KNeighborsClassifier",
        "n_neighbors",
        (1, 5, 10, 20, 50),
        {"metric": "cosine"},
        simpler_if_large=("n_neighbors",),
        counts_images=True,
        is_default=False,
    ),
    "rbf_svm": EstimatorSpec("SVC", "C", (0.1, 1.0, 10.0), simpler_if_small=("C", "gamma")),
    "mlp": EstimatorSpec(
        "MLPClassifier",
        "alpha",
        (1e-4, 1e-2, 1.0, 10.0),
        {"max_iter": 1000, "random_state": 0},
        simpler_if_large=("alpha",),
        is_default=False,
    ),
    "ridge": EstimatorSpec(
        "Ridge", "alpha", (1.0, 1e1, 1e2, 1e3, 1e4, 1e5), simpler_if_large=("alpha",), is_numeric=True
    ),
    "svr": EstimatorSpec(
        "SVR",
        "C",
        (0.1, 1.0, 10.0, 100.0),
        simpler_if_small=("C", "gamma"),
        unit_settings={"epsilon": 0.1, "tol": 1e-3},
        is_numeric=True,
    ),
}


def estimator_names(is_numeric: bool, only_defaults: bool = False) -> list[str]:
    """Names of the regressors or of the classifiers."""
    specs = ESTIMATORS.items()
    return [name for name, spec in specs if spec.is_numeric == is_numeric and (spec.is_default or not only_defaults)]
