"""The nearest class centroid: means of rows, all folds' from one pass, and distances from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context
from sklearn.utils import check_array, column_or_1d
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from featx.learn.folds import Fitted, Fold, Job
from featx.learn.neighbors import dense

_ROWS = 1024  # that are added up at once


class NearestCentroid(ClassifierMixin, BaseEstimator):
    """Classifier by the class whose centroid, the mean of its rows, is nearest.

    A drop-in for scikit-learn's class, except:

    - `metric` is "euclidean" or "cosine"; there are no `shrink_threshold` and `priors`, no probabilities, and of the
      fitted attributes only the centroids.
    - `decision_function` has the distances themselves, not divided by the deviations within classes.
    - Rows may have weights; a class that only has rows of weight 0 is as if absent.
    - X is dense; columns may be constant.

    Parameters
    ----------
    metric : "euclidean" or "cosine"
        Cosine: centroids are means of rows of length 1 (a row of 0 stays), and the angle to them counts.
    device : "auto", "cpu" or "cuda"

    Attributes
    ----------
    classes_ : (k,) labels
    centroids_ : (k, d) float64
    n_features_in_ : int, d
    feature_names_in_ : (d,) str, where X has column names

    Examples
    --------
    >>> from featx.learn import NearestCentroid
    >>> NearestCentroid().fit([[0.0], [1.0], [4.0], [5.0]], ["ant", "ant", "bee", "bee"]).predict([[2.4]])
    array(['ant'], dtype='<U3')
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "metric": [StrOptions({"euclidean", "cosine"})],
        "device": [StrOptions({"auto", "cpu", "cuda"})],
    }

    def __init__(self, metric: str = "euclidean", *, device: str = "auto") -> None:
        self.metric = metric
        self.device = device

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Compute the centroids.

        Parameters
        ----------
        X : (n, d) float32 or float64, of which a memory map is not copied as a whole; others become float64
        y : (n,) labels
        sample_weight : (n,) or a number, at least 0, optional

        Returns
        -------
        self

        Raises
        ------
        ValueError
            X or y cannot be used, or there are fewer than two classes.
        """
        rows, y = validate_data(self, dense(self, X), y, dtype=[np.float64, np.float32], order="C")
        names = {"feature_names_in_": self.feature_names_in_} if hasattr(self, "feature_names_in_") else {}
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, rows, ensure_non_negative=True)
        whole = Fold(np.arange(len(rows)), None, sample_weight=sample_weight)
        (fitted,) = self.fit_each(rows, y, [Job(self, whole)])
        if isinstance(fitted.estimator, Exception):
            raise fitted.estimator
        self.__dict__.update(names)
        return self

    @classmethod
    def fit_each(cls, X: Any, y: Any, jobs: Sequence[Job]) -> Iterator[Fitted]:
        """Fit many: the sums of all folds' classes in one pass over the rows; see `featx.learn.folds.Batched`."""
        began = perf_counter()
        given, X = X, check_array(dense(cls(), X), dtype=[np.float64, np.float32], order="C")
        y = column_or_1d(y, warn=True)
        answers: dict[int, Any] = {}
        wanted: dict[tuple, list[int]] = {}  # jobs that have the same centroids
        for number, (estimator, fold) in enumerate(jobs):
            try:
                estimator._validate_params()
                check_classification_targets(y[fold.train])
                validate_data(estimator, given, skip_check_array=True)  # sets number and names of columns
                wanted.setdefault((id(fold), estimator.metric, estimator.device), []).append(number)
            except Exception as error:
                answers[number] = error
        together: dict[tuple, list[list[int]]] = {}  # those whose rows are the same
        for (_, metric, device), numbers in wanted.items():
            fold = jobs[numbers[0]].fold
            affine = (id(fold.shift), id(fold.scale)) if metric == "cosine" else ()  # else it is the centroids'
            together.setdefault((metric, device, *affine), []).append(numbers)
        for (metric, device, *_), alike in together.items():
            classes, codes = np.unique(y, return_inverse=True)
            folds = [jobs[numbers[0]].fold for numbers in alike]
            weights = np.zeros((len(folds), len(classes), len(X)))
            for of, fold in zip(weights, folds, strict=True):
                of[codes[fold.train], fold.train] = 1 if fold.sample_weight is None else fold.sample_weight
            sums = _sums(X, weights.reshape(-1, len(X)), folds[0], metric == "cosine", device)
            sums = sums.reshape(len(folds), len(classes), -1)
            for numbers, fold, of, sizes in zip(alike, folds, sums, weights.sum(axis=2), strict=True):
                (there,) = sizes.nonzero()
                for number in numbers:
                    answers[number] = jobs[number].estimator._keep(fold, classes[there], of[there], sizes[there])
        share = (perf_counter() - began) / max(1, len(jobs))
        for number, answer in sorted(answers.items(), key=lambda item: id(jobs[item[0]].fold)):
            yield Fitted(number, answer, share)

    def _keep(self, fold: Fold, classes: np.ndarray, sums: np.ndarray, sizes: np.ndarray) -> Any:
        if len(classes) < 2:
            return ValueError(f"The number of classes has to be greater than one; got {len(classes)} class")
        self.classes_, self.centroids_ = classes, sums / sizes[:, None]
        if self.metric == "euclidean":
            if fold.shift is not None:
                self.centroids_ -= fold.shift
            if fold.scale is not None:
                self.centroids_ /= fold.scale
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """How near each centroid is.

        Parameters
        ----------
        X : (m, d)

        Returns
        -------
        (m, k) float64, or (m,) the second class's less the first's, for two classes
            Euclidean: -|x - centroid|^2; cosine: x.centroid / (|x| |centroid|), and 0 where one of them is 0.
        """
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """Label of the nearest centroid; of those as near, the first.

        Parameters
        ----------
        X : (m, d)

        Returns
        -------
        (m,)
        """
        scores = self._scores(X)
        return self.classes_[scores.argmax(axis=1)]

    def _scores(self, X: Any) -> np.ndarray:
        import torch

        from featx.learn.kernels import Rows, unit
        from featx.solvers.machine import device_of

        check_is_fitted(self)
        X = validate_data(self, dense(self, X), dtype=[np.float64, np.float32], order="C", reset=False)
        cosine = self.metric == "cosine"
        A = torch.from_numpy(np.array(self.centroids_)).to(device_of(self.device))
        rows = Rows(unit(A) if cosine else A, squared=not cosine)
        scores = np.empty((len(X), len(A)))
        for start in range(0, len(X), _ROWS):
            Y = torch.from_numpy(np.array(X[start : start + _ROWS])).to(A)
            values = rows.of(unit(Y)) if cosine else rows.of(Y).neg_()
            scores[start : start + _ROWS] = values.cpu().numpy()
        return scores


def _sums(X: np.ndarray, weights: np.ndarray, fold: Fold, cosine: bool, device: str) -> np.ndarray:
    """W X, (B, n), (n, d) -> (B, d) float64; for cosines of the fold's rows, of length 1."""
    import torch

    from featx.learn.kernels import rows_of, unit
    from featx.solvers.machine import device_of

    W = torch.from_numpy(weights).to(device_of(device))
    total = W.new_zeros(len(W), X.shape[1])
    for start in range(0, len(X), _ROWS):
        part = np.arange(start, min(len(X), start + _ROWS))
        rows = rows_of(X, part, fold) if cosine else X[part]
        Y = torch.from_numpy(rows).to(W)
        total += W[:, start : start + _ROWS] @ (unit(Y) if cosine else Y)
    return total.cpu().numpy()
