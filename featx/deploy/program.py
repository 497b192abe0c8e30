"""A fitted pipeline as one torch module: pixels, an image or rows in; labels and probabilities, or values, out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from sklearn.pipeline import FeatureUnion, Pipeline
from torch import Tensor, nn

from featx.backbones import INPUT, Backbone, Pool, Preprocessing, Tap, trace_of
from featx.deploy.ensembles import ENSEMBLES
from featx.deploy.estimators import ESTIMATORS, FINE_TUNED, named
from featx.deploy.resize import ResizedAndCropped
from featx.deploy.steps import STEPS, Columns, SideBySide
from featx.errors import BackboneError, ModelError, Parameter, listed, nearest
from featx.forward import backbone_of
from featx.learn.features import ImageFeatures, StoredFeatures
from featx.store import Recipe

Input = Literal["pixels", "image", "rows"]
INPUTS: tuple[Input, ...] = ("pixels", "image", "rows")
# What does nearly the same as a class that cannot be exported, and can.
_NEAREST = {
    "ElasticNet": "Ridge",
    "ExtraTreesClassifier": "SVC",
    "GaussianNB": "NearestCentroid",
    "GradientBoostingClassifier": "SVC",
    "GradientBoostingRegressor": "SVR",
    "HistGradientBoostingClassifier": "SVC",
    "HistGradientBoostingRegressor": "SVR",
    "KernelPCA": "PCA",
    "KNeighborsRegressor": "SVR",
    "Lasso": "Ridge",
    "LinearDiscriminantAnalysis": "LogisticRegression",
    "LinearRegression": "Ridge",
    "LinearSVR": "SVR",
    "LogisticRegressionCV": "LogisticRegression",
    "NuSVC": "SVC",
    "QuadraticDiscriminantAnalysis": "NearestCentroid",
    "QuantileTransformer": "PowerTransformer",
    "RandomForestClassifier": "SVC",
    "RandomForestRegressor": "SVR",
    "SGDClassifier": "LogisticRegression",
    "SGDRegressor": "Ridge",
}


class Layers:
    """The layers that a model reads, side by side as the columns of one matrix of rows.

    Attributes
    ----------
    steps : fitted StoredFeatures and ImageFeatures of the model
    spans : {full name of a layer: (first column, column behind the last)}
    """

    def __init__(self) -> None:
        self.steps: list[Any] = []
        self.spans: dict[str, tuple[int, int]] = {}
        self._taps: dict[str, dict[str, Any] | None] = {}  # None for the normalised images themselves

    @property
    def recipe(self) -> Recipe | None:
        """The recipe of the first features; the network and the preprocessing are those of all."""
        return self.steps[0].recipe_ if self.steps else None

    @property
    def width(self) -> int:
        return max((stop for _, stop in self.spans.values()), default=0)

    def columns(self, features: Any, boundary: str | None = None) -> nn.Module:
        """The module that picks the columns of some features.

        Parameters
        ----------
        features : StoredFeatures or ImageFeatures
        boundary : str, optional
            "input" stands for the normalised images in place of the features.
        """
        recipe = features.recipe_
        if self.recipe is not None and recipe.views != self.recipe.views:
            raise ModelError("a model of layers in different views cannot be exported; choose one view for all")
        if self.recipe is not None and (
            recipe.weights_sha256 != self.recipe.weights_sha256 or recipe.preprocessing != self.recipe.preprocessing
        ):
            raise ModelError(
                f"a model of several networks ({self.recipe.backbone} and {recipe.backbone}) cannot be exported as one "
                "program; export a model of each"
            )
        self.steps.append(features)
        taps: dict[str, dict[str, Any] | None] = dict(recipe.view_taps)
        widths = features.widths_
        if boundary == INPUT:
            taps, widths = {INPUT: None}, {INPUT: 3 * math.prod(recipe.preprocessing["crop"])}
        for name, tap in taps.items():
            if name not in self.spans:
                self.spans[name] = self.width, self.width + widths[name]
                self._taps[name] = tap
        return Columns(np.concatenate([np.arange(*self.spans[name]) for name in taps]))

    def network(self) -> nn.Module:
        """The backbone up to these layers: pixels (b, h, w, 3) uint8 -> rows (b, width) float32."""
        features, recipe = self.steps[0], self.recipe
        assert recipe is not None
        backbone = backbone_of(recipe, features.handed_over)
        taps = {name: Tap.from_dict(tap) for name, tap in self._taps.items() if tap is not None}
        network = Network(backbone, Preprocessing.from_dict(recipe.preprocessing), list(self._taps), taps)
        return network if recipe.views is None else Views(network, recipe.n_views)


class Network(nn.Module):
    """Normalisation, the backbone's layers and their pools; the columns are in the order of `names`."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: Backbone, preprocessing: Preprocessing, names: Sequence[str], taps: dict[str, Tap]
    ) -> None:
        super().__init__()
        self.names = list(names)
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(-1, 1, 1))
        self.layers: nn.Module | None = None
        if taps:
            trace = trace_of(backbone)
            if not trace.compilable:
                raise BackboneError(
                    f"{backbone.name} cannot be exported: its forward depends on its input, so it is no graph of "
                    "operations; featx runs it with hooks"
                )
            self.layers = trace.tapped([tap.node for tap in taps.values()], [Pool(tap) for tap in taps.values()])
            self.layers.requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        images = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        rows = list(self.layers(images)) if self.layers is not None else []
        columns = [images if name == INPUT else rows.pop(0) for name in self.names]
        return torch.cat([each.flatten(1) for each in columns], 1)


class Views(nn.Module):
    """The means of the rows of v views: pixels (b, v, h, w, 3) -> (b, d), added in the order of the views."""

    def __init__(self, network: Network, n_views: int) -> None:
        super().__init__()
        self.network, self.n_views = network, n_views

    def forward(self, pixels: Tensor) -> Tensor:
        rows = self.network(pixels.flatten(0, 1)).unflatten(0, (-1, self.n_views))
        total = rows[:, 0]
        for view in range(1, self.n_views):
            total = total + rows[:, view]
        return total / self.n_views


class Program(nn.Module):
    """The whole computation; `forward` returns one tensor for each name in `outputs`.

    Attributes
    ----------
    input : "pixels", "image" or "rows"
    outputs : names of the tensors, ("label", "probabilities"), ("label", "scores") or ("values",)
    layers : Layers
    d : number of columns of a row
    """

    def __init__(self, model: Any, input: Input) -> None:
        super().__init__()
        self.input, self.layers = input, Layers()
        body = module_of(model, self.layers)
        self.d = self.layers.width or _n_features(model)
        self.front = self._front()
        self.body = body
        self.outputs = _outputs(model)
        self.eval()

    def _front(self) -> nn.Module:
        if self.input == "rows":
            if INPUT in self.layers.spans:
                raise ModelError(
                    "a model that is fine-tuned from its input reads images: export it with ",
                    Parameter("input", "pixels"),
                )
            return nn.Identity()
        if self.layers.recipe is None:
            raise ModelError(
                "this model has no StoredFeatures or ImageFeatures, so it predicts rows of features: export it with ",
                Parameter("input", "rows"),
            )
        if self.layers.recipe.is_imported:
            raise ModelError(
                f"this model reads imported features ({self.layers.recipe.backbone}), and no network is known that "
                "computes them of images: export it with ",
                Parameter("input", "rows"),
            )
        network = self.layers.network()
        if self.input == "pixels":
            return network
        recipe = self.layers.recipe
        return nn.Sequential(ResizedAndCropped(Preprocessing.from_dict(recipe.preprocessing), recipe.views), network)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = self.body(self.front(x))
        return tuple(getattr(outputs, name) for name in self.outputs)


def _outputs(model: Any) -> tuple[str, ...]:
    if not hasattr(model, "classes_"):
        return ("values",)
    return "label", "probabilities" if hasattr(model, "predict_proba") else "scores"


def _n_features(model: Any) -> int:
    """Number of columns that a model of rows reads."""
    steps = [step for _, step in model.steps] if isinstance(model, Pipeline) else [model]
    return next(int(step.n_features_in_) for step in steps if hasattr(step, "n_features_in_"))


def module_of(fitted: Any, layers: Layers) -> nn.Module:
    """The module of a fitted estimator, transformer or pipeline; rows of all layers -> Outputs, or rows.

    Raises
    ------
    ModelError
        A class cannot be exported; the nearest that can is named.
    """

    def translate(part: Any) -> nn.Module:
        return module_of(part, layers)

    name, library = named(fitted), type(fitted).__module__.partition(".")[0]
    if hasattr(fitted, "best_estimator_"):
        return translate(fitted.best_estimator_)
    if isinstance(fitted, StoredFeatures | ImageFeatures):
        return layers.columns(fitted)
    if fitted is None or isinstance(fitted, str) and fitted == "passthrough":
        return nn.Identity()
    if isinstance(fitted, Pipeline):
        return nn.Sequential(*(translate(step) for _, step in fitted.steps))
    if isinstance(fitted, FeatureUnion):
        weights = fitted.transformer_weights or {}
        parts = [(name, part) for name, part in fitted.transformer_list if part != "drop"]
        return SideBySide([translate(part) for _, part in parts], [float(weights.get(name, 1)) for name, _ in parts])
    if library in ("sklearn", "featx"):
        if name in FINE_TUNED:
            if fitted.features_.recipe_.n_views > 1:
                raise ModelError(f"{name} on several views of each image cannot be exported; fit it on a store of one")
            columns = layers.columns(fitted.features_, fitted.boundary)
            return nn.Sequential(columns, FINE_TUNED[name](fitted))
        if name in STEPS:
            return STEPS[name](fitted)
        if name in ESTIMATORS:
            return ESTIMATORS[name](fitted)
        if name in ENSEMBLES:
            return ENSEMBLES[name](fitted, translate)
    raise ModelError(_refusal(fitted))


def _refusal(fitted: Any) -> str:
    name = named(fitted)
    if name in _NEAREST:
        return f"{name} cannot be exported; {_NEAREST[name]} is the nearest that can"
    kind = STEPS if hasattr(fitted, "transform") and not hasattr(fitted, "predict") else {**ESTIMATORS, **ENSEMBLES}
    return f"{name} cannot be exported{nearest(name, kind)}; {listed(sorted(kind), 30)} can"
