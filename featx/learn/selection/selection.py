"""Stores in, one chosen and fitted pipeline out: a grid over layers, estimators and their parameter with honest
cross-validation, and a score on images that the choice never saw. What `featx search` runs.

One search a layer, with all estimators, which share the work; so what is done can be shown, and kept when somebody
interrupts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from featx.errors import FeatxError, nearest
from featx.learn.scores import METRICS, UNKNOWN, Metric, decisions_of, splits_interval
from featx.learn.search import GridSearchCV
from featx.learn.selection.catalogue import LayerGrid, Layers, layer_grids
from featx.learn.selection.experiment import Labels, Question, Stores, ask
from featx.learn.selection.results import Candidate, Interrupted, Nested, Selection, cheapest_within_noise
from featx.learn.selection.splits import Split, Tied, cv_splits
from featx.progress import SearchClock, SearchProgress
from featx.store import FeatureStore

Found = list[tuple[Candidate, Pipeline]]


def select_model(
    stores: Stores,
    y: Labels = None,
    *,
    layers: Layers = None,
    estimators: str | Sequence[str] | None = None,
    C: Mapping[str, Sequence[float]] | None = None,
    l2: bool = False,
    power: bool = False,
    pca: int | None = None,
    scoring: str | None = None,
    folds: int = 5,
    repeats: int = 1,
    groups: str | Sequence[object] | np.ndarray | None = None,
    allow_duplicates: bool = False,
    one_se: bool = False,
    nested: bool = False,
    test_size: float = 0.2,
    test_rows: np.ndarray | None = None,
    test_store: FeatureStore | None = None,
    random_state: int = 0,
    n_jobs: int | None = -1,
    on_progress: Callable[[SearchProgress, list[Candidate]], None] | None = None,
) -> Selection:
    """Choose layer, estimator and its parameter by cross-validation, and score the choice on images held out.

    The best of many cross-validated scores is flattered by having been chosen; the held-out score is not, and neither
    is that of nested cross-validation. The pipeline returned is the one that was scored: fitted on the training images
    only. Where the labels are numbers, regression models compete, by R^2.

    Parameters
    ----------
    stores : FeatureStore, or several of the same images (from several backbones)
    y : (n,) class names, or floats for numbers to predict; or a column of the store, optional
        By default the first store's own. The cells of a column are class names; numbers to predict are
        `store.columns["age"].astype(float)`.
    layers : a name, or sequence of names, or of lists of names for layers side by side, optional
        By default each that is stored.
    estimators : a key of ESTIMATORS or several, optional
        By default "logistic_regression", "linear_svm" and "rbf_svm"; of numbers "ridge" and "svr". There are
        "nearest_centroid", "ridge_classifier" and "knn" too.
    C : {estimator: values}, optional
        Instead of the default grid; of alpha or n_neighbors for estimators that have these in place of C.
    l2, power : bool
        Bring rows to length 1; make columns normal (Yeo-Johnson; of 2,000 images some 10 ms a column and fold). In
        this order, before the PCA.
    pca : int, optional
        Components to keep, or as many as there are.
    scoring : a key of METRICS, optional
        "accuracy" by default, or "balanced_accuracy", "f1_macro", "matthews_corrcoef", "roc_auc" (of decision
        scores; of several classes each against the rest, averaged); of numbers "r2", or "neg_mean_absolute_error".
    folds, repeats : int
        Of the cross-validation, which is repeated with other folds.
    groups : a column of the first store, or (n,) values, optional
        Images of a group (a patient, near-duplicates) are never on both sides of a split.
    allow_duplicates : bool
        Whether images of the same content may be on both sides.
    one_se : bool
        Take the cheapest candidate within one standard error of the best: the fewest features, then the simplest
        estimator, then the strongest penalty.
    nested : bool
        Nested cross-validation besides: the whole search in each of `folds` parts of the training images.
    test_size : float
        The share of images to hold out, stratified, by whole groups; 0 for none.
    test_rows : (n,) bool, optional
        Which images to hold out, instead of a random share.
    test_store : FeatureStore, optional
        Labelled images to hold out, all of them, in a store of their own. Its rows have to mean what those of `stores`
        do: the same network, weights, preprocessing, decoder and layers.
    random_state : int
        Of the split and the folds.
    n_jobs : int, optional
        Processes for what is left to scikit-learn; -1 is one a core.
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
        layer, column or score; a held-out image that is a training image too; a test store that was made otherwise.
    Interrupted
        Ctrl-C; it holds what was done.

    Warns
    -----
    RowsDifferWarning
        Rows of the test store are rounded differently: it was made with another engine, precision, batch size, device,
        number of threads or storage type.
    """
    asked = ask(
        stores,
        y,
        groups=groups,
        allow_duplicates=allow_duplicates,
        test_size=test_size,
        test_rows=test_rows,
        test_store=test_store,
        random_state=random_state,
    )
    splits = cv_splits(asked.y, asked.tied, folds, repeats, random_state)
    metric = _metric(scoring, asked.is_numeric)
    if metric.name == "r2" and min(len(test) for _, test in splits) < 2:
        raise FeatxError(
            f"R^2 compares images, so a fold has two or more; {folds} folds of {len(asked.y):,} are too many"
        )
    outer = cv_splits(asked.y, asked.tied, folds, 1, random_state) if nested else []
    inner = [cv_splits(*_subset(asked, train), folds, repeats, random_state) for train, _ in outer]
    grids = layer_grids(
        asked.stores,
        asked.y,
        min(len(train) for those in [splits, *inner] for train, _ in those),
        layers=layers,
        estimators=estimators,
        values=C,
        l2=l2,
        power=power,
        pca=pca,
        test_store=asked.test_store,
    )
    search = _Search(grids, metric, n_jobs, on_progress)
    if on_progress is not None:
        search.expect(asked.X, asked.y, splits)
        for (train, _), those in zip(outer, inner, strict=True):
            search.expect(asked.X[train], asked.y[train], those)

    def selection(found: Found, **rest: Any) -> Selection:
        candidates = ranked(found)
        return Selection(
            candidates=candidates,
            chosen=cheapest_within_noise(candidates) if one_se else candidates[0],
            best_estimator=rest.pop("best_estimator", None),
            stores=asked.stores,
            n_train=len(asked.X),
            folds=folds,
            repeats=repeats,
            scoring=metric.name,
            classes=asked.classes,
            chance=asked.chance(metric),
            steps=(*(["l2"] if l2 else []), *(["power"] if power else []), *(_pca_step(pca, grids) if pca else [])),
            n_duplicates=asked.n_duplicates,
            n_groups=asked.n_groups,
            **rest,
        )

    found: Found = []
    try:
        search.follow(asked.X, asked.y, splits, found)
        best = selection(found).chosen
        fitted = _fitted(dict(found)[best], asked.X, asked.y)
        whole = selection(found, best_estimator=fitted, **_held_out(fitted, asked, metric))
    except KeyboardInterrupt:
        if not found:
            raise
        raise Interrupted(selection(found, is_partial=True)) from None
    if not nested:
        return whole
    scores: list[tuple[float, Candidate]] = []
    try:
        for (train, test), those in zip(outer, inner, strict=True):
            found = []
            search.follow(asked.X[train], asked.y[train], those, found)
            chosen = selection(found).chosen
            pipeline = _fitted(dict(found)[chosen], asked.X[train], asked.y[train])
            outputs = metric.outputs(pipeline, asked.X[test])
            scores.append((metric.score(asked.y[test], outputs, asked.classes), chosen))
    except KeyboardInterrupt:
        raise Interrupted(replace(whole, nested=_nested(scores, outer, metric))) from None
    return replace(whole, nested=_nested(scores, outer, metric))


def ranked(found: Found) -> list[Candidate]:
    """Best first, of equal ones the cheaper."""
    return sorted((candidate for candidate, _ in found), key=lambda candidate: (-candidate.mean, candidate.cost))


def _fitted(pipeline: Pipeline, X: np.ndarray, y: np.ndarray) -> Pipeline:
    """NearestCentroid's warning of columns that do not vary is left out: it says nothing of its predictions here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "self.within_class_std_dev_ has", UserWarning)
        return pipeline.fit(X, y)


class _Search:
    """The same search, on whatever images it is given."""

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
        """Have the clock know of a search to come."""
        for grid in self.grids:
            plan = self._of(grid, splits).plan(X, y)
            self.clock.expect(plan.n_fits, plan.work)

    def follow(self, X: np.ndarray, y: np.ndarray, splits: Sequence[Split], found: Found) -> None:
        """Layer by layer; `found` grows, and has what was done if this is interrupted."""
        self.clock.show()
        for grid in self.grids:
            search = self._of(grid, splits)
            try:
                search.fit(X, y)
            except KeyboardInterrupt:
                if hasattr(search, "partial_results_"):
                    found += grid.candidates(search.partial_results_, splits, self.metric.name)
                raise
            found += grid.candidates(search.cv_results_, splits, self.metric.name)
            self.candidates = ranked(found)
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
            progress=self.clock,  # type: ignore[arg-type]  # which only a caller of several searches gives
        )


def _metric(scoring: str | None, is_numeric: bool) -> Metric:
    choices = [name for name, metric in METRICS.items() if metric.is_numeric == is_numeric]
    name = choices[0] if scoring is None else scoring
    if name not in choices:
        kind = "numbers" if is_numeric else "classes"
        raise FeatxError(f"there is no score {name!r} of {kind}{nearest(name, choices)}; choose {', '.join(choices)}")
    return METRICS[name]


def _subset(asked: Question, rows: np.ndarray) -> tuple[np.ndarray, Tied | None]:
    return asked.y[rows], None if asked.tied is None else asked.tied.of(rows)


def _pca_step(asked_for: int, grids: Sequence[LayerGrid]) -> list[str]:
    """In words, with what was kept where there is less."""
    few, many = min(grid.kept for grid in grids), max(grid.kept for grid in grids)
    kept = f"{few:,}" if few == many else f"{few:,} to {many:,}"
    return [f"pca {asked_for}" + (f" ({kept} kept, all there are)" if few < asked_for else "")]


def _held_out(fitted: Pipeline, asked: Question, metric: Metric) -> dict[str, Any]:
    """What the winner says of the test set, the one time it is looked at."""
    if asked.X_test is None:
        return {}
    scored = asked.reading_test(fitted)
    matrix, last = scored[:-1].transform(asked.X_test), scored[-1]
    confidence = None
    if hasattr(last, "decision_function"):
        scores = last.decision_function(matrix)  # (m, k), or (m,) for two classes
        confidence = np.abs(scores) if scores.ndim == 1 else scores.max(axis=1)
    elif hasattr(last, "predict_proba"):
        confidence = last.predict_proba(matrix).max(axis=1)
    return {
        "X_test": asked.X_test,
        "y_test": asked.y_test,
        "predicted": last.predict(matrix),
        "decisions": decisions_of(last, matrix) if metric.is_ranked else None,
        "confidence": confidence,
        "test_groups": asked.test_groups,
        "test_store": asked.test_store,
    }


def _nested(scores: Sequence[tuple[float, Candidate]], outer: Sequence[Split], metric: Metric) -> Nested:
    values = tuple(score for score, _ in scores)
    interval = splits_interval(metric, values, outer[: len(scores)]) if scores else UNKNOWN
    return Nested(values, interval, tuple(chosen for _, chosen in scores), len(outer), metric.name)
