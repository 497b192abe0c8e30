"""For each layer, the grid of pipelines that a search fits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import OneToOneFeatureMixin, clone
from sklearn.decomposition import PCA, FactorAnalysis, FastICA, IncrementalPCA, TruncatedSVD
from sklearn.feature_selection import SelectFromModel
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, PowerTransformer

from featx.catalogue import ESTIMATORS, EstimatorSpec, estimator_names
from featx.errors import (
    Call,
    FeatxError,
    LayerError,
    Parameter,
    Part,
    RecipeError,
    RowsDifferWarning,
    listed,
    nearest,
    warn,
)
from featx.learn import estimators as classes
from featx.learn._sklearn import check_parameters
from featx.learn.features import StoredFeatures
from featx.learn.scores import METRICS, splits_interval
from featx.learn.selection.parameters import brief, counts, positive_numbers, sequence
from featx.learn.selection.results import Candidate
from featx.learn.selection.splits import Split
from featx.store import FeatureStore, rounding_note

# decompositions that need no fewer columns and rows than components
_DECOMPOSITIONS = (PCA, IncrementalPCA, TruncatedSVD, FastICA, FactorAnalysis)
Layers = str | Sequence[str | Sequence[str]] | None
ALL = "all"  # all layers of a store side by side


@dataclass(frozen=True, eq=False)
class LayerGrid:
    """The pipelines of one layer of one store.

    pipeline : the steps, with an estimator that the grid replaces
    estimators : (name, estimator, values of its parameter)
    layer : full name, full names joined by "+", or "all"
    """

    pipeline: Pipeline
    estimators: tuple[tuple[str, Any, tuple[Any, ...]], ...]
    layer: str

    @property
    def features(self) -> StoredFeatures:
        return self.pipeline["features"]

    @property
    def n_features(self) -> int:
        """Number of features that the estimator is fitted on, as far as `n_components` or `max_features` tells."""
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
                layer=self.layer,
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
    X: np.ndarray,
    y: np.ndarray,
    trains: Sequence[np.ndarray],
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
    X, y : (n, 1) keys and (n,) labels
    trains : positions that pipelines are fitted on, of each fit
    estimators, param_grid, steps : as in `select_model`
    test_store : as in `stored_features`
    """
    is_numeric = y.dtype.kind == "f"
    chosen = _chosen_estimators(is_numeric, estimators, param_grid, y, min(map(len, trains)))
    grids = []
    for features, layer in _features_of_grids(stores, layers, test_store):
        every = [*([_strongest_features(features, is_numeric)] if layer == ALL else []), *steps]
        between = zip(_step_names(every), _limited(every, features, X, y, trains), strict=True)
        final = [("scaler", classes.StandardScaler()), ("estimator", clone(chosen[0][1]))]
        pipeline = Pipeline([("features", features), *between, *final])
        grids.append(LayerGrid(pipeline, chosen, layer))
    return grids


def _features_of_grids(
    stores: Sequence[FeatureStore], layers: Layers, test_store: FeatureStore | None
) -> list[tuple[StoredFeatures, str]]:
    """The features of each grid, with the name of their layer; "all" comes last."""
    names = None if layers is None else _layer_names(layers)
    if names is None or ALL not in names:
        return [(features, features.layer_) for features in stored_features(stores, names, test_store)]
    others = [name for name in names if name != ALL]
    single = stored_features(stores, others, test_store) if others else []
    every = [each for store in stores for each in stored_features([store], [list(store.layers)], test_store)]
    return [*((features, features.layer_) for features in single), *((features, ALL) for features in every)]


def _strongest_features(features: StoredFeatures, is_numeric: bool) -> SelectFromModel:
    """Choose as many features of all layers as the widest layer has, by the weights of a linear model of them all.

    The score of feature j is ``||W_j||_2``, the norm of its weights over the classes; features are standardised.
    """
    estimator = classes.Ridge() if is_numeric else classes.LogisticRegression()
    return SelectFromModel(
        Pipeline([("scaler", classes.StandardScaler()), ("estimator", estimator)]),
        max_features=max(features.widths_.values()),
        threshold=-np.inf,
        norm_order=2,
        importance_getter="named_steps.estimator.coef_",
    )


def checked_steps(steps: object) -> list[Any]:
    """Raises FeatxError unless `steps` are transformers with parameters in range."""
    every = sequence(steps)
    if every is None:
        raise FeatxError(
            Parameter("steps"), f" is a list of transformers, [Normalizer()] for example; got {brief(steps)}"
        )
    for step in every:
        if isinstance(step, type) or not hasattr(step, "fit") or not hasattr(step, "transform"):
            hint = f"; write {step.__name__}()" if isinstance(step, type) else ""
            raise FeatxError(
                "each of ", Parameter("steps"), f" is a transformer of scikit-learn; got {brief(step)}{hint}"
            )
        try:
            check_parameters(step)
        except ValueError as error:
            raise FeatxError(Parameter("steps"), f": {' '.join(str(error).split())}") from error
        n_components = getattr(step, "n_components", None)
        if isinstance(n_components, Integral) and n_components < 1:
            raise FeatxError(
                f"n_components of {type(step).__name__} (", Parameter("steps"), f") is 1 or more; got {n_components}"
            )
    return every


def _step_names(steps: Sequence[Any]) -> list[str]:
    """Names as in make_pipeline, except for those that a pipeline has for something else."""
    taken = {"features", "scaler", "estimator", *Pipeline([("estimator", None)]).get_params(deep=False)}
    names = [re.sub("__+", "_", type(step).__name__.lower()) for step in steps]
    return [
        f"{name}-{names[: number + 1].count(name)}" if name in taken or names.count(name) > 1 else name
        for number, name in enumerate(names)
    ]


def _limited(
    steps: Sequence[Any], features: StoredFeatures, X: np.ndarray, y: np.ndarray, trains: Sequence[np.ndarray]
) -> list[Any]:
    """Unfitted copies of the steps, whose decompositions have no more components than there are."""
    limited: list[Any] = []
    width: int | None = features.n_features_out_  # columns before the step; None if only fitting tells
    for step in map(clone, steps):
        if isinstance(step, _DECOMPOSITIONS) and (n_components := _n_components(step)):
            if width is None:
                width = _fewest_columns(make_pipeline(features, *limited), X, y, trains)
            # centred, n rows span n - 1 directions: one more would be rounding error, which the scaler would magnify
            most = min(width, *(len(train) - 1 for train in trains))
            if n_components > most:
                step.set_params(n_components=most)
            width = _n_components(step)
        elif not isinstance(step, OneToOneFeatureMixin):
            width = None
        limited.append(step)
    return limited


def _fewest_columns(pipeline: Pipeline, X: np.ndarray, y: np.ndarray, trains: Sequence[np.ndarray]) -> int:
    return min(clone(pipeline).fit_transform(X[train], y[train]).shape[1] for train in trains)


def _n_components(step: Any) -> int:
    """The number of components or features that a transformer keeps; 0 if it does not say."""
    n_kept = getattr(step, "max_features" if isinstance(step, SelectFromModel) else "n_components", None)
    return int(n_kept) if isinstance(n_kept, Integral) else 0


def steps_text(steps: Sequence[Any], grids: Sequence[LayerGrid]) -> tuple[str, ...]:
    """The steps in words: "l2", "power", "pca 256", or their repr; and how many components there are, if fewer."""
    words = []
    for number, step in enumerate(steps):
        if type(step) is Normalizer and step.norm == "l2":
            words.append("l2")
        elif type(step) is PowerTransformer and step.method == "yeo-johnson":
            words.append("power")
        else:
            is_pca = type(step) is PCA and _n_components(step)
            text = f"pca {step.n_components}" if is_pca else " ".join(repr(step).split())
            widths = [_n_components(grid.pipeline.steps[number - len(steps) - 2][1]) for grid in grids]
            few, many = min(widths), max(widths)
            kept = f"{few:,}" if few == many else f"{few:,} to {many:,}"
            words.append(text + (f" ({kept} kept, all there are)" if few < _n_components(step) else ""))
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
    names = None if layers is None else _layer_names(layers)
    notes: dict[str, None] = {}
    by_layer: dict[tuple[int, str], StoredFeatures] = {}
    for number, store in enumerate(stores):
        for layer in store.layers if names is None else names:
            features = StoredFeatures(store, layer if isinstance(layer, str) else list(layer))
            try:
                features.fit()
            except LayerError as error:
                where = f"every store needs every layer that is named; {store.path.name}: " if len(stores) > 1 else ""
                raise LayerError(where, *error.parts, *_how_to_add(store, layer)) from error
            by_layer[number, features.layer_] = features
            _refuse_nonfinite(store, features)
            if test_store is not None:
                _refuse_nonfinite(test_store, features)
                notes[_test_note(features, store, test_store)] = None
    for note in filter(None, notes):
        warn(note, RowsDifferWarning)
    return sorted(by_layer.values(), key=lambda features: features.n_features_out_)


def _how_to_add(store: FeatureStore, layer: str | Sequence[str]) -> list[Part]:
    """The end of a message: how to add the first of some layers that is not stored; [] if all are."""
    stored = {*store.layers, *store.recipe.aliases, *(name.rpartition(":")[0] for name in store.layers)}
    missing = [name for name in ([layer] if isinstance(layer, str) else layer) if name not in stored]
    if not missing:
        return []
    options = {"output": str(store.path), "backbone": store.recipe.backbone, "layers": [*store.layers, missing[0]]}
    return ["; to add it: ", Call("featx.extract", "images", *(Parameter(*option) for option in options.items()))]


def _layer_names(layers: object) -> list[str | list[str]]:
    """Names, and lists of names for layers side by side."""
    names = [layers] if isinstance(layers, str) else sequence(layers)
    side_by_side = [[name] if isinstance(name, str) else sequence(name) or [] for name in names or ()]
    if not side_by_side or not all(name and all(isinstance(part, str) for part in name) for name in side_by_side):
        raise FeatxError(
            Parameter("layers"),
            f" is one or more names, or lists of names for layers side by side; got {brief(layers)}",
        )
    return [name[0] if len(name) == 1 else name for name in side_by_side]


def _refuse_nonfinite(store: FeatureStore, features: StoredFeatures) -> None:
    if bad := sorted({row.id for row in store.nonfinite if row.layer in features.layers_}):
        raise FeatxError(
            f"features must be finite; layer {features.layer_} of {store.path.name} holds inf or NaN for "
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
            f"the test store was made with other settings: {'; '.join(differences)}",
            *features.recipe_.like_hint("; extract its images with ", trained_on),
        )
    return rounding_note(recipe, features.recipe_, (name, trained_on))


def _chosen_estimators(
    is_numeric: bool,
    estimators: str | Sequence[str] | None,
    param_grid: object,
    y: np.ndarray,
    n_fit: int,
) -> tuple[tuple[str, Any, tuple[Any, ...]], ...]:
    """(name, estimator, values of its parameter) of each; raises FeatxError if a name or value does not fit."""
    choices = estimator_names(is_numeric)
    if param_grid is not None and not isinstance(param_grid, Mapping):
        raise FeatxError(
            Parameter("param_grid"),
            f" is {{estimator: values}}, {{'ridge': [1.0, 10.0]}} for example; got {brief(param_grid)}",
        )
    values: Mapping[Any, Any] = param_grid or {}
    if estimators is None:
        names: list | None = estimator_names(is_numeric, only_defaults=True)
    else:
        names = [estimators] if isinstance(estimators, str) else sequence(estimators)
    if not names:
        raise FeatxError(Parameter("estimators"), f" is one or more of {', '.join(choices)}; got {brief(estimators)}")
    for parameter, name in [*(("estimators", name) for name in names), *(("param_grid", name) for name in values)]:
        if not isinstance(name, str) or name not in ESTIMATORS:
            raise FeatxError(
                Parameter(parameter),
                f": there is no estimator {brief(name)}{nearest(str(name), choices)}; choose {', '.join(choices)}",
            )
        if name not in choices:
            kinds = ("numbers", "classes") if is_numeric else ("classes", "numbers")
            raise FeatxError(
                f"the labels are {kinds[0]}, and {name} (",
                Parameter(parameter),
                f") predicts {kinds[1]}; choose from {', '.join(choices)}",
            )
    for name in values:
        if name not in names:
            raise FeatxError(
                Parameter("param_grid"),
                f" has values for {name}, which is not among the ",
                Parameter("estimators"),
                f" that are searched: {', '.join(names)}",
            )
        if not ESTIMATORS[name].parameter:
            raise FeatxError(Parameter("param_grid"), f" has values for {name}, which has no parameter to search")
    chosen = []
    for name in dict.fromkeys(names):
        spec = ESTIMATORS[name]
        estimator, default = new_estimator(spec), spec.values
        if spec.unit_settings:
            unit = 10.0 ** round(np.log10(np.std(y)))  # a power of ten keeps the grid readable
            estimator.set_params(**{parameter: value * unit for parameter, value in spec.unit_settings.items()})
            default = tuple(value * unit for value in default)
        if spec.counts_images:
            default = tuple(k for k in default if k <= n_fit)
        grid = default
        if name in values:
            of_name = values[name]
            numbers = counts(of_name, 1) if spec.counts_images else positive_numbers(of_name)
            where = (f"{spec.parameter} of {name} (", Parameter("param_grid"), ")")
            if numbers is None:
                kind = "integers" if spec.counts_images else "numbers"
                raise FeatxError(*where, f" is a list of one or more positive {kind}; got {brief(of_name)}")
            if spec.counts_images and max(numbers) > n_fit:
                raise FeatxError(
                    *where, f" is at most the {n_fit:,} images that a fold learns from; got {max(numbers)}"
                )
            grid = tuple(numbers)
        chosen.append((name, estimator, grid))
    return tuple(chosen)
