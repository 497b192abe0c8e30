"""scikit-learn's own tests of its neighbours and centroids, run on ours; and which of them cannot apply, and why."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import sklearn_own

from featx.learn import KNeighborsClassifier, NearestCentroid

pytestmark = pytest.mark.sklearn

OURS: dict[str, type] = {"KNeighborsClassifier": KNeighborsClassifier, "NearestCentroid": NearestCentroid}
MODULES = {
    name: sklearn_own.copy_of(f"neighbors.tests.{module}", OURS)
    for name, module in {"Neighbors": "test_neighbors", "Centroid": "test_nearest_centroid"}.items()
}
# Tests that are of neighbours, and of radii otherwise, ask which by this class.
MODULES["Neighbors"].KNeighborsMixin = MODULES["Neighbors"].KNeighborsMixin, KNeighborsClassifier  # type: ignore[attr-defined]

_METRIC = "a metric that ours refuses by name"
_SPARSE = "sparse X, which ours refuse"
_MANHATTAN = "metric='manhattan', which our NearestCentroid has not"

# By module: a test, or a test and a part of "argument=value" of the parameters that cannot apply: what it is about.
CANNOT_APPLY: dict[str, dict[str | tuple[str, str], str]] = {
    "Neighbors": {
        ("test_neigh_predictions_algorithm_agnosticity", "DM_"): "DistanceMetric objects; skipped for classifiers",
        "test_precomputed_dense": _METRIC,
        "test_precomputed_sparse_knn": _METRIC,
        "test_precomputed_cross_validation": _METRIC,
        "test_neighbors_validate_parameters": "metric='haversine', " + _METRIC,
        "test_nan_euclidean_support": _METRIC,
        "test_neighbors_minkowski_semimetric_algo_warn": (
            "_fit_method, a private attribute; the words are in test_learn_neighbors"
        ),
        "test_KNeighborsClassifier_multioutput": "several labels a row, which ours refuses",
        "test_unsupervised_inputs": "X that is a KDTree, a BallTree or a fitted estimator, which ours refuses",
        "test_kneighbors_classifier_sparse": _SPARSE,
        "test_predict_sparse_ball_kd_tree": _SPARSE,
    },
    "Centroid": {
        "test_classification_toy": "sparse X by its methods; test_learn_centroid compares what else it asserts",
        "test_iris": _MANHATTAN,
        "test_iris_shrinkage": _MANHATTAN,
        "test_manhattan_metric": _MANHATTAN,
        "test_method_not_available_with_manhattan": _MANHATTAN,
    },
}


@pytest.fixture
def global_random_seed() -> int:
    """scikit-learn's default."""
    return 42


@pytest.fixture
def global_dtype() -> type:
    """scikit-learn's default."""
    return np.float64


class Borrowed:
    """The tests of a module that can apply."""

    @pytest.fixture(autouse=True)
    def _ours_take_part(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Ours are in the place of theirs where a test looks for them as it runs too, and it fits one at least."""
        fits: list[object] = []
        for ours in OURS.values():
            keep = ours._keep  # type: ignore[attr-defined]
            counted = lambda model, *fitted, keep=keep: fits.append(model) or keep(model, *fitted)  # noqa: E731
            monkeypatch.setattr(ours, "_keep", counted)
        with sklearn_own.ours_in_place_of_theirs(OURS):
            yield
        assert fits, "it says nothing of ours: none was fitted"


def _borrowed(name: str) -> type:
    found = {}
    for test_name, test in sklearn_own.tests_of(MODULES[name], OURS).items():
        if test_name not in CANNOT_APPLY[name]:
            sklearn_own.narrow(test, [key[1] for key in CANNOT_APPLY[name] if key[0] == test_name], OURS)
            found[test_name] = staticmethod(test)
    return type(f"Test{name}", (Borrowed,), found)


TestNeighbors, TestCentroid = map(_borrowed, MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_what_cannot_apply_is_there(name):
    tests = sklearn_own.tests_of(sklearn_own.copy_of(MODULES[name].__spec__.name.removeprefix("sklearn."), OURS), OURS)
    for key in CANNOT_APPLY[name]:
        test, text = key if isinstance(key, tuple) else (key, "")
        assert test in tests, f"no {test} of scikit-learn uses ours"
        assert not text or any(text in row for row in sklearn_own.texts_of(tests[test])), f"{test} has no {text}"


@pytest.mark.parametrize(("borrowed", "least"), [(TestNeighbors, 15), (TestCentroid, 8)])
def test_tests_are_left(borrowed, least):
    assert sum(name.startswith("test_") for name in vars(borrowed)) >= least
