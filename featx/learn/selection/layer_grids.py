"""For each layer, the grid of pipelines that a search fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, PowerTransformer, StandardScaler

from featx.catalogue import ESTIMATORS, EstimatorSpec, estimator_names
from featx.errors import FeatxError, LayerError, Parameter, RecipeError, RowsDifferWarning, listed, nearest, warn
from featx.learn import estimators as classes
from featx.learn.features import StoredFeatures
from featx.learn.scores import METRICS, splits_interval
from featx.learn.selection.results import Candidate
from featx.learn.selection.splits import Split
from featx.store import FeatureStore, rounding_note

Layers = str | Sequence[str | Sequence[str]] | None


@dataclass(frozen=True, eq=False)
class LayerGrid:
    """The pipelines of one layer of one store.

    pipeline : the steps, with an estimator that the grid replaces
    estimators : (name, estimator, values of its parameter)
    """

    pipeline: Pipeline
    estimators: tuple[tuple[str, Any, tuple[Any, ...]], ...]

    @property
    def features(self) -> StoredFeatures:
        return self.pipeline["features"]

    @property
    def n_features(self) -> int:
        """Number of features that the estimator is fitted on, as far as `n_components` of a step tells."""
        widths = [_n_components(step) for _, step in self.pipeline.steps[1:-2]]
        return next((width for width in reversed(widths) if width), self.features.n_features_out_)

    def param_grid(self) -> list[dict[str, list[Any]]]:
        grids = []
        for name, estimator, values in self.estimators:
            parameter = ESTIMATORS[name].parameter
            grids.append({"estimator": [estimator]} | ({f"estimator__{parameter}": list(values)} if parameter else {}))
        return grids

    def n_fits(self, splits: Sequence[Split]) -> int:
        return len(splits) * sum(len(values) for _, _, values in self.estimators)

    def candidates(
        self, results: Mapping[str, Any], splits: Sequence[Split], scoring: str
    ) -> list[tuple[Candidate, Pipeline]]:
        """The candidates of a search, each with its unfitted pipeline.

        Parameters
        ----------
        results : GridSearchCV's `cv_results_`; for regression with the metrics "score" and "mae"
        """
        names = {type(estimator): name for name, estimator, _ in self.estimators}
        metric = METRICS[scoring]
        candidates = []
        for i, params in enumerate(results["params"]):
            name = names[type(params["estimator"])]
            spec = ESTIMATORS[name]
            value = params[f"estimator__{spec.parameter}"] if spec.parameter else None
            scores = tuple(float(results[f"split{split}_test_score"][i]) for split in range(len(splits)))
            candidate = Candidate(
                backbone=self.features.recipe_.backbone,
                layer=self.features.layer_,
                d=self.features.n_features_out_,
                estimator=name,
                parameter=spec.parameter,
                value=value,
                mean=float(np.mean(scores)),
                std=float(np.std(scores)),
                interval=splits_interval(metric, scores, splits),
                scores=scores,
                fit_seconds=float(results["mean_fit_time"][i]),
                complexity=(self.n_features, list(ESTIMATORS).index(name), spec.complexity(value)),
                mae=-float(results["mean_test_mae"][i]) if metric.is_numeric else None,
            )
            candidates.append((candidate, clone(self.pipeline).set_params(**clone(params, safe=False))))
        return candidates


def new_estimator(spec: EstimatorSpec) -> Any:
    return getattr(classes, spec.class_name)(**spec.settings)


def layer_grids(
    stores: Sequence[FeatureStore],
    y: np.ndarray,
    n_fit: int,
    *,
    layers: Layers,
    estimators: str | Sequence[str] | None,
    param_grid: Mapping[str, Sequence[Any]] | None,
    steps: Sequence[Any],
    test_store: FeatureStore | None = None,
) -> list[LayerGrid]:
    """One grid for each layer of each store, narrow layers first; looks up everything that the user named.

    Parameters
    ----------
    y : (n,) labels
    n_fit : smallest number of images that a pipeline is fitted on
    estimators, param_grid, steps : as in `select_model`
    test_store : as in `stored_features`
    """
    is_numeric = y.dtype.kind == "f"
    chosen = _chosen_estimators(is_numeric, estimators, param_grid or {}, y, n_fit)
    for step in steps:
        if not hasattr(step, "fit") or not hasattr(step, "transform"):
            raise FeatxError(f"a step is a transformer of scikit-learn; got {step!r}")
    grids = []
    for features in stored_features(stores, layers, test_store):
        # centred, n rows span n - 1 directions: one more would be rounding error, which the scaler would magnify
        most = min(features.n_features_out_, n_fit - 1)
        between = [_with_components_at_most(clone(step), most) for step in steps]
        named = make_pipeline(*between).steps if between else []
        final = [("scaler", StandardScaler()), ("estimator", clone(chosen[0][1]))]
        pipeline = Pipeline([("features", features), *named, *final])
        grids.append(LayerGrid(pipeline, chosen))
    return grids


def _with_components_at_most(step: Any, most: int) -> Any:
    """The transformer, with no more components than a layer and the images of a fold have."""
    if _n_components(step) > most:
        step.set_params(n_components=most)
    return step


def _n_components(step: Any) -> int:
    """The number of components that a transformer keeps; 0 if it has none, or does not say."""
    n_components = getattr(step, "n_components", None)
    return int(n_components) if isinstance(n_components, Integral) else 0


def steps_text(steps: Sequence[Any], grids: Sequence[LayerGrid]) -> tuple[str, ...]:
    """The steps in words: "l2", "power", "pca 256", or their repr; and how many components there are, if fewer."""
    words = []
    for number, step in enumerate(steps):
        if type(step) is Normalizer and step.norm == "l2":
            words.append("l2")
        elif type(step) is PowerTransformer and step.method == "yeo-johnson":
            words.append("power")
        elif type(step) is PCA and _n_components(step):
            widths = [grid.pipeline.steps[1 + number][1].n_components for grid in grids]
            few, many = min(widths), max(widths)
            kept = f"{few:,}" if few == many else f"{few:,} to {many:,}"
            text = f"pca {step.n_components}"
            words.append(text + (f" ({kept} kept, all there are)" if few < step.n_components else ""))
        else:
            words.append(" ".join(repr(step).split()))
    return tuple(words)


def stored_features(
    stores: Sequence[FeatureStore], layers: Layers, test_store: FeatureStore | None = None
) -> list[StoredFeatures]:
    """Fitted StoredFeatures of the layers (by default all) of each store, narrow layers first.

    Parameters
    ----------
    test_store : FeatureStore, optional
        The store on whose rows models of these features will be scored.

    Raises
    ------
    LayerError
        A layer is not stored.
    RecipeError
        Rows of the test store have another meaning.
    FeatxError
        Rows contain NaN or inf.

    Warns
    -----
    RowsDifferWarning
        Rows of the test store are rounded differently.
    """
    notes: dict[str, None] = {}
    by_layer: dict[tuple[int, str], StoredFeatures] = {}
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
            by_layer[number, features.layer_] = features
            _refuse_nonfinite(store, features)
            if test_store is not None:
                _refuse_nonfinite(test_store, features)
                notes[_test_note(features, store, test_store)] = None
    for note in filter(None, notes):
        warn(note, RowsDifferWarning)
    return sorted(by_layer.values(), key=lambda features: features.n_features_out_)


def _refuse_nonfinite(store: FeatureStore, features: StoredFeatures) -> None:
    if bad := sorted({row.id for row in store.nonfinite if row.layer in features.layers_}):
        raise FeatxError(
            f"features are finite numbers; layer {features.layer_} of {store.path.name} holds inf or NaN for "
            f"{len(bad):,} images: {listed(bad)}; choose other layers, or extract again in float32"
        )


def _test_note(features: StoredFeatures, store: FeatureStore, test_store: FeatureStore) -> str:
    """How rows of the test store are rounded differently, or ""; raises RecipeError if their meaning differs."""
    name, trained_on = test_store.path.name, store.path.name
    where = (f"in {trained_on}", f"in {name}")
    # another network has other layer names: compare networks first
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


def _chosen_estimators(
    is_numeric: bool,
    estimators: str | Sequence[str] | None,
    values: Mapping[str, Sequence[Any]],
    y: np.ndarray,
    n_fit: int,
) -> tuple[tuple[str, Any, tuple[Any, ...]], ...]:
    """(name, estimator, values of its parameter) of each; raises FeatxError if a name or value does not fit."""
    choices = estimator_names(is_numeric)
    if estimators is None:
        estimators = estimator_names(is_numeric, only_defaults=True)
    estimators = [estimators] if isinstance(estimators, str) else estimators
    for name in [*estimators, *values]:
        if name not in ESTIMATORS:
            raise FeatxError(f"there is no estimator {name!r}{nearest(name, choices)}; choose {', '.join(choices)}")
        if name not in choices:
            kinds = ("numbers", "classes") if is_numeric else ("classes", "numbers")
            raise FeatxError(
                f"the labels are {kinds[0]}, and {name} predicts {kinds[1]}; choose from {', '.join(choices)}"
            )
    if not estimators:
        raise FeatxError(f"name at least one estimator of {', '.join(choices)}")
    chosen = []
    for name in dict.fromkeys(estimators):
        spec = ESTIMATORS[name]
        estimator, default = new_estimator(spec), spec.values
        if spec.unit_settings:
            unit = 10.0 ** round(np.log10(np.std(y)))  # a power of ten keeps the grid readable
            estimator.set_params(**{parameter: value * unit for parameter, value in spec.unit_settings.items()})
            default = tuple(value * unit for value in default)
        if spec.counts_images:
            default = tuple(k for k in default if k <= n_fit)
        grid = tuple(values.get(name, default))
        if spec.parameter and (not grid or min(grid) <= 0):
            raise FeatxError(f"{spec.parameter} is one or more positive numbers; got {list(grid)} for {name}")
        if spec.counts_images and max(grid) > n_fit:
            raise FeatxError(
                f"{spec.parameter} is at most the {n_fit:,} images that a fold learns from; got {max(grid)}"
            )
        chosen.append((name, estimator, grid if spec.parameter else (None,)))
    return tuple(chosen)
