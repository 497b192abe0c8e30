"""Compares what an exported program predicts with what the model itself predicts, on images or rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from featx.backbones import Preprocessing
from featx.deploy.program import Program
from featx.errors import ImageError, ModelError
from featx.images import decode
from featx.learn.features import StoredFeatures, as_images

TOLERANCE = 5e-5  # of probabilities; of scores and values, relative to the largest
_SEEDED, _SEEDED_ROWS = 16, 64
_BATCH = 16

Run = Callable[[np.ndarray], Mapping[str, np.ndarray]]  # an input of the program -> its outputs by name


class Agreement(NamedTuple):
    """How a program agrees with its model.

    n : number of images, or rows, that both predicted; labels are equal on all
    on : "image" or "row"
    difference : largest absolute difference of a probability, score or value
    of : "probabilities", "scores" or "values"
    is_seeded : whether the images were made of random numbers
    precision : the recipe's; the program computes in float32, and so did the model for this comparison
    """

    n: int
    on: str
    difference: float
    of: str
    is_seeded: bool
    precision: str


def verify(run: Run, program: Program, model: Any, check: Sequence[Any] | np.ndarray | None) -> Agreement:
    """Compare a program with its model.

    Parameters
    ----------
    run : callable
        Runs the file that was written.
    program : Program
        Made of the model, whose features it holds.
    model : fitted estimator
        A copy: the precision of its recipes is changed.
    check : images or (n, d) rows, optional

    Raises
    ------
    ModelError
        A label differs, or a number differs by more than the tolerance.
    """
    is_seeded = check is None
    features = program.layers.steps
    reads_rows = not features or features[0].recipe_.is_imported
    on = "row" if reads_rows else "image"
    X: Any
    if reads_rows:
        if len({step.layers_ for step in features}) > 1:
            raise ModelError(
                "a model with several steps of imported features exports only if they read the same layers; give one "
                "step a list of layers"
            )
        X = _seeded_rows(model, program.d) if check is None else _rows(check)
        if X.ndim != 2 or X.shape[1] != program.d:
            raise ModelError(f"rows to compare on are (n, {program.d:,}); got shape {X.shape}")
        inputs, precision = [X], "float32"
    else:
        recipe = features[0].recipe_
        preprocessing, precision = Preprocessing.from_dict(recipe.preprocessing), recipe.precision
        X = _seeded_images(preprocessing) if check is None else as_images(check)
        inputs = _inputs(program, preprocessing, X)
    outputs = [run(each) for each in inputs]
    got = {name: np.concatenate([output[name] for output in outputs]) for name in program.outputs}
    if precision != "float32":  # labels are compared with those of the recipe's precision too
        _compare_labels(
            got,
            model,
            X,
            f"its features are computed in {precision}, the program's in float32; fit it on "
            "a store that was extracted with precision='float32'",
        )
        for step in features:
            step.recipe_ = replace(step.recipe_, precision="float32")
    _compare_labels(got, model, X, "this is a fault of the export, please report it")
    name = program.outputs[-1]
    method = {"probabilities": "predict_proba", "scores": "decision_function", "values": "predict"}[name]
    if name == "scores" and not hasattr(model, method):  # hard votes
        return Agreement(len(X), on, 0.0, name, is_seeded, precision)
    expected = np.asarray(getattr(model, method)(X))
    difference = float(np.abs(got[name] - expected).max())
    unit = 1.0 if name == "probabilities" else max(1.0, float(np.abs(expected).max()))
    if not difference <= TOLERANCE * unit:
        raise ModelError(
            f"the exported program is refused: its {name} differ from the model's by up to {difference:.2g}; at most "
            f"{TOLERANCE * unit:.2g} is accepted"
        )
    return Agreement(len(X), on, difference, name, is_seeded, precision)


def _compare_labels(got: Mapping[str, np.ndarray], model: Any, X: Any, why: str) -> None:
    if "label" not in got:
        return
    expected = model.predict(X)
    differ = int((model.classes_[got["label"]] != expected).sum())
    if differ:
        raise ModelError(
            f"the exported program is refused: {differ:,} of {len(expected):,} labels differ from the model's; {why}"
        )


def _rows(check: Any) -> np.ndarray:
    try:
        return np.array(check, np.float32)
    except (ValueError, TypeError) as error:
        raise ModelError("this model reads rows of features, so rows are needed to compare on, not images") from error


def _inputs(program: Program, preprocessing: Preprocessing, images: Sequence[Any]) -> list[np.ndarray]:
    """The program's inputs for images, in batches."""
    if program.input == "image":
        return [np.array(_decoded(image)) for image in images]
    assert program.layers.recipe is not None
    prepare, _ = preprocessing.for_views(program.layers.recipe.views)
    pixels = [prepare(_decoded(image)) for image in images]
    batches = [np.stack(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)]
    if program.input == "pixels":
        return batches
    network = program.layers.network().eval()
    with torch.inference_mode():
        return [network(torch.from_numpy(batch)).numpy() for batch in batches]


def _decoded(image: Any) -> Image.Image:
    try:
        return decode(image)[0]
    except ImageError as error:
        name = image if isinstance(image, str | Path) else type(image).__name__
        raise ModelError(f"an image to compare on cannot be read: {name}: {error}") from error


def _seeded_images(preprocessing: Preprocessing) -> list[np.ndarray]:
    """Smooth pictures with some noise, of sizes that are resized in both directions."""
    rng = np.random.default_rng(0)
    resize = preprocessing.resize
    side = min(resize) if isinstance(resize, tuple) else resize
    sizes = [(side + 32, side + 80), (side * 5 // 2, side + 5), (max(side * 2 // 3, 8), side)]
    images = []
    for number in range(_SEEDED):
        height, width = sizes[number % len(sizes)]
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
        images.append((smooth + rng.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8))
    return images


def _seeded_rows(model: Any, d: int) -> np.ndarray:
    """Normal rows, with the means and scales of the model's scaler if it begins with one."""
    rows = np.random.default_rng(0).normal(size=(_SEEDED_ROWS, d))
    steps = [step for _, step in model.steps] if hasattr(model, "steps") else [model]
    first = next((step for step in steps if not isinstance(step, StoredFeatures)), None)
    scale, mean = getattr(first, "scale_", None), getattr(first, "mean_", None)
    if isinstance(scale, np.ndarray) and isinstance(mean, np.ndarray) and len(scale) == len(mean) == d:
        rows = rows * scale + mean
    return rows.astype(np.float32)
