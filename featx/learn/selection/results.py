"""Results of searches and protocols: candidates with scores, the chosen model, its predictions for held-out images.

Values only; `report` draws and prints them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, mean_absolute_error
from sklearn.pipeline import Pipeline

from featx.learn.scores import METRICS, Interval, Metric, held_out_interval, within_one_se
from featx.store import FeatureStore

_SHOWN = 5  # layers in the repr of a protocol's result


@dataclass(frozen=True, repr=False)
class Candidate:
    """A layer, an estimator and the value of its parameter, with scores: one row of the table.

    Attributes
    ----------
    backbone, layer : str
        Full name of the layer; "all" if features of all layers were chosen.
    d : int
        Number of features of the layer, before a choice of features or a PCA.
    estimator : str
        A key of `ESTIMATORS`.
    parameter : str
        "C", "alpha" or "n_neighbors"; "" if the estimator has none.
    value : float or None
    mean, std : float
        Mean and standard deviation of the score over the splits.
    interval : Interval
        95 % confidence interval of the mean (`splits_interval`).
    scores : tuple of float
        One per split.
    fit_seconds : float
        Mean time of a fit.
    complexity : tuple of float
        Ordered, simplest first: (number of features that the estimator is fitted on, its place in `ESTIMATORS`, value
        of the parameter from the strongest regularization on).
    mae : float or None
        Mean absolute error over the splits, for regression.
    """

    backbone: str
    layer: str
    d: int
    estimator: str
    parameter: str
    value: float | None
    mean: float
    std: float
    interval: Interval
    scores: tuple[float, ...]
    fit_seconds: float
    complexity: tuple[float, ...]
    mae: float | None = None

    def __repr__(self) -> str:
        setting = f", {self.parameter} = {self.value:g}" if self.value is not None else ""
        return f"{self.layer} of {self.backbone}, {self.estimator}{setting}: {_score_text(self.mean, self.interval)}"


@dataclass(frozen=True)
class Nested:
    """Nested cross-validation: the whole search, repeated inside the training part of every outer split.

    Its mean estimates the score of the whole procedure, search and choice of the winner, without the bias of the
    choice.

    Attributes
    ----------
    scores : tuple of float
        One per outer split.
    interval : Interval
        95 % confidence interval of their mean (`splits_interval`).
    chosen : tuple of Candidate
        The winner of each outer split's own search.
    folds : int
        Number of planned outer splits; there are fewer scores if the search was interrupted.
    scoring : str
        A key of `METRICS`.
    """

    scores: tuple[float, ...]
    interval: Interval
    chosen: tuple[Candidate, ...]
    folds: int
    scoring: str

    @property
    def is_partial(self) -> bool:
        return len(self.scores) < self.folds

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores))

    @property
    def std(self) -> float:
        return float(np.std(self.scores))


@dataclass(frozen=True)
class TrainingSet:
    """The images that a search trained on.

    Attributes
    ----------
    stores : list of FeatureStore
        The stores that were searched.
    n : int
        Number of images.
    classes : (k,) array or None
        None for regression.
    chance : float
        Score of a constant prediction; for accuracy the share of the most frequent class.
    n_duplicates : int
        Number of images with the same content as another one; they were kept on one side of each split.
    n_groups : int or None
        Number of groups that were never split between training and test; None if no groups were given.
    X : (n, 1) int64 array or None
        Keys.
    y : (n,) array or None
        Labels.
    """

    stores: list[FeatureStore]
    n: int
    classes: np.ndarray | None
    chance: float
    n_duplicates: int = 0
    n_groups: int | None = None
    X: np.ndarray | None = None
    y: np.ndarray | None = None


@dataclass(frozen=True)
class SearchSettings:
    """How a search scored its candidates.

    Attributes
    ----------
    folds, repeats : int
        Numbers of folds and of repetitions of the cross-validation.
    scoring : str
        A key of `METRICS`.
    steps : tuple of str
        The steps between features and scaler: "l2", "power", "pca 256"; if there were fewer components, with how many
        were kept: "pca 256 (64 to 256 kept, all there are)".
    """

    folds: int
    repeats: int
    scoring: str
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class TestSet:
    """The held-out images, and the chosen model's predictions for them.

    Attributes
    ----------
    X : (m, 1) int64 array
        Keys.
    y : (m,) array
        Labels.
    predicted : (m,) array
    decisions : (m,) or (m, k) array or None
        Decision scores, (m,) for two classes, if the metric is of these.
    confidence : (m,) array or None
        Decision score of the predicted class; None if the estimator has no decision scores.
    groups : (m,) array or None
        Group numbers.
    store : FeatureStore or None
        The store of X, if it is not one of the searched stores.
    probabilities : (m, k) array or None
        In the order of the classes; None if the estimator has none.
    """

    __test__ = False  # or pytest would collect it

    X: np.ndarray
    y: np.ndarray
    predicted: np.ndarray
    decisions: np.ndarray | None = None
    confidence: np.ndarray | None = None
    groups: np.ndarray | None = None
    store: FeatureStore | None = None
    probabilities: np.ndarray | None = None


@dataclass(frozen=True, repr=False)
class Selection:
    """The result of `select_model`.

    Attributes
    ----------
    candidates : list of Candidate
        Best first; the simpler one first if means are equal.
    chosen : Candidate
        The candidate that was fitted: the best, or with `one_se` the simplest within one standard error of it.
    best_estimator : Pipeline or None
        The chosen pipeline, fitted on all training images; None if the search was interrupted.
    training : TrainingSet
    settings : SearchSettings
    test : TestSet or None
        None if no images were held out.
    nested : Nested or None
        None without nested cross-validation.
    is_partial : bool
        Whether the search was interrupted; candidates are those that were done.
    """

    candidates: list[Candidate]
    chosen: Candidate
    best_estimator: Pipeline | None
    training: TrainingSet
    settings: SearchSettings
    test: TestSet | None = None
    nested: Nested | None = None
    is_partial: bool = False

    @property
    def best(self) -> Candidate:
        """The candidate with the highest mean score."""
        return self.candidates[0]

    @property
    def simpler(self) -> Candidate | None:
        """The simplest candidate within one standard error of the best, if it is simpler than the chosen one."""
        simplest = simplest_within_one_se(self.candidates)
        return simplest if simplest.complexity < self.chosen.complexity else None

    def mistakes(self) -> np.ndarray:
        """Positions of the wrongly predicted held-out images, the most confident first; for regression those of all
        held-out images, the largest error first."""
        if self.test is None:
            return np.empty(0, int)
        if self.training.classes is None:
            return np.argsort(-np.abs(self.test.y - self.test.predicted), kind="stable")
        wrong = np.flatnonzero(self.test.y != self.test.predicted)
        if self.test.confidence is None:
            return wrong
        return wrong[np.argsort(-self.test.confidence[wrong], kind="stable")]

    @property
    def held_out(self) -> float | None:
        """The score on the held-out images."""
        if self.test is None:
            return None
        return self._metric.score(self.test.y, self._outputs(self.test), self.training.classes)

    @cached_property
    def held_out_interval(self) -> Interval | None:
        """95 % confidence interval of `held_out`: Wilson's for an accuracy without groups, otherwise by bootstrap."""
        if self.test is None:
            return None
        outputs = self._outputs(self.test)
        return held_out_interval(self._metric, self.test.y, outputs, self.test.groups, self.training.classes)

    @property
    def _metric(self) -> Metric:
        return METRICS[self.settings.scoring]

    def _outputs(self, test: TestSet) -> np.ndarray:
        return test.decisions if self._metric.is_ranked and test.decisions is not None else test.predicted

    @property
    def held_out_mae(self) -> float | None:
        """Mean absolute error on the held-out images, for regression."""
        if self.test is None or self.training.classes is not None:
            return None
        return float(mean_absolute_error(self.test.y, self.test.predicted))

    @property
    def confusion(self) -> np.ndarray | None:
        """(k, k) counts over the held-out images: rows true, columns predicted; None for regression."""
        if self.test is None or self.training.classes is None:
            return None
        return confusion_matrix(self.test.y, self.test.predicted, labels=self.training.classes)

    def __repr__(self) -> str:
        lines = [
            f"{len(self.candidates):,} candidates by {self.settings.folds}-fold {self.settings.scoring} on "
            f"{self.training.n:,} training images (chance {self.training.chance:.3f}){_partly(self.is_partial)}",
            f"{'best' if self.chosen == self.best else 'chosen'}: {self.chosen}",
        ]
        if self.nested is not None and self.nested.scores:
            mean = _score_text(self.nested.mean, self.nested.interval)
            lines.append(f"nested: {mean} over {len(self.nested.scores)} splits")
        if self.held_out is not None and self.test is not None:
            score = _score_text(self.held_out, self.held_out_interval)
            lines.append(f"held out: {score} on {len(self.test.y):,} images")
        return "\n".join(lines)


def simplest_within_one_se(candidates: Sequence[Candidate]) -> Candidate:
    """The simplest candidate whose mean is within one standard error of the best; of equally simple ones the first."""
    near = within_one_se([c.mean for c in candidates], [c.scores for c in candidates])
    return min((c for c, is_near in zip(candidates, near, strict=True) if is_near), key=lambda c: c.complexity)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a search, a protocol or a fine-tuning; `result` has what was done, with `is_partial`.

    If the nested part of a search was interrupted, only `nested` of the selection is incomplete: it has fewer scores.
    """

    def __init__(self, result: Any) -> None:
        super().__init__("interrupted; `result` holds what was done")
        self.result = result


@dataclass(frozen=True)
class Point:
    """One setting of a protocol.

    Attributes
    ----------
    x : float
        What the protocol varies: C, k, images per class, training images.
    mean : float
        Score on the validation images ("linear-probe", "knn"), or mean score over the subsamples ("few-shot",
        "learning-curve") on the test images.
    interval : Interval
        95 % confidence interval that covers the choice of scored images and, for several subsamples, of training images
        (`drawn_interval`; Wilson's for one accuracy).
    scores : tuple of float
        One per subsample; one for all images, and for "linear-probe" and "knn".
    """

    x: float
    mean: float
    interval: Interval
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """The points of one layer.

    Attributes
    ----------
    backbone, layer : str
    d : int
        Number of features of the layer.
    points : tuple of Point
        In the order of x.
    chosen : Point or None
        The point with the best validation score; None if the protocol chooses nothing.
    test : float or None
        Accuracy on the test images at `chosen`, fitted on training and validation images; None if the protocol chooses
        nothing.
    test_interval : Interval or None
        95 % confidence interval of `test` (`held_out_interval`).
    """

    backbone: str
    layer: str
    d: int
    points: tuple[Point, ...]
    chosen: Point | None = None
    test: float | None = None
    test_interval: Interval | None = None


@dataclass(frozen=True, repr=False)
class ProtocolResult:
    """The result of `linear_probe`, `knn_probe`, `few_shot` or `learning_curves`.

    Attributes
    ----------
    protocol : str
        "linear-probe", "knn", "few-shot" or "learning-curve".
    varied : str
        What x is, in words: "C", "k", "images a class", "training images".
    curves : tuple of Curve
        One per layer, best first: by validation score, or by the score at the largest x.
    n_train, n_validation, n_test : int
        Number of images; n_validation is 0 for "few-shot" and "learning-curve".
    classes : (k,) array or None
        None for regression.
    chance : float
        Score of a constant prediction: the share of the most frequent class among the training images; 0 for R^2.
    repeats : int
        Number of subsamples per point, except for all images; 1 for "linear-probe" and "knn".
    stores : list of FeatureStore
        The stores of the features.
    best_estimator : Pipeline or None
        For "linear-probe" the pipeline of the first curve, fitted on training and validation images.
    scoring : str
        "accuracy", or "r2" for regression; a key of `METRICS`.
    is_partial : bool
        Whether it was interrupted; curves are those of the layers that were done.
    title : str
        The protocol in words, "linear probe"; "" for the score by what is varied.
    """

    protocol: str
    varied: str
    curves: tuple[Curve, ...]
    n_train: int
    n_validation: int
    n_test: int
    classes: np.ndarray | None
    chance: float
    repeats: int
    stores: list[FeatureStore]
    best_estimator: Pipeline | None = None
    scoring: str = "accuracy"
    is_partial: bool = False
    title: str = ""

    def __repr__(self) -> str:
        images = f"{self.n_train:,} training" + (f", {self.n_validation:,} validation" if self.n_validation else "")
        lines = [f"{self.protocol}, {self.scoring}: {images} and {self.n_test:,} test images (chance "
                 f"{self.chance:.3f}){_partly(self.is_partial)}"]  # fmt: skip
        for curve in self.curves:
            point = curve.chosen or curve.points[-1]
            draws = f" over {len(point.scores)} draws" if len(point.scores) > 1 else ""
            text = f"{point.x:g} {self.varied}: {_score_text(point.mean, point.interval)}{draws}"
            if curve.test is not None:
                test = _score_text(curve.test, curve.test_interval)
                text = f"{self.varied} = {point.x:g}: validation {point.mean:.3f}, test {test}"
            lines.append(f"{curve.layer} of {curve.backbone}, {text}")
        more = [f"and {len(self.curves) - _SHOWN:,} more layers"] if len(self.curves) > _SHOWN else []
        return "\n".join(lines[: _SHOWN + 1] + more)


def _score_text(score: float, interval: Interval | None) -> str:
    """ "0.812 [0.781, 0.852]" """
    known = interval is not None and np.isfinite(interval).all()
    return f"{score:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval and known else "")


def _partly(is_partial: bool) -> str:
    return ", interrupted" if is_partial else ""
