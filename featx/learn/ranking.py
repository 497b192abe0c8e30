"""What searches and protocols found: candidates with their scores, the one that was chosen and fitted, what it said of
images held out. Values only; `report` draws and prints them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from sklearn.metrics import confusion_matrix, mean_absolute_error
from sklearn.pipeline import Pipeline

from featx.learn.intervals import Interval, held_out_interval, standard_error
from featx.learn.metrics import METRICS
from featx.store import FeatureStore


@dataclass(frozen=True)
class Candidate:
    """One row of the table: a layer, an estimator and the value of its one parameter.

    backbone, layer, d : what was read; d is the layer's own, before a PCA
    estimator : its name, a key of `selection.ESTIMATORS`
    parameter, value : "C", "alpha" or "n_neighbors" and its value; "" and None for an estimator that has none
    mean, std : of the score over the splits
    interval : 95 % confidence interval of the mean (Nadeau and Bengio's)
    scores : one a split
    mae : mean absolute error over the splits, for numbers; None for classes
    fit_seconds : mean of a fit
    cost : what "cheaper" compares: (d, the estimator's place, simpler first, the parameter, stronger penalties first)
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
    cost: tuple[float, ...]
    mae: float | None = None


@dataclass(frozen=True)
class Nested:
    """Nested cross-validation: the whole search, repeated inside the training part of every outer split.

    Its mean is what the procedure "search, take the winner" is worth; no choice has flattered it.

    scores : one an outer split
    interval : 95 % confidence interval of their mean (Nadeau and Bengio's)
    chosen : the winner of each outer split's own search
    folds : outer splits that were planned; fewer scores if it was interrupted
    scoring : a key of `metrics.METRICS`
    """

    scores: tuple[float, ...]
    interval: Interval
    chosen: tuple[Candidate, ...]
    folds: int
    scoring: str

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores))

    @property
    def std(self) -> float:
        return float(np.std(self.scores))


@dataclass(frozen=True)
class Selection:
    """What `select_model` found.

    candidates : best first; of equal ones the cheaper
    chosen : the candidate that was fitted: the best, or with one_se the cheapest within one standard error of it
    best_estimator : its pipeline, fitted on all training images; None if the search was interrupted
    stores : what was searched
    n_train : training images
    folds, repeats : of the cross-validation
    scoring : "accuracy", "balanced_accuracy", "f1_macro", "matthews_corrcoef"; "r2" or "neg_mean_absolute_error"
    classes : (k,), or None where the labels are numbers
    chance : what a guess scores: for accuracy the share of the most frequent class among the training images
    steps : what is between features and scaler, in words: "l2", "power", "pca 256"
    n_duplicates : images whose content another one has too, and that were kept on one side
    n_groups : groups of images that were never parted, or None if no groups were given
    X_test, y_test, predicted : the images held out, (m, 1) keys and (m,) labels, or None
    confidence : (m,) decision score of what was predicted, or None where an estimator has none
    test_groups : (m,) numbers of the groups of images held out, or None
    test_store : where X_test are, if not in `stores`
    nested : Nested, or None if that was not asked for
    is_partial : the search was interrupted; candidates are those of the layers that were done
    """

    candidates: list[Candidate]
    chosen: Candidate
    best_estimator: Pipeline | None
    stores: list[FeatureStore] = field(repr=False)
    n_train: int
    folds: int
    repeats: int
    scoring: str
    classes: np.ndarray | None
    chance: float
    steps: tuple[str, ...] = ()
    n_duplicates: int = 0
    n_groups: int | None = None
    X_test: np.ndarray | None = None
    y_test: np.ndarray | None = None
    predicted: np.ndarray | None = None
    confidence: np.ndarray | None = None
    test_groups: np.ndarray | None = None
    test_store: FeatureStore | None = field(default=None, repr=False)
    nested: Nested | None = None
    is_partial: bool = False

    @property
    def best(self) -> Candidate:
        """The highest mean."""
        return self.candidates[0]

    @property
    def cheaper(self) -> Candidate | None:
        """The cheapest candidate within one standard error of the best, if it is cheaper than the chosen one."""
        cheapest = cheapest_within_noise(self.candidates)
        return cheapest if cheapest.cost < self.chosen.cost else None

    def mistakes(self) -> np.ndarray:
        """Positions among the held-out images of those predicted wrong, the most confident first; of numbers, all of
        them, the largest error first."""
        if self.y_test is None or self.predicted is None:
            return np.empty(0, int)
        if self.classes is None:
            return np.argsort(-np.abs(self.y_test - self.predicted), kind="stable")
        wrong = np.flatnonzero(self.y_test != self.predicted)
        if self.confidence is None:
            return wrong
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")]

    @property
    def held_out(self) -> float | None:
        """The score, as `scoring` has it, on the images held out."""
        if self.y_test is None or self.predicted is None:
            return None
        return METRICS[self.scoring].score(self.y_test, self.predicted)

    @cached_property
    def held_out_interval(self) -> Interval | None:
        """95 % confidence interval of `held_out`: Wilson's for an accuracy; else, or with groups, by bootstrap."""
        if self.y_test is None or self.predicted is None:
            return None
        return held_out_interval(METRICS[self.scoring], self.y_test, self.predicted, self.test_groups)

    @property
    def held_out_mae(self) -> float | None:
        """Mean absolute error on the images held out, where the labels are numbers."""
        if self.y_test is None or self.predicted is None or self.classes is not None:
            return None
        return float(mean_absolute_error(self.y_test, self.predicted))

    @property
    def confusion(self) -> np.ndarray | None:
        """(k, k) counts over the held-out images: rows true, columns predicted; None where the labels are numbers."""
        if self.y_test is None or self.predicted is None or self.classes is None:
            return None
        return confusion_matrix(self.y_test, self.predicted, labels=self.classes)


def cheapest_within_noise(candidates: Sequence[Candidate]) -> Candidate:
    """The cheapest of those whose mean is within one standard error of the best, which comes first."""
    best = candidates[0]
    lowest = best.mean - standard_error(best.scores)
    return min((candidate for candidate in candidates if candidate.mean >= lowest), key=lambda c: c.cost)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in the middle of a search; `selection` holds what was done until then, with `is_partial`.

    Where only the nested part was broken off, the selection is whole but for `nested`, fewer scores or None.
    """

    def __init__(self, selection: Selection) -> None:
        super().__init__("the search was interrupted")
        self.selection = selection


@dataclass(frozen=True)
class Point:
    """One setting of a protocol.

    x : what the protocol varies: C, k, images a class, training images
    mean : accuracy: on the validation images ("linear-probe", "knn"), or the mean over the draws ("few-shot",
        "learning-curve") on the test images
    interval : 95 % confidence interval: Wilson's for one accuracy, Student's t over the draws
    scores : one a draw; one in all for "linear-probe" and "knn"
    """

    x: float
    mean: float
    interval: Interval
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """A layer in a protocol.

    points : by x
    chosen : the point with the best validation score, or None where nothing is chosen
    test, test_interval : accuracy on the test images at `chosen`, fitted on train and validation, and Wilson's
        interval; None where nothing is chosen
    """

    backbone: str
    layer: str
    d: int
    points: tuple[Point, ...]
    chosen: Point | None = None
    test: float | None = None
    test_interval: Interval | None = None


@dataclass(frozen=True)
class ProtocolResult:
    """What `linear_probe`, `knn_probe`, `few_shot` or `learning_curves` found.

    protocol : "linear-probe", "knn", "few-shot" or "learning-curve"
    varied : what x is, in words: "C", "k", "images a class", "training images"
    curves : one a layer, best first: by validation score, or by the score at the largest x
    n_train, n_validation, n_test : images; n_validation is 0 for "few-shot" and "learning-curve"
    classes : (k,)
    chance : share of the most frequent class among the training images
    repeats : draws of each point; 1 for "linear-probe" and "knn"
    stores : what was read
    best_estimator : the pipeline of the first curve, fitted on train and validation; None for the two others
    """

    protocol: str
    varied: str
    curves: tuple[Curve, ...]
    n_train: int
    n_validation: int
    n_test: int
    classes: np.ndarray
    chance: float
    repeats: int
    stores: list[FeatureStore] = field(repr=False)
    best_estimator: Pipeline | None = None
