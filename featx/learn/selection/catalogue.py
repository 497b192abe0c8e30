"""Layers and estimators in; for each layer one grid of pipelines, and after its search the candidates, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, PowerTransformer, StandardScaler

from featx.errors import FeatxError, LayerError, Parameter, RecipeError, RowsDifferWarning, listed, nearest, warn
from featx.learn.estimators import (
    SVC,
    SVR,
    KNeighborsClassifier,
    LinearSVC,
    LogisticRegression,
    NearestCentroid,
    Ridge,
    RidgeClassifier,
)
from featx.learn.features import StoredFeatures
from featx.learn.scores import METRICS, splits_interval
from featx.learn.selection.results import Candidate
from featx.learn.selection.splits import Split
from featx.store import FeatureStore, rounding_note

Layers = str | Sequence[str | Sequence[str]] | None


@dataclass(frozen=True)
class Family:
    """An estimator and the one parameter of it that is searched.

    parameter : its name, or "" for none
    values : the default grid
    is_numeric : whether it predicts numbers
    is_default : whether it is searched without being named
    """

    estimator: Any
    parameter: str
    values: tuple[Any, ...]
    is_numeric: bool = False
    is_default: bool = True

    @property
    def strength(self) -> int:
        """1 where less of the parameter is simpler, -1 where more is."""
        return 1 if self.parameter == "C" else -1


# Simpler and cheaper to predict with first: that is their order among equals. Features are standardised, so one grid
# serves all layers.
ESTIMATORS: dict[str, Family] = {
    "nearest_centroid": Family(NearestCentroid(), "", (None,), is_default=False),
    "ridge_classifier": Family(RidgeClassifier(), "alpha", (1.0, 1e1, 1e2, 1e3, 1e4, 1e5), is_default=False),
    "logistic_regression": Family(
        LogisticRegression(max_iter=1000), "C", (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 1.0)
    ),
    "linear_svm": Family(LinearSVC(), "C", (1e-5, 1e-4, 1e-3, 1e-2)),
    "knn": Family(KNeighborsClassifier(metric="cosine"), "n_neighbors", (1, 5, 10, 20, 50), is_default=False),
    "rbf_svm": Family(SVC(), "C", (0.1, 1.0, 10.0)),
    "ridge": Family(Ridge(), "alpha", (1.0, 1e1, 1e2, 1e3, 1e4, 1e5), is_numeric=True),
    "svr": Family(SVR(), "C", (0.1, 1.0, 10.0, 100.0), is_numeric=True),
}


@dataclass(frozen=True, eq=False)
class LayerGrid:
    """One layer of one store with all estimators.

    pipeline : steps up to an estimator that the grid replaces
    families : (name, estimator, values)
    """

    pipeline: Pipeline
    families: tuple[tuple[str, Any, tuple[Any, ...]], ...]

    @property
    def features(self) -> StoredFeatures:
        return self.pipeline["features"]

    @property
    def kept(self) -> int:
        """Features that the estimator is fitted on: the layer's, or the components of the PCA."""
        if "pca" in self.pipeline.named_steps:
            return self.pipeline["pca"].n_components
        return self.features.n_features_out_

    def param_grid(self) -> list[dict[str, list[Any]]]:
        grids = []
        for name, estimator, values in self.families:
            parameter = ESTIMATORS[name].parameter
            grids.append({"estimator": [estimator]} | ({f"estimator__{parameter}": list(values)} if parameter else {}))
        return grids

    def n_fits(self, splits: Sequence[Split]) -> int:
        return len(splits) * sum(len(values) for _, _, values in self.families)

    def candidates(
        self, results: Mapping[str, Any], splits: Sequence[Split], scoring: str
    ) -> list[tuple[Candidate, Pipeline]]:
        """What a search found: each candidate, with its pipeline, not fitted.

        Parameters
        ----------
        results : GridSearchCV's `cv_results_`, "score" being one metric and "mae", for numbers, the other
        """
        names = {type(estimator): name for name, estimator, _ in self.families}
        metric = METRICS[scoring]
        found = []
        for i, params in enumerate(results["params"]):
            name = names[type(params["estimator"])]
            family = ESTIMATORS[name]
            value = params[f"estimator__{family.parameter}"] if family.parameter else None
            scores = tuple(float(results[f"split{split}_test_score"][i]) for split in range(len(splits)))
            strength = 0.0 if value is None else family.strength * float(value)
            candidate = Candidate(
                backbone=self.features.recipe_.backbone,
                layer=self.features.layer_,
                d=self.features.n_features_out_,
                estimator=name,
                parameter=family.parameter,
                value=value,
                mean=float(np.mean(scores)),
                std=float(np.std(scores)),
                interval=splits_interval(metric, scores, splits),
                scores=scores,
                fit_seconds=float(results["mean_fit_time"][i]),
                cost=(self.kept, list(ESTIMATORS).index(name), strength),
                mae=-float(results["mean_test_mae"][i]) if metric.is_numeric else None,
            )
            found.append((candidate, clone(self.pipeline).set_params(**clone(params, safe=False))))
        return found


def layer_grids(
    stores: Sequence[FeatureStore],
    y: np.ndarray,
    n_fit: int,
    *,
    layers: Layers,
    estimators: str | Sequence[str] | None,
    values: Mapping[str, Sequence[Any]] | None,
    l2: bool,
    power: bool,
    pca: int | None,
    test_store: FeatureStore | None = None,
) -> list[LayerGrid]:
    """One for every layer of every store, small layers first; everything that was asked for is looked up here.

    Parameters
    ----------
    y : (n,) labels
    n_fit : the fewest images that a pipeline is fitted on
    test_store : as `stored_features` has it
    """
    is_numeric = y.dtype.kind == "f"
    families = _families(is_numeric, estimators, values or {}, y, n_fit)
    if pca is not None and pca < 1:
        raise FeatxError(f"pca is how many components are kept, 1 or more; got {pca}")
    found = []
    for features in stored_features(stores, layers, test_store):
        steps: list[tuple[str, Any]] = [("features", features)]
        steps += [("l2", Normalizer())] if l2 else []
        steps += [("power", PowerTransformer())] if power else []
        # centred, n rows span n - 1 directions: one more is rounding, which the scaler would blow up to noise
        kept = min(pca or 0, features.n_features_out_, n_fit - 1)
        steps += [("pca", PCA(kept, random_state=0))] if pca else []
        pipeline = Pipeline([*steps, ("scaler", StandardScaler()), ("estimator", clone(families[0][1]))])
        found.append(LayerGrid(pipeline, families))
    return found


def stored_features(
    stores: Sequence[FeatureStore], layers: Layers, test_store: FeatureStore | None = None
) -> list[StoredFeatures]:
    """Fitted StoredFeatures of the layers, or of all, of every store, small layers first.

    Parameters
    ----------
    test_store : FeatureStore, optional
        What is learned from each of them will be scored on its rows.

    Raises
    ------
    LayerError
        A layer is not stored; of several stores, in which.
    RecipeError
        Rows of the test store mean something else.
    FeatxError
        Rows hold inf or NaN.

    Warns
    -----
    RowsDifferWarning
        Rows of the test store are rounded differently.
    """
    notes: dict[str, None] = {}
    found: dict[tuple[int, str], StoredFeatures] = {}
    for number, store in enumerate(stores):
        for layer in [layers] if isinstance(layers, str) else layers or store.layers:
            features = StoredFeatures(store, layer if isinstance(layer, str) else list(layer))
            try:
                features.fit()
            except LayerError as error:
                if len(stores) == 1:
                    raise
                raise LayerError(
                    f"every store needs every layer that is named; {store.path.name}: ", *error.parts
                ) from error
            found[number, features.layer_] = features
            _refuse_nonfinite(store, features)
            if test_store is not None:
                _refuse_nonfinite(test_store, features)
                notes[_test_note(features, store, test_store)] = None
    for note in filter(None, notes):
        warn(note, RowsDifferWarning)
    return sorted(found.values(), key=lambda features: features.n_features_out_)


def _refuse_nonfinite(store: FeatureStore, features: StoredFeatures) -> None:
    if bad := sorted({row.id for row in store.nonfinite if row.layer in features.layers_}):
        raise FeatxError(
            f"features are finite numbers; layer {features.layer_} of {store.path.name} holds inf or NaN for "
            f"{len(bad):,} images: {listed(bad)}; choose other layers, or extract again in float32"
        )


def _test_note(features: StoredFeatures, store: FeatureStore, test_store: FeatureStore) -> str:
    """What rounds differently in a test store, in a line or ""; refuses one whose rows mean something else."""
    name, trained_on = test_store.path.name, store.path.name
    where = (f"in {trained_on}", f"in {name}")
    # of another network even the names of layers are others: that is said first
    differences = features.recipe_.some([]).other_meaning(test_store.recipe.some([]), where)
    if not differences:
        try:
            recipe = test_store.recipe.only(features.layers_)
        except LayerError as error:
            raise LayerError(
                f"the test store {name} needs every layer that is searched: ",
                *error.parts,
                ". Add it there, or search fewer",
            ) from error
        differences = features.recipe_.other_meaning(recipe, where)
    if differences:
        raise RecipeError(
            f"the test store was made otherwise: {'; '.join(differences)}; extract its images with ",
            Parameter("like", trained_on),
        )
    return rounding_note(recipe, features.recipe_, (name, trained_on))


def _families(
    is_numeric: bool,
    estimators: str | Sequence[str] | None,
    values: Mapping[str, Sequence[Any]],
    y: np.ndarray,
    n_fit: int,
) -> tuple[tuple[str, Any, tuple[Any, ...]], ...]:
    """(name, estimator, values), or an error that names what there is."""
    choices = [name for name, family in ESTIMATORS.items() if family.is_numeric == is_numeric]
    if estimators is None:
        estimators = [name for name in choices if ESTIMATORS[name].is_default]
    estimators = [estimators] if isinstance(estimators, str) else estimators
    for name in [*estimators, *values]:
        if name not in ESTIMATORS:
            raise FeatxError(f"there is no estimator {name!r}{nearest(name, choices)}; choose {', '.join(choices)}")
        if name not in choices:
            told = ("numbers", "classes") if is_numeric else ("classes", "numbers")
            raise FeatxError(
                f"the labels are {told[0]}, and {name} predicts {told[1]}; choose from {', '.join(choices)}"
            )
    if not estimators:
        raise FeatxError(f"name at least one estimator of {', '.join(choices)}")
    found = []
    for name in dict.fromkeys(estimators):
        family = ESTIMATORS[name]
        estimator, default = clone(family.estimator), family.values
        if name == "svr":  # C, epsilon and tol are in units of y; a power of ten of them keeps the grid readable
            unit = 10.0 ** round(np.log10(np.std(y)))
            estimator.set_params(epsilon=0.1 * unit, tol=1e-3 * unit)
            default = tuple(value * unit for value in default)
        if name == "knn":
            default = tuple(k for k in default if k <= n_fit)
        grid = tuple(values.get(name, default))
        if family.parameter and (not grid or min(grid) <= 0):
            raise FeatxError(f"{family.parameter} is one or more positive numbers; got {list(grid)} for {name}")
        if name == "knn" and max(grid) > n_fit:
            raise FeatxError(f"n_neighbors is at most the {n_fit:,} images that a fold learns from; got {max(grid)}")
        found.append((name, estimator, grid if family.parameter else (None,)))
    return tuple(found)
