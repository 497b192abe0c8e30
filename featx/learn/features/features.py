"""`StoredFeatures` and `ImageFeatures`, the first step of a pipeline: image keys or images to a matrix of features."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from copy import copy
from types import ModuleType
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from featx.errors import (
    FeatxError,
    ImageError,
    KeysError,
    RecipeError,
    RowsDifferWarning,
    UnavailableBackbone,
    UnreadableImages,
    warn,
)
from featx.learn.features.inputs import as_images, items_of, keys_of
from featx.learn.features.rows import FeatureRows, Origin
from featx.learn.lazy_rows import LazyRows, is_lazy
from featx.store import FeatureStore, Recipe, rounding_note

_PART_BYTES = 64 * 2**20  # of rows of all views that are read at once


def _forward() -> ModuleType:
    """The forward pass, imported here only: it takes seconds, and only features of images need it."""
    from featx import forward

    return forward


class _Features(TransformerMixin, BaseEstimator):
    """The base of both transformers: features of images by the recipe in `recipe_`."""

    recipe_: Recipe
    _backbone: Any = None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False  # one column of keys, or images
        tags.input_tags.string = True
        tags.no_validation = True
        return tags

    def _set_recipe(self, recipe: Recipe) -> None:
        self.recipe_ = recipe
        self.n_features_in_ = 1
        self.n_features_out_ = sum(self.widths_.values())

    @property
    def layers_(self) -> tuple[str, ...]:
        """Full names of the layers, "node:pool", in the order of the columns."""
        return self.recipe_.layers

    @property
    def layer_(self) -> str:
        """The names joined: "layer3:avg", or "layer3:avg+layer4:avg"."""
        return "+".join(self.layers_)

    @property
    def widths_(self) -> dict[str, int]:
        """{full name: number of columns} of the layers."""
        return {name: math.prod(tap["shape"]) for name, tap in self.recipe_.view_taps.items()}

    @property
    def _n_features_out(self) -> int:
        return self.n_features_out_

    def get_feature_names_out(self, input_features: object = None) -> np.ndarray:
        """Names of the d columns: "layer3:avg_0", "layer3:avg_1" ...

        Parameters
        ----------
        input_features : ignored

        Returns
        -------
        (d,) object array of str
        """
        check_is_fitted(self, "recipe_")
        return np.array([f"{name}_{i}" for name, width in self.widths_.items() for i in range(width)], dtype=object)

    def _blocks(self, matrix: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Every layer with its own columns of a matrix, (..., its width)."""
        start = 0
        for name, width in self.widths_.items():
            yield name, matrix[..., start : start + width]
            start += width

    def _features_of(self, images: Sequence[Any], device: str) -> FeatureRows:
        """(n, d) float32 features of images; raises UnreadableImages, which names those that cannot be read."""
        matrix = self._through_recipe(images, device)
        return FeatureRows.of(matrix.reshape(len(matrix), -1), Origin(self.recipe_, None))

    def _through_recipe(self, images: Sequence[Any], device: str, each_view: bool = False) -> np.ndarray:
        """(n, v, d) float32 features of each view, or (n, 1, d) their means."""
        self.recipe_.require_network()
        # a calibrated or voting ensemble computes the same matrix once per member
        key = _content_key(self.recipe_, images)
        if key is None:
            return self._computed(images, device, each_view)
        # two modules of one class with the same weights may compute different things
        of_backbone = (self.handed_over, key, each_view)
        return _forward().matrix_of(of_backbone, lambda: self._computed(images, device, each_view))

    def _computed(self, images: Sequence[Any], device: str, each_view: bool) -> np.ndarray:
        n_views = self.recipe_.n_views
        matrix = np.empty((0, n_views if each_view else 1, sum(self.widths_.values())), np.float32)
        failures: dict[int, ImageError] = {}
        for block in _forward().stream(images, self.recipe_, self.handed_over, device=device):
            if not len(matrix):  # allocated once the first batch has shown that rows are as wide as recorded
                matrix = np.empty((len(images), *matrix.shape[1:]), np.float32)
            if len(block.indices):
                for name, columns in self._blocks(matrix):
                    rows = block.rows[name].reshape(len(block.indices), n_views, -1)
                    columns[block.indices] = rows if each_view else _means(rows)
            failures |= block.failures
        if failures:
            position, reason = next(iter(failures.items()))
            raise UnreadableImages(
                f"{len(failures):,} of {len(images):,} images cannot be read; the first, number {position} "
                f"({_name(images[position])}): {reason}. Leave them out",
                failures,
            )
        return matrix

    @property
    def handed_over(self) -> Any:
        """The backbone set by `hand_over`, or None."""
        return self._backbone

    def hand_over(self, backbone: Any) -> None:
        """Set the Backbone that computes features of images; None for the one that the recipe names.

        Copies and pickles keep it.
        """
        if backbone is not None:
            self._backbone = backbone
        elif self._backbone is not None:
            del self._backbone

    def __getstate__(self) -> dict[str, Any]:
        """The attributes that a model file may hold: all but the network."""
        return {name: value for name, value in super().__getstate__().items() if name != "_backbone"}

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """For copies and pickles, with the network."""
        make, arguments, state, *rest = super().__reduce_ex__(protocol)
        if self._backbone is not None:
            state = state | {"_backbone": self._backbone}
        return make, arguments, state, *rest


def _means(rows: np.ndarray) -> np.ndarray:
    """(m, v, d) -> (m, 1, d), computed in float32, in the order of the views."""
    if rows.shape[1] == 1:
        return rows
    total = rows[:, 0].astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # whoever cannot use NaN and inf refuses them
        for view in range(1, rows.shape[1]):
            total += rows[:, view]
    return (total / rows.shape[1]).astype(rows.dtype)[:, None]


def _content_key(recipe: Recipe, images: Sequence[Any]) -> tuple[str, ...] | None:
    """A key of the recipe and the images' contents; None if an image cannot be read."""
    from featx.images import content_digest

    try:
        return (recipe.to_json(), *(content_digest(image).hex() for image in images))
    except ImageError:  # the stream says which, and why
        return None


class StoredFeatures(_Features):
    """Turn image keys into the rows of a layer of a store; new images go through the store's recipe.

    Parameters
    ----------
    store : FeatureStore or Recipe
        A loaded model carries the recipe only: it transforms images, and refuses keys.
    layer : str or list of str, optional
        "layer3:avg"; "layer3" or "penultimate" if that is unambiguous. By default the store's only layer. With a list,
        the columns of several layers stand side by side, in its order; images go through the network once.
    device : "auto", "cpu" or "cuda"
        Where features of images are computed.
    view : str, default "mean"
        Of a store with several views of each image: "mean" for the mean of their rows, or the name of one of them,
        "center" for example. New images are seen in the same views.

    Attributes
    ----------
    layers_ : tuple of full names, in the order of the columns
    layer_ : str, the names joined, "layer3:avg+layer4:avg"
    recipe_ : Recipe, of these layers and views
    n_features_out_ : int, d

    Examples
    --------
    >>> pipe = make_pipeline(StoredFeatures(store), StandardScaler(), SVC())        # doctest: +SKIP
    >>> grid = {"storedfeatures__layer": ["layer3", "layer4", ["layer3", "layer4"]]}    # doctest: +SKIP
    >>> GridSearchCV(pipe, grid).fit(store.X, store.y)    # doctest: +SKIP
    """

    def __init__(
        self,
        store: FeatureStore | Recipe,
        layer: str | Sequence[str] | None = None,
        device: str = "auto",
        view: str = "mean",
    ) -> None:
        self.store = store
        self.layer = layer
        self.device = device
        self.view = view

    def fit(self, X: object = None, y: object = None) -> StoredFeatures:
        """Look up the layers; nothing is learned.

        Raises
        ------
        LayerError
            The store does not have a layer, has several and none was chosen, or one is named twice; or it does not have
            the view.
        """
        if not isinstance(self.store, FeatureStore | Recipe):
            raise FeatxError(f"store is a featx.FeatureStore; got {type(self.store).__name__}")
        recipe = self.store if isinstance(self.store, Recipe) else self.store.recipe
        self._set_recipe(recipe.only(self.layer).of_view(self.view))
        if isinstance(self.store, FeatureStore) and self.store.backbone is not None:
            self.hand_over(self.store.backbone)
        elif self._backbone is not None and self._backbone.weights_sha256 != recipe.weights_sha256:
            self.hand_over(None)  # it was of another store
        return self

    @property
    def handed_over(self) -> Any:
        if self._backbone is None and isinstance(self.store, FeatureStore):
            return self.store.backbone
        return self._backbone

    def _computed(self, images: Sequence[Any], device: str, each_view: bool) -> np.ndarray:
        try:
            return super()._computed(images, device, each_view)
        except UnavailableBackbone as error:
            if isinstance(self.store, Recipe):
                raise
            how = "set the store's attribute `backbone` to it, a featx.Backbone(..., preprocessing=...)"
            raise UnavailableBackbone(error.reason, how) from error

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"view": "mean"} | state)  # model files from before there were views

    def __sklearn_clone__(self) -> StoredFeatures:
        clone = super().__sklearn_clone__()
        if isinstance(self.store, Recipe):  # an open store has the backbone itself, or none is needed
            clone.hand_over(self._backbone)
        return clone

    def transform(self, X: object) -> Any:
        """Features of images.

        Parameters
        ----------
        X : (n,) or (n, 1)
            Integer keys from `store.X`, or images: paths, PIL images, uint8 arrays. If the store's features were
            imported, they cannot be computed of images; instead X may contain them, (n, d) numbers with d > 1, the
            columns of several layers side by side.

        Returns
        -------
        (n, d) FeatureRows, an array with an `origin`; of the store's type for keys, float32 for images. Rows of more
        than a quarter of the memory that the process may use stay in the store: they are LazyRows, which estimators of
        featx.learn read in blocks.

        Raises
        ------
        KeysError
            A key is not of this store.
        RecipeError
            The store has been replaced since `fit`, by one whose rows have another meaning; the differences are named.
        UnreadableImages
            Some images cannot be read.
        BackboneError
            The features were imported, or their network is not available; X contains images.

        Warns
        -----
        RowsDifferWarning
            The store has been replaced since `fit`, by one whose rows are rounded differently.
        """
        check_is_fitted(self, "recipe_")
        if self.recipe_.is_imported and (rows := _matrix_in(X)) is not None:
            return self._checked_rows(rows)
        items = items_of(X)
        if isinstance(items, list):
            return self._features_of(as_images(items), self.device)
        rows, origin = self._rows_of(items)
        width, dtype = self.n_features_out_, np.dtype(origin.recipe.dtype)
        if is_lazy(len(rows) * width * dtype.itemsize):
            return LazyRows(copy(self)._matrix, rows, width, dtype, origin)
        return FeatureRows.of(self._matrix(rows), origin)

    def _matrix(self, rows: np.ndarray) -> np.ndarray:
        """(m, d) rows of all layers."""
        if len(self.layers_) == 1:
            return self._stored(rows, self.layer_)
        assert isinstance(self.store, FeatureStore)
        matrix = np.empty((len(rows), self.n_features_out_), self.store.recipe.dtype)
        for name, columns in self._blocks(matrix):  # beside the matrix, the rows of one layer are held at most
            columns[:] = self._stored(rows, name)
        return matrix

    def _checked_rows(self, rows: np.ndarray) -> np.ndarray:
        """(n, d) rows of features in place of keys, as float32."""
        if rows.shape[1] != self.n_features_out_:
            raise KeysError(
                f"X is one column of keys, or rows of {self.layer_} with {self.n_features_out_:,} columns; got "
                f"{rows.shape[1]:,}"
            )
        return FeatureRows.of(rows.astype(np.float32), Origin(self.recipe_, None))

    def transform_views(self, X: object) -> np.ndarray:
        """Features of every view of images, for what is not linear in them; of one layer.

        Parameters
        ----------
        X : (n,) or (n, 1)
            As of `transform`; the same errors and warnings.

        Returns
        -------
        (n, v, d) array; v is 1 if there are no views
        """
        check_is_fitted(self, "recipe_")
        items = items_of(X)
        if isinstance(items, list):
            return self._through_recipe(as_images(items), self.device, each_view=True)
        rows, _ = self._rows_of(items)
        if self.recipe_.views is None:
            return self._stored(rows, self.layer_)[:, None]
        return self._stored_views(rows, self.layer_)

    def _rows_of(self, keys: np.ndarray) -> tuple[np.ndarray, Origin]:
        """Positions of keys in the store, whose recipe is compared with that of `fit`."""
        if isinstance(self.store, Recipe):
            inputs = "rows of features" if self.recipe_.is_imported else "images"
            raise KeysError(
                f"X contains image keys, but this model has no store to read their rows from; pass {inputs}, or "
                "set_params(...__store=featx.FeatureStore(path))"
            )
        recipe = self.store.recipe.only(self.layers_).of_view(self.view)
        if differences := self.recipe_.other_meaning(recipe):
            raise RecipeError(
                f"this model was fitted on a store made with other settings: {'; '.join(differences)}; fit it on this "
                "store"
            )
        if note := rounding_note(recipe, self.recipe_, (self.store.path.name, "the store of fit")):
            warn(note, RowsDifferWarning)
        return self.store.rows(keys_of(keys)), Origin(recipe, self.store.identity)

    def _stored(self, rows: np.ndarray, layer: str) -> np.ndarray:
        """(m, d) rows of one layer, the mean of the views; without views, consecutive rows are not copied, so a whole
        layer stays a memory map."""
        assert isinstance(self.store, FeatureStore)
        if self.recipe_.views is not None:
            matrix = np.empty((len(rows), self.widths_[layer]), self.store.recipe.dtype)
            size = max(1, _PART_BYTES // self.store.row_bytes(layer))
            for start in range(0, len(rows), size):
                part = slice(start, start + size)
                matrix[part] = _means(self._stored_views(rows[part], layer))[:, 0]
            return matrix
        in_order = len(rows) > 0 and len(rows) == rows[-1] - rows[0] + 1 and bool((np.diff(rows) == 1).all())
        taken = self.store[layer][rows[0] : rows[-1] + 1] if in_order else self.store.take(rows, layer)
        return np.asarray(taken).reshape(len(rows), self.widths_[layer])

    def _stored_views(self, rows: np.ndarray, layer: str) -> np.ndarray:
        """(m, v, d) rows of each view of one layer."""
        assert isinstance(self.store, FeatureStore)
        stored, views = self.store.recipe.views or [], self.recipe_.views or []
        taken = self.store.take(rows, layer).reshape(len(rows), len(stored), self.widths_[layer])
        return taken if views == stored else taken[:, [stored.index(view) for view in views]]


class ImageFeatures(_Features):
    """Compute features of images with a pretrained network; nothing is stored.

    Use it for a few images, or if a pipeline must start with images. For repeated use, extract once and use
    StoredFeatures.

    Parameters
    ----------
    backbone, layer, pool, weights, device, precision, batch_size
        As in `featx.extract`, for one layer.

    Attributes
    ----------
    layer_ : str, full name of the layer
    layers_ : tuple of str, with `layer_` alone
    recipe_ : Recipe
    n_features_out_ : int, d

    Examples
    --------
    >>> make_pipeline(ImageFeatures("resnet50"), SVC()).fit(paths, y)    # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: Any = "resnet50",
        layer: str = "penultimate",
        *,
        pool: str = "avg",
        weights: str | os.PathLike | None = "DEFAULT",
        device: str = "auto",
        precision: str = "auto",
        batch_size: int | str = "auto",
    ) -> None:
        self.backbone = backbone
        self.layer = layer
        self.pool = pool
        self.weights = weights
        self.device = device
        self.precision = precision
        self.batch_size = batch_size

    def fit(self, X: object, y: object = None) -> ImageFeatures:
        """Build the network and record the recipe; nothing is learned.

        Parameters
        ----------
        X : (n,) or (n, 1) paths, PIL images or uint8 arrays

        Raises
        ------
        BackboneError
            The network is unknown, or its weights are unavailable.
        LayerError
            The network does not have the layer.
        """
        backbone = _forward().as_backbone(self.backbone, self.weights)
        recipe = _forward().resolve_recipe(
            as_images(X),
            backbone=backbone,
            layers=[self.layer],
            pool=self.pool,
            device=self.device,
            precision=self.precision,
            engine="eager",
            batch_size=self.batch_size,
        )
        self._set_recipe(recipe.only(None))
        self.hand_over(backbone)
        return self

    def transform(self, X: object) -> np.ndarray:
        """Features of images.

        Parameters
        ----------
        X : (n,) or (n, 1) paths, PIL images or uint8 arrays

        Returns
        -------
        (n, d) float32

        Raises
        ------
        UnreadableImages
            Some images cannot be read.
        """
        check_is_fitted(self, "recipe_")
        return self._features_of(as_images(X), self.device)


def _matrix_in(X: Any) -> np.ndarray | None:
    """X if it is a table or an array of several columns of numbers, else None."""
    X = X.to_numpy() if hasattr(X, "to_numpy") else X
    is_matrix = isinstance(X, np.ndarray) and X.ndim == 2 and X.shape[1] > 1 and X.dtype.kind in "fiub"
    return X if is_matrix else None


def _name(image: object) -> str:
    return str(image) if isinstance(image, str | os.PathLike) else type(image).__name__
