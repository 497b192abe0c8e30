"""`Align`: make features of training images look like those of another domain, another hospital's images for example.

No labels of the target domain are used. The step stands right behind StoredFeatures, whose rows tell their store.
"""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

import numpy as np
from scipy import linalg
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.covariance import empirical_covariance, ledoit_wolf, shrunk_covariance
from sklearn.utils.validation import check_is_fitted

from featx.errors import FeatxError, LayerError, Parameter, RecipeError, RowsDifferWarning, listed, warn
from featx.learn._sklearn import Interval, StrOptions, fit_context
from featx.learn.features import FeatureRows, Origin, StoredFeatures
from featx.learn.lazy_rows import LazyRows
from featx.store import FeatureStore, Recipe, rounding_note

METHODS = ("scaler", "coral", "linear_ot")


class Align(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Align rows of a source domain, which has labels, with a target domain, which needs none.

    With means m and covariances C of the source (s) and the target (t), a source row x becomes::

        "scaler"       (x - m_s) / sqrt(diag C_s)
        "coral"        m_t + (x - m_s) C_s^(-1/2) C_t^(1/2)
        "linear_ot"    m_t + (x - m_s) A,    A = C_s^(-1/2) (C_s^(1/2) C_t C_s^(1/2))^(1/2) C_s^(-1/2)

    A row of the target domain stays as it is, except with "scaler": then it becomes (x - m_t) / sqrt(diag C_t).

    Parameters
    ----------
    target_store : FeatureStore
        Images of the target domain, in the layers of the StoredFeatures before this step.
    method : "scaler", "coral" or "linear_ot"
        "coral" whitens the source and gives it the covariance of the target. "linear_ot" does the same and moves rows
        as little as possible: it is the optimal transport map between the two normal distributions.
    target_keys : (m,) or (m, 1) int64, optional
        Keys of the target images to align with; by default all. Images on which a model will be scored are left out.
    shrinkage : "auto" or float, in [0, 1]
        Of the covariances of "coral" and "linear_ot" towards a multiple of the identity; "auto" is the amount of Ledoit
        and Wolf, for standardised columns. With 0, directions without variance are not inverted.

    Attributes
    ----------
    source_ : str
        Identity of the store that was fitted on.
    layers_ : tuple of str
        The layers that were fitted on.
    source_mean_, target_mean_ : (d,) float64
    source_scale_, target_scale_ : (d,) float64
        Standard deviations, or 1 where they are 0; of "scaler".
    map_ : (d, d) float64
        The matrix by which centred rows are multiplied; of "coral" and "linear_ot".

    Notes
    -----
    Which domain a row is of is known from its store: rows of the store that was fitted on are source rows, those of any
    other store and of new images are target rows. So a cross-validation on the source aligns held-out source rows by
    the map of its training rows, in scikit-learn's searches too, and a fitted pipeline predicts target images. To
    predict the target's keys, `pipeline.set_params(storedfeatures__store=target_store)`.

    References
    ----------
    B. Sun, J. Feng and K. Saenko, Return of frustratingly easy domain adaptation, AAAI 2016 (CORAL). M. Knott and C. S.
    Smith, On the optimal mapping of distributions, J. Optim. Theory Appl. 43, 1984. R. Flamary, K. Lounici and A.
    Ferrari, Concentration bounds for linear Monge mapping estimation and optimal transport domain adaptation,
    arXiv:1905.10155, 2019. O. Ledoit and M. Wolf, A well-conditioned estimator for large-dimensional covariance
    matrices, J. Multivariate Anal. 88, 2004.

    Examples
    --------
    >>> pipe = make_pipeline(StoredFeatures(source), Align(target), StandardScaler(), SVC())    # doctest: +SKIP
    >>> pipe.fit(source.X, source.y).predict(["their/image.png"])    # doctest: +SKIP
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "method": [StrOptions(set(METHODS))],
        "shrinkage": [StrOptions({"auto"}), Interval(Real, 0, 1, closed="both")],
    }

    def __init__(
        self,
        target_store: FeatureStore,
        method: str = "coral",
        *,
        target_keys: np.ndarray | None = None,
        shrinkage: str | float = "auto",
    ) -> None:
        self.target_store = target_store
        self.method = method
        self.target_keys = target_keys
        self.shrinkage = shrinkage

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: np.ndarray, y: object = None) -> Align:
        """Estimate means and covariances of the source rows and the target rows.

        Parameters
        ----------
        X : (n, d)
            Source rows as StoredFeatures gives them.
        y : ignored

        Raises
        ------
        FeatxError
            X does not come from StoredFeatures, or comes from the target store; there are fewer than two images of a
            domain; rows contain NaN or inf.
        LayerError
            The target store does not have a layer.
        RecipeError
            Rows of the target store have another meaning; the differences are named.

        Warns
        -----
        RowsDifferWarning
            Rows of the target store are rounded differently.
        """
        origin = _origin_of(X)
        if origin.store is None:
            raise FeatxError("Align is fitted on rows of a store; X holds features of images: extract them first")
        if not isinstance(self.target_store, FeatureStore):
            raise FeatxError(f"target_store is a featx.FeatureStore; got {type(self.target_store).__name__}")
        if origin.store == self.target_store.identity:
            raise FeatxError(
                "X are rows of the target store itself; a domain is a store of its own: extract each from its own "
                "folder or manifest"
            )
        views = origin.recipe.views or []
        view = views[0] if len(views) == 1 else "mean"
        if note := check_target(self.target_store, origin.recipe, view):
            warn(note, RowsDifferWarning)
        source = _finite("source", X)
        target = _finite("target", _target_rows(self.target_store, origin.recipe.layers, view, self.target_keys))
        self.source_, self.layers_, self.n_features_in_ = origin.store, origin.recipe.layers, X.shape[1]
        self.source_mean_, self.target_mean_ = source.mean(axis=0), target.mean(axis=0)
        if self.method == "scaler":
            self.source_scale_, self.target_scale_ = _scale(source), _scale(target)
            return self
        C_s, C_t = (_covariance(rows, self.shrinkage) for rows in (source, target))  # (d, d)
        self.map_ = (_coral if self.method == "coral" else _linear_ot)(C_s, C_t)
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Align rows of the store that was fitted on; rows of the target domain stay, or are standardised.

        Parameters
        ----------
        X : (n, d)
            Rows as StoredFeatures gives them.

        Returns
        -------
        (n, d) float32
        """
        check_is_fitted(self)
        origin = _origin_of(X)
        if origin.recipe.layers != self.layers_:
            raise FeatxError(f"Align was fitted on {'+'.join(self.layers_)}; got {'+'.join(origin.recipe.layers)}")
        rows = np.asarray(X)
        is_source = origin.store == self.source_
        if self.method == "scaler":
            mean, scale = (
                (self.source_mean_, self.source_scale_) if is_source else (self.target_mean_, self.target_scale_)
            )
            return ((rows - mean) / scale).astype(np.float32)
        if not is_source:
            return rows.astype(np.float32)
        return ((rows - self.source_mean_) @ self.map_ + self.target_mean_).astype(np.float32)


def _origin_of(X: object) -> Origin:
    """The origin of rows; raises FeatxError if they are not as StoredFeatures gives them."""
    if not isinstance(X, FeatureRows | LazyRows) or X.origin is None or X.shape[1:] != (X.origin.width,):
        raise FeatxError(
            "Align stands right behind StoredFeatures, whose rows tell which store they are of; X is "
            f"{type(X).__name__} of another step"
        )
    return X.origin


def check_target(target_store: FeatureStore, recipe: Recipe, view: str = "mean") -> str:
    """How rows of the target store are rounded differently from those of the source recipe, or "".

    Parameters
    ----------
    view : of the target store, as StoredFeatures takes it

    Raises
    ------
    LayerError
        The target store does not have a layer of the recipe, or the view.
    RecipeError
        Rows of the target store have another meaning.
    """
    name = target_store.path.name
    where = ("in the source", f"in {name}")
    # another network has other layer names: compare networks first
    differences = recipe.some([]).other_meaning(target_store.recipe.some([]).of_view(view), where)
    if not differences:
        try:
            target = target_store.recipe.only(list(recipe.layers)).of_view(view)
        except LayerError as error:
            raise LayerError(f"the target {name} needs the layers of the source: ", *error.parts) from error
        differences = recipe.other_meaning(target, where)
    if differences:
        raise RecipeError(
            f"the target was made with other settings: {'; '.join(differences)}",
            *recipe.like_hint("; extract its images with ", "SOURCE.h5"),
        )
    return rounding_note(target, recipe, (name, "the source"))


def _target_rows(store: FeatureStore, layers: tuple[str, ...], view: str, keys: object) -> np.ndarray:
    """(m, d) rows of the target images to align with."""
    X = store.X if keys is None else np.asarray(keys)
    if not X.size:
        raise FeatxError("there are no target images to align with; ", Parameter("target_keys"), " is empty")
    return StoredFeatures(store, list(layers), view=view).fit().transform(X.reshape(-1, 1))


def _finite(domain: str, rows: np.ndarray) -> np.ndarray:
    """(n, d) float64; raises FeatxError if there are too few rows, or one is not finite."""
    if len(rows) < 2:
        raise FeatxError(f"a domain needs two images or more to align; the {domain} has {len(rows)}")
    values = np.asarray(rows, np.float64)
    if not np.isfinite(values).all():
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        raise FeatxError(
            f"features are finite numbers; {len(bad):,} rows of the {domain} hold inf or NaN, number {listed(bad)}; "
            "leave them out, or extract again in float32"
        )
    return values


def _scale(rows: np.ndarray) -> np.ndarray:
    """(d,) standard deviations, or 1 where a column is constant."""
    scale = rows.std(axis=0)
    return np.where(np.ptp(rows, axis=0) == 0, 1.0, scale)


def _covariance(rows: np.ndarray, shrinkage: str | float) -> np.ndarray:
    """(d, d) covariance, shrunk; as skada's CORAL estimates it."""
    if shrinkage == "auto":
        scale = _scale(rows)
        return ledoit_wolf((rows - rows.mean(axis=0)) / scale)[0] * scale[:, None] * scale
    return shrunk_covariance(empirical_covariance(rows), shrinkage=shrinkage)


def _coral(C_s: np.ndarray, C_t: np.ndarray) -> np.ndarray:
    """(d, d): C_s^(-1/2) C_t^(1/2)"""
    return _power(C_s, -0.5) @ _power(C_t, 0.5)


def _linear_ot(C_s: np.ndarray, C_t: np.ndarray) -> np.ndarray:
    """(d, d): C_s^(-1/2) (C_s^(1/2) C_t C_s^(1/2))^(1/2) C_s^(-1/2)"""
    root, inverse_root = _power(C_s, 0.5), _power(C_s, -0.5)
    return inverse_root @ _power(root @ C_t @ root, 0.5) @ inverse_root


def _power(C: np.ndarray, exponent: float) -> np.ndarray:
    """A power of a symmetric positive semidefinite matrix; directions without variance get 0."""
    values, vectors = linalg.eigh(C)
    is_positive = values > len(C) * np.finfo(np.float64).eps * values[-1]
    powers = np.where(is_positive, np.where(is_positive, values, 1.0) ** exponent, 0.0)
    return (vectors * powers) @ vectors.T
