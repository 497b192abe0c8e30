"""`FineTuner` and `FineTunerRegressor`: training the last part of a pretrained network on a layer that a store holds.

Keys go in, as into StoredFeatures. The part of the network before the boundary is never run again for stored images.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import fields
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import assert_all_finite, column_or_1d
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from featx.backbones import INPUT, Preprocessing, Tail
from featx.errors import BackboneError, Call, FeatxError, KeysError, LayerError, ModelError, Parameter, StoreError
from featx.forward import backbone_of, device_of
from featx.learn._sklearn import Interval, StrOptions, fit_context
from featx.learn.features import StoredFeatures, items_of, keys_of
from featx.learn.selection import Groups, group_numbers, groups_of, hold_out
from featx.progress import TrainingProgress, trained
from featx.store import FeatureStore
from featx.transfer import checkpoints
from featx.transfer.augmentation import CHANGES, places_of
from featx.transfer.heads import fit_probe, start_head
from featx.transfer.rows import image_rows, images_of, stored_rows, transformed_rows
from featx.transfer.training import Data, Epoch, Network, Settings, State, begin, outputs_of, train

CROP = "crop"
_OF_RECIPE = ("weights_sha256", "preprocessing", "views", "engine", "precision", "dtype")  # decide the stored rows
_NOT_SETTINGS = ("store", "device", "checkpoint", "progress")


class _FineTuner(BaseEstimator):
    """The base of both estimators."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "head": [StrOptions({"probe", "zeros", "random"})],
        "epochs": [Interval(Integral, 0, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "optimizer": [StrOptions({"adamw", "sgd"})],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "layer_decay": [Interval(Real, 0, 1, closed="right")],
        "warmup": [Interval(Real, 0, 1, closed="left")],
        "max_norm": [Interval(Real, 0, None, closed="neither"), None],
        "mixup": [Interval(Real, 0, None, closed="left")],
        "augment": [StrOptions({*CHANGES, CROP}), None],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "groups": [str, None],
        "device": [StrOptions({"auto", "cpu", "cuda"})],
        "random_state": [Interval(Integral, 0, None, closed="left")],
        "checkpoint": [str, os.PathLike, None],
        "progress": ["boolean", callable],
    }
    _network: Network | None = None  # built of `weights_` when it is needed

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False  # one column of keys, or images
        tags.input_tags.string = True
        tags.no_validation = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_network"}

    def _fit(self, X: Any, y: np.ndarray, targets: torch.Tensor, n_outputs: int) -> None:
        """Fit the probe and the network.

        Parameters
        ----------
        y : (n,) labels, or float64 standardised
        targets : (n,) int64 numbers of classes, or (n,) float32
        """
        self._network = None
        features = self._features()
        settings = Settings(**{each.name: getattr(self, each.name) for each in fields(Settings)})
        network = _network_of(features, self.boundary, n_outputs, self.device)
        state = begin(network, settings, self.random_state)
        data = self._data(features, X, state.generator)
        if data.n != len(y):
            raise FeatxError(f"X and y have one entry for each image; got {data.n:,} and {len(y):,}")
        held_out = np.zeros(len(y), bool)
        if self.early_stopping:
            share, seed = self.validation_fraction, self.random_state
            held_out[hold_out(y, data.groups, share, seed, is_validation=True)[1]] = True
        learn = np.flatnonzero(~held_out)
        fingerprint = self._fingerprint(features, data, y)
        self.features_ = features
        with trained(self.progress) as show:
            if self.checkpoint is not None and Path(self.checkpoint).exists():
                checkpoints.read(Path(self.checkpoint), state, fingerprint)
            else:
                probe = None
                if self.head == "probe":
                    outputs = outputs_of(network.tail, data.rows, learn, data.n_views)
                    inputs = np.concatenate([part.numpy() for part in outputs])
                    together = None if data.groups is None else data.groups.of(learn)
                    weights = getattr(self, "class_weight", None)
                    probe = fit_probe(inputs, y[learn], together, weights, self.random_state)
                start_head(network.head, probe, self.head, self.random_state)

            def on_epoch(state: State) -> None:
                if self.checkpoint is not None:
                    checkpoints.write(Path(self.checkpoint), state, fingerprint)

            try:
                train(
                    state,
                    data,
                    targets,
                    held_out,
                    settings,
                    self._class_weights(y[learn]),
                    on_epoch=on_epoch,
                    show=show,
                )
            finally:
                if state.history:  # after an interrupt, too
                    self._keep(state)
        if self.checkpoint is not None:
            Path(self.checkpoint).unlink(missing_ok=True)
        if state.failure:
            reason = f"{state.failure}: training ended there, with the weights of epoch {state.best}; lower lr"
            warnings.warn(reason, ConvergenceWarning, stacklevel=4)

    def _features(self) -> StoredFeatures:
        """The stored layer of the boundary; of "input" any layer, whose recipe says what the images go through."""
        if not isinstance(self.store, FeatureStore):
            raise StoreError(f"store is a featx.FeatureStore to train on; got {type(self.store).__name__}")
        if self.store.recipe.is_imported:
            raise BackboneError(f"fine-tuning needs the network, and {self.store.path.name} has imported features")
        if self.boundary == INPUT:
            return StoredFeatures(self.store, self.store.layers[0], self.device).fit()
        whole = f"{self.boundary}:none"
        layer = whole if whole in self.store.layers else self.boundary
        try:
            return StoredFeatures(self.store, layer, self.device).fit()
        except LayerError as error:
            name = self.store.recipe.backbone
            how = Call("featx.extract", Parameter("backbone", name), Parameter("layers", whole))
            raise LayerError(*error.parts, "; to add it: ", how) from error

    def _data(self, features: StoredFeatures, X: Any, generator: torch.Generator) -> Data:
        """Rows by position in X, to train on and to score, and which images stay together."""
        recipe = features.recipe_
        if self.boundary == INPUT:
            images = images_of(features, X)
            preprocessing, views = Preprocessing.from_dict(recipe.preprocessing), recipe.views or ["center"]
            rows = learned = image_rows(images, preprocessing, views)
            if self.augment == CROP or len(views) > 1:
                change: Literal["crop", "view"] = "crop" if self.augment == CROP else "view"
                learned = image_rows(images, preprocessing, views, change, generator)
            n, keys = len(images), None if isinstance(items_of(X), list) else keys_of(X)
            positions = None if keys is None else self.store.rows(keys)
            tap = {"layout": "bchw"}
        else:
            if self.augment == CROP:
                raise FeatxError(
                    Parameter("augment", CROP), " crops images, which only boundary='input' reads; choose another"
                )
            rows, learned, positions = stored_rows(features, X, generator)
            n, tap = len(positions), recipe.taps[features.layer_]
        of_rows = None
        if self.augment in CHANGES:
            of_rows = partial(CHANGES[self.augment], places=places_of(tap["layout"]), generator=generator)
        groups = None
        if positions is not None:
            groups = groups_of(self.store, group_numbers(self.store, self.groups), allow_duplicates=False)
            groups = None if groups is None else groups.of(positions)
            if groups is None and len(np.unique(positions)) < len(positions):  # a bootstrap sample
                groups = Groups(positions, "different images")
        elif self.groups is not None:
            raise KeysError(
                f"groups={self.groups!r} is a column of the store, and X holds images: give their keys, store.X for "
                "example"
            )
        return Data(n, rows, learned, recipe.n_views, of_rows, positions, groups)

    def _fingerprint(self, features: StoredFeatures, data: Data, y: np.ndarray) -> dict[str, Any]:
        """Plain values that determine the training, for its checkpoint."""
        values = {name: value for name, value in self.get_params(deep=False).items() if name not in _NOT_SETTINGS}
        positions = data.positions
        images = np.arange(data.n) if positions is None else self.store.digests[positions]
        digest = checkpoints.digest_of(images, y.astype(str))
        recipe = features.recipe_
        of_recipe = {name: getattr(recipe, name) for name in _OF_RECIPE}
        return {**values, **of_recipe, "layer": features.layer_, "images": digest}

    def _class_weights(self, y: np.ndarray) -> torch.Tensor | None:
        return None

    def _keep(self, state: State) -> None:
        """Set the fitted attributes."""
        self.weights_ = safetensors.torch.save(state.best_weights)
        self.best_epoch_, self.n_iter_ = state.best, len(state.history) - 1
        columns = zip(*state.history, strict=True)
        self.history_ = {name: np.array(values) for name, values in zip(Epoch._fields, columns, strict=True)}
        self.n_features_in_ = 1
        state.network.load_weights(state.best_weights)
        self._network = state.network

    def _scores(self, X: Any) -> np.ndarray:
        """(n, k) float32 scores of keys or images."""
        check_is_fitted(self, "weights_")
        if self._network is None:
            self._network = self._loaded()
        features = copy(self.features_)
        if isinstance(self.store, FeatureStore):  # another one may have been set since `fit`
            features.store = self.store
        recipe = features.recipe_
        if self.boundary == INPUT:
            images = images_of(features, X)
            preprocessing = Preprocessing.from_dict(recipe.preprocessing)
            rows, n = image_rows(images, preprocessing, recipe.views or ["center"]), len(images)
        else:
            rows, n = transformed_rows(features, X)
        outputs = outputs_of(self._network, rows, np.arange(n), recipe.n_views)
        return np.concatenate([part.numpy() for part in outputs])

    def check_loaded(self) -> None:
        """Check the weights of a model that was loaded from a file, without building its network.

        Raises
        ------
        ModelError
            They are not a safetensors file of float32 numbers, or have no head with a row for each class.
        """
        if not hasattr(self, "weights_"):
            return
        weights, k = self._weights(), self._n_outputs
        others = [name for name, value in weights.items() if value.dtype != torch.float32]
        shapes = [tuple(weights[name].shape) if name in weights else () for name in ("head.weight", "head.bias")]
        if others or len(shapes[0]) != 2 or shapes[0][0] != k or shapes[1] != (k,):
            needed = f"needed are float32 numbers and a head of {k} rows; got {shapes[0]} and {shapes[1]}"
            raise ModelError(f"the weights of {type(self).__name__} are not those of its network: {needed}")

    def _weights(self) -> dict[str, torch.Tensor]:
        """The fitted weights, by name; raises ModelError if they are damaged."""
        try:
            return safetensors.torch.load(self.weights_)
        except (safetensors.SafetensorError, TypeError) as error:
            raise ModelError(f"the weights of {type(self).__name__} are damaged: {error}") from error

    def fitted_network(self) -> Network:
        """A copy of the tail and the head with the fitted weights, on the CPU: rows of the boundary -> scores."""
        check_is_fitted(self, "weights_")
        if self._network is None:
            self._network = self._loaded()
        return deepcopy(self._network).cpu().requires_grad_(False)

    def _loaded(self) -> Network:
        """The network, with the fitted weights; raises ModelError if they are not of this network."""
        network, weights = _network_of(self.features_, self.boundary, self._n_outputs, self.device), self._weights()
        wanted = {name: (tuple(value.shape), value.dtype) for name, value in network.named_parameters()}
        if others := {*wanted.items()} ^ {(name, (tuple(value.shape), value.dtype)) for name, value in weights.items()}:
            name = min(name for name, _ in others)
            raise ModelError(f"the weights of {type(self).__name__} are not those of its network: {name!r} differs")
        network.load_weights(weights)
        return network


class FineTuner(ClassifierMixin, _FineTuner):
    """A classifier that trains the last part of a pretrained network, the tail, on a layer that a store holds.

    Scores are linear in the penultimate layer. The part before `boundary` stays as it is and has been run already, so
    an epoch costs a fraction of one of the whole network.

    Parameters
    ----------
    store : FeatureStore
    boundary : str
        A layer that the store holds whole, with pool "none": "blocks.5". `featx.backbones.boundaries` lists the layers
        at which a network can be split. Or "input": the whole network is trained on the images themselves, which
        are read and decoded in each epoch.
    head : "probe", "zeros" or "random"
        The linear layer before training. "probe" is logistic regression on standardised features of the untouched
        tail, its C chosen by cross-validation: LP-FT, which changes pretrained features less. A feature is divided by
        at least 0.1 of the root mean variance of all: a large weight of one that hardly varies would make the first
        steps diverge.
    epochs : int, default 10
        0 for the probe alone.
    lr : float, default 1e-4
        The largest learning rate.
    optimizer : "adamw" or "sgd"
        "sgd" with Nesterov momentum 0.9.
    batch_size : int, default 32
    weight_decay : float, default 0.05
        Not applied to normalisation layers and biases.
    layer_decay : float, in (0, 1], default 1.0
        The rate of each part of the tail is this times the rate of the part after it.
    warmup : float, in [0, 1), default 0.1
        Share of the steps in which the rate rises linearly; then it falls along half a cosine to 0.
    max_norm : float or None, default 1.0
        Gradients of a larger norm are scaled down to it.
    label_smoothing : float, in [0, 1), default 0.0
    mixup : float, default 0.0
        The parameter of the Beta distribution by which pairs of rows are mixed at the boundary; 0 for none.
    augment : "brightness", "contrast", "posterize", "crop" or None
        Random change of each channel at the boundary (frozen feature augmentation); "crop", only with boundary "input",
        is a random crop of the image, flipped half of the time.
    early_stopping : bool, default False
        Hold out a part of the images, and keep the epoch that scores best on them.
    validation_fraction : float, in (0, 1), default 0.1
        Share of the images to hold out: stratified, and by whole groups.
    n_iter_no_change : int, default 5
        Stop after so many epochs without a better score.
    groups : str, optional
        A column of the store whose groups are held out as a whole. Images of the same content always are.
    class_weight : dict {label: weight} or "balanced", optional
    device : "auto", "cpu" or "cuda"
    random_state : int, default 0
        Seed of everything random. Two fits on one device give equal weights.
    checkpoint : path, optional
        A file in which the training is kept after each epoch, and from which a fit with the same settings goes on. It
        is removed at the end.
    progress : bool or callable(featx.TrainingProgress), default False
        Show a progress bar on stderr, or call this function after each minibatch.

    Attributes
    ----------
    classes_ : (k,) labels
    features_ : StoredFeatures, of the boundary
    weights_ : bytes, a safetensors file of all weights of tail and head
    history_ : dict of arrays of `n_iter_` + 1 numbers
        "epoch", "loss" (mean of the epoch), "score" (accuracy on the images held out, or nan) and "seconds". Epoch 0 is
        the network before training.
    best_epoch_ : int
        The epoch whose weights were kept.
    n_iter_ : int, number of epochs

    Notes
    -----
    Batch norms keep their statistics, and dropout is off. Rows are read in minibatches, so the layer may be larger than
    memory.

    If the store has several views of each image, an epoch trains on one view of each, drawn at random. The tail is not
    linear, so predictions average its outputs over all views, not the stored rows: scores are those of the mean of the
    views' penultimate layers, which the probe is fitted on, too.

    References
    ----------
    A. Kumar et al., Fine-tuning can distort pretrained features and underperform out-of-distribution, ICLR 2022
    (LP-FT).

    Examples
    --------
    >>> store = featx.extract("photos/", "maps.h5", "resnet50", "layer3:none")    # doctest: +SKIP
    >>> FineTuner(store, "layer3").fit(store.X, store.y)    # doctest: +SKIP
    """

    classes_: np.ndarray
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **_FineTuner._parameter_constraints,
        "label_smoothing": [Interval(Real, 0, 1, closed="left")],
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }

    def __init__(
        self,
        store: FeatureStore,
        boundary: str,
        *,
        head: str = "probe",
        epochs: int = 10,
        lr: float = 1e-4,
        optimizer: str = "adamw",
        batch_size: int = 32,
        weight_decay: float = 0.05,
        layer_decay: float = 1.0,
        warmup: float = 0.1,
        max_norm: float | None = 1.0,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        augment: str | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 5,
        groups: str | None = None,
        class_weight: dict | str | None = None,
        device: str = "auto",
        random_state: int = 0,
        checkpoint: str | os.PathLike | None = None,
        progress: bool | Callable[[TrainingProgress], None] = False,
    ) -> None:
        self.store = store
        self.boundary = boundary
        self.head = head
        self.epochs = epochs
        self.lr = lr
        self.optimizer = optimizer
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.layer_decay = layer_decay
        self.warmup = warmup
        self.max_norm = max_norm
        self.label_smoothing = label_smoothing
        self.mixup = mixup
        self.augment = augment
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.groups = groups
        self.class_weight = class_weight
        self.device = device
        self.random_state = random_state
        self.checkpoint = checkpoint
        self.progress = progress

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any) -> FineTuner:
        """Train the head and the tail.

        Parameters
        ----------
        X : (n,) or (n, 1) keys from `store.X`; images too if `boundary` is "input"
        y : (n,) labels of two or more classes

        Raises
        ------
        LayerError
            The boundary is not stored, is stored pooled, or the network cannot be split there.
        KeysError
            A key is not of this store.
        BackboneError
            The recorded network is not available.
        StoreError
            Rows of the boundary are infinite or NaN.

        Warns
        -----
        ConvergenceWarning
            The loss became infinite or NaN: training ended, and the best epoch so far was kept.
        """
        y = _labels(y)
        check_classification_targets(y)
        classes, codes = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise FeatxError(f"a classifier needs two or more classes; all labels are {str(classes[0])!r}")
        self.classes_ = classes
        y = y.astype(np.int64) if y.dtype.kind == "f" else y  # floats would be numbers to predict
        self._fit(X, y, torch.from_numpy(codes), len(classes))
        return self

    @property
    def _n_outputs(self) -> int:
        return len(self.classes_)

    def _class_weights(self, y: np.ndarray) -> torch.Tensor | None:
        if self.class_weight is None:
            return None
        weights = compute_class_weight(self.class_weight, classes=self.classes_, y=y)
        return torch.from_numpy(weights).float()

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores of the classes.

        Parameters
        ----------
        X : (n,) or (n, 1) keys, or images: paths, PIL images, uint8 arrays

        Returns
        -------
        (n, k) float32; (n,) for two classes, positive for the second
        """
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes.

        Parameters
        ----------
        X : (n,) or (n, 1) keys, or images

        Returns
        -------
        (n, k) float32, columns as `classes_`
        """
        return softmax(self._scores(X), axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each image.

        Parameters
        ----------
        X : (n,) or (n, 1) keys, or images

        Returns
        -------
        (n,) labels
        """
        return self.classes_[self._scores(X).argmax(axis=1)]


class FineTunerRegressor(RegressorMixin, _FineTuner):
    """A regressor that trains the last part of a pretrained network on a layer that a store holds; see `FineTuner`.

    The loss is the mean squared error of standardised y; the probe is ridge regression.

    Parameters
    ----------
    store, boundary, head, epochs, lr, optimizer, batch_size, weight_decay, layer_decay, warmup, max_norm, mixup
        As in `FineTuner`.
    augment, early_stopping, validation_fraction, n_iter_no_change, groups, device, random_state, checkpoint, progress
        As in `FineTuner`; the score is R^2.

    Attributes
    ----------
    features_, weights_, history_, best_epoch_, n_iter_
        As in `FineTuner`.
    mean_, scale_ : float, of y
    """

    label_smoothing = 0.0

    def __init__(
        self,
        store: FeatureStore,
        boundary: str,
        *,
        head: str = "probe",
        epochs: int = 10,
        lr: float = 1e-4,
        optimizer: str = "adamw",
        batch_size: int = 32,
        weight_decay: float = 0.05,
        layer_decay: float = 1.0,
        warmup: float = 0.1,
        max_norm: float | None = 1.0,
        mixup: float = 0.0,
        augment: str | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 5,
        groups: str | None = None,
        device: str = "auto",
        random_state: int = 0,
        checkpoint: str | os.PathLike | None = None,
        progress: bool | Callable[[TrainingProgress], None] = False,
    ) -> None:
        self.store = store
        self.boundary = boundary
        self.head = head
        self.epochs = epochs
        self.lr = lr
        self.optimizer = optimizer
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.layer_decay = layer_decay
        self.warmup = warmup
        self.max_norm = max_norm
        self.mixup = mixup
        self.augment = augment
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.groups = groups
        self.device = device
        self.random_state = random_state
        self.checkpoint = checkpoint
        self.progress = progress

    _n_outputs = 1

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any) -> FineTunerRegressor:
        """Train the head and the tail.

        Parameters
        ----------
        X : (n,) or (n, 1) keys from `store.X`; images too if `boundary` is "input"
        y : (n,) finite numbers

        Raises
        ------
        LayerError, KeysError, BackboneError, StoreError
            As in `FineTuner.fit`.

        Warns
        -----
        ConvergenceWarning
            As in `FineTuner.fit`.
        """
        y = _labels(y).astype(np.float64)
        assert_all_finite(y, input_name="y")
        self.mean_ = float(y.mean())
        self.scale_ = float(y.std()) or 1.0
        standardised = (y - self.mean_) / self.scale_
        self._fit(X, standardised, torch.from_numpy(standardised).float(), 1)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predicted values.

        Parameters
        ----------
        X : (n,) or (n, 1) keys, or images

        Returns
        -------
        (n,) float64
        """
        return self._scores(X)[:, 0].astype(np.float64) * self.scale_ + self.mean_


def _labels(y: Any) -> np.ndarray:
    """(n,) labels; raises FeatxError if there are none."""
    y = column_or_1d(y)
    if not len(y):
        raise FeatxError("X and y have no entries; at least one image is needed")
    return y


def _network_of(features: StoredFeatures, boundary: str, n_outputs: int, device: str) -> Network:
    """The tail of the recorded network and a head, on a device."""
    backbone = backbone_of(features.recipe_, features.handed_over)
    node = INPUT if boundary == INPUT else str(features.recipe_.taps[features.layer_]["node"])
    return Network(Tail(backbone, node), n_outputs).to(device_of(device)).to(memory_format=torch.channels_last)
