"""`compare`: which backbone and which of its layers, by a cross-validated linear probe on a sample of the images.

A sample is extracted with each backbone into stores that are kept. On every layer, the nearest neighbours of each image
predict its class, which is quick; the layers that do best at it get a probe.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featx.errors import BackboneError, FeatxError, Parameter, StoreError, nearest
from featx.learn.features import StoredFeatures
from featx.learn.scores import UNKNOWN, Interval, cv_interval
from featx.learn.selection import (
    Candidate,
    Experiment,
    Groups,
    HoldOut,
    Labels,
    cross_validated,
    define_experiment,
    group_numbers,
    groups_of,
    hold_out,
    labels_of,
)
from featx.progress import Progress, preparing, shown
from featx.store import NEAR_DUPLICATES, FeatureStore
from featx.transfer.transferability import SCORES

if TYPE_CHECKING:
    from torch import nn

    from featx.backbones import Backbone
    from featx.images import Collection

_PROBED = 3  # layers of a backbone that get a probe
_NEIGHBOURS = 5
_TIMED_IMAGES, _TIMED_SIZE, _TIMED_REPEATS = 16, 256, 3
_PROBES = {False: "logistic_regression", True: "ridge"}  # by whether labels are numbers


@dataclass(frozen=True, eq=False)
class ComparedLayer:
    """A layer of a compared backbone.

    Attributes
    ----------
    layer : str
    d : int
        Number of features.
    nearest : float or None
        Cross-validated accuracy of the 5 nearest neighbours; None for regression.
    probe : Candidate or None
        The linear probe at its best penalty; None if nearest neighbours did better on other layers.
    scores : {name: value} of `metrics`
    """

    layer: str
    d: int
    nearest: float | None
    probe: Candidate | None
    scores: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class ComparedBackbone:
    """A backbone, with its layers from the best on.

    Attributes
    ----------
    name : str
    store : FeatureStore
        Features of the sample.
    layers : tuple of ComparedLayer
        Layers with a probe first, best first.
    behind : float
        Mean score of the best layer minus that of the best backbone, over the same folds; 0 for the best.
    behind_interval : Interval
        95 % confidence interval of `behind`; (nan, nan) for the best backbone.
    n_parameters : int or None
        Number of parameters of the whole network; None if the network is not available.
    milliseconds : float or None
        Time for one image, measured on this machine.
    """

    name: str
    store: FeatureStore
    layers: tuple[ComparedLayer, ...]
    behind: float
    behind_interval: Interval
    n_parameters: int | None
    milliseconds: float | None

    @property
    def best(self) -> Candidate:
        """The probe of the best layer."""
        assert self.layers[0].probe is not None
        return self.layers[0].probe

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of the best layer."""
        return self.layers[0].d * self.store.recipe.n_views * np.dtype(self.store.recipe.dtype).itemsize


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """The result of `compare`.

    Attributes
    ----------
    backbones : tuple of ComparedBackbone
        Best first.
    n, n_classes : int
        Numbers of images and classes; n_classes is None for regression.
    chance : float
        Score of a constant prediction.
    folds : int
        Number of folds of the cross-validation.
    scoring : "accuracy", or "r2" for regression
    """

    backbones: tuple[ComparedBackbone, ...]
    n: int
    n_classes: int | None
    chance: float
    folds: int
    scoring: str

    @property
    def best(self) -> ComparedBackbone:
        return self.backbones[0]

    @property
    def pareto(self) -> tuple[ComparedBackbone, ...]:
        """Backbones that no other one equals or beats in both score and time, best first."""
        timed = [each for each in self.backbones if each.milliseconds is not None]
        points = [(-each.best.mean, each.milliseconds or 0) for each in timed]

        def is_beaten(point: tuple[float, float]) -> bool:
            return any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points)

        return tuple(each for each, point in zip(timed, points, strict=True) if not is_beaten(point))

    def __repr__(self) -> str:
        lines = [
            f"{len(self.backbones)} backbones by {self.folds}-fold {self.scoring} of a linear probe on {self.n:,} "
            f"images (chance {self.chance:.3f})"
        ]
        return "\n".join([*lines, *(f"{place}. {each.best}" for place, each in enumerate(self.backbones, start=1))])


def compare(
    source: object,
    backbones: str | Sequence[str | nn.Module | Backbone] | None = None,
    layers: str | Sequence[str] = "stages",
    *,
    sample: int | None = 1000,
    labels: Labels = None,
    target: str = "class",
    groups: str | Sequence[object] | np.ndarray | None = None,
    folder: str | os.PathLike = "compared",
    metrics: str | Sequence[str] = (),
    folds: int = 5,
    random_state: int = 0,
    device: str = "auto",
    progress: bool | Callable[[Progress], None] = True,
) -> Comparison:
    """Compare pretrained backbones on a sample of your images.

    Parameters
    ----------
    source : as in `featx.extract`, or a FeatureStore or several
        Labelled images; or stores of the same images, one for each backbone, of which nothing is extracted.
    backbones : sequence of names, or of Backbone
        See `featx.Backbone`. None for stores.
    layers : str or sequence of str
        Layers to compare, as in `featx.extract`; of stores, all that are stored.
    sample : int or None
        Number of images to compare on: drawn at random, each class in proportion, and by whole groups. None for all.
    labels : as in `featx.extract`; for stores as `y` of `select_model`, optional
    target : "class" or "numeric"
        As in `featx.extract`.
    groups : a column of the manifest or of the first store, or one value per image, optional
        Images of one group are never split between training and validation.
    folder : path
        Where the stores of the sample are kept; another comparison of the same images continues with them.
    metrics : names among "log_me", "h_score", "n_leep", optional
        Scores without training, for every layer; see `log_me`, `h_score` and `n_leep`.
    folds : int
        Number of folds of the cross-validation.
    random_state : int
        Seed of the sample and the folds.
    device : "auto", "cpu" or "cuda"
    progress : bool or callable
        As in `featx.extract`.

    Returns
    -------
    Comparison
        Backbones by the cross-validated score of their best layer: the accuracy of a logistic regression on
        standardised features, or R^2 of a ridge regression. The best of several penalties and layers is a little too
        good for every backbone; `select_model` scores a choice on images that it has not seen.

    Raises
    ------
    FeatxError
        There are no labels, a backbone is not there, or the sample is too small for the folds.

    Notes
    -----
    For classes, only the three layers of a backbone where 5 nearest neighbours predict best get a probe.
    `milliseconds` is measured on 16 random images of 256 x 256 pixels in the precision of the rows, not compiled:
    resizing and the forward pass as far as the deepest layer, without decoding. It is the shortest of three times; on a
    CPU, that of the clock or the CPU time of all threads, whichever is shorter.

    Examples
    --------
    >>> compare("photos/", ["resnet50", "timm:convnext_tiny"]).best.name    # doctest: +SKIP
    """
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    for name in metrics:
        if name not in SCORES:
            raise FeatxError(
                f"there is no metric {name!r}{nearest(str(name), SCORES)}; ",
                Parameter("metrics"),
                f" are {', '.join(SCORES)}",
            )
    if sample is not None and (not isinstance(sample, int | np.integer) or sample < 2):
        raise FeatxError(Parameter("sample"), f" is a number of images, 2 or more; got {sample!r}")
    stores = _stores(source)
    with shown(progress) as show:
        on_phase = preparing(show)
        known: dict[Path, Backbone] = {}
        if stores is None:
            named = _backbones(backbones)
            on_phase("looking for the images")
            images, groups = _sampled(source, labels, target, groups, sample, random_state)
            stores = _extract(images, named, layers, Path(folder), device, show)
            known = {store.path: backbone for store, backbone in zip(stores, named, strict=True)}
            labels, chosen = None, None
        elif backbones is not None:
            raise FeatxError(Parameter("backbones"), " are those of the stores; leave it out")
        else:
            chosen = _rows(stores[0], labels, groups, sample, random_state)
        holdout = HoldOut(0) if chosen is None else HoldOut(rows=~chosen)
        experiment = define_experiment(stores, labels, groups=groups, holdout=holdout, random_state=random_state)
        compared = []
        for store in stores:
            on_phase(f"probing {store.recipe.backbone}")
            one = _probe(replace(experiment, stores=[store]), metrics, folds, random_state)
            n_parameters, milliseconds = _cost(store, known.get(store.path), device)
            compared.append(replace(one, n_parameters=n_parameters, milliseconds=milliseconds))
    compared.sort(key=lambda each: -each.best.mean)
    first = compared[0].best
    n = len(experiment.y)
    placed = [replace(each, **_behind(each.best, first, n)) for each in compared]
    is_numeric, classes = experiment.is_numeric, experiment.classes
    n_classes = None if classes is None else len(classes)
    chance = 0.0 if is_numeric else float(np.unique(experiment.y, return_counts=True)[1].max() / n)
    return Comparison(tuple(placed), n, n_classes, chance, folds, "r2" if is_numeric else "accuracy")


def _stores(source: object) -> list[FeatureStore] | None:
    """The stores, if they are stores."""
    if isinstance(source, FeatureStore):
        return [source]
    if isinstance(source, Sequence) and source and all(isinstance(each, FeatureStore) for each in source):
        return list(source)
    return None


def _backbones(backbones: object) -> list[Backbone]:
    from featx.backbones import Backbone

    several = [backbones] if isinstance(backbones, str) or not isinstance(backbones, Sequence) else list(backbones)
    if backbones is None or not several:
        raise FeatxError(
            "name the ", Parameter("backbones"), " to compare, resnet50 and timm:convnext_tiny for example"
        )
    named = [each if isinstance(each, Backbone) else Backbone(each) for each in several]  # type: ignore[arg-type]
    names = [_file_name(each) for each in named]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise FeatxError(f"every backbone is compared once; repeated: {sorted(repeated)[0]}")
    return named


def _file_name(backbone: Backbone) -> str:
    """ "torchvision-resnet50", or "torchvision-resnet50-WEIGHTS"."""
    name = backbone.name.replace(":", "-")
    if backbone.name.startswith(("module:", "export:")) or backbone.weights == "DEFAULT":
        return name
    return f"{name}-{'random' if backbone.weights is None else Path(backbone.weights).stem}"


def _sampled(
    source: object, labels: Any, target: str, groups: Any, sample: int | None, random_state: int
) -> tuple[Collection, Any]:
    """The images to compare on, with labels, and their groups."""
    from featx.images import collect

    images = collect(source, labels, target=target)
    if images.y is None:
        raise StoreError(
            "backbones are compared on labelled images, and these have no labels: give a folder of class folders, or ",
            Parameter("labels"),
        )
    if sample is None or sample >= len(images.ids):
        return images, groups
    together = None
    by_content = isinstance(groups, str) and groups == NEAR_DUPLICATES and groups not in images.columns
    if groups is not None and not by_content:  # near duplicates are looked for among the sample, in its store
        values = images.columns.get(groups) if isinstance(groups, str) else np.asarray(groups)
        if values is None:
            raise StoreError(f"the images have no column {groups!r}{nearest(str(groups), images.columns)}")
        if values.shape != (len(images.ids),):
            raise FeatxError(Parameter("groups"), f" has one value an image: {len(images.ids):,}; got {values.shape}")
        together = Groups(np.unique(values, return_inverse=True)[1], "groups")
    rows = _drawn(images.y, together, sample, random_state)
    drawn = replace(
        images,
        images=[images.images[row] for row in rows],
        ids=[images.ids[row] for row in rows],
        y=images.y[rows],
        columns={name: values[rows] for name, values in images.columns.items()},
    )
    return drawn, groups if groups is None or isinstance(groups, str) else np.asarray(groups)[rows]


def _rows(store: FeatureStore, labels: Labels, groups: Any, sample: int | None, random_state: int) -> np.ndarray | None:
    """(n,) bool: which images of a store to compare on; None for all."""
    if sample is None or sample >= len(store):
        return None
    together = groups_of(store, group_numbers(store, groups), allow_duplicates=False)
    chosen = np.zeros(len(store), bool)
    chosen[_drawn(labels_of(store, labels), together, sample, random_state)] = True
    return chosen


def _drawn(y: np.ndarray, together: Groups | None, sample: int, random_state: int) -> np.ndarray:
    """Positions of a sample, in order: each class in proportion, whole groups."""
    try:
        return hold_out(y, together, sample / len(y), random_state)[1]
    except FeatxError as error:
        raise FeatxError(
            f"{sample:,} of {len(y):,} images cannot have some of each class and leave some; change ",
            Parameter("sample"),
        ) from error


def _extract(
    images: Collection, backbones: Sequence[Backbone], layers: Any, folder: Path, device: str, show: Any
) -> list[FeatureStore]:
    """A store of the images for each backbone, in the folder."""
    from featx.extraction import extract

    folder.mkdir(parents=True, exist_ok=True)
    stores = []
    for backbone in backbones:
        output = folder / f"{_file_name(backbone)}-{len(images.ids)}.h5"
        stores.append(extract(images, output, backbone, layers, device=device, progress=show, replace=True))
    return stores


def _probe(experiment: Experiment, metrics: Sequence[str], folds: int, random_state: int) -> ComparedBackbone:
    """The layers of the one store of an experiment, ranked."""
    store = experiment.stores[0]
    options: dict[str, Any] = {"folds": folds, "random_state": random_state}
    near: dict[str, float] = {}
    probed = list(store.layers)
    if not experiment.is_numeric:
        by_neighbours = cross_validated(experiment, estimators="knn", param_grid={"knn": [_NEIGHBOURS]}, **options)
        near = {candidate.layer: candidate.mean for candidate in by_neighbours}
        probed = list(near)[:_PROBED]
    probes: dict[str, Candidate] = {}
    for candidate in cross_validated(experiment, layers=probed, estimators=_PROBES[experiment.is_numeric], **options):
        probes.setdefault(candidate.layer, candidate)
    layers = []
    for layer in [*probes, *(layer for layer in near if layer not in probes)]:
        features = StoredFeatures(store, layer).fit()
        scores = {name: SCORES[name](np.asarray(features.transform(experiment.X)), experiment.y) for name in metrics}
        layers.append(ComparedLayer(layer, features.n_features_out_, near.get(layer), probes.get(layer), scores))
    return ComparedBackbone(store.recipe.backbone, store, tuple(layers), 0.0, UNKNOWN, None, None)


def _behind(candidate: Candidate, first: Candidate, n: int) -> dict[str, Any]:
    """The mean difference to the best over the same folds, and its interval."""
    differences = np.subtract(candidate.scores, first.scores)
    if candidate is first:
        return {"behind": 0.0, "behind_interval": UNKNOWN}
    J = len(differences)
    interval = cv_interval(differences.tolist(), n - n / J, n / J, -np.inf, np.inf)
    return {"behind": float(differences.mean()), "behind_interval": interval}


def _cost(store: FeatureStore, known: Backbone | None, device: str) -> tuple[int | None, float | None]:
    """(number of parameters, milliseconds an image) of the store's network; None if it is not available."""
    from featx.backbones import EAGER
    from featx.forward import backbone_of, measure

    try:
        backbone = backbone_of(store.recipe, known)
    except BackboneError:
        return None, None
    n_parameters = sum(parameter.numel() for parameter in backbone.module.parameters())
    pixels = np.random.default_rng(0).integers(0, 256, (_TIMED_IMAGES, _TIMED_SIZE, _TIMED_SIZE, 3), np.uint8)
    recipe = replace(store.recipe, engine=EAGER, batch_size=_TIMED_IMAGES)
    seconds = measure(list(pixels), recipe, backbone, device=device, repeats=_TIMED_REPEATS)
    return n_parameters, 1000 * seconds
