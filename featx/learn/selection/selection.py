"""`select_model`: choose layer, estimator and parameter by cross-validation, and score the choice on held-out images.

There is one search for each layer, with all estimators, which share the work; so results can be shown as they come, and
kept when the search is interrupted.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from featx.catalogue import ESTIMATORS, EstimatorSpec
from featx.errors import FeatxError, Parameter, TooLargeError, nearest
from featx.learn.scores import METRICS, UNKNOWN, Metric, decisions_of, splits_interval
from featx.learn.search import GridSearchCV
from featx.learn.selection.experiment import A_FIFTH, Experiment, HoldOut, Labels, Stores, define_experiment
from featx.learn.selection.layer_grids import LayerGrid, Layers, checked_steps, layer_grids, new_estimator, steps_text
from featx.learn.selection.parameters import brief, check_callback, check_flags, check_integer, check_n_jobs
from featx.learn.selection.results import (
    Candidate,
    Interrupted,
    Nested,
    SearchSettings,
    Selection,
    TestSet,
    TrainingSet,
    simplest_within_one_se,
)
from featx.learn.selection.splits import Groups, Split, cv_splits
from featx.progress import SearchClock, SearchProgress
from featx.store import FeatureStore

Results = list[tuple[Candidate, Pipeline]]  # candidates with their unfitted pipelines


def select_model(
    stores: Stores,
    y: Labels = None,
    *,
    layers: Layers = None,
    estimators: str | Sequence[str] | None = None,
    param_grid: Mapping[str, Sequence[float]] | None = None,
    steps: Sequence[Any] = (),
    scoring: str | None = None,
    folds: int = 5,
    repeats: int = 1,
    groups: str | Sequence[object] | np.ndarray | None = None,
    allow_duplicates: bool = False,
    one_se: bool = False,
    nested: bool = False,
    holdout: HoldOut = A_FIFTH,
    random_state: int = 0,
    n_jobs: int | None = -1,
    on_progress: Callable[[SearchProgress, list[Candidate]], None] | None = None,
) -> Selection:
    """Choose layer, estimator and its parameter by cross-validation, and score the choice on held-out images.

    The best of many cross-validated scores is biased upwards by the choice; the held-out score is not, and neither is
    that of nested cross-validation. The returned pipeline is the one that was scored: fitted on the training images
    only. If the labels are numbers, regression models are compared by R^2.

    Parameters
    ----------
    stores : FeatureStore, or several of the same images (from several backbones)
    y : (n,) class names, or floats to predict; or a column of the store, optional
        By default the first store's labels. The cells of a column are class names; numbers to predict are
        `store.columns["age"].astype(float)`. Images whose label is masked, as in `store.align("labels.csv",
        partial=True)`, are left out.
    layers : a name, or sequence of names, or of lists of names for layers side by side, optional
        By default each stored layer. "all" puts the layers of a store side by side and chooses, in each fold, as many
        features as the widest layer has: those with the largest weights in a linear model of all of them, after
        Head2Toe [1]_. ``["all", *store.layers]`` compares it with each layer.
    estimators : a key of ESTIMATORS or several, optional
        By default "logistic_regression", "linear_svm" and "rbf_svm"; for regression "ridge" and "svr". Others are
        "nearest_centroid", "ridge_classifier", "knn" and "mlp".
    param_grid : {estimator: values}, optional
        Values of the estimator's parameter (C, alpha or n_neighbors) in place of the default grid; for estimators that
        are searched.
    steps : sequence of transformers, optional
        Steps between the features and the scaler before the estimator: ``[Normalizer()]``, ``[PCA(64)]``. An integer
        `n_components` of a PCA, IncrementalPCA, TruncatedSVD, FastICA or FactorAnalysis is reduced to the columns that
        the step before gives and the images of a fold less one.
    scoring : a key of METRICS, optional
        "accuracy" by default, or "balanced_accuracy", "f1_macro", "matthews_corrcoef", "roc_auc" (of decision scores;
        one class against the rest, averaged over classes). For regression "r2" by default, or
        "neg_mean_absolute_error".
    folds, repeats : int
        Number of folds of the cross-validation, and of its repetitions with other folds.
    groups : a column of the first store, (n,) values, or "near-duplicates", optional
        Images of one group (a patient, for example) are never split between training and test. "near-duplicates" are
        copies of one picture that were saved, resized, mirrored or cropped, by what the store keeps of each image; a
        test store with copies of training images is refused then.
    allow_duplicates : bool
        Whether images of the same content may be split between training and test.
    one_se : bool
        Choose the simplest candidate within one standard error of the best: the fewest features, then the simplest
        estimator, then the strongest regularization.
    nested : bool
        Also run nested cross-validation: the whole search in each of `folds` parts of the training images.
    holdout : HoldOut
        The held-out images; by default a random fifth.
    random_state : int
        Seed of the split and the folds.
    n_jobs : int, optional
        Number of processes for fits that fall back to scikit-learn; -1 is one per core.
    on_progress : callable(featx.SearchProgress, candidates), optional
        Called after each fit with `done`, `total`, `seconds` and `seconds_left`, and the candidates of the layers that
        are done.

    Returns
    -------
    Selection

    Raises
    ------
    FeatxError
        There are fewer than two classes, or a class has too few images or groups for the folds; an unknown estimator,
        layer, column or score; a held-out image that is a training image too; a test store made with another recipe.
    Interrupted
        Ctrl-C; its `result` has what was done.

    Warns
    -----
    RowsDifferWarning
        Rows of the test store are rounded differently: it was made with another engine, precision, batch size, device,
        number of threads or storage type.

    References
    ----------
    .. [1] Evci et al., "Head2Toe: Utilizing Intermediate Representations for Better Transfer Learning", ICML 2022. It
       takes a group lasso; here the norm of a feature's weights over the classes ranks it, in an L2-regularized model.
    """
    steps = checked_steps(steps)
    check_integer("folds", folds, 2)
    check_integer("repeats", repeats, 1)
    check_flags(one_se=one_se, nested=nested)
    check_n_jobs(n_jobs)
    check_callback("on_progress", on_progress)
    experiment = define_experiment(
        stores, y, groups=groups, allow_duplicates=allow_duplicates, holdout=holdout, random_state=random_state
    )
    metric = _metric(scoring, experiment.is_numeric)
    splits = _splits(experiment, metric, folds, repeats, random_state)
    outer = cv_splits(experiment.y, experiment.groups, folds, 1, random_state) if nested else []
    inner = [cv_splits(*_subset(experiment, train), folds, repeats, random_state) for train, _ in outer]
    grids = layer_grids(
        experiment.stores,
        experiment.X,
        experiment.y,
        [train for of_search in [splits, *inner] for train, _ in of_search],
        layers=layers,
        estimators=estimators,
        param_grid=param_grid,
        steps=steps,
        test_store=experiment.test_store,
    )
    search = _Search(grids, metric, n_jobs, on_progress)
    search.expect(experiment.X, experiment.y, splits)
    for (train, _), inner_splits in zip(outer, inner, strict=True):
        search.expect(experiment.X[train], experiment.y[train], inner_splits)
    training = TrainingSet(
        stores=experiment.stores,
        n=len(experiment.X),
        classes=experiment.classes,
        chance=experiment.chance(metric),
        n_duplicates=experiment.n_duplicates,
        n_groups=experiment.n_groups,
        X=experiment.X,
        y=experiment.y,
    )
    settings = SearchSettings(folds, repeats, metric.name, steps_text(steps, grids))

    def selection(results: Results, best_estimator: Pipeline | None = None, **rest: Any) -> Selection:
        candidates = ranked(results)
        chosen = simplest_within_one_se(candidates) if one_se else candidates[0]
        return Selection(candidates, chosen, best_estimator, training, settings, **rest)

    results: Results = []
    try:
        search.run(experiment.X, experiment.y, splits, results)
        best = selection(results).chosen
        fitted = _fitted(dict(results)[best], experiment.X, experiment.y)
        whole = selection(results, fitted, test=_test_set(fitted, experiment, metric))
    except KeyboardInterrupt:
        if not results:
            raise
        raise Interrupted(selection(results, is_partial=True)) from None
    if not nested:
        return whole
    scores: list[tuple[float, Candidate]] = []
    try:
        for (train, test), inner_splits in zip(outer, inner, strict=True):
            results = []
            search.run(experiment.X[train], experiment.y[train], inner_splits, results)
            chosen = selection(results).chosen
            pipeline = _fitted(dict(results)[chosen], experiment.X[train], experiment.y[train])
            outputs = metric.outputs(pipeline, experiment.X[test])
            scores.append((metric.score(experiment.y[test], outputs, experiment.classes), chosen))
    except KeyboardInterrupt:
        raise Interrupted(replace(whole, nested=_nested(scores, outer, metric))) from None
    return replace(whole, nested=_nested(scores, outer, metric))


def cross_validated(
    experiment: Experiment,
    *,
    layers: Layers = None,
    estimators: str | Sequence[str] | None = None,
    param_grid: Mapping[str, Sequence[float]] | None = None,
    folds: int = 5,
    random_state: int = 0,
) -> tuple[Candidate, ...]:
    """The candidates of `select_model`, best first; nothing is fitted on all images, or predicted for held-out ones."""
    check_integer("folds", folds, 2)
    metric = _metric(None, experiment.is_numeric)
    splits = _splits(experiment, metric, folds, 1, random_state)
    grids = layer_grids(
        experiment.stores,
        experiment.X,
        experiment.y,
        [train for train, _ in splits],
        layers=layers,
        estimators=estimators,
        param_grid=param_grid,
        steps=(),
    )
    results: Results = []
    search = _Search(grids, metric, -1, None)
    search.expect(experiment.X, experiment.y, splits)
    search.run(experiment.X, experiment.y, splits, results)
    return tuple(ranked(results))


def _splits(experiment: Experiment, metric: Metric, folds: int, repeats: int, random_state: int) -> list[Split]:
    splits = cv_splits(experiment.y, experiment.groups, folds, repeats, random_state)
    if metric.name == "r2" and min(len(test) for _, test in splits) < 2:
        raise FeatxError(
            f"R^2 needs at least 2 images in every fold; {folds} folds of {len(experiment.y):,} images leave fewer: "
            "use fewer folds"
        )
    return splits


def ranked(results: Results) -> list[Candidate]:
    """Best first; the simpler one first if means are equal."""
    return sorted((candidate for candidate, _ in results), key=lambda each: (-each.mean, each.complexity))


def _fitted(pipeline: Pipeline, X: np.ndarray, y: np.ndarray) -> Pipeline:
    """Fit it without NearestCentroid's warning of constant columns, which does not concern predictions."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "self.within_class_std_dev_ has", UserWarning)
        return pipeline.fit(X, y)


class _Search:
    """The search over all layers, which runs on any part of the images."""

    def __init__(
        self,
        grids: Sequence[LayerGrid],
        metric: Metric,
        n_jobs: int | None,
        on_progress: Callable[[SearchProgress, list[Candidate]], None] | None,
    ) -> None:
        self.grids, self.metric, self.n_jobs = grids, metric, n_jobs
        self.candidates: list[Candidate] = []  # of the layers that are done
        self.clock = SearchClock(lambda now: on_progress and on_progress(now, self.candidates))

    def expect(self, X: np.ndarray, y: np.ndarray, splits: Sequence[Split]) -> None:
        """Tell the clock of a search to come, and refuse what no layer's search could fit."""
        for grid in self.grids:
            try:
                plan = self._of(grid, splits).plan(X, y)
            except TooLargeError as error:
                if not all(getattr(step, "reads_blocks", False) for _, step in grid.pipeline.steps[1:-1]):
                    raise
                names = [name for name, spec in ESTIMATORS.items() if self._reads_blocks(spec)]
                advice = ". Choose ", Parameter("estimators"), f" among {', '.join(names)}"
                raise TooLargeError(*error.parts, *advice) from None
            self.clock.expect(plan.n_fits, plan.work)

    def _reads_blocks(self, spec: EstimatorSpec) -> bool:
        return spec.is_numeric == self.metric.is_numeric and getattr(new_estimator(spec), "reads_blocks", False)

    def run(self, X: np.ndarray, y: np.ndarray, splits: Sequence[Split], results: Results) -> None:
        """Search layer by layer and append to `results`, which has the results so far if this is interrupted."""
        self.clock.show()
        for grid in self.grids:
            search = self._of(grid, splits)
            try:
                search.fit(X, y)
            except KeyboardInterrupt:
                if hasattr(search, "partial_results_"):
                    results += grid.candidates(search.partial_results_, splits, self.metric.name)
                raise
            results += grid.candidates(search.cv_results_, splits, self.metric.name)
            self.candidates = ranked(results)
            self.clock.show()

    def _of(self, grid: LayerGrid, splits: Sequence[Split]) -> GridSearchCV:
        scoring: Any = self.metric.scorer
        if self.metric.is_numeric:
            scoring = {"score": self.metric.name, "mae": "neg_mean_absolute_error"}
        return GridSearchCV(
            clone(grid.pipeline),
            grid.param_grid(),
            cv=splits,
            n_jobs=self.n_jobs,
            refit=False,
            scoring=scoring,
            error_score="raise",
            progress=self.clock,  # type: ignore[arg-type]  # a clock that is shared by several searches
        )


def _metric(scoring: str | None, is_numeric: bool) -> Metric:
    choices = [name for name, metric in METRICS.items() if metric.is_numeric == is_numeric]
    name = choices[0] if scoring is None else scoring
    if not isinstance(name, str) or name not in choices:
        kind = "numbers" if is_numeric else "classes"
        raise FeatxError(
            Parameter("scoring"),
            f" {brief(name)} is no score of {kind}{nearest(str(name), choices)}; choose {', '.join(choices)}",
        )
    return METRICS[name]


def _subset(experiment: Experiment, rows: np.ndarray) -> tuple[np.ndarray, Groups | None]:
    return experiment.y[rows], None if experiment.groups is None else experiment.groups.of(rows)


def _test_set(fitted: Pipeline, experiment: Experiment, metric: Metric) -> TestSet | None:
    """Predictions for the held-out images, the only time that they are used."""
    if experiment.X_test is None or experiment.y_test is None:
        return None
    held_out = experiment.X_test, experiment.y_test, experiment.test_groups, experiment.test_store
    return predicted_test_set(experiment.reading_test(fitted), metric, *held_out)


def predicted_test_set(
    scored: Pipeline,
    metric: Metric,
    X: np.ndarray,
    y: np.ndarray,
    groups: np.ndarray | None,
    store: FeatureStore | None,
) -> TestSet:
    """The held-out images with the predictions of a fitted pipeline that reads them; see `TestSet`."""
    matrix, last = scored[:-1].transform(X), scored[-1]
    confidence = None
    probabilities = last.predict_proba(matrix) if hasattr(last, "predict_proba") else None
    if hasattr(last, "decision_function"):
        scores = last.decision_function(matrix)  # (m, k), or (m,) for two classes
        confidence = np.abs(scores) if scores.ndim == 1 else scores.max(axis=1)
    elif probabilities is not None:
        confidence = probabilities.max(axis=1)
    return TestSet(
        X=X,
        y=y,
        predicted=last.predict(matrix),
        decisions=decisions_of(last, matrix) if metric.is_ranked else None,
        confidence=confidence,
        groups=groups,
        store=store,
        probabilities=probabilities,
    )


def _nested(scores: Sequence[tuple[float, Candidate]], outer: Sequence[Split], metric: Metric) -> Nested:
    values = tuple(score for score, _ in scores)
    interval = splits_interval(metric, values, outer[: len(scores)]) if scores else UNKNOWN
    return Nested(values, interval, tuple(chosen for _, chosen in scores), len(outer), metric.name)
