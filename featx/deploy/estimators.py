"""Fitted estimators as torch modules: rows (b, d) -> Outputs.

Linear scores, distances and kernels are computed in float64, which costs little beside a network.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from featx.deploy.steps import constant
from featx.errors import ModelError

_SPARE = 4  # extra candidates among neighbours, whose exact distances are compared too: products round


class Outputs(NamedTuple):
    """What an estimator predicts for b rows; what it does not have is None.

    label : (b,) int64, positions in `classes_`
    probabilities : (b, k), as `predict_proba`
    scores : (b,) or (b, k), as `decision_function`
    values : (b,) or (b, t), as `predict` of a regression
    """

    label: Tensor | None = None
    probabilities: Tensor | None = None
    scores: Tensor | None = None
    values: Tensor | None = None


class Linear(nn.Module):
    """Scores X W^T + b, (b, m) float64; W (m, d)"""

    W: Tensor
    b: Tensor

    def __init__(self, W: Any, b: Any) -> None:
        super().__init__()
        W = np.atleast_2d(W.toarray() if hasattr(W, "toarray") else W)
        self.register_buffer("W", constant(W))
        self.register_buffer("b", constant(np.broadcast_to(np.atleast_1d(b), len(W))))

    def forward(self, X: Tensor) -> Tensor:
        return X.double() @ self.W.double().T + self.b.double()


class Classes(nn.Module):
    """The label and, of logistic regression, the probabilities for scores (b, m); one column for two classes."""

    def __init__(self, scores: nn.Module, is_logistic: bool) -> None:
        super().__init__()
        self.scores, self.is_logistic = scores, is_logistic

    def forward(self, X: Tensor) -> Outputs:
        scores = self.scores(X)
        probabilities = None
        if scores.shape[1] == 1:
            scores = scores[:, 0]
            if self.is_logistic:
                probabilities = torch.stack([(-scores).sigmoid(), scores.sigmoid()], 1)
            return Outputs((scores > 0).long(), probabilities, scores)
        if self.is_logistic:
            probabilities = scores.softmax(1)
        return Outputs(scores.argmax(1), probabilities, scores)


class Values(nn.Module):
    """The values of a regression: (b, t), or (b,) if it was fitted on one column of targets."""

    def __init__(self, scores: nn.Module, is_flat: bool, scale: float = 1.0, mean: float = 0.0) -> None:
        super().__init__()
        self.scores, self.is_flat, self.scale, self.mean = scores, is_flat, scale, mean

    def forward(self, X: Tensor) -> Outputs:
        values = self.scores(X).double()
        return Outputs(values=(values[:, 0] if self.is_flat else values) * self.scale + self.mean)


class KernelMachine(nn.Module):
    """libsvm's decisions, (b, k (k - 1) / 2) float64, one column for each pair of classes; (b, 1) of a regression.

    d_ij(x) = sum_{a in i} dual_{j-1,a} K(x, a) + sum_{a in j} dual_{i,a} K(x, a) + b_ij,    i < j

    over the support vectors of the two classes; a linear kernel is one product with sum_a dual_a a.
    """

    intercept: Tensor
    A: Tensor
    centre: Tensor
    duals: Tensor
    first: Tensor
    second: Tensor

    def __init__(self, fitted: Any, sizes: np.ndarray) -> None:
        super().__init__()
        if fitted.kernel not in ("linear", "poly", "rbf", "sigmoid"):
            raise ModelError(f"{named(fitted)} with this kernel cannot be exported; linear, poly, rbf and sigmoid can")
        self.kernel, self.coef0, self.degree = fitted.kernel, float(fitted.coef0), int(fitted.degree)
        self.gamma = float(fitted._gamma)
        ends = np.cumsum(sizes)
        spans = [slice(int(end - size), int(end)) for end, size in zip(ends, sizes, strict=True)]
        pairs = list(combinations(range(len(sizes)), 2)) or [(0, 0)]
        A, duals = np.asarray(fitted.support_vectors_, np.float64), np.asarray(fitted._dual_coef_, np.float64)
        self.spans = [(span.start, span.stop) for span in spans]
        self.register_buffer("intercept", torch.from_numpy(np.array(fitted._intercept_, np.float64)))
        if self.kernel == "linear":
            sums = [duals[:, span] @ A[span] for span in spans]
            W = sums[0] if len(spans) == 1 else np.stack([sums[i][j - 1] + sums[j][i] for i, j in pairs])
            self.register_buffer("A", constant(W))
            return
        # distances lose fewer digits near 0; a shift of all rows does not change them
        centre = np.median(A, 0) if self.kernel == "rbf" and len(A) else np.zeros(A.shape[1])
        self.register_buffer("centre", torch.from_numpy(centre))
        self.register_buffer("A", constant(A))
        self.register_buffer("duals", torch.from_numpy(duals))
        width = len(duals)
        self.register_buffer("first", torch.tensor([i * width + j - 1 for i, j in pairs]))
        self.register_buffer("second", torch.tensor([j * width + i for i, j in pairs]))

    def forward(self, X: Tensor) -> Tensor:
        A, X = self.A.double(), X.double()
        if self.kernel == "linear":
            return X @ A.T + self.intercept
        K = self._kernel(X, A)  # (b, s)
        sums = [K[:, start:stop] @ self.duals[:, start:stop].T for start, stop in self.spans]
        if len(sums) == 1:
            return sums[0] + self.intercept
        flat = torch.cat(sums, 1)  # (b, k (k - 1))
        return flat.index_select(1, self.first) + flat.index_select(1, self.second) + self.intercept

    def _kernel(self, X: Tensor, A: Tensor) -> Tensor:
        if self.kernel == "rbf":
            return (-self.gamma * squared_distances(X - self.centre, A - self.centre)).exp()
        products = X @ A.T * self.gamma + self.coef0
        return products.tanh() if self.kernel == "sigmoid" else products.pow(self.degree)


class Pairs(nn.Module):
    """SVC: the class that wins most pairs, and one-against-rest scores made of the pairs' decisions."""

    wins: Tensor
    losses: Tensor

    def __init__(self, decisions: nn.Module, k: int, shape: str, break_ties: bool) -> None:
        super().__init__()
        self.decisions, self.k, self.is_ovr, self.break_ties = decisions, k, shape == "ovr", break_ties
        i, j = torch.tensor(list(combinations(range(k), 2))).T
        wins, losses = nn.functional.one_hot(i, k).double(), nn.functional.one_hot(j, k).double()  # (k (k - 1) / 2, k)
        self.register_buffer("wins", wins)
        self.register_buffer("losses", losses)

    def forward(self, X: Tensor) -> Outputs:
        decisions = self.decisions(X)
        first = (decisions > 0).double()
        votes = first @ self.wins + (1 - first) @ self.losses  # (b, k)
        label = votes.argmax(1)
        if self.k == 2:
            return Outputs(label, scores=-decisions[:, 0])
        if not self.is_ovr:
            return Outputs(label, scores=decisions)
        margins = decisions @ (self.wins - self.losses)
        scores = votes + margins / (3 * (margins.abs() + 1))
        return Outputs(scores.argmax(1) if self.break_ties else label, scores=scores)


class Neighbors(nn.Module):
    """KNeighborsClassifier: the share of votes of each class among the nearest training rows.

    Candidates are found by products; their distances are computed from differences, as `kneighbors` does.
    """

    rows: Tensor
    centre: Tensor
    votes: Tensor

    def __init__(self, fitted: Any, p: float | None) -> None:
        super().__init__()
        self.p, self.n, self.by_distance = p, int(fitted.n_neighbors), fitted.weights == "distance"
        rows = np.asarray(fitted._fit_X)
        if p is None:
            lengths = np.linalg.norm(rows, axis=1, keepdims=True)
            rows = rows / np.where(lengths > 0, lengths, 1)
        self.is_short = rows.dtype == np.float32
        self.register_buffer("rows", constant(rows))
        centre = np.median(rows, 0) if p == 2 else np.zeros(rows.shape[1])
        self.register_buffer("centre", torch.from_numpy(centre))
        votes = nn.functional.one_hot(torch.from_numpy(np.array(fitted._y)), len(fitted.classes_))
        self.register_buffer("votes", votes.to(torch.uint8))  # (n, k)

    def forward(self, X: Tensor) -> Outputs:
        kind = torch.float32 if self.is_short and X.dtype == torch.float32 else torch.float64
        A, X = self.rows.to(kind), X.to(kind)
        if self.p is None:
            lengths = X.square().sum(1, keepdim=True).sqrt()
            X = X / torch.where(lengths > 0, lengths, 1.0)
            block = 1 - X @ A.T
        elif self.p == 2:
            centre = self.centre.to(kind)
            block = squared_distances(X - centre, A - centre)
        else:
            block = _norm(X[:, None] - A, self.p)
        near = block.topk(min(len(A), self.n + _SPARE), largest=False).indices
        chosen, wide = A[near].double(), X.double()  # (b, n + spare, d)
        if self.p is None:
            distances = (1 - (chosen @ wide[:, :, None])[:, :, 0]).clamp(0, 2)
        else:
            distances = _norm(chosen - wide[:, None], self.p)
        distances, order = distances.topk(self.n, largest=False)
        votes = self.votes[near.gather(1, order)].double()  # (b, n, k)
        if self.by_distance:
            same = distances == 0
            weights = torch.where(same.any(1, keepdim=True), same.double(), 1 / torch.where(same, 1.0, distances))
            votes = votes * weights[:, :, None]
        votes = votes.sum(1)
        return Outputs(votes.argmax(1), votes / votes.sum(1, keepdim=True))


class Centroids(nn.Module):
    """NearestCentroid: the least distance, or the discriminant scores where priors differ."""

    centroids: Tensor
    unit: Tensor
    offset: Tensor

    def __init__(self, fitted: Any) -> None:
        super().__init__()
        self.cosine = fitted.metric == "cosine"
        centroids = np.asarray(fitted.centroids_, np.float64)
        if self.cosine:
            lengths = np.linalg.norm(centroids, axis=1, keepdims=True)
            centroids = centroids / np.where(lengths > 0, lengths, 1)
        prior = fitted.class_prior_
        self.is_uniform = bool(np.isclose(prior, 1 / len(prior)).all())
        self.register_buffer("centroids", torch.from_numpy(centroids))
        if not self.cosine:
            unit = np.where(fitted.within_class_std_dev_ == 0, 1, fitted.within_class_std_dev_)
            self.register_buffer("unit", torch.from_numpy(unit.astype(np.float64)))
            with np.errstate(divide="ignore"):
                self.register_buffer("offset", torch.from_numpy(2 * np.log(prior)))

    def forward(self, X: Tensor) -> Outputs:
        X = X.double()
        if self.cosine:
            lengths = X.square().sum(1, keepdim=True).sqrt()
            scores = X / torch.where(lengths > 0, lengths, 1.0) @ self.centroids.T
            return Outputs(scores.argmax(1), None, one_column(scores))
        scores = self.offset - self._distances(X / self.unit, self.centroids / self.unit)
        nearness = -self._distances(X, self.centroids) if self.is_uniform else scores
        return Outputs(nearness.argmax(1), scores.softmax(1), one_column(scores))

    def _distances(self, X: Tensor, centroids: Tensor) -> Tensor:
        """(b, k) squared, from differences."""
        return torch.stack([(X - centroid).square().sum(1) for centroid in centroids], 1)


class Perceptron(nn.Module):
    """The layers of an MLP; (b, q) float64."""

    def __init__(self, fitted: Any) -> None:
        super().__init__()
        self.activation, self.n = fitted.activation, len(fitted.coefs_)
        for number, (coef, intercept) in enumerate(zip(fitted.coefs_, fitted.intercepts_, strict=True)):
            self.register_buffer(f"coef_{number}", torch.from_numpy(np.array(coef)))
            self.register_buffer(f"intercept_{number}", torch.from_numpy(np.array(intercept)))

    def forward(self, X: Tensor) -> Tensor:
        for number in range(self.n):
            coef = getattr(self, f"coef_{number}")
            X = X.to(coef.dtype) @ coef + getattr(self, f"intercept_{number}")
            if number < self.n - 1:
                X = _ACTIVATIONS[self.activation](X)
        return X.double()


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "logistic": torch.sigmoid,
    "identity": lambda X: X,
}


class Perceived(nn.Module):
    """MLPClassifier: the label of the largest output and the probabilities; no scores."""

    def __init__(self, scores: nn.Module) -> None:
        super().__init__()
        self.scores = Classes(scores, is_logistic=True)

    def forward(self, X: Tensor) -> Outputs:
        return self.scores(X)._replace(scores=None)


class FineTuned(nn.Module):
    """FineTuner: the tail and the head of a network on rows of the boundary; (b, k)."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self.shape = network, network.tail.shape

    def forward(self, X: Tensor) -> Tensor:
        return self.network(X.float().unflatten(1, self.shape))


class FineTunedClasses(nn.Module):
    """The label and the probabilities of a fine-tuned network, and its scores as FineTuner has them."""

    def __init__(self, scores: nn.Module) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, X: Tensor) -> Outputs:
        scores = self.scores(X)
        return Outputs(scores.argmax(1), scores.softmax(1), one_column(scores))


def one_column(scores: Tensor) -> Tensor:
    """Scores as `decision_function` has them: of two classes (b,), positive for the second."""
    return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores


def squared_distances(X: Tensor, A: Tensor) -> Tensor:
    """(b, n) |x - a|^2 by products"""
    squares = X.square().sum(1, keepdim=True) + A.square().sum(1)
    return (squares - 2 * (X @ A.T)).clamp_min(0)


def _norm(differences: Tensor, p: float) -> Tensor:
    """The p-norm over the last dimension."""
    sizes = differences.abs()
    if p == float("inf"):
        return sizes.amax(-1)
    if p == 1:
        return sizes.sum(-1)
    return sizes.square().sum(-1).sqrt() if p == 2 else sizes.pow(p).sum(-1).pow(1 / p)


def named(fitted: Any) -> str:
    return type(fitted).__name__


def _logistic(fitted: Any) -> nn.Module:
    return Classes(Linear(fitted.coef_, fitted.intercept_), is_logistic=True)


def _linear_svc(fitted: Any) -> nn.Module:
    return Classes(Linear(fitted.coef_, fitted.intercept_), is_logistic=False)


def _ridge_classifier(fitted: Any) -> nn.Module:
    _refuse_several_labels(fitted)
    return _linear_svc(fitted)


def _ridge(fitted: Any) -> nn.Module:
    return Values(Linear(fitted.coef_, fitted.intercept_), np.ndim(fitted.coef_) == 1)


def _svc(fitted: Any) -> nn.Module:
    if fitted.probability not in ("deprecated", False):
        raise ModelError(
            "SVC(probability=True) cannot be exported; CalibratedClassifierCV(SVC(), ensemble=False) has probabilities "
            "that can"
        )
    k = len(fitted.classes_)
    return Pairs(KernelMachine(fitted, fitted.n_support_), k, fitted.decision_function_shape, fitted.break_ties)


def _svr(fitted: Any) -> nn.Module:
    return Values(KernelMachine(fitted, np.array([len(fitted.support_vectors_)])), is_flat=True)


_NORMS = {"euclidean": 2.0, "l2": 2.0, "manhattan": 1.0, "cityblock": 1.0, "l1": 1.0, "chebyshev": float("inf")}


def _neighbors(fitted: Any) -> nn.Module:
    if callable(fitted.weights):
        raise ModelError(
            "KNeighborsClassifier with a function for weights cannot be exported; weights 'uniform' and 'distance' can"
        )
    metric = fitted.effective_metric_
    p = None if metric == "cosine" else _NORMS.get(metric, fitted.effective_metric_params_.get("p"))
    if metric not in (*_NORMS, "cosine", "minkowski") or fitted.outputs_2d_:
        raise ModelError(
            f"KNeighborsClassifier with metric {metric!r} and one label a row is needed: 'euclidean', 'cosine' and "
            "'minkowski' can be exported"
        )
    return Neighbors(fitted, None if p is None else float(p))


def _centroid(fitted: Any) -> nn.Module:
    if fitted.metric not in ("euclidean", "cosine"):
        raise ModelError(
            f"NearestCentroid with metric {fitted.metric!r} cannot be exported; 'euclidean' and 'cosine' can"
        )
    return Centroids(fitted)


def _mlp_classifier(fitted: Any) -> nn.Module:
    _refuse_several_labels(fitted)
    return Perceived(Perceptron(fitted))


def _mlp_regressor(fitted: Any) -> nn.Module:
    return Values(Perceptron(fitted), fitted.n_outputs_ == 1)


def _refuse_several_labels(fitted: Any) -> None:
    kind = getattr(getattr(fitted, "_label_binarizer", None), "y_type_", "")
    if getattr(fitted, "_multilabel", False) or kind.startswith("multilabel"):
        raise ModelError(f"{named(fitted)} of several labels a row cannot be exported; fit one for each label")


def _fine_tuner(fitted: Any) -> nn.Module:
    return FineTunedClasses(FineTuned(fitted.fitted_network()))


def _fine_tuner_regressor(fitted: Any) -> nn.Module:
    return Values(FineTuned(fitted.fitted_network()), True, fitted.scale_, fitted.mean_)


ESTIMATORS: dict[str, Callable[[Any], nn.Module]] = {
    "KNeighborsClassifier": _neighbors,
    "LinearSVC": _linear_svc,
    "LogisticRegression": _logistic,
    "MLPClassifier": _mlp_classifier,
    "MLPRegressor": _mlp_regressor,
    "NearestCentroid": _centroid,
    "Ridge": _ridge,
    "RidgeClassifier": _ridge_classifier,
    "SVC": _svc,
    "SVR": _svr,
}
# These read the rows of their boundary themselves.
FINE_TUNED: dict[str, Callable[[Any], nn.Module]] = {
    "FineTuner": _fine_tuner,
    "FineTunerRegressor": _fine_tuner_regressor,
}
