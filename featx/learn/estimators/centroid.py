"""Nearest-centroid classification: one pass over the rows computes the centroids of all folds."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from numbers import Real
from time import perf_counter
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.discriminant_analysis import DiscriminantAnalysisPredictionMixin
from sklearn.utils import check_array, column_or_1d
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from featx.errors import FeatxError
from featx.learn._sklearn import Interval, StrOptions, check_sample_weight, fit_context
from featx.learn.estimators.batched import Fitted, Fold, Job
from featx.learn.estimators.neighbors import dense

_ROWS = 1024  # that are added up at once


def _is_euclidean(estimator: NearestCentroid) -> bool:
    """Whether the model has probabilities, and distances in units of standard deviations.

    Models saved by versions of featx without these keep their scores.
    """
    fitted_before = hasattr(estimator, "centroids_") and not hasattr(estimator, "deviations_")
    return estimator.metric == "euclidean" and not fitted_before


class NearestCentroid(DiscriminantAnalysisPredictionMixin, ClassifierMixin, BaseEstimator):
    """Nearest-centroid classifier: predicts the class whose centroid, the mean of its rows, is nearest.

    A drop-in for scikit-learn's class, except:

    - `metric` is "euclidean" or "cosine". With cosine there are no `shrink_threshold`, priors, probabilities and
      deviations, and `decision_function` returns the cosines.
    - Rows may have weights; a class whose rows all have weight 0 is ignored. A weight counts as that many repetitions
      of the row: if weights sum to no more than the number of classes, the deviations within classes are 0.
    - X is dense. Centroids are not shrunk in columns without deviation within classes.
    - In a search, only the final fit warns.

    Parameters
    ----------
    metric : "euclidean" or "cosine"
        With cosine, rows are scaled to length 1 (rows of 0 stay), and the nearest centroid is that of the least angle.
    shrink_threshold : float, above 0, optional
        Distance by which centroids are shrunk towards the centroid of all rows, in units of `deviations_`.
        (R. Tibshirani et al., PNAS 99(10), 2002; Hastie et al., The Elements of Statistical Learning, section 18.2.)
    priors : "uniform", "empirical" or (k,) float
        Prior probabilities of the classes. If they are equal, `predict` uses plain distances; otherwise it uses
        `decision_function`.
    device : "auto", "cpu" or "cuda"

    Attributes
    ----------
    classes_ : (k,) labels
    class_prior_ : (k,) float64
    centroids_ : (k, d) float64, after shrinking
    within_class_std_dev_ : (d,) float64, for euclidean
    deviations_ : (k, d) float64, for euclidean
        Distances of the centroids from the centroid of all rows, in units of the standard deviation within classes,
        after shrinking.
    n_features_in_ : int, d
    feature_names_in_ : (d,) str, if X has column names

    Examples
    --------
    >>> from featx.learn import NearestCentroid
    >>> NearestCentroid().fit([[0.0], [1.0], [4.0], [5.0]], ["ant", "ant", "bee", "bee"]).predict([[2.4]])
    array(['ant'], dtype='<U3')
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "metric": [StrOptions({"euclidean", "cosine"})],
        "shrink_threshold": [Interval(Real, 0, None, closed="neither"), None],
        "priors": ["array-like", StrOptions({"empirical", "uniform"})],
        "device": [StrOptions({"auto", "cpu", "cuda"})],
    }

    def __init__(
        self,
        metric: str = "euclidean",
        *,
        shrink_threshold: float | None = None,
        priors: Any = "uniform",
        device: str = "auto",
    ) -> None:
        self.metric = metric
        self.shrink_threshold = shrink_threshold
        self.priors = priors
        self.device = device

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Models saved by versions without these parameters get their defaults."""
        state = {"shrink_threshold": None, "priors": "uniform"} | state
        if "centroids_" in state and "class_prior_" not in state:
            k = len(state["centroids_"])
            state["class_prior_"] = np.full(k, 1 / k)
        super().__setstate__(state)

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Compute the centroids.

        Parameters
        ----------
        X : (n, d) float32 or float64; others become float64, and a memory map is not copied as a whole
        y : (n,) labels
        sample_weight : (n,) or a number, at least 0, optional

        Returns
        -------
        self

        Raises
        ------
        ValueError
            X or y cannot be used, there are fewer than two classes, no column varies, or priors are negative.

        Warns
        -----
        UserWarning
            A column does not vary within classes, or priors do not sum to 1.
        """
        rows, y = validate_data(self, dense(self, X), y, dtype=[np.float64, np.float32], order="C")
        names = getattr(self, "feature_names_in_", None)
        if sample_weight is not None:
            sample_weight = check_sample_weight(sample_weight, rows, ensure_non_negative=True)
        whole = Fold(0, np.arange(len(rows)), sample_weight=sample_weight)
        (fitted,) = self.fit_each(rows, y, [Job(self, whole)])
        if isinstance(fitted.estimator, Exception):
            raise fitted.estimator
        if names is not None:
            self.feature_names_in_ = names  # `fit_each` saw an array
        if not isinstance(self.priors, str) and not np.isclose(np.sum(self.priors), 1):
            warnings.warn(
                "The priors do not sum to 1. Normalizing such that it sums to one.", UserWarning, stacklevel=3
            )
        n = len(rows) if sample_weight is None else sample_weight.sum()
        if self.metric == "euclidean" and n > len(self.classes_) and not self.within_class_std_dev_.all():
            warnings.warn(
                "self.within_class_std_dev_ has at least 1 zero standard deviation."
                "Inputs within the same classes for at least 1 feature are identical.",
                UserWarning,
                stacklevel=3,
            )
        return self

    @classmethod
    def fit_each(cls, X: Any, y: Any, jobs: Sequence[Job]) -> Iterator[Fitted]:
        """Fit the jobs of a search; one pass over the rows sums the classes of all folds. See `estimators.batched`."""
        began = perf_counter()
        original, X = X, check_array(dense(cls(), X), dtype=[np.float64, np.float32], order="C")
        y = column_or_1d(y, warn=True)
        models: dict[int, Any] = {}  # or exceptions
        alike: dict[tuple, list[int]] = {}  # jobs with the same centroids
        for number, (estimator, fold) in enumerate(jobs):
            try:
                estimator._validate_params()
                estimator._refuse()
                check_classification_targets(y[fold.train])
                validate_data(estimator, original, skip_check_array=True)  # sets number and names of columns
                alike.setdefault((fold.number, estimator.metric, estimator.device), []).append(number)
            except Exception as error:
                models[number] = error
        together: dict[tuple, list[list[int]]] = {}  # groups whose sums come from the same rows
        for (_, metric, device), numbers in alike.items():
            fold = jobs[numbers[0]].fold
            columns = fold.columns if metric == "cosine" else None  # else centroids are shifted and scaled, not rows
            together.setdefault((metric, device, columns), []).append(numbers)
        for (metric, device, _), groups in together.items():
            classes, codes = np.unique(y, return_inverse=True)
            folds = [jobs[numbers[0]].fold for numbers in groups]
            weights = np.zeros((len(folds), len(classes), len(X)))
            for of, fold in zip(weights, folds, strict=True):
                of[codes[fold.train], fold.train] = 1 if fold.sample_weight is None else fold.sample_weight
            sums = _sums(X, weights.reshape(-1, len(X)), folds[0], metric == "cosine", device)
            sums = sums.reshape(len(folds), len(classes), -1)
            for numbers, fold, of, sizes in zip(groups, folds, sums, weights.sum(axis=2), strict=True):
                (there,) = sizes.nonzero()
                centroids = of[there] / sizes[there, None]
                places = np.searchsorted(there, codes[fold.train])
                squares = None if metric == "cosine" else _squares(X, fold, centroids, places)
                for number in numbers:
                    estimator = jobs[number].estimator
                    try:
                        models[number] = estimator._keep(fold, classes[there], centroids, sizes[there], squares)
                    except ValueError as error:
                        models[number] = error
        share = (perf_counter() - began) / max(1, len(jobs))
        for number, model in sorted(models.items(), key=lambda item: jobs[item[0]].fold.number):
            yield Fitted(number, model, share)

    def _refuse(self) -> None:
        is_plain = self.shrink_threshold is None and isinstance(self.priors, str) and self.priors == "uniform"
        if self.metric == "cosine" and not is_plain:
            raise FeatxError(
                "shrink_threshold and priors of NearestCentroid need metric='euclidean'; got metric='cosine'"
            )

    def _keep(
        self, fold: Fold, classes: np.ndarray, centroids: np.ndarray, sizes: np.ndarray, squares: np.ndarray | None
    ) -> Self:
        """Set the attributes.

        classes : (k,) those that have weight, and `sizes`, (k,), how much
        centroids : (k, d), not yet shifted and scaled
        squares : (d,) sums over rows of (x - centroid)^2, not scaled; None for cosine, or if all rows are the same
        """
        k, n = len(classes), sizes.sum()
        if k < 2:
            raise ValueError(f"The number of classes has to be greater than one; got {k} class")
        prior = self._prior(sizes)
        self.classes_, self.class_prior_, self.centroids_ = classes, prior, centroids
        if self.metric == "cosine":
            return self
        if squares is None:
            raise ValueError("All features have zero variance. Division by zero.")
        deviation = np.sqrt(squares / (n - k)) if n > k else np.zeros(len(squares))
        if fold.shift is not None:
            centroids = centroids - fold.shift
        if fold.scale is not None:
            centroids, deviation = centroids / fold.scale, deviation / np.abs(fold.scale)
        whole = sizes @ centroids / n
        unit = np.sqrt(1 / sizes - 1 / n)[:, None] * (deviation + np.median(deviation))  # (k, d)
        distance = centroids - whole
        with np.errstate(divide="ignore", invalid="ignore"):
            deviations = np.where((unit == 0) & np.isclose(centroids, whole), 0, distance / unit)
        if self.shrink_threshold is not None:
            deviations = np.sign(deviations) * np.clip(np.abs(deviations) - self.shrink_threshold, 0, None)
            with np.errstate(invalid="ignore"):
                centroids = np.where(unit > 0, whole + unit * deviations, centroids)
        self.centroids_, self.deviations_, self.within_class_std_dev_ = centroids, deviations, deviation
        return self

    def _prior(self, sizes: np.ndarray) -> np.ndarray:
        if isinstance(self.priors, str):
            return sizes / sizes.sum() if self.priors == "empirical" else np.full(len(sizes), 1 / len(sizes))
        prior = np.asarray(self.priors, np.float64)
        if prior.shape != sizes.shape:
            raise ValueError(f"priors must have one number for each of {len(sizes)} classes; got shape {prior.shape}")
        if (prior < 0).any():
            raise ValueError("priors must be non-negative")
        return prior / prior.sum()

    def _decision_function(self, X: Any) -> np.ndarray:
        """(m, k) what `decision_function` compares: cosines, or -|(x - centroid) / deviation|^2 + 2 log prior.

        -|x - centroid|^2 of a model that has no deviations.
        """
        check_is_fitted(self)
        if not _is_euclidean(self):
            return self._scores(X)
        unit = np.where(self.within_class_std_dev_ == 0, 1, self.within_class_std_dev_)
        with np.errstate(divide="ignore"):
            return self._scores(X, unit) + 2 * np.log(self.class_prior_)

    predict_proba = available_if(_is_euclidean)(DiscriminantAnalysisPredictionMixin.predict_proba)
    predict_log_proba = available_if(_is_euclidean)(DiscriminantAnalysisPredictionMixin.predict_log_proba)

    def predict(self, X: Any) -> np.ndarray:
        """Label of the nearest centroid or, if priors differ, of the most probable class; ties go to the first class.

        Parameters
        ----------
        X : (m, d)

        Returns
        -------
        (m,)
        """
        check_is_fitted(self)
        is_uniform = np.isclose(self.class_prior_, 1 / len(self.classes_)).all()
        scores = self._scores(X) if is_uniform else self._decision_function(X)
        return self.classes_[scores.argmax(axis=1)]

    def _scores(self, X: Any, unit: np.ndarray | None = None) -> np.ndarray:
        """(m, k) cosines, or -|x - centroid|^2 where columns are in these units, (d,)."""
        import torch

        from featx.learn.estimators.kernels import Rows
        from featx.learn.estimators.kernels import unit as unit_rows
        from featx.solvers import device_of, threads_for

        X = validate_data(self, dense(self, X), dtype=[np.float64, np.float32], order="C", reset=False)
        cosine = self.metric == "cosine"
        A = torch.from_numpy(self.centroids_ / (1 if unit is None else unit)).to(device_of(self.device))
        rows = Rows(unit_rows(A) if cosine else A, squared=not cosine)
        scores = np.empty((len(X), len(A)))
        with threads_for(2 * _ROWS * A.numel()):
            for start in range(0, len(X), _ROWS):
                part = X[start : start + _ROWS]
                Y = torch.from_numpy(part / unit if unit is not None else np.array(part)).to(A)
                values = rows.of(unit_rows(Y)) if cosine else rows.of(Y).neg_()
                scores[start : start + _ROWS] = values.cpu().numpy()
        return scores


def _squares(X: np.ndarray, fold: Fold, centroids: np.ndarray, places: np.ndarray) -> np.ndarray | None:
    """(d,) sums over the fold's rows of (x - centroid)^2; None where the rows are all the same.

    places : (n_train,) the number of each row's centroid; any number for rows of weight 0
    """
    train, weights = fold.train, fold.sample_weight
    if weights is not None:
        train, places, weights = train[weights > 0], places[weights > 0], weights[weights > 0]
    squares, varies = np.zeros(X.shape[1]), False
    for start in range(0, len(train), _ROWS):
        part = slice(start, start + _ROWS)
        rows = X[train[part]]
        varies = varies or bool((rows != X[train[0]]).any())
        distances = rows - centroids[places[part]]
        distances *= distances
        squares += distances.sum(0) if weights is None else weights[part] @ distances
    return squares if varies else None


def _sums(X: np.ndarray, weights: np.ndarray, fold: Fold, cosine: bool, device: str) -> np.ndarray:
    """W X, (B, n), (n, d) -> (B, d) float64; for cosines of the fold's rows, of length 1."""
    import torch

    from featx.learn.estimators.kernels import rows_of, unit
    from featx.solvers import device_of, threads_for

    W = torch.from_numpy(weights).to(device_of(device))
    total = W.new_zeros(len(W), X.shape[1])
    with threads_for(2 * len(W) * _ROWS * X.shape[1]):
        for start in range(0, len(X), _ROWS):
            part = np.arange(start, min(len(X), start + _ROWS))
            rows = rows_of(X, part, fold) if cosine else X[part]
            Y = torch.from_numpy(rows).to(W)
            total += W[:, start : start + _ROWS] @ (unit(Y) if cosine else Y)
    return total.cpu().numpy()
