"""`save` and `load`: a fitted estimator as one skops file, which carries the recipe and runs no code when loaded.

To predict images, a loaded model needs neither the store that it was trained on nor the training images.
"""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from featx.errors import BackboneError, Call, ModelError, StoreError, as_path, listed, readable, warn
from featx.grammar import is_weights_file
from featx.learn import estimators, features, search
from featx.learn.features import ImageFeatures, StoredFeatures
from featx.learn.models.detached import detached
from featx.learn.models.objects import objects_of
from featx.learn.models.records import record_of, selection_of
from featx.learn.selection import Selection
from featx.store import FeatureStore, Recipe, written_aside

_FORMAT = "featx-model"
_PATHS = ("memory", "checkpoint")  # parameters that name files which a fit would read, write or remove
_RECORD = "selection"  # how the model was chosen, as JSON; optional
_VERSION = 1
_MOST_INFLATED = 2**28  # bytes to which any file may decompress
_MOST_RATIO = 20  # decompressed to compressed bytes of larger files; arrays of numbers shrink by half or so
# The modules of public classes, in files of featx 0.1: the classes have moved since, and are named by featx.learn now.
_FORMER_MODULES = {
    "featx.learn.centroid": "featx.learn",
    "featx.learn.features": "featx.learn",
    "featx.learn.halving": "featx.learn",
    "featx.learn.linear_svc": "featx.learn",
    "featx.learn.logistic": "featx.learn",
    "featx.learn.neighbors": "featx.learn",
    "featx.learn.ridge": "featx.learn",
    "featx.learn.search": "featx.learn",
    "featx.learn.svm": "featx.learn",
    "featx.store.recipe": "featx.store",
}
# Beside featx's public estimators and what skops itself trusts (scikit-learn's public estimators, numpy, scipy). All of
# it is data with methods that only compute; a type is added here after reading what its construction runs.
_TRUSTED = (
    "featx.store.Recipe",
    "featx.transfer.Align",
    "featx.transfer.FineTuner",
    "featx.transfer.FineTunerRegressor",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.metrics._scorer._PassthroughScorer",  # a fitted GridSearchCV
    "sklearn.utils._bunch.Bunch",  # voting and stacking: a dict
    *(
        f"sklearn.model_selection._split.{splitter}"  # what meta-estimators keep as their cv
        for splitter in (
            "GroupKFold",
            "GroupShuffleSplit",
            "KFold",
            "LeaveOneGroupOut",
            "LeaveOneOut",
            "PredefinedSplit",
            "ShuffleSplit",
            "StratifiedGroupKFold",
            "StratifiedKFold",
            "StratifiedShuffleSplit",
            "TimeSeriesSplit",
        )
    ),
)


def save(estimator: Any, path: str | os.PathLike) -> Path:
    """Save a fitted estimator or pipeline to one file.

    An existing file is replaced once the new one is complete; if anything fails, it stays.

    Parameters
    ----------
    estimator : fitted scikit-learn estimator, a pipeline or search for example; or a Selection
        Of a selection, its best estimator is saved with how it was chosen, which `load_selection` reads. With
        StoredFeatures or ImageFeatures it predicts images once it is loaded. Without them it predicts rows of features,
        and `save` warns.
    path : name that ends in ".skops"

    Returns
    -------
    Path

    Raises
    ------
    ModelError
        The estimator is not fitted, or holds something that `load` would refuse (a class or a function of your own, a
        KDTree, gradient boosting of categorical features or from an estimator of your own); the name has another
        suffix, or the file cannot be written.

    Warns
    -----
    UserWarning
        The model cannot predict images.

    Examples
    --------
    >>> save(search.best_estimator_, "cats.skops")    # doctest: +SKIP
    """
    path = as_path("path", path, ModelError)
    if path.suffix != ".skops":
        raise ModelError(f"a model is a .skops file; got {path}")
    record = {}
    if isinstance(estimator, Selection):
        if estimator.best_estimator is None:
            raise ModelError("the search was interrupted before a model was fitted: there is none to save")
        record = {_RECORD: record_of(estimator)}
        estimator = estimator.best_estimator
    refuse_unfitted(estimator)
    import skops.io  # seconds to import: it lists every class of scikit-learn

    from featx.learn.models.trees import check_trees  # imports sklearn.ensemble

    try:
        copy = detached(estimator)
        for step in features_of(copy):
            step.hand_over(None)
        check_trees(copy)
        model = {"format": _FORMAT, "version": _VERSION, "estimator": copy} | record
        content = skops.io.dumps(model, compression=ZIP_DEFLATED)
    except (TypeError, AttributeError, pickle.PicklingError, NotImplementedError) as error:
        raise ModelError(f"{type(estimator).__name__} cannot be saved: {_in_a_line(error)}") from error
    if foreign := sorted(set(skops.io.get_untrusted_types(data=content)) - set(_trusted())):
        instead = "use scikit-learn's and featx's own classes, and functions of numpy"
        if any(name.startswith("sklearn.neighbors._") for name in foreign):
            instead = "scikit-learn's neighbours can be saved with algorithm=\"brute\"; so can featx.learn's"
        raise ModelError(
            f"{type(estimator).__name__} holds types that a model file must not: {listed(foreign)}; {instead}"
        )
    if not features_of(copy):
        warn(
            f"{type(estimator).__name__} has no StoredFeatures or ImageFeatures: the saved model predicts rows of "
            "features, not images; to predict images, fit and save a pipeline that begins with one of them",
            UserWarning,
        )
    try:
        with written_aside(path) as file:
            file.write(content)
    except StoreError as error:
        raise ModelError(*error.parts) from error
    return path


def refuse_unfitted(estimator: Any) -> None:
    name = type(estimator).__name__
    try:
        # of a pipeline, scikit-learn checks the last step only
        for _, step in estimator.steps if isinstance(estimator, Pipeline) else [("", estimator)]:
            if step is estimator or step not in (None, "passthrough"):
                check_is_fitted(step)
    except NotFittedError as error:
        raise ModelError(f"{name} is not fitted: call its fit first, then save it") from error
    except TypeError as error:
        raise ModelError(f"a model is a fitted scikit-learn estimator; got {name}") from error
    if hasattr(estimator, "cv_results_") and not hasattr(estimator, "best_estimator_"):
        raise ModelError(f"{name} with refit=False holds no fitted model: fit it with refit=True, then save it")


def load(path: str | os.PathLike, *, backbone: Any = None, weights: str | os.PathLike | None = None) -> Any:
    """Load a model that `save` wrote. Nothing in the file is executed: types outside a fixed list are refused.

    A model file names the network that it needs; it cannot make featx open, download or import one that you did not
    name. Weights on disk are read only if the file is at its recorded path and has the recorded SHA-256. The `memory`
    of a pipeline, a folder whose files scikit-learn unpickles, is dropped.

    Parameters
    ----------
    path : the model file
    backbone : featx.Backbone, torch.nn.Module, exported program or str, optional
        The network, if it is a module of your own or an exported program; or the name of the recorded one, whose
        pretrained weights may then be downloaded. It must have the recorded fingerprint.
    weights : str or path, optional
        The weights of the recorded network: a state dict that has moved, a `.pt2` program, or the name of pretrained
        weights that may be downloaded, "DEFAULT" for example. They must have the recorded fingerprint.

    Returns
    -------
    estimator

    Raises
    ------
    ModelError
        There is no such file, it is not a featx model, or it holds types outside the list, a recipe that featx does not
        write, decision trees that are not safe to use, or weights that do not fit its classes.
    BackboneError
        `backbone` or `weights` are not the recorded ones.
    """
    if backbone is not None and weights is not None:
        raise ModelError("give backbone= or weights=, not both: a backbone has its weights")
    estimator = _read(path)["estimator"]
    if backbone is not None or weights is not None:
        _hand_back(estimator, backbone, weights)
    return estimator


def load_selection(
    path: str | os.PathLike, stores: FeatureStore | Sequence[FeatureStore], test_store: FeatureStore | None = None
) -> Selection:
    """The selection of a model that was saved with it, read again from the stores that were searched.

    Parameters
    ----------
    path : the model file, that ``save(selection, path)`` or ``featx search`` wrote
    stores : the searched stores, in their order
    test_store : the store of the held-out images, if it was another one

    Returns
    -------
    Selection
        Without `nested`. Predictions for the held-out images are computed again.

    Raises
    ------
    ModelError
        As in `load`; or the file does not say how the model was chosen.
    KeysError
        The stores do not hold the images.
    RecipeError
        Rows of the stores have another meaning than those that the model was fitted on.
    """
    model = _read(path)
    if not isinstance(record := model.get(_RECORD), str):
        raise ModelError(
            f"{path} does not say how its model was chosen; save it with ",
            Call("featx.save", "selection", "path"),
        )
    return selection_of(record, model["estimator"], stores, test_store)


def _read(path: str | os.PathLike) -> dict[str, Any]:
    """The content of a model file, checked."""
    import skops.io

    from featx.learn.models.trees import check_trees

    path = as_path("path", path, ModelError)
    if not path.is_file():
        raise ModelError(f"there is no model file {path}; ", Call("featx.save"), " makes one")
    try:
        content = path.read_bytes()
        _refuse_bomb(content, path)
        content = _with_current_names(content)
        foreign = sorted(set(skops.io.get_untrusted_types(data=content)) - set(_trusted()))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except ModelError:
        raise
    except Exception as error:  # skops and zipfile raise many types on files of another kind
        raise ModelError(f"{path} is not a featx model; ", Call("featx.save"), " makes them") from error
    if foreign:
        raise ModelError(f"{path} holds types that a featx model must not: {listed(foreign)}; it was not opened")
    try:
        model = skops.io.loads(content, trusted=list(_trusted()))
    except Exception as error:
        raise ModelError(f"{path} is damaged, or from other versions: {_in_a_line(error)}") from error
    if not isinstance(model, dict) or model.get("format") != _FORMAT:
        raise ModelError(f"{path} is a skops file, but not a featx model; ", Call("featx.save"), " makes them")
    if model.get("version") != _VERSION:
        raise ModelError(f"{path} has format version {model.get('version')}; this featx reads {_VERSION}: update it")
    if "estimator" not in model:
        raise ModelError(f"{path} is damaged: it holds no model")
    estimator = model["estimator"]
    try:
        check_trees(estimator)
    except ModelError as error:
        raise ModelError(f"{path} is damaged: {error}") from error
    except Exception as error:  # attributes of any type
        raise ModelError(f"{path} is damaged: {_in_a_line(error)}") from error
    try:
        _check(estimator)
    except (StoreError, ModelError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is refused: {error}") from error
    return model


def _trusted() -> tuple[str, ...]:
    """Names of the types that a model file may hold."""
    from featx.learn.models.trees import TREE_TYPES

    public = (getattr(room, name) for room in (estimators, features, search) for name in room.__all__)
    classes = (each for each in public if isinstance(each, type) and issubclass(each, BaseEstimator))
    return *_TRUSTED, *TREE_TYPES, *(f"{each.__module__}.{each.__name__}" for each in classes)


def _with_current_names(content: bytes) -> bytes:
    """A model file with featx's classes named by the modules that they are imported from today."""
    with ZipFile(io.BytesIO(content)) as archive:
        schema = json.loads(archive.read("schema.json"))
        if not _rename_modules(schema):
            return content
        renamed = io.BytesIO()
        with ZipFile(renamed, "w") as copy:
            for name in archive.namelist():
                copy.writestr(name, json.dumps(schema) if name == "schema.json" else archive.read(name))
    return renamed.getvalue()


def _rename_modules(node: Any) -> bool:
    """Give all nodes of a skops schema, in place, today's names of modules; whether any had another."""
    if isinstance(node, list):
        return any([_rename_modules(each) for each in node])
    if not isinstance(node, dict):
        return False
    former = node.get("__module__") or ""
    is_renamed = isinstance(former, str) and former in _FORMER_MODULES
    if is_renamed:
        node["__module__"] = _FORMER_MODULES[former]
    return any([_rename_modules(each) for each in node.values()]) or is_renamed


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _refuse_bomb(content: bytes, path: Path) -> None:
    """Raise ModelError if a small file would decompress to gigabytes."""
    with ZipFile(io.BytesIO(content)) as archive:
        nbytes = sum(entry.file_size for entry in archive.infolist())
    if nbytes > max(_MOST_INFLATED, _MOST_RATIO * len(content)):
        raise ModelError(f"{path} is refused: its {readable(len(content))} would decompress to {readable(nbytes)}")


def recipes(estimator: Any) -> list[Recipe]:
    """The distinct recipes of all StoredFeatures and ImageFeatures in a fitted estimator, however deeply nested."""
    by_text = {step.recipe_.to_json(): step.recipe_ for step in features_of(estimator)}
    return list(by_text.values())


def features_of(estimator: Any) -> list[StoredFeatures | ImageFeatures]:
    """Fitted features steps in an estimator, however deeply nested."""
    steps = (held for held in objects_of(estimator) if isinstance(held, StoredFeatures | ImageFeatures))
    return [step for step in steps if hasattr(step, "recipe_")]


def _check(estimator: Any) -> None:
    """Raise StoreError or ModelError unless featx could have written all recipes and weights of a loaded estimator;
    drop what names files.

    skops sets attributes without calling constructors, so only the attributes themselves are checked.
    """
    for held in objects_of(estimator):
        if isinstance(held, Recipe):
            held.check()
        elif isinstance(held, BaseEstimator):
            for name in _PATHS:
                if getattr(held, name, None) is not None:
                    setattr(held, name, None)
            if hasattr(held, "check_loaded"):
                held.check_loaded()
    for step in features_of(estimator):
        recipe = step.recipe_
        if not isinstance(recipe, Recipe) or not isinstance(getattr(step, "store", recipe), Recipe):
            raise StoreError("it holds features without a recipe")
        if isinstance(step, ImageFeatures) and recipe.is_imported:
            raise StoreError("it computes features that were imported")
        if isinstance(step, ImageFeatures) and is_weights_file(str(step.weights)):
            from featx.backbones import Backbone, Preprocessing  # seconds to import, and rarely needed

            preprocessing = Preprocessing.from_dict(recipe.preprocessing)
            known = recipe.backbone, recipe.weights, recipe.weights_file_sha256
            step.backbone = Backbone.of_recipe(*known, preprocessing)  # so fitting it again checks the file, too


def _hand_back(estimator: Any, backbone: Any, weights: str | os.PathLike | None) -> None:
    """Give the features steps the network that the user passed: all that need it, of a model with several networks.

    Raises
    ------
    BackboneError
        No step needs it; or the weights, which are for all steps, are not those of one.
    """
    from featx.backbones import Backbone, passed_backbone, resolve_backbone

    resolved: dict[str, Backbone] = {}
    refusals: list[BackboneError] = []
    steps = features_of(estimator)
    for recipe in {step.recipe_.weights_sha256: step.recipe_ for step in steps}.values():
        try:
            known = passed_backbone(recipe, backbone, ... if weights is None else weights)
            resolved[recipe.weights_sha256] = resolve_backbone(recipe, known)
        except BackboneError as error:
            refusals.append(error)
    if refusals and (weights is not None or not resolved):
        raise refusals[0]
    for step in steps:
        if (network := resolved.get(step.recipe_.weights_sha256)) is not None:
            step.hand_over(network)
            if isinstance(step, ImageFeatures):
                step.backbone = network
