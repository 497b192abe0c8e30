"""Predictions of an ONNX file for images, by onnxruntime; neither torch nor scikit-learn is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from featx.deploy.description import Description
from featx.errors import ImageError, ModelError, as_path
from featx.images import batches, decode
from featx.prediction import Prediction
from featx.resizing import resized_and_cropped

_BATCH = 8  # images a run: a larger batch is no faster on a CPU
_KINDS = {"probabilities": "probability", "scores": "score", "values": "value"}


def predict_onnx(path: str | os.PathLike, images: Sequence[Any]) -> Iterator[Prediction]:
    """Predict image by image with a file that `export` wrote, as `featx.learn.predict_images` does.

    Parameters
    ----------
    path : str or path
        A ".onnx" file of input "pixels" or "image".
    images : n paths, PIL images or uint8 arrays

    Yields
    ------
    Prediction, n of them, in order

    Raises
    ------
    ModelError
        onnxruntime is not installed, or the file is no such model.
    """
    session, description = open_onnx(path)
    (taken,) = session.get_inputs()
    if taken.name not in ("pixels", "image") or description.preprocessing is None:
        how = "" if description.preprocessing is None else "; export it with input='pixels'"
        raise ModelError(f"{path} predicts rows of features, not images{how}")
    of_batch = _pixels if taken.name == "pixels" else _images
    for position, output in enumerate(of_batch(session, description, images)):
        image = images[position]
        name = str(position) if hasattr(image, "shape") or hasattr(image, "convert") else str(image)
        if isinstance(output, ImageError):
            yield Prediction(name, None, None, "", str(output))
        else:
            yield _prediction(name, output, description)


def open_onnx(path: str | os.PathLike) -> tuple[Any, Description]:
    """The onnxruntime session of a file, and its metadata; raises ModelError as `predict_onnx` does."""
    path = as_path("path", path, ModelError)
    if not path.is_file():
        raise ModelError(f"there is no model file {path}; featx export makes one")
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            "predicting with a .onnx file needs onnxruntime, which is not installed: pip install 'featx[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises types of its own
        raise ModelError(f"{path} cannot be opened by onnxruntime: {' '.join(str(error).split())}") from error
    try:
        return session, Description.of_texts(session.get_modelmeta().custom_metadata_map)
    except ModelError as error:
        raise ModelError(f"{path} is refused: {error}") from error


Outputs = dict[str, np.ndarray]  # of one image


def _pixels(session: Any, description: Description, images: Sequence[Any]) -> Iterator[Outputs | ImageError]:
    """The outputs for each image, which Pillow resizes; or why it cannot be read."""
    preprocessing, views = description.preprocessing, description.views
    assert preprocessing is not None
    resize, crop = preprocessing["resize"], tuple(preprocessing["crop"])
    resize = resize if isinstance(resize, int) else tuple(resize)
    interpolation = preprocessing.get("interpolation", "bilinear")

    def prepare(picture: Image.Image) -> np.ndarray:
        pixels = resized_and_cropped(picture, resize, crop, interpolation, views or ["center"])
        return pixels[0] if views is None else pixels

    size = crop if views is None else (len(views), *crop)
    names = [output.name for output in session.get_outputs()]
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for batch in batches(images, prepare, size, min(_BATCH, len(images)), threads, taking_turns=True):
        b = min(len(batch.pixels), len(images) - batch.start)
        outputs = session.run(names, {"pixels": batch.pixels[:b]})
        for slot in range(b):
            yield batch.failures.get(slot) or {name: out[slot] for name, out in zip(names, outputs, strict=True)}


def _images(session: Any, description: Description, images: Sequence[Any]) -> Iterator[Outputs | ImageError]:
    """The outputs for each image, which the program resizes."""
    names = [output.name for output in session.get_outputs()]
    for image in images:
        try:
            picture, _ = decode(image)
        except ImageError as error:
            yield error
            continue
        outputs = session.run(names, {"image": np.asarray(picture)})
        yield {name: output[0] for name, output in zip(names, outputs, strict=True)}


def _prediction(image: str, outputs: Outputs, description: Description) -> Prediction:
    name = next(name for name in outputs if name != "label")
    values = outputs[name]
    if name == "values":
        return Prediction(image, float(values), None, "value", "")
    assert description.classes is not None
    confidence = float(np.max(values)) if np.ndim(values) else float(abs(values))
    return Prediction(image, description.classes[int(outputs["label"])], confidence, _KINDS[name], "")
