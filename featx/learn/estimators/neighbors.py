"""k-nearest-neighbour classification: distances by matrix products in blocks, one search for all `n_neighbors`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from copy import copy
from numbers import Integral
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.neighbors import VALID_METRICS
from sklearn.neighbors import KNeighborsClassifier as SklearnKNeighborsClassifier
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from featx.errors import FeatxError, listed
from featx.learn._sklearn import Interval, StrOptions, fit_context
from featx.learn.estimators.batched import Fitted, Fold, Job
from featx.learn.lazy_rows import LazyRows, checked

if TYPE_CHECKING:
    from torch import Tensor

# The p of the Minkowski metric with each name.
_NORMS = {"euclidean": 2.0, "l2": 2.0, "manhattan": 1.0, "cityblock": 1.0, "l1": 1.0, "chebyshev": np.inf}
_DTYPES = [np.float64, np.float32]
_SPARE = 4  # extra candidates, whose exact distances are compared too: products round


class KNeighborsClassifier(ClassifierMixin, BaseEstimator):
    """k-nearest-neighbours classifier, with brute-force distances by matrix products.

    A drop-in for scikit-learn's class, except:

    - `algorithm`, `leaf_size` and `n_jobs` are accepted and checked, and have no effect.
    - `metric` is "cosine", "minkowski" or a name of "minkowski" with some p. scikit-learn's other metrics, and other
      keys of `metric_params` than p, are refused. p=2 is the fastest: it is a matrix product.
    - X is dense; y has one label per row.
    - Neighbours at equal distances are in the order of the training rows.
    - `fit` keeps X without a copy and in its type; of a memory map it keeps a copy. LazyRows stay in the store's file
      and are read in each search.

    Parameters
    ----------
    n_neighbors : int, default 5
    weights : "uniform", "distance", None or callable
        Weight of a neighbour's vote: 1 ("uniform" or None), or 1 / distance; if there are neighbours at distance 0,
        only they vote. A callable maps distances to weights, both (m, n_neighbors).
    algorithm, leaf_size, n_jobs : as in scikit-learn
        Accepted for compatibility, no effect.
    p : float, above 0
        Power of metric="minkowski". Other metrics ignore it, with a warning if their own p differs.
    metric : "minkowski", "euclidean", "l2", "manhattan", "l1", "cityblock", "chebyshev" or "cosine"
        Cosine: ``1 - x.a / (|x| |a|)``, or 1 if a row is 0.
    metric_params : dict, optional
        {"p": float}, in place of `p`.
    device : "auto", "cpu" or "cuda"

    Attributes
    ----------
    classes_ : (k,) labels
    n_samples_fit_ : int, n
    effective_metric_ : `metric`; for "minkowski" with p 1, 2 or inf: "manhattan", "euclidean" or "chebyshev"
    effective_metric_params_ : dict, empty except for "minkowski" with another p
    outputs_2d_ : False
    n_features_in_ : int, d
    feature_names_in_ : (d,) str, if X has column names

    Examples
    --------
    >>> from featx.learn import KNeighborsClassifier
    >>> nearest = KNeighborsClassifier(n_neighbors=3).fit([[0.0], [1.0], [2.0], [3.0]], ["ant", "ant", "bee", "bee"])
    >>> nearest.predict([[1.1]])
    array(['ant'], dtype='<U3')
    """

    reads_blocks: ClassVar[bool] = True  # of LazyRows
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **SklearnKNeighborsClassifier._parameter_constraints,
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "device": [StrOptions({"auto", "cpu", "cuda"})],
    }

    def __init__(
        self,
        n_neighbors: int = 5,
        *,
        weights: Any = "uniform",
        algorithm: str = "auto",
        leaf_size: int = 30,
        p: float | None = 2,
        metric: Any = "minkowski",
        metric_params: dict | None = None,
        n_jobs: int | None = None,
        device: str = "auto",
    ) -> None:
        self.n_neighbors = n_neighbors
        self.weights = weights
        self.algorithm = algorithm
        self.leaf_size = leaf_size
        self.p = p
        self.metric = metric
        self.metric_params = metric_params
        self.n_jobs = n_jobs
        self.device = device

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Models saved by versions without these parameters get their defaults."""
        absent: dict[str, Any] = {"algorithm": "auto", "leaf_size": 30, "p": 2, "metric_params": None, "n_jobs": None}
        if "effective_metric_" in state:
            absent["effective_metric_params_"] = {}
        super().__setstate__(absent | state)

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any) -> Self:
        """Keep the rows and their labels.

        Parameters
        ----------
        X : (n, d) float32 or float64; others become float64
        y : (n,) labels

        Returns
        -------
        self

        Raises
        ------
        FeatxError
            The metric is one of scikit-learn's that this class does not have.
        ValueError
            X or y cannot be used, or `algorithm`, `metric` and `p` do not go together.
        """
        X, y = checked(self, dense(self, X), y, dtype=_DTYPES, order="C")
        if self.p is not None and "p" in (self.metric_params or {}):
            warnings.warn(
                "Parameter p is found in metric_params. The corresponding parameter from __init__ is ignored.",
                SyntaxWarning,
                stacklevel=3,
            )
        self._keep(np.array(X) if _is_mapped(X) else X, y)
        if self.metric != "minkowski" and self.p not in (None, 2, _NORMS.get(self.metric)):
            warnings.warn(
                f"p={self.p} has no effect with metric={self.metric!r}: p belongs to metric='minkowski'",
                UserWarning,
                stacklevel=3,
            )
        if self.effective_metric_params_.get("p", 1) < 1:
            warnings.warn(
                "Mind that for 0 < p < 1, Minkowski metrics are not distance metrics. Continuing the execution with "
                "`algorithm='brute'`.",
                UserWarning,
                stacklevel=3,
            )
        return self

    def _keep(self, X: np.ndarray, y: Any) -> Self:
        check_classification_targets(y)
        self.effective_metric_, self.effective_metric_params_ = self._metric()
        self.classes_, self._y = np.unique(y, return_inverse=True)
        self._fit_X = X
        self.n_samples_fit_ = len(X)
        self.outputs_2d_ = False
        return self

    def _metric(self) -> tuple[str, dict[str, Any]]:
        """`effective_metric_` and its parameters."""
        metric, params = self.metric, dict(self.metric_params or {})
        algorithm = "brute" if self.algorithm == "auto" else self.algorithm
        if isinstance(metric, str) and metric not in VALID_METRICS[algorithm]:
            raise ValueError(
                f"Metric '{metric}' not valid. Use sorted(sklearn.neighbors.VALID_METRICS['{algorithm}']) to get valid "
                "options. Metric can also be a callable function."
            )
        p = params.pop("p", self.p) if metric == "minkowski" else None
        if params or metric != "minkowski" and (not isinstance(metric, str) or metric not in {*_NORMS, "cosine"}):
            refused = f"metric={metric!r}" + (f" with metric_params {listed(params)}" if params else "")
            raise FeatxError(
                f"{type(self).__name__} has no {refused}, only {', '.join(_NORMS)}, cosine, and minkowski with p; "
                "sklearn.neighbors.KNeighborsClassifier has others"
            )
        if metric != "minkowski":
            return metric, {}
        if p is None or not p > 0:
            raise ValueError(f"p of the Minkowski metric must be a number above 0; got {p!r}")
        if p < 1 and algorithm != "brute":
            raise ValueError(
                f'algorithm="{algorithm}" does not support 0 < p < 1 for the Minkowski metric. To resolve this problem '
                'either set p >= 1 or algorithm="brute".'
            )
        named = {1.0: "manhattan", 2.0: "euclidean", np.inf: "chebyshev"}
        return (named[float(p)], {}) if float(p) in named else ("minkowski", {"p": p, "w": None})

    @classmethod
    def fit_each(cls, X: Any, y: Any, jobs: Sequence[Job]) -> Iterator[Fitted]:
        """Fit the jobs of a search; neighbours of held-out rows are searched once a fold, for the largest
        `n_neighbors`.

        See `estimators.batched`.
        """
        from featx.learn.estimators.kernels import rows_of

        original, X = X, checked(cls(), dense(cls(), X), dtype=_DTYPES, order="C")
        y = column_or_1d(y, warn=True)
        shared: dict[tuple, list[int]] = {}
        for number, (estimator, fold) in enumerate(jobs):
            metric = repr((estimator.metric, estimator.p, estimator.metric_params))
            shared.setdefault((fold.number, metric, estimator.device), []).append(number)
        rows: tuple[Any, Any] = (None, None)  # of the last fold
        for numbers in shared.values():
            began = perf_counter()
            good: list[int] = []
            answers: dict[int, Any] = {}
            fold = jobs[numbers[0]].fold
            for number in numbers:
                estimator = answers[number] = jobs[number].estimator
                try:
                    estimator._validate_params()
                    if fold.sample_weight is not None:
                        raise TypeError(f"{cls.__name__}.fit() takes no sample_weight")
                    if rows[0] is not fold:
                        rows = fold, rows_of(X, fold.train, fold)
                    validate_data(estimator, original, skip_check_array=True)  # sets number and names of columns
                    estimator._keep(rows[1], y[fold.train])
                    good.append(number)
                except Exception as error:
                    answers[number] = error
            known = cls._neighbors_of([answers[number] for number in good], fold)
            share = (perf_counter() - began) / len(numbers)
            for number in numbers:
                view = copy(answers[number]) if number in good else None
                if view is not None:
                    view._known = known
                yield Fitted(number, answers[number], share, view)

    @staticmethod
    def _neighbors_of(estimators: list[KNeighborsClassifier], fold: Fold) -> list[tuple[Any, np.ndarray, np.ndarray]]:
        """Each matrix that the models are scored on, with its neighbours for the largest `n_neighbors`."""
        within = [one for one in estimators if one.n_neighbors <= one.n_samples_fit_]
        if not within:
            return []
        largest = max(within, key=lambda one: one.n_neighbors)
        return [(matrix, *largest.kneighbors(matrix)) for matrix in fold.matrices]

    def kneighbors(self, X: Any = None, n_neighbors: int | None = None, return_distance: bool = True) -> Any:
        """Find the nearest training rows.

        Parameters
        ----------
        X : (m, d), optional
            By default the training rows; then no row is its own neighbour.
        n_neighbors : int, optional
            By default the estimator's.
        return_distance : bool

        Returns
        -------
        distances : (m, n_neighbors), ascending; only if `return_distance`
        positions : (m, n_neighbors) int64, of training rows

        Raises
        ------
        ValueError
            There are fewer training rows than `n_neighbors`.
        """
        check_is_fitted(self)
        k = self.n_neighbors if n_neighbors is None else n_neighbors
        if not isinstance(k, Integral):
            raise TypeError(f"n_neighbors does not take {type(k)} value, enter integer value")
        if k < 1:
            raise ValueError(f"Expected n_neighbors > 0. Got {k}")
        for matrix, distances, positions in getattr(self, "_known", ()):  # of a view that a search scores
            if matrix is X and k <= positions.shape[1]:
                return (distances[:, :k], positions[:, :k]) if return_distance else positions[:, :k]
        if k + (X is None) > self.n_samples_fit_:
            inequality = "n_neighbors < n_samples_fit" if X is None else "n_neighbors <= n_samples_fit"
            raise ValueError(
                f"Expected {inequality}, but n_neighbors = {k}, n_samples_fit = {self.n_samples_fit_}, "
                f"n_samples = {len(self._fit_X) if X is None else len(X)}"
            )
        if X is None:
            distances, positions = self._nearest(self._fit_X, k + 1)
            others = positions != np.arange(len(positions))[:, None]
            others[others.all(axis=1), -1] = False  # the row is not among its neighbours: too many are at distance 0
            distances, positions = distances[others].reshape(-1, k), positions[others].reshape(-1, k)
        else:
            X = checked(self, dense(self, X), dtype=_DTYPES, order="C", reset=False)
            distances, positions = self._nearest(X, k)
        return (distances, positions) if return_distance else positions

    def _nearest(self, X: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(m, k) distances and positions of the nearest training rows; LazyRows are read in blocks, on either side."""
        distances, positions = np.empty((len(X), k)), np.empty((len(X), k), np.int64)
        for part, rows in _blocks(X):
            distances[part], positions[part] = self._nearest_among(rows, k)
        return distances, positions

    def _nearest_among(self, X: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """`_nearest` of rows in memory: the nearest of each block of training rows, merged."""
        distances: np.ndarray = np.empty((len(X), 0))
        positions: np.ndarray = np.empty((len(X), 0), np.int64)
        for part, rows in _blocks(self._fit_X):
            near = self._nearest_in_memory(X, rows, min(k, len(rows)))
            distances = np.concatenate([distances, near[0]], axis=1)
            positions = np.concatenate([positions, near[1] + part.start], axis=1)
            if distances.shape[1] > k:  # by distance; among equal ones the earlier block is first
                order = np.argsort(distances, axis=1, kind="stable")[:, :k]
                distances, positions = (np.take_along_axis(each, order, 1) for each in (distances, positions))
        return distances, positions

    def _nearest_in_memory(self, X: np.ndarray, training_rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        import torch

        from featx.learn.estimators.kernels import BLOCK, Rows, blocks, unit
        from featx.solvers import device_of, threads_for

        metric = self.effective_metric_
        cosine, p = metric == "cosine", float(self.effective_metric_params_.get("p", _NORMS.get(metric, 2)))
        dtype = torch.float32 if X.dtype == training_rows.dtype == np.float32 else torch.float64
        A = torch.from_numpy(np.array(training_rows)).to(device_of(self.device), dtype)
        A = unit(A) if cosine else A
        rows = Rows(A if cosine else A.clone(), squared=not cosine) if p == 2 else None
        distances, positions = np.empty((len(X), k)), np.empty((len(X), k), np.int64)
        with threads_for(2 * min(len(X) * len(A), BLOCK) * A.shape[1]):
            for part in blocks(len(X), len(A)):
                Y = torch.from_numpy(np.array(X[part])).to(A)
                Y = unit(Y) if cosine else Y
                block = torch.cdist(Y, A, p) if rows is None else rows.of(Y.clone())
                block = block.neg_().add_(1).clamp_(0, 2) if cosine else block
                near = _candidates(block, min(len(A), k + _SPARE), k)
                distance = _exact(Y, A, near, None if cosine else p)
                # by distance, then by position
                near, order = near.sort(dim=1)
                distance, again = distance.gather(1, order).sort(dim=1, stable=True)
                distances[part] = distance[:, :k].cpu().numpy()
                positions[part] = near.gather(1, again)[:, :k].cpu().numpy()
        return distances, positions

    kneighbors_graph = SklearnKNeighborsClassifier.kneighbors_graph

    def predict(self, X: Any) -> np.ndarray:
        """The label with most votes; ties go to the first in `classes_`.

        Parameters
        ----------
        X : (m, d), or None for the training rows, none of which votes for itself

        Returns
        -------
        (m,)
        """
        votes = self.predict_proba(X)
        return self.classes_[votes.argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """The share of votes of each class.

        Parameters
        ----------
        X : (m, d), or None for the training rows, none of which votes for itself

        Returns
        -------
        (m, k) float64, columns as `classes_`
        """
        distances, positions = self.kneighbors(X)
        votes = np.zeros((len(positions), len(self.classes_)))
        if callable(self.weights):
            weights = self.weights(distances)
            if (weights == 0).all(axis=1).any():
                raise ValueError(
                    "All neighbors of some sample is getting zero weights. Please modify 'weights' to avoid this case "
                    "if you are using a user-defined function."
                )
        elif self.weights == "distance":
            same = distances == 0
            with np.errstate(divide="ignore"):
                weights = np.where(same.any(axis=1, keepdims=True), same, 1 / distances)
        else:
            weights = np.ones_like(distances)
        every = np.arange(len(votes))
        for labels, weight in zip(self._y[positions].T, weights.T, strict=True):
            votes[every, labels] += weight
        return votes / votes.sum(axis=1, keepdims=True)


def dense(estimator: Any, X: Any) -> Any:
    """X; raises FeatxError if it is sparse."""
    if issparse(X):
        raise FeatxError(
            f"{type(estimator).__name__} takes dense arrays, and X is sparse; give X.toarray(), or use "
            f"sklearn.neighbors.{type(estimator).__name__}"
        )
    return X


def _blocks(X: Any) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows, their values) of LazyRows in blocks; an array is one block."""
    return X.blocks() if isinstance(X, LazyRows) else iter([(slice(0, len(X)), X)])


def _is_mapped(X: Any) -> bool:
    base: Any = X
    while base is not None:
        if isinstance(base, np.memmap):
            return True
        base = getattr(base, "base", None)
    return False


def _candidates(block: Tensor, count: int, k: int) -> Tensor:
    """(m, count) positions of the smallest numbers of each row; among equal ones the first k are exact."""
    least, near = block.topk(count, dim=1, largest=False)
    if count < block.shape[1]:
        tied = (least[:, -1] <= least[:, k - 1]).nonzero()[:, 0]
        if len(tied):
            near[tied] = block[tied].sort(dim=1, stable=True).indices[:, :count]
    return near


def _exact(Y: Tensor, A: Tensor, near: Tensor, p: float | None) -> Tensor:
    """(m, count) float64 distances to the candidates, from differences instead of products, which round."""
    import torch

    distance = torch.empty(near.shape, dtype=torch.float64, device=Y.device)
    for column in range(near.shape[1]):
        chosen = A[near[:, column]].double()
        if p is None:
            distance[:, column] = (1 - torch.linalg.vecdot(chosen, Y.double())).clamp_(0, 2)
        else:
            distance[:, column] = torch.linalg.vector_norm(chosen.sub_(Y), p, dim=1)
    return distance
