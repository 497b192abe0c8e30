"""The library's messages in the words of the command line: options for parameters, commands for calls."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Container, Iterator
from typing import Any

from featx.cli.printing import print_note
from featx.errors import Call, Message, Parameter, RowsDifferWarning

# options that have another name than the library's parameter
_OPTIONS = {
    "random_state": "seed",
    "n_jobs": "jobs",
    "estimators": "estimator",
    "k": "neighbors",
    "address": "ray",
    "layers": "layer",
    "methods": "method",
    "n": "number",
    "size": "test_size",
    "validation_rows": "validation_value",
}
# options of `featx extract` that messages of other commands name
_EXTRACT_OPTIONS = {"like"}
# what the command line has in place of a call, by its function and the parameters that it names
_COMMANDS = {
    ("featx.extract",): "featx extract",
    ("featx.extract", "backbone", "layers"): "featx extract IMAGES {backbone} {layers}",
    ("featx.extract", "output", "backbone", "layers"): "featx extract IMAGES {output} {backbone} {layers}",
    ("featx.export",): "featx export",
    ("featx.merge",): "featx merge",
    ("featx.put",): "featx put",
    ("FeatureStore.from_arrays", "name"): "featx import ROWS -o STORE {name}",
    ("model.predict",): "featx predict MODEL --store STORE",
    ("featx.save",): "featx search -o",
    ("featx.load", "weights"): "featx predict {weights}",
    ("HoldOut", "size"): "{size}",
    ("HoldOut", "rows"): "--split-column",
    ("FeatureStore.align",): "featx search --labels",
    ("store.align",): "--labels labels.csv",
    ("store.align", "partial"): "--labels so-far.csv",
    ("target_store.align",): "--target-labels labels.csv",
    ("y.astype",): "--labels with --target numeric",
    ("featx.learn.learning_curves",): "--protocol learning-curve",
    ("featx.learn.select_model",): "no --protocol",
}


def worded(message: Message, options: Container[str]) -> str:
    """A message as the command line writes it; what it has no option or command for stays as in Python.

    Parameters
    ----------
    message : FeatxError or RowsDifferWarning
    options : container of str
        Names of the running command's parameters.
    """

    def write(part: Parameter | Call) -> str:
        if isinstance(part, Parameter) and part.value and isinstance(part.value[0], Call):
            part = part.value[0]
        if isinstance(part, Call):
            named = [argument for argument in part.arguments if isinstance(argument, Parameter)]
            command = _COMMANDS.get((part.name, *(parameter.name for parameter in named)))
            return str(part) if command is None else command.format_map({p.name: _option(p, "FILE") for p in named})
        is_option = part.name in _EXTRACT_OPTIONS or _OPTIONS.get(part.name, part.name) in options
        return _option(part) if is_option else str(part)

    return message.render(write)


def _option(parameter: Parameter, placeholder: str = "") -> str:
    """ "--test-size 0" for `test_size=0`, "--replace" for `replace=True`, "--weights random" for `weights=None`,
    "--layer a --layer b" for `layers=["a", "b"]`"""
    name = "--" + _OPTIONS.get(parameter.name, parameter.name).replace("_", "-")
    if parameter.value and isinstance(parameter.value[0], list):
        return " ".join(f"{name} {value}" for value in parameter.value[0])
    words = [name]
    for value in parameter.value:
        if value is ...:
            words.append(placeholder)
        elif value is not True:
            words.append("random" if value is None else str(value))
    return " ".join(words).rstrip()


@contextlib.contextmanager
def notes(options: Container[str]) -> Iterator[None]:
    """Print each RowsDifferWarning as one line on stderr when it is raised; see `worded`."""

    def show(message: Warning | str, category: type[Warning], *where: Any, **rest: Any) -> None:
        if isinstance(message, RowsDifferWarning):
            print_note(worded(message, options))
        else:
            showwarning(message, category, *where, **rest)

    with warnings.catch_warnings():
        warnings.simplefilter("default", RowsDifferWarning)
        showwarning, warnings.showwarning = warnings.showwarning, show
        yield
