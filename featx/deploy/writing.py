"""Writes a fitted pipeline as one ONNX or torch program, which is compared with the pipeline before it is kept."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.export import Dim, ExportedProgram

from featx.backbones import Preprocessing
from featx.deploy.description import Description
from featx.deploy.program import INPUTS, Input, Program
from featx.deploy.runtime import open_onnx
from featx.deploy.verification import Agreement, Run, verify
from featx.errors import FeatxError, ModelError, Parameter, as_path
from featx.learn.models import refuse_unfitted

_OPSET = 20
_MOST_INSIDE = 2**30  # bytes of weights inside a .onnx file, which cannot exceed 2 GB; more are a file of their own
_DESCRIPTION = "featx.json"  # inside a .pt2 file


class Exported(NamedTuple):
    """An exported program.

    path : the file; large weights lie beside it in `path` + ".data"
    input : "pixels (batch, 224, 224, 3) uint8"
    outputs : ("label", "probabilities") for example
    agreement : how it agrees with the model
    description : the file's metadata
    """

    path: Path
    input: str
    outputs: tuple[str, ...]
    agreement: Agreement
    description: Description


def export(
    model: Any,
    path: str | os.PathLike,
    *,
    input: Input = "pixels",
    check: Sequence[Any] | np.ndarray | None = None,
    replace: bool = False,
) -> Exported:
    """Write a fitted pipeline as one program: network, scaler, estimator.

    The program is run and compared with the model before it is kept: labels must be equal, probabilities within 5e-5.

    Parameters
    ----------
    model : fitted estimator, pipeline or search
        Of StoredFeatures or ImageFeatures, scalers, PCA, PowerTransformer, selectors; LogisticRegression, LinearSVC,
        SVC, SVR, Ridge, RidgeClassifier, KNeighborsClassifier, NearestCentroid, MLPs, FineTuner; and calibrated, voting
        or stacking ensembles of these. scikit-learn's classes of these names can be exported too.
    path : name that ends in ".onnx" (opset 20), or ".pt2" (torch.export)
    input : "pixels", "image" or "rows"
        "pixels": uint8 (batch, height, width, 3), or (batch, v, height, width, 3) of views, resized and cropped as the
        file's metadata says. "image": one uint8
        image (height, width, 3) of any size, which the program resizes as Pillow does. "rows": float32 (batch, d), the
        features.
    check : images, optional
        Paths, PIL images or uint8 arrays to compare on; for a model of rows, (n, d) float32. By default seeded ones.
    replace : bool, default False
        Whether to replace an existing file.

    Returns
    -------
    Exported

    Raises
    ------
    ModelError
        A step cannot be exported (the nearest one that can is named), the file exists, or the program does not agree
        with the model.
    BackboneError
        The network cannot be had, or is no graph of operations.

    Notes
    -----
    Outputs are "label", the position in `classes_`, and "probabilities" or, of a model without them, "scores" as
    `decision_function` returns them; of a regression "values". Names of the classes, recipe, preprocessing and the
    weights' fingerprint are the file's metadata; `featx.deploy.description` lists them. The network computes in
    float32, whatever the recipe's precision is.

    Examples
    --------
    >>> featx.deploy.export(search.best_estimator_, "cats.onnx", check=["a.jpg", "b.jpg"])    # doctest: +SKIP
    """
    path = as_path("path", path, ModelError)
    if path.suffix not in (".onnx", ".pt2"):
        raise ModelError(f"an exported model is a .onnx or .pt2 file; got {path}")
    if input not in INPUTS:
        raise FeatxError(f"input is one of {', '.join(INPUTS)}; got {input!r}")
    for file in (path, path.with_name(f"{path.name}.data")):  # large weights are written beside
        if file.exists() and not replace:
            raise ModelError(
                f"{file} is there already; choose another name, or replace it with ", Parameter("replace", True)
            )
    if path.suffix == ".onnx":
        _require_onnx()
    refuse_unfitted(model)
    model = copy.deepcopy(model)  # verifying changes it
    program = Program(model, input)
    for step in program.layers.steps:
        step.device = "cpu"
    exported = _traced(program)
    description = _description(program, model)
    with _aside(path) as draft:
        try:
            write, run = (_write_onnx, _onnx_run) if path.suffix == ".onnx" else (_write_program, _program_run)
            with _quiet():
                write(exported, program, description, draft)
        except Exception as error:  # an operation that ONNX lacks: many types
            raise ModelError(f"the network cannot be written as {path.suffix}: {_in_a_line(error)}") from error
        agreement = verify(run(draft, program), program, model, check)
    return Exported(path, _signature(program), program.outputs, agreement, description)


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"a .onnx file needs {error.name}, which is not installed: pip install 'featx[onnx]'"
        ) from error


def _traced(program: Program) -> ExportedProgram:
    """The graph, for any number of rows, or images of any size."""
    if program.input == "image":
        example = torch.zeros(70, 90, 3, dtype=torch.uint8)
        shapes: dict[int, Any] = {0: Dim("height"), 1: Dim("width")}
    else:
        example = torch.zeros(2, program.d)
        if program.input == "pixels":
            example = torch.zeros(2, *_pixels_size(program), 3, dtype=torch.uint8)
        shapes = {0: Dim("batch")}
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(program, (example,), dynamic_shapes=(shapes,))
    except Exception as error:  # the network's code may raise anything
        raise ModelError(f"the network cannot be exported: {_in_a_line(error)}") from error


def _pixels_size(program: Program) -> tuple[int, ...]:
    """(h, w), or (v, h, w)"""
    recipe = program.layers.recipe
    assert recipe is not None
    return Preprocessing.from_dict(recipe.preprocessing).for_views(recipe.views)[1]


def _signature(program: Program) -> str:
    if program.input == "rows":
        return f"rows (batch, {program.d:,}) float32"
    if program.input == "image":
        return "image (height, width, 3) uint8"
    return f"pixels (batch, {', '.join(map(str, _pixels_size(program)))}, 3) uint8"


def _description(program: Program, model: Any) -> Description:
    recipe = program.layers.recipe
    return Description(
        classes=[str(label) for label in model.classes_] if "label" in program.outputs else None,
        preprocessing=None if recipe is None or recipe.is_imported else recipe.preprocessing,
        views=None if recipe is None else recipe.views,
        layers={name: list(span) for name, span in program.layers.spans.items()},
        recipe=None if recipe is None else json.loads(recipe.to_json()),
        weights_sha256="" if recipe is None else recipe.weights_sha256,
    )


def _write_onnx(exported: ExportedProgram, program: Program, description: Description, path: Path) -> None:
    onnx = torch.onnx.export(
        exported,
        dynamo=True,
        opset_version=_OPSET,
        input_names=[program.input],
        output_names=list(program.outputs),
        verbose=False,
    )
    assert onnx is not None
    onnx.model.metadata_props.update(description.texts())
    tensors = [*program.parameters(), *program.buffers()]
    nbytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    onnx.save(path, external_data=nbytes > _MOST_INSIDE)


def _onnx_run(path: Path, program: Program) -> Run:
    session, _ = open_onnx(path)

    def run(x: np.ndarray) -> Mapping[str, np.ndarray]:
        return dict(zip(program.outputs, session.run(list(program.outputs), {program.input: x}), strict=True))

    return run


def _write_program(exported: ExportedProgram, program: Program, description: Description, path: Path) -> None:
    torch.export.save(exported, path, extra_files={_DESCRIPTION: json.dumps(description.texts())})


def _program_run(path: Path, program: Program) -> Run:
    with _quiet():
        module = torch.export.load(path).module()

    def run(x: np.ndarray) -> Mapping[str, np.ndarray]:
        with torch.no_grad():
            outputs = module(torch.from_numpy(x))
        return {name: output.numpy() for name, output in zip(program.outputs, outputs, strict=True)}

    return run


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A path of the same name in a folder beside; the files in it take their places at the end, if all went well."""
    try:
        folder = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise ModelError(f"cannot write {path}: {error.strerror}") from error
    with folder as name:
        draft = Path(name) / path.name
        yield draft
        for file in sorted(Path(name).iterdir(), key=lambda file: file == draft):  # weights before what names them
            with open(file, "rb") as written:
                os.fsync(written.fileno())
            os.replace(file, path.parent / file.name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings, which do not help the user of a network."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _in_a_line(error: BaseException) -> str:
    """The first cause: the exporter's own messages take a page."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
