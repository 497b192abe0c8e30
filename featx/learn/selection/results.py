"""What searches and protocols found: candidates with their scores, the one that was chosen and fitted, what it said of
images held out. Values only, each with a few words of its own; `report` draws and prints them. Long, being mostly
fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from sklearn.metrics import confusion_matrix, mean_absolute_error
from sklearn.pipeline import Pipeline

from featx.learn.scores import METRICS, Interval, held_out_interval, within_one_se
from featx.store import FeatureStore

_SHOWN = 5  # layers, in the words of a protocol's result


@dataclass(frozen=True, repr=False)
class Candidate:
    """One row of the table: a layer, an estimator and the value of its one parameter.

    backbone, layer, d : what was read; d is the layer's own, before a PCA
    estimator : its name, a key of `selection.ESTIMATORS`
    parameter, value : "C", "alpha" or "n_neighbors" and its value; "" and None for an estimator that has none
    mean, std : of the score over the splits
    interval : 95 % confidence interval of the mean (`intervals.cv_interval`)
    scores : one a split
    mae : mean absolute error over the splits, for numbers; None for classes
    fit_seconds : mean of a fit
    cost : what "cheaper" compares: (features after a PCA, if there is one; the estimator's place, simpler first; the
        parameter, stronger penalties first)
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

    def __repr__(self) -> str:
        setting = f", {self.parameter} = {self.value:g}" if self.value is not None else ""
        return f"{self.layer} of {self.backbone}, {self.estimator}{setting}: {_said(self.mean, self.interval)}"


@dataclass(frozen=True)
class Nested:
    """Nested cross-validation: the whole search, repeated inside the training part of every outer split.

    Its mean is what the procedure "search, take the winner" is worth; no choice has flattered it.

    scores : one an outer split
    interval : 95 % confidence interval of their mean (`intervals.cv_interval`)
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
    def is_partial(self) -> bool:
        return len(self.scores) < self.folds

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores))

    @property
    def std(self) -> float:
        return float(np.std(self.scores))


@dataclass(frozen=True, repr=False)
class Selection:
    """What `select_model` found.

    candidates : best first; of equal ones the cheaper
    chosen : the candidate that was fitted: the best, or with one_se the cheapest within one standard error of it
    best_estimator : its pipeline, fitted on all training images; None if the search was interrupted
    stores : what was searched
    n_train : training images
    folds, repeats : of the cross-validation
    scoring : a key of `metrics.METRICS`
    classes : (k,), or None where the labels are numbers
    chance : what a guess scores (`Question.chance`): for accuracy the share of the most frequent class among the
        training images
    steps : what is between features and scaler, in words: "l2", "power", "pca 256"; where there are fewer components
        than asked for, how many were kept: "pca 256 (64 to 256 kept, all there are)"
    n_duplicates : images whose content another one has too, and that were kept on one side
    n_groups : groups of images that were never split between training and test, or None if no groups were given
    X_test, y_test, predicted : the images held out, (m, 1) keys and (m,) labels, or None
    decisions : (m,) for two classes or (m, k) decision scores, where `scoring` judges these, else None
    confidence : (m,) decision score of what was predicted, or None where an estimator has none
    test_groups : (m,) numbers of the groups of images held out, or None
    test_store : where X_test are, if not in `stores`
    nested : Nested, or None if that was not asked for
    is_partial : the search was interrupted; candidates are those that were done
    """

    candidates: list[Candidate]
    chosen: Candidate
    best_estimator: Pipeline | None
    stores: list[FeatureStore]
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
    decisions: np.ndarray | None = None
    confidence: np.ndarray | None = None
    test_groups: np.ndarray | None = None
    test_store: FeatureStore | None = None
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
        if self.y_test is None or self._judged is None:
            return None
        return METRICS[self.scoring].score(self.y_test, self._judged, self.classes)

    @cached_property
    def held_out_interval(self) -> Interval | None:
        """95 % confidence interval of `held_out`: Wilson's for an accuracy; else, or with groups, by bootstrap."""
        if self.y_test is None or self._judged is None:
            return None
        return held_out_interval(METRICS[self.scoring], self.y_test, self._judged, self.test_groups, self.classes)

    @property
    def _judged(self) -> np.ndarray | None:
        return self.decisions if METRICS[self.scoring].is_ranked else self.predicted

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

    def __repr__(self) -> str:
        lines = [
            f"{len(self.candidates):,} candidates by {self.folds}-fold {self.scoring} on {self.n_train:,} training "
            f"images (chance {self.chance:.3f}){_partly(self.is_partial)}",
            f"{'best' if self.chosen == self.best else 'chosen'}: {self.chosen}",
        ]
        if self.nested is not None and self.nested.scores:
            mean = _said(self.nested.mean, self.nested.interval)
            lines.append(f"nested: {mean} over {len(self.nested.scores)} splits")
        if self.held_out is not None and self.y_test is not None:
            lines.append(f"held out: {_said(self.held_out, self.held_out_interval)} on {len(self.y_test):,} images")
        return "\n".join(lines)


def cheapest_within_noise(candidates: Sequence[Candidate]) -> Candidate:
    """The cheapest of those whose mean is within one standard error of the best; of equally cheap ones the first."""
    near = within_one_se([c.mean for c in candidates], [c.scores for c in candidates])
    return min((c for c, is_near in zip(candidates, near, strict=True) if is_near), key=lambda c: c.cost)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in the middle of a search or a protocol; `result` holds what was done until then, with `is_partial`.

    Where only the nested part of a search was broken off, the selection is whole but for `nested`, which has fewer
    scores, or none.
    """

    def __init__(self, result: Selection | ProtocolResult) -> None:
        super().__init__("interrupted; `result` holds what was done")
        self.result = result


@dataclass(frozen=True)
class Point:
    """One setting of a protocol.

    x : what the protocol varies: C, k, images a class, training images
    mean : score: on the validation images ("linear-probe", "knn"), or the mean over the draws ("few-shot",
        "learning-curve") on the test images
    interval : 95 % confidence interval, of everything that chance decides: which images it is scored on and, over
        several draws, which images were drawn to learn from (`intervals.drawn_interval`; Wilson's for one accuracy)
    scores : one a draw: as many as there were, one where all images are learned from; one for "linear-probe" and "knn"
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
    test, test_interval : accuracy on the test images at `chosen`, fitted on train and validation, and its interval
        (`intervals.held_out_interval`); None where nothing is chosen
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
    """What `linear_probe`, `knn_probe`, `few_shot` or `learning_curves` found.

    protocol : "linear-probe", "knn", "few-shot" or "learning-curve"
    varied : what x is, in words: "C", "k", "images a class", "training images"
    curves : one a layer, best first: by validation score, or by the score at the largest x
    n_train, n_validation, n_test : images; n_validation is 0 for "few-shot" and "learning-curve"
    classes : (k,), or None where the labels are numbers
    chance : what a guess scores: the share of the most frequent class among the training images; 0 for R^2
    repeats : draws of each point, but for what all images are learned from; 1 for "linear-probe" and "knn"
    stores : what was read
    best_estimator : of "linear-probe" the pipeline of the first curve, fitted on train and validation; else None
    scoring : "accuracy", or "r2" where the labels are numbers: a key of `metrics.METRICS`
    is_partial : it was interrupted; curves are those of the layers that were done
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

    def __repr__(self) -> str:
        images = f"{self.n_train:,} training" + (f", {self.n_validation:,} validation" if self.n_validation else "")
        lines = [f"{self.protocol}, {self.scoring}: {images} and {self.n_test:,} test images (chance "
                 f"{self.chance:.3f}){_partly(self.is_partial)}"]  # fmt: skip
        for curve in self.curves:
            point = curve.chosen or curve.points[-1]
            draws = f" over {len(point.scores)} draws" if len(point.scores) > 1 else ""
            said = f"{point.x:g} {self.varied}: {_said(point.mean, point.interval)}{draws}"
            if curve.test is not None:
                test = _said(curve.test, curve.test_interval)
                said = f"{self.varied} = {point.x:g}: validation {point.mean:.3f}, test {test}"
            lines.append(f"{curve.layer} of {curve.backbone}, {said}")
        more = [f"and {len(self.curves) - _SHOWN:,} more layers"] if len(self.curves) > _SHOWN else []
        return "\n".join(lines[: _SHOWN + 1] + more)


def _said(score: float, interval: Interval | None) -> str:
    """ "0.812 [0.781, 0.852]" """
    known = interval is not None and np.isfinite(interval).all()
    return f"{score:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval and known else "")


def _partly(is_partial: bool) -> str:
    return ", interrupted" if is_partial else ""
