"""Scores of features that need no cross-validation: LogME, the shrunk H-score, N-LEEP. Arrays in, numbers out.

They estimate how well a model on these features, or a fine-tuned network, will do. They cost less
than the cross-validated probe by which `compare` ranks; LogME ranked layers worse than the probe on two of three data
sets, and slightly better on the third (benchmarks/README.md).
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.utils.validation import check_X_y

from featx.errors import FeatxError

_RATIOS = (-12, 6, 91)  # powers of ten of a / b, in units of the largest squared singular value
_COMPONENTS_A_CLASS = 5
_ENERGY = 0.8


def log_me(X: np.ndarray, y: np.ndarray) -> float:
    r"""Logarithm of the maximum evidence of a Bayesian linear model, per image; larger is better::

        max_{a, b}  log N(y; 0, I / b + X X^T / a) / n,

    averaged over the classes, with y = 1 for images of the class and 0 for others; for regression, y itself. a and b
    are found by a search in one dimension, the ratio a / b.

    Parameters
    ----------
    X : (n, d)
    y : (n,) class names, or floats

    Returns
    -------
    float

    References
    ----------
    K. You, Y. Liu, J. Wang, M. Long, LogME: practical assessment of pre-trained models for transfer learning, ICML
    2021.
    """
    X, y = _checked(X, y, may_be_numbers=True)
    targets = y[:, None] if y.dtype.kind == "f" else (y[:, None] == np.unique(y)).astype(float)  # (n, k)
    U, singular, _ = np.linalg.svd(X.astype(np.float64), full_matrices=False)
    return float(np.mean([_evidence(U, singular**2, target) for target in targets.T]))


def _evidence(U: np.ndarray, squares: np.ndarray, y: np.ndarray) -> float:
    """The maximum evidence of one target, per image. squares : (r,) squared singular values of X, whose left singular
    vectors are U (n, r).

    For a ratio t = a / b the best a is n / Q, Q = y'(X X^T + t I)^{-1} y, which leaves a maximum over t:

        -2 log evidence = n log(2 pi e Q / n) + log det(X X^T + t I)
    """
    n = len(y)
    z = (U.T @ y) ** 2  # (r,)
    outside = max(float(y @ y - z.sum()), 0.0)  # of y, that no weights explain
    if outside <= 1e-12 * float(y @ y):
        outside = 0.0

    def loss(log_t: np.ndarray) -> np.ndarray:
        t = np.exp(log_t)[..., None]
        Q = (z / (squares + t)).sum(axis=-1) + outside / t[..., 0]
        determinant = np.log(squares + t).sum(axis=-1) + (n - len(squares)) * log_t
        return n * np.log(2 * np.pi * np.e * Q / n) + determinant

    grid = np.log(squares.max()) + np.log(10) * np.linspace(*_RATIOS)
    best = int(np.argmin(loss(grid)))
    around = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = minimize_scalar(loss, bounds=around, method="bounded", options={"xatol": 1e-8})
    return -min(float(found.fun), float(loss(grid[best]))) / (2 * n)


def h_score(X: np.ndarray, y: np.ndarray) -> float:
    r"""Shrunk H-score: the share of the features' variance between classes; larger is better, at most k - 1::

        (1 - a) tr(S_a^{-1} B),    S_a = (1 - a) S + a tr(S) / d I,

    S the covariance of the features, B that of their class means, and a Ledoit and Wolf's shrinkage.

    Parameters
    ----------
    X : (n, d)
    y : (n,) class names

    Returns
    -------
    float

    References
    ----------
    Y. Bao et al., An information-theoretic approach to transferability in task transfer learning, ICIP 2019.
    S. Ibrahim, N. Ponomareva, R. Mazumder, Newer is not always better: rethinking transferability metrics, their
    peculiarities, stability and performance, ECML PKDD 2022.
    """
    X, y = _checked(X, y)
    n, d = X.shape
    centred = X.astype(np.float64) - X.mean(axis=0, dtype=np.float64)
    shrinkage = float(ledoit_wolf_shrinkage(centred, assume_centered=True))
    classes, codes = np.unique(y, return_inverse=True)
    counts = np.bincount(codes)
    sums = np.zeros((len(classes), d))
    np.add.at(sums, codes, centred)
    roots = sums / np.sqrt(counts * n)[:, None]  # (k, d), B = roots^T roots
    ridge = shrinkage * float((centred**2).sum()) / (n * d)
    if not ridge and not shrinkage:
        ridge = np.finfo(float).eps * float((centred**2).sum()) / n
    if d <= n:
        covariance = (1 - shrinkage) / n * centred.T @ centred + ridge * np.eye(d)
        explained = np.linalg.solve(covariance, roots.T)  # (d, k)
    else:  # by Woodbury: (c F^T F + r I)^-1 R = (R - c F^T (r I + c F F^T)^-1 F R) / r
        weight = (1 - shrinkage) / n
        inner = np.linalg.solve(ridge * np.eye(n) + weight * centred @ centred.T, centred @ roots.T)
        explained = (roots.T - weight * centred.T @ inner) / ridge
    return float((1 - shrinkage) * np.sum(roots.T * explained))


def n_leep(X: np.ndarray, y: np.ndarray, random_state: int = 0) -> float:
    r"""LEEP with a Gaussian mixture in place of the source task's classes: a mean log-likelihood; larger is better::

        mean_i log sum_v P(y_i | v) P(v | x_i),    P(y | v) proportional to sum_{i: y_i = y} P(v | x_i),

    v the components of a Gaussian mixture, five per class, fitted on the principal components that hold 80 % of the
    variance.

    Parameters
    ----------
    X : (n, d)
    y : (n,) class names
    random_state : int
        Seed of the mixture.

    Returns
    -------
    float

    References
    ----------
    Y. Li et al., Ranking neural checkpoints, CVPR 2021.
    C. Nguyen et al., LEEP: a new measure to evaluate transferability of learned representations, ICML 2020.
    """
    X, y = _checked(X, y)
    classes, codes = np.unique(y, return_inverse=True)
    reduced = PCA(_ENERGY, svd_solver="full").fit_transform(X.astype(np.float64))
    components = min(_COMPONENTS_A_CLASS * len(classes), len(X))
    mixture = GaussianMixture(components, covariance_type="diag", reg_covar=1e-6, random_state=random_state)
    posterior = mixture.fit(reduced).predict_proba(reduced)  # (n, v)
    joint = np.zeros((len(classes), components))
    np.add.at(joint, codes, posterior)
    conditional = joint / np.maximum(joint.sum(axis=0), 1e-300)  # (k, v): P(y | v)
    likelihood = np.einsum("nv,nv->n", posterior, conditional[codes])
    return float(np.mean(np.log(np.maximum(likelihood, 1e-300))))


SCORES = {"log_me": log_me, "h_score": h_score, "n_leep": n_leep}


def _checked(X: np.ndarray, y: np.ndarray, may_be_numbers: bool = False) -> tuple[np.ndarray, np.ndarray]:
    y = np.asarray(y)
    if y.dtype.kind == "f" and not may_be_numbers:
        raise FeatxError("this score is of classes; the labels are numbers. Use 'log_me'")
    if y.dtype.kind == "f":
        return check_X_y(X, y, dtype=[np.float64, np.float32], y_numeric=True)
    if len(np.unique(y)) < 2:
        raise FeatxError(f"at least two classes are needed to tell apart; there is only {str(y[0])!r}")
    X, _ = check_X_y(X, np.zeros(len(y)), dtype=[np.float64, np.float32])
    return X, y
