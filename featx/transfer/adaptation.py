"""`adapt`: what helps a model of one domain on the images of another: an alignment, or a few labels of the target.

Every way is scored on the same held-out images of the target, which take part in nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from featx.catalogue import ESTIMATORS
from featx.errors import (
    Call,
    FeatxError,
    Parameter,
    RowsDifferWarning,
    StoreError,
    listed,
    nearest,
    warn,
)
from featx.learn.estimators import Fit
from featx.learn.features import StoredFeatures
from featx.learn.lazy_rows import is_lazy, too_large
from featx.learn.scores import METRICS, UNKNOWN, Interval, Metric, drawn_interval, paired_drawn_interval
from featx.learn.selection import (
    Experiment,
    HoldOut,
    Labels,
    brief,
    check_integer,
    counts,
    define_experiment,
    labels_of,
    new_estimator,
    select_model,
)
from featx.progress import Progress, preparing, shown
from featx.store import FeatureStore
from featx.transfer.alignment import METHODS, Align, check_target

HALF = HoldOut(0.5)
_SHOTS = (5, 10, 25)
_ESTIMATOR = "logistic_regression"


@dataclass(frozen=True)
class AdaptationRow:
    """The score of one way to make a model for the target domain.

    Attributes
    ----------
    training : "source", "target" or "source and target"
        The domains whose labels the model was trained on.
    method : str
        "" for none, or how domains were aligned.
    shots : int
        Labelled target images of each class.
    score : float
        Score on the held-out target images; with `shots`, the mean over random draws.
    interval : Interval
        95 % confidence interval of the score.
    gain : float
        The score minus that of the source alone.
    gain_interval : Interval
        95 % confidence interval of the gain, paired over images; (nan, nan) for the source alone.
    source_score : float or None
        Cross-validated accuracy on the source, with `shots` None.
    C : float
        Parameter of the logistic regression.
    """

    training: str
    method: str
    shots: int
    score: float
    interval: Interval
    gain: float
    gain_interval: Interval
    source_score: float | None
    C: float


@dataclass(frozen=True, eq=False, repr=False)
class Adaptation:
    """The result of `adapt`.

    Attributes
    ----------
    rows : tuple of AdaptationRow
        In a fixed order, from the source alone to most labels: the choice is the reader's.
    pipelines : {method: Pipeline}
        Fitted on the labelled source images, "" for the source alone. They predict images of the target.
    layer : str
    n_source, n_target, n_test : int
        Labelled source images; target images to align with and to draw labelled ones from; held-out target images.
    classes : (k,) str
    chance : float
        Score on the held-out images if all are predicted as the source's most frequent class.
    scoring : str
    draws : int
        Random draws of labelled target images.
    omitted_shots : tuple of int
        Default numbers of labelled images of each class that were not tried, because a class has fewer.
    fewest : (str, int)
        The class with the fewest target images that are not held out, and their number.
    source, target : FeatureStore
    """

    rows: tuple[AdaptationRow, ...]
    pipelines: Mapping[str, Pipeline] = field(repr=False)
    layer: str
    n_source: int
    n_target: int
    n_test: int
    classes: np.ndarray
    chance: float
    scoring: str
    draws: int
    omitted_shots: tuple[int, ...]
    fewest: tuple[str, int]
    source: FeatureStore
    target: FeatureStore

    def __repr__(self) -> str:
        lines = [f"{self.scoring} on {self.n_test:,} held-out images of {self.target.path.name}"]
        for row in self.rows:
            how = ", ".join(filter(None, (row.training, row.method, f"{row.shots} a class" if row.shots else "")))
            lines.append(f"{how}: {row.score:.3f} [{row.interval.low:.3f}, {row.interval.high:.3f}]")
        return "\n".join(lines)


def adapt(
    source_store: FeatureStore,
    target_store: FeatureStore,
    *,
    layer: str | Sequence[str] | None = None,
    labels: Labels = None,
    target_labels: Labels = None,
    methods: str | Sequence[str] | None = None,
    shots: Sequence[int] | None = None,
    draws: int = 10,
    scoring: str = "accuracy",
    groups: str | None = None,
    allow_duplicates: bool = False,
    holdout: HoldOut = HALF,
    folds: int = 5,
    random_state: int = 0,
    progress: bool | Callable[[Progress], None] = True,
) -> Adaptation:
    """Compare ways to predict images of a target domain with labels of a source domain.

    The ways are: the source alone; the source aligned by each method, without labels of the target; a few labelled
    target images alone; and these together with the source. All are logistic regressions on standardised features,
    scored on the same held-out target images. None of them is chosen.

    Parameters
    ----------
    source_store, target_store : FeatureStore
        Labelled images of each domain, stored by one recipe.
    layer : str or list of str, optional
        As in StoredFeatures.
    labels, target_labels : (n,) class names, or a column, optional
        By default those of the stores. A column given as `labels` is also read in the target.
    methods : names among "scaler", "coral", "linear_ot", optional
        See `Align`. By default all.
    shots : sequence of int, optional
        Numbers of labelled target images of each class; by default 5, 10 and 25, as far as possible. () for none.
    draws : int
        Number of random draws of these images.
    scoring : "accuracy", "balanced_accuracy", "f1_macro" or "matthews_corrcoef"
    groups : str, optional
        A column of both stores. Images of one group are never split, and a group is in one domain only.
    allow_duplicates : bool
        Whether images of the same content may be split, and be in both stores.
    holdout : HoldOut
        Held-out target images, by default a random half: stratified, and by whole groups. They take part in nothing:
        the alignment uses the other target images.
    folds : int
        Number of folds of the cross-validation on the source.
    random_state : int
        Seed of the held-out images, the folds and the draws.
    progress : bool or callable
        As in `featx.extract`.

    Returns
    -------
    Adaptation

    Raises
    ------
    FeatxError
        A store has no labels, or numbers; the source has one class, or lacks a class of the target; images or groups
        are in both stores; there are too few images.
    LayerError, RecipeError
        As in `Align`.

    Warns
    -----
    RowsDifferWarning
        Rows of the two stores are rounded differently.

    Notes
    -----
    C is chosen on the source: without alignment for the source alone and wherever target labels are used, and behind
    each alignment for its own row, where each fold is aligned by its training rows. For labelled target images each
    domain is standardised by itself, with all its images that are not held out; beside the source, the images of both
    domains have the same total weight.

    Examples
    --------
    >>> adapt(featx.FeatureStore("ours.h5"), featx.FeatureStore("theirs.h5"), layer="layer4")    # doctest: +SKIP
    """
    for store in (source_store, target_store):
        if not isinstance(store, FeatureStore):
            raise FeatxError(
                f"a domain is a featx.FeatureStore; got {brief(store)}; featx.FeatureStore(path) opens one"
            )
    names = [methods] if isinstance(methods, str) else list(METHODS if methods is None else methods)
    for name in names:
        if name not in METHODS:
            raise FeatxError(
                f"there is no method {name!r}{nearest(str(name), METHODS)}; ",
                Parameter("methods"),
                f" are {', '.join(METHODS)}",
            )
    check_integer("draws", draws, 1)
    metric = _metric(scoring)
    if groups is not None and not isinstance(groups, str):
        raise FeatxError(Parameter("groups"), f" is a column of both stores; got {brief(groups)}")
    if isinstance(holdout, HoldOut) and (holdout.store is not None or holdout.size == 0):
        raise FeatxError(
            "ways are scored on target images held out; give ",
            Parameter("holdout", Call("HoldOut", Parameter("size", 0.5))),
            ", or another share above 0, or rows",
        )
    if target_labels is None and isinstance(labels, str):
        target_labels = labels
    options: dict[str, Any] = {"groups": groups, "allow_duplicates": allow_duplicates, "random_state": random_state}
    source = define_experiment(source_store, labels, holdout=HoldOut(0), **options)
    if target_store.y is None and target_labels is None:
        raise StoreError(
            f"{target_store.path.name} has no labels, and ways are scored by those of held-out target images; give ",
            Parameter("target_labels", Call("target_store.align", "'labels.csv'")),
            ". Without any, featx.transfer.Align in a pipeline still predicts, but nothing says how well",
        )
    _refuse_unlike(source, target_store, labels_of(target_store, target_labels), groups, allow_duplicates)
    features = StoredFeatures(source_store, layer).fit()
    if note := check_target(target_store, features.recipe_):
        warn(note, RowsDifferWarning)
    target = define_experiment(target_store, target_labels, holdout=holdout, **options)
    drawn = _draws(target, shots, draws, random_state)
    for domain in (source, target):
        nbytes = len(domain.X) * features.n_features_out_ * np.dtype(features.recipe_.dtype).itemsize
        if (names or drawn) and is_lazy(nbytes):
            raise too_large(f"adapt needs a copy of {len(domain.X):,} rows of {features.layer_}", nbytes)

    pipelines: dict[str, Pipeline] = {}
    ways: list[_Way] = []
    with shown(progress) as show, warnings.catch_warnings():
        warnings.simplefilter("ignore", RowsDifferWarning)  # it has been given
        on_phase = preparing(show)
        for method in ("", *names):
            on_phase(f"aligning by {method}" if method else "source alone")
            selection = select_model(
                source_store,
                labels,
                layers=[list(features.layers_)],
                estimators=_ESTIMATOR,
                steps=[Align(target_store, method, target_keys=target.X)] if method else [],
                scoring=scoring,
                folds=folds,
                holdout=HoldOut(0),
                n_jobs=1,
                **options,
            )
            chosen, pipeline = selection.chosen, selection.best_estimator
            assert pipeline is not None and chosen.value is not None
            pipelines[method] = pipeline
            predicted = _reading(source, target_store, pipeline).predict(target.X_test)
            ways.append(_Way("source", method, 0, [predicted], chosen.mean, chosen.value))
        if drawn:
            on_phase("labelled target images")
            C = ways[0].C
            of_source, of_target, of_test = _standardised(features, source, target)
            for training in ("target", "source and target"):
                parts = [of_target] if training == "target" else [of_target, of_source]
                models = _fit_draws(parts, target.y, source.y, [one for each in drawn.values() for one in each], C)
                predictions = [model.predict(of_test) for model in models]
                for place, shot in enumerate(drawn):
                    of_shot = predictions[place * draws : (place + 1) * draws]
                    ways.append(_Way(training, "", shot, of_shot, None, C))
    assert target.y_test is not None
    classes, n_of_each = np.unique(source.y, return_counts=True)
    chance = metric.score(target.y_test, np.full(len(target.y_test), classes[n_of_each.argmax()]))
    return Adaptation(
        rows=tuple(_row(way, ways[0], metric, target.y_test, target.test_groups) for way in ways),
        pipelines=pipelines,
        layer=features.layer_,
        n_source=len(source.y),
        n_target=len(target.y),
        n_test=len(target.y_test),
        classes=classes,
        chance=float(chance),
        scoring=scoring,
        draws=draws,
        omitted_shots=tuple(shot for shot in _SHOTS if shots is None and shot not in drawn),
        fewest=_fewest(target.y),
        source=source_store,
        target=target_store,
    )


class _Way(NamedTuple):
    """A way to make models, and what they predict for the held-out images; the fields are those of AdaptationRow.

    predictions : (m,) of the one model, or of the model of each draw
    """

    training: str
    method: str
    shots: int
    predictions: list[np.ndarray]
    source_score: float | None
    C: float


def _row(way: _Way, alone: _Way, metric: Metric, y: np.ndarray, groups: np.ndarray | None) -> AdaptationRow:
    """The scores of a way. alone : the source alone"""
    score = float(np.mean([metric.score(y, predicted) for predicted in way.predictions]))
    (of_alone,) = alone.predictions
    gain_interval = UNKNOWN
    if way is not alone:
        gain_interval = paired_drawn_interval(metric, y, of_alone, way.predictions, groups)
    return AdaptationRow(
        training=way.training,
        method=way.method,
        shots=way.shots,
        score=score,
        interval=drawn_interval(metric, y, way.predictions, groups),
        gain=score - metric.score(y, of_alone),
        gain_interval=gain_interval,
        source_score=way.source_score,
        C=way.C,
    )


def _metric(scoring: object) -> Metric:
    choices = [name for name, metric in METRICS.items() if not metric.is_numeric and not metric.is_ranked]
    if not isinstance(scoring, str) or scoring not in choices:
        close = nearest(str(scoring), choices)
        raise FeatxError(Parameter("scoring"), f" is one of {', '.join(choices)}; got {brief(scoring)}{close}")
    return METRICS[scoring]


def _refuse_unlike(
    source: Experiment, target_store: FeatureStore, y: np.ndarray, groups: str | None, allow_duplicates: bool
) -> None:
    """Raise FeatxError if a score on the target would be meaningless: shared images or groups, or other labels."""
    (store,) = source.stores
    name = target_store.path.name
    if source.is_numeric or y.dtype.kind == "f":
        raise FeatxError("domains are adapted for classes, and labels are numbers; give class names")
    if unknown := sorted(set(y) - set(source.y)):
        raise FeatxError(
            f"{name} has classes that {store.path.name} has not, and no model of the source can predict them: "
            f"{listed(unknown)}; leave their images out, or give both domains the same names"
        )
    shared = set(map(bytes, target_store.digests)) & set(map(bytes, store.digests))
    if shared and not allow_duplicates:
        raise FeatxError(
            f"{len(shared):,} of the {len(target_store):,} images of {name} are in {store.path.name} too; a score on "
            "them says nothing: take them out of one of the stores"
        )
    if groups is not None and groups in target_store.columns:
        both = sorted(set(target_store.columns[groups]) & set(store.columns[groups]))
        if both:
            raise FeatxError(f"a group is in one domain only; {len(both):,} are in both stores: {listed(both)}")


def _draws(
    target: Experiment, shots: Sequence[int] | None, draws: int, random_state: int
) -> dict[int, list[np.ndarray]]:
    """{images per class: positions of each draw}; a draw with more images contains the same draw with fewer."""
    names = np.unique(target.y)
    rarest, fewest = _fewest(target.y)
    if shots is None:
        shots = [shot for shot in _SHOTS if shot <= fewest]
    distinct = [] if not len(shots) else counts(shots, 1, fewest)
    if distinct is None:
        raise FeatxError(
            Parameter("shots"),
            f" is a list of numbers of images per class, from 1 to the {fewest:,} target images of "
            f"{rarest!r} that are not held out; got {brief(shots)}",
        )
    drawn: dict[int, list[np.ndarray]] = {shot: [] for shot in sorted(distinct)}
    for seed in range(draws):
        order = np.random.default_rng([random_state, seed]).permutation(len(target.y))
        of_each = [order[target.y[order] == name] for name in names]
        for shot, chosen in drawn.items():
            chosen.append(np.concatenate([positions[:shot] for positions in of_each]))
    return drawn


def _fewest(y: np.ndarray) -> tuple[str, int]:
    """The least frequent class, and its number of images."""
    names, n_of_each = np.unique(y, return_counts=True)
    return str(names[n_of_each.argmin()]), int(n_of_each.min())


def _reading(source: Experiment, target_store: FeatureStore, pipeline: Pipeline) -> Pipeline:
    """The fitted pipeline, reading from the target store."""
    return replace(source, test_store=target_store).reading_test(pipeline)


def _standardised(
    features: StoredFeatures, source: Experiment, target: Experiment
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the source, the target, and the held-out images: each domain standardised without held-out images."""
    reading = _reading(source, target.stores[0], Pipeline([("features", features)]))
    target_rows = reading.transform(target.X)
    scaler = StandardScaler().fit(target_rows)
    return (
        StandardScaler().fit_transform(features.transform(source.X)),
        scaler.transform(target_rows),
        scaler.transform(reading.transform(target.X_test)),
    )


def _fit_draws(
    parts: list[np.ndarray], y_target: np.ndarray, y_source: np.ndarray, draws: list[np.ndarray], C: float
) -> list[Any]:
    """A model for each draw of target rows, beside all source rows if `parts` has them."""
    X = np.concatenate(parts)
    y = np.concatenate([y_target, y_source])[: len(X)]
    fits = []
    for positions in draws:
        weights = np.zeros(len(X))
        weights[positions] = 1.0
        if len(parts) == 2:  # both domains weigh the same
            weights[len(y_target) :] = 0.5
            weights[positions] = 0.5 * len(y_source) / len(positions)
        fits.append(Fit({}, weights))
    estimator = new_estimator(ESTIMATORS[_ESTIMATOR]).set_params(C=C)
    return list(estimator.fit_many(X, y, fits))
